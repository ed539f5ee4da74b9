"""Apps without shared state: each does something that looks like it, and nothing may be found."""

from __future__ import annotations

CLEAN = {
    "constants, enums, settings, loggers": """
import enum, logging, re
from pydantic import BaseModel, Field
from pydantic_settings import BaseSettings
logger = logging.getLogger(__name__)
ROLES = ["admin", "guest"]
PRICES = {"tea": 2, "cake": 4}
NAME = re.compile("[a-z]+")
class Color(enum.Enum):
    RED = "red"
    @classmethod
    def of(cls, text: str) -> "Color":
        return cls(text)
class Settings(BaseSettings):
    debug: bool = False
    hosts: list[str] = []
settings = Settings()
@lru_cache
def get_settings() -> Settings:
    return Settings()
class Item(BaseModel):
    name: str
    tags: list[str] = []
    more: dict = Field(default_factory=dict)
EXAMPLE = Item(name="tea")
app = FastAPI(title=settings.name)
app.state.started = True
@app.post("/items")
async def make(item: Item, settings: Settings = Depends(get_settings)) -> Item:
    item.tags.append("new")
    item.name = item.name.upper()
    prices = dict(PRICES)
    prices[item.name] = 3
    roles = ROLES.copy()
    roles.append("x")
    total = sum(PRICES.values())
    logger.info("made %s for %s", item, total)
    mine = [*ROLES]
    mine.sort()
    return item
""",
    "registries filled at import": """
from .plugins import HANDLERS, registry, handles
from . import handlers
app = FastAPI()
@app.get("/{name}")
async def run(name: str):
    return await HANDLERS[name](name) or registry.get(name)
#: shop/plugins.py
HANDLERS = {}
def handles(name):
    def add(f):
        HANDLERS[name] = f
        return f
    return add
class Registry:
    def __init__(self):
        self._items = {}
    def register(self, name):
        def add(f):
            self._items[name] = f
            return f
        return add
    def get(self, name):
        return self._items[name]
registry = Registry()
class Plugin:
    known = {}
    def __init_subclass__(cls):
        Plugin.known[cls.__name__] = cls
class One(Plugin): ...
def setup(names):
    for name in names:
        HANDLERS.setdefault(name, None)
setup(["x"])
#: shop/handlers.py
from .plugins import handles, registry
@handles("tea")
async def tea(name): ...
@registry.register("cake")
def cake(name): ...
""",
    "lifespan and start-up": """
import httpx
class Database:
    def __init__(self, url):
        self.url = url
        self.pool = None
    async def open(self):
        self.pool = object()
    async def close(self):
        self.pool = None
    async def fetch(self, query):
        return await self.pool.fetch(query)
db = Database("x")
client = None
@asynccontextmanager
async def lifespan(app: FastAPI):
    global client
    client = httpx.AsyncClient()
    await db.open()
    app.state.db = db
    CACHE["a"] = 1
    yield {"client": client}
    await db.close()
CACHE = {}
app = FastAPI(lifespan=lifespan)
@app.on_event("startup")
async def warm():
    CACHE["b"] = 2
    app.state.ready = True
def later():
    CACHE.clear()
app.add_event_handler("shutdown", later)
@app.get("/")
async def me(request: Request):
    request.state.user = "ann"
    return await request.app.state.db.fetch("select 1"), CACHE.get("a")
""",
    "what is made at its first use": """
app = FastAPI()
_engine = None
_cache = {}
def engine():
    global _engine
    if _engine is None:
        _engine = object()
    return _engine
def price(name):
    if name not in _cache:
        _cache[name] = load(name)
    return _cache[name]
def color(name):
    try:
        return _cache[name]
    except KeyError:
        found = _cache[name] = load(name)
        return found
def size(name, *rest):
    key = (name, rest)
    if (found := _cache.get(key)) is not None:
        return found
    found = load(name)
    _cache[key] = found
    return found
def load(name):
    return name
class Lazy:
    def __init__(self):
        self._template = None
        self._sizes = {}
    def template(self):
        if self._template is None:
            self._template = load("x")
        return self._template
    def size(self, name):
        if name in self._sizes:
            return self._sizes[name]
        self._sizes[name] = value = load(name)
        return value
lazy = Lazy()
@lru_cache
def square(n: int) -> int:
    return n * n
@app.get("/")
async def me(name: str):
    first = engine(), price(name), color(name), size(name, 1)
    return first, lazy.template(), lazy.size(name), square(2)
""",
    "objects of a request": """
from dataclasses import dataclass, field
app = FastAPI()
@dataclass
class Cart:
    items: list = field(default_factory=list)
    total: int = 0
    def add(self, item):
        self.items.append(item)
        self.total += 1
class Session:
    user = None
    def __init__(self):
        self.data = {}
    def login(self, user):
        self.user = user
        self.data["user"] = user
async def get_session():
    session = Session()
    session.login("x")
    yield session
class Page:
    def __init__(self, size: int = 10):
        self.size = size
    def turn(self):
        self.size += 1
@app.get("/")
async def me(
    user: str, session: Session = Depends(get_session), page: Page = Depends(), q: list = []
):
    cart = Cart()
    cart.add(user)
    session.login(user)
    session.data.update(user=user)
    page.turn()
    q.append(1)
    def inner():
        nonlocal user
        user = user.upper()
        cart.items.append(user)
    inner()
    return cart
""",
    "middleware that keeps to the scope": """
import time
class Timer:
    def __init__(self, app, header="x-time"):
        self.app = app
        self.header = header
    async def __call__(self, scope, receive, send):
        start = time.monotonic()
        scope["started"] = start
        status = 0
        async def sent(message):
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"].append((b"x-time", b"1"))
            await send(message)
        responder = Responder(self.app)
        await responder(scope, receive, sent)
class Responder:
    def __init__(self, app):
        self.app = app
        self.started = False
    async def __call__(self, scope, receive, send):
        self.started = True
        self.send = send
        await self.app(scope, receive, send)
class Ids(BaseHTTPMiddleware):
    async def dispatch(self, request, call_next):
        token = current.set(request.headers.get("x-id"))
        try:
            request.state.id = 1
            response = await call_next(request)
            response.headers["x-id"] = "1"
            return response
        finally:
            current.reset(token)
current = ContextVar("current", default=None)
class Home(HTTPEndpoint):
    async def get(self, request):
        self.user = request.query_params["user"]
app = Starlette(routes=[Route("/", Home)], middleware=[Middleware(Timer), Middleware(Ids)])
""",
    "shadowed names": """
app = FastAPI()
STATE = {}
users = []
@app.get("/")
async def me(users: list[str]):
    users.append(1)
    STATE = {}
    STATE["a"] = 1
    users = [STATE for STATE in users]
    for CART in users:
        CART.append(1)
    return (lambda users: users.append(1))([])
CART = []
""",
    "locals, threads and clients": """
import httpx, asyncio
app = FastAPI()
http = httpx.AsyncClient()
lock = asyncio.Lock()
queue = asyncio.Queue()
local = threading.local()
ids = itertools.count()
@app.get("/")
async def me(user: str):
    async with lock:
        await queue.put(user)
    return await http.get("/x", headers={"a": user}), next(ids)
@app.get("/sync")
def sync(user: str):
    local.user = user
    env = dict(os.environ)
    env["TZ"] = "UTC"
    rng = random.Random(1)
    rng.seed(2)
    return env
""",
    "commands and scripts": """
import click
app = FastAPI()
STATE = {}
@click.command()
@click.option("--x")
def cli(x):
    STATE["x"] = x
@app.get("/")
async def me(): return STATE
if __name__ == "__main__":
    STATE["main"] = 1
    cli()
""",
    "switched off": """
app = FastAPI()
HITS = []
SEEN = {}  # sandboxpool: ignore[SP101]
@app.get("/")
async def me(user: str):
    HITS.append(user)  # sandboxpool: ignore[SP101]
    HITS.append(  # sandboxpool: ignore
        user
    )
    SEEN[user] = 1
""",
    "sqlalchemy, templates, routers": """
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker
from starlette.templating import Jinja2Templates
templates = Jinja2Templates("templates")
templates.env.filters["x"] = str
class Base(DeclarativeBase): ...
class User(Base):
    __tablename__ = "users"
    tags: list = []
Local = sessionmaker()
router = APIRouter(prefix="/users", tags=["users"])
def get_db():
    db = Local()
    try:
        yield db
    finally:
        db.close()
Database = Annotated[Session, Depends(get_db)]
@router.post("/")
def make(db: Database, name: str):
    user = User()
    user.name = name
    db.add(user)
    db.commit()
    found = db.query(User).all()
    found[0].name = "x"
    found.append(user)
    return found
def create_app() -> FastAPI:
    app = FastAPI()
    app.include_router(router)
    app.state.x = 1
    app.dependency_overrides[get_db] = get_db
    @app.get("/health")
    async def health():
        return {"ok": True}
    return app
app = create_app()
""",
}
