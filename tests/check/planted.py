"""Apps with a planted bug each; the line that has it ends with `# SP101`, the rule that it breaks.

`#: shop/state.py` begins another file; what stands before the first is `shop/main.py`, and each
begins with the imports of `HEAD`.
"""

from __future__ import annotations

from pathlib import Path

HEAD = (
    "import asyncio, functools, heapq, itertools, os, random, threading, typing\n"
    "from collections import defaultdict, deque\n"
    "from contextlib import asynccontextmanager\n"
    "from contextvars import ContextVar\n"
    "from functools import cache, lru_cache\n"
    "from typing import Annotated\n"
    "from fastapi import APIRouter, Depends, FastAPI, Request, WebSocket\n"
    "from starlette.applications import Starlette\n"
    "from starlette.endpoints import HTTPEndpoint\n"
    "from starlette.middleware import Middleware\n"
    "from starlette.middleware.base import BaseHTTPMiddleware\n"
    "from starlette.routing import Route\n"
)


def write(folder: Path, text: str) -> dict[tuple[str, int], str]:
    """Write an app, and return the rules that its lines break, by file and line."""
    files = {"shop/__init__.py": ""}
    name = "shop/main.py"
    for line in text.strip("\n").splitlines():
        if line.startswith("#: "):
            name = line.removeprefix("#: ").strip()
        files[name] = files.get(name, HEAD if name.endswith(".py") else "") + line + "\n"
    expected = {}
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
        for number, line in enumerate(content.splitlines(), 1):
            code, mark, rule = line.rpartition("# SP")
            if mark and code.strip():
                expected[name, number] = "SP" + rule.strip()
    return expected


GLOBALS = {
    "append": """
app = FastAPI()
CART = []
@app.post("/")
async def add(item: str):
    CART.append(item)  # SP101
    return CART
""",
    "item": """
app = FastAPI()
USERS = {}
@app.get("/")
def me(user: str):
    USERS["current"] = user  # SP101
""",
    "delete": """
app = FastAPI()
USERS: dict[str, str] = {}
@app.get("/")
def out(user: str):
    del USERS[user]  # SP101
""",
    "imported from": """
from shop.state import STATE
app = FastAPI()
@app.get("/")
def me(user: str):
    STATE.update(user=user)  # SP101
#: shop/state.py
STATE = {}
""",
    "imported as, relative": """
from . import state as s
app = FastAPI()
@app.get("/")
def me(user: str):
    s.STATE["user"] = user  # SP101
    s.current = user  # SP102
#: shop/state.py
STATE = dict()
current = None
""",
    "imported by another name, by way of the package": """
from shop import STATE as mine
app = FastAPI()
@app.get("/")
def me(user: str):
    mine["user"] = user  # SP101
#: shop/__init__.py
from .state import *
#: shop/state.py
STATE = {}
""",
    "function that is called, two modules away": """
from . import service
router = APIRouter()
@router.get("/")
async def me(user: str):
    await service.login(user)
app = FastAPI()
app.include_router(router)
#: shop/service.py
from . import state
async def login(user):
    state.remember(user)
#: shop/state.py
current = None
def remember(user):
    global current
    current = user  # SP102
""",
    "augmented, walrus, loop, with": """
app = FastAPI()
visits = 0
last = None
one = None
@app.get("/")
async def me(users: list[str]):
    global visits, last, one
    visits += 1  # SP102
    if (last := users[0]):  # SP102
        pass
    for one in users:  # SP102
        pass
""",
    "alias in a local": """
app = FastAPI()
STATE = {"users": []}
@app.get("/")
async def me(user: str):
    users = STATE["users"]
    users.append(user)  # SP101
    found = STATE.setdefault(user, [])  # SP101
    found.append(1)  # SP101
""",
    "alias of a loop": """
app = FastAPI()
CARTS = {"a": [], "b": []}
@app.get("/")
async def me(user: str):
    for name, cart in CARTS.items():
        cart.append(user)  # SP101
    for cart in list(CARTS.values()):
        cart.append(user)  # SP101
""",
    "through a function": """
app = FastAPI()
_carts = defaultdict(list)
def carts():
    return _carts
@app.get("/")
async def me(user: str):
    carts()[user] = []  # SP101
    carts()["x"].append(user)  # SP101
""",
    "by a dependency": """
app = FastAPI()
_cart = []
def get_cart():
    return _cart
Cart = Annotated[list, Depends(get_cart)]
@app.get("/")
async def me(user: str, cart: list = Depends(get_cart)):
    cart.append(user)  # SP101
@app.get("/2")
async def two(user: str, cart: Cart):
    cart.append(user)  # SP101
""",
    "dependency itself": """
app = FastAPI()
SEEN = set()
def seen(user: str):
    SEEN.add(user)  # SP101
@app.get("/", dependencies=[Depends(seen)])
async def me(): ...
""",
    "comprehension": """
app = FastAPI()
SEEN = set()
@app.get("/")
async def me(users: list[str]):
    return [SEEN.add(user) for user in users]  # SP101
""",
    "globals()": """
app = FastAPI()
@app.get("/")
async def me(user: str):
    globals()["user"] = user  # SP102
""",
    "heap and shuffle": """
app = FastAPI()
HEAP = []
@app.get("/")
async def me(n: int):
    heapq.heappush(HEAP, n)  # SP101
    random.shuffle(HEAP)  # SP101
""",
    "iterator": """
app = FastAPI()
TURN = itertools.cycle(["a", "b"])
@app.get("/")
async def me():
    return next(TURN)  # SP101
""",
    "starlette route, class endpoint": """
HITS = deque()
class Home(HTTPEndpoint):
    async def get(self, request):
        HITS.append(request.url)  # SP101
async def other(request):
    HITS.extend([1])  # SP101
app = Starlette(routes=[Route("/", Home), Route("/o", other)])
""",
    "background task": """
app = FastAPI()
SENT = []
def mail(user):
    SENT.append(user)  # SP101
@app.get("/")
async def me(user: str, tasks):
    tasks.add_task(mail, user)
""",
    "cache whose value is not of its key": """
app = FastAPI()
CACHE = {}
@app.get("/{item}")
async def price(item: str, user: str):
    if item not in CACHE:
        CACHE[item] = (item, user)  # SP101
    return CACHE[item]
""",
    "first come": """
app = FastAPI()
tenant = None
@app.get("/")
async def me(request: Request):
    global tenant
    if tenant is None:
        tenant = request.headers["x-tenant"]  # SP102
    return tenant
""",
    "nested in a comprehension's shadow": """
app = FastAPI()
STATE = []
@app.get("/")
async def me(user: str):
    names = [STATE for STATE in ([], [])]
    STATE.append(user)  # SP101
    return names
""",
    "thread local in a coroutine": """
app = FastAPI()
local = threading.local()
@app.get("/")
async def me(user: str):
    local.user = user  # SP107
""",
}

CLASSES = {
    "class-level list": """
app = FastAPI()
class Cart:
    items = []
    def add(self, item):
        self.items.append(item)  # SP103
@app.get("/")
async def me(item: str):
    Cart().add(item)
""",
    "class attribute by its name, by cls, by type()": """
app = FastAPI()
class User:
    current = None
    @classmethod
    def login(cls, name):
        cls.current = name  # SP103
    def logout(self):
        type(self).current = None  # SP103
        self.__class__.current = None  # SP103
@app.get("/")
async def me(name: str):
    User.current = name  # SP103
    User.login(name)
    User().logout()
""",
    "inherited": """
app = FastAPI()
class Base:
    seen: list[str] = []
class View(Base):
    def look(self, name):
        self.seen.append(name)  # SP103
@app.get("/")
async def me(name: str):
    View().look(name)
""",
    "counted": """
app = FastAPI()
class Stats:
    hits = 0
@app.get("/")
async def me():
    Stats.hits += 1  # SP103
""",
    "one object in a module": """
app = FastAPI()
class Session:
    def __init__(self):
        self.user = None
        self.log = []
    def login(self, user):
        self.user = user  # SP107
        self.log.append(user)  # SP107
session = Session()
@app.get("/")
async def me(user: str):
    session.login(user)
    session.extra = 1  # SP107
""",
    "one object in another module, as a dependency": """
from .session import session, Session
app = FastAPI()
def get_session() -> Session:
    return session
@app.get("/")
async def me(user: str, s: Session = Depends(get_session)):
    s.user = user  # SP107
    s.login(user)
#: shop/session.py
class Session:
    def login(self, user):
        self.name = user  # SP107
session = Session()
""",
    "one object, of a class that has others": """
app = FastAPI()
class Box:
    def put(self, x):
        self.x = x  # SP107
        self.more(x)
    def more(self, x):
        self.y = x  # SP107
SHARED = Box()
@app.get("/")
async def me(user: str):
    mine = Box()
    mine.x = 2
    SHARED.put(user)
""",
    "object that is callable, as dependency": """
app = FastAPI()
class Checker:
    def __init__(self, role):
        self.role = role
    def __call__(self, user: str):
        self.user = user  # SP107
        return self.user
admin = Checker("admin")
@app.get("/")
async def me(user: str = Depends(admin)): ...
@app.get("/2")
async def two(user: str = Depends(Checker("guest"))): ...
""",
    "cached object": """
app = FastAPI()
class Store:
    def put(self, x):
        self.x = x  # SP107
@lru_cache
def store():
    return Store()
@app.get("/")
async def me(user: str, s: Store = Depends(store)):
    s.user = user  # SP110
    s.put(user)
    store().other = 1  # SP110
""",
    "lazily made object": """
app = FastAPI()
class Store:
    def put(self, x):
        self.x = x  # SP107
_store = None
def store():
    global _store
    if _store is None:
        _store = Store()
    return _store
@app.get("/")
async def me(user: str):
    store().put(user)
""",
    "singleton by __new__": """
app = FastAPI()
class Config:
    _instance = None
    def __new__(cls):
        if cls._instance is None:
            cls._instance = super().__new__(cls)
        return cls._instance
    def use(self, user):
        self.user = user  # SP107
@app.get("/")
async def me(user: str):
    Config().use(user)
""",
    "object kept in app.state": """
class Store:
    def put(self, x):
        self.x = x  # SP107
@asynccontextmanager
async def lifespan(app: FastAPI):
    app.state.store = Store()
    yield
app = FastAPI(lifespan=lifespan)
@app.get("/")
async def me(request: Request, user: str):
    request.app.state.store.put(user)
""",
    "client of a library": """
import requests
app = FastAPI()
http = requests.Session()
@app.get("/")
def me(token: str):
    http.headers["Authorization"] = token  # SP107
    http.headers.update(a=token)  # SP107
""",
    "setattr": """
app = FastAPI()
class Settings:
    debug = False
settings = Settings()
@app.get("/")
def me(name: str):
    setattr(settings, name, True)  # SP107
    setattr(app.state, "name", name)  # SP105
""",
    "kept default": """
app = FastAPI()
class Cart:
    def __init__(self, items=[]):
        self.items = items
    def add(self, item):
        self.items.append(item)  # SP104
@app.get("/")
def me(name: str):
    Cart().add(name)
""",
    "method as endpoint": """
class Shop:
    def __init__(self):
        self.user = None
        self.router = APIRouter()
        self.router.add_api_route("/", self.home)
    async def home(self, user: str):
        self.user = user  # SP107
shop = Shop()
app = FastAPI()
app.include_router(shop.router)
""",
}

APPS = {
    "app.state": """
app = FastAPI()
@app.get("/")
async def me(request: Request, user: str):
    request.app.state.user = user  # SP105
    app.state.user = user  # SP105
    state = request.app.state
    state.n += 1  # SP105
    request.state.user = user
    request.app.state.carts[user] = []  # SP105
    request.app.state.carts.append(1)  # SP105
    request.app.extra = 1  # SP105
    request.scope["app"].state.x = 1  # SP105
""",
    "app of a websocket": """
app = FastAPI()
@app.websocket("/ws")
async def talk(ws: WebSocket):
    ws.app.state.last = await ws.receive_text()  # SP105
""",
    "app in a factory": """
def create_app():
    app = FastAPI()
    @app.get("/")
    async def me(user: str):
        app.state.user = user  # SP105
    return app
app = create_app()
""",
    "middleware": """
class Tenant(BaseHTTPMiddleware):
    def __init__(self, app):
        super().__init__(app)
        self.seen = []
    async def dispatch(self, request, call_next):
        self.tenant = request.headers["x"]  # SP106
        self.seen.append(1)  # SP106
        return await call_next(request)
app = FastAPI()
app.add_middleware(Tenant)
""",
    "pure ASGI middleware": """
class Count:
    def __init__(self, app):
        self.app = app
        self.n = 0
    async def __call__(self, scope, receive, send):
        self.n += 1  # SP106
        self._note(scope)
        await self.app(scope, receive, send)
    def _note(self, scope):
        self.path = scope["path"]  # SP106
app = Starlette(middleware=[Middleware(Count)])
""",
    "pure ASGI middleware, put around": """
class Count:
    def __init__(self, app):
        self.app = app
    async def __call__(self, scope, receive, send):
        self.path = scope["path"]  # SP106
        await self.app(scope, receive, send)
app = Count(Starlette())
""",
    "middleware function": """
app = FastAPI()
LAST = {}
@app.middleware("http")
async def last(request, call_next):
    LAST["path"] = request.url.path  # SP101
    return await call_next(request)
""",
    "state of the lifespan": """
@asynccontextmanager
async def lifespan(app):
    yield {"carts": {}, "user": None}
app = Starlette(lifespan=lifespan)
@app.route("/")
async def me(request):
    request.state.carts["x"] = 1  # SP105
    request.state.user = 2
""",
    "exception handler": """
app = FastAPI()
ERRORS = []
@app.exception_handler(ValueError)
async def failed(request, error):
    ERRORS.append(error)  # SP101
""",
    "route added late": """
app = FastAPI()
@app.get("/")
async def me(request: Request):
    request.app.add_api_route("/x", me)  # SP105
""",
}

FUNCTIONS = {
    "mutable default": """
app = FastAPI()
def add(item, cart=[], *, seen={}):
    cart.append(item)  # SP104
    seen[item] = 1  # SP104
    return cart
@app.get("/")
async def me(item: str):
    return add(item)
""",
    "default through an alias": """
app = FastAPI()
def add(item, cart=list()):
    mine = cart
    mine += [item]  # SP104
@app.get("/")
async def me(item: str):
    return add(item)
""",
    "nonlocal": """
def create_app():
    app = FastAPI()
    visits = 0
    seen = []
    @app.get("/")
    async def home(user: str):
        nonlocal visits
        visits += 1  # SP108
        seen.append(user)  # SP108
        return visits
    return app
app = create_app()
""",
    "decorator with a counter": """
app = FastAPI()
def counted(f):
    calls = 0
    last = {}
    @functools.wraps(f)
    async def wrapper(*args, **kwargs):
        nonlocal calls
        calls += 1  # SP108
        last["args"] = args  # SP108
        return await f(*args, **kwargs)
    return wrapper
@app.get("/")
@counted
async def home(): ...
""",
    "function attribute": """
app = FastAPI()
@app.get("/")
async def home(user: str):
    home.user = user  # SP109
    helper.calls += 1  # SP109
def helper(): ...
helper.calls = 0
""",
    "cached method": """
app = FastAPI()
class Basket:
    @lru_cache(maxsize=None)
    def total(self):  # SP110
        return 1
@app.get("/")
async def home():
    return Basket().total()
""",
    "cache of requests, of coroutines": """
app = FastAPI()
@cache
def language(request: Request):  # SP110
    return request.headers["accept-language"]
@functools.lru_cache
async def rate(name):  # SP110
    return 1
@app.get("/")
async def home(request: Request):
    return language(request), await rate("x")
""",
    "changed result of a cache": """
app = FastAPI()
@lru_cache
def rates():
    return {"a": 1}
@app.get("/")
async def home(user: str):
    mine = rates()
    mine[user] = 1  # SP110
""",
    "default of a context variable": """
app = FastAPI()
user = ContextVar("user", default={})
@app.get("/")
async def home(name: str):
    user.get()["name"] = name  # SP111
    user.set({"name": name})
""",
    "process": """
import time, locale
app = FastAPI()
@app.get("/")
def home(tz: str):
    os.environ["TZ"] = tz  # SP112
    time.tzset()  # SP112
    os.chdir("/tmp")  # SP112
    random.seed(1)  # SP112
    locale.setlocale(locale.LC_ALL, tz)  # SP112
    os.environ.pop("TZ")  # SP112
""",
}

PLANTED = {
    f"{kind}: {name}": text
    for kind, cases in {
        "globals": GLOBALS,
        "classes": CLASSES,
        "apps": APPS,
        "functions": FUNCTIONS,
    }.items()
    for name, text in cases.items()
}
