"""Products of a factory function: a lifespan each, nothing left behind."""

from __future__ import annotations

import functools
import gc
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fastapi import Depends, FastAPI
from fastapi import routing as fastapi_routing
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from sandboxpool import LifespanShutdownError, LifespanStartupError
from sandboxpool.isolation.factory import AppFactory

from .driver import Driver


class Log:
    """Makes apps that log their lifespans."""

    def __init__(self, *, fail: str = "") -> None:
        self.events: list[str] = []
        self.made = 0
        self.fail = fail

    def __call__(self) -> Any:
        self.made += 1
        number = self.made

        @asynccontextmanager
        async def lifespan(app: Any) -> AsyncIterator[dict[str, Any]]:
            self.events.append(f"start {number}")
            if self.fail == "start":
                raise OSError("no database")
            app.state.number = number
            app.state.users = []
            yield {"basket": [number]}
            self.events.append(f"stop {number}")
            if self.fail == "stop":
                raise OSError("lost")

        async def endpoint(request: Request) -> JSONResponse:
            request.app.state.users.append("alice")
            return JSONResponse(
                [request.app.state.number, request.app.state.users, request.state.basket, number]
            )

        return Starlette(routes=[Route("/", endpoint)], lifespan=lifespan)


async def test_every_product_has_a_lifespan_of_its_own() -> None:
    """Each product starts when its sandbox is created and stops when that is destroyed."""
    log = Log()
    async with Driver(AppFactory(log), 2) as driver:
        assert log.events == ["start 1", "start 2"]
        for _ in range(2):
            assert (await driver.get(0, "/")).data == [1, ["alice"], [1], 1]
            assert (await driver.get(1, "/")).data == [2, ["alice"], [2], 2]
    assert log.events[2:] == ["stop 1", "stop 2"]


async def test_lifespan_once() -> None:
    """The first product's lifespan runs alone; what it put into the states reaches the others."""
    log = Log()
    async with Driver(AppFactory(log, lifespan="once"), 2) as driver:
        assert log.events == ["start 1"]
        for _ in range(2):
            assert (await driver.get(0, "/")).data == [1, ["alice"], [1], 1]
            assert (await driver.get(1, "/")).data == [1, ["alice"], [1], 2]
    assert log.events == ["start 1", "stop 1"]


async def test_lifespan_off() -> None:
    """Without a lifespan the products are used as they were made."""
    log = Log()
    async with Driver(AppFactory(log, lifespan="off"), 1):
        assert log.events == []


async def test_failures_of_a_lifespan() -> None:
    """A product that does not start is no sandbox; one that does not stop says so."""
    with pytest.raises(LifespanStartupError, match="no database"):
        await AppFactory(Log(fail="start")).create()
    with pytest.raises(LifespanStartupError, match="no database"):
        await AppFactory(Log(fail="start"), lifespan="once").start()
    factory = AppFactory(Log(fail="stop"))
    sandbox = await factory.create()
    with pytest.raises(LifespanShutdownError, match="lost"):
        await factory.destroy(sandbox)


async def test_an_async_factory_and_a_partial() -> None:
    """The factory may be a coroutine function, or a partial of a function."""

    async def make(log: Log) -> Any:
        return log()

    async with Driver(AppFactory(functools.partial(make, Log())), 1) as driver:
        assert (await driver.get(0, "/")).data[0] == 1


def nobody() -> str:
    """Return no user."""
    return ""


MODULE = """
from fastapi import Depends, FastAPI
from tests.isolation.test_factory import nobody

sub = FastAPI()

@sub.get("/")
def ask():
    before = getattr(sub.state, "user", None)
    sub.state.user = "alice"
    return before

def create_app():
    made = FastAPI()
    made.mount("/sub", sub)

    @made.get("/")
    def ask(user: str = Depends(nobody)):
        before = getattr(app.state, "user", None)
        app.state.user = "alice"
        return [before, made.state.user, user]

    return made

app = create_app()
"""


async def test_the_apps_of_the_module() -> None:
    """The global `app` reaches the sandbox, also with overrides; a shared sub-app is copied."""
    module: dict[str, Any] = {"__name__": "shop.main"}
    exec(MODULE, module)
    async with Driver(AppFactory(module["create_app"]), 2) as driver:
        for number in (0, 0, 1):
            assert (await driver.get(number, "/")).data == [None, "alice", ""]
            assert (await driver.get(number, "/sub/")).data is None
        module["app"].dependency_overrides[nobody] = lambda: "bob"
        assert (await driver.get(1, "/")).data == [None, "alice", "bob"]
        module["app"].dependency_overrides.clear()
        assert (await driver.get(1, "/")).data == [None, "alice", ""]
    assert type(module["app"]) is FastAPI
    assert type(module["sub"]) is FastAPI
    assert not module["app"].state._state


async def test_nothing_stays_of_recycled_apps() -> None:
    """After 300 products were used and destroyed, none is alive and no cache has grown."""
    alive: list[weakref.ref[Any]] = []

    def make() -> Any:
        app = FastAPI()
        inner = fastapi_routing.APIRouter()

        def user(request: Request) -> Any:
            return app

        @inner.get("/inner")
        @app.get("/")
        async def endpoint(value: Any = Depends(user)) -> str:
            app.state.user = "alice"
            return str(app.state.user)

        app.include_router(inner)
        alive.append(weakref.ref(app))
        alive.append(weakref.ref(endpoint))
        return app

    before = len(fastapi_routing._endpoint_context_cache)

    async def fifty() -> None:
        async with Driver(AppFactory(make), 50) as driver:
            for number in range(50):
                assert (await driver.get(number, "/")).data == "alice"
                assert (await driver.get(number, "/inner")).status == 200
            alive.extend(map(weakref.ref, driver.sandboxes))
            driver.sandboxes, doomed = [], driver.sandboxes
            while doomed:
                await driver.factory.destroy(doomed.pop())

    for _ in range(6):
        await fifty()
    gc.collect()
    assert sum(reference() is not None for reference in alive) == 0
    assert len(fastapi_routing._endpoint_context_cache) <= before
