"""One test for each invariant of a pool, by its number (14, work left behind, is of `wrap`)."""

from __future__ import annotations

import asyncio
import gc
import random
from itertools import pairwise
from math import inf
from typing import Any

import anyio
import pytest

from sandboxpool import LeaseEndedError, PoolClosedError, PoolTimeoutError
from sandboxpool._loop import running_backend
from sandboxpool._pool import Pool
from sandboxpool._slots import Job, Limits, Outcome, Slots
from tests.pool.rig import (
    Bell,
    Caller,
    Item,
    Maker,
    all_acquirable,
    check,
    passes,
    settle,
    start,
    use,
)


def made(slots: Slots[str], now: float = 0.0) -> None:
    """Finish every create that was asked for, and every destroy."""
    while slots.jobs:
        job, slot = slots.jobs.pop()
        if job is Job.CREATE:
            slots.create_done(slot, "item", now)
        elif job is Job.DESTROY:
            slots.destroy_done(slot, now)
        else:
            slots.prepare_done(slot, now)
        check(slots)


async def test_01_each_item_is_in_one_set_and_the_size_has_a_bound() -> None:
    """In every pass of a life of creates, leases, resets and destroys the sets add up to size."""

    async def pause(_: Item | None = None) -> None:
        await passes(3)

    maker = Maker(create=pause, reset=pause, destroy=pause)
    most = 0
    async with Pool(maker, max_size=3, max_uses=2, max_creating=2) as pool:
        async with anyio.create_task_group() as tg:
            callers = [Caller(pool, body=lambda _: passes(2)) for _ in range(12)]
            for caller in callers:
                tg.start_soon(caller)
            while not all(caller.over.is_set() for caller in callers):
                check(pool.slots)
                most = max(most, pool.slots.size)
                await passes(1)
        assert most == 3
        assert [caller.error for caller in callers] == [None] * 12
        await all_acquirable(pool)
    assert maker.alive == 0


async def test_02_an_idle_item_means_that_nobody_waits() -> None:
    """Whoever frees, creates or adds an item, no waiter ever stands beside an idle one."""
    async with Pool(Maker(), max_size=2) as pool, anyio.create_task_group() as tg:
        callers = [await start(tg, Caller(pool)) for _ in range(5)]
        assert pool.slots.waiting == 3
        for caller in callers:
            caller.leave.set()
            for _ in range(6):
                assert not (pool.slots.idle and pool.slots.waiting)
                check(pool.slots)
                await passes(1)
        await all_acquirable(pool)


async def test_03_a_slot_is_reserved_before_its_create_begins() -> None:
    """While creates run the pool is full for others; each exit of a create gives its place back."""
    go = anyio.Event()
    exits: list[BaseException | None] = [OSError("no"), None]

    async def create() -> None:
        await go.wait()
        error = exits.pop(0)
        if error is not None:
            raise error

    async with (
        Pool(Maker(create=create), max_size=1, create_backoff=0.001) as pool,
        anyio.create_task_group() as tg,
    ):
        callers = [await start(tg, Caller(pool)) for _ in range(3)]
        assert (pool.slots.size, pool.slots.creating, pool.slots.in_use) == (1, 1, 0)
        go.set()
        for caller in callers:
            caller.leave.set()
        for caller in callers:
            await caller.over.wait()
            check(pool.slots)
        assert exits == []
        await all_acquirable(pool)


async def test_04_each_step_is_one_synchronous_section() -> None:
    """No method of the rules is a coroutine, and release changes the state before any pass."""
    for name in dir(Slots):
        assert not asyncio.iscoroutinefunction(getattr(Slots, name)), name
    async with Pool(Maker(), min_size=1, max_size=1) as pool:
        lease = pool.lease()
        entering = lease.__aenter__()
        with pytest.raises(StopIteration):
            entering.send(None)  # the fast path never reaches the event loop
        check(pool.slots)
        assert pool.slots.in_use == 1
        leaving = lease.__aexit__(None, None, None)
        with pytest.raises(StopIteration):
            leaving.send(None)
        check(pool.slots)
        assert len(pool.slots.idle) == 1
        await all_acquirable(pool)


def test_05_a_waiter_is_settled_once() -> None:
    """Granted, timed out, closed or given up: one outcome, one wake-up, out of the queue."""
    slots: Slots[str] = Slots("pool", 0, 1, Limits())
    slots.resize(0, 1, 0.0)
    bells = [Bell() for _ in range(5)]
    granted = slots.enqueue(bells[0], 0.0, inf)
    made(slots)
    timed_out = slots.enqueue(bells[1], 0.0, 1.0)
    gave_up = slots.enqueue(bells[2], 0.0, 2.0)
    closed = slots.enqueue(bells[3], 0.0, 3.0)
    slots.sweep(1.0)
    check(slots)
    slots.give_up(gave_up, 1.0)
    slots.give_up(timed_out, 1.0)  # cancelled in the tick of its timeout
    check(slots)
    slots.close(1.0)
    check(slots)
    slots.sweep(10.0)
    for waiter in (timed_out, gave_up, closed):
        slots.give_up(waiter, 10.0)
    outcomes = [waiter.outcome for waiter in (granted, timed_out, gave_up, closed)]
    assert outcomes == [Outcome.GRANTED, Outcome.TIMED_OUT, Outcome.GAVE_UP, Outcome.CLOSED]
    assert [bell.rings for bell in bells] == [1, 1, 1, 1, 0]
    assert slots.waiting == 0
    assert not slots._queue


async def test_06_a_free_item_goes_to_the_oldest_waiter() -> None:
    """Items are granted in order of arrival, and a newcomer in the tick of the release waits."""
    order: list[object] = []

    def note(number: object) -> Any:
        async def body(_: Item) -> None:
            order.append(number)

        return body

    async def greedy(_: Item) -> None:
        order.append("holder")
        await go.wait()

    go = anyio.Event()
    async with Pool(Maker(), max_size=1) as pool, anyio.create_task_group() as tg:

        async def hold_twice() -> None:
            async with pool.lease() as item:
                await greedy(item)
            assert pool.slots.in_use == 1  # handed over already, before anybody else ran
            assert pool.take() is None
            async with pool.lease():
                order.append("holder again")

        tg.start_soon(hold_twice)
        await settle()
        for number in range(5):
            await start(tg, Caller(pool, body=note(number)))
        go.set()
    assert order == ["holder", 0, 1, 2, 3, 4, "holder again"]


@pytest.mark.parametrize("how", ["native", "scope"])
@pytest.mark.backend_with_uvloop
async def test_07_cancel_and_grant_in_the_same_tick(how: str) -> None:
    """The item goes to the next waiter, and the cancellation is raised: never only one."""
    async with Pool(Maker(), max_size=1) as pool, anyio.create_task_group() as tg:
        holder, first, second = [await start(tg, Caller(pool)) for _ in range(3)]
        holder.leave.set()
        while pool.slots.waiting == 2:
            await passes(1)
        first.cancel(how)  # granted in this tick, and not yet run
        check(pool.slots)
        await first.over.wait()
        assert first.cancelled
        await second.entered.wait()
        check(pool.slots)
        second.leave.set()
        await second.over.wait()
        await all_acquirable(pool)


def test_08_timeout_and_grant_in_the_same_tick() -> None:
    """Whichever comes first wins, and the deadline is absolute: a dead item does not move it."""
    slots: Slots[str] = Slots("pool", 0, 1, Limits(check_after=1.0))
    slots.resize(0, 1, 0.0)
    first = slots.enqueue(Bell(), 0.0, inf)
    made(slots)
    assert first.slot is not None
    for grant_first in (True, False):
        waiter = slots.enqueue(Bell(), 0.0, 5.0)
        if grant_first:
            assert slots.end_lease(first.slot, 5.0)
            slots.reset_done(first.slot, 5.0)
            slots.sweep(5.0)
            assert waiter.outcome is Outcome.GRANTED
            assert waiter.slot is first.slot
        else:
            slots.sweep(5.0)
            assert slots.end_lease(first.slot, 5.0)
            slots.reset_done(first.slot, 5.0)
            assert waiter.outcome is Outcome.TIMED_OUT
            assert len(slots.idle) == 1
        check(slots)
    assert slots.take(10.0) is None  # stale: it is to be checked
    waiter = slots.enqueue(Bell(), 10.0, 12.0)
    job, slot = slots.jobs.popleft()
    assert job is Job.PREPARE
    slots.prepare_failed(slot, None, 11.0)
    check(slots)
    assert (waiter.deadline, waiter.since) == (12.0, 10.0)
    assert slots.due(11.0) == 12.0
    slots.sweep(12.0)
    assert waiter.outcome is Outcome.TIMED_OUT
    made(slots, 12.0)
    check(slots)


@pytest.mark.parametrize("freed_by", ["release", "retire", "failed create", "resize", "destroyed"])
async def test_09_freed_capacity_wakes_a_waiter(freed_by: str) -> None:
    """Whatever frees a place, whoever can go on because of it does."""
    go = anyio.Event()

    async def hang_once() -> None:
        if maker.creates == 1 and freed_by == "failed create":
            await go.wait()
            raise OSError("no")

    async def linger(_: Item) -> None:
        await go.wait()

    maker = Maker(create=hang_once, destroy=linger if freed_by == "destroyed" else None)
    async with (
        Pool(maker, max_size=1, create_backoff=0.001) as pool,
        anyio.create_task_group() as tg,
    ):
        first = await start(tg, Caller(pool))
        second = await start(tg, Caller(pool))
        assert not second.entered.is_set()
        if freed_by == "failed create":
            go.set()
            await first.over.wait()
        elif freed_by == "resize":
            await pool.resize(max_size=2)
        else:
            if freed_by != "release":
                first.lease.retire()
            first.leave.set()
            if freed_by == "destroyed":
                await settle()
                assert not second.entered.is_set()  # its place counts until it is destroyed
                go.set()
        await second.entered.wait()
        check(pool.slots)
        first.leave.set()
        second.leave.set()
        await second.over.wait()
        await all_acquirable(pool)


@pytest.mark.parametrize("how", ["native", "scope"])
async def test_10_release_cannot_be_cancelled(how: str) -> None:
    """A task that is cancelled, also level-cancelled, in the body gives its item back at once."""

    async def pause(_: Item) -> None:
        await passes(2)

    for maker in (Maker(), Maker(reset=pause)):
        async with Pool(maker, max_size=1) as pool, anyio.create_task_group() as tg:
            caller = await start(tg, Caller(pool))
            caller.cancel(how)
            await caller.over.wait()
            assert caller.cancelled
            assert pool.slots.in_use == 0
            check(pool.slots)
            await all_acquirable(pool)
            assert len(maker.made) == 1


@pytest.mark.parametrize("how", ["raises", "hangs", "is cancelled"])
async def test_11_a_failed_reset_destroys_the_item(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A reset that raises, runs out of time or is cancelled costs the item, never the next user."""

    async def reset(item: Item) -> None:
        if item.number > 0:
            return
        if how == "raises":
            raise OSError("no")
        if how == "is cancelled" and running_backend() == "asyncio":
            raise asyncio.CancelledError
        await anyio.sleep_forever()

    maker = Maker(reset=reset)
    async with Pool(maker, max_size=1, reset_timeout=0.01) as pool:
        async with pool.lease() as first:
            pass
        async with pool.lease() as second:
            check(pool.slots)
        assert first.ended
        assert second is not first
        assert pool.statistics().retired == {"reset_failed": 1}
        assert pool.statistics().reset_failures == 1
        await all_acquirable(pool)
    assert caplog.text.count("reset failed") == (how != "is cancelled" or caplog.text != "")


async def test_12_a_lease_is_released_once_and_ends() -> None:
    """A second release raises and changes nothing; so does every use after the first."""
    async with Pool(Maker(), max_size=1) as pool:
        lease = pool.lease()
        with pytest.raises(LeaseEndedError, match="holds nothing"):
            _ = lease.item
        async with lease as item:
            assert lease.item is item
        before = pool.statistics()
        for use_again in (lambda: lease.item, lambda: lease.retire()):
            with pytest.raises(LeaseEndedError, match="holds nothing"):
                use_again()
        with pytest.raises(LeaseEndedError, match="cannot be released"):
            await lease.__aexit__(None, None, None)
        with pytest.raises(LeaseEndedError, match="one use"):
            await lease.__aenter__()
        assert pool.statistics() == before
        await all_acquirable(pool)


async def test_13_an_item_from_before_close_is_destroyed() -> None:
    """A lease that outlives the end of its pool has lost its item; leaving it changes nothing."""
    maker = Maker()
    pool = Pool(maker, max_size=1)
    await pool.open()
    lease = pool.lease()
    item = await lease.__aenter__()
    await pool.aclose(0)
    assert item.ended
    with pytest.raises(LeaseEndedError):
        _ = lease.item
    before = pool.statistics()
    await lease.__aexit__(None, None, None)
    assert pool.statistics() == before
    check(pool.slots)
    assert maker.destroyed == [item]


async def test_15_creates_are_bounded_by_the_need() -> None:
    """At most `max_creating` at once, and none for waiters that have left meanwhile."""
    go = anyio.Event()

    async def create() -> None:
        await go.wait()

    maker = Maker(create=create)
    async with Pool(maker, max_size=50, max_creating=3) as pool, anyio.create_task_group() as tg:
        callers = [await start(tg, Caller(pool)) for _ in range(10)]
        assert maker.creating == 3
        for caller in callers[2:]:
            caller.cancel("scope")
        await settle()
        go.set()
        for caller in callers:
            caller.leave.set()
            await caller.over.wait()
            check(pool.slots)
        await settle()
        assert (maker.creates, maker.most_creating) == (3, 3)
        await all_acquirable(pool)


async def test_16_an_error_of_create_reaches_who_waits_for_it() -> None:
    """The waiter gets it as a cause; a caller that gives up kills no create others can use."""
    go = anyio.Event()

    async def create() -> None:
        await go.wait()

    maker = Maker(create=create)
    async with Pool(maker, max_size=1) as pool, anyio.create_task_group() as tg:
        first, second = [await start(tg, Caller(pool)) for _ in range(2)]
        first.cancel("scope")
        await first.over.wait()
        go.set()
        await second.entered.wait()
        assert maker.creates == 1
        second.lease.retire()
        second.leave.set()
        maker.on_create = _fail
        third = await start(tg, Caller(pool))
        await third.over.wait()
        assert "could not create an item: OSError: no" in str(third.error)
        assert isinstance(third.error.__cause__ if third.error else None, OSError)
        maker.on_create = None
        await all_acquirable(pool)


async def _fail() -> None:
    raise OSError("no")


def test_17_lifetimes_are_jittered() -> None:
    """A hundred items made in one instant expire in a hundred different ones, none too late."""
    slots: Slots[str] = Slots("pool", 100, 100, Limits(max_lifetime=1000.0, jitter=0.1))
    slots.resize(100, 100, 0.0)
    made(slots)
    ends = {slot.expires_at for slot in slots.all}
    assert len(ends) == 100
    assert all(900 < end <= 1000 for end in ends)
    assert max(ends) - min(ends) > 50


def test_18_idle_shrink_takes_the_longest_idle_and_keeps_the_minimum() -> None:
    """What was used last stays; never below `min_size`; a share of the surplus in each pass."""
    slots: Slots[str] = Slots("pool", 2, 10, Limits(max_idle=10.0))
    slots.resize(2, 10, 0.0)
    waiters = [slots.enqueue(Bell(), 0.0, inf) for _ in range(10)]
    made(slots)
    for second, waiter in enumerate(waiters):
        assert waiter.slot is not None
        assert slots.end_lease(waiter.slot, float(second))
        slots.reset_done(waiter.slot, float(second))
    order = [waiter.slot for waiter in waiters]
    sizes = []
    for now in range(10, 200):
        before = list(slots.idle)
        slots.sweep(float(now))
        assert list(slots.idle) == before[len(before) - len(slots.idle) :]
        made(slots, float(now))
        check(slots)
        sizes.append(slots.size)
    assert sizes[0] == 9
    assert sizes[-1] == 2
    assert all(a - b <= 2 for a, b in pairwise(sizes))
    assert list(slots.idle) == order[-2:]


async def test_19_an_item_being_checked_is_not_lent() -> None:
    """While a check owns an item nobody else gets it, and it is not counted as idle."""
    go = anyio.Event()

    async def look(item: Item) -> bool:
        with use(item):
            await go.wait()
        return True

    async with (
        Pool(Maker(check=look), max_size=1, check_after=0) as pool,
        anyio.create_task_group() as tg,
    ):
        async with pool.lease():
            pass
        first = await start(tg, Caller(pool))
        second = await start(tg, Caller(pool))
        stats = pool.statistics()
        assert (stats.idle, stats.resetting, stats.in_use, stats.waiting) == (0, 1, 0, 2)
        check(pool.slots)
        go.set()
        for caller in (first, second):
            caller.leave.set()
            await caller.over.wait()
            assert caller.error is None
        await all_acquirable(pool)


def test_20_a_late_housekeeper_evicts_a_share() -> None:
    """After an hour of standstill one pass retires a bounded number, by idleness and by age."""
    idle: Slots[str] = Slots("pool", 0, 100, Limits(max_idle=60.0))
    aged: Slots[str] = Slots("pool", 0, 100, Limits(max_lifetime=60.0))
    for slots, most in ((idle, 25), (aged, 16)):
        slots.resize(0, 100, 0.0)
        waiters = [slots.enqueue(Bell(), 0.0, inf) for _ in range(100)]
        made(slots)
        for waiter in waiters:
            assert waiter.slot is not None
            slots.end_lease(waiter.slot, 1.0)
            slots.reset_done(waiter.slot, 1.0)
        slots.sweep(3600.0)
        assert 100 - len(slots.idle) <= most
        made(slots, 3600.0)
        check(slots)


async def test_21_close_leaves_nothing_behind() -> None:
    """Waiters are told at once, leases finish, a create in flight ends, nothing is acquired."""
    go = anyio.Event()

    async def second_hangs() -> None:
        if maker.creates > 1:
            await go.wait()

    maker = Maker(create=second_hangs)
    pool = Pool(maker, max_size=2)
    await pool.open()
    async with anyio.create_task_group() as tg:
        callers = [await start(tg, Caller(pool)) for _ in range(4)]
        tg.start_soon(pool.aclose)
        await settle()
        check(pool.slots)
        assert [type(caller.error) for caller in callers] == [type(None), *3 * [PoolClosedError]]
        with pytest.raises(PoolClosedError):
            await pool.lease().__aenter__()
        go.set()
        callers[0].leave.set()
    assert callers[0].error is None
    await pool.aclose()
    assert maker.alive == 0
    assert len(maker.made) == 2
    assert pool.statistics().size == 0
    check(pool.slots)


@pytest.mark.parametrize("stuck", ["lease", "create", "reset", "destroy"])
async def test_22_drain_ends(stuck: str, caplog: pytest.LogCaptureFixture) -> None:
    """Whatever hangs, `drain(timeout)` ends in time, and says that not all went."""

    async def hang(item: Item | None = None) -> None:
        if hanging and (item is None or item.number == 0):
            await anyio.sleep_forever()

    hanging = stuck != "create"
    maker = Maker(**({} if stuck == "lease" else {stuck: hang}))
    short: dict[str, Any] = {"create_timeout": 0.1, "reset_timeout": 0.1, "destroy_timeout": 0.1}
    async with (
        Pool(maker, max_size=2, max_creating=1, **short) as pool,
        anyio.create_task_group() as tg,
    ):
        caller = await start(tg, Caller(pool))
        if stuck == "create":
            hanging = True
            second = await start(tg, Caller(pool))
            second.cancel("scope")
        if stuck in ("reset", "destroy"):
            caller.leave.set()
        await settle()
        assert await pool.drain(0.01) is False
        check(pool.slots)
        hanging = False
        caller.leave.set()
        await caller.over.wait()
        assert await pool.drain(1.0)
        await all_acquirable(pool)
    caplog.clear()


async def test_23_statistics_are_consistent_and_never_go_backwards() -> None:
    """In each pass of a storm the parts add up and no counter falls."""
    counters = ["leases", "waits", "wait_time", "hold_time", "timeouts", "refusals"]
    counters += ["created", "create_failures", "resets", "reset_failures", "peak_in_use"]
    rng = random.Random(23)
    async with Pool(Maker(), max_size=3, max_waiting=6, max_uses=5) as pool:
        before = pool.statistics()
        async with anyio.create_task_group() as tg:
            callers = [
                Caller(pool, timeout=rng.choice([None, 0.0, 0.001]), body=lambda _: passes(3))
                for _ in range(40)
            ]
            for caller in callers:
                tg.start_soon(caller)
                await passes(rng.randrange(2))
                if rng.random() < 0.3:
                    rng.choice(callers).cancel("scope")
                now = pool.statistics()
                assert now.size == (
                    now.idle + now.in_use + now.creating + now.resetting + now.closing
                )
                for name in counters:
                    assert getattr(now, name) >= getattr(before, name), name
                assert all(now.retired[key] >= count for key, count in before.retired.items())
                before = now
        await all_acquirable(pool)


async def test_24_the_housekeeper_survives_the_hooks(caplog: pytest.LogCaptureFixture) -> None:
    """A destroy that raises in the timer's own pass is logged, and the next pass comes."""

    ended = anyio.Event()

    def destroy(item: Item) -> None:
        if maker.alive == 0:
            ended.set()
        raise OSError(f"no {item.number}")

    maker = Maker(destroy=destroy)

    async with Pool(maker, max_size=4, max_idle=0.01) as pool:
        async with anyio.create_task_group() as tg:
            for caller in [await start(tg, Caller(pool)) for _ in range(4)]:
                caller.leave.set()
        with anyio.fail_after(5):
            await ended.wait()
            await settle()
        assert caplog.text.count("destroy failed: OSError: no") == 4
        check(pool.slots)
        caplog.clear()
        maker.on_destroy = None
        pool.slots.limits = Limits()
        await all_acquirable(pool)


async def test_25_nothing_depends_on_garbage_collection() -> None:
    """With the collector off, and after it, the pool stays whole; a lost lease is only reported."""
    pool = Pool(Maker(), max_size=2)
    await pool.open()
    gc.disable()
    try:
        for _ in range(50):
            async with pool.lease():
                pass
        await all_acquirable(pool)
        lease = pool.lease()
        await lease.__aenter__()
        with pytest.warns(ResourceWarning, match="dropped without being released"):
            del lease
        assert pool.slots.in_use == 1  # reported, not taken back
        check(pool.slots)
        async with pool.lease(timeout=5):
            with pytest.raises(PoolTimeoutError):
                await pool.lease(timeout=0).__aenter__()
        check(pool.slots)
    finally:
        gc.enable()
        await pool.aclose(0)
    assert pool.slots.size == 0


def test_26_the_cost_does_not_depend_on_the_dead() -> None:
    """Of 10,000 waiters that left no more than a bounded number of entries is ever kept."""
    slots: Slots[str] = Slots("pool", 0, 1, Limits())
    slots.resize(0, 1, 0.0)
    slots.enqueue(Bell(), 0.0, inf)
    made(slots)
    waiters = [slots.enqueue(Bell(), 0.0, 30.0) for _ in range(10_000)]
    entries = []
    for waiter in waiters:
        slots.give_up(waiter, 1.0)
        entries.append(len(slots._queue) - slots.waiting)
    assert max(entries) <= 10_000 // 2 + 64
    assert len(slots._queue) <= 64
    assert len(slots._deadlines) <= 64
    check(slots)
