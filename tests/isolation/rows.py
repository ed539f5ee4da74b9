"""The apps behind the table of what is private: one per kind of state.

Each app answers `/probe?user=x`: it says what it found, writes the user, waits until all parties
have written, and says what it finds then.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, Literal

import attrs
from fastapi import APIRouter, Depends, FastAPI, WebSocket
from fastapi.responses import JSONResponse
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.routing import Mount, Route

from .driver import call, talk

Verdict = Literal["private", "shared"]
Found = Callable[[Request], Any]
Write = Callable[[Request, str], Any]


@attrs.frozen
class Row:
    """One kind of state.

    Attributes:
        id: The name of the test case.
        title: What the documentation says.
        make: Returns a new app that has such state.
        clone: For `clone`: at the same moment, and after another request.
        factory: For `factory`, the same. For `module`, everything is private.
        note: What the documentation adds.
        namespace: Whether `make` returns the namespace of a module with `app` and `create_app`.
    """

    id: str
    title: str
    make: Callable[[], Any]
    clone: tuple[Verdict, Verdict]
    factory: tuple[Verdict, Verdict]
    note: str = ""
    namespace: bool = False


ROWS: list[Row] = []
PRIVATE: tuple[Verdict, Verdict] = ("private", "private")
SHARED: tuple[Verdict, Verdict] = ("shared", "shared")
UNTIL_RETIRED: tuple[Verdict, Verdict] = ("private", "shared")


def row(
    title: str,
    clone: tuple[Verdict, Verdict] = PRIVATE,
    factory: tuple[Verdict, Verdict] = PRIVATE,
    note: str = "",
    namespace: bool = False,
) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    def add(make: Callable[[], Any]) -> Callable[[], Any]:
        ROWS.append(Row(make.__name__, title, make, clone, factory, note, namespace))
        return make

    return add


def probe(found: Found, write: Write) -> Callable[[Request], Awaitable[JSONResponse]]:
    async def plain(value: Any) -> list[str]:
        if hasattr(value, "__await__"):
            value = await value
        return [value] if isinstance(value, str) else list(value or ())

    async def endpoint(request: Request) -> JSONResponse:
        before = await plain(found(request))
        written = write(request, request.query_params["user"])
        if hasattr(written, "__await__"):
            await written
        await request.scope["meet"]()
        return JSONResponse({"before": before, "after": await plain(found(request))})

    return endpoint


def probing(app: Any, found: Found, write: Write) -> Any:
    app.add_route("/probe", probe(found, write))
    return app


# --- app.state ----------------------------------------------------------------------------


@row("`request.app.state` attributes")
def state_attribute() -> Any:
    return probing(
        FastAPI(),
        lambda request: getattr(request.app.state, "user", None),
        lambda request, user: setattr(request.app.state, "user", user),
    )


@row("`app.state` reached through a closure over `app`")
def state_through_closure() -> Any:
    app = FastAPI()
    return probing(
        app,
        lambda request: getattr(app.state, "user", None),
        lambda request, user: setattr(app.state, "user", user),
    )


MODULE = """
from fastapi import FastAPI
from tests.isolation.rows import probing

def create_app():
    return probing(
        FastAPI(),
        lambda request: getattr(app.state, "user", None),
        lambda request, user: setattr(app.state, "user", user),
    )

app = create_app()
"""


@row("`app.state` reached through the module's global `app`", namespace=True)
def state_through_global() -> Any:
    namespace: dict[str, Any] = {"__name__": "shop.main"}
    exec(MODULE, namespace)
    return namespace


def state_through_global_app() -> Any:
    """Return the app of that module."""
    return state_through_global()["app"]


@asynccontextmanager
async def filled(app: Any) -> AsyncIterator[dict[str, Any]]:
    app.state.cache = {"users": []}
    yield {"basket": {"users": []}}


@row("plain containers inside `app.state`, also those that the lifespan put there")
def state_container() -> Any:
    return probing(
        FastAPI(lifespan=filled),
        lambda request: request.app.state.cache["users"],
        lambda request, user: request.app.state.cache["users"].append(user),
    )


@row('containers inside `scope["state"]` and `request.state` from the lifespan')
def scope_state_container() -> Any:
    return probing(
        FastAPI(lifespan=filled),
        lambda request: request.state.basket["users"],
        lambda request, user: request.scope["state"]["basket"]["users"].append(user),
    )


@row("state of mounted FastAPI apps")
def mounted_fastapi() -> Any:
    sub = FastAPI()
    app = FastAPI()
    app.mount("/sub", sub)
    return probing(
        app,
        lambda request: getattr(sub.state, "user", None),
        lambda request, user: setattr(sub.state, "user", user),
    )


@row("state of mounted Starlette apps, at any depth")
def mounted_deep() -> Any:
    async def read(request: Request) -> JSONResponse:
        return JSONResponse(getattr(request.app.state, "users", []))

    async def write(request: Request) -> JSONResponse:
        request.app.state.users = [
            *getattr(request.app.state, "users", []),
            request.query_params["user"],
        ]
        return JSONResponse(None)

    inner = Starlette(routes=[Route("/read", read), Route("/write", write)])
    middle = Starlette(routes=[Mount("/inner", app=inner)])
    app = FastAPI()
    app.mount("/middle", middle)

    async def found(request: Request) -> Any:
        return (await call(request.app, "/middle/inner/read")).data

    async def put(request: Request, user: str) -> None:
        await call(request.app, "/middle/inner/write", query=f"user={user}")

    return probing(app, found, put)


# --- middleware ---------------------------------------------------------------------------


class Remembers:
    """Pure ASGI middleware that keeps the last user, and all of them, on itself."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.user: str | None = None
        self.users: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        scope["remembers"] = self
        await self.app(scope, receive, send)


class RemembersHTTP(BaseHTTPMiddleware):
    """The same as a `BaseHTTPMiddleware`."""

    def __init__(self, app: Any) -> None:
        super().__init__(app)
        self.users: list[str] = []

    async def dispatch(self, request: Any, call_next: Any) -> Any:
        request.scope["remembers"] = self
        return await call_next(request)


@row("attributes of pure ASGI middleware objects")
def asgi_middleware() -> Any:
    app = FastAPI()
    app.add_middleware(Remembers)
    return probing(
        app,
        lambda request: request.scope["remembers"].user,
        lambda request, user: setattr(request.scope["remembers"], "user", user),
    )


@row("containers inside of middleware objects")
def middleware_container() -> Any:
    app = FastAPI()
    app.add_middleware(Remembers)
    return probing(
        app,
        lambda request: request.scope["remembers"].users,
        lambda request, user: request.scope["remembers"].users.append(user),
    )


@row("attributes of `BaseHTTPMiddleware` objects")
def http_middleware() -> Any:
    app = FastAPI()
    app.add_middleware(RemembersHTTP)
    return probing(
        app,
        lambda request: request.scope["remembers"].users,
        lambda request, user: request.scope["remembers"].users.append(user),
    )


# --- what FastAPI looks up on the app -----------------------------------------------------


def nobody() -> str:
    """Return no user."""
    return ""


def _overriding(app: FastAPI, path: str, ask: Any = None) -> Any:
    async def found(request: Request) -> Any:
        if ask is not None:
            return [user for user in [await ask(request.app, path)] if user]
        return [user for user in [(await call(request.app, path)).data] if user]

    def write(request: Request, user: str) -> None:
        request.app.dependency_overrides[nobody] = lambda: user

    return probing(app, found, write)


@row("`dependency_overrides` of a direct route")
def overrides_direct() -> Any:
    app = FastAPI()

    @app.get("/who")
    def who(user: str = Depends(nobody)) -> str:
        return user

    return _overriding(app, "/who")


@row("`dependency_overrides` of nested `include_router`")
def overrides_included() -> Any:
    inner, middle, outer = APIRouter(), APIRouter(prefix="/b"), APIRouter(prefix="/a")

    @inner.get("/who")
    def who(user: str = Depends(nobody)) -> str:
        return user

    middle.include_router(inner)
    outer.include_router(middle)
    app = FastAPI()
    app.include_router(outer)
    return _overriding(app, "/a/b/who")


@row("`dependency_overrides` of websocket routes")
def overrides_websocket() -> Any:
    app = FastAPI()

    @app.websocket("/who")
    async def who(socket: WebSocket, user: str = Depends(nobody)) -> None:
        await socket.accept()
        await socket.send_text(user)
        await socket.close()

    return _overriding(app, "/who", talk)


@row("routes added at run time")
def added_route() -> Any:
    async def found(request: Request) -> Any:
        answer = await call(request.app, "/added")
        return answer.data if answer.status == 200 else []

    def write(request: Request, user: str) -> None:
        # The first route that matches wins: the newest goes first.
        request.app.add_api_route("/added", lambda: user)
        routes = request.app.router.routes
        routes.insert(0, routes.pop())

    return probing(FastAPI(), found, write)


class Unhappy(Exception):
    """What `/boom` raises."""


@row("exception handlers added at run time")
def added_handler() -> Any:
    app = FastAPI()

    @app.get("/boom")
    async def boom() -> None:
        raise Unhappy

    async def found(request: Request) -> Any:
        try:
            return (await call(request.app, "/boom")).data
        except Unhappy:
            return []

    def write(request: Request, user: str) -> None:
        request.app.add_exception_handler(Unhappy, lambda request, error: JSONResponse([user]))
        # Starlette alone looks at handlers only when it builds the stack.
        if type(request.app.exception_handlers) is dict:
            request.app.middleware_stack = request.app.build_middleware_stack()

    return probing(app, found, write)


@row("the cached `/openapi.json`")
def openapi() -> Any:
    async def found(request: Request) -> Any:
        paths = (await call(request.app, "/openapi.json")).data["paths"]
        return [path[1:] for path in paths]

    def write(request: Request, user: str) -> None:
        request.app.add_api_route(f"/{user}", lambda: user)

    return probing(FastAPI(), found, write)


# --- what belongs to functions ------------------------------------------------------------


@row("closure variables", SHARED, UNTIL_RETIRED)
def closure_variable() -> Any:
    users: list[str] = []
    return probing(FastAPI(), lambda request: users, lambda request, user: users.append(user))


@row("closure variables of `@app.middleware` functions", SHARED, UNTIL_RETIRED)
def middleware_closure() -> Any:
    app = FastAPI()
    users: list[str] = []

    @app.middleware("http")
    async def remember(request: Request, call_next: Any) -> Any:
        request.scope["users"] = users
        return await call_next(request)

    return probing(
        app,
        lambda request: request.scope["users"],
        lambda request, user: request.scope["users"].append(user),
    )


@row("`self` of bound-method endpoints", SHARED, UNTIL_RETIRED)
def bound_method() -> Any:
    class Shop:
        def __init__(self) -> None:
            self.users: list[str] = []

        async def probe(self, request: Request) -> JSONResponse:
            return await probe(
                lambda request: self.users, lambda request, user: self.users.append(user)
            )(request)

    app = FastAPI()
    app.add_route("/probe", Shop().probe)
    return app


@row("function attributes", SHARED, UNTIL_RETIRED)
def function_attribute() -> Any:
    def remember() -> None:
        """Hold the users."""

    remember.users = []  # type: ignore[attr-defined]
    return probing(
        FastAPI(),
        lambda request: remember.users,  # type: ignore[attr-defined]
        lambda request, user: remember.users.append(user),  # type: ignore[attr-defined]
    )


@row("mutable defaults of what the factory defines", SHARED, UNTIL_RETIRED)
def mutable_default() -> Any:
    def remember(user: str | None = None, users: list[str] = []) -> list[str]:  # noqa: B006
        if user is not None:
            users.append(user)
        return users

    return probing(FastAPI(), lambda request: remember(), lambda request, user: remember(user))


class Ledger:
    """An object that is not plain data."""

    def __init__(self) -> None:
        self.users: list[str] = []


@row(
    "objects that are not plain data (an engine, a client, a lock)",
    SHARED,
    UNTIL_RETIRED,
    "on purpose: share what must be common",
)
def opaque_object() -> Any:
    app = FastAPI()
    app.state.ledger = Ledger()
    return probing(
        app,
        lambda request: request.app.state.ledger.users,
        lambda request, user: request.app.state.ledger.users.append(user),
    )


# --- what belongs to modules --------------------------------------------------------------

USERS: list[str] = []


@row("module globals", SHARED, SHARED)
def module_global() -> Any:
    USERS.clear()
    return probing(FastAPI(), lambda request: USERS, lambda request, user: USERS.append(user))


class Registry:
    """A class that keeps users on itself."""

    users: tuple[str, ...] = ()


@row("class attributes", SHARED, SHARED)
def class_attribute() -> Any:
    Registry.users = ()
    return probing(
        FastAPI(),
        lambda request: Registry.users,
        lambda request, user: setattr(Registry, "users", (*Registry.users, user)),
    )


@functools.lru_cache
def cached() -> list[str]:
    """Return one list, always the same."""
    return []


@row("module-level caches (`lru_cache`)", SHARED, SHARED)
def module_cache() -> Any:
    cached.cache_clear()
    return probing(FastAPI(), lambda request: cached(), lambda request, user: cached().append(user))


# --- a limit ------------------------------------------------------------------------------


def limited() -> Any:
    """Return an app with a dependency that only two requests may be in, and that waits there."""

    async def busy(request: Request) -> None:
        request.scope["entered"].append(request.query_params["user"])
        await request.scope["leave"].wait()

    app = FastAPI()

    @app.get("/")
    async def endpoint(
        value: Any = Depends(busy, max_concurrency=2),  # type: ignore[call-arg,unused-ignore] # not in old versions
    ) -> None: ...

    return app
