"""Everything in an app of FastAPI that may block: it blocks its own request only."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, Request, WebSocket
from fastapi.responses import StreamingResponse
from starlette.middleware.base import BaseHTTPMiddleware

from sandboxpool import SandboxedApp
from sandboxpool.run.cooperative import stepper
from tests.wrap.client import Connection

from .cooperative import Gate, ask, cooperative
from .cooperative import sleep_hooked as sleep_hooked

pytestmark = pytest.mark.backend_with_uvloop


class Gates:
    """A gate for each place at which the app blocks."""

    def __init__(self) -> None:
        self.gates: dict[str, Gate] = {}
        self.passed: list[str] = []

    def __getitem__(self, place: str) -> Gate:
        return self.gates.setdefault(place, Gate())

    def block(self, place: str) -> None:
        """Block until a gate is open; all but that of the path are."""
        gate = self[place]
        gate.pass_through()
        self.passed.append(place)


async def plain_middleware(request: Request, call_next: Any) -> Any:
    """Do nothing, in the way that runs the endpoint in a task of its own."""
    return await call_next(request)


def app_that_blocks(gates: Gates, middleware: bool) -> FastAPI:
    """Return an app whose requests block at many places."""
    app = FastAPI()

    async def dependency() -> AsyncIterator[int]:
        gates.block("dependency")
        yield 1
        gates.block("after the dependency")

    async def background() -> None:
        gates.block("background")

    @app.get("/endpoint")
    async def endpoint(tasks: BackgroundTasks, one: int = Depends(dependency)) -> int:
        tasks.add_task(background)
        gates.block("endpoint")
        return one

    def chunks_of_def() -> Iterator[str]:
        # Starlette runs this in threads: there it may block anyway.
        assert stepper() is None
        yield "x"
        yield "y"

    async def chunks() -> AsyncIterator[str]:
        try:
            for number in range(3):
                gates.block(f"chunk {number}")
                yield str(number)
        finally:
            gates.block("after the chunks")

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        return StreamingResponse(chunks())

    @app.get("/threads")
    def threads() -> StreamingResponse:
        assert stepper() is None
        return StreamingResponse(chunks_of_def())

    @app.websocket("/ws")
    async def ws(websocket: WebSocket) -> None:
        await websocket.accept()
        gates.block("websocket")
        await websocket.send_text(await websocket.receive_text())
        gates.block("after the websocket")

    if middleware:
        app.add_middleware(BaseHTTPMiddleware, dispatch=plain_middleware)
    return app


async def blocks_at(
    place: str, path: str, expected: str, middleware: bool, **scope: Any
) -> Connection:
    """Have a request block at one place while others come and go, and return it."""
    gates = Gates()
    app = app_that_blocks(gates, middleware)
    async with cooperative(app, max_size=2) as sandboxed, anyio.create_task_group() as tasks:
        gates[place]  # the only one that is there, and closed
        for other in (
            *("dependency", "endpoint", "after the dependency", "background", "chunk 0", "chunk 1"),
            *("chunk 2", "after the chunks", "websocket", "after the websocket"),
        ):
            if other != place:
                gates[other].opened.set()
        blocked = Connection(sandboxed, path, **scope)
        if scope:
            blocked.say({"type": "websocket.receive", "text": "hello"})
        tasks.start_soon(blocked.run)
        await gates[place].reached.wait()
        await others(sandboxed)
        assert not blocked.over.is_set()
        gates[place].opened.set()
    assert place in gates.passed
    if not scope:
        assert blocked.text == expected
    return blocked


async def others(sandboxed: SandboxedApp) -> None:
    """Send requests that do not block."""
    for _ in range(2):
        assert (await ask(sandboxed, "/threads")).text == "xy"


@pytest.mark.parametrize("middleware", [False, True], ids=["", "middleware"])
@pytest.mark.parametrize("place", ["dependency", "endpoint", "after the dependency", "background"])
async def test_endpoint(place: str, middleware: bool) -> None:
    """Dependencies before and after, endpoints and background tasks may block."""
    await blocks_at(place, "/endpoint", "1", middleware)


@pytest.mark.parametrize("middleware", [False, True], ids=["", "middleware"])
@pytest.mark.parametrize("place", ["chunk 0", "chunk 1", "after the chunks"])
async def test_stream(place: str, middleware: bool) -> None:
    """The generator of a streaming response may block, and clean up blocking."""
    await blocks_at(place, "/stream", "012", middleware)


@pytest.mark.parametrize("place", ["websocket", "after the websocket"])
async def test_websocket(place: str) -> None:
    """A websocket may block between its messages."""
    blocked = await blocks_at(place, "/ws", "", False, type="websocket")
    assert blocked.sent[1]["text"] == "hello"


async def test_hang_up() -> None:
    """Where the framework cancels for a client that hangs up, a blocked stream is cut short."""
    gates, seen = Gates(), []
    app = app_that_blocks(gates, False)

    async def chunks() -> AsyncIterator[str]:
        yield "first"
        try:
            gates.block("forever")
        finally:
            seen.append("cut short")

    @app.get("/forever")
    async def forever() -> StreamingResponse:
        return StreamingResponse(chunks())

    async with cooperative(app) as sandboxed, anyio.create_task_group() as tasks:
        # Under this version of the protocol Starlette listens for the end of the connection.
        asgi = {"version": "3.0", "spec_version": "2.3"}
        connection = Connection(sandboxed, "/forever", asgi=asgi)
        tasks.start_soon(connection.run)
        await gates["forever"].reached.wait()
        connection.hang_up()
    assert seen == ["cut short"]
    assert connection.text == "first"


async def test_generator_that_is_left() -> None:
    """An async generator that is closed half-way may block in its clean-up."""
    gate = Gate()

    async def numbers() -> AsyncIterator[int]:
        try:
            yield 1
            yield 2
        finally:
            gate.pass_through()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/blocked":
            generator = numbers()
            async for _ in generator:
                break
            await generator.aclose()  # type: ignore[attr-defined]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body"})

    async with cooperative(app, max_size=2) as sandboxed, anyio.create_task_group() as tasks:
        tasks.start_soon(partial(ask, sandboxed, "/blocked"))
        await gate.reached.wait()
        assert (await ask(sandboxed)).status == 200
        gate.opened.set()
