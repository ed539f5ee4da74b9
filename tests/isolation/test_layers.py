"""Shared middleware: its attributes are common to all clones, its inner layers are not."""

from __future__ import annotations

import gc
import re
from typing import Any

import anyio
import pytest
from fastapi import FastAPI
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse

from sandboxpool import OptionError
from sandboxpool.isolation.clone import CloneFactory

from .driver import Driver, Meeting, call


class Inner:
    """Middleware that remembers users."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.users: list[str] = []
        self.last: str | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        scope["inner"] = self
        await self.app(scope, receive, send)


class Outer:
    """Middleware that counts, by rebinding an attribute and in a container."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.count = 0
        self.paths: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.count += 1
        self.paths.append(scope["path"])
        scope["outer"] = self
        await self.app(scope, receive, send)


class OuterHTTP(BaseHTTPMiddleware):
    """The same, on Starlette's base class, which keeps a bound method on the object."""

    def __init__(self, app: Any) -> None:
        super().__init__(app)
        self.count = 0
        self.paths: list[str] = []

    async def dispatch(self, request: Any, call_next: Any) -> Any:
        self.count += 1
        self.paths.append(request.url.path)
        request.scope["outer"] = self
        return await call_next(request)


class Finalized(Outer):
    """Middleware with a finalizer."""

    ended = 0

    def __del__(self) -> None:
        type(self).ended += 1


def layer_of(app: Any, cls: type) -> Any:
    layer = app.middleware_stack
    while not isinstance(layer, cls):
        layer = layer.app
    return layer


def probing(outer: Any) -> FastAPI:
    app = FastAPI()

    async def probe(request: Request) -> JSONResponse:
        inner, user = request.scope["inner"], request.query_params["user"]
        before = [inner.last, list(inner.users)]
        inner.last = user
        inner.users.append(user)
        request.app.add_api_route(f"/{user}", lambda: user)
        await request.scope["meet"]()
        count = request.scope["outer"].count
        return JSONResponse([before, inner.last, inner.users, count])

    app.add_route("/", probe)
    app.add_middleware(Inner)
    app.add_middleware(outer)
    return app


@pytest.mark.parametrize("outer", [Outer, OuterHTTP, Finalized])
async def test_what_is_inside_of_shared_middleware_is_private(outer: type) -> None:
    """The count is common to all, rebound or not; the layers inside and the routes are private."""
    gc.collect()  # what other tests have left
    Finalized.ended = 0
    app = probing(outer)
    answers: dict[str, Any] = {}

    async with Driver(CloneFactory(app, lifespan="off", middleware={outer: "share"}), 2) as driver:

        async def ask(number: int, user: str, meet: Any) -> None:
            answers[user] = (
                await driver.get(number, "/", query=f"user={user}", meet=meet, outer=None)
            ).data

        meeting = Meeting(2)
        async with anyio.create_task_group() as group:
            group.start_soon(ask, 0, "alice", meeting)
            group.start_soon(ask, 1, "bob", meeting)
        await ask(0, "carol", Meeting(1))
        # Routes that requests have added are gone, and were never the template's.
        assert (await driver.get(0, "/alice")).status == 404
        layer, original = layer_of(driver.sandboxes[0].app, outer), layer_of(app, outer)
        assert layer is not original
        assert repr(type(layer)) == repr(outer)
        assert layer_of(driver.sandboxes[0].app, Inner) is layer.app is not original.app
    assert answers["alice"] == [[None, []], "alice", ["alice"], 2]
    assert answers["bob"] == [[None, []], "bob", ["bob"], 2]
    assert answers["carol"] == [[None, []], "carol", ["carol"], 3]
    assert (original.count, original.paths) == (4, ["/", "/", "/", "/alice"])
    assert Finalized.ended == 0


async def test_the_control() -> None:
    """On the app alone, the inner middleware leaks, and so do routes."""
    app = probing(Outer)
    meet = Meeting(1)
    first = await call(app, "/", query="user=alice", meet=meet)
    second = await call(app, "/", query="user=bob", meet=meet)
    assert first.data == [[None, []], "alice", ["alice"], 1]
    assert second.data == [["alice", ["alice"]], "bob", ["alice", "bob"], 2]
    assert (await call(app, "/alice")).status == 200


async def test_fresh_middleware_round_shared() -> None:
    """Middleware that is constructed again gets the twin of the shared one inside of it."""
    made = []

    class Fresh(Outer):
        def __init__(self, app: Any) -> None:
            made.append(app)
            super().__init__(app)

    app = probing(Outer)
    app.add_middleware(Fresh)
    policies: dict[type | str, str] = {Fresh: "fresh", Outer: "share"}
    async with Driver(CloneFactory(app, lifespan="off", middleware=policies), 2) as driver:
        for expected in (1, 2):
            answer = await driver.get(1, "/", query="user=alice", meet=Meeting(1))
            assert answer.data == [[None, []], "alice", ["alice"], expected]
    assert len(made) == 3


class Slotted:
    """Middleware without a dict."""

    __slots__ = ("app", "count")

    def __init__(self, app: Any) -> None:
        self.app = app
        self.count = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)


class OfItsOwnLayout(dict[str, Any]):
    """Middleware that is a dict."""

    def __init__(self, app: Any) -> None:
        super().__init__()
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)


@pytest.mark.parametrize(
    ("middleware", "text"),
    [
        (
            Slotted,
            "middleware={'Slotted': 'share'}: Slotted keeps its attributes in __slots__, which "
            "sandboxes with inner layers of their own cannot share: keep what must be common",
        ),
        (OfItsOwnLayout, "OfItsOwnLayout has a layout of its own, which sandboxes with inner"),
    ],
)
async def test_what_cannot_be_shared_is_refused(middleware: Any, text: str) -> None:
    """Middleware whose attributes cannot be had in common is refused when the app starts."""
    app = FastAPI()
    app.add_middleware(middleware)
    with pytest.raises(OptionError, match=re.escape(text)):
        await CloneFactory(app, middleware={middleware: "share"}).start()
    assert type(app) is FastAPI
