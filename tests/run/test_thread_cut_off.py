"""A request in a thread is cut off in time, and a thread that does not stop is left behind."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any

import anyio
import pytest
from fastapi import FastAPI

from sandboxpool import (
    SandboxedApp,
    ThreadLimitError,
    context,
    current_lease,
    hooks,
)
from tests.wrap.client import Connection, get, respond

from .threads import PATIENCE, in_threads, sandbox_threads, until, wait_for


def retired(sandboxed: SandboxedApp) -> dict[str, int]:
    """Return the reasons for which sandboxes were retired."""
    return {reason: n for reason, n in sandboxed.statistics().pool.retired.items() if n}


class Blocking:
    """A raw app that blocks its thread until it is let go on."""

    def __init__(self) -> None:
        self.blocked = threading.Event()
        self.go_on = threading.Event()
        self.after: list[str] = []

    def app(self) -> Any:
        """Return the app: a function, because that is shared by all sandboxes."""

        async def blocking(scope: Any, receive: Any, send: Any) -> None:
            if scope["path"] != "/blocks":
                await respond(send, b"fine")
                return
            self.blocked.set()
            try:
                self.go_on.wait(PATIENCE)
                self.after.append("went on")
            except BaseException as error:
                self.after.append(type(error).__name__)
                raise

        return blocking


@pytest.mark.backend_with_uvloop
async def test_blocked_thread(caplog: pytest.LogCaptureFixture) -> None:
    """It is answered 504 in time and abandoned; its code gets an exception when it goes on."""
    blocking = Blocking()
    options: dict[str, Any] = {"execution_timeout": 0.1, "max_size": 2}
    async with in_threads(blocking.app(), **options) as sandboxed:
        connection = await get(sandboxed, "/blocks")
        assert connection.status == 504
        assert sandboxed.statistics().abandoned == 1
        assert (await get(sandboxed)).text == "fine"
        blocking.go_on.set()
        await until(lambda: sandboxed.statistics().abandoned == 0)
        assert blocking.after == ["AbandonedError"]
        assert retired(sandboxed) == {"expired": 1}
    (told,) = [record for record in caplog.records if "does not stop" in record.message]
    assert "it is abandoned, and ends by itself when what it is in returns" in told.message
    assert "(1 threads are abandoned)" in told.message
    assert "self.go_on.wait(PATIENCE)" in told.message
    await until(lambda: not sandbox_threads())


async def test_blocked_worker_thread() -> None:
    """A `def` endpoint that blocks is answered in time, too, and gets the exception."""
    app = FastAPI()
    go_on = threading.Event()
    after: list[str] = []

    @app.get("/")
    def endpoint() -> None:
        try:
            go_on.wait(PATIENCE)
            after.append("went on")
        except BaseException as error:
            after.append(type(error).__name__)
            raise

    async with in_threads(app, execution_timeout=0.1) as sandboxed:
        began = time.monotonic()
        assert (await get(sandboxed)).status == 504
        assert time.monotonic() - began < 1
        assert sandboxed.statistics().abandoned == 1
        go_on.set()
        await until(lambda: after == ["AbandonedError"])
        await until(lambda: sandboxed.statistics().abandoned == 0)


async def test_app_that_awaits_is_cancelled() -> None:
    """An app that awaits is cancelled, cleans up and says so; no thread is left behind."""
    cleaned: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(0.02)
                context.set("still", "mine")
                cleaned.append(context.get("still"))

    async with in_threads(app, execution_timeout=0.05) as sandboxed:
        assert (await get(sandboxed)).status == 504
        assert cleaned == ["mine"]
        assert sandboxed.statistics().abandoned == 0
        assert retired(sandboxed) == {"expired": 1}


async def test_cancelled_from_outside() -> None:
    """Who cancels the server's task cancels the app in its thread, and gets the cancellation."""
    started, ended = threading.Event(), threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        started.set()
        try:
            await anyio.sleep_forever()
        finally:
            ended.set()

    async with in_threads(app) as sandboxed:
        async with anyio.create_task_group() as tasks:
            connection = Connection(sandboxed)
            tasks.start_soon(connection.run)
            await wait_for(started)
            tasks.cancel_scope.cancel()
        assert ended.is_set()
        assert retired(sandboxed) == {"cancelled": 1}
        assert sandboxed.statistics().abandoned == 0


async def test_clean_up_that_takes_long() -> None:
    """A clean-up that takes longer than its caller waits goes on, and the thread ends after it."""
    cleaned = threading.Event()
    order: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        context.defer(order.append, "deferred")
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.sleep(1.3)
                order.append("cleaned")
                cleaned.set()

    async with in_threads(app, execution_timeout=0.05) as sandboxed:
        assert (await get(sandboxed)).status == 504
        assert not cleaned.is_set()
        await wait_for(cleaned)
        await until(lambda: sandboxed.statistics().pool.closing == 0)
        assert sandboxed.statistics().abandoned == 0
        assert order == ["cleaned", "deferred"]


async def test_swallowed_cancellation() -> None:
    """An app that swallows its cancellation and answers is taken at its word, and retired."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await anyio.sleep_forever()
        except anyio.get_cancelled_exc_class():
            pass
        with anyio.CancelScope(shield=True):
            await respond(send, b"all the same")

    async with in_threads(app, execution_timeout=0.05) as sandboxed:
        assert (await get(sandboxed)).text == "all the same"
        assert retired(sandboxed) == {"expired": 1}


async def test_deferred_of_an_abandoned_thread() -> None:
    """What was deferred runs when the abandoned thread comes to its end."""
    blocked, go_on, deferred = threading.Event(), threading.Event(), threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        context.defer(deferred.set)
        blocked.set()
        go_on.wait(PATIENCE)

    async with in_threads(app, execution_timeout=0.05) as sandboxed:
        await get(sandboxed)
        assert not deferred.is_set()
        go_on.set()
        await wait_for(deferred)


async def test_max_abandoned(caplog: pytest.LogCaptureFixture) -> None:
    """With as many abandoned threads as allowed no sandbox is made, until one has ended."""
    blocking = Blocking()
    options: dict[str, Any] = {"execution_timeout": 0.05, "max_abandoned": 1, "max_size": 1}
    async with in_threads(blocking.app(), **options) as sandboxed:
        assert (await get(sandboxed, "/blocks")).status == 504
        connection = await get(sandboxed)
        assert connection.status == 503
        assert connection.text == "Service unavailable: a sandbox could not be made.\n"
        errors = [record.message for record in caplog.records]
        assert any(
            "1 threads of" in text
            and "are still in calls that were cut off, as many as max_abandoned=1 allows, so no "
            "further sandbox is made. The log says where each of them hangs: give those calls a "
            "time limit of their own, or raise max_abandoned."
            in text
            for text in errors
        )
        blocking.go_on.set()
        await until(lambda: sandboxed.statistics().abandoned == 0)
        # The pool pauses after a failed attempt before it makes the next one.
        with anyio.fail_after(PATIENCE):
            while (await get(sandboxed)).status != 200:
                await anyio.sleep(0.01)


async def test_lease_cancel_from_the_thread() -> None:
    """A request may cut itself off from its own thread."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        current_lease().cancel()
        await anyio.sleep_forever()

    async with in_threads(app) as sandboxed:
        assert (await get(sandboxed)).status == 504


async def test_extend_from_the_thread() -> None:
    """A request moves its deadline from its own thread."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        current_lease().extend(None)
        await anyio.sleep(0.3)
        await respond(send)

    async with in_threads(app, execution_timeout=0.15) as sandboxed:
        assert (await get(sandboxed)).status == 200


@pytest.mark.parametrize("hooked", [False, True], ids=["plain", "hooks installed"])
async def test_slow_request_shows_its_stack(hooked: bool, caplog: pytest.LogCaptureFixture) -> None:
    """The log of a slow request shows where it is, whether it blocks, awaits or is in a worker."""
    app = FastAPI()

    @app.get("/blocks")
    async def blocks() -> None:
        time.sleep(0.6)

    @app.get("/awaits")
    async def awaits() -> None:
        await anyio.sleep(0.6)

    @app.get("/works")
    def works() -> None:
        time.sleep(0.6)

    caplog.set_level(logging.WARNING, "sandboxpool.watchdog")
    hooks.uninstall()
    if hooked:  # another app of the process may run cooperatively
        hooks.install()
    try:
        async with in_threads(app, slow_after=0.05) as sandboxed:
            for path in ("/blocks", "/awaits", "/works"):
                await get(sandboxed, path)
    finally:
        hooks.uninstall()
    told = [record.message for record in caplog.records if record.name == "sandboxpool.watchdog"]
    assert len(told) == 3
    assert "in blocks\n    time.sleep(0.6)" in told[0]
    assert "in awaits\n    await anyio.sleep(0.6)" in told[1]
    if "trio" not in told[2]:
        assert "in works\n    time.sleep(0.6)" in told[2]


async def test_drain_timeout() -> None:
    """A shutdown waits for a blocked request for drain_timeout, answers 503, and goes on."""
    blocking = Blocking()
    sandboxed = in_threads(blocking.app(), drain_timeout=0.1)
    await sandboxed.open()
    async with anyio.create_task_group() as tasks:
        connection = Connection(sandboxed, "/blocks")
        tasks.start_soon(connection.run)
        await wait_for(blocking.blocked)
        began = time.monotonic()
        await sandboxed.aclose()
        assert time.monotonic() - began < 2
    assert connection.status == 503
    blocking.go_on.set()
    await until(lambda: not sandbox_threads())


def test_error_is_exported() -> None:
    """The error of the limits is public, and a RuntimeError."""
    assert issubclass(ThreadLimitError, RuntimeError)


async def test_idle_worker_threads_hold_up_nothing() -> None:
    """A sandbox that is abandoned ends although it has idle worker threads, with hooks, too."""
    app = FastAPI()
    go_on = threading.Event()

    @app.get("/def")
    def endpoint() -> None: ...

    @app.get("/blocks")
    async def blocks() -> None:
        go_on.wait(PATIENCE)

    hooks.install()
    try:
        async with in_threads(app, execution_timeout=0.1) as sandboxed:
            await get(sandboxed, "/def")
            assert (await get(sandboxed, "/blocks")).status == 504
            assert sandboxed.statistics().abandoned == 1
            go_on.set()
            await until(lambda: sandboxed.statistics().abandoned == 0)
    finally:
        hooks.uninstall()
