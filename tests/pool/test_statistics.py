"""The figures of a pool: each counter, the times by a clock of the test, and what they cost."""

from __future__ import annotations

from typing import Any

import anyio
import attrs
import pytest

from sandboxpool import FactoryError, PoolFullError, PoolTimeoutError
from sandboxpool._pool import Pool
from sandboxpool._slots import Job, Limits, Slots
from tests.pool.rig import Bell, Caller, Clock, Item, Maker, all_acquirable, check, settle, start


async def test_every_counter(caplog: pytest.LogCaptureFixture) -> None:
    """A short life in which each figure changes once, at moments that the test sets."""
    clock = Clock(0.0)
    maker = Maker()
    async with Pool(
        maker,
        name="db",
        min_size=1,
        max_size=2,
        max_waiting=1,
        clock=clock,
        create_backoff=1.0,
        jitter=0.0,
    ) as pool:
        now = pool.statistics()
        assert attrs.asdict(now) == {
            **dict.fromkeys([a.name for a in attrs.fields(type(now))], 0),
            "name": "db",
            "min_size": 1,
            "max_size": 2,
            "size": 1,
            "idle": 1,
            "created": 1,
            "wait_time": 0.0,
            "hold_time": 0.0,
            "retired": {},
        }
        async with anyio.create_task_group() as tg:
            first = await start(tg, Caller(pool))
            clock.now = 1.0
            second = await start(tg, Caller(pool))  # waits for its creation, for no time
            now = pool.statistics()
            assert (now.in_use, now.peak_in_use, now.leases, now.waits) == (2, 2, 2, 1)
            assert (now.created, now.size, now.idle, now.wait_time) == (2, 2, 0, 0.0)
            third = await start(tg, Caller(pool, timeout=10.0))
            with pytest.raises(PoolFullError):
                await pool.lease().__aenter__()
            assert pool.statistics().refusals == 1
            assert pool.statistics().waiting == 1
            clock.now = 4.0
            first.leave.set()  # held for 4 s; the third has waited for 3
            await third.entered.wait()
            now = pool.statistics()
            assert (now.hold_time, now.wait_time, now.waits, now.leases) == (4.0, 3.0, 2, 3)
            assert (now.resets, now.in_use, now.peak_in_use) == (1, 2, 2)
            fourth = await start(tg, Caller(pool, timeout=2.0))
            clock.now = 6.0
            pool._on_timer()
            await fourth.over.wait()
            assert isinstance(fourth.error, PoolTimeoutError)
            now = pool.statistics()
            assert (now.timeouts, now.waits, now.wait_time, now.leases) == (1, 2, 5.0, 3)
            second.lease.retire("worn")
            second.leave.set()  # held since 1
            await second.over.wait()
            now = pool.statistics()
            assert (now.hold_time, now.retired, now.resets) == (9.0, {"worn": 1}, 1)
            maker.on_reset = raises
            third.leave.set()  # held since 4
            await third.over.wait()
            await settle()
            now = pool.statistics()
            assert (now.hold_time, now.reset_failures) == (11.0, 1)
            assert now.retired == {"worn": 1, "reset_failed": 1}
            assert (now.size, now.idle, now.created) == (1, 1, 3)  # `min_size` is made up for
            maker.on_reset = None
            await pool.drain(1)
            await settle()
            maker.on_create = fails
            await pool.resize(min_size=0)
            await pool.drain(1)
            with pytest.raises(FactoryError):
                await pool.lease().__aenter__()
            now = pool.statistics()
            assert now.create_failures == 1
            assert now.retired["drained"] == 2
            maker.on_create = None
            clock.now = 100.0
        pool.slots.limits = attrs.evolve(pool.slots.limits, max_waiting=None)
        await all_acquirable(pool)
    now = pool.statistics()
    assert (now.size, now.idle, now.in_use, now.closing) == (0, 0, 0, 0)
    assert sum(now.retired.values()) == now.created == len(maker.destroyed)
    caplog.clear()


def raises(_: Item) -> None:
    raise OSError("no")


async def fails() -> None:
    raise OSError("no")


async def test_the_record_is_a_snapshot() -> None:
    """It is frozen, and what the pool does later does not show in it."""
    async with Pool(Maker(), max_size=1) as pool:
        before = pool.statistics()
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            before.size = 3  # type: ignore[misc]
        lease = pool.lease()
        async with lease:
            lease.retire("worn")
        await settle()
        assert before.leases == 0
        assert before.retired == {}
        assert pool.statistics().retired == {"worn": 1}
        assert pool.statistics() != before
        await all_acquirable(pool)


class Uniterable(dict[Any, None]):
    """A dict that can be counted, but not walked through."""

    def __iter__(self) -> Any:
        raise AssertionError("somebody walks through all slots")

    keys = values = items = __iter__


def test_statistics_do_not_depend_on_the_size() -> None:
    """Neither the figures nor a step of a lease walk through the slots."""
    slots: Slots[str] = Slots("pool", 1000, 1000, Limits(max_idle=10.0, max_lifetime=1000.0))
    slots.resize(1000, 1000, 0.0)
    while slots.jobs:
        job, slot = slots.jobs.popleft()
        assert job is Job.CREATE
        slots.create_done(slot, "item", 0.0)
    check(slots)
    whole = slots.all
    slots.all = Uniterable(whole)
    stats = slots.statistics()
    assert (stats.size, stats.idle) == (1000, 1000)
    leased = slots.take(1.0)
    assert leased is not None
    assert slots.end_lease(leased, 2.0)
    slots.reset_done(leased, 2.0)
    slots.sweep(20.0)
    assert slots.due(20.0) > 20.0
    slots.all = whole
    check(slots)


def test_a_pause_that_ends_between_decision_and_timer() -> None:
    """A create held back is due even if its time came before the timer could be set for it."""
    limits = Limits(create_backoff=1.0, jitter=0.0)
    slots: Slots[str] = Slots("pool", 0, 1, limits)
    slots.enqueue(Bell(), 0.0, 60.0)
    slots.create_failed(slots.jobs.popleft()[1], OSError(), 0.0)
    slots.enqueue(Bell(), 0.9, 60.0)
    assert not slots.jobs
    assert slots.due(1.1) <= 1.1
    slots.sweep(1.1)
    assert slots.jobs.popleft()[0] is Job.CREATE
    assert slots.due(1.1) == 60.0
    check(slots)


def test_a_sweep_takes_the_expired_out_of_the_middle() -> None:
    """Only those whose time has come go, wherever they are, and only some in each pass."""
    slots: Slots[int] = Slots("pool", 300, 300, Limits(max_lifetime=100.0, max_creating=300))
    slots.resize(300, 300, 0.0)
    for number in range(300):
        slots.create_done(slots.jobs.popleft()[1], number, float(number // 30))
    slots.resize(0, 300, 10.0)
    now = sorted(slot.expires_at for slot in slots.all)[99]
    due = {slot.item for slot in slots.all if slot.expires_at <= now}
    gone: set[int] = set()
    for _ in range(100):
        slots.sweep(now)
        check(slots)
        passed = {slot.item for _, slot in slots.jobs}
        assert len(passed) <= 16
        gone |= passed
        slots.jobs.clear()
        if slots.due(now) > now:
            break
    assert gone == due
    assert {slot.item for slot in slots.idle} == set(range(300)) - due
