"""Lend items to one caller at a time: the rules of `_slots`, put to work.

The pool does what the rules ask for (create, reset, check, destroy) in background tasks of its
own, so that no caller's cancellation can hit a factory half-way, and no factory can hold up a
caller that gives its item back.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Awaitable, Callable
from contextvars import ContextVar
from functools import partial
from heapq import nsmallest
from inspect import isawaitable
from itertools import count
from math import inf
from threading import get_ident
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import anyio
from anyio.lowlevel import checkpoint as anyio_checkpoint

from ._exceptions import (
    FactoryError,
    NestedAcquireError,
    PoolClosedError,
    PoolError,
    PoolFullError,
    PoolNotOpenError,
    PoolTimeoutError,
    WrongLoopError,
)
from ._lease import NOWHERE, UNSET, PoolLease, Unset, bind
from ._loop import Background, Home, Loop, Timer, Wakeup, running_loop
from ._options import check_pool_options, check_seconds, check_sizes
from ._slots import Job, Limits, Outcome, Slot, Slots, State, Waiter
from .abc import Factory, Holder, PoolStatistics

if TYPE_CHECKING:
    from types import FrameType, TracebackType

    from typing_extensions import Self

T = TypeVar("T")

logger = logging.getLogger("sandboxpool.pool")

_pool_numbers = count(1)

_in_hook_of: ContextVar[tuple[int, ...]] = ContextVar("sandboxpool_in_hook_of", default=())

_LEASE_FILE = PoolLease.__aenter__.__code__.co_filename
_HOLDERS_NAMED = 3
_HOLDERS_CACHED = 0.25  # seconds; a storm of refusals must not scan the pool for each


class Pool(Generic[T]):
    """A pool of whatever a factory makes.

    Essential options:

    Args:
        factory: Makes, restores and ends the items; see `sandboxpool.abc.Factory`.
        min_size: Items created by `open()` and kept even when idle.
        max_size: Items at most, counted from before their creation until they are destroyed.
        acquire_timeout: Seconds a caller waits at most, `None` for no limit. One absolute
            deadline for the whole wait, a check and a replaced item included.
        max_waiting: Callers that may wait; one more gets `PoolFullError` at once. `0` means
            that nobody may wait, also not for the creation of an item; `None` is no limit. The
            check of an idle item (`check_after`, `on_acquire`) is not a wait in this sense.

    Frequent ones:

    Args:
        max_uses: Leases after which an item is retired, `None` for no limit.
        max_lifetime: Seconds after which an item is retired, each a little earlier than that,
            at random (`jitter`), so that they do not all go at once. `None` for no limit. An
            item on lease is retired when it comes back.
        max_idle: Seconds after which an item that nobody used is retired, unless `min_size`
            keeps it. At most a quarter of those above `min_size` go in one pass. `None`: never.
        check_after: An item that was idle for longer than this many seconds passes the
            factory's `check` before it is lent; `None` for never, `0` for always.
        on_acquire: Called with an item before each lease, in a task of the pool. If it raises,
            the item is retired as `unhealthy` and the caller gets a `FactoryError`.
        record_holders: Note file and line of each acquire, for the error of an exhausted pool
            and for the warning about a lease that was never released.
        name: What errors and logs call the pool.

    Rare ones:

    Args:
        max_creating: Creates that run at once.
        create_timeout: Seconds for `create`, `None` for no limit.
        check_timeout: Seconds for `check` and for `on_acquire`, each.
        reset_timeout: Seconds for `reset`; after it the item is retired.
        destroy_timeout: Seconds for `destroy`; after it the item is forgotten.
        jitter: The share of `max_lifetime` and of a pause after a failed create that is left
            to chance, 0 <= jitter < 1.
        create_backoff: Seconds before the next create after a failed one, doubled with each
            failure in a row up to `max_create_backoff`.
        max_create_backoff: See `create_backoff`.
        replace_worn: Create the successor of an item that was worn out (`max_uses`) or is
            broken at once, instead of when somebody asks.
        checkpoint: Run a checkpoint on each acquire, also when an item is idle. Without it the
            fast path never yields to other tasks and does not notice a cancellation; whoever
            loops over leases without awaiting anything starves the others, as long as nobody
            waits for the pool itself.
        clock: Monotonic time in seconds. Timers of the event loop run by its own clock.

    Raises:
        OptionError: A value cannot work. The message names the option, the value, the remedy.
    """

    def __init__(
        self,
        factory: Factory[T],
        *,
        min_size: int = 0,
        max_size: int = 10,
        acquire_timeout: float | None = 30.0,
        max_waiting: int | None = None,
        max_uses: int | None = None,
        max_lifetime: float | None = None,
        max_idle: float | None = None,
        check_after: float | None = 30.0,
        on_acquire: Callable[[T], Awaitable[object] | object] | None = None,
        record_holders: bool = False,
        name: str = "pool",
        max_creating: int = 4,
        create_timeout: float | None = 60.0,
        check_timeout: float | None = 5.0,
        reset_timeout: float | None = 5.0,
        destroy_timeout: float | None = 5.0,
        jitter: float = 0.1,
        create_backoff: float = 0.05,
        max_create_backoff: float = 5.0,
        replace_worn: bool = False,
        checkpoint: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        check_pool_options(
            factory,
            min_size=min_size,
            max_size=max_size,
            acquire_timeout=acquire_timeout,
            max_waiting=max_waiting,
            max_uses=max_uses,
            max_lifetime=max_lifetime,
            max_idle=max_idle,
            check_after=check_after,
            max_creating=max_creating,
            create_timeout=create_timeout,
            check_timeout=check_timeout,
            reset_timeout=reset_timeout,
            destroy_timeout=destroy_timeout,
            jitter=jitter,
            create_backoff=create_backoff,
            max_create_backoff=max_create_backoff,
            name=name,
            on_acquire=on_acquire,
            clock=clock,
        )
        self.name = name
        self.factory = factory
        self._acquire_timeout = acquire_timeout
        self._max_uses = sys.maxsize if max_uses is None else max_uses
        self._on_acquire = on_acquire
        self._check: Callable[[T], Awaitable[object] | object] | None = getattr(
            factory, "check", None
        )
        self._create_timeout = create_timeout
        self._check_timeout = check_timeout
        self._reset_timeout = reset_timeout
        self._destroy_timeout = destroy_timeout
        self._record_holders = record_holders
        self.hints = True  # whether whoever reads an error can change the pool's options
        self._checkpoint = checkpoint
        self._number = next(_pool_numbers)
        self.clock = clock
        self.slots: Slots[T] = Slots(
            name,
            min_size,
            max_size,
            Limits(
                max_creating=max_creating,
                max_waiting=max_waiting,
                max_uses=max_uses,
                max_lifetime=max_lifetime,
                max_idle=max_idle,
                check_after=check_after if self._check is not None else None,
                prepares=on_acquire is not None,
                replaces=replace_worn,
                jitter=jitter,
                create_backoff=create_backoff,
                max_create_backoff=max_create_backoff,
            ),
        )
        self._loop: Loop | None = None
        self.home: Home = NOWHERE
        self._lease = bind(self)
        self._timer: Timer | None = None
        self._timer_at = inf
        self._filling: Wakeup | None = None
        self._filling_error: BaseException | None = None
        self._creators: dict[Slot[T], Background | None] = {}
        self._watchers: list[tuple[set[Slot[T]], Wakeup]] = []
        self._closing: Wakeup | None = None
        self._emptied: list[Wakeup] = []
        self.places: dict[Slot[T], str] = {}  # where each was acquired, if that is recorded
        self._holders: tuple[float, tuple[Holder, ...]] = (-inf, ())

    def __repr__(self) -> str:
        slots = self.slots
        state = "not open" if self._loop is None else "closed" if slots.closed else "open"
        return (
            f"<Pool {self.name!r} {state} size={slots.size} idle={len(slots.idle)} "
            f"in_use={slots.in_use} waiting={slots.waiting}>"
        )

    # --- life ---------------------------------------------------------------------------------

    async def open(self) -> None:
        """Open the pool in the running event loop and create `min_size` items.

        Cancelled meanwhile, the pool is closed again.

        Raises:
            FactoryError: An item could not be created; the pool is closed again.
            PoolError: The pool was opened before. A pool is opened once.
        """
        if self._loop is not None:
            state = "closed" if self.slots.closed else "open"
            raise PoolError(
                f"pool {self.name!r} is {state} already; a pool is opened once. "
                "Make a new Pool to start again."
            )
        loop = self._loop = running_loop()
        self.home = loop.home
        if not (self._record_holders or self._checkpoint):
            self._lease = bind(self)
        self._timer = loop.timer(self._on_timer)
        slots = self.slots
        try:
            self._filling = loop.wakeup()
            slots.resize(slots.min_size, slots.max_size, self.clock())
            self._follow_up()
            if not self._filled():
                await self._filling
            self._filling = None
            # The one that ended the wait: another create may have succeeded since then.
            failed, self._filling_error = self._filling_error, None
            if failed is not None and not self._filled():
                raise self._create_error(failed) from failed
        except BaseException:
            with anyio.CancelScope(shield=True):
                await self.aclose(0)
            raise

    async def aclose(self, timeout: float | None = None) -> None:
        """Close the pool: refuse new leases, wake those who wait, end everything.

        Cancelled while it waits for leases to end, it cuts them off and leaves nothing behind.

        Args:
            timeout: Seconds to wait for leases to end, `None` for no limit. Afterwards their
                items are destroyed all the same, and whoever still holds one must not use it.
                A `create` that is still running then is cancelled.

        Raises:
            OptionError: The timeout cannot work.
        """
        check_seconds("timeout", timeout)
        loop, slots = self._loop, self.slots
        if loop is None:
            slots.closed = True
            self._loop = _NEVER_OPENED
            return
        if loop is _NEVER_OPENED:
            return
        if loop.closed():
            # Its items cannot be reached any more; nothing is left that could be awaited.
            slots.closed = True
            return
        if not self.is_here():
            raise self._wrong_place()
        self.begin_close()
        try:
            if not await self._empty(timeout) and slots.in_use:
                logger.warning(
                    "%r still has %d leases %s s after it began to close; they are cut off",
                    self,
                    slots.in_use,
                    timeout,
                )
        finally:
            # Also when cancelled: from here on it is short, and must not stop half-way.
            slots.cut(self.clock())
            self._follow_up()
            if self._timer is not None:
                self._timer.close()
            for creating in tuple(self._creators.values()):
                if creating is not None:
                    creating.cancel()
            with anyio.CancelScope(shield=True):
                await self._empty(self._longest_end())

    def begin_close(self) -> None:
        """Refuse new leases and wake those who wait; what is in use stays so."""
        if not self.slots.closed:
            self.slots.close(self.clock())
            self._follow_up()

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    async def drain(self, timeout: float | None = None) -> bool:
        """Replace every item: the idle ones now, the others as their leases end.

        Args:
            timeout: Seconds to wait for that, `None` for no limit.

        Returns:
            Whether all the old items were gone in time. If not, they still go as they come back.

        Raises:
            OptionError: The timeout cannot work.
        """
        check_seconds("timeout", timeout)
        loop = self._opened()
        old = self.slots.drain(self.clock())
        self._follow_up()
        old &= self.slots.all.keys()
        if not old:
            return True
        watcher = (old, loop.wakeup())
        self._watchers.append(watcher)
        try:
            with anyio.move_on_after(timeout):
                await watcher[1]
        finally:
            if watcher in self._watchers:
                self._watchers.remove(watcher)
        return not old

    async def resize(self, *, min_size: int | None = None, max_size: int | None = None) -> None:
        """Change the bounds live.

        Idle items above the new maximum are retired now, the others when they come back. It
        does not wait for anything; items for a larger `min_size` are created in the background.

        Raises:
            OptionError: The bounds cannot work.
        """
        self._opened()
        slots = self.slots
        new_min = slots.min_size if min_size is None else min_size
        new_max = slots.max_size if max_size is None else max_size
        check_sizes(new_min, new_max)
        slots.resize(new_min, new_max, self.clock())
        self._follow_up()

    # --- use ----------------------------------------------------------------------------------

    def lease(self, timeout: float | Unset | None = UNSET) -> PoolLease[T]:
        """Return a context manager that holds an item while it is entered.

        Entering takes an idle item at once, without a checkpoint, or waits in order of arrival.
        Cancelled while it waits, it leaves the queue, passes on what it may have been granted in
        the same instant, and raises the cancellation. Leaving never waits.

        Args:
            timeout: Seconds to wait at most, `None` for no limit; by default `acquire_timeout`.

        Raises (when entered):
            PoolTimeoutError: Nothing became free in time.
            PoolFullError: `max_waiting` callers wait already.
            PoolClosedError: The pool is closed, or was closed during the wait.
            PoolNotOpenError: The pool was never opened.
            FactoryError: The item this caller waited for could not be created.
            WrongLoopError: The pool was opened in another event loop or thread.
            NestedAcquireError: A hook of this pool's factory asks the pool that waits for it.
        """
        lease = self._lease()
        lease._timeout = timeout
        lease._number = 0
        lease._key = None
        return lease

    def statistics(self) -> PoolStatistics:
        """Return the figures of this moment; the cost does not depend on the pool's size."""
        return self.slots.statistics()

    # --- for this library: the two halves of a lease ---------------------------------------------

    def take(self) -> Slot[T] | None:
        """Lease an idle item at once; `None` if it takes a wait."""
        if not self.is_here():
            raise self._wrong_place()
        slot = self.slots.take(self.clock())
        if self.slots.jobs:
            self._follow_up()  # it has found expired items
        return slot

    async def wait(
        self,
        timeout: float | Unset | None = UNSET,
        *,
        on_queued: Callable[[Callable[[], None]], None] | None = None,
    ) -> Slot[T] | None:
        """Wait in the queue for an item, after `take()` returned nothing.

        Args:
            timeout: Seconds to wait at most.
            on_queued: Called, once the caller is in the queue, with a function that takes it
                out of it again.

        Returns:
            The item's slot, or `None` if that function was called in time.
        """
        slots = self.slots
        loop = self._loop
        # `_opened()`, written out; a pool that is not open is at home nowhere.
        if loop is None or slots.closed or self.home._thread_id != get_ident():
            raise self._wrong_place()
        hooks = _in_hook_of.get()
        if hooks and id(self) in hooks:
            raise NestedAcquireError(
                f"a hook of the factory of pool {self.name!r} acquires from that same pool, "
                "which waits for the hook: give the hook a resource of its own."
            )
        if isinstance(timeout, Unset):
            timeout = self._acquire_timeout
        else:
            check_seconds("timeout", timeout)
        now = self.clock()
        if slots.limits.max_waiting is not None and slots.refuses():
            holders = self.holders()
            raise PoolFullError(
                f"pool {self.name!r} is exhausted: {slots.waiting} callers wait already "
                f"(max_waiting={slots.limits.max_waiting}). {self._explain(holders)}",
                holders,
            )
        wakeup = loop.wakeup()
        deadline = inf if timeout is None else now + timeout
        waiter = slots.enqueue(wakeup, now, deadline)
        try:
            # Here, not before: an interrupt in between must find the waiter guarded.
            if slots.jobs or deadline < self._timer_at or slots.retry_at > now:
                self._follow_up()
            if on_queued is not None:
                on_queued(partial(self._leave, waiter))
            await wakeup
        except BaseException:
            slots.give_up(waiter, self.clock())
            self._follow_up()
            raise
        slot = waiter.slot
        if slot is None:
            if waiter.outcome is Outcome.GAVE_UP:
                return None
            raise self._refusal(waiter, timeout) from waiter.error
        return slot

    def _leave(self, waiter: Waiter[T]) -> None:
        if waiter.outcome is None:
            self.slots.give_up(waiter, self.clock())

    def give_back(self, slot: Slot[T]) -> None:
        """End a lease: reset the item, or retire it. Never waits."""
        slots = self.slots
        now = self.clock()
        if slot.retire is None and slots.plain and slot.uses + 1 < self._max_uses:
            # Before anything is decided, as in `_lease`: nearly always nothing is to decide.
            try:
                pending = self.factory.reset(slot.item)
            except BaseException as error:
                self.reset_raised(slot, error)
                return
            if pending is not None or not slots.put_back(slot, now):
                self.finish(slot, pending)
            return
        if slots.end_lease(slot, now):
            try:
                pending = self.factory.reset(slot.item)
            except BaseException as error:
                self._reset_raised(slot, error)
            else:
                self._finish_reset(slot, pending)
        if slots.jobs:
            self._follow_up()

    def finish(self, slot: Slot[T], pending: object) -> None:
        """End a lease whose reset was called already, and returned *pending*."""
        if self.slots.end_lease(slot, self.clock()):
            self._finish_reset(slot, pending)
        elif isawaitable(pending) and hasattr(pending, "close"):
            pending.close()  # the item is being retired: a coroutine that nobody will await
        self._follow_up()

    def reset_raised(self, slot: Slot[T], error: BaseException) -> None:
        """End a lease whose reset was called already, and raised *error*."""
        if self.slots.end_lease(slot, self.clock()):
            self._reset_raised(slot, error)
        self._follow_up()

    def _reset_raised(self, slot: Slot[T], error: BaseException) -> None:
        self.slots.reset_failed(slot, self.clock())
        if not isinstance(error, Exception):
            self._follow_up()
            raise error
        self._report("reset", error)

    def _finish_reset(self, slot: Slot[T], pending: object) -> None:
        # A plain function may return anything, like the lambda around a method that does.
        if pending is not None and isawaitable(pending):
            self._spawn(partial(self._reset, slot, pending), "reset")
        else:
            self.slots.reset_done(slot, self.clock())

    def is_here(self) -> bool:
        """Tell whether this is the loop and the thread in which the pool was opened."""
        return self.home._thread_id == get_ident()

    async def pause(self) -> None:
        """Run the checkpoint that `checkpoint=True` asks for."""
        if self._checkpoint:
            await anyio_checkpoint()

    def lease_id(self, number: int) -> int:
        """Return the id of the pool's lease of that *number*, unique in this process."""
        return self._number << 40 | number

    def note_holder(self, slot: Slot[T], frame: FrameType) -> None:
        """Note where an item was acquired, if asked to."""
        if self._record_holders:
            place: FrameType | None = frame
            while place is not None and place.f_code.co_filename == _LEASE_FILE:
                place = place.f_back  # the fast path hands over to the slow one
            if place is not None:
                self.places[slot] = f"{place.f_code.co_filename}:{place.f_lineno}"

    def holders(self) -> tuple[Holder, ...]:
        """Return who holds an item for longest, the oldest first."""
        now = self.clock()
        made_at, holders = self._holders
        if now - made_at > _HOLDERS_CACHED:
            held = (slot for slot in self.slots.all if slot.state is State.IN_USE)
            holders = tuple(
                Holder(self.lease_id(slot.lease), now - slot.since, self.places.get(slot))
                for slot in nsmallest(_HOLDERS_NAMED, held, key=lambda slot: slot.since)
            )
            self._holders = (now, holders)
        return holders

    # --- jobs -----------------------------------------------------------------------------------

    def _follow_up(self) -> None:
        """Start the jobs that the last decisions left, and see that the timer comes in time."""
        slots = self.slots
        while slots.jobs:
            # One by one: a destroy that is a plain function may be interrupted (Ctrl-C), and may
            # come here itself, by way of the pool.
            job, slot = slots.jobs.popleft()
            if job is Job.CREATE:
                self._begin_create(slot)
            elif job is Job.PREPARE:
                self._spawn(partial(self._prepare, slot), "prepare")
            else:
                self._begin_destroy(slot)
        if self._filling is not None and (
            slots.closed or slots.last_create_error is not None or self._filled()
        ):
            self._filling_error = self._filling_error or slots.last_create_error
            self._filling.wake()
        if self._timer is not None and not slots.closed:
            now = self.clock()
            due = slots.due(now)
            if due < self._timer_at:
                self._timer_at = due
                self._timer.arm(due - now)

    def _spawn(self, function: Callable[[], Awaitable[None]], what: str) -> Background:
        assert self._loop is not None

        async def run() -> None:
            _in_hook_of.set((*_in_hook_of.get(), id(self)))
            try:
                await function()
            except Exception:
                # A fault of the pool itself: must not end Trio's run, nor stay unseen.
                logger.exception("%r: internal error in a background task (%s)", self, what)

        return self._loop.spawn(run, f"sandboxpool {self.name} {what}")

    def _begin_create(self, slot: Slot[T]) -> None:
        self._creators[slot] = None
        background = self._spawn(partial(self._create, slot), "create")
        if slot in self._creators:  # an eager task may be over already
            self._creators[slot] = background

    async def _create(self, reserved: Slot[T]) -> None:
        """Create items for as long as they are needed, the first one into *reserved*."""
        slots = self.slots
        slot: Slot[T] | None = reserved
        try:
            while slot is not None:
                try:
                    with anyio.fail_after(self._create_timeout):
                        item = await self.factory.create()
                except BaseException as error:
                    # Cancelled, by the end of the loop or by what `create` itself awaits, is
                    # failed: to begin anew at once would keep an ending loop alive for ever.
                    slots.create_failed(slot, error, self.clock())
                    self._gone(slot)
                    self._follow_up()
                    if not isinstance(error, Exception):
                        raise
                    self._report("create", error)
                else:
                    slots.create_done(slot, item, self.clock())
                    del item
                    self._follow_up()
                await anyio_checkpoint()
                slot = slots.reserve(self.clock())
        finally:
            self._creators.pop(reserved, None)

    async def _prepare(self, slot: Slot[T]) -> None:
        """Check an item that was idle for long; call `on_acquire`."""
        slots = self.slots
        phase, healthy = "check", True
        try:
            check_after = slots.limits.check_after
            stale = check_after is not None and self.clock() - slot.since >= check_after
            if self._check is not None and stale:
                with anyio.fail_after(self._check_timeout):
                    result = self._check(slot.item)
                    if isinstance(result, Awaitable):
                        result = await result
                healthy = result is None or bool(result)
            if healthy and self._on_acquire is not None:
                phase = "on_acquire"
                with anyio.fail_after(self._check_timeout):
                    result = self._on_acquire(slot.item)
                    if isinstance(result, Awaitable):
                        await result
        except BaseException as error:
            told = error if phase == "on_acquire" else None
            slots.prepare_failed(slot, told, self.clock())
            if not isinstance(error, Exception):
                self._follow_up()
                raise
            self._report(phase, error)
        else:
            if healthy:
                slots.prepare_done(slot, self.clock())
            else:
                slots.prepare_failed(slot, None, self.clock())
        self._follow_up()

    async def _reset(self, slot: Slot[T], pending: Awaitable[object]) -> None:
        slots = self.slots
        try:
            with anyio.fail_after(self._reset_timeout):
                await pending
        except BaseException as error:
            slots.reset_failed(slot, self.clock())
            self._follow_up()
            if not isinstance(error, Exception):
                raise
            self._report("reset", error)
        else:
            slots.reset_done(slot, self.clock())
            self._follow_up()

    def _begin_destroy(self, slot: Slot[T]) -> None:
        try:
            pending: object = self.factory.destroy(slot.item)
        except BaseException as error:
            self._destroyed(slot)
            if not isinstance(error, Exception):
                raise
            self._report("destroy", error)
            return
        if pending is not None and isawaitable(pending):
            self._spawn(partial(self._destroy, slot, pending), "destroy")
        else:
            self._destroyed(slot)

    async def _destroy(self, slot: Slot[T], pending: Awaitable[object]) -> None:
        try:
            # Shielded: the end of the loop, or of a request, must not leave an item half ended.
            with anyio.CancelScope(shield=True), anyio.fail_after(self._destroy_timeout):
                await pending
        except Exception as error:
            self._report("destroy", error)
        finally:
            self._destroyed(slot)
            self._follow_up()

    def _destroyed(self, slot: Slot[T]) -> None:
        self.slots.destroy_done(slot, self.clock())
        self._gone(slot)

    def _gone(self, slot: Slot[T]) -> None:
        """Tell those who wait for a slot to end, or for all of them."""
        self.places.pop(slot, None)
        for old, wakeup in self._watchers:
            old.discard(slot)
            if not old:
                wakeup.wake()
        if self.slots.closed and not self.slots.all:
            for wakeup in self._emptied:
                wakeup.wake()

    def _on_timer(self) -> None:
        self._timer_at = inf
        self.slots.sweep(self.clock())
        self._follow_up()

    # --- small parts ------------------------------------------------------------------------------

    def _filled(self) -> bool:
        slots = self.slots
        return slots.size - slots.creating - slots.closing >= slots.min_size

    async def _empty(self, timeout: float | None) -> bool:
        """Wait until a closed pool has no slot left; return whether it came to that."""
        if not self.slots.all:
            return True
        assert self._loop is not None
        wakeup = self._loop.wakeup()
        self._emptied.append(wakeup)
        try:
            with anyio.move_on_after(timeout):
                await wakeup
        finally:
            self._emptied.remove(wakeup)
        return not self.slots.all

    def _longest_end(self) -> float | None:
        """Return how long it takes at most until what is not in use has ended."""
        reset, check = self._reset_timeout, self._check_timeout
        if reset is None or check is None or self._destroy_timeout is None:
            return None
        return max(reset, 2 * check) + self._destroy_timeout

    def _report(self, phase: str, error: BaseException) -> None:
        logger.warning(
            "pool %r: %s failed: %s: %s",
            self.name,
            phase,
            type(error).__name__,
            error,
            exc_info=error,
        )

    def _opened(self) -> Loop:
        if self._loop is None or self.slots.closed or not self.is_here():
            raise self._wrong_place()
        return self._loop

    def _wrong_place(self) -> PoolError:
        if self.slots.closed:
            return PoolClosedError(f"pool {self.name!r} is closed: nothing can be leased any more.")
        if self._loop is None:
            return PoolNotOpenError(
                f"pool {self.name!r} is not open yet: use `async with pool:`, "
                "or `await pool.open()` first."
            )
        return WrongLoopError(
            f"pool {self.name!r} was opened in another event loop or thread: "
            "use it only there, and make one pool for each loop."
        )

    def _explain(self, holders: tuple[Holder, ...]) -> str:
        slots = self.slots
        told = (
            f"{slots.in_use} of max_size={slots.max_size} in use, {slots.creating} being "
            f"created, {slots.resetting} being made ready, {slots.closing} being destroyed."
        )
        if holders:
            told += " Held longest: " + ", ".join(map(str, holders)) + "."
        if slots.last_create_error is not None:
            error = slots.last_create_error
            told += f" The last create failed: {type(error).__name__}: {error}."
            return told + " Mend what `create` needs."
        if holders and not self._record_holders and self.hints:
            told += " record_holders=True shows where they were acquired."
        return told + " Hold leases for less time, or raise max_size."

    def _create_error(self, error: BaseException) -> FactoryError:
        return FactoryError(
            f"pool {self.name!r} could not create an item: {type(error).__name__}: {error}",
            phase="create",
        )

    def _refusal(self, waiter: Waiter[T], timeout: float | None) -> PoolError:
        """Say why a waiter got nothing."""
        if waiter.outcome is Outcome.CLOSED:
            return PoolClosedError(f"pool {self.name!r} was closed while this caller waited.")
        if waiter.outcome is Outcome.FAILED:
            assert waiter.error is not None
            if waiter.phase == "create":
                return self._create_error(waiter.error)
            return FactoryError(
                f"pool {self.name!r}: on_acquire failed: "
                f"{type(waiter.error).__name__}: {waiter.error}",
                phase="on_acquire",
            )
        waiter.error = self.slots.last_create_error
        holders = self.holders()
        return PoolTimeoutError(
            f"pool {self.name!r} is exhausted: nothing became free within "
            f"acquire_timeout={timeout} s. {self._explain(holders)}",
            holders,
        )


class _NeverOpened:
    """Stands in for the loop of a pool that was closed before it was opened."""


_NEVER_OPENED: Any = _NeverOpened()
