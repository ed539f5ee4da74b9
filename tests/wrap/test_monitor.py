"""What the monitor thread says about a blocked event loop, and what it does not say."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from typing import Any

import anyio
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from sandboxpool import LifespanStartupError, SandboxedApp, wrap

from .client import Connection, get, respond, settle


def block(seconds: float) -> None:
    """Block the thread, as a slow driver does."""
    time.sleep(seconds)  # the blocking line


def app_that_blocks(*, middleware: bool = False) -> Starlette:
    """An app with an endpoint that blocks the loop."""

    async def endpoint(request: Request) -> Response:
        await anyio.lowlevel.checkpoint()
        block(0.25)
        return PlainTextResponse("ok")

    async def dispatch(request: Request, call_next: Any) -> Response:
        response: Response = await call_next(request)
        return response

    return Starlette(
        routes=[Route("/blocks", endpoint)],
        middleware=[Middleware(BaseHTTPMiddleware, dispatch=dispatch)] if middleware else [],
    )


def monitor_of(sandboxed: SandboxedApp) -> Any:
    """Return the monitor of a wrapped app."""
    assert sandboxed._runtime is not None
    return sandboxed._runtime.monitor


def threads() -> int:
    """Count the monitor threads."""
    return sum(thread.name == "sandboxpool loop monitor" for thread in threading.enumerate())


async def no_threads() -> None:
    """Wait until no monitor thread is left."""
    with anyio.fail_after(5):
        while threads():  # noqa: ASYNC110
            await anyio.sleep(0.01)


@pytest.mark.backend_with_uvloop
@pytest.mark.parametrize("middleware", [False, True])
async def test_names_the_request(middleware: bool, caplog: pytest.LogCaptureFixture) -> None:
    """The request that blocks the loop is named, for how long, and the line; also in a child."""
    caplog.set_level(logging.WARNING)
    async with wrap(app_that_blocks(middleware=middleware), stall_after=0.05) as sandboxed:
        answer = await get(sandboxed, "/blocks", query_string=b"password=secret")
        assert answer.status == 200
        monitor = monitor_of(sandboxed)
        with anyio.fail_after(5):
            while monitor.last is None:  # noqa: ASYNC110
                await anyio.sleep(0.01)
        stall = monitor.last
        assert stall.path == "/blocks"
        assert isinstance(stall.lease_id, int)
        assert 0.15 < stall.seconds < 2
        assert "# the blocking line" in stall.stack
        assert sandboxed.statistics().stalls == 1
    first, second = (r.getMessage() for r in caplog.records if r.name == "sandboxpool.monitor")
    assert "the event loop has been blocked for 0." in first
    assert "by request GET /blocks (lease " in first
    assert "# the blocking line" in first
    assert second.startswith("the event loop is free again; request GET /blocks (lease ")
    assert "secret" not in first + second
    assert sandboxed.statistics().stalls == 1
    await no_threads()


async def test_outside_of_any_request(caplog: pytest.LogCaptureFixture) -> None:
    """A stall that is no request's is named as such."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(send)

    async with wrap(app, stall_after=0.05, lifespan="off") as sandboxed:
        await anyio.sleep(0.02)
        block(0.25)
        await anyio.sleep(0.1)
        assert sandboxed.statistics().stalls == 1
        assert monitor_of(sandboxed).last.path is None
    assert "by code outside of any request" in caplog.text


@pytest.mark.backend_with_uvloop
async def test_no_false_alarm(caplog: pytest.LogCaptureFixture) -> None:
    """Neither an idle loop nor one that is merely busy is blocked."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        until = time.monotonic() + 0.3
        while time.monotonic() < until:
            sum(range(1000))
            await anyio.lowlevel.checkpoint()
        await respond(send)

    async with wrap(app, stall_after=0.1, lifespan="off") as sandboxed:
        await anyio.sleep(0.3)
        assert (await get(sandboxed)).status == 200
        assert sandboxed.statistics().stalls == 0
    assert caplog.records == []


@pytest.mark.parametrize("uvloop", [False, True])
def test_a_loop_that_does_not_run(uvloop: bool, caplog: pytest.LogCaptureFixture) -> None:
    """A loop that nobody runs at the moment, as between two tests, is not blocked."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(send)

    maker: Any = pytest.importorskip("uvloop") if uvloop else asyncio
    loop = maker.new_event_loop()
    sandboxed = wrap(app, stall_after=0.05, lifespan="off")
    try:
        loop.run_until_complete(sandboxed.open())
        loop.run_until_complete(asyncio.sleep(0.05))
        block(0.2)
        loop.run_until_complete(asyncio.sleep(0.05))
        assert sandboxed.statistics().stalls == 0
        loop.run_until_complete(sandboxed.aclose())
    finally:
        loop.close()
    assert caplog.records == []


async def test_thread_ends_with_the_app() -> None:
    """The thread ends when the app is closed, and `stall_after=None` starts none."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(send)

    async with wrap(app, stall_after=0.02, lifespan="off"):
        assert threads() == 1
    await no_threads()
    async with wrap(app, stall_after=None, lifespan="off"):
        assert threads() == 0


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_thread_ends_with_the_loop(backend: str) -> None:
    """The thread ends, too, when the loop is gone without a goodbye."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(send)

    async def main() -> None:
        assert (await get(wrap(app, stall_after=0.02, lifespan="off"))).status == 200
        assert threads() == 1

    anyio.run(main, backend=backend)
    until = time.monotonic() + 5
    while threads() and time.monotonic() < until:
        time.sleep(0.01)
    assert threads() == 0


async def test_failed_open_leaves_no_thread() -> None:
    """A start that fails leaves no thread behind."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no"})

    sandboxed = wrap(app, stall_after=0.02)
    with pytest.raises(LifespanStartupError):
        await sandboxed.open()
    assert threads() == 0


async def test_two_requests(caplog: pytest.LogCaptureFixture) -> None:
    """Of several requests in flight the one that blocks is named, not one that waits."""
    gate = anyio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/waits":
            await gate.wait()
        else:
            block(0.2)
        await respond(send)

    async with wrap(app, stall_after=0.05, lifespan="off") as sandboxed:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(Connection(sandboxed, "/waits").run)
            await settle()
            await anyio.sleep(0.02)
            await get(sandboxed, "/blocks")
            gate.set()
        await anyio.sleep(0.1)
        assert monitor_of(sandboxed).last.path == "/blocks"
    assert "/waits" not in caplog.text
