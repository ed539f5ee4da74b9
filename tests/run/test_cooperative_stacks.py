"""Where a blocked request is, and who blocks the loop all the same."""

from __future__ import annotations

import ctypes
import logging
import sys
import time
from functools import partial
from typing import Any

import anyio
import pytest
from greenlet import greenlet
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from sandboxpool import wrap
from sandboxpool._context import RequestLease
from sandboxpool._stacks import stack_of
from tests.wrap.client import respond

from .cooperative import PATIENCE, Gate, ask, calling, cooperative
from .cooperative import sleep_hooked as sleep_hooked

pytestmark = pytest.mark.backend_with_uvloop


def leases_of(sandboxed: Any) -> list[RequestLease]:
    """Return the leases of the requests in flight."""
    return list(sandboxed._runtime.in_flight.values())


def outer(function: Any) -> None:
    """Call a function."""
    function()  # in the outer


def in_greenlet(function: Any) -> None:
    """Call a function in a greenlet, as SQLAlchemy does."""
    greenlet(function).switch()  # in the greenlet's parent


@pytest.mark.parametrize("by", [outer, in_greenlet])
async def test_stack_of_a_blocked_request(by: Any) -> None:
    """It has the frames of the app down to the blocking call, and none of the machinery."""
    gate = Gate()
    async with (
        cooperative(calling(partial(by, gate.pass_through))) as sandboxed,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(partial(ask, sandboxed))
        await gate.reached.wait()
        (lease,) = leases_of(sandboxed)
        stack = stack_of(lease)
        gate.opened.set()
    assert "in app\n    result = function()" in stack
    assert ("# in the outer" in stack) == (by is outer)
    assert ("# in the greenlet's parent" in stack) == (by is in_greenlet)
    assert stack.endswith("# the blocking line") or "^^^" in stack.splitlines()[-1]
    assert "run/cooperative.py" not in stack.replace("tests/run/cooperative.py", "")
    assert lease.blocked is None


async def test_stack_of_a_child() -> None:
    """Where a child of the request blocks, its stack is shown; afterwards the request's own."""
    gate, again = Gate(), anyio.Event()

    async def child() -> None:
        gate.pass_through()
        await again.wait()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async with anyio.create_task_group() as children:
            children.start_soon(child)
        await respond(send)

    async with cooperative(app) as sandboxed, anyio.create_task_group() as tasks:
        tasks.start_soon(partial(ask, sandboxed))
        await gate.reached.wait()
        (lease,) = leases_of(sandboxed)
        assert "# the blocking line" in stack_of(lease)
        gate.opened.set()
        with anyio.fail_after(PATIENCE):
            while lease.blocked is not None:
                await anyio.sleep(0.001)
        assert "in app" in stack_of(lease)
        assert "# the blocking line" not in stack_of(lease)
        again.set()


async def test_watchdog_shows_where(caplog: pytest.LogCaptureFixture) -> None:
    """`slow_after` and the cut-off log the line that sleeps, and end there."""

    def block() -> None:
        time.sleep(3600)  # the sleeping line

    app = calling(partial(outer, block))
    async with cooperative(app, slow_after=0.02, execution_timeout=0.06) as sandboxed:
        assert (await ask(sandboxed)).status == 504
    slow, cut = (r.getMessage() for r in caplog.records if r.name == "sandboxpool.watchdog")
    assert "has been running for" in slow
    assert "is cut off after" in cut
    for text in (slow, cut):
        assert "# in the outer" in text
        assert "# the sleeping line" in text
        # The hook is the last one to be shown.
        assert text.count("await_(") == 1
        assert "hooks/_sleep.py" in text
        assert "anyio/_backends" not in text


# --- who blocks the loop ------------------------------------------------------------------------


def usleep(seconds: float) -> None:
    """Block in C code, which no hook reaches."""
    ctypes.CDLL(None).usleep(int(seconds * 1e6))  # the line that no hook reaches


def app_that_stalls(*, child: bool) -> Starlette:
    """Return an app whose endpoint blocks the loop, in a child task or in its own."""

    async def endpoint(request: Request) -> Response:
        await anyio.lowlevel.checkpoint()
        usleep(0.25)
        return PlainTextResponse("ok")

    async def dispatch(request: Request, call_next: Any) -> Response:
        response: Response = await call_next(request)
        return response

    return Starlette(
        routes=[Route("/stalls", endpoint)],
        middleware=[Middleware(BaseHTTPMiddleware, dispatch=dispatch)] if child else [],
    )


@pytest.mark.skipif(sys.platform == "win32", reason="there is no usleep()")
@pytest.mark.parametrize("child", [False, True])
async def test_monitor_names_the_request(child: bool, caplog: pytest.LogCaptureFixture) -> None:
    """A call that no hook reaches stalls the loop: the monitor names request, line, and reason."""
    caplog.set_level(logging.WARNING)
    async with cooperative(app_that_stalls(child=child), stall_after=0.05) as sandboxed:
        assert (await ask(sandboxed, "/stalls")).status == 200
        monitor: Any = sandboxed._runtime.monitor  # type: ignore[union-attr]
        with anyio.fail_after(PATIENCE):
            while monitor.last is None:
                await anyio.sleep(0.01)
        assert monitor.last.path == "/stalls"
    first, second = (r.getMessage() for r in caplog.records if r.name == "sandboxpool.monitor")
    assert "by request GET /stalls (lease " in first
    assert "# the line that no hook reaches" in first
    assert first.endswith(
        "The request is cooperative: no installed hook reaches this call, or it only computes."
    )
    assert "no installed hook" not in second


async def test_monitor_after_a_blocking_call(caplog: pytest.LogCaptureFixture) -> None:
    """A request is named also where it has blocked before, in the same step."""

    async def app(connection: Any, receive: Any, send: Any) -> None:
        time.sleep(0.001)
        usleep(0.25)
        await respond(send)

    async with cooperative(app, stall_after=0.05) as sandboxed:
        assert (await ask(sandboxed, "/stalls")).status == 200
    assert "by request GET /stalls (lease " in caplog.text


async def test_monitor_in_loop_mode(caplog: pytest.LogCaptureFixture) -> None:
    """A request that is not cooperative gets no such advice."""
    async with wrap(app_that_stalls(child=False), stall_after=0.05) as sandboxed:
        assert (await ask(sandboxed, "/stalls")).status == 200
    assert "has been blocked for" in caplog.text
    assert "no installed hook" not in caplog.text


async def test_monitor_of_a_busy_loop(caplog: pytest.LogCaptureFixture) -> None:
    """When many requests are due in one moment, none of them is said to block the loop."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        gate.pass_through()
        until = time.monotonic() + 0.002
        while time.monotonic() < until:
            pass
        await respond(send)

    gate, many = Gate(), 150
    async with (
        cooperative(app, stall_after=0.05, max_size=many) as sandboxed,
        anyio.create_task_group() as tasks,
    ):
        for _ in range(many):
            tasks.start_soon(partial(ask, sandboxed))
        with anyio.fail_after(PATIENCE):
            while len(leases_of(sandboxed)) < many:
                await anyio.lowlevel.checkpoint()
        gate.opened.set()
    assert "blocked for" not in caplog.text


async def test_monitor_does_not_blame_the_blocked(caplog: pytest.LogCaptureFixture) -> None:
    """A request that waits cooperatively is not the one that blocks the loop."""
    gate = Gate()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/waits":
            gate.pass_through()
        await respond(send)

    async with (
        cooperative(app, stall_after=0.05) as sandboxed,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(partial(ask, sandboxed, "/waits"))
        await gate.reached.wait()
        await anyio.sleep(0.02)
        usleep(0.25)
        await anyio.sleep(0.05)
        gate.opened.set()
    assert "by code outside of any request" in caplog.text
    assert "/waits" not in caplog.text


async def test_monitor_of_an_app_inside(caplog: pytest.LogCaptureFixture) -> None:
    """Neither is one that is left in the middle of a step by the cooperative request around it."""
    gate = Gate()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        gate.pass_through()
        await respond(send)

    async with wrap(app, lifespan="off", stall_after=0.05) as inside:

        async def around(scope: Any, receive: Any, send: Any) -> None:
            await inside(scope, receive, send)

        async with cooperative(around) as sandboxed, anyio.create_task_group() as tasks:
            tasks.start_soon(partial(ask, sandboxed, "/waits"))
            await gate.reached.wait()
            await anyio.sleep(0.02)
            usleep(0.25)
            await anyio.sleep(0.05)
            gate.opened.set()
    assert "by code outside of any request" in caplog.text
    assert "/waits" not in caplog.text
