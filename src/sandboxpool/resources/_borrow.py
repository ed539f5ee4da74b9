"""One use of a connection, from acquire to release."""

from __future__ import annotations

from bisect import bisect_left
from functools import partial
from math import inf
from threading import get_ident
from time import monotonic
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import anyio

from sandboxpool._context import RequestLease, current
from sandboxpool._exceptions import DeadlockError, LeaseEndedError, PoolTimeoutError
from sandboxpool._lease import Unset
from sandboxpool._slots import Slot

from ._binding import Binding
from ._figures import BOUNDS
from ._member import SERVICE, UNUSED, Member
from ._waits import Wait, find_deadlock, waits

if TYPE_CHECKING:
    from types import TracebackType

    from ._here import Here
    from ._shared import Shared

T = TypeVar("T")


class Borrow(Generic[T]):
    """A use of a connection: enter it to acquire, leave it to give back.

    Attributes:
        lease: The request it belongs to, or `None` outside of any.
        member: The connection, while it lasts.
        task: The task that has acquired it.
        own: Whether it is the request's own one, which lasts as long as the request.
        began: When it was acquired, on the monotonic clock.
        noted: Whether it was reported as idle.
    """

    # What most uses do not change is a default of the class: one store less on each.
    own = False
    noted = False
    member: Member | None = None
    _slot: Slot[Member] | None = None
    _number = 0
    _binding: Binding | None = None

    lease: RequestLease | None
    task: Any
    began: float
    _here: Here

    def __init__(self, shared: Shared, timeout: float | Unset | None, own: bool = False) -> None:
        self._shared = shared
        self._timeout = timeout
        if own:
            self.own = True

    @property
    def who(self) -> str:
        """Who has it, for errors and logs."""
        if self.lease is not None:
            return f"request {self.lease.id} ({self.lease.path})"
        task = self.task
        name = task.get_name() if hasattr(task, "get_name") else getattr(task, "name", task)
        return f"task {name!r}"

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        reason = None
        if exc is not None and not isinstance(exc, Exception) and not self._shared.driver.tracks:
            reason = "cancelled"
        self.release(reason)

    async def acquire(self) -> T:
        """Take a connection, or wait for one; see `Resource.connection`."""
        lease = self.lease = current.get()
        shared = self._shared
        if self._number:
            raise LeaseEndedError(
                f"this use of {shared.name!r} was entered before: call connection() again."
            )
        here = shared.last
        if here is None or here.home._thread_id != get_ident() or not here.ready:
            here = await shared.enter()
        binding = None
        if lease is not None:
            if lease.ended:
                lease.check_open()
            binding = self._binding = here.bindings.get(lease) or Binding.of(here, lease)
        self.task = here.current_task()
        slot = here.take()
        if slot is None:
            slot = await self._wait(here)
        else:
            shared.wait_counts[0] += 1
        member = slot.item
        self._here, self._slot, self._number = here, slot, slot.lease
        self.member = member
        member.borrow = self
        self.began = slot.since
        here.borrows[self] = None
        if binding is not None:
            binding.borrows[self] = None
            if binding.ended:  # while it waited
                self.release(None)
                assert lease is not None
                lease.check_open()
        if not here._looking:
            here.look_later()
        lent: T = here.driver.lend(member) if here.lends else member.connection
        return lent

    __aenter__ = acquire

    async def _wait(self, here: Here) -> Slot[Member]:
        timeout = here.shared.acquire_timeout if isinstance(self._timeout, Unset) else self._timeout
        began = monotonic()
        deadline = None if timeout is None else began + timeout
        # What ends by itself, at a timeout of its own or a deadline around it, may be an attempt.
        bounded = not isinstance(self._timeout, Unset) or anyio.current_effective_deadline() != inf
        wait = Wait(self.task, here, self, bounded)
        outer = waits.get(self.task)  # cannot be: a task waits once; kept in order all the same
        waits[self.task] = wait
        try:
            while True:
                slot = await here.pool.wait(timeout, on_queued=partial(_look_at_once, wait))
                if slot is None:
                    here.shared.deadlocks += 1
                    raise DeadlockError(
                        f"waiting for {here.name!r} would never end: {'; '.join(wait.chain)}. "
                        "Acquire in the same order everywhere, give back before you acquire more, "
                        "or pass the connection on instead of acquiring another one.",
                        wait.chain,
                    )
                if here.driver.alive(slot.item):
                    return slot
                # Handed over, or idle again, while the server closed it: once more, for what
                # is left of the time.
                here.retire(slot, "unhealthy")
                if deadline is not None:
                    timeout = max(0.0, deadline - monotonic())
        except PoolTimeoutError:
            here.shared.timeouts += 1
            raise
        finally:
            if outer is None:
                waits.pop(self.task, None)
            here.shared.wait_time.add(monotonic() - began)

    def release(self, reason: str | None, *, used: bool = True) -> None:
        """Give the connection back; never waits, and does nothing the second time.

        Args:
            reason: Why to close it instead, if so.
            used: Whether anything was done with it.
        """
        slot = self._slot
        if slot is None:
            return
        here = self._here
        if here.home._thread_id != get_ident():
            # A driver's connection is touched in its own loop only.
            here.call(partial(self.release, reason))
            return
        self._slot = None
        here.borrows.pop(self, None)
        binding = self._binding
        if binding is not None:
            binding.borrows.pop(self, None)
            if binding.own is self:
                binding.own = None
        member = self.member
        self.member = None
        assert member is not None
        shared = self._shared
        now = monotonic()
        used_for = now - self.began
        shared.use_time.total += used_for
        shared.use_time.counts[bisect_left(BOUNDS, used_for)] += 1
        if slot.status != self._number:
            return  # cut off while the pool was closed
        if (
            reason is None
            and slot.uses < here.last_use
            and not shared.quota.waiting
            and here.driver.clean(member)
            and here.slots.put_back(slot, now)
        ):
            member.borrow = None
            return
        member.borrow = SERVICE if used else UNUSED
        if slot.retire is None:
            reason = reason or here.driver.worn(member)
            if reason is None and shared.quota.waiting and shared.quota.is_wanted(here):
                reason = "moved"
            if reason is not None:
                slot.retire = reason
        here.pool.give_back(slot)


def _look_at_once(wait: Wait, leave: Any) -> None:
    wait.leave = leave
    wait.here.look_later()
    wait.chain = find_deadlock(wait)
    if wait.chain:
        leave()
