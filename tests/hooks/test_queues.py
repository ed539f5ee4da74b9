"""Queues in cooperative requests."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from sandboxpool import hooks
from tests.wrap.client import Connection, settle

from .request import PATIENCE, at_once, sandboxed

HOOKS = ("sleep", "locks")

pytestmark = pytest.mark.usefixtures("cooperative")

_SimpleQueue = queue.SimpleQueue

KINDS = ["Queue", "LifoQueue", "PriorityQueue", "SimpleQueue"]
BOUNDED = KINDS[:3]

MANY = 100
T = 0.2


def new(kind: str, *args: Any) -> Any:
    """Return a new queue."""
    return getattr(queue, kind)(*args)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.backend_with_uvloop
async def test_at_once(kind: str) -> None:
    """A hundred requests wait for what a thread puts later, together about as long as one."""
    items = new(kind)

    def feed() -> None:
        for number in range(MANY):
            items.put(number)

    await at_once(lambda: None)  # what is done once
    before = monotonic()
    threading.Timer(T, feed).start()
    got = await at_once(*[items.get] * MANY)
    assert sorted(got) == list(range(MANY))
    assert T * 0.9 <= monotonic() - before < T * MANY / 4


@pytest.mark.parametrize("kind", KINDS)
async def test_control(kind: str) -> None:
    """Without hooks the same waits add up, because each of them stops the event loop."""
    items = new(kind)

    def get() -> None:
        with pytest.raises(queue.Empty):
            items.get(timeout=0.1)

    before = monotonic()
    await at_once(*[get] * 3, run_in="loop")
    assert monotonic() - before >= 0.3 * 0.9


@pytest.mark.parametrize("made", ["before", "now"])
@pytest.mark.parametrize("kind", KINDS)
async def test_between_requests(made: str, kind: str) -> None:
    """Requests hand items to each other, also in a queue that was made before the hooks were."""
    if made == "before":
        if kind == "SimpleQueue":
            pytest.skip("one of C stays one of C")
        hooks.uninstall()
    items = new(kind)
    hooks.install(*HOOKS)  # type: ignore[arg-type]

    def put(number: int) -> None:
        time.sleep(0.001)
        items.put(number)

    putting = [partial(put, number) for number in range(20)]
    results = await at_once(*[items.get] * 10, *putting, *[items.get] * 10)
    assert sorted(r for r in results if r is not None) == list(range(20))


@pytest.mark.parametrize("kind", BOUNDED)
async def test_full(kind: str) -> None:
    """A request that finds a queue full waits until another one has taken something."""
    items = new(kind, 1)

    def put() -> None:
        for number in range(20):
            items.put(number)
        with pytest.raises(queue.Full):
            items.put(20, block=False)
        with pytest.raises(queue.Full):
            items.put(20, timeout=0.001)

    def get() -> list[int]:
        got = [items.get() for _ in range(19)]
        while not items.full():
            time.sleep(0.001)
        time.sleep(0.05)
        return [*got, items.get()]

    assert await at_once(put, get) == [None, list(range(20))]


@pytest.mark.parametrize("kind", BOUNDED)
async def test_join(kind: str) -> None:
    """A request waits until others have done all tasks of a queue."""
    tasks = new(kind)
    done: list[int] = []

    def work() -> None:
        for _ in range(5):
            number = tasks.get()
            time.sleep(0.001)
            done.append(number)
            tasks.task_done()

    def wait() -> None:
        for number in range(10):
            tasks.put(number)
        tasks.join()
        assert len(done) == 10

    await at_once(wait, work, work)


@pytest.mark.parametrize("kind", KINDS)
async def test_results(kind: str) -> None:
    """A queue gives and refuses what the original does."""

    def use() -> None:
        items = new(kind)
        assert items.empty()
        before = monotonic()
        with pytest.raises(queue.Empty):
            items.get(timeout=0.01)
        assert monotonic() - before >= 0.01
        with pytest.raises(queue.Empty):
            items.get(timeout=0)
        with pytest.raises(queue.Empty):
            items.get(block=False)
        with pytest.raises(queue.Empty):
            items.get_nowait()
        with pytest.raises(ValueError, match="non-negative"):
            items.get(timeout=-1)
        items.put(1)
        items.put_nowait(2)
        assert items.qsize() == 2
        assert sorted([items.get(True, 1), items.get(timeout=None)]) == [1, 2]

    use()
    await at_once(use, use)


def test_type() -> None:
    """A new `SimpleQueue` passes for an old one, and old modules get it where they ask for it."""
    items: queue.SimpleQueue[int] = queue.SimpleQueue()
    assert isinstance(items, _SimpleQueue)
    assert type(items) is not _SimpleQueue


def test_subclass() -> None:
    """A subclass may take arguments of its own and need not initialize its base."""

    class Named(queue.SimpleQueue[int]):
        def __init__(self, name: str) -> None:
            self.name = name

    items = Named("name")
    items.put(1)
    assert items.get() == 1


def test_uninstalled() -> None:
    """After `uninstall()` the original is back, and a queue that was made before works on."""
    items: queue.SimpleQueue[int] = queue.SimpleQueue()
    hooks.uninstall()
    assert queue.SimpleQueue is _SimpleQueue
    threading.Timer(0.001, items.put, (1,)).start()
    assert items.get() == 1


async def test_first_come_first_served() -> None:
    """Requests that wait for a `SimpleQueue` get its items in the order in which they came."""
    items: queue.SimpleQueue[int] = queue.SimpleQueue()
    asked: list[int] = []
    got: list[tuple[int, int]] = []

    def get(number: int) -> None:
        asked.append(number)
        got.append((number, items.get()))

    def put() -> None:
        while len(asked) < 10:
            time.sleep(0.001)
        for number in range(10):
            items.put(number)

    await at_once(*[partial(get, number) for number in range(10)], put)
    assert got == list(zip(asked, range(10), strict=True))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.backend_with_uvloop
async def test_cancelled(kind: str) -> None:
    """An item that is put for a request that is cancelled at the same time goes to the next."""
    items = new(kind)
    got: list[int] = []

    def get() -> None:
        got.append(items.get())

    with anyio.fail_after(PATIENCE):
        async with sandboxed(get, get) as app, anyio.create_task_group() as tasks:
            first = anyio.CancelScope()

            async def run_first() -> None:
                with first:
                    await Connection(app, "/0").run()

            tasks.start_soon(run_first)
            await settle()
            tasks.start_soon(Connection(app, "/1").run)
            await settle()
            items.put(1)
            first.cancel()
    assert got == [1]
    assert items.empty()


@pytest.mark.parametrize("kind", KINDS)
async def test_nothing_is_lost(kind: str) -> None:
    """Of what threads and requests put, take and are cancelled at, each item arrives once."""
    items = new(kind)
    got: list[int] = []
    over = threading.Event()
    share = 100

    def put(start: int) -> None:
        for number in range(start, start + share):
            items.put(number)
            if number % 10 == 0:
                time.sleep(0.001)

    def get() -> None:
        while not over.is_set():
            try:
                got.append(items.get(timeout=0.01))
            except queue.Empty:
                continue

    def get_impatiently() -> None:
        for turn in range(50):
            try:
                number = items.get(timeout=0.0005 * (turn % 3))
            except queue.Empty:
                continue
            got.append(number)

    async def cancelled_again_and_again() -> None:
        for _ in range(30):
            with anyio.move_on_after(0.001):  # noqa: ASYNC100 (get() suspends)
                got.append(items.get())
            await anyio.lowlevel.checkpoint()

    takers = [threading.Thread(target=get) for _ in range(3)]
    putters = [threading.Thread(target=put, args=(start * share,)) for start in range(3)]

    def run() -> None:
        for thread in (*takers, *putters):
            thread.start()
        for thread in putters:
            thread.join()

    calls: list[Callable[[], Any]] = [partial(put, start * share) for start in range(3, 6)]
    calls += [get_impatiently, get_impatiently, cancelled_again_and_again, run]
    await at_once(*calls)
    over.set()
    for thread in takers:
        thread.join()
    while not items.empty():
        got.append(items.get())
    assert sorted(got) == list(range(6 * share))
