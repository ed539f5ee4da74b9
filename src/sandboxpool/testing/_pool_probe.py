"""What the checks of pools work with: a factory that is told what to do, and callers."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from contextvars import ContextVar
from typing import Any

import anyio
import attrs

from sandboxpool._exceptions import PoolClosedError
from sandboxpool.abc import Pool

from ._conformance import expect, settle

in_caller: ContextVar[bool] = ContextVar("sandboxpool_testing_in_caller", default=False)
"""Set by callers of a pool, and seen by no hook of its factory."""


@attrs.define(eq=False)
class Item:
    """What the pools of the checks lend.

    Attributes:
        number: The first that was created is 0.
        holder: Who holds it, `None` for nobody.
        dirty: Whether it was used since it was created or reset.
        failed: Whether its reset or its check failed.
        destroyed: How often it was destroyed.
        faults: What was wrong when it was lent or ended.
    """

    number: int
    holder: object = None
    dirty: bool = False
    failed: bool = False
    destroyed: int = 0
    faults: list[str] = attrs.field(factory=list)

    def __repr__(self) -> str:
        return f"item {self.number}"


class ProbeFactory:
    """A factory that notes what the pool does with it, and misbehaves if it is told to.

    Attributes:
        items: All that were created, in order.
        most: How many items existed at once, those that were being created included.
        on_create: Called by `create`, and awaited; may raise.
        on_reset: Called by `reset` with the item; what it returns is awaited.
        on_destroy: Called by `destroy` with the item; what it returns is awaited.
    """

    def __init__(self) -> None:
        self.items: list[Item] = []
        self.creating = 0
        self.most = 0
        self.on_create: Callable[[], Awaitable[object]] | None = None
        self.on_reset: Callable[[Item], Awaitable[None] | None] | None = None
        self.on_destroy: Callable[[Item], Awaitable[None] | None] | None = None

    @property
    def alive(self) -> list[Item]:
        """The items that were created and not destroyed."""
        return [item for item in self.items if not item.destroyed]

    async def create(self) -> Item:
        """Return a new item."""
        self.creating += 1
        self._count()
        try:
            if self.on_create is not None:
                await self.on_create()
            item = Item(len(self.items))
            self.items.append(item)
        finally:
            self.creating -= 1
        return item

    def _count(self) -> None:
        now = len(self.alive) + self.creating
        self.most = max(self.most, now)

    def reset(self, item: Item, /) -> Awaitable[None] | None:
        """Make an item as good as new."""
        item.dirty = False
        return None if self.on_reset is None else self.on_reset(item)

    def destroy(self, item: Item, /) -> Awaitable[None] | None:
        """End an item."""
        item.destroyed += 1
        return None if self.on_destroy is None else self.on_destroy(item)

    def faults(self, what: str) -> str:
        """Return which items have a fault of that kind, or nothing."""
        return ", ".join(f"{item} was {what}" for item in self.items if what in item.faults)


class CheckingFactory(ProbeFactory):
    """A probe factory that can tell whether an item still works."""

    def __init__(self) -> None:
        super().__init__()
        self.broken: set[int] = set()

    async def check(self, item: Item) -> bool:
        """Tell whether an item still works."""
        return item.number not in self.broken


class Caller:
    """A task that leases an item and holds it until it is told to leave.

    Attributes:
        entered: Set when it got an item.
        leave: Set to have it give the item back.
        over: Set when it has come to its end.
        item: What it got.
        error: What it got instead.
        cancelled: Whether it ended because it was cancelled.
        scope: Cancels it.
    """

    def __init__(self, pool: Pool[Item], **options: Any) -> None:
        self.pool = pool
        self.options = options
        self.entered = anyio.Event()
        self.leave = anyio.Event()
        self.over = anyio.Event()
        self.item: Item | None = None
        self.error: Exception | None = None
        self.cancelled = False
        self.scope = anyio.CancelScope()

    async def __call__(self) -> None:
        """Lease, hold, release."""
        try:
            with self.scope:
                try:
                    async with use(self.pool, **self.options) as item:
                        self.item = item
                        self.entered.set()
                        await self.leave.wait()
                except anyio.get_cancelled_exc_class():
                    self.cancelled = True
                    raise
        except Exception as error:
            self.error = error
        finally:
            self.over.set()


@asynccontextmanager
async def use(pool: Pool[Item], **options: Any) -> AsyncIterator[Item]:
    """Lease an item, and note what is wrong with it."""
    me = object()
    async with pool.lease(**options) as item:
        if item.holder is not None:
            item.faults.append("lent to two callers at once")
        if item.destroyed:
            item.faults.append("lent after it had been destroyed")
        if item.failed:
            item.faults.append("lent although its reset or check had failed")
        if item.dirty:
            item.faults.append("lent again without a reset")
        item.holder, item.dirty = me, True
        try:
            yield item
        finally:
            if item.holder is me:
                item.holder = None


def sums_up(pool: Pool[Item]) -> str:
    """Return what is wrong with the figures of a pool, or nothing."""
    now = pool.statistics()
    parts = now.idle + now.in_use + now.creating + now.resetting + now.closing
    if parts != now.size:
        return f"size is {now.size}, and the parts add up to {parts}: {now}"
    if now.size > now.max_size:
        return f"size is {now.size}, which is more than max_size={now.max_size}"
    if now.waiting < 0:
        return f"waiting is {now.waiting}"
    return ""


async def is_whole(pool: Pool[Item], size: int, when: str = "") -> None:
    """Find out whether all the items of a pool that nobody uses can be leased at once."""
    await settle()
    async with AsyncExitStack() as stack:
        for held in range(size):
            try:
                await stack.enter_async_context(use(pool, timeout=0.1))
            except TimeoutError:
                expect(False, f"{when}only {held} of {size} items can be leased: the rest is lost")
    await settle()


async def is_closed(pool: Pool[Item]) -> None:
    """Find out whether a pool refuses leases."""
    try:
        async with pool.lease(timeout=0.1):
            pass
    except PoolClosedError:
        return
    expect(False, "a closed pool has lent an item")
