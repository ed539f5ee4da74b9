"""What the tests of the pool share: an item, a factory that is told what to do, and callers.

Nothing here sleeps. `passes(k)` lets the event loop run through its ready tasks `k` times, which is
what the sweeps over every moment of a hand-off count in; `settle()` is enough passes for
everything that can go on without the passing of time.
"""

from __future__ import annotations

import asyncio
import selectors
from collections.abc import Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, contextmanager
from typing import Any

import anyio
import anyio.abc
import trio
import trio.testing

from sandboxpool._loop import running_backend
from sandboxpool._pool import Pool
from sandboxpool._slots import Slots, State


async def passes(count: int) -> None:
    """Let the event loop run through its ready tasks *count* times."""
    if running_backend() == "trio":
        for _ in range(count):
            await trio.lowlevel.checkpoint()
    else:
        for _ in range(count):
            await asyncio.sleep(0)


async def settle() -> None:
    """Wait until nothing goes on by itself any more."""
    if running_backend() == "trio":
        await trio.testing.wait_all_tasks_blocked()
    else:
        await passes(30)


class Clock:
    """A clock that only the test moves."""

    def __init__(self, now: float = 1000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


class Bell:
    """A wake-up that only notes that it rang."""

    def __init__(self) -> None:
        self.rings = 0

    def wake(self) -> None:
        self.rings += 1


class Item:
    """What the pools of these tests hold."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.user: object = None
        self.ended = False

    def __repr__(self) -> str:
        return f"<Item {self.number}>"


class Maker:
    """A factory that counts what it did and notices when it is used wrongly.

    Each hook can be replaced by giving it as an argument: it is called with the item (`create`
    with nothing) after the bookkeeping, and may be sync or async.
    """

    def __init__(
        self,
        *,
        create: Callable[[], Awaitable[None]] | None = None,
        reset: Callable[[Item], Awaitable[None] | None] | None = None,
        destroy: Callable[[Item], Awaitable[None] | None] | None = None,
        check: Callable[[Item], Awaitable[bool | None] | bool | None] | None = None,
    ) -> None:
        self.creates = 0
        self.creating = 0
        self.most_creating = 0
        self.made: list[Item] = []
        self.destroyed: list[Item] = []
        self.resets = 0
        self.on_create = create
        self.on_reset = reset
        self.on_destroy = destroy
        if check is not None:
            self.check = check

    @property
    def alive(self) -> int:
        """Items that were made and not ended."""
        return len(self.made) - len(self.destroyed)

    async def create(self) -> Item:
        self.creates += 1
        self.creating += 1
        self.most_creating = max(self.most_creating, self.creating)
        try:
            if self.on_create is not None:
                await self.on_create()
        finally:
            self.creating -= 1
        item = Item(len(self.made))
        self.made.append(item)
        return item

    def reset(self, item: Item) -> Awaitable[None] | None:
        assert not item.ended
        item.user = None
        self.resets += 1
        return self.on_reset(item) if self.on_reset is not None else None

    def destroy(self, item: Item) -> Awaitable[None] | None:
        assert not item.ended, f"{item} was destroyed twice"
        item.ended = True
        self.destroyed.append(item)
        return self.on_destroy(item) if self.on_destroy is not None else None


@contextmanager
def use(item: Item) -> Iterator[None]:
    """Note that an item is in use; nobody else may use it, and it must not have ended."""
    me = object()
    assert item.user is None, f"{item} is lent twice"
    assert not item.ended, f"{item} was lent after its end"
    item.user = me
    try:
        yield
        assert item.user is me
    finally:
        if item.user is me:
            item.user = None


def check(slots: Slots[Any]) -> None:
    """Assert every rule of the state machine, those about memory included."""
    slots.check()
    stats = slots.statistics()
    parts = stats.idle + stats.in_use + stats.creating + stats.resetting + stats.closing
    assert parts == stats.size
    assert stats.waiting >= 0
    live = [w for w in slots._queue if w.outcome is None]
    dead = len(slots._deadlines) - sum(d[2].outcome is None for d in slots._deadlines)
    assert dead <= 65 + max(len(live), len(slots._deadlines) // 2), dead
    since = [slot.since for slot in slots.idle]
    assert since == sorted(since), "the left end is not the one that was idle for longest"


async def all_acquirable(pool: Pool[Any], count: int | None = None) -> None:
    """Assert that the pool is whole: all its items can be held at once, and nothing else."""
    await settle()
    slots = pool.slots
    check(slots)
    assert slots.in_use == 0
    assert slots.waiting == 0
    size = slots.max_size if count is None else count
    async with AsyncExitStack() as stack:
        items = [await stack.enter_async_context(pool.lease(timeout=5)) for _ in range(size)]
        assert len({id(item) for item in items}) == size
        assert slots.in_use == size
        check(slots)
    await settle()
    check(slots)
    assert slots.in_use == 0
    assert sum(slot.state is State.IDLE for slot in slots.all) == len(slots.idle)


class Caller:
    """A task that acquires, notes what became of it, and can be cancelled in two ways."""

    def __init__(self, pool: Pool[Item], *, timeout: float | None = None, body: Any = None) -> None:
        self.pool = pool
        self.timeout = timeout
        self.body = body
        self.scope = anyio.CancelScope()
        self.task: asyncio.Task[Any] | None = None
        self.started = anyio.Event()
        self.entered = anyio.Event()
        self.leave = anyio.Event()
        self.over = anyio.Event()
        self.item: Item | None = None
        self.lease: Any = None
        self.error: BaseException | None = None

    async def __call__(self) -> None:
        if running_backend() == "asyncio":
            self.task = asyncio.current_task()
        try:
            with self.scope:
                await self.run()
        except asyncio.CancelledError as error:
            self.error = error  # a native cancellation ends here, with the task
        except Exception as error:
            self.error = error
        finally:
            self.over.set()

    async def run(self) -> None:
        self.started.set()
        self.lease = self.pool.lease(timeout=self.timeout)
        async with self.lease as item:
            with use(item):
                self.item = item
                self.entered.set()
                if self.body is None:
                    await self.leave.wait()
                else:
                    await self.body(item)

    @property
    def cancelled(self) -> bool:
        """Whether the task ended by cancellation."""
        return isinstance(self.error, asyncio.CancelledError) or self.scope.cancelled_caught

    def cancel(self, how: str) -> None:
        """Cancel the task natively (asyncio's `task.cancel()`) or by its scope."""
        if how == "native" and self.task is not None:
            self.task.cancel()
        else:
            self.scope.cancel()


async def start(tg: anyio.abc.TaskGroup, caller: Caller) -> Caller:
    """Start a caller and let it come as far as it can."""
    tg.start_soon(caller)
    await caller.started.wait()
    await settle()
    return caller


class _JumpingSelector(selectors.SelectSelector):
    """Instead of waiting, move the clock to where the wait would have ended."""

    now = 0.0

    def select(self, timeout: float | None = None) -> Any:
        events = super().select(0)
        if not events and timeout is None:
            raise RuntimeError("nothing will ever happen any more")
        if not events and timeout is not None and timeout > 0:
            self.now += timeout
        return events


class VirtualLoop(asyncio.SelectorEventLoop):
    """An event loop of asyncio whose time passes as fast as it can."""

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)

    def time(self) -> float:
        return self._jumping.now


def run_in_virtual_time(backend: str, main: Callable[[], Awaitable[None]]) -> None:
    """Run *main* on *backend* with a clock that jumps whenever everybody waits."""
    options: dict[str, Any] = (
        {"clock": trio.testing.MockClock(autojump_threshold=0)}
        if backend == "trio"
        else {"loop_factory": VirtualLoop}
    )
    anyio.run(main, backend=backend, backend_options=options)
