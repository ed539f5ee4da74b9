"""The rules of a pool: who gets what, when to create, when to retire.

Plain synchronous decisions: no `await`, no event loop, no clock of its own. Every method is one
critical section that leaves all of the rules true, so no lock is needed and no cancellation can
fall in between. What must be awaited is not done here but put on `jobs`, for the pool to do.

Rules, true between any two calls:

1.  A slot is in exactly one state, and `idle + in_use + creating + resetting + closing == size`.
    A slot is counted from before its `create` begins until after its `destroy` has ended.
2.  `size` grows only while it is below `max_size`. (A `resize` may leave it above; it shrinks
    as leases end.)
3.  If a waiter exists, every idle item has a check of its own to pass first, and each waiter
    has such a check under way. Without `on_acquire` and stale items: a waiter exists, so nothing
    is idle. That is why the fast path looks at `idle` only, and why nobody can overtake.
4.  A free item goes to the oldest live waiter in the very call that frees it.
5.  A waiter is settled once: granted, or told why not, or gone by its own cancellation. Who
    settles it takes it out of the queue.
6.  At most `max_creating` creates run at once, and no more than waiters and `min_size` need.
7.  Once closing, nothing becomes idle or in use again, and nobody waits.

    create --> CREATING --> IDLE --> IN_USE --> RESETTING --> IDLE ...
                   |          |         |           |
                   +----------+---------+-----------+--> CLOSING --> gone

A waiter that leaves (timeout, cancellation) only marks its entry; the queue drops dead entries
when they come to the front, or all at once when they are many and more than half of it, so that
the cost of leaving does not depend on how many wait.
"""

from __future__ import annotations

import random
from bisect import bisect_left
from collections import deque
from enum import Enum
from heapq import heapify, heappop, heappush
from math import inf
from operator import attrgetter
from typing import Any, Final, Generic, Protocol, TypeVar

import attrs

from .abc import PoolStatistics

T = TypeVar("T")

_since = attrgetter("since")

_COMPACT_ABOVE: Final = 64
_EXPIRED_PER_PASS: Final = 16
_MOVED_PER_PASS: Final = 200_000
_EXPIRIES_PER_PASS: Final = 64  # looked at, most of them perhaps in use or gone


class State(Enum):
    """Where a slot is."""

    CREATING = "creating"
    IDLE = "idle"
    IN_USE = "in use"
    RESETTING = "resetting"
    CLOSING = "closing"
    GONE = "gone"


IDLE = State.IDLE  # an attribute of an enum class is a slow one


class Job(Enum):
    """What the pool must do, because it takes an await."""

    CREATE = "create"
    PREPARE = "prepare"
    DESTROY = "destroy"


class Outcome(Enum):
    """How a wait ended."""

    GRANTED = "granted"
    TIMED_OUT = "timed out"
    FAILED = "failed"
    CLOSED = "closed"
    GAVE_UP = "gave up"


_GRANTED = Outcome.GRANTED


class Wake(Protocol):
    """The part of a wake-up that is needed to decide."""

    def wake(self) -> None:
        """Wake the waiting task."""
        ...


@attrs.frozen
class Limits:
    """The options that the rules depend on; their meaning is documented at `Pool`."""

    max_creating: int = 4
    max_waiting: int | None = None
    max_uses: int | None = None
    max_lifetime: float | None = None
    max_idle: float | None = None
    check_after: float | None = None
    prepares: bool = False
    replaces: bool = False
    jitter: float = 0.1
    create_backoff: float = 0.05
    max_create_backoff: float = 5.0


class Slot(Generic[T]):
    """A place in the pool, and the item in it. A large pool has many: no field is for show."""

    __slots__ = ("expires_at", "item", "key", "retire", "since", "status", "uses")

    item: T

    def __init__(self, now: float) -> None:
        # The number of the lease that holds it, or else its state: one store for both.
        self.status: int | State = State.CREATING
        # When the state began, except that resetting keeps that of the lease, and a check that
        # of being idle.
        self.since = now
        self.uses = 0
        self.expires_at = inf
        self.retire: str | None = None  # why to retire it as soon as it is free
        self.key: Any = None  # once it was leased, while no lease has it; see `_lease.Key`

    def __lt__(self, other: Slot[Any]) -> bool:
        # For the heap of expiries, which needs no entries of its own that way.
        return self.expires_at < other.expires_at

    def __repr__(self) -> str:
        return f"<Slot {self.state.value}>"

    @property
    def state(self) -> State:
        """Where it is."""
        return self.status if isinstance(self.status, State) else State.IN_USE

    @property
    def lease(self) -> int:
        """The number of the lease that holds it, 0 for none."""
        return 0 if isinstance(self.status, State) else self.status


class Waiter(Generic[T]):
    """A caller in the queue."""

    __slots__ = ("deadline", "error", "outcome", "phase", "seq", "since", "slot", "wakeup")

    def __init__(self, wakeup: Wake, since: float, deadline: float, seq: int) -> None:
        self.wakeup = wakeup
        self.since = since
        self.deadline = deadline
        self.seq = seq
        self.outcome: Outcome | None = None
        self.slot: Slot[T] | None = None
        self.error: BaseException | None = None
        self.phase = ""  # the hook that raised it


class Slots(Generic[T]):
    """The state of a pool.

    Attributes:
        jobs: What the pool must start now, in order; it empties the queue.
        preparing: How many of the `resetting` slots are in a check or in `on_acquire`.
        idle: The idle slots; the right end was used last and is used next (so that the rest
            can age and be retired). Ordered by `since`.
        fresh_for: Seconds for which an idle item may be lent without a check.
        low: With fewer idle slots than that, more may be in use than ever before.
    """

    # Slots, because more than 30 attributes are too many for CPython's fast instances.
    __slots__ = (
        "_backoff",
        "_begun",
        "_deadlines",
        "_expiries",
        "_held_back",
        "_owed",
        "_queue",
        "_seq",
        "_unreset",
        "all",
        "closed",
        "closing",
        "create_failures",
        "created",
        "fresh_for",
        "hold_time",
        "idle",
        "jobs",
        "last_create_error",
        "leases",
        "limits",
        "low",
        "max_size",
        "min_size",
        "name",
        "peak_in_use",
        "plain",
        "preparing",
        "refusals",
        "reset_failures",
        "resetting",
        "retired",
        "retry_at",
        "timeouts",
        "wait_time",
        "waiting",
        "waits",
    )

    def __init__(self, name: str, min_size: int, max_size: int, limits: Limits) -> None:
        self.name = name
        self.min_size = min_size
        self.max_size = max_size
        self.limits = limits
        self.jobs: deque[tuple[Job, Slot[T]]] = deque()
        self.idle: deque[Slot[T]] = deque()
        self.all: dict[Slot[T], None] = {}
        self.resetting = 0
        self.preparing = 0
        self.closing = 0
        self.closed = False
        self.last_create_error: BaseException | None = None
        self.retry_at = -inf
        self.peak_in_use = 0
        self.low = 0
        self.leases = 0
        self.waits = 0
        self.wait_time = 0.0
        self.hold_time = 0.0
        self.timeouts = 0
        self.refusals = 0
        self.created = 0
        self.create_failures = 0
        self.reset_failures = 0
        self.retired: dict[str, int] = {}
        self.waiting = 0
        self._queue: deque[Waiter[T]] = deque()
        # A heap of tuples: they are compared in C. The same deadline expires in order of arrival.
        self._deadlines: list[tuple[float, int, Waiter[T]]] = []
        self._expiries: list[Slot[T]] = []
        self._begun: dict[Slot[T], int] = {}  # creates; the newest waiter when each began
        self._seq = 0
        self._held_back = False  # a create that is needed waits for `retry_at`
        self._unreset = 0  # leases that ended without a reset
        self._backoff = limits.create_backoff
        self._owed = 0  # items that wore out and are replaced without being asked for
        if limits.prepares:
            self.fresh_for = -inf
        else:
            self.fresh_for = inf if limits.check_after is None else limits.check_after
        # Whether a release may skip the rules that concern the whole pool; see `_lease`.
        self.plain = False

    # --- figures that a lease need not count, since they follow from others --------------------

    @property
    def size(self) -> int:
        """How many slots there are."""
        return len(self.all)

    @property
    def creating(self) -> int:
        """How many slots are being created."""
        return len(self._begun)

    @property
    def in_use(self) -> int:
        """How many slots are on lease."""
        others = len(self.idle) + len(self._begun) + self.resetting + self.closing
        return len(self.all) - others

    @property
    def resets(self) -> int:
        """How many resets have succeeded: of all leases, those that came to nothing else."""
        ended = self.leases - self.in_use
        under_way = self.resetting - self.preparing
        return ended - self._unreset - self.reset_failures - under_way

    def note_peak(self) -> None:
        """Note how many are in use, if they were never as many, and how many must be idle.

        While leases just come and go, `in_use` and the idle slots add up to the same sum, so
        that a lease need only look whether fewer than `low` are idle. What makes the sum larger
        must call this; what makes it smaller leaves `low` too high, and a lease calls this once.
        """
        in_use = self.in_use
        if in_use > self.peak_in_use:
            self.peak_in_use = in_use
        self.low = len(self.idle) + in_use - self.peak_in_use

    # --- acquire ------------------------------------------------------------------------------

    def take(self, now: float) -> Slot[T] | None:
        """Lease the item that was used last, if one is idle; `None` means: wait."""
        idle = self.idle
        while idle:
            slot = idle.pop()
            if now >= slot.expires_at:
                self._retire(slot, "max_lifetime")
                continue
            if now - slot.since < self.fresh_for:
                slot.since = now
                self.leases = slot.status = self.leases + 1
                if len(idle) < self.low:
                    self.note_peak()
                return slot
            # Idle for so long that it must be checked, or to be prepared: the caller will wait
            # for that, at the head of the queue, since nobody else waits.
            idle.append(slot)
            return None
        return None

    def refuses(self) -> bool:
        """Tell whether one more waiter would be too many; count it if so.

        Whoever only waits for the check of an idle item does not count: a pool in which nobody
        may wait would else refuse everybody, for good, once all of its items are stale.
        """
        limit = self.limits.max_waiting
        if limit is not None and self.waiting - self.preparing - len(self.idle) >= limit:
            self.refusals += 1
            return True
        return False

    def enqueue(self, wakeup: Wake, now: float, deadline: float) -> Waiter[T]:
        """Put a caller at the end of the queue, and start what it needs."""
        self._seq += 1
        waiter: Waiter[T] = Waiter(wakeup, now, deadline, self._seq)
        self._queue.append(waiter)
        self.waiting += 1
        if deadline < inf:
            heappush(self._deadlines, (deadline, self._seq, waiter))
            # A granted waiter stays in the heap, as dead entries do.
            if self._many_dead(len(self._deadlines)):
                self._compact()
        if self.idle or len(self.all) < self.max_size:  # else nothing could be started
            self._serve(now)
        return waiter

    def give_up(self, waiter: Waiter[T], now: float) -> None:
        """Take a cancelled caller out of the queue; pass on what it was granted."""
        if waiter.outcome is None:
            self._settle(waiter, Outcome.GAVE_UP, now)
            self._compact()
        elif waiter.slot is not None:
            # Granted and cancelled in the same tick: the next one gets it, unused.
            slot, waiter.slot = waiter.slot, None
            self._unreset += 1
            self._place(slot, now)

    # --- release ------------------------------------------------------------------------------

    def end_lease(self, slot: Slot[T], now: float) -> bool:
        """End the use of an item.

        Returns:
            Whether the item shall be reset. It is then `resetting`, and `reset_done()` or
            `reset_failed()` must follow; otherwise it is being retired.
        """
        self.hold_time += now - slot.since
        slot.uses += 1
        reason = slot.retire or self._worn(slot, now)
        if reason is not None:
            self._unreset += 1
            self._retire(slot, reason)
            self._serve(now)
            return False
        slot.status = State.RESETTING
        self.resetting += 1
        return True

    def put_back(self, slot: Slot[T], now: float) -> bool:
        """End the use of an item that was reset already, if it just becomes idle.

        `end_lease()` and `reset_done()` in one, for the case that nothing is to be decided.

        Returns:
            Whether that was so; if not, nothing was changed.
        """
        if not self.plain or self.waiting or slot.retire is not None or now >= slot.expires_at:
            return False
        self.hold_time += now - slot.since
        slot.uses += 1
        slot.status = IDLE
        slot.since = now
        self.idle.append(slot)
        return True

    def hand_over(self, slot: Slot[T], now: float) -> None:
        """Give an item from its lease to the oldest waiter, in one step.

        The same as `end_lease()` and `reset_done()`, of an item that is neither worn nor to be
        retired, while the pool is `plain` and somebody waits: what a busy pool does all the time.
        """
        # `_next_waiter()` and `_settle()` are written out.
        queue = self._queue
        waiter = queue.popleft()
        while waiter.outcome is not None:
            waiter = queue.popleft()
        self.hold_time += now - slot.since
        slot.uses += 1
        slot.since = now
        self.leases = slot.status = self.leases + 1
        self.waits += 1
        self.waiting -= 1
        self.wait_time += now - waiter.since
        waiter.slot = slot
        waiter.outcome = _GRANTED
        waiter.wakeup.wake()

    def reset_done(self, slot: Slot[T], now: float) -> None:
        """Lend a reset item to the oldest waiter, or make it idle."""
        self.resetting -= 1
        self._place(slot, now)

    def reset_failed(self, slot: Slot[T], now: float) -> None:
        """Retire an item whose reset failed."""
        self.reset_failures += 1
        self.resetting -= 1
        self._retire(slot, "reset_failed")
        self._serve(now)

    def _worn(self, slot: Slot[T], now: float) -> str | None:
        limits = self.limits
        if limits.max_uses is not None and slot.uses >= limits.max_uses:
            return "max_uses"
        if now >= slot.expires_at:
            return "max_lifetime"
        if self._oversize():
            return "resized"
        return None

    def _oversize(self) -> bool:
        return len(self.all) - self.closing > self.max_size

    def _note_plain(self) -> None:
        self.plain = not (self.closed or self.limits.prepares or self._oversize())

    # --- creation and preparation -------------------------------------------------------------

    def reserve(self, now: float) -> Slot[T] | None:
        """Reserve a slot for one more create, if one is needed and allowed."""
        self._held_back = False
        if (
            self.closed
            or len(self._begun) >= self.limits.max_creating
            or len(self.all) >= self.max_size
        ):
            return None
        if self.waiting > self.creating + self.resetting or len(self.all) < self.min_size:
            if now < self.retry_at:
                self._held_back = True
                return None
        elif self._owed == 0:
            return None
        if self._owed:
            self._owed -= 1  # also when somebody waits: it is one item less to make up for
        slot: Slot[T] = Slot(now)
        self.all[slot] = None
        self._begun[slot] = self._seq
        return slot

    def create_done(self, slot: Slot[T], item: T, now: float) -> None:
        """Put a new item into its slot and lend it to the oldest waiter, or make it idle."""
        del self._begun[slot]
        self.created += 1
        self._backoff = self.limits.create_backoff
        self.retry_at = -inf
        self.last_create_error = None
        slot.item = item
        lifetime = self.limits.max_lifetime
        if lifetime is not None:
            slot.expires_at = now + self._jittered(lifetime)
            heappush(self._expiries, slot)
            if len(self._expiries) > _COMPACT_ABOVE + 2 * len(self.all):
                self._expiries = [old for old in self._expiries if old in self.all]
                heapify(self._expiries)
        self._place(slot, now)
        self._serve(now)

    def create_failed(self, slot: Slot[T], error: BaseException, now: float) -> None:
        """Give the slot back, and tell those who were waiting for it.

        The oldest of them is told. If nothing is left that could come back to the others, so
        are all that waited when this create began. Who came later gets the next attempt, which
        begins after a pause that doubles with each failure in a row.
        """
        newest = self._begun.pop(slot)
        self.create_failures += 1
        self.last_create_error = error
        self._drop(slot)
        self.retry_at = now + self._jittered(self._backoff)
        self._backoff = min(self._backoff * 2, self.limits.max_create_backoff)
        self._owed = 0
        self._fail_waiters(error, "create", newest, everyone=not self.all, now=now)
        self._serve(now)

    def prepare_done(self, slot: Slot[T], now: float) -> None:
        """Lend an item that passed its check and `on_acquire`, or make it idle again."""
        self.resetting -= 1
        self.preparing -= 1
        self._place(slot, now, prepared=True)
        self._serve(now)

    def prepare_failed(self, slot: Slot[T], error: BaseException | None, now: float) -> None:
        """Retire an item that failed its check, or (with an *error*) its `on_acquire`."""
        self.resetting -= 1
        self.preparing -= 1
        self._retire(slot, "unhealthy")
        if error is not None:
            # Told to the waiter, or a hook that always fails would create items for ever.
            self._fail_waiters(error, "on_acquire", self._seq, everyone=False, now=now)
        self._serve(now)

    def destroy_done(self, slot: Slot[T], now: float) -> None:
        """Forget a destroyed item; its place is free."""
        self.closing -= 1
        self._drop(slot)
        self._serve(now)

    # --- time ---------------------------------------------------------------------------------

    def sweep(self, now: float) -> None:
        """Do what is due: timeouts, idle items to retire, expired ones, creates to retry.

        Bounded work: late by an hour, it still retires only a share of the items, and is due
        again soon.
        """
        deadlines = self._deadlines
        while deadlines and deadlines[0][0] <= now:
            waiter = heappop(deadlines)[2]
            if waiter.outcome is None:
                self.timeouts += 1
                self._settle(waiter, Outcome.TIMED_OUT, now)
        self._compact()
        # To take one out of the middle of a long deque moves half of it.
        expired = min(_EXPIRED_PER_PASS, 1 + _MOVED_PER_PASS // (1 + len(self.idle)))
        for _ in range(_EXPIRIES_PER_PASS):
            if not expired or not self._expiries or self._expiries[0].expires_at > now:
                break
            slot = heappop(self._expiries)
            if slot.status is IDLE:  # the others go when they come back
                self._take_out(slot)
                self._retire(slot, "max_lifetime")
                expired -= 1
        max_idle = self.limits.max_idle
        if max_idle is not None:
            surplus = len(self.all) - self.closing - self.min_size
            for _ in range(min((surplus + 3) // 4, len(self.idle))):
                if self.idle[0].since + max_idle > now:
                    break
                self._retire(self.idle.popleft(), "max_idle")
        self._serve(now)

    def due(self, now: float) -> float:
        """Return when `sweep()` has something to do at the earliest; `inf` for never.

        Valid until a waiter with an earlier deadline comes or a create fails: what becomes idle
        or is created later is due later than this.
        """
        when = self._deadlines[0][0] if self._deadlines else inf
        # Held back: also if the pause has passed since the decision, or nobody would end it.
        wanted = self.waiting or len(self.all) < self.min_size
        if self._held_back or (self.retry_at > now and wanted):
            when = min(when, self.retry_at)
        limits = self.limits
        if limits.max_lifetime is not None and not self.closed:
            soonest = limits.max_lifetime * (1 - limits.jitter)
            when = min(when, self._expiries[0].expires_at if self._expiries else now + soonest)
        if limits.max_idle is not None and not self.closed:
            oldest = now
            if self.idle and len(self.all) - self.closing > self.min_size:
                oldest = self.idle[0].since
            # Not at once again: what one pass leaves over is for the next one.
            when = min(when, max(oldest + limits.max_idle, now + limits.max_idle / 4))
        return when

    # --- resize, drain, close -----------------------------------------------------------------

    def resize(self, min_size: int, max_size: int, now: float) -> None:
        """Change the bounds, retire idle items that are too many, create what is missing."""
        self.min_size = min_size
        self.max_size = max_size
        while self.idle and len(self.all) - self.closing > max_size:
            self._retire(self.idle.popleft(), "resized")
        self._note_plain()
        self._serve(now)

    def drain(self, now: float) -> set[Slot[T]]:
        """Retire every item, the idle ones now; return the slots that must go."""
        old = {slot for slot in self.all if slot.state is not State.CLOSING}
        for slot in old:
            slot.retire = slot.retire or "drained"
        while self.idle:
            self._retire(self.idle.popleft(), "drained")
        self._serve(now)
        return old

    def close(self, now: float) -> None:
        """Begin to close: tell every waiter, retire what is idle."""
        self.closed = True
        self._note_plain()
        for waiter in self._queue:
            if waiter.outcome is None:
                self._settle(waiter, Outcome.CLOSED, now)
        self._queue.clear()
        self._deadlines.clear()
        while self.idle:
            self._retire(self.idle.popleft(), "closed")

    def cut(self, now: float) -> None:
        """Retire also what is in use: the pool has waited for it long enough."""
        for slot in list(self.all):
            if slot.state is State.IN_USE:
                self.hold_time += now - slot.since
                self._unreset += 1
                self._retire(slot, "closed")

    # --- looking ------------------------------------------------------------------------------

    def statistics(self) -> PoolStatistics:
        """Return the figures of this moment."""
        return PoolStatistics(
            name=self.name,
            min_size=self.min_size,
            max_size=self.max_size,
            size=len(self.all),
            idle=len(self.idle),
            in_use=self.in_use,
            creating=self.creating,
            resetting=self.resetting,
            closing=self.closing,
            waiting=self.waiting,
            peak_in_use=self.peak_in_use,
            leases=self.leases,
            waits=self.waits,
            wait_time=self.wait_time,
            hold_time=self.hold_time,
            timeouts=self.timeouts,
            refusals=self.refusals,
            created=self.created,
            create_failures=self.create_failures,
            resets=self.resets,
            reset_failures=self.reset_failures,
            retired=dict(self.retired),
        )

    def check(self) -> None:
        """Assert the rules; for tests, its cost grows with the pool."""
        counted = dict.fromkeys(State, 0)
        for slot in self.all:
            counted[slot.state] += 1
        assert counted[State.IDLE] == len(self.idle), (counted, len(self.idle))
        assert counted[State.IN_USE] == self.in_use <= self.peak_in_use, (counted, self.in_use)
        assert self.low >= self.in_use + len(self.idle) - self.peak_in_use, self.low
        assert counted[State.CREATING] == self.creating, (counted, self.creating)
        assert counted[State.RESETTING] == self.resetting, (counted, self.resetting)
        assert counted[State.CLOSING] == self.closing, (counted, self.closing)
        assert counted[State.GONE] == 0, counted
        assert 0 <= self.preparing <= self.resetting, (self.preparing, self.resetting)
        assert self.creating <= self.limits.max_creating
        live = [waiter for waiter in self._queue if waiter.outcome is None]
        assert len(live) == self.waiting, (len(live), self.waiting)
        assert [w.seq for w in live] == sorted(w.seq for w in live)
        assert [s.since for s in self.idle] == sorted(s.since for s in self.idle)
        dead = len(self._queue) - len(live)
        assert dead <= max(_COMPACT_ABOVE, len(self._queue) // 2), (dead, len(self._queue))
        if live and self.idle:
            assert self.waiting <= self.preparing, "a waiter beside idle items"
        if self.closed:
            assert not live
            assert not self.idle

    # --- the critical sections' parts -----------------------------------------------------------

    def _serve(self, now: float) -> None:
        """Start all that those who wait, `min_size` and worn-out items ask for."""
        if self.closed:
            return
        # Stale idle items first: checking one is cheaper than creating one. Also when a create
        # is under way for this waiter: it may have been for a long time, and hang.
        while self.idle and self.waiting > self.preparing:
            slot = self.idle.pop()
            if now >= slot.expires_at:
                self._retire(slot, "max_lifetime")
                continue
            self._prepare(slot)
        while (slot_ := self.reserve(now)) is not None:
            self.jobs.append((Job.CREATE, slot_))

    def _prepare(self, slot: Slot[T]) -> None:
        slot.status = State.RESETTING
        self.resetting += 1
        self.preparing += 1
        self.jobs.append((Job.PREPARE, slot))

    def _place(self, slot: Slot[T], now: float, *, prepared: bool = False) -> None:
        """Put a usable item, which is counted nowhere, where it belongs now."""
        if self.closed:
            self._retire(slot, "closed")
            return
        if slot.retire is not None:
            self._retire(slot, slot.retire)
            self._serve(now)
            return
        if self._oversize():
            self._retire(slot, "resized")
            return
        if now >= slot.expires_at:
            # Its time came in a reset or a check; `sweep()` has passed it over and will not
            # look at it again.
            self._retire(slot, "max_lifetime")
            self._serve(now)
            return
        if self.waiting:
            if self.limits.prepares and not prepared:
                slot.since = inf  # from a create or from a use, not idle for any time: no check
                self._prepare(slot)
                return
            waiter = self._next_waiter()
            slot.since = now
            self.leases = slot.status = self.leases + 1
            self.waits += 1
            self.note_peak()
            waiter.slot = slot
            self._settle(waiter, Outcome.GRANTED, now)
            return
        slot.status = IDLE
        slot.since = now
        self.idle.append(slot)
        self.note_peak()

    def _take_out(self, slot: Slot[T]) -> None:
        """Take an idle slot out of the middle: a search by `since`, of which they are in order."""
        idle = self.idle
        place = bisect_left(idle, slot.since, key=_since)
        while idle[place] is not slot:  # others became idle in the same instant
            place += 1
        del idle[place]

    def _next_waiter(self) -> Waiter[T]:
        queue = self._queue
        while True:
            waiter = queue.popleft()
            if waiter.outcome is None:
                return waiter

    def _settle(self, waiter: Waiter[T], outcome: Outcome, now: float) -> None:
        waiter.outcome = outcome
        self.waiting -= 1
        self.wait_time += now - waiter.since
        waiter.wakeup.wake()

    def _compact(self) -> None:
        """Drop the dead entries once they are many and more than half."""
        if self._many_dead(len(self._queue)):
            self._queue = deque(w for w in self._queue if w.outcome is None)
        if self._many_dead(len(self._deadlines)):
            self._deadlines = [d for d in self._deadlines if d[2].outcome is None]
            heapify(self._deadlines)

    def _many_dead(self, entries: int) -> bool:
        return entries - self.waiting > _COMPACT_ABOVE and entries > 2 * self.waiting

    def _fail_waiters(
        self, error: BaseException, phase: str, newest: int, *, everyone: bool, now: float
    ) -> None:
        for waiter in tuple(self._queue) if everyone else self._queue:
            if waiter.seq > newest:
                break
            if waiter.outcome is None:
                waiter.error, waiter.phase = error, phase
                self._settle(waiter, Outcome.FAILED, now)
                if not everyone:
                    break
        self._compact()

    def _retire(self, slot: Slot[T], reason: str) -> None:
        """Take an item, which is counted nowhere, out for good."""
        slot.status = State.CLOSING
        self.closing += 1
        self.retired[reason] = self.retired.get(reason, 0) + 1
        if self.limits.replaces and reason in ("max_uses", "reset_failed", "unhealthy", "expired"):
            self._owed += 1
        self.jobs.append((Job.DESTROY, slot))
        if not self.plain:
            self._note_plain()

    def _drop(self, slot: Slot[T]) -> None:
        slot.status = State.GONE
        slot.key = None  # it refers to the slot
        del self.all[slot]
        if hasattr(slot, "item"):
            del slot.item  # whoever still holds the slot shall not keep the item alive
        if not self.plain:
            self._note_plain()

    def _jittered(self, seconds: float) -> float:
        return seconds * (1 - self.limits.jitter * random.random())
