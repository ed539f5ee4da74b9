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
from threading import get_ident
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from ._exceptions import LeaseEndedError, WrongLoopError
from ._slots import Slot, State

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


class PoolLease(Generic[T]):
    """One use of a pooled item: enter it to acquire, leave it to release."""

    __slots__ = ("_number", "_slot", "_timeout")

    _pool: Pool[T]  # of the class that `bind()` makes

    def __init__(self, timeout: float | Unset | None) -> None:
        self._timeout = timeout
        self._slot: Slot[T] | None = None
        self._number = 0

    def __repr__(self) -> str:
        state = "open" if self._slot is not None else "ended" if self._number else "not entered"
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
        self._slot = slot
        self._number = slot.lease
        pool.note_holder(slot, sys._getframe(1))
        return slot.item

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        slot = self._slot
        if slot is None:
            raise LeaseEndedError(f"{self!r} cannot be released: it holds nothing.")
        if not self._pool.is_here():
            raise WrongLoopError(
                f"{self!r} was released in another event loop or thread than the pool's: "
                "nothing has changed, release it where it was acquired."
            )
        self._slot = None
        if slot.lease == self._number:
            self._pool.give_back(slot)
        # Otherwise it was cut off while the pool was closed: the item is gone already.

    def __del__(self) -> None:
        slot = self._slot
        if slot is not None and slot.lease == self._number:
            place = f" (acquired at {slot.where})" if slot.where else ""
            warnings.warn(
                f"{self!r} was dropped without being released{place}: its item is lost to the "
                "pool. Hold it with `async with pool.lease():`.",
                ResourceWarning,
                stacklevel=2,
                source=self,
            )

    def _held(self) -> Slot[T]:
        slot = self._slot
        if slot is None or slot.lease != self._number:
            raise LeaseEndedError(
                f"{self!r} holds nothing: use the item inside of "
                "`async with pool.lease() as item:`."
            )
        return slot


def bind(pool: Pool[T]) -> type[PoolLease[T]]:
    """Return the lease class of a pool, with the plain case of an open one inlined."""
    slots = pool.slots
    idle = slots.idle
    take_idle, put_idle = idle.pop, idle.append
    home, clock = pool.home, pool.clock
    reset = pool.factory.reset
    check_after = slots.limits.check_after
    max_uses = slots.limits.max_uses or sys.maxsize
    IN_USE, IDLE = State.IN_USE, State.IDLE
    slow_enter, slow_exit = PoolLease.__aenter__, PoolLease.__aexit__

    class BoundLease(PoolLease[T]):
        __slots__ = ()

        _pool = pool

        async def __aenter__(self) -> T:
            if idle and home._thread_id == get_ident() and slots.plain and not self._number:
                slot = take_idle()
                now = clock()
                if now < slot.fresh_until:
                    slot.state = IN_USE
                    slot.since = now
                    slots.leases = self._number = slot.lease = slots.leases + 1
                    in_use = slots.in_use = slots.in_use + 1
                    if in_use > slots.peak_in_use:
                        slots.peak_in_use = in_use
                    self._slot = slot
                    return slot.item
                put_idle(slot)
            return await slow_enter(self)

        async def __aexit__(self, exc_type: Any, exc: Any, traceback: Any) -> None:
            slot = self._slot
            if slot is None or slot.lease != self._number or home._thread_id != get_ident():
                return await slow_exit(self, exc_type, exc, traceback)
            now = clock()
            uses = slot.uses + 1
            if slot.retire is not None or uses >= max_uses or now >= slot.expires_at:
                return await slow_exit(self, exc_type, exc, traceback)
            self._slot = None
            try:
                pending = reset(slot.item)
            except BaseException as error:
                pool.reset_raised(slot, error)
                return None
            # Only now: the reset may have done anything with the pool, like closing it.
            if pending is None and slots.plain and not slots.waiting and slot.retire is None:
                slots.hold_time += now - slot.since
                slots.resets += 1
                slots.in_use -= 1
                slot.uses = uses
                slot.lease = 0
                slot.state = IDLE
                slot.since = now
                if check_after is not None:
                    fresh_until = now + check_after
                    slot.fresh_until = min(fresh_until, slot.expires_at)
                put_idle(slot)
            else:
                pool.finish(slot, pending)
            return None

    return BoundLease
