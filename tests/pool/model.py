"""A small model of a pool, beside the real rules: who holds, who waits, what is under way."""

from __future__ import annotations

from math import inf
from typing import Any

import attrs

from sandboxpool._slots import Job, Limits, Outcome, Slot, Slots, State, Waiter
from tests.pool.rig import Bell, check

_COUNTERS = (
    *("peak_in_use", "leases", "waits", "wait_time", "hold_time", "timeouts", "refusals"),
    *("created", "create_failures", "resets", "reset_failures"),
)


class Model:
    """Drives `Slots` and knows, by simple lists, what must be true of it after each step."""

    def __init__(self, min_size: int, max_size: int, limits: Limits) -> None:
        self.now = 0.0
        self.slots: Slots[object] = Slots("model", min_size, max_size, limits)
        self.under_way: dict[Job, list[Slot[Any]]] = {job: [] for job in Job}
        self.waiting: list[Waiter[Any]] = []
        self.leased: list[Slot[Any]] = []
        self.resetting: list[Slot[Any]] = []
        self.must_go: set[Slot[Any]] = set()
        self.items: set[int] = set()
        self.leases = self.given_up = self.ended = self.cut = self.destroyed = 0
        self.timeouts = self.failures = self.refusals = 0
        self.before = self.slots.statistics()
        self.slots.resize(min_size, max_size, 0.0)
        self.look()

    # --- steps ----------------------------------------------------------------------------------

    def acquire(self, timeout: float) -> None:
        slots = self.slots
        slot = slots.take(self.now)
        if slot is not None:
            assert not self.waiting, "a newcomer has overtaken"
            self.lend(slot)
        elif not slots.closed:
            if slots.refuses():
                self.refusals += 1
            else:
                self.waiting.append(slots.enqueue(Bell(), self.now, self.now + timeout))
        self.look()

    def cancel(self, index: int) -> None:
        waiter = self.waiting.pop(index)
        self.slots.give_up(waiter, self.now)
        assert waiter.outcome is Outcome.GAVE_UP
        self.look()

    def cancel_granted(self, index: int) -> None:
        """Cancel a caller in the tick of its grant: the lease was never used."""
        slot = self.leased.pop(index)
        waiter: Waiter[Any] = Waiter(Bell(), self.now, inf, 0)
        waiter.outcome, waiter.slot = Outcome.GRANTED, slot
        self.given_up += 1
        self.slots.give_up(waiter, self.now)
        self.look()

    def release(self, index: int, retire: bool) -> None:
        slot = self.leased.pop(index)
        self.ended += 1
        if retire:
            slot.retire = "expired"
        if self.slots.end_lease(slot, self.now):
            assert slot not in self.must_go
            self.resetting.append(slot)
        self.look()

    def end_reset(self, index: int, ok: bool) -> None:
        slot = self.resetting.pop(index)
        (self.slots.reset_done if ok else self.slots.reset_failed)(slot, self.now)
        self.look()

    def end_create(self, index: int, ok: bool) -> None:
        slot = self.under_way[Job.CREATE].pop(index)
        if ok:
            item = object()
            self.items.add(id(slot))
            self.slots.create_done(slot, item, self.now)
        else:
            self.failures += 1
            self.must_go.discard(slot)
            self.slots.create_failed(slot, OSError(), self.now)
            assert self.slots.retry_at > self.now or self.slots.closed
        self.look()

    def end_prepare(self, index: int, outcome: str) -> None:
        slot = self.under_way[Job.PREPARE].pop(index)
        if outcome == "ok":
            self.slots.prepare_done(slot, self.now)
        else:
            error = OSError() if outcome == "told" else None
            self.slots.prepare_failed(slot, error, self.now)
        self.look()

    def end_destroy(self, index: int) -> None:
        slot = self.under_way[Job.DESTROY].pop(index)
        self.destroyed += 1
        self.must_go.discard(slot)
        self.items.remove(id(slot))
        self.slots.destroy_done(slot, self.now)
        self.look()

    def pass_time(self, seconds: float) -> None:
        self.now += seconds
        late = [waiter for waiter in self.waiting if waiter.deadline <= self.now]
        self.slots.sweep(self.now)
        assert all(waiter.outcome is not None for waiter in late)
        self.look()

    def resize(self, min_size: int, max_size: int) -> None:
        self.slots.resize(min_size, max_size, self.now)
        self.look()

    def drain(self) -> None:
        self.must_go |= self.slots.drain(self.now)
        self.look()

    def close(self) -> None:
        self.slots.close(self.now)
        self.look()

    def cut_off(self) -> None:
        self.slots.cut(self.now)
        self.cut += len(self.leased)
        self.leased.clear()
        self.look()

    # --- what must be true ------------------------------------------------------------------------

    def lend(self, slot: Slot[Any]) -> None:
        assert slot not in self.leased
        assert slot not in self.must_go, "lent after a drain"
        assert slot.expires_at > self.now, "lent after its time"
        assert not self.slots.closed
        self.leased.append(slot)
        self.leases += 1

    def look(self) -> None:
        """Take up what the step has done to others, then compare everything."""
        slots = self.slots
        while slots.jobs:
            job, slot = slots.jobs.popleft()
            self.under_way[job].append(slot)
        remaining = [waiter for waiter in self.waiting if waiter.outcome is None]
        granted = [waiter for waiter in self.waiting if waiter.outcome is Outcome.GRANTED]
        if granted and remaining:
            assert max(w.seq for w in granted) < min(w.seq for w in remaining), "not in order"
        for waiter in self.waiting:
            if waiter.outcome is Outcome.GRANTED:
                assert waiter.slot is not None
                self.lend(waiter.slot)
            elif waiter.outcome is Outcome.TIMED_OUT:
                assert waiter.deadline <= self.now
                self.timeouts += 1
            elif waiter.outcome is Outcome.CLOSED:
                assert slots.closed
            elif waiter.outcome is not None:
                assert waiter.outcome is Outcome.FAILED
                assert waiter.error is not None
                assert waiter.phase in ("create", "on_acquire")
        self.waiting = remaining
        check(slots)
        self.compare()

    def compare(self) -> None:
        slots = self.slots
        now = slots.statistics()
        creating = self.under_way[Job.CREATE]
        preparing = self.under_way[Job.PREPARE]
        assert now.waiting == len(self.waiting)
        assert now.in_use == len(self.leased)
        assert now.creating == len(creating)
        assert now.resetting == len(self.resetting) + len(preparing)
        assert slots.preparing == len(preparing)
        assert now.closing == len(self.under_way[Job.DESTROY])
        # No item is lost: each is in one place, and the places hold all of them.
        places = [*slots.idle, *self.leased, *self.resetting, *preparing]
        places += self.under_way[Job.DESTROY]
        assert {id(slot) for slot in places} == self.items
        assert len(places) == len(self.items)
        assert now.size == len(places) + len(creating)
        # Figures.
        assert now.leases == self.leases == self.given_up + self.ended + self.cut + now.in_use
        assert now.created == len(self.items) + self.destroyed
        assert sum(now.retired.values()) == now.closing + self.destroyed
        assert (now.timeouts, now.refusals) == (self.timeouts, self.refusals)
        assert now.create_failures == self.failures
        for name in _COUNTERS:
            assert getattr(now, name) >= getattr(self.before, name), name
        for reason, count in self.before.retired.items():
            assert now.retired[reason] >= count
        # Growth only below the maximum, and at most `max_creating` at once.
        assert now.size <= max(now.max_size, self.before.size)
        # Whoever waits has something under way for it, if there is room and no pause.
        if (
            self.waiting
            and now.size < now.max_size
            and now.creating < slots.limits.max_creating
            and self.now >= slots.retry_at
        ):
            assert now.creating + now.resetting >= now.waiting, "nothing comes for a waiter"
        if self.waiting and self.now < slots.retry_at:
            assert slots.due(self.now) <= slots.retry_at
        assert not any(slot.state is State.GONE for slot in places)
        self.before = now

    def finish(self) -> None:
        """Let everything go well from here on: the pool must be whole again."""
        for _ in range(10_000):
            if self.under_way[Job.DESTROY]:
                self.end_destroy(0)
            elif self.under_way[Job.PREPARE]:
                self.end_prepare(0, "ok")
            elif self.under_way[Job.CREATE]:
                self.end_create(0, ok=True)
            elif self.resetting:
                self.end_reset(0, ok=True)
            elif self.leased:
                self.release(0, retire=False)
            elif self.waiting:
                self.wait_for_due()
            else:
                break
        else:
            raise AssertionError("the pool does not come to rest")
        assert not self.must_go
        if self.slots.closed:
            assert self.slots.size == 0
            return
        # Where nobody may wait, not even for a create, an empty pool stays so.
        self.slots.limits = attrs.evolve(self.slots.limits, max_waiting=None)
        while len(self.leased) < self.slots.max_size:
            held = len(self.leased)
            self.acquire(inf)
            while len(self.leased) == held:
                if self.under_way[Job.DESTROY]:
                    self.end_destroy(0)
                elif self.under_way[Job.PREPARE]:
                    self.end_prepare(0, "ok")
                elif self.under_way[Job.CREATE]:
                    self.end_create(0, ok=True)
                else:
                    self.wait_for_due()

    def wait_for_due(self) -> None:
        due = self.slots.due(self.now)
        assert due < inf, "somebody waits and nothing will ever happen"
        self.pass_time(max(0.001, due - self.now))
