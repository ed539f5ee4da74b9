"""Clones: everything that carries requests is private, put back, and honoured."""

from __future__ import annotations

import functools
import subprocess
import sys
import types
from collections import Counter, OrderedDict, deque
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from fastapi import APIRouter, Depends, FastAPI
from fastapi.responses import JSONResponse
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.requests import Request
from starlette.routing import Host, Mount, Route, Router
from starlette.staticfiles import StaticFiles
from starlette.testclient import TestClient

from sandboxpool import SandboxedApp, wrap
from sandboxpool.adapters.asgi import is_asgi_instance, is_wrapped
from sandboxpool.isolation.clone import CloneFactory

from . import table
from .driver import Answer, Driver, Meeting, call


def app_with(endpoint: Any, app: Any = None, path: str = "/") -> Any:
    app = FastAPI() if app is None else app
    app.add_route(path, endpoint)
    return app


async def twice(app: Any, path: str = "/", **options: Any) -> tuple[Answer, Answer]:
    async with Driver(CloneFactory(app, **options), 1) as driver:
        return await driver.get(0, path), await driver.get(0, path)


# --- restore ------------------------------------------------------------------------------


def change_attribute(app: Any) -> Any:
    before = app.title
    app.title = "changed"
    return before


def add_attribute(app: Any) -> Any:
    before = hasattr(app, "added")
    app.added = True
    return before


def delete_attribute(app: Any) -> Any:
    before = app.title
    del app.title
    return before


def write_to_dict(app: Any) -> Any:
    before = vars(app).get("user")
    vars(app)["user"] = "alice"
    return before


def replace_true_by_one(app: Any) -> Any:
    before = repr(app.router.redirect_slashes)
    app.router.redirect_slashes = 1
    return before


def drop_routes(app: Any) -> Any:
    before = len(app.router.routes)
    app.router.routes.pop(0)
    return before


def replace_routes(app: Any) -> Any:
    before = len(app.router.routes)
    app.router.routes = [route for route in app.router.routes if route.path == "/"]
    return before


def middleware_declarations(app: Any) -> Any:
    before = len(app.user_middleware)
    app.user_middleware.append(Middleware(GZipMiddleware))
    return before


def replace_state(app: Any) -> Any:
    before = dict(app.state._state)
    app.state = type(app.state)({"user": "alice"})
    return before


def webhooks(app: Any) -> Any:
    before = len(app.webhooks.routes)
    app.webhooks.add_route("/hook", lambda request: None)
    return before


def stack_attribute(app: Any) -> Any:
    before = repr(app.middleware_stack.debug), hasattr(app.middleware_stack, "added")
    app.middleware_stack.debug, app.middleware_stack.added = 0, 1
    return before


def own_containers(app: Any) -> Any:
    before = repr(app.own)
    app.own["dict"]["deep"].append(1)
    app.own["set"].add(1)
    app.own["empty"].append(1)
    app.own["deque"].append(1)
    app.own["bytes"].extend(b"x")
    app.own["ordered"]["b"] = 1
    app.own["counter"]["a"] += 1
    app.own["namespace"].user = "alice"
    app.own["tuple"][0].append(1)
    app.own["full"] = None
    return before


def handlers(app: Any) -> Any:
    before = len(app.exception_handlers)
    app.exception_handlers.update({KeyError: len})
    app.exception_handlers.pop(next(iter(app.exception_handlers)))
    app.exception_handlers.setdefault(ValueError, len)
    app.exception_handlers |= {500: len}
    return before, repr(app.middleware_stack.handler)


CHANGES = [
    change_attribute,
    add_attribute,
    delete_attribute,
    write_to_dict,
    replace_true_by_one,
    drop_routes,
    replace_routes,
    middleware_declarations,
    replace_state,
    webhooks,
    stack_attribute,
    own_containers,
    handlers,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
async def test_restore_puts_back(change: Any) -> None:
    """After the reset the app is as it was, whatever a request did to it."""

    async def endpoint(request: Request) -> JSONResponse:
        return JSONResponse(repr(change(request.app)))

    app = app_with(endpoint)
    app.own = {
        "dict": {"deep": []},
        "set": {0},
        "empty": [],
        "deque": deque([1], maxlen=5),
        "bytes": bytearray(b"a"),
        "ordered": OrderedDict(a=1),
        "counter": Counter("a"),
        "namespace": SimpleNamespace(user=None),
        "tuple": ([],),
        "full": [1],
    }
    first, second = await twice(app)
    assert first.data == second.data
    assert "alice" not in repr(vars(app))


class Odd:
    """Compares in a way that must not matter."""

    def __eq__(self, other: object) -> bool:
        raise ValueError("do not compare me")

    __hash__ = None  # type: ignore[assignment]


async def test_restore_survives_values_that_cannot_be_compared() -> None:
    """A value with a broken `__eq__` is put back like any other."""

    async def endpoint(request: Request) -> JSONResponse:
        stack = request.app.middleware_stack
        before = type(stack.debug).__name__, list(request.app.router.tags)
        stack.debug = Odd()
        request.app.router.tags.append(Odd())
        request.app.exception_handlers[KeyError] = Odd()
        return JSONResponse(before)

    first, second = await twice(app_with(endpoint))
    assert first.data == second.data


class Slotted:
    """Middleware without a `__dict__`."""

    __slots__ = ("__private", "app", "late", "users")

    def __init__(self, app: Any) -> None:
        self.app = app
        self.users: list[str] = []
        self.__private = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.__private += 1
        scope["found"] = [list(self.users), self.__private, hasattr(self, "late")]
        self.users.append("alice")
        self.late = True
        await self.app(scope, receive, send)


class Stubborn:
    """Middleware whose attributes cannot be set from outside."""

    def __init__(self, app: Any) -> None:
        self.__dict__.update(app=app, count=0)

    def __setattr__(self, name: str, value: object) -> None:
        raise TypeError("frozen")

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.__dict__["count"] += 1
        scope["found"] = self.__dict__["count"]
        await self.__dict__["app"](scope, receive, send)


class Renamed:
    """Middleware that keeps the next app under a name of its own."""

    def __init__(self, wrapped: Any) -> None:
        self.wrapped = wrapped
        self.count = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.count += 1
        scope["found"] = self.count
        await self.wrapped(scope, receive, send)


class Itself:
    """Middleware that replaces its whole `__dict__`, and calls a method of its own."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.count = 0
        self.handle = self.run

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.handle(scope, receive, send)

    async def run(self, scope: Any, receive: Any, send: Any) -> None:
        self.__dict__ = {**self.__dict__, "count": self.count + 1}
        scope["found"] = self.count
        await self.app(scope, receive, send)


def as_function(app: Any) -> Any:
    async def run(scope: Any, receive: Any, send: Any) -> None:
        scope["found"] = id(scope["app"]) == id(app) or "private"
        await app(scope, receive, send)

    return run


def as_partial(app: Any) -> Any:
    async def run(app: Any, scope: Any, receive: Any, send: Any) -> None:
        scope["found"] = "private"
        await app(scope, receive, send)

    return functools.partial(run, app)


async def tell(request: Request) -> JSONResponse:
    return JSONResponse(request.scope["found"])


@pytest.mark.parametrize(
    "middleware", [Slotted, Stubborn, Renamed, Itself, as_function, as_partial]
)
async def test_middleware_of_any_build(middleware: Any) -> None:
    """However middleware keeps itself and the next app, it is private and put back."""
    app = app_with(tell)
    app.add_middleware(middleware)

    async def router(request: Request) -> JSONResponse:
        return JSONResponse(request.scope["router"] is request.app.router)

    app.add_route("/router", router)
    first, second = await twice(app)
    assert first.data == second.data
    # The clone's middleware leads to the clone's router, not to the template's.
    assert (await twice(app, "/router"))[0].data is True


async def test_routers_and_mounts_with_middleware_of_their_own() -> None:
    """Middleware round a router, a mount, a host and a route is private as well."""
    made: list[Any] = [Renamed, Slotted]

    def declared() -> list[Middleware]:
        return [Middleware(one) for one in made]

    inner = Router([Route("/", tell)], middleware=declared())
    app = Starlette(
        routes=[
            Mount("/mount", routes=[Route("/", tell)], middleware=declared()),
            Mount("/router", app=inner),
            Route("/route", tell, middleware=declared()),
            Host("shop.test", app=Router([Route("/", tell)], middleware=declared())),
        ]
    )
    for path in ("/mount/", "/router/", "/route"):
        first, second = await twice(app, path)
        assert first.data == second.data == [[], 1, False]
    async with Driver(CloneFactory(app), 1) as driver:
        for _ in range(2):
            answer = await driver.get(0, "/", headers=[(b"host", b"shop.test")])
            assert answer.data == [[], 1, False]


async def test_what_cannot_be_copied_is_shared() -> None:
    """An object with a finalizer or a layout of its own is never copied."""
    finalized: list[object] = []

    class Final(Renamed):
        def __del__(self) -> None:
            finalized.append(self)

    class Dict(dict[str, int]):
        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            self["count"] = self.get("count", 0) + 1
            await JSONResponse(self)(scope, receive, send)

    app = FastAPI()
    app.mount("/dict", Dict())
    app.mount("/final", Final(JSONResponse(1)))
    first, second = await twice(app, "/dict/")
    assert [first.data, second.data] == [{"count": 1}, {"count": 2}]
    assert not finalized


async def test_static_files_and_stock_middleware(tmp_path: Path) -> None:
    """Static files, GZip, CORS and sessions answer as before."""
    (tmp_path / "a.txt").write_text("hello")

    async def count(request: Request) -> JSONResponse:
        request.session["n"] = request.session.get("n", 0) + 1
        return JSONResponse([request.session["n"], "x" * 1000])

    app = app_with(count)
    app.mount("/static", StaticFiles(directory=tmp_path))
    app.add_middleware(GZipMiddleware)
    app.add_middleware(CORSMiddleware, allow_origins=["*"])
    app.add_middleware(SessionMiddleware, secret_key="s")
    async with Driver(CloneFactory(app), 2) as driver:
        for number in (0, 1, 0):
            assert (await driver.get(number, "/static/a.txt")).body == b"hello"
            assert (await driver.get(number, "/")).data[0] == 1


# --- the template stands for the sandbox --------------------------------------------------


class Shop(FastAPI):
    """A FastAPI app with attributes and a cached property of its own."""

    subclasses: tuple[type, ...] = ()

    def __init_subclass__(cls) -> None:
        Shop.subclasses += (cls,)

    def __init__(self) -> None:
        super().__init__()
        self.basket: list[str] = []

    @functools.cached_property
    def stock(self) -> list[str]:
        return []


async def test_a_subclass_with_attributes_of_its_own() -> None:
    """Attributes and cached properties of the app's own class are private and put back."""
    app = Shop()

    async def endpoint(request: Request) -> JSONResponse:
        assert type(request.app) is Shop
        assert isinstance(app, Shop)
        before = [list(app.basket), list(request.app.basket), "stock" in vars(app)]
        app.basket.append("alice")
        app.stock.append("alice")
        return JSONResponse([before, request.app.basket, request.app.stock])

    first, second = await twice(app_with(endpoint, app))
    assert first.data == second.data == [[[], [], False], ["alice"], ["alice"]]
    assert app.basket == []
    assert Shop.subclasses == ()
    assert type(app) is Shop


async def test_deleting_through_the_template() -> None:
    """What is deleted from the module's app in a request is deleted from its sandbox only."""
    app = FastAPI()

    async def endpoint(request: Request) -> JSONResponse:
        del app.title
        return JSONResponse([hasattr(app, "title"), hasattr(request.app, "title")])

    first, second = await twice(app_with(endpoint, app))
    assert first.data == second.data == [False, False]
    assert app.title == "FastAPI"


def dependency() -> str:
    """Return what is real."""
    return "real"


async def test_overrides_set_outside_of_requests() -> None:
    """What a test sets on the module's app is honoured at once, `None` included."""
    router = APIRouter()

    @router.get("/")
    def endpoint(value: str = Depends(dependency)) -> str:
        return value

    app = FastAPI()
    app.include_router(router)
    async with Driver(CloneFactory(app), 2) as driver:
        assert (await driver.get(0, "/")).data == "real"
        app.dependency_overrides[dependency] = lambda: "fake"
        assert [(await driver.get(number, "/")).data for number in (0, 1)] == ["fake", "fake"]
        app.dependency_overrides = {dependency: lambda: "other"}
        assert (await driver.get(0, "/")).data == "other"
        app.dependency_overrides = None  # type: ignore[assignment]
        assert (await driver.get(0, "/")).data == "real"
        app.dependency_overrides = {}
        assert (await driver.get(0, "/")).data == "real"
        del app.title
        assert (await driver.get(0, "/")).data == "real"


async def test_changes_of_the_template_outside_of_requests() -> None:
    """Routes, handlers and attributes added later reach sandboxes that exist already."""
    app = FastAPI()

    async def endpoint(request: Request) -> JSONResponse:
        return JSONResponse([request.app.title, len(request.app.exception_handlers)])

    async with Driver(CloneFactory(app), 2) as driver:
        assert (await driver.get(0, "/")).status == 404
        app.add_route("/", endpoint)
        handlers = len(app.exception_handlers)
        assert (await driver.get(0, "/")).data == ["FastAPI", handlers]
        app.title = "Shop"
        app.exception_handlers[KeyError] = lambda request, error: JSONResponse(None)
        assert [(await driver.get(n, "/")).data for n in (0, 1)] == [["Shop", handlers + 1]] * 2
        app.router.routes = []
        assert (await driver.get(1, "/")).status == 404


async def test_a_route_sees_the_sandbox_in_threads_and_child_tasks() -> None:
    """The module's app is the sandbox in sync endpoints, threads and child tasks."""
    app = FastAPI()

    @app.get("/sync")
    def sync() -> Any:
        app.state.user = "alice"
        return app.state.user

    @app.get("/")
    async def endpoint() -> Any:
        async def child() -> None:
            app.state.child = True

        async with anyio.create_task_group() as group:
            group.start_soon(child)
        await anyio.to_thread.run_sync(lambda: setattr(app.state, "thread", True))
        return dict(app.state._state)

    first, second = await twice(app)
    assert first.data == second.data == {"child": True, "thread": True}
    assert (await twice(app, "/sync"))[1].data == "alice"
    assert not app.state._state


async def test_an_app_inside_an_app() -> None:
    """A pool inside a request of another pool leads each of them to its own sandbox."""
    inner, outer = FastAPI(), FastAPI()

    @inner.get("/")
    async def inside() -> Any:
        inner.state.user = "inner"
        return [getattr(outer.state, "user", None), inner.state.user]

    async with Driver(CloneFactory(inner), 1) as inner_driver:

        @outer.get("/")
        async def around() -> Any:
            outer.state.user = "outer"
            return [(await inner_driver.get(0, "/")).data, outer.state.user]

        first, second = await twice(outer)
    assert first.data == second.data == [["outer", "inner"], "outer"]


async def test_a_test_client_inside_an_endpoint() -> None:
    """An endpoint may call its own app, or another one, through a test client."""
    app = FastAPI()

    @app.get("/inner")
    def inner() -> Any:
        return getattr(app.state, "user", None)

    @app.get("/")
    def outer() -> Any:
        app.state.user = "alice"
        return TestClient(app).get("/inner").json()

    first, second = await twice(app)
    assert first.data == second.data


async def test_two_factories_of_one_app() -> None:
    """One app can be the template of two pools at once; each finds its own sandboxes."""
    app = FastAPI()

    @app.get("/")
    async def endpoint(request: Request) -> Any:
        before = getattr(app.state, "user", None)
        app.state.user = "alice"
        return [before, request.app.state.user]

    async with Driver(CloneFactory(app), 1) as one, Driver(CloneFactory(app), 1) as two:
        for driver in (one, two, one):
            assert (await driver.get(0, "/")).data == [None, "alice"]
    assert type(app) is FastAPI


# --- instrumentors and policies -----------------------------------------------------------


async def test_an_instrumentor_that_replaces_a_method_on_the_instance() -> None:
    """A stack built by a replaced `build_middleware_stack` leads to the clone's router."""
    app = FastAPI()
    built = []

    def build_middleware_stack(self: FastAPI) -> Any:
        built.append(self)
        return Renamed(original())

    original = app.build_middleware_stack
    app.build_middleware_stack = types.MethodType(  # type: ignore[method-assign]
        functools.wraps(original)(build_middleware_stack), app
    )

    async def endpoint(request: Request) -> JSONResponse:
        bound: Any = request.app.build_middleware_stack
        return JSONResponse(
            [
                request.scope["found"],
                request.scope["router"] is request.app.router,
                bound.__self__ is request.app,
            ]
        )

    first, second = await twice(app_with(endpoint, app), lifespan="off")
    assert first.data == second.data == [1, True, True]
    assert len(built) == 1


class Registered:
    """Middleware that may be constructed only once."""

    made = 0

    def __init__(self, app: Any, *, labels: dict[str, int] | None = None) -> None:
        Registered.made += 1
        self.app = app
        self.labels = labels if labels is not None else {}
        self.count = 0
        self.users: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        self.count += 1
        self.users.append("alice")
        self.labels["n"] = self.labels.get("n", 0) + 1
        scope["found"] = [self.count, self.users, self.labels]
        await self.app(scope, receive, send)


@pytest.mark.parametrize("key", [Registered, "Registered", f"{__name__}.Registered"])
@pytest.mark.parametrize(
    ("policy", "made", "second"),
    [
        ("copy", 1, [1, ["alice"], {"n": 1}]),
        ("share", 1, [3, ["alice"] * 3, {"n": 3}]),
        ("fresh", 3, [1, ["alice"], {"n": 1}]),
    ],
)
async def test_the_policy_of_middleware(policy: str, made: int, second: Any, key: Any) -> None:
    """Middleware is copied, shared or constructed again, by class or by name."""
    Registered.made = 0
    app = app_with(tell)
    app.add_middleware(GZipMiddleware)
    app.add_middleware(Registered, labels={})
    async with Driver(CloneFactory(app, middleware={key: policy}), 2) as driver:
        for number in (0, 1):
            await driver.get(number, "/")
        assert (await driver.get(0, "/")).data == second
    assert Registered.made == made


@pytest.mark.skipif(not table.HAS_LIMIT, reason="this FastAPI has no such limit")
async def test_a_limit_of_a_dependency_stays_common() -> None:
    """`Depends(max_concurrency=2)` lets two requests in, however many clones there are."""
    inside, most = 0, 0
    entered = Meeting(2)

    async def limited() -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        await entered()
        await anyio.lowlevel.checkpoint()
        inside -= 1

    app = FastAPI()

    @app.get("/")
    async def endpoint(value: Any = Depends(limited, max_concurrency=2)) -> None: ...

    async with Driver(CloneFactory(app), 6) as driver, anyio.create_task_group() as group:
        for number in range(6):
            group.start_soon(driver.get, number, "/")
    assert most == 2


# --- what is ours and what only sounds like it --------------------------------------------


async def test_a_package_with_a_similar_name() -> None:
    """Middleware of a package called `sandboxpool_extras`, or of a test below, is copied."""
    for module in ("sandboxpool_extras.limits", "sandboxpool.isolation.extras"):
        similar: Any = type("Registered", (Registered,), {"__module__": module})
        assert is_asgi_instance(similar(None))
        app = app_with(tell)
        app.add_middleware(similar)
        first, second = await twice(app)
        assert first.data == second.data == [1, ["alice"], {"n": 1}]


def test_apps_with_a_pool_of_their_own_are_left_alone() -> None:
    """A wrapped app and its page of figures are shared by sandboxes that they are mounted in."""

    class Special(SandboxedApp):
        """A user's own kind of wrapped app."""

    wrapped = wrap(FastAPI())
    special = Special(wrapped.app, wrapped._factory, wrapped.wrap_options)
    for ours in (wrapped, wrapped.stats_app, special):
        assert not is_asgi_instance(ours)
    assert [is_wrapped(app) for app in (wrapped, special, wrapped.stats_app)] == [True, True, False]


# --- keep, share, reset -------------------------------------------------------------------


async def test_keep() -> None:
    """What `keep=` names survives in its sandbox, and nothing else does."""
    app: Any = FastAPI()
    app.state.cache = {}
    app.state.users = []
    app.hits = []

    async def endpoint(request: Request) -> JSONResponse:
        mine = request.app
        for container in (mine.state.users, mine.hits):
            container.append(1)
        mine.state.cache[len(mine.state.cache)] = True
        mine.seen = getattr(mine, "seen", 0) + 1
        mine.debug = True
        return JSONResponse([len(mine.state.cache), mine.state.users, mine.hits, mine.seen])

    app.seen = 0
    factory = CloneFactory(app_with(endpoint, app), keep=("state.cache", "hits", "seen"))
    async with Driver(factory, 2) as driver:
        await driver.get(0, "/")
        assert (await driver.get(0, "/")).data == [2, [1], [1, 1], 2]
        assert (await driver.get(1, "/")).data == [1, [1], [1], 1]
        app.title = "rebuild"
        assert (await driver.get(1, "/")).data[0] == 2


async def test_share() -> None:
    """What `share=` names is common to all clones."""
    app: Any = FastAPI()
    app.state.cache = []
    app.hits = []

    async def endpoint(request: Request) -> JSONResponse:
        request.app.state.cache.append(1)
        request.app.hits.append(1)
        return JSONResponse([request.app.state.cache, request.app.hits])

    factory = CloneFactory(app_with(endpoint, app), share=("state.cache", "hits"))
    async with Driver(factory, 2) as driver:
        await driver.get(0, "/")
        assert (await driver.get(1, "/")).data == [[1, 1], [1, 1]]


async def counting(request: Request) -> JSONResponse:
    request.app.state.n = getattr(request.app.state, "n", 0) + 1
    return JSONResponse(request.app.state.n)


async def test_reset_keep() -> None:
    """`reset="keep"` leaves everything in the sandbox."""
    first, second = await twice(app_with(counting), reset="keep")
    assert [first.data, second.data] == [1, 2]


async def test_reset_fresh() -> None:
    """`reset="fresh"` resets nothing: the pool uses no sandbox twice."""
    factory = CloneFactory(app_with(counting), reset="fresh")
    async with Driver(factory, 1) as driver:
        assert factory.reset(driver.sandboxes[0]) is None


@pytest.mark.parametrize("is_async", [False, True])
async def test_reset_by_a_callable(is_async: bool) -> None:
    """A callable is called with the sandbox instead, and awaited if it wants to be."""
    seen: list[Any] = []

    async def in_time(sandbox: Any) -> None:
        seen.append(sandbox)

    first, second = await twice(
        app_with(counting), reset=in_time if is_async else lambda sandbox: seen.append(sandbox)
    )
    assert [first.data, second.data] == [1, 2]
    assert len(seen) == 2
    assert "AppSandbox" in repr(seen[0])


# --- other apps ---------------------------------------------------------------------------


async def test_a_raw_function() -> None:
    """A function has nothing to copy; it is called as it is."""

    async def app(scope: Any, receive: Any, send: Any) -> str:
        await JSONResponse(scope["path"])(scope, receive, send)
        return "returned"

    async with Driver(CloneFactory(app), 1) as driver:
        assert (await driver.get(0, "/a")).data == "/a"


async def test_a_raw_object() -> None:
    """An object that is an ASGI app has private attributes, also through the global name."""

    class App:
        def __init__(self) -> None:
            self.users: list[str] = []

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] != "http":
                raise ValueError(scope["type"])
            self.users.append("alice")
            await JSONResponse([self.users, app.users])(scope, receive, send)

    app = App()
    first, second = await twice(app)
    assert first.data == second.data == [["alice"], ["alice"]]


async def test_lifespan_each() -> None:
    """Every clone runs a lifespan of its own, on an app of its own, and ends it."""
    running: list[Any] = []

    @asynccontextmanager
    async def lifespan(app: Any) -> Any:
        app.state.users = []
        running.append(app)
        yield {"basket": [len(running)]}
        running.remove(app)

    async def endpoint(request: Request) -> JSONResponse:
        app.state.users.append("alice")
        return JSONResponse([request.app.state.users, request.state.basket])

    app = Starlette(lifespan=lifespan)
    app.add_route("/", endpoint)
    async with Driver(CloneFactory(app, lifespan="each"), 2) as driver:
        assert len(running) == 2
        assert (await driver.get(0, "/")).data == [["alice"], [1]]
        assert (await driver.get(1, "/")).data == [["alice"], [2]]
        assert (await driver.get(0, "/")).data == [["alice"], [1]]
    assert running == []
    assert not app.state._state


async def test_lifespan_off() -> None:
    """With `lifespan="off"` the app's lifespan does not run."""

    async def lifespan(app: Any) -> Any:
        raise AssertionError

    app = FastAPI()
    app.router.lifespan_context = lifespan  # type: ignore[assignment]
    async with Driver(CloneFactory(app_with(counting, app), lifespan="off"), 1) as driver:
        assert (await driver.get(0, "/")).data == 1


def test_frameworks_are_not_imported_for_others() -> None:
    """Cloning a raw app imports no framework."""
    code = (
        "import sys\n"
        "from sandboxpool.isolation.clone import CloneFactory\n"
        "from sandboxpool.isolation._graph import Walk\n"
        "class App:\n"
        "    async def __call__(self, scope, receive, send): ...\n"
        "Walk().compile(App())\n"
        "assert not {'starlette', 'fastapi', 'trio'} & set(sys.modules)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


async def test_the_control_really_is_the_same_app() -> None:
    """The driver's `call` reaches an unwrapped app."""
    assert (await call(app_with(counting), "/")).data == 1
