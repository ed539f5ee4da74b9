"""What happens to a request that takes too long."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
import time
from typing import Any

import anyio
import anyio.lowlevel
import anyio.to_thread
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

import sandboxpool
from sandboxpool import (
    ExecutionTimeoutError,
    OptionError,
    SandboxedApp,
    context,
    current_lease,
    wrap,
)

from .client import Connection, get, respond, settle
from .test_untouched import retired

ASYNCIO = pytest.mark.parametrize("anyio_backend", [("asyncio", {})], indirect=True)


def raw(app: Any, **options: Any) -> SandboxedApp:
    """Wrap a raw app that has no lifespan, in one sandbox, with a short deadline."""
    options = {"execution_timeout": 0.03, "max_size": 1, "stall_after": None, **options}
    return wrap(app, lifespan="off", **options)


async def test_504(caplog: pytest.LogCaptureFixture) -> None:
    """A request that has sent nothing is cancelled, and answered 504; its sandbox is replaced."""
    cleaned = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/quick":
            await respond(send)
            return
        try:
            await anyio.sleep_forever()  # the culprit
        finally:
            cleaned.append(current_lease().path)

    async with raw(app) as sandboxed:
        answer = await get(sandboxed, "/slow", headers=[(b"cookie", b"secret")])
        assert answer.status == 504
        assert answer.text.startswith("Gateway timeout: the request took longer than")
        assert cleaned == ["/slow"]
        assert retired(sandboxed) == {"expired": 1}
        assert sandboxed.statistics().cut_off == 1
        assert sandboxed.statistics().concurrency == 0
        assert (await get(sandboxed, "/quick")).status == 200
        # Nothing of it is left for what the server's task does next.
        await anyio.lowlevel.checkpoint()
    (record,) = [r for r in caplog.records if r.levelno >= logging.ERROR]
    assert record.name == "sandboxpool.watchdog"
    assert "request GET /slow (lease " in record.getMessage()
    assert "is cut off after 0.0" in record.getMessage()
    assert "# the culprit" in record.getMessage()
    assert "secret" not in record.getMessage()


async def test_cut_off_after_the_start() -> None:
    """One whose response has begun is cut off: the server gets an error and ends the connection."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x", "more_body": True})
        await anyio.sleep_forever()

    async with raw(app) as sandboxed:
        connection = Connection(sandboxed, "/x")
        with pytest.raises(ExecutionTimeoutError, match=r"GET /x .* was cut off after its resp"):
            await connection.run()
        assert connection.types == ["http.response.start", "http.response.body"]
        assert retired(sandboxed) == {"expired": 1}


@pytest.mark.parametrize("extensions", [{}, {"websocket.http.response": {}}])
@pytest.mark.parametrize("when", ["before connect", "before accept", "after accept", "closed"])
async def test_websocket(when: str, extensions: Any) -> None:
    """A websocket is denied with 504, or closed with 1011 where that cannot be done."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if when != "before connect":
            await receive()
        if when in ("after accept", "closed"):
            await send({"type": "websocket.accept"})
        if when == "closed":
            await send({"type": "websocket.close", "code": 1000})
        await anyio.sleep_forever()

    async with raw(app) as sandboxed:
        connection = Connection(sandboxed, type="websocket", extensions=extensions)
        if when == "closed":
            with pytest.raises(ExecutionTimeoutError):
                await connection.run()
            assert connection.types == ["websocket.accept", "websocket.close"]
            assert connection.sent[-1]["code"] == 1000
            return
        await connection.run()
        if when == "after accept":
            assert connection.types == ["websocket.accept", "websocket.close"]
            assert connection.sent[-1]["code"] == 1011
        elif extensions:
            assert connection.status == 504
            assert connection.types[0] == "websocket.http.response.start"
        else:
            assert connection.types == ["websocket.close"]
            assert connection.sent[0]["code"] == 1011


async def test_websocket_whose_client_is_gone() -> None:
    """A client that has left gets no close message: some servers take that for an error."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})
        assert (await receive())["type"] == "websocket.disconnect"
        await anyio.sleep_forever()

    async with raw(app) as sandboxed:
        connection = Connection(sandboxed, type="websocket")
        connection.hang_up()
        try:
            await connection.run()
        except ExecutionTimeoutError:
            pass
        assert connection.types == ["websocket.accept"]


async def test_slow_after(caplog: pytest.LogCaptureFixture) -> None:
    """A slow request is logged once, with its age and the line that it is at, and goes on."""
    gate = anyio.Event()

    async def deep() -> None:
        await gate.wait()  # the slow line

    async def endpoint(request: Request) -> Response:
        await deep()
        return PlainTextResponse("ok")

    app = Starlette(routes=[Route("/slow", endpoint)])
    async with (
        wrap(app, max_size=1, slow_after=0.02, stall_after=None) as sandboxed,
        anyio.create_task_group() as tasks,
    ):
        connection = Connection(sandboxed, "/slow", query_string=b"password=secret")
        tasks.start_soon(connection.run)
        await anyio.sleep(0.1)
        gate.set()
    assert connection.status == 200
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "request GET /slow (lease " in record.getMessage()
    assert "has been running for 0.0" in record.getMessage()
    assert "# the slow line" in record.getMessage()
    assert "secret" not in record.getMessage()
    assert sandboxed.statistics().cut_off == 0


# --- extend() -----------------------------------------------------------------------------


@pytest.mark.parametrize("seconds", [5, None])
@pytest.mark.parametrize("where", ["app", "child", "thread"])
async def test_extend(seconds: float | None, where: str) -> None:
    """A request gives itself more time, from wherever its code runs."""

    async def child() -> None:
        current_lease().extend(seconds)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if where == "thread":
            await anyio.to_thread.run_sync(current_lease().extend, seconds)
        elif where == "child":
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(child)
        else:
            current_lease().extend(seconds)
        await anyio.sleep(0.08)
        await respond(send)

    async with raw(app) as sandboxed:
        assert (await get(sandboxed)).status == 200
        assert retired(sandboxed) == {}


@pytest.mark.parametrize("execution_timeout", [60, None])
@pytest.mark.parametrize("where", ["app", "child", "thread"])
async def test_shorten(execution_timeout: float | None, where: str) -> None:
    """Or less; also where there is no limit otherwise, and from a thread."""

    async def child() -> None:
        current_lease().extend(0.02)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if where == "thread":
            await anyio.to_thread.run_sync(current_lease().extend, 0.02)
        elif where == "child":
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(child)
        else:
            current_lease().extend(0.02)
        await anyio.sleep_forever()

    async with raw(app, execution_timeout=execution_timeout) as sandboxed:
        assert (await get(sandboxed)).status == 504


@pytest.mark.parametrize("seconds", [-1, float("nan"), "5", True])
async def test_extend_refuses(seconds: Any) -> None:
    """What is no number of seconds is refused where it is given."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        with pytest.raises(OptionError, match="give a number of seconds"):
            current_lease().extend(seconds)
        await respond(send)

    async with raw(app, execution_timeout=60) as sandboxed:
        assert (await get(sandboxed)).status == 200


async def test_extend_while_deferred(caplog: pytest.LogCaptureFixture) -> None:
    """A deferred callback that asks for more time leaves nothing behind in the watchdog."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        lease = current_lease()
        context.defer(lambda: lease.extend(0.01))
        await respond(send)

    async with raw(app, execution_timeout=60) as sandboxed:
        assert (await get(sandboxed)).status == 200
        await anyio.sleep(0.05)
        assert sandboxed._runtime is not None
        watchdog: Any = sandboxed._runtime.watchdog
        assert not watchdog._leases
    assert caplog.records == []


# --- cancellation, exactly ------------------------------------------------------------------


async def test_swallowed(caplog: pytest.LogCaptureFixture) -> None:
    """An app that swallows the cancellation and answers is let; its sandbox is retired."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        with anyio.CancelScope(shield=True):
            try:
                await asyncio_or_trio_sleep()
            except BaseException:
                pass
            await respond(send, b"my own answer")

    async def asyncio_or_trio_sleep() -> None:
        with anyio.CancelScope(shield=False):
            await anyio.sleep(0.1)

    async with raw(app) as sandboxed:
        answer = await get(sandboxed)
        assert (answer.status, answer.text) == (200, "my own answer")
        assert retired(sandboxed) == {"expired": 1}
        await anyio.lowlevel.checkpoint()


@ASYNCIO
async def test_insists(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that swallows it and goes on is cancelled again."""
    monkeypatch.setattr("sandboxpool._watchdog._INSIST", 0.02)
    swallowed: list[BaseException] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        while len(swallowed) < 2:
            try:
                await asyncio.sleep(10)
            except asyncio.CancelledError as error:
                swallowed.append(error)
        await asyncio.sleep(10)

    async with raw(app) as sandboxed:
        assert (await get(sandboxed)).status == 504
        assert sandboxed.statistics().cut_off == 1
    task = asyncio.current_task()
    assert task is not None
    if sys.version_info >= (3, 11):
        assert task.cancelling() == 0
    assert len([r for r in caplog.records if "has not stopped" in r.getMessage()]) == 2


@ASYNCIO
@pytest.mark.parametrize("passes", range(6))
async def test_no_stray_cancellation(passes: int) -> None:
    """A deadline in the tick of the end cancels nothing that comes after it."""
    gate = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await gate.wait()
        await respond(send)

    async with raw(app, execution_timeout=60) as sandboxed:
        connection = Connection(sandboxed)
        after: list[Any] = []

        async def serve() -> None:
            try:
                await connection.run()
            except ExecutionTimeoutError:
                assert connection.types[0] == "http.response.start"
            await asyncio.sleep(0)
            task = asyncio.current_task()
            assert task is not None
            after.append(task.cancelling() if sys.version_info >= (3, 11) else 0)

        task = asyncio.create_task(serve())
        await settle()
        runtime = sandboxed._runtime
        assert runtime is not None
        (lease,) = runtime.in_flight.values()
        gate.set()
        for _ in range(passes):
            await asyncio.sleep(0)
        runtime.cut_off(lease)
        await task
        assert after == [0]
        assert connection.status in (200, 504)


@pytest.mark.parametrize("first", ["outer", "deadline"])
async def test_outer_cancellation_at_the_same_time(first: str) -> None:
    """Cancelled from outside in the same instant, the request is cancelled, not answered."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await anyio.sleep_forever()

    async with raw(app, execution_timeout=60) as sandboxed:
        connection = Connection(sandboxed)
        outcome: list[str] = []

        async def serve() -> None:
            try:
                await connection.run()
                await anyio.lowlevel.checkpoint()
                outcome.append("went on")
            except anyio.get_cancelled_exc_class():
                outcome.append("cancelled")
                raise

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(serve)
            await settle()
            runtime = sandboxed._runtime
            assert runtime is not None
            (lease,) = runtime.in_flight.values()
            if first == "outer":
                tasks.cancel_scope.cancel()
            runtime.cut_off(lease)
            tasks.cancel_scope.cancel()
        assert outcome == ["cancelled"]


@ASYNCIO
@pytest.mark.skipif(sys.version_info < (3, 11), reason="3.10 cannot tell them apart")
@pytest.mark.parametrize("first", ["outer", "deadline"])
async def test_outer_task_cancel_at_the_same_time(first: str) -> None:
    """The same with `Task.cancel()`, which is counted."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(10)

    async with raw(app, execution_timeout=60) as sandboxed:
        connection = Connection(sandboxed)
        task = asyncio.create_task(connection.run())
        await settle()
        runtime = sandboxed._runtime
        assert runtime is not None
        (lease,) = runtime.in_flight.values()
        if first == "outer":
            task.cancel()
        runtime.cut_off(lease)
        if first == "deadline":
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert connection.sent == []
        assert task.cancelling() == 1


async def test_under_base_http_middleware() -> None:
    """A request under `BaseHTTPMiddleware`, which runs in a child task, is cut off alike."""
    cleaned = []

    async def dispatch(request: Request, call_next: Any) -> Response:
        response: Response = await call_next(request)
        return response

    async def endpoint(request: Request) -> Response:
        try:
            await anyio.sleep_forever()
        finally:
            cleaned.append(True)
        return PlainTextResponse("never")

    app = Starlette(
        routes=[Route("/", endpoint)],
        middleware=[Middleware(BaseHTTPMiddleware, dispatch=dispatch)],
    )
    async with wrap(app, max_size=1, execution_timeout=0.03, stall_after=None) as sandboxed:
        assert (await get(sandboxed)).status == 504
        assert cleaned == [True]
        await anyio.lowlevel.checkpoint()


async def test_siblings() -> None:
    """Others in flight are left alone, and one that is due later is cut off later."""
    gate = anyio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/patient":
            current_lease().extend(None)
        await gate.wait()
        await respond(send)

    async with (
        raw(app, max_size=3) as sandboxed,
        anyio.create_task_group() as tasks,
    ):
        patient = Connection(sandboxed, "/patient")
        tasks.start_soon(patient.run)
        connections = [Connection(sandboxed), Connection(sandboxed)]
        for connection in connections:
            tasks.start_soon(connection.run)
        for connection in connections:
            await connection.over.wait()
        assert [connection.status for connection in connections] == [504, 504]
        assert sandboxed.statistics().concurrency == 1
        gate.set()
        await patient.over.wait()
        assert patient.status == 200
        assert retired(sandboxed) == {"expired": 2}


async def test_late_watchdog(caplog: pytest.LogCaptureFixture) -> None:
    """After a blocked loop everything that has expired is cut off, once, and nothing else."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/blocks":
            time.sleep(0.15)  # noqa: ASYNC251
        if scope["path"] == "/later":
            current_lease().extend(60)
        await anyio.sleep(60 if scope["path"] != "/later" else 0.2)
        await respond(send)

    async with raw(app, max_size=5, execution_timeout=0.05) as sandboxed:
        connections = [Connection(sandboxed, path) for path in ("/a", "/b", "/later", "/blocks")]
        async with anyio.create_task_group() as tasks:
            for connection in connections:
                tasks.start_soon(connection.run)
        assert [connection.status for connection in connections] == [504, 504, 200, 504]
        assert sandboxed.statistics().cut_off == 3
    assert len([r for r in caplog.records if "is cut off" in r.getMessage()]) == 3


async def test_timed_out_in_the_queue_does_not_count() -> None:
    """The time in the queue is no time of execution."""
    gate = anyio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/first":
            current_lease().extend(None)
            await gate.wait()
        else:
            await anyio.sleep(0.01)
        await respond(send)

    async with (
        raw(app, execution_timeout=0.05) as sandboxed,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(get, sandboxed, "/first")
        await settle()
        waits = Connection(sandboxed, "/second")
        tasks.start_soon(waits.run)
        await anyio.sleep(0.08)
        gate.set()
        await waits.over.wait()
        assert waits.status == 200


# --- a watchdog of the user's --------------------------------------------------------------


class Recorder:
    """A watchdog that notes what it is told."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, str]] = []

    def started(self, lease: Any, /) -> None:
        self.calls.append(("started", lease.path))

    def ended(self, lease: Any, /) -> None:
        self.calls.append(("ended", lease.path))

    def changed(self, lease: Any, /) -> None:
        self.calls.append(("changed", lease.path))

    def stop(self) -> None:
        self.calls.append(("stop", ""))


async def test_custom_watchdog() -> None:
    """It is told of each start, each end, each `extend()`, and of the end of all."""
    recorder = Recorder()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/b":
            current_lease().extend(5)
        if scope["path"] == "/c":
            raise KeyError
        await respond(send)

    async with raw(app, watchdog=recorder, execution_timeout=None) as sandboxed:
        await get(sandboxed, "/a")
        await get(sandboxed, "/b")
        with pytest.raises(KeyError):
            await get(sandboxed, "/c")
    assert recorder.calls == [
        ("started", "/a"),
        ("ended", "/a"),
        ("started", "/b"),
        ("changed", "/b"),
        ("ended", "/b"),
        ("started", "/c"),
        ("ended", "/c"),
        ("stop", ""),
    ]


@pytest.mark.parametrize("hook", ["started", "ended", "stop"])
async def test_broken_watchdog(hook: str) -> None:
    """One that raises, which it must not, costs no sandbox and keeps nothing from closing."""

    class Broken(Recorder):
        pass

    def fail(self: Any, *args: Any) -> None:
        raise ZeroDivisionError

    setattr(Broken, hook, fail)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(send)

    async with raw(app, watchdog=Broken(), execution_timeout=None) as sandboxed:
        for _ in range(3):
            try:
                await get(sandboxed)
            except ZeroDivisionError:
                assert hook != "stop"
        assert sandboxed.statistics().concurrency == 0
        await settle()
        assert sandboxed.statistics().pool.in_use == 0


async def test_no_timer_per_request() -> None:
    """A thousand requests with a deadline start no thread, and leave nothing in the watchdog."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(send)

    threads = threading.active_count()
    async with raw(app, execution_timeout=60) as sandboxed:
        for _ in range(1000):
            await get(sandboxed)
        assert threading.active_count() == threads
        assert sandboxed._runtime is not None
        watchdog: Any = sandboxed._runtime.watchdog
        assert not watchdog._leases


async def test_cancel() -> None:
    """`lease.cancel()` cuts the request off as the watchdog would, also from a thread."""
    after: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        lease = current_lease()
        if scope["path"] == "/thread":
            await anyio.to_thread.run_sync(lease.cancel)
        else:
            lease.cancel()
        await anyio.sleep(10)
        after.append("not cancelled")

    async with raw(app, execution_timeout=None) as sandboxed:
        for path in ("/here", "/thread"):
            assert (await get(sandboxed, path)).status == 504
        assert sandboxed.statistics().cut_off == 2
        assert sandboxed.statistics().pool.retired == {"expired": 2}
    assert after == []


def test_watchdog_and_limits() -> None:
    """A watchdog of one's own together with a limit of the built-in one is refused."""

    async def app(scope: Any, receive: Any, send: Any) -> None: ...

    with pytest.raises(
        sandboxpool.OptionError,
        match=r"slow_after=3 is for the built-in watchdog, but watchdog= replaces it: leave out "
        r"slow_after, or have your watchdog do it \(lease\.cancel\(\) cuts a request off\)",
    ):
        sandboxpool.wrap(app, watchdog=Recorder(), slow_after=3)


@pytest.mark.parametrize("passes", range(4))
async def test_cut_off_and_a_scope_around(passes: int) -> None:
    """A scope around the app, cancelled right after the cut-off, gets its own cancellation."""
    leases: list[Any] = []
    left: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        leases.append(current_lease())
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.sleep, 10)
            await anyio.sleep(10)

    async with raw(app, execution_timeout=None) as sandboxed:
        async with anyio.create_task_group() as tasks:
            outer = anyio.CancelScope()

            async def request() -> None:
                with outer:
                    await get(sandboxed)
                left.append("in order")  # a foreign cancellation would have gone on from here

            tasks.start_soon(request)
            await anyio.wait_all_tasks_blocked()
            leases[0].cancel()
            for _ in range(passes):
                await anyio.lowlevel.checkpoint()
            outer.cancel()
        await settle()
        assert left == ["in order"]
        assert sandboxed.statistics().pool.in_use == 0


async def test_a_monitor_that_hardly_ever_looks() -> None:
    """A threshold longer than a thread can wait in one go is no error in the monitor's thread."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(send)

    async with sandboxpool.wrap(app, stall_after=float("inf")) as sandboxed:
        assert (await get(sandboxed)).status == 200
