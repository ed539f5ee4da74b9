"""What waits for threads and other requests: a hundred cooperative requests at once."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent import futures
from time import monotonic

import pytest

from .request import PATIENCE, at_once

HOOKS = ("sleep", "locks")

pytestmark = pytest.mark.usefixtures("cooperative")

MANY = 100
T = 0.2


def lock_of_a_thread() -> Callable[[], object]:
    """Return a wait for a lock that a thread holds for a while."""
    lock = threading.Lock()
    held = threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            time.sleep(T)

    threading.Thread(target=hold).start()
    held.wait()

    def wait() -> None:
        with lock:
            pass

    return wait


def rlock_of_a_thread() -> Callable[[], object]:
    """Return the same for a lock that may be taken twice."""
    lock = threading.RLock()
    held = threading.Event()

    def hold() -> None:
        with lock:
            held.set()
            time.sleep(T)

    threading.Thread(target=hold).start()
    held.wait()

    def wait() -> None:
        with lock, lock:
            pass

    return wait


def timeout_of_an_event() -> Callable[[], object]:
    """Return a wait for an event that never comes."""
    event = threading.Event()

    def wait() -> None:
        assert not event.wait(T)

    return wait


def notification() -> Callable[[], object]:
    """Return a wait for a condition that a thread notifies later."""
    condition = threading.Condition()
    came = []

    def notify() -> None:
        with condition:
            came.append(True)
            condition.notify_all()

    threading.Timer(T, notify).start()

    def wait() -> None:
        with condition:
            assert condition.wait_for(lambda: came, PATIENCE)

    return wait


def permits() -> Callable[[], object]:
    """Return a wait for one of the permits that a thread gives out later."""
    semaphore = threading.BoundedSemaphore(MANY)
    for _ in range(MANY):
        semaphore.acquire()
    threading.Timer(T, semaphore.release, (MANY,)).start()
    return semaphore.acquire


def barrier() -> Callable[[], object]:
    """Return a wait for all others and for a thread that is late."""
    meeting = threading.Barrier(MANY + 1)
    threading.Timer(T, meeting.wait).start()
    return meeting.wait


def end_of_a_thread() -> Callable[[], object]:
    """Return a wait for a thread of its own."""

    def wait() -> None:
        thread = threading.Timer(T, lambda: None)
        thread.start()
        thread.join()
        assert not thread.is_alive()

    return wait


def future() -> Callable[[], object]:
    """Return a wait for what all threads of a pool compute."""
    pool = futures.ThreadPoolExecutor(MANY)
    # The pool ends with the last of those who wait.
    return lambda: pool.submit(time.sleep, T).result()


def several_futures() -> Callable[[], object]:
    """Return a wait for several futures, in each of the ways there are."""
    pool = futures.ThreadPoolExecutor(4 * MANY)

    def wait() -> None:
        pending = [pool.submit(time.sleep, T) for _ in range(2)]
        done, _ = futures.wait(pending)
        assert len(done) == len(list(futures.as_completed(pending))) == 2
        assert pending[0].exception() is None

    return wait


def mapping_pool() -> Callable[[], object]:
    """Return a wait for a pool of threads that is mapped and shut down."""

    def wait() -> None:
        with futures.ThreadPoolExecutor(1) as pool:
            assert list(pool.map(time.sleep, [T])) == [None]

    return wait


WAYS = [
    lock_of_a_thread,
    rlock_of_a_thread,
    timeout_of_an_event,
    notification,
    permits,
    barrier,
    end_of_a_thread,
    future,
    several_futures,
    mapping_pool,
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
@pytest.mark.backend_with_uvloop
async def test_at_once(way: Callable[[], Callable[[], object]]) -> None:
    """A hundred requests that wait for something at the same time take about as long as one."""
    await at_once(lambda: None)  # what is done once
    before = monotonic()
    wait = way()
    await at_once(*[wait] * MANY)
    assert T * 0.9 <= monotonic() - before < T * MANY / 4


@pytest.mark.parametrize("way", [timeout_of_an_event, end_of_a_thread, mapping_pool])
async def test_control(way: Callable[[], Callable[[], object]]) -> None:
    """Without hooks the same waits add up, because each of them stops the event loop."""
    before = monotonic()
    await at_once(*[way()] * 5, run_in="loop")
    assert monotonic() - before >= T * 5 * 0.9
