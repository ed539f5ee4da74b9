"""A sandbox that is destroyed leaves nothing for the garbage collector."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import anyio
import pytest
from fastapi import APIRouter, FastAPI, Request
from starlette.applications import Starlette
from starlette.routing import Mount

from sandboxpool.isolation.clone import CloneFactory


@pytest.fixture(autouse=True)
def no_collector() -> Iterator[None]:
    """Leave everything to reference counting."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Middleware:
    """Middleware with a little state."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.seen: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.seen.append(scope["path"])
        await self.app(scope, receive, send)


def small() -> FastAPI:
    app = FastAPI()

    @app.get("/")
    async def endpoint(request: Request) -> str:
        request.app.state.user = "alice"
        return "hello"

    return app


def large() -> FastAPI:
    app = small()
    app.include_router(APIRouter(), prefix="/inner")
    app.mount("/sub", small())
    app.mount("/starlette", Starlette(routes=[Mount("/more", small())]))
    app.add_middleware(Middleware)
    return app


async def call(sandbox: Any) -> None:
    """Send one request, and drop everything about it."""

    async def receive() -> Any:
        return {"type": "http.request"}

    async def send(message: Any) -> None:
        return None

    scope = {
        "type": "http",
        "method": "GET",
        "path": "/",
        "query_string": b"",
        "headers": [],
        "root_path": "",
    }
    await sandbox(scope, receive, send)


def parts(sandbox: Any) -> list[weakref.ref[Any]]:
    """Return weak references to the private objects that allow any, and to the sandbox."""
    found = [weakref.ref(sandbox)]
    for value in sandbox._new:
        try:
            found.append(weakref.ref(value))
        except TypeError:
            continue
    return found


@pytest.mark.parametrize("make", [small, large], ids=lambda make: make.__name__)
@pytest.mark.parametrize("uses", [0, 1, 3])
async def test_nothing_is_left_for_the_collector(make: Callable[[], Any], uses: int) -> None:
    """A clone, idle or used, is freed by reference counting as soon as it is destroyed."""
    factory = CloneFactory(make(), lifespan="off")
    await factory.start()
    sandbox = await factory.create()
    for _ in range(uses):
        await call(sandbox)
        sandbox.reset()
    left = parts(sandbox)
    await factory.destroy(sandbox)
    del sandbox
    assert [ref() for ref in left if ref() is not None] == []
    await factory.stop()


async def test_a_call_that_still_runs_keeps_its_app() -> None:
    """A sandbox that is destroyed below a running call is not taken apart."""
    app = FastAPI()
    entered, go_on = anyio.Event(), anyio.Event()
    found: list[str] = []

    @app.get("/")
    async def endpoint(request: Request) -> str:
        entered.set()
        await go_on.wait()
        found.append(request.app.title)
        return "hello"

    factory = CloneFactory(app, lifespan="off")
    await factory.start()
    sandbox = await factory.create()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(call, sandbox)
        await entered.wait()
        await factory.destroy(sandbox)
        go_on.set()
    assert found == ["FastAPI"]
    await factory.stop()
