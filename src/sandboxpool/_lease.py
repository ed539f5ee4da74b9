"""One use of a pooled item: the fast path of acquire and release.

This is the one place where the rules of `_slots` are written a second time, inlined: a lease of
an idle item is what everybody pays on every request, and each Python call less is a tenth of
it. `bind()` builds a lease class for one pool, whose variables are closure cells. Whatever is
not the plain case falls through to the methods that state the rules (`Slots.take`,
`Pool.wait`, `Pool.give_back`); a test holds the two to the same results.
"""

from __future__ import annotations

import sys
import warnings
from math import inf
from threading import get_ident
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ._exceptions import LeaseEndedError, WrongLoopError
from ._factory import nothing
from ._slots import IDLE, Slot

if TYPE_CHECKING:
    from types import TracebackType

    from ._pool import Pool

T = TypeVar("T")


class Unset:
    """The pool's own timeout, as opposed to `None` for no limit."""

    def __repr__(self) -> str:
        return "the pool's acquire_timeout"


UNSET = Unset()


class _Nowhere:
    """The home of a pool that is not open: no thread has this number."""

    _thread_id: int | None = -1


NOWHERE = _Nowhere()


class Key:
    """What gives a lease its slot; there is one of each slot.

    Made for the first lease; from then on the slot keeps it while it is free, and the lease
    while it is open. So a key that dies with
    its slot still on lease tells that the lease was dropped. (A `__del__` of the lease would
    tell it too, but would run after every lease, and cost a tenth of it.)
    """

    __slots__ = ("_pool", "slot")

    def __init__(self, pool: Pool[Any], slot: Slot[Any]) -> None:
        self._pool = pool
        self.slot = slot

    def __del__(self) -> None:
        slot, pool = self.slot, self._pool
        if slot.lease and slot.key is not self:
            where = pool.places.get(slot)
            place = f" (acquired at {where})" if where else ""
            warnings.warn(
                f"<PoolLease {pool.lease_id(slot.lease)} of {pool.name!r} open> was dropped "
                f"without being released{place}: its item is lost to the pool. "
                "Hold it with `async with pool.lease():`.",
                ResourceWarning,
                stacklevel=2,
            )


class PoolLease(Generic[T]):
    """One use of a pooled item: enter it to acquire, leave it to release."""

    __slots__ = ("_key", "_number", "_timeout")

    _pool: Pool[T]  # of the class that `bind()` makes

    # Set by `Pool.lease()`: to call a class that has an `__init__` takes twice as long.
    _timeout: float | Unset | None
    _number: int
    _key: Key | None

    def __repr__(self) -> str:
        state = "open" if self._key is not None else "ended" if self._number else "not entered"
        return f"<PoolLease {self.id} of {self._pool.name!r} {state}>"

    @property
    def id(self) -> int:
        """A number that no other lease of this process has; 0 until the lease is entered."""
        return self._number and self._pool.lease_id(self._number)

    @property
    def item(self) -> T:
        """The item.

        Raises:
            LeaseEndedError: The lease has not been entered, has ended, or was cut off because
                the pool was closed.
        """
        return self._held().item

    def retire(self, reason: str = "unhealthy") -> None:
        """Have the item destroyed instead of reset when the lease ends.

        Args:
            reason: What `statistics().retired` counts it under.

        Raises:
            LeaseEndedError: As for `item`.
        """
        self._held().retire = reason

    async def __aenter__(self) -> T:
        pool = self._pool
        if self._number:
            raise LeaseEndedError(
                f"{self!r} was entered before: a lease is one use. Call pool.lease() again."
            )
        await pool.pause()
        slot = pool.take()
        if slot is None:
            slot = await pool.wait(self._timeout)
            assert slot is not None
        self._number = slot.lease
        self._key, slot.key = slot.key or Key(pool, slot), None
        pool.note_holder(slot, sys._getframe(1))
        return slot.item

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        key = self._key
        if key is None:
            raise LeaseEndedError(f"{self!r} cannot be released: it holds nothing.")
        if not self._pool.is_here():
            raise WrongLoopError(
                f"{self!r} was released in another event loop or thread than the pool's: "
                "nothing has changed, release it where it was acquired."
            )
        self._key = None
        slot = key.slot
        if slot.lease == self._number:
            slot.key = key
            self._pool.give_back(slot)
        # Otherwise it was cut off while the pool was closed: the item is gone already.

    def _held(self) -> Slot[T]:
        key = self._key
        if key is None or key.slot.lease != self._number:
            raise LeaseEndedError(
                f"{self!r} holds nothing: use the item inside of "
                "`async with pool.lease() as item:`."
            )
        return key.slot


def bind(pool: Pool[T]) -> type[PoolLease[T]]:
    """Return the lease class of a pool, with the plain case of an open one inlined."""
    slots = pool.slots
    idle = slots.idle
    home, clock = pool.home, pool.clock
    # Without a reset nothing can happen half-way through a release: nothing to look at again.
    reset = None if pool.factory.reset is nothing else pool.factory.reset
    fresh_for = slots.fresh_for
    always_fresh = fresh_for == inf
    max_uses = slots.limits.max_uses or sys.maxsize
    idle_state = IDLE  # a closure cell: a global takes longer
    wait, hand_over, note_peak = pool.wait, slots.hand_over, slots.note_peak
    slow_enter, slow_exit = PoolLease.__aenter__, PoolLease.__aexit__

    class BoundLease(PoolLease[T]):
        __slots__ = ()

        _pool = pool

        async def __aenter__(self) -> T:
            # Of a closed pool nothing is idle, and of one with `on_acquire` nothing is fresh.
            if idle and home._thread_id == get_ident() and not self._number:
                slot = idle.pop()
                now = clock()
                if now < slot.expires_at and (always_fresh or now - slot.since < fresh_for):
                    slot.since = now
                    # One object for all three: a number above 256 is an allocation.
                    slots.leases = self._number = slot.status = slots.leases + 1
                    if len(idle) < slots.low:
                        note_peak()
                    self._key = slot.key or Key(pool, slot)
                    slot.key = None
                    return slot.item
                idle.append(slot)
            elif home is not NOWHERE and not idle and not self._number:
                # The queue, without the steps in between that would find nothing to do.
                granted = await wait(self._timeout)
                assert granted is not None  # nobody else has it taken out of the queue
                self._number = granted.lease
                self._key = granted.key or Key(pool, granted)
                granted.key = None
                return granted.item
            return await slow_enter(self)

        async def __aexit__(self, exc_type: Any, exc: Any, traceback: Any) -> None:
            key = self._key
            # Who has the key has the item, unless it was cut off: then the pool is not plain.
            if key is None or home._thread_id != get_ident() or not slots.plain:
                return await slow_exit(self, exc_type, exc, traceback)
            slot: Slot[T] = key.slot
            now = clock()
            uses = slot.uses + 1
            if slot.retire is not None or uses >= max_uses or now >= slot.expires_at:
                return await slow_exit(self, exc_type, exc, traceback)
            self._key = None
            slot.key = key
            if reset is not None:
                try:
                    pending = reset(slot.item)
                except BaseException as error:
                    pool.reset_raised(slot, error)
                    return None
                # Again: the reset may have done anything with the pool, like closing it.
                still_plain: bool = slots.plain
                if pending is not None or not still_plain or slot.retire is not None:
                    pool.finish(slot, pending)
                    return None
            if slots.waiting:
                hand_over(slot, now)
            else:
                # What else is counted follows from these; see `Slots.resets`, `Slots.in_use`.
                slots.hold_time += now - slot.since
                slot.uses = uses
                slot.since = now
                slot.status = idle_state
                idle.append(slot)
            return None

    return BoundLease
