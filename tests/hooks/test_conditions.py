"""Conditions, events, semaphores, barriers, futures and joins in cooperative requests."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import AsyncIterator, Callable
from concurrent import futures
from contextlib import asynccontextmanager
from functools import partial
from time import monotonic
from typing import Any

import anyio
import anyio.to_thread
import pytest

from sandboxpool import hooks
from tests.wrap.client import Connection, settle

from .request import PATIENCE, alone, at_once, sandboxed

HOOKS = ("sleep", "locks")

pytestmark = pytest.mark.usefixtures("cooperative")

# As they are without hooks.
_Lock: Any = threading.Lock
_RLock: Any = threading.RLock
_originals = [
    (owner, name, vars(owner)[name])
    for owner, name in (
        (threading, "Lock"),
        (threading, "RLock"),
        (threading, "local"),
        (threading.Condition, "wait"),
        (threading.Thread, "start"),
        (threading.Thread, "join"),
        (threading.Thread, "_bootstrap_inner"),
    )
]


# --- conditions -----------------------------------------------------------------------------------


@pytest.mark.parametrize("made", ["before", "now"])
@pytest.mark.parametrize("kind", ["Lock", "RLock"])
@pytest.mark.backend_with_uvloop
async def test_ping_pong(made: str, kind: str) -> None:
    """A request and a thread take turns by a condition, with a lock of C and with a new one."""
    lock = {"Lock": _Lock, "RLock": _RLock}[kind]() if made == "before" else None
    condition = threading.Condition(lock or getattr(threading, kind)())
    turns: list[str] = []

    def play(mine: str, others: str) -> None:
        for _ in range(100):
            with condition:
                assert condition.wait_for(lambda: (turns or ["b"])[-1] == others, PATIENCE)
                turns.append(mine)
                condition.notify()

    def request() -> None:
        thread = threading.Thread(target=play, args=("b", "a"))
        thread.start()
        play("a", "b")
        thread.join()

    await alone(request)
    assert turns == ["a", "b"] * 100


async def test_whole_lock_is_released() -> None:
    """Who waits lets go of an `RLock` that it took several times, and has it as often again."""
    condition = threading.Condition()
    notified: list[bool] = []

    def wait() -> None:
        with condition, condition:
            assert condition.wait_for(lambda: notified, PATIENCE)
            assert not condition.wait(0.01)
            condition.release()
            condition.notify(0)  # it is still this one's
            condition.acquire()

    def notify() -> None:
        with condition:
            notified.append(True)
            condition.notify_all()

    await at_once(wait, wait, notify)
    assert condition.acquire(blocking=False)


async def test_order_of_notifications() -> None:
    """Requests are notified in the order in which they began to wait."""
    condition = threading.Condition()
    waiting: list[int] = []
    woken: list[int] = []

    def wait(number: int) -> None:
        with condition:
            waiting.append(number)
            condition.wait()
            woken.append(number)

    async def notify() -> None:
        while len(waiting) < 10:
            await settle()
        for count in range(10):
            with condition:
                condition.notify()
            while len(woken) <= count:
                await settle()

    await at_once(*[partial(wait, number) for number in range(10)], notify)
    assert woken == waiting


async def test_results() -> None:
    """Waits return what the originals return, in time and out of time."""

    def wait() -> list[object]:
        event = threading.Event()
        semaphore = threading.Semaphore(0)
        condition = threading.Condition()
        with condition:
            results: list[object] = [condition.wait(0.001), condition.wait(0), condition.wait(-1)]
        results += [event.wait(0.001), event.wait(0), semaphore.acquire(timeout=0.001)]
        results += [semaphore.acquire(blocking=False)]
        with pytest.raises(threading.BrokenBarrierError):
            threading.Barrier(2).wait(0.001)
        with pytest.raises(RuntimeError, match="un-acquired"):
            condition.wait()
        with pytest.raises(RuntimeError, match="un-acquired"):
            condition.notify()
        with pytest.raises(ValueError, match="released too many times"):
            threading.BoundedSemaphore(1).release()
        event.set()
        return [*results, event.wait()]

    assert await alone(wait) == [False] * 7 + [True]


async def test_event_between_requests() -> None:
    """One request sets the event that others wait for."""
    event = threading.Event()
    results = await at_once(*[event.wait] * 10, event.set)
    assert results == [True] * 10 + [None]


async def test_barrier() -> None:
    """Requests meet at a barrier, and one of them does what is done once; it may block."""
    meetings: list[float] = []

    def once() -> None:
        time.sleep(0.01)
        meetings.append(monotonic())

    barrier = threading.Barrier(5, once)
    assert sorted(await at_once(*[barrier.wait] * 10)) == sorted([*range(5)] * 2)
    assert len(meetings) == 2


# --- cut short ------------------------------------------------------------------------------------


def blocked_forever() -> list[Any]:
    """Return calls that would never come back."""
    lock = threading.Lock()
    lock.acquire()
    thread = threading.Thread(target=lock.acquire, daemon=True)
    thread.start()
    return [
        lock.acquire,
        threading.Event().wait,
        partial(threading.Event().wait, 60),
        threading.Semaphore(0).acquire,
        threading.Barrier(2).wait,
        thread.join,
        futures.Future().result,
        partial(futures.wait, [futures.Future()]),
        partial(next, futures.as_completed([futures.Future()])),
    ]


@pytest.mark.backend_with_uvloop
async def test_execution_timeout() -> None:
    """The watchdog cuts off whatever waits forever, and answers for it."""
    calls = blocked_forever()
    with anyio.fail_after(PATIENCE):
        async with sandboxed(*calls, execution_timeout=0.05) as app:
            answers = [Connection(app, f"/{number}") for number in range(len(calls))]
            async with anyio.create_task_group() as tasks:
                for answer in answers:
                    tasks.start_soon(answer.run)
    assert [answer.status for answer in answers] == [504] * len(calls)


@pytest.mark.backend_with_uvloop
async def test_cancelled() -> None:
    """A task that is cancelled from outside, as after a hang-up, ends whatever it waits for."""
    calls = blocked_forever()
    with anyio.fail_after(PATIENCE):
        async with sandboxed(*calls) as app:
            for number in range(len(calls)):
                with anyio.move_on_after(0.01) as scope:
                    await Connection(app, f"/{number}").run()
                assert scope.cancelled_caught


@pytest.mark.parametrize("kind", ["Lock", "RLock", "Semaphore"])
async def test_cancelled_in_line(kind: str) -> None:
    """Whoever stands in line for a lock and is cancelled leaves it to the next one."""
    lock = getattr(threading, kind)()
    release = anyio.Event()
    got: list[int] = []

    async def hold() -> None:
        with lock:
            await release.wait()

    def take(number: int) -> None:
        with lock:
            got.append(number)
            time.sleep(0.001)

    requests = [partial(take, number) for number in range(6)]
    with anyio.fail_after(PATIENCE):
        async with sandboxed(*requests, hold) as app, anyio.create_task_group() as tasks:
            scopes = [anyio.CancelScope() for _ in requests]

            async def run(number: int) -> None:
                with scopes[number]:
                    await Connection(app, f"/{number}").run()

            tasks.start_soon(Connection(app, "/6").run)
            await settle()
            for number in range(6):
                tasks.start_soon(run, number)
                await settle()
            # The first, one in the middle, and the first again in the moment it is woken.
            scopes[0].cancel()
            scopes[2].cancel()
            await settle()
            release.set()
            await anyio.lowlevel.checkpoint()
            scopes[1].cancel()
    assert [number for number in got if number != 1] == [3, 4, 5]
    assert lock.acquire(blocking=False)


@asynccontextmanager
async def two(app: Any) -> AsyncIterator[anyio.CancelScope]:
    """Run two requests that block, the first one in the cancel scope that is returned."""
    first = anyio.CancelScope()

    async def run_first() -> None:
        with first:
            await Connection(app, "/0").run()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(run_first)
        await settle()
        tasks.start_soon(Connection(app, "/1").run)
        await settle()
        yield first


@pytest.mark.backend_with_uvloop
async def test_notified_and_cancelled() -> None:
    """A notification for a request that is cancelled at the same time goes to another one."""
    condition = threading.Condition()
    woken: list[int] = []

    def wait(number: int) -> None:
        with condition:
            condition.wait()
            woken.append(number)

    with anyio.fail_after(PATIENCE):
        async with sandboxed(partial(wait, 0), partial(wait, 1)) as app, two(app) as first:
            with condition:
                condition.notify()
            first.cancel()
    assert woken == [1]


async def test_semaphore_keeps_its_permits() -> None:
    """A permit that is released to a request that is cancelled at the same time is not lost."""
    semaphore = threading.BoundedSemaphore(1)
    semaphore.acquire()
    with anyio.fail_after(PATIENCE):
        async with sandboxed(*[semaphore.acquire] * 2) as app, two(app) as first:
            semaphore.release()
            first.cancel()
    assert not semaphore.acquire(blocking=False)


@pytest.mark.parametrize("kind", ["Lock", "RLock"])
async def test_cancelled_with_the_lock_elsewhere(kind: str) -> None:
    """Who is cancelled while it waits for a condition has the lock again before it goes on."""
    condition = threading.Condition(getattr(threading, kind)())
    holding = threading.Event()
    owned: list[bool] = []

    def wait() -> None:
        with condition:
            try:
                condition.wait()
            finally:
                owned.append(condition._is_owned())  # type: ignore[attr-defined]

    def hold() -> None:
        with condition:
            holding.set()
            time.sleep(0.1)

    with anyio.fail_after(PATIENCE):
        async with sandboxed(wait) as app, anyio.create_task_group() as tasks:
            tasks.start_soon(Connection(app, "/0").run)
            await settle()
            thread = threading.Thread(target=hold)
            thread.start()
            holding.wait()
            tasks.cancel_scope.cancel()
        thread.join()
    assert owned == [True]
    assert condition.acquire(blocking=False)


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_cancelled_again() -> None:
    """A task of asyncio that is cancelled again and again gets the lock back all the same."""
    condition = threading.Condition()
    holding = threading.Event()
    owned: list[bool] = []

    def wait() -> None:
        with condition:
            try:
                condition.wait()
            finally:
                owned.append(condition._is_owned())  # type: ignore[attr-defined]

    def hold() -> None:
        with condition:
            holding.set()
            time.sleep(0.1)

    async with sandboxed(wait) as app:
        task = asyncio.ensure_future(Connection(app, "/0").run())
        await settle()
        thread = threading.Thread(target=hold)
        thread.start()
        holding.wait()
        for _ in range(3):
            task.cancel()
            await settle()
            assert not task.done()
        with pytest.raises(asyncio.CancelledError):
            await task
        thread.join()
    assert owned == [True]
    assert condition.acquire(blocking=False)


# --- threads --------------------------------------------------------------------------------------


async def test_join() -> None:
    """A join returns at the end of the thread or of its time, and refuses what it must."""

    def join() -> None:
        leave = threading.Event()
        thread = threading.Thread(target=leave.wait)
        with pytest.raises(RuntimeError, match="before it is started"):
            thread.join()
        with pytest.raises(RuntimeError, match="current thread"):
            threading.current_thread().join()
        thread.start()
        for timeout in (0, -1, 0.001):
            thread.join(timeout)
            assert thread.is_alive()
        leave.set()
        thread.join(PATIENCE)
        assert not thread.is_alive()
        thread.join()

    await alone(join)


async def test_join_of_a_thread_from_before() -> None:
    """A thread that was started before the hooks were installed can be joined, too."""
    hooks.uninstall()
    leave = threading.Event()
    thread = threading.Thread(target=leave.wait)
    thread.start()
    hooks.install(*HOOKS)  # type: ignore[arg-type]

    def join() -> None:
        thread.join(0.01)
        assert thread.is_alive()
        leave.set()
        thread.join()
        assert not thread.is_alive()

    await alone(join)


async def test_end_of_a_thread_that_fails(recwarn: pytest.WarningsRecorder) -> None:
    """A thread that ends with an exception has ended as well."""
    seen: list[Any] = []
    before, threading.excepthook = threading.excepthook, seen.append
    try:
        thread = threading.Thread(target=lambda: 1 / 0)

        def join() -> None:
            thread.start()
            thread.join()

        await alone(join)
    finally:
        threading.excepthook = before
    assert len(seen) == 1


async def test_start_lets_nobody_in() -> None:
    """Starting a thread suspends nothing: no other request can run before it returns."""
    order: list[str] = []

    def start() -> None:
        order.append("starts")
        threading.Thread(target=lambda: None).start()
        order.append("started")

    await at_once(start, start, start)
    assert order == ["starts", "started"] * 3


async def test_start_refuses() -> None:
    """A thread that cannot be started says so to whoever starts it."""

    def start() -> None:
        thread = threading.Thread(target=lambda: None)
        thread.start()
        with pytest.raises(RuntimeError, match="only be started once") as caught:
            thread.start()
        assert traceback.extract_tb(caught.tb)[0].name == "start"
        thread.join()

    await alone(start)


async def test_thread_is_no_request() -> None:
    """A thread that a request starts blocks for real, and may use the request's locks."""
    lock = threading.Lock()

    def request() -> bool:
        pool = futures.ThreadPoolExecutor(1)
        with pool:
            return pool.submit(lock.acquire).result()

    assert await alone(request) is True
    assert lock.locked()


# --- futures --------------------------------------------------------------------------------------


async def test_futures() -> None:
    """Futures give results, exceptions, timeouts and cancellations as they always did."""

    def wait() -> None:
        release = threading.Event()
        with futures.ThreadPoolExecutor(1) as pool:
            failing = pool.submit(int, "none")
            with pytest.raises(ValueError, match="invalid literal"):
                failing.result()
            assert isinstance(failing.exception(), ValueError)
            blocked = pool.submit(release.wait)
            waiting = pool.submit(release.wait)
            with pytest.raises(futures.TimeoutError):
                blocked.result(timeout=0.01)
            with pytest.raises(futures.TimeoutError):
                list(futures.as_completed([blocked], timeout=0.01))
            assert futures.wait([blocked], timeout=0.01).not_done == {blocked}
            assert waiting.cancel()
            with pytest.raises(futures.CancelledError):
                waiting.result()
            release.set()
            assert list(pool.map(abs, [-1, -2])) == [1, 2]
        assert blocked.result() is True

    await at_once(wait, wait)


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_future_of_its_own_loop() -> None:
    """A request can wait for a coroutine in its own event loop, which was a deadlock before."""
    loop = asyncio.get_running_loop()

    async def answer() -> int:
        await asyncio.sleep(0.001)
        return 42

    def wait() -> int:
        return asyncio.run_coroutine_threadsafe(answer(), loop).result()

    assert await alone(wait) == 42


async def test_pool_of_many() -> None:
    """Requests that share a pool of threads, and start it together, all get their results."""
    with futures.ThreadPoolExecutor(4) as pool:

        def wait(number: int) -> int:
            return pool.submit(abs, -number).result()

        results = await at_once(*[partial(wait, number) for number in range(50)])
    assert results == list(range(50))


async def test_threads_of_the_event_loop() -> None:
    """What event loops and anyio do with threads works in requests, between them and outside."""

    async def request() -> int:
        return await anyio.to_thread.run_sync(abs, -1)

    assert await at_once(*[request] * 20) == [1] * 20
    assert await anyio.to_thread.run_sync(abs, -1) == 1


# --- coming and going -----------------------------------------------------------------------------


@pytest.mark.backend_with_uvloop
async def test_uninstalled_meanwhile() -> None:
    """What was made with hooks works after they are gone; who waits meanwhile is woken."""
    lock = threading.Lock()
    rlock = threading.RLock()
    condition = threading.Condition()
    event = threading.Event()
    thread = threading.Thread(target=event.wait)
    thread.start()
    lock.acquire()
    done: list[str] = []

    def wait_for_lock() -> None:
        with lock, rlock:
            done.append("lock")

    def wait_for_condition() -> None:
        with condition:
            condition.wait()
            done.append("condition")

    def wait_for_thread() -> None:
        thread.join()
        done.append("thread")

    calls: list[Callable[[], Any]] = [
        wait_for_lock,
        wait_for_condition,
        wait_for_thread,
        event.wait,
    ]
    with anyio.fail_after(PATIENCE):
        async with sandboxed(*calls) as app, anyio.create_task_group() as tasks:
            for number in range(len(calls)):
                tasks.start_soon(Connection(app, f"/{number}").run)
            await settle()
            hooks.uninstall()
            for owner, name, original in _originals:
                assert vars(owner)[name] is original
            assert done == []
            lock.release()
            with condition:
                condition.notify()
            event.set()
    assert sorted(done) == ["condition", "lock", "thread"]
    with lock, rlock, condition:
        assert not condition.wait(0.001)
    thread = threading.Thread(target=lock.acquire)
    thread.start()
    thread.join()
    assert lock.locked()


_LATE_IMPORTS = """
import sys
from sandboxpool import hooks
hooks.install("sleep", "locks")
assert "trio" not in sys.modules and "concurrent.futures.thread" not in sys.modules
import threading, time
from functools import partial
import anyio
from tests.hooks.request import at_once

async def main():
    lock = threading.RLock()
    async def work():
        await anyio.to_thread.run_sync(time.sleep, 0.001)
        with lock:
            time.sleep(0.001)
            await anyio.to_thread.run_sync(time.sleep, 0.001)
        thread = threading.Thread(target=time.sleep, args=(0.001,))
        thread.start()
        thread.join()
    await at_once(*[work] * 20)
    await anyio.to_thread.run_sync(time.sleep, 0.001)

anyio.run(main, backend=sys.argv[1])
print("done")
"""


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_event_loop_imported_later(backend: str) -> None:
    """An event loop that is imported after the hooks are installed has hooked locks, and runs."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", _LATE_IMPORTS, backend],
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.stdout == "done\n"
