"""Blocked requests that are ended by somebody else: cancelled, cut off, dropped, collected."""

from __future__ import annotations

import asyncio
import gc
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Generator
from types import coroutine
from typing import Any

import anyio
import anyio.lowlevel
import pytest
import trio

from sandboxpool import current_lease
from sandboxpool._context import RequestLease
from sandboxpool.run.cooperative import await_, drive, stepper
from sandboxpool.run.loop import Running, call_plainly
from tests.wrap.client import Connection, respond
from tests.wrap.test_untouched import retired

from .cooperative import PATIENCE, Gate, ask, calling, cooperative
from .cooperative import sleep_hooked as sleep_hooked

ASYNCIO = pytest.mark.parametrize(
    "anyio_backend",
    [("asyncio", {"use_uvloop": False}), ("asyncio", {"use_uvloop": True})],
    ids=["asyncio", "asyncio+uvloop"],
    indirect=True,
)
FOREVER = 3600.0


# --- cancelled ----------------------------------------------------------------------------------


@pytest.mark.backend_with_uvloop
async def test_cancelled_scope() -> None:
    """A scope around the request cuts a blocked call short; the exception is the backend's own."""
    seen: list[Any] = []
    gate = Gate()

    def block() -> None:
        try:
            gate.pass_through()
        except BaseException as error:
            seen.append(type(error))
            raise
        finally:
            seen.append(current_lease().path)

    async with cooperative(calling(block)) as sandboxed, anyio.create_task_group() as tasks:
        tasks.start_soon(Connection(sandboxed, "/cancelled").run)
        await gate.reached.wait()
        tasks.cancel_scope.cancel()
    assert seen == [anyio.get_cancelled_exc_class(), "/cancelled"]


@pytest.mark.backend_with_uvloop
async def test_sleep_is_cut_short() -> None:
    """`time.sleep()` in a request that is cancelled ends at once, and its sandbox is replaced."""
    began = time.monotonic()
    async with cooperative(calling(lambda: time.sleep(FOREVER))) as sandboxed:
        with anyio.move_on_after(0.05) as scope:
            await Connection(sandboxed).run()
        assert scope.cancelled_caught
        assert retired(sandboxed) == {"cancelled": 1}
    assert time.monotonic() - began < PATIENCE


@pytest.mark.backend_with_uvloop
async def test_scopes_of_the_app() -> None:
    """A cancel scope of the app bounds blocking calls, as it bounds those that are awaited."""

    def block() -> str:
        with anyio.move_on_after(0.01) as scope:  # noqa: ASYNC100 # it awaits all the same
            time.sleep(FOREVER)
        assert scope.cancelled_caught
        with pytest.raises(TimeoutError), anyio.fail_after(0.01):  # noqa: ASYNC100
            time.sleep(FOREVER)
        with anyio.move_on_after(FOREVER):  # noqa: ASYNC100
            time.sleep(0.001)
        return "in time"

    async with cooperative(calling(block)) as sandboxed:
        assert (await ask(sandboxed)).result == "in time"


@ASYNCIO
async def test_cancelled_twice(anyio_backend: Any) -> None:
    """A second cancellation reaches the clean-up, which blocks, too."""
    gates = [Gate(), Gate()]
    seen = []

    def block() -> None:
        try:
            gates[0].pass_through()
        finally:
            try:
                gates[1].pass_through()
            except asyncio.CancelledError:
                seen.append("twice")
                await_(anyio.lowlevel.checkpoint())
                seen.append("and goes on")

    async with cooperative(calling(block)) as sandboxed:
        task = asyncio.create_task(Connection(sandboxed).run())
        await gates[0].reached.wait()
        task.cancel("once")
        await gates[1].reached.wait()
        task.cancel("twice")
        with pytest.raises(asyncio.CancelledError) as caught:
            await task
        if sys.version_info >= (3, 11):
            assert caught.value.args == ("once",)
    assert seen == ["twice", "and goes on"]


@ASYNCIO
async def test_swallowed(anyio_backend: Any) -> None:
    """An app that swallows a cancellation goes on, and may block again."""

    def block() -> str:
        try:
            gate.pass_through()
        except asyncio.CancelledError:
            await_(asyncio.sleep(0))
            return "swallowed"
        return "not cancelled"

    gate = Gate()
    async with cooperative(calling(block)) as sandboxed:
        task = asyncio.create_task(Connection(sandboxed).run())
        await gate.reached.wait()
        task.cancel()
        assert (await task).result == "swallowed"


@ASYNCIO
async def test_cancels_itself(anyio_backend: Any) -> None:
    """A request that has cancelled its own task is cancelled at its next blocking call."""

    def block() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        time.sleep(FOREVER)

    async with cooperative(calling(block)) as sandboxed:
        task = asyncio.create_task(Connection(sandboxed).run())
        with pytest.raises(asyncio.CancelledError):
            await task


@ASYNCIO
@pytest.mark.skipif(sys.version_info < (3, 11), reason="asyncio has no timeouts yet")
async def test_timeout_of_asyncio(anyio_backend: Any) -> None:
    """`asyncio.timeout()` bounds a blocking call, and counts its cancellations rightly."""
    timeout: Any = getattr(asyncio, "timeout", None)

    async def app(scope: Any, receive: Any, send: Any) -> int:
        with pytest.raises(TimeoutError):
            async with timeout(0.01):
                time.sleep(FOREVER)
        await respond(send)
        task: Any = asyncio.current_task()
        return int(task.cancelling())

    async with cooperative(app) as sandboxed:
        assert (await ask(sandboxed)).result == 0


@pytest.mark.parametrize("anyio_backend", ["trio"], indirect=True)
async def test_scopes_of_trio(anyio_backend: Any) -> None:
    """Shielded and nested scopes of Trio are those of the stack that blocks."""

    def block() -> list[str]:
        seen = []
        with trio.CancelScope() as outer:  # noqa: ASYNC100
            outer.cancel()
            with trio.CancelScope(shield=True), trio.move_on_after(0.001) as inner:  # noqa: ASYNC100
                time.sleep(FOREVER)
            seen.append(f"inner {inner.cancelled_caught}")
            time.sleep(FOREVER)
        seen.append(f"outer {outer.cancelled_caught}")
        return seen

    async with cooperative(calling(block)) as sandboxed:
        assert (await ask(sandboxed)).result == ["inner True", "outer True"]


@pytest.mark.backend_with_uvloop
async def test_watchdog(caplog: pytest.LogCaptureFixture) -> None:
    """A request that blocks past its deadline is answered 504, and stops there."""
    stopped = []

    def block() -> None:
        try:
            time.sleep(FOREVER)
        finally:
            stopped.append(current_lease().path)

    async with cooperative(calling(block), execution_timeout=0.05) as sandboxed:
        assert (await ask(sandboxed, "/x")).status == 504
        assert retired(sandboxed) == {"expired": 1}
        assert stopped == ["/x"]
    assert "is cut off after" in caplog.text


@pytest.mark.backend_with_uvloop
async def test_cancel_of_the_lease() -> None:
    """`current_lease().cancel()` from another task cuts a blocked request off."""
    gate = Gate()
    leases = []

    def block() -> None:
        leases.append(current_lease())
        gate.pass_through()

    async with cooperative(calling(block)) as sandboxed, anyio.create_task_group() as tasks:
        connection = Connection(sandboxed)
        tasks.start_soon(connection.run)
        await gate.reached.wait()
        leases[0].cancel()
    assert connection.status == 504


@pytest.mark.backend_with_uvloop
async def test_shutdown() -> None:
    """Requests that still block at the end of `drain_timeout` are cut short and answered 503."""
    gate = Gate()
    sandboxed = cooperative(calling(gate.pass_through), drain_timeout=0.01)
    await sandboxed.open()
    async with anyio.create_task_group() as tasks:
        connection = Connection(sandboxed)
        tasks.start_soon(connection.run)
        await gate.reached.wait()
        with anyio.fail_after(PATIENCE):
            await sandboxed.aclose()
    assert connection.status == 503


# --- dropped ------------------------------------------------------------------------------------


def drop(block: Callable[[], Any], await_first: bool = False) -> None:
    """Begin a request in a coroutine that nobody runs to its end, and close that."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if await_first:
            try:
                await asyncio.sleep(FOREVER)
            finally:
                block()
        block()

    async def main() -> None:
        async with cooperative(app) as sandboxed:
            steps = Connection(sandboxed).run()
            # As a loop does, up to the first thing that is waited for.
            while not hasattr(steps.send(None), "add_done_callback"):
                pass
            steps.close()

    asyncio.run(main())


def test_dropped_while_blocked() -> None:
    """A task that is dropped cleans up with `GeneratorExit`; what blocks then, blocks."""
    seen: list[Any] = []

    def block() -> None:
        try:
            time.sleep(FOREVER)
        except BaseException as error:
            seen.append(type(error))
            raise
        finally:
            seen.append(stepper())
            before = time.monotonic()
            time.sleep(0.01)
            seen.append(time.monotonic() - before >= 0.009)

    drop(block)
    assert seen == [GeneratorExit, None, True]


def test_dropped_while_awaiting() -> None:
    """A task that is dropped where it awaits may block in its clean-up."""
    seen: list[Any] = []

    def block() -> None:
        seen.append(stepper())
        time.sleep(0.001)
        seen.append(current_lease().path)

    drop(block, await_first=True)
    assert seen == [None, "/"]


def test_dropped_and_swallowed() -> None:
    """An app that swallows the `GeneratorExit` is ended all the same."""
    seen = []

    def block() -> None:
        try:
            time.sleep(FOREVER)
        except GeneratorExit:
            seen.append("swallowed")

    drop(block)
    assert seen == ["swallowed"]


def test_dropped_and_raised() -> None:
    """What the clean-up of a dropped task raises comes out where it is dropped."""

    def block() -> None:
        try:
            time.sleep(FOREVER)
        finally:
            raise OSError("in the clean-up")

    with pytest.raises(OSError, match="in the clean-up"):
        drop(block)


def test_dropped_in_another_thread() -> None:
    """Code that blocks, and is dropped in another thread, cleans up in its own."""
    seen: list[Any] = []

    async def call() -> None:
        try:
            await_(forever())
        finally:
            seen.append((threading.get_ident(), stepper()))

    @coroutine
    def forever() -> Generator[None, None, None]:
        yield

    lease: Any = RequestLease(None, None, {})  # type: ignore[arg-type]
    begun = [drive(Running(), lease, call_plainly, call())]
    begun[0].send(None)
    assert lease.blocked is not None
    thread = threading.Thread(target=begun.clear)
    thread.start()
    thread.join()
    # The next look at a greenlet here ends those that nothing holds any more.
    assert stepper() is None
    assert seen == [(threading.get_ident(), None)]
    assert lease.blocked is None


def test_end_of_the_interpreter() -> None:
    """A process that ends while a request blocks says nothing about it."""
    code = """
import asyncio, time
from sandboxpool import wrap

async def app(scope, receive, send):
    time.sleep(3600)

async def main():
    sandboxed = wrap(app, run_in="cooperative", hooks=("sleep",), lifespan="off", stall_after=None)
    await sandboxed.open()
    scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
    loop.left = asyncio.ensure_future(sandboxed(scope, None, None))
    await asyncio.sleep(0.05)

loop = asyncio.new_event_loop()
loop.run_until_complete(main())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0
    unexpected = [
        line for line in done.stderr.splitlines() if "installed after the app" not in line
    ]
    assert [line for line in unexpected if "greenlet" in line.lower() or "Trace" in line] == []


def test_end_of_a_thread() -> None:
    """A thread whose loop ran cooperative requests ends without a word, and frees its stacks."""
    stacks = []

    def block() -> None:
        stacks.append(weakref.ref(stepper()))
        await_(anyio.lowlevel.checkpoint())

    async def main() -> None:
        async with cooperative(calling(block)) as sandboxed:
            await ask(sandboxed)

    thread = threading.Thread(target=lambda: asyncio.run(main()))
    thread.start()
    thread.join()
    gc.collect()
    assert [stack() for stack in stacks] == [None]
