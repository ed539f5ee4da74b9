"""Locks and what is built on them, in cooperative requests, threads and the event loop."""

from __future__ import annotations

import copy
import gc
import os
import pickle
import queue
import signal
import threading
import time
import traceback
import weakref
from functools import partial
from time import monotonic
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest

from tests.wrap.client import Connection, settle

from .request import PATIENCE, alone, at_once, sandboxed

HOOKS = ("sleep", "locks")

pytestmark = pytest.mark.usefixtures("cooperative")

# As they are without hooks.
_Lock: Any = threading.Lock
_RLock: Any = threading.RLock

# --- who has a lock -------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["Lock", "RLock", "Condition", "Semaphore"])
async def test_excluded(kind: str) -> None:
    """What one request does while it has a lock is not seen by another one, though it blocks."""
    lock = getattr(threading, kind)()
    inside: list[int] = []

    def enter(number: int) -> None:
        with lock:
            inside.append(number)
            time.sleep(0.01)
            assert inside == [number]
            inside.remove(number)

    await at_once(*[partial(enter, number) for number in range(20)])


@pytest.mark.parametrize("kind", ["Lock", "RLock"])
@pytest.mark.backend_with_uvloop
async def test_first_come_first_served(kind: str) -> None:
    """Requests get a lock in the order in which they asked for it, also who asks again at once."""
    lock = getattr(threading, kind)()
    asked: list[int] = []
    got: list[int] = []

    def take_twice(number: int) -> None:
        for _ in range(2):
            asked.append(number)
            with lock:
                got.append(number)
                time.sleep(0.001)

    await at_once(*[partial(take_twice, number) for number in range(10)])
    assert got == asked
    assert sorted(asked[:10]) == sorted(asked[10:]) == list(range(10))


@pytest.mark.parametrize("kind", ["Lock", "RLock"])
async def test_held_while_awaiting(kind: str) -> None:
    """A lock that is held while its request awaits keeps others out, whichever stack runs what."""
    lock = getattr(threading, kind)()
    inside: list[int] = []

    async def enter(number: int) -> None:
        with lock:
            inside.append(number)
            for _ in range(3):
                await anyio.sleep(0.001)
                time.sleep(0.001)
            assert inside == [number]
            inside.remove(number)

    await at_once(*[partial(enter, number) for number in range(10)])


async def test_taken_again() -> None:
    """A request takes its `RLock` again, after it blocked and after it awaited, others do not."""
    lock = threading.RLock()
    inside: list[int] = []

    async def enter(number: int) -> None:
        with lock:
            inside.append(number)
            time.sleep(0.001)
            with lock:
                await anyio.sleep(0.001)
                assert lock.acquire(blocking=False)
                lock.release()
            assert lock.acquire(timeout=0)
            lock.release()
            time.sleep(0.001)
            assert inside == [number]
            inside.remove(number)

    await at_once(*[partial(enter, number) for number in range(10)])
    assert lock.acquire(blocking=False)
    lock.release()


async def test_of_another_request() -> None:
    """A request can neither take nor release the `RLock` of another one in its thread."""
    lock = threading.RLock()
    taken = anyio.Event()
    tried = anyio.Event()

    async def hold() -> None:
        with lock:
            taken.set()
            await tried.wait()

    async def intrude() -> None:
        await taken.wait()
        assert not lock.acquire(blocking=False)
        assert not lock.acquire(timeout=0.01)
        with pytest.raises(RuntimeError, match="cannot release un-acquired lock"):
            lock.release()
        with pytest.raises(RuntimeError, match="cannot wait on un-acquired lock"):
            threading.Condition(lock).wait()
        tried.set()
        with lock:
            pass

    await at_once(hold, intrude)


async def test_of_a_child_task() -> None:
    """Tasks of one request exclude each other as threads do."""
    lock = threading.RLock()
    inside: list[int] = []

    async def enter(number: int) -> None:
        with lock:
            inside.append(number)
            time.sleep(0.01)
            assert inside == [number]
            inside.remove(number)

    async def request() -> None:
        async with anyio.create_task_group() as tasks:
            for number in range(5):
                tasks.start_soon(enter, number)

    await alone(request)


@pytest.mark.parametrize("kind", ["Lock", "RLock"])
@pytest.mark.backend_with_uvloop
async def test_thread_waits_for_request(kind: str) -> None:
    """A thread really waits for the lock of a request, and gets it as soon as that lets go."""
    lock = getattr(threading, kind)()
    order: list[str] = []
    waiting = threading.Event()

    def wait() -> None:
        assert not lock.acquire(blocking=False)
        assert not lock.acquire(timeout=0.01)
        waiting.set()
        with lock:
            order.append("thread")

    def hold() -> None:
        with lock:
            thread = threading.Thread(target=wait)
            thread.start()
            waiting.wait()
            time.sleep(0.05)
            order.append("request")
        thread.join()

    await alone(hold)
    assert order == ["request", "thread"]


@pytest.mark.parametrize("kind", ["Lock", "RLock"])
async def test_threads_and_requests(kind: str) -> None:
    """Threads and requests of two event loops that want one lock all get it, one after another."""
    lock = getattr(threading, kind)()
    count = [0]
    rounds = 200

    def add(pause: float) -> None:
        for turn in range(rounds):
            with lock:
                before = count[0]
                if turn % 50 == 0:
                    time.sleep(pause)
                count[0] = before + 1

    def other_loop() -> None:
        anyio.run(partial(at_once, *[partial(add, 0.001)] * 5))

    threads = [threading.Thread(target=add, args=(0.001,)) for _ in range(4)]
    threads.append(threading.Thread(target=other_loop))

    def wait_for_threads() -> None:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

    await at_once(*[partial(add, 0.001)] * 10, wait_for_threads)
    assert count == [rounds * 19]
    assert lock.acquire(blocking=False)


async def test_released_elsewhere() -> None:
    """A `Lock` that a request waits for may be released by a thread, or by the event loop."""
    lock = threading.Lock()
    lock.acquire()
    threading.Timer(0.01, lock.release).start()
    with anyio.fail_after(PATIENCE):
        async with sandboxed(lock.acquire) as app, anyio.create_task_group() as tasks:
            assert (await Connection(app, "/0").run()).result is True
            tasks.start_soon(Connection(app, "/0").run)
            await settle()
            lock.release()
    assert lock.locked()


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
@pytest.mark.parametrize("kind", ["Lock", "RLock", "Condition"])
async def test_task_is_dropped(kind: str) -> None:
    """A request whose task is dropped in the middle of a blocking call leaves its lock free."""
    lock = getattr(threading, kind)()
    begun: list[Any] = []

    def hold() -> None:
        with lock:
            threading.Event().wait()

    async def begin(app: Any) -> None:
        steps = Connection(app, "/0").run()
        steps.send(None)
        begun.append(steps)

    def take() -> None:
        with lock:
            pass

    async with sandboxed(hold, take) as app:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(begin, app)
        begun.pop().close()
        with anyio.fail_after(PATIENCE):
            await Connection(app, "/1").run()


# --- code of the event loop itself ----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["Lock", "RLock"])
async def test_loop_wants_it(kind: str) -> None:
    """Code of the loop that needs the lock of a suspended request gets an error that says whose."""
    lock = getattr(threading, kind)()
    release = anyio.Event()

    async def hold() -> None:
        with lock:
            await release.wait()

    async with sandboxed(hold) as app, anyio.create_task_group() as tasks:
        tasks.start_soon(Connection(app, "/0").run)
        await settle()
        with pytest.raises(
            RuntimeError, match=r"lock.*is held by <RequestLease \d+ '/0' .*suspended.*in another"
        ):
            lock.acquire()
        with pytest.raises(RuntimeError, match="suspended"):
            lock.__enter__()
        assert not lock.acquire(blocking=False)
        assert not lock.acquire(timeout=0.01)
        release.set()
        await settle()
        with lock:
            pass
        assert lock.acquire()
        lock.release()


async def test_loop_has_it() -> None:
    """Requests wait for a `Lock` that code of the loop holds, even while that awaits."""
    lock = threading.Lock()
    order = []

    def request() -> None:
        with lock:
            order.append("request")

    async with sandboxed(request) as app, anyio.create_task_group() as tasks:
        with lock:
            tasks.start_soon(Connection(app, "/0").run)
            await settle()
            order.append("loop")
    assert order == ["loop", "request"]


async def test_loop_has_an_rlock() -> None:
    """An `RLock` of code of the loop lets requests in, as it lets in all code of its thread."""
    lock = threading.RLock()

    def request() -> None:
        with lock:
            time.sleep(0.001)

    async with sandboxed(request) as app:
        with lock:
            await Connection(app, "/0").run()
        assert lock.acquire(blocking=False)
        lock.release()
        with pytest.raises(RuntimeError, match="un-acquired"):
            lock.release()


# --- what the originals do ------------------------------------------------------------------------


def checks(lock: Any) -> None:
    """Check what a lock accepts and returns."""
    assert lock.acquire() is True
    lock.release()
    assert lock.acquire(True, 1) is True
    lock.release()
    assert lock.__enter__() is True
    lock.__exit__(None, None, None)
    with pytest.raises(RuntimeError):
        lock.release()
    with pytest.raises(ValueError, match="non-blocking"):
        lock.acquire(False, 1)
    with pytest.raises(ValueError, match="timeout"):
        lock.acquire(timeout=-2)
    with pytest.raises(ValueError, match=r"NaN|timeout"):
        lock.acquire(timeout=float("nan"))
    with pytest.raises(OverflowError):
        lock.acquire(timeout=threading.TIMEOUT_MAX * 2)
    with pytest.raises(TypeError):
        lock.acquire(timeout="long")
    with pytest.raises(TypeError, match="pickle"):
        pickle.dumps(lock)
    with pytest.raises(TypeError, match="pickle"):
        copy.deepcopy(lock)
    assert lock in weakref.WeakSet([lock])
    assert "unlocked" in repr(lock)
    with lock:
        assert "unlocked" not in repr(lock)


@pytest.mark.parametrize("kind", ["Lock", "RLock"])
async def test_interface(kind: str) -> None:
    """Arguments, results and errors of a lock are those of the original, in and out of requests."""
    checks(getattr(threading, kind)())
    await alone(lambda: checks(getattr(threading, kind)()))


def test_type() -> None:
    """New locks pass where code checks for the type of a lock, old or new."""
    for new, old in ((threading.Lock, _Lock), (threading.RLock, _RLock)):
        assert isinstance(new(), type(new()))
        assert isinstance(new(), type(old()))
    lock: Any = threading.Lock()
    assert lock.acquire_lock() is True
    assert lock.locked_lock() is True
    lock.release_lock()
    assert not lock.locked()


async def test_timeout() -> None:
    """A wait that ends in vain returns `False`, after its time and no earlier."""
    lock = threading.Lock()
    lock.acquire()

    def wait() -> list[bool]:
        before = monotonic()
        results = [lock.acquire(timeout=0.05), lock.acquire(timeout=0), lock.acquire(False)]
        assert monotonic() - before >= 0.05
        return results

    assert await at_once(wait, wait) == [[False] * 3] * 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this platform has no fork")
@pytest.mark.parametrize("kind", ["Lock", "RLock"])
def test_after_fork(kind: str) -> None:
    """A lock can be made new, as `logging` does in a child process."""
    lock = getattr(threading, kind)()
    lock.acquire()
    lock._at_fork_reinit()
    assert lock.acquire(blocking=False)


async def test_finalizer() -> None:
    """A finalizer in the middle of a request may put into a `SimpleQueue` and notify an event."""
    items: queue.SimpleQueue[str] = queue.SimpleQueue()
    event = threading.Event()

    class Item:
        def __del__(self) -> None:
            items.put("gone")
            event.set()

    def drop() -> None:
        cycle: list[Any] = [Item()]
        cycle.append(cycle)
        del cycle
        gc.collect()

    def wait() -> str:
        event.wait()
        return items.get()

    assert await at_once(wait, drop) == ["gone", None]


@pytest.mark.skipif(not hasattr(signal, "SIGUSR1"), reason="this platform has no such signal")
async def test_signal_handler() -> None:
    """A signal handler in the middle of a request may take its `RLock`, and wake another one."""
    lock = threading.RLock()
    event = threading.Event()
    taken: list[bool] = []

    def handle(*_: object) -> None:
        with lock:
            taken.append(True)
        event.set()

    def interrupted() -> None:
        with lock:
            signal.raise_signal(signal.SIGUSR1)

    before = signal.signal(signal.SIGUSR1, handle)
    try:
        assert await at_once(event.wait, interrupted) == [True, None]
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert taken == [True]


async def test_made_before() -> None:
    """An `RLock` from before the hooks lets in all requests of a thread, which is one to it."""
    lock = _RLock()
    inside: list[int] = []

    def enter(number: int) -> None:
        with lock:
            inside.append(number)
            time.sleep(0.01)

    await at_once(partial(enter, 1), partial(enter, 2))
    assert sorted(inside) == [1, 2]
    assert not lock._is_owned()


async def test_traceback() -> None:
    """What is raised under a lock gets out with its traceback, and the lock is free again."""
    lock = threading.RLock()

    def fail() -> None:
        with lock:
            time.sleep(0.001)
            raise LookupError("no such thing")

    with pytest.raises(LookupError, match="no such thing") as caught:
        await alone(fail)
    assert traceback.extract_tb(caught.tb)[-1].name == "fail"
    assert lock.acquire(blocking=False)
