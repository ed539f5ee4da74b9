"""The pool that a resource has in one event loop, and who has borrowed from it."""

from __future__ import annotations

import logging
import sys
from collections.abc import Awaitable, Callable
from contextvars import Context
from threading import get_ident
from time import monotonic
from typing import TYPE_CHECKING, Any

from sandboxpool._context import RequestLease
from sandboxpool._loop import Home, Loop, Timer, Wakeup, running_loop
from sandboxpool._pool import Pool
from sandboxpool._slots import Slot
from sandboxpool._stacks import stack_of
from sandboxpool.run.loop import In

from ._member import SERVICE, UNUSED, Driver, Member
from ._tasks import how_to_tell_the_task
from ._waits import find_deadlock, waits

if TYPE_CHECKING:
    from ._binding import Binding
    from ._borrow import Borrow
    from ._shared import Shared

logger = logging.getLogger("sandboxpool.resources")

# Seconds between two looks after waits that have come to be without an end, and idle holders.
_LOOKS_EVERY = 0.25


class Here:
    """The pool of a resource in one event loop; also the factory of its connections.

    Attributes:
        borrows: Who has a connection.
        bindings: What each request has, by lease.
        ready: Whether it is open.
        lends: Whether borrowers get something else than the connection itself.
        last_use: How often a connection that is not worn out was used before, at most.
        owners: The apps that have used it; the last one that ends closes it.
    """

    def __init__(self, shared: Shared) -> None:
        self.shared = shared
        self.name = shared.name
        self.driver = shared.driver
        # What the pool does by itself belongs to no request, also if one has brought it about.
        self.loop: Loop = Context().run(running_loop)
        self.home: Home = self.loop.home
        self.current_task = how_to_tell_the_task(self.loop)
        self.borrows: dict[Borrow[Any], None] = {}
        self.bindings: dict[RequestLease, Binding] = {}
        self.owners: set[object] = set()
        self.closed = False
        self.ready = False
        self.lends = type(self.driver).lend is not Driver.lend
        self._alive = self.driver.alive
        # What a driver keeps for this loop, and closes with it.
        self.extras: dict[str, Any] = {}
        self.at_close: list[Callable[[], Awaitable[object]]] = []
        self.pool: Pool[Member] = Pool(self, name=shared.name, **shared.pool_options)
        self.pool.hints = False
        self.slots = self.pool.slots
        max_uses = shared.pool_options["max_uses"]
        self.last_use = sys.maxsize if max_uses is None else max_uses - 1
        self._opening: list[Wakeup] | None = None
        self._opened = False
        self._timer: Timer | None = None
        self._looking = False

    def is_here(self) -> bool:
        """Tell whether this is its loop."""
        return self.home._thread_id == get_ident()

    # --- life ---------------------------------------------------------------------------------

    async def open(self) -> None:
        """Open the pool, if nobody has; no connection is opened yet."""
        while not self._opened:
            if self._opening is None:
                self._opening = []
                try:
                    await In(Context(), self.pool.open())
                    self._opened = True
                    self._timer = self.loop.timer(self._look)
                    self.ready = not self.closed
                finally:
                    wakeups, self._opening = self._opening, None
                    for wakeup in wakeups:
                        wakeup.wake()
            else:
                wakeup = self.loop.wakeup()
                self._opening.append(wakeup)
                await wakeup

    async def fill(self, min_size: int) -> None:
        """Have *min_size* connections opened and kept, in the background."""
        if min_size and self.pool.slots.min_size != min_size:
            await self.pool.resize(min_size=min_size)

    async def aclose(self, timeout: float | None = 0) -> None:
        """Close every connection; see `Pool.aclose`."""
        self.closed = True
        self.ready = False
        if self._timer is not None:
            self._timer.close()
        try:
            await self.pool.aclose(timeout)
        finally:
            while self.at_close:
                await self.at_close.pop()()

    def call(self, function: Callable[[], object]) -> None:
        """Call *function* in this loop, from whichever thread."""
        try:
            self.loop.call_from_thread(function)
        except RuntimeError:
            pass  # it has ended, and whoever waited in it

    # --- the factory of the pool ----------------------------------------------------------------

    async def create(self) -> Member:
        """Open a connection, within the quota of all loops."""
        await self.shared.quota.take(self)
        began = monotonic()
        member = Member(self.name)
        try:
            await self.driver.open(member)
        except BaseException:
            self.shared.quota.give(self)
            raise
        self.shared.create_time.add(monotonic() - began)
        member.borrow = None
        return member

    def reset(self, member: Member) -> Awaitable[None] | None:
        """Make a connection as good as new."""
        pending = None if member.borrow is UNUSED else self.driver.reset(member)
        if pending is not None:
            return self._reset(member, pending)
        member.borrow = None
        return None

    async def _reset(self, member: Member, pending: Awaitable[None]) -> None:
        await pending
        member.borrow = None
        member.effect = 0

    async def destroy(self, member: Member) -> None:
        """Close a connection."""
        member.borrow = SERVICE
        try:
            await self.driver.close(member)
        finally:
            self.shared.quota.give(self)

    async def check(self, member: Member) -> bool:
        """Tell whether a connection still works."""
        member.borrow = SERVICE
        works = self.driver.alive(member) and await self.driver.check(member)
        member.borrow = None
        return works

    # --- sharing with other loops ---------------------------------------------------------------

    def shed_soon(self) -> None:
        """Give idle connections up for other loops; from whichever thread."""
        self.call(self._shed)

    def _shed(self) -> None:
        quota = self.shared.quota
        for _ in range(quota.waiting):
            if self.closed or not quota.waiting or not self.pool.slots.idle:
                return
            slot = self.pool.take()
            if slot is None:
                return
            self.retire(slot, "moved")

    def retire(self, slot: Slot[Member], reason: str) -> None:
        """Close a leased connection instead of giving it back."""
        slot.retire = reason
        self.pool.give_back(slot)

    def take(self) -> Slot[Member] | None:
        """Take an idle connection that has not been closed from the other side."""
        slots = self.slots
        if not slots.idle:
            return None
        slot = slots.take(monotonic())
        while slot is not None and not self._alive(slot.item):
            self.retire(slot, "unhealthy")
            slot = slots.take(monotonic())
        if slots.jobs:
            self.pool._follow_up()  # it has found expired ones
        return slot

    # --- looking after those who have something -------------------------------------------------

    def look_later(self) -> None:
        """Look after borrows and waits as long as there are any."""
        if not self._looking and self._timer is not None:
            self._looking = True
            self._timer.arm(_LOOKS_EVERY)

    def _look(self) -> None:
        self._looking = False
        if self.closed:
            return
        self._name_idle_holders()
        mine = [wait for wait in waits.values() if wait.here is self]
        for wait in mine:
            if not wait.chain:
                wait.chain = find_deadlock(wait)
                if wait.chain and wait.leave is not None:
                    wait.leave()
        if self.borrows or mine:
            self.look_later()

    def _name_idle_holders(self) -> None:
        after = self.shared.idle_warning
        if after is None or not self.driver.tracks:
            return
        now = monotonic()
        for borrow in tuple(self.borrows):
            member, lease = borrow.member, borrow.lease
            if member is None or borrow.noted or lease is None:
                continue
            if self.driver.busy(member):
                member.used_at = now
                continue
            idle = now - max(member.used_at, borrow.began)
            if idle >= after:
                borrow.noted = True
                self.shared.held_idle += 1
                state = "with an open transaction" if self.driver.pinned(member) else "idle"
                logger.warning(
                    "%s holds a connection of %r %s for %.2g s while it does something else: give "
                    "it back before, with `async with ....connection()` around the statements only "
                    "or `release()`. It is at:\n%s",
                    borrow.who,
                    self.name,
                    state,
                    idle,
                    stack_of(lease),
                )
