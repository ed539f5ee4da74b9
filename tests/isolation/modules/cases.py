"""Packages that use the import system in all the ways that there are.

Each has an app with `/found`, whose answer must be the same as when the package is imported
plainly, and `/leave?user=x`, which adds a user to a list of the package and answers with it.
"""

from __future__ import annotations

HEAD = "from tests.isolation.modules.probe import probing\n"
STATE = (
    "### shop/state.py\nusers = []\ndef leave(user):\n    users.append(user)\n    return users\n"
)

CASES: dict[str, str] = {}


def case(name: str, text: str) -> None:
    """Add a case; `APP` stands for the line that makes the app."""
    if "### shop/__init__.py" not in text and "namespace" not in name:
        text = "### shop/__init__.py\n" + text
    if "### shop/state.py" not in text:
        text = STATE + text
    text = text.replace("HEAD\n", HEAD).replace("APP\n", "app = probing(found, leave)\n")
    CASES[name] = text


case(
    "absolute",
    """### shop/main.py
HEAD
import shop.state
import shop.state as aliased
from shop import state
from shop.state import leave
def found():
    return [shop.state is state, aliased is state, state.leave is leave, state.__name__]
APP
""",
)
case(
    "relative",
    """### shop/main.py
HEAD
from . import state
from .deep.inner import up, value
from .state import leave
def found():
    return [up is state, value, __package__, __spec__.name]
APP
### shop/deep/__init__.py
### shop/deep/inner.py
from .. import state as up
from .sibling import value
### shop/deep/sibling.py
value = "sibling"
""",
)
case(
    "circular",
    """### shop/main.py
HEAD
from . import a
from .state import leave
def found():
    return [a.b.a is a, a.partner() is a.b, a.b.partner() is a, a.b.seen]
APP
### shop/a.py
from . import b
import shop.b as same
assert same is b
def partner():
    return b
### shop/b.py
from . import a
import shop.a as same
from shop import a as third
assert same is a and third is a
seen = [hasattr(a, "partner"), type(a).__name__]
def partner():
    return a
""",
)
case(
    "circular through the app",
    """### shop/main.py
HEAD
from .state import leave
def helper():
    return "helped"
from . import routes
def found():
    return [routes.main.helper(), routes.late(), routes.main.__name__]
APP
### shop/routes.py
import shop.main as main
def late():
    from .main import helper
    return helper()
""",
)
case(
    "star",
    """### shop/main.py
HEAD
from .state import *
from .everything import *
from .chosen import *
from . import chosen, everything
def found():
    return [public, wanted, "_hidden" in globals(), "unwanted" in globals(), sub.value]
APP
### shop/everything.py
public = 1
_hidden = 2
### shop/chosen/__init__.py
__all__ = ["wanted", "sub"]
wanted = 3
unwanted = 4
### shop/chosen/sub.py
value = 5
""",
)
case(
    "inside functions",
    """### shop/main.py
HEAD
def found():
    import shop.late
    from shop.late import value
    from . import late as again
    return [shop.late is again, value, again.state.__name__]
def leave(user):
    from . import state
    from .state import leave
    state.count = getattr(state, "count", 0) + 1
    return leave(user)
APP
### shop/late.py
from . import state
value = state.__name__
""",
)
case(
    "import_module",
    """### shop/main.py
HEAD
import importlib
from . import state
from .state import leave
def found():
    from importlib import import_module
    found = importlib.import_module("shop.state")
    near = import_module(".state", __package__)
    new = import_module("shop.late")
    built_in = __import__("shop.late", fromlist=["value"])
    return [found is state, near is state, new.value, built_in.value, import_module("json").__name__,
            __import__("shop.late").__name__]
APP
### shop/late.py
value = 1
""",
)
case(
    "sys.modules",
    """### shop/main.py
HEAD
import sys
from . import state
me = sys.modules[__name__]
me.put = "here"
here = sys.modules[__name__].__dict__ is globals()
def found():
    entry = sys.modules["shop.state"]
    entry.extra = 1
    now = state.extra
    del entry.extra
    return [put, here, entry.users == state.users, now, hasattr(state, "extra"), "users" in dir(entry),
            vars(entry) is vars(state), isinstance(entry, type(sys)), repr(entry)[:20],
            sys.modules.get("shop.missing"), entry.__class__.__name__]
def leave(user):
    return sys.modules["shop.state"].leave(user)
APP
""",
)
case(
    "class of a module",
    """### shop/main.py
HEAD
from . import lazy
from .lazy import answer
from .state import leave
def found():
    import sys
    return [lazy.answer, answer, type(lazy).__name__, isinstance(sys.modules["shop.lazy"], type(lazy))]
APP
### shop/lazy.py
import sys
from types import ModuleType
class Lazy(ModuleType):
    @property
    def answer(self):
        return 42
sys.modules[__name__].__class__ = Lazy
""",
)
case(
    "a module that replaces itself",
    """### shop/main.py
HEAD
import sys
from . import settings
from .settings import debug
import shop.settings as again
def found():
    from importlib import import_module
    return [settings.debug, debug, again is settings, import_module("shop.settings") is settings,
            type(settings).__name__, sys.modules["shop.settings"].debug]
def leave(user):
    settings.users.append(user)
    return sys.modules["shop.settings"].users
APP
### shop/settings.py
import sys
class Settings:
    debug = True
    def __init__(self):
        self.users = []
sys.modules[__name__] = Settings()
""",
)
case(
    "namespace package",
    """### shop/main.py
HEAD
from . import state
from .plugins import one
from .state import leave
import shop
import shop.plugins
def found():
    return [one.value, one.state is state, shop.__file__ if hasattr(shop, "__file__") else None,
            len(list(shop.plugins.__path__)), shop.__name__]
APP
### shop/plugins/one.py
from .. import state
value = "one"
""",
)
case(
    "re-exports",
    """### shop/__init__.py
from .api import app, Thing
from .state import users
from . import api as api
### shop/api.py
HEAD
import shop
from .state import leave
class Thing:
    pass
def found():
    from shop import Thing as again, users
    return [again is Thing, shop.Thing is Thing, users is shop.state.users, shop.app is app]
APP
### shop/main.py
from . import app
""",
)
case(
    "package with the name of its app",
    """### shop/__init__.py
from .main import app
from .state import leave as main
### shop/main.py
HEAD
import shop
from .state import leave
def found():
    from shop import main
    return [main is leave, shop.main is leave]
APP
""",
)
case(
    "__getattr__ of a module",
    """### shop/__init__.py
def __getattr__(name):
    if name == "late":
        import importlib
        return importlib.import_module("shop.late")
    if name == "made":
        return "made"
    raise AttributeError(name)
def __dir__():
    return ["late", "made"]
### shop/main.py
HEAD
import shop
from shop import made
from .state import leave
def found():
    import sys
    return [made, shop.late.value, dir(shop), hasattr(shop, "nothing"), sys.modules["shop"].made]
APP
### shop/late.py
value = "late"
""",
)
case(
    "annotations that refer to one another",
    """### shop/main.py
HEAD
import typing
from . import models
from .state import leave
def found():
    order = models.Order(lines=[{"item": {"name": "tea"}, "kind": "green"}])
    line = order.lines[0]
    hints = typing.get_type_hints(models.Order)
    data = typing.get_type_hints(models.Data)
    record = typing.get_type_hints(models.Record)
    typed = typing.get_type_hints(models.Typed)
    return [
        type(line) is models.Line, type(line.item) is models.items.Item, line.kind is models.Kind.green,
        hints["lines"] == list[models.Line], data["item"] is models.items.Item,
        record["data"] is models.Data, typed["kind"] is models.Kind,
        models.items.Item(name="x").kind is models.Kind.green,
        order.model_json_schema()["title"],
    ]
APP
### shop/models.py
from __future__ import annotations
import dataclasses, enum, typing
import attrs
from pydantic import BaseModel
class Order(BaseModel):
    lines: list[Line]
class Line(BaseModel):
    item: items.Item
    kind: Kind
class Kind(enum.Enum):
    green = "green"
@dataclasses.dataclass
class Data:
    item: items.Item
    kind: typing.ClassVar[Kind] = Kind.green
    shared: typing.ClassVar[int] = 1
@attrs.define
class Record:
    data: Data
class Typed(typing.TypedDict):
    kind: Kind
from . import items
Order.model_rebuild()
### shop/items.py
from __future__ import annotations
from pydantic import BaseModel
class Item(BaseModel):
    name: str
    @property
    def kind(self) -> Kind:
        return Kind.green
from .models import Kind
""",
)
case(
    "pickle and copy",
    """### shop/main.py
HEAD
import copy, dataclasses, enum, pickle, typing
from . import things
from .state import leave
def found():
    point = things.Point(1, things.Colour.red)
    other = pickle.loads(pickle.dumps(point))
    by_name = pickle.loads(pickle.dumps([things.Point, things.Outer.Inner, things.work]))
    old = pickle.loads(pickle._dumps(point))
    return [type(other) is things.Point, other == point, other.colour is things.Colour.red,
            by_name == [things.Point, things.Outer.Inner, things.work], old == point,
            type(copy.deepcopy(point)) is things.Point, copy.copy(point) == point,
            type(pickle.loads(pickle.dumps(things.Pair(1, 2)))) is things.Pair]
APP
### shop/things.py
import dataclasses, enum, collections
class Colour(enum.Enum):
    red = 1
@dataclasses.dataclass
class Point:
    x: int
    colour: Colour
class Outer:
    class Inner:
        pass
Pair = collections.namedtuple("Pair", "a b")
def work():
    pass
""",
)
case(
    "inspect, linecache and resources",
    """### shop/main.py
HEAD
import inspect, importlib.resources, importlib.util, pkgutil, linecache
from . import state
from .state import leave
def found():
    frame = inspect.currentframe()
    return [
        inspect.getsource(state), inspect.getsource(found).count("getsource"),
        inspect.getmodule(state.leave).__name__, inspect.getfile(state) == state.__file__,
        inspect.getsourcelines(found)[1], frame.f_code.co_filename == __file__,
        importlib.resources.files("shop").joinpath("words.txt").read_text(),
        importlib.resources.files(__package__).joinpath("words.txt").is_file(),
        pkgutil.get_data(__package__, "words.txt").decode(),
        importlib.util.find_spec("shop.state").origin == state.__file__,
        importlib.util.find_spec("shop.words") is None, importlib.util.find_spec("shop.late").name,
        sorted(module.name for module in pkgutil.walk_packages(__import__("shop").__path__, "shop.")),
        __loader__.get_source(__name__).count("words.txt") > 1, __spec__.cached is not None,
    ]
APP
### shop/words.txt
hello
### shop/late.py
""",
)
case(
    "threads and tasks",
    """### shop/main.py
HEAD
import contextvars, pickle, sys, threading
from concurrent.futures import ThreadPoolExecutor
import anyio
from .state import leave
def work():
    import shop.late
    from . import late
    return [late.__dict__ is sys.modules["shop.late"].__dict__, late.state is sys.modules["shop.state"].state
            if hasattr(sys.modules["shop.state"], "state") else late.state.users is users()]
def users():
    from .state import users
    return users
async def found():
    results = [await anyio.to_thread.run_sync(work)]
    # No code of the package is on the stack there: the request itself tells whose it is.
    from . import things
    text = await anyio.to_thread.run_sync(pickle.dumps, things.Thing())
    results.append(type(await anyio.to_thread.run_sync(pickle.loads, text)) is things.Thing)
    thread = threading.Thread(target=lambda: results.append(work()))
    thread.start()
    thread.join()
    with ThreadPoolExecutor(1) as pool:
        results.append(pool.submit(work).result())
    async def child():
        results.append(work())
    async with anyio.create_task_group() as group:
        group.start_soon(child)
    results.append(contextvars.Context().run(work))
    return results
APP
### shop/late.py
from . import state
### shop/things.py
class Thing:
    pass
""",
)
case(
    "reload",
    """### shop/main.py
HEAD
import importlib, sys
from . import counter
from .state import leave
def found():
    before = counter.values
    counter.kept = 1
    again = importlib.reload(counter)
    by_entry = importlib.reload(sys.modules["shop.counter"])
    return [again is counter, by_entry is counter, counter.values is before, counter.kept]
APP
### shop/counter.py
values = []
""",
)
case(
    "exec and eval",
    """### shop/main.py
HEAD
from .state import leave
def found():
    space = {}
    exec("import shop.state as s; found = s.users", space)
    from .state import users
    return [space["found"] is users, eval("__import__('shop.state', fromlist=['x']).users") is users]
APP
""",
)
case(
    "logging",
    """### shop/main.py
HEAD
import logging
from .state import leave
logger = logging.getLogger(__name__)
def found():
    return [logger.name, logging.getLogger("shop.main") is logger]
APP
""",
)
case(
    "third-party code that imports by name",
    """### shop/main.py
HEAD
from tests.isolation.modules import plugins
from . import state
from .state import leave
def found():
    by_name = plugins.load("shop.late:value")
    return [by_name, plugins.attribute("shop.state", "users") is state.users,
            plugins.attribute("shop.late2", "users") is state.users]
APP
### shop/late.py
value = "late"
### shop/late2.py
from .state import users
""",
)
