"""Limits, time, closing and the world around: queues, resizes, clocks, loops, threads, leaks."""

from __future__ import annotations

import gc
import logging
import random
import threading
import warnings
from math import inf
from typing import Any, Literal

import anyio
import pytest

from sandboxpool import (
    PoolClosedError,
    PoolFullError,
    PoolTimeoutError,
    WrongLoopError,
)
from sandboxpool._pool import Pool
from sandboxpool._slots import Job, Limits, Slots
from tests.pool.rig import (
    Bell,
    Caller,
    Clock,
    Item,
    Maker,
    all_acquirable,
    check,
    passes,
    run_in_virtual_time,
    settle,
    start,
)

# --- limits -----------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [0, 1, 3])
async def test_no_25_max_waiting(limit: int) -> None:
    """So many wait, the next is refused at once; who timed out or was cancelled does not count."""
    clock = Clock()
    async with Pool(Maker(), min_size=1, max_size=1, max_waiting=limit, clock=clock) as pool:
        async with anyio.create_task_group() as tg:
            holder = await start(tg, Caller(pool))
            for end in ("timeout", "scope", "native"):
                waiters = [await start(tg, Caller(pool, timeout=5.0)) for _ in range(limit)]
                assert pool.slots.waiting == limit
                with pytest.raises(PoolFullError, match=f"{limit} callers wait already"):
                    await pool.lease().__aenter__()
                clock.now += 5.0
                for waiter in waiters:
                    if end == "timeout":
                        pool._on_timer()
                    else:
                        waiter.cancel(end)
                    await waiter.over.wait()
                    check(pool.slots)
                assert pool.slots.waiting == 0
            assert pool.statistics().refusals == 3
            holder.leave.set()
        if limit:
            pool.slots.limits = Limits(max_waiting=None)
        await all_acquirable(pool)


async def test_no_25_nobody_may_wait_but_for_a_check() -> None:
    """With `max_waiting=0` an idle item that must be checked first is not refused, a second is."""
    clock = Clock()
    maker = Maker(check=lambda _: passes_true())
    async with Pool(
        maker, min_size=1, max_size=1, max_waiting=0, check_after=10, clock=clock
    ) as pool:
        for _ in range(3):
            clock.now += 60
            async with anyio.create_task_group() as tg:
                first = Caller(pool, timeout=5)
                tg.start_soon(first)
                await first.started.wait()
                while not pool.slots.preparing:
                    await passes(1)
                with pytest.raises(PoolFullError):
                    await pool.lease().__aenter__()
                check(pool.slots)
                first.leave.set()
            assert first.error is None
        await all_acquirable(pool)


async def passes_true() -> bool:
    await passes(3)
    return True


async def test_no_25_an_expired_item_is_ended_also_when_the_caller_is_refused() -> None:
    """What acquire finds expired is destroyed at once, whatever becomes of the acquire."""
    clock = Clock()
    maker = Maker()
    async with Pool(
        maker, min_size=1, max_size=1, max_waiting=0, max_lifetime=10, clock=clock
    ) as pool:
        clock.now += 60
        with pytest.raises(PoolFullError):
            await pool.lease().__aenter__()
        assert len(maker.destroyed) == 1
        check(pool.slots)
        await all_acquirable(pool)


@pytest.mark.parametrize("order", ["oldest first", "newest first", "random"])
def test_no_26_ten_thousand_waiters_leave(order: str) -> None:
    """In any order: few entries are touched for each, and none is kept."""
    touched = 0

    class Counting(Bell):
        pass

    slots: Slots[str] = Slots("pool", 0, 1, Limits())
    slots.resize(0, 1, 0.0)
    slots.enqueue(Bell(), 0.0, inf)
    _, slot = slots.jobs.popleft()
    slots.create_done(slot, "item", 0.0)
    waiters = [slots.enqueue(Counting(), 0.0, 30.0) for _ in range(10_000)]
    if order == "newest first":
        waiters.reverse()
    elif order == "random":
        random.Random(26).shuffle(waiters)
    for waiter in waiters:
        before = len(slots._queue)
        slots.give_up(waiter, 1.0)
        touched += before if len(slots._queue) < before else 1
    assert touched <= 4 * 10_000
    assert len(slots._queue) <= 64
    assert len(slots._deadlines) <= 64
    check(slots)
    del waiters, waiter
    gc.collect()
    # By type: an object may do anything when it is asked for its class.
    assert sum(type(o) is Counting for o in gc.get_objects()) <= 128


async def test_no_27_resize_up_and_down_while_all_is_leased() -> None:
    """Never above the maximum for good, never a negative count, and whole in the end."""
    rng = random.Random(27)
    async with Pool(Maker(), max_size=4) as pool:
        for _ in range(20):
            async with anyio.create_task_group() as tg:
                callers = [await start(tg, Caller(pool)) for _ in range(6)]
                for _ in range(6):
                    size = pool.slots.size - pool.slots.closing
                    new = rng.randrange(1, 7)
                    await pool.resize(max_size=new)
                    assert pool.slots.size - pool.slots.closing <= max(size, new)
                    check(pool.slots)
                    caller = callers.pop(rng.randrange(len(callers)))
                    caller.leave.set()
                    await passes(rng.randrange(4))
                    check(pool.slots)
                for caller in callers:
                    caller.leave.set()
            await settle()
            assert pool.slots.size - pool.slots.closing <= pool.slots.max_size
            await all_acquirable(pool)
        assert pool.slots.plain


async def test_no_28_the_smallest_of_everything() -> None:
    """`min_size=0`, `max_size=1`, `timeout=0`, `max_uses=1`, a lifetime shorter than a lease."""
    clock = Clock()
    maker = Maker()
    async with Pool(maker, max_size=1, max_uses=1, max_lifetime=1.0, clock=clock) as pool:
        async with pool.lease(timeout=None):
            with pytest.raises(PoolTimeoutError):
                await pool.lease(timeout=0).__aenter__()
            clock.now += 60
        await settle()
        assert pool.statistics().retired == {"max_uses": 1}
        await all_acquirable(pool)
    async with Pool(Maker(), min_size=1, max_size=1, max_lifetime=1.0, clock=clock) as pool:
        async with pool.lease(timeout=0):  # idle: it takes no wait
            clock.now += 60
        await settle()
        assert pool.statistics().retired == {"max_lifetime": 1}
        check(pool.slots)
        await all_acquirable(pool)


# --- time -------------------------------------------------------------------------------------


def filled(count: int, min_size: int, limits: Limits) -> Slots[str]:
    """Return slots of which *count* became idle one second after the other, from 0 on."""
    slots: Slots[str] = Slots("pool", min_size, count, limits)
    slots.resize(min_size, count, 0.0)
    waiters = [slots.enqueue(Bell(), 0.0, inf) for _ in range(count)]
    do_jobs(slots, 0.0)
    for second, waiter in enumerate(waiters):
        assert waiter.slot is not None
        slots.end_lease(waiter.slot, float(second))
        slots.reset_done(waiter.slot, float(second))
    return slots


def do_jobs(slots: Slots[str], now: float) -> None:
    while slots.jobs:
        job, slot = slots.jobs.popleft()
        if job is Job.CREATE:
            slots.create_done(slot, "item", now)
        elif job is Job.DESTROY:
            slots.destroy_done(slot, now)
        else:
            slots.prepare_done(slot, now)
        check(slots)


def test_no_29_lifetimes_expire_spread_out() -> None:
    """Of 200 items made at once no instant takes more than a few, and none outlives its limit."""
    slots = filled(200, 0, Limits(max_lifetime=1000.0, jitter=0.1))
    gone = []
    for now in range(890, 1002):
        before = slots.size
        while slots.due(float(now)) <= now:
            slots.sweep(float(now))
            do_jobs(slots, float(now))
        gone.append(before - slots.size)
    assert sum(gone) == 200
    assert max(gone) <= 12
    assert sum(1 for count in gone if count) > 50


def test_no_29_a_jump_empties_nothing_in_one_pass() -> None:
    """An hour's jump: each pass retires its share, the next is due soon, but not in a spin."""
    slots = filled(100, 10, Limits(max_idle=60.0))
    now = 3600.0
    sizes = [slots.size]
    while slots.size > 10:
        slots.sweep(now)
        do_jobs(slots, now)
        sizes.append(slots.size)
        due = slots.due(now)
        assert now < due <= now + 60
        now = due
    assert sizes[1] >= 75
    assert len(sizes) > 5
    assert slots.size == 10


def test_no_29_an_item_that_expires_in_a_reset_or_check_is_not_kept() -> None:
    """The sweep passes it over while it is being made ready; then it goes, lent to nobody."""
    for prepared in (False, True):
        slots = filled(1, 0, Limits(max_lifetime=10.0, jitter=0.0, check_after=1.0))
        slot = next(iter(slots.all))
        if prepared:
            assert slots.take(5.0) is None
            waiter = slots.enqueue(Bell(), 5.0, 6.0)
            assert slots.jobs.popleft() == (Job.PREPARE, slot)
            slots.sweep(6.0)
            assert waiter.slot is None
        else:
            assert slots.take(0.5) is slot
            assert slots.end_lease(slot, 1.0)
        slots.sweep(20.0)
        check(slots)
        if prepared:
            slots.prepare_done(slot, 21.0)
        else:
            slots.reset_done(slot, 21.0)
        check(slots)
        assert slots.retired == {"max_lifetime": 1}
        assert not slots.idle


def test_no_29_a_pass_over_leased_items_is_bounded() -> None:
    """A hundred thousand expired leases are not all looked at in one pass."""
    slots: Slots[str] = Slots("pool", 0, 10_000, Limits(max_lifetime=1.0, max_creating=10_000))
    slots.resize(0, 10_000, 0.0)
    for _ in range(10_000):
        slots.enqueue(Bell(), 0.0, inf)
    while slots.jobs:
        slots.create_done(slots.jobs.popleft()[1], "item", 0.0)
    assert slots.in_use == 10_000
    before = len(slots._expiries)
    slots.sweep(100.0)
    assert before - len(slots._expiries) <= 64
    assert slots.due(100.0) <= 100.0


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_no_29_a_quiet_week(backend: str) -> None:
    """After a week without a request the timer still comes and the pool still lends."""

    async def main() -> None:
        maker = Maker(check=lambda _: True)
        async with Pool(
            maker,
            min_size=2,
            max_size=4,
            max_idle=3600,
            max_lifetime=86_400,
            clock=anyio.current_time,
        ) as pool:
            await all_acquirable(pool)
            await anyio.sleep(7 * 86_400)
            assert len(pool.slots.idle) == 2
            assert len(maker.made) > 10  # replaced each day
            check(pool.slots)
            async with anyio.create_task_group() as tg:
                holders = [await start_virtual(tg, Caller(pool)) for _ in range(4)]
                began = anyio.current_time()
                with pytest.raises(PoolTimeoutError):
                    await pool.lease(timeout=7.0).__aenter__()
                assert anyio.current_time() - began == pytest.approx(7.0)
                for holder in holders:
                    holder.leave.set()
            await all_acquirable(pool)
        assert maker.alive == 0

    run_in_virtual_time(backend, main)


async def start_virtual(tg: Any, caller: Caller) -> Caller:
    tg.start_soon(caller)
    await caller.entered.wait()
    return caller


# --- close and the world around ----------------------------------------------------------------


@pytest.mark.parametrize("how", ["once", "twice", "concurrently", "cancelled", "timeout"])
async def test_no_32_close_with_everything_under_way(
    how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Waiters, leases, creates, a check and a reset: closing ends them all and leaves nothing."""
    go = anyio.Event()
    slow = False

    async def wait(_: Item | None = None) -> None:
        if slow:
            await go.wait()

    async def look(_: Item) -> bool:
        await wait()
        return True

    maker = Maker(create=wait, reset=wait, check=look)
    clock = Clock()
    pool = Pool(maker, max_size=4, check_after=1, clock=clock)
    await pool.open()
    await all_acquirable(pool)
    async with anyio.create_task_group() as tg:
        leased = await start(tg, Caller(pool))
        resetting = await start(tg, Caller(pool))
        broken = await start(tg, Caller(pool))
        clock.now += 60
        slow = True
        broken.lease.retire()
        broken.leave.set()
        resetting.leave.set()
        callers = [await start(tg, Caller(pool)) for _ in range(4)]
        stats = pool.statistics()
        assert (stats.in_use, stats.resetting, stats.creating, stats.waiting) == (1, 2, 1, 4)
        check(pool.slots)
        if how in ("cancelled", "timeout"):
            with anyio.move_on_after(0.01 if how == "cancelled" else None) as scope:
                tg.start_soon(release_soon, go)
                await pool.aclose(None if how == "cancelled" else 0.01)
            assert scope.cancelled_caught is (how == "cancelled")
            leased.leave.set()
        else:
            tg.start_soon(pool.aclose)
            if how == "concurrently":
                tg.start_soon(pool.aclose)
            await settle()
            check(pool.slots)
            go.set()
            leased.leave.set()
        for caller in callers:
            await caller.over.wait()
            assert isinstance(caller.error, PoolClosedError)
    await pool.aclose()
    assert leased.error is None
    assert (pool.slots.size, maker.alive) == (0, 0)
    check(pool.slots)
    caplog.clear()


async def release_soon(go: anyio.Event) -> None:
    await anyio.sleep(0.05)
    go.set()


async def test_no_32_close_cuts_a_create_that_hangs() -> None:
    """After its timeout `aclose` does not wait for a create, which may hang for ever."""
    maker = Maker(create=anyio.sleep_forever)
    pool = Pool(maker, max_size=2, create_timeout=None)
    await pool.open()
    async with anyio.create_task_group() as tg:
        caller = await start(tg, Caller(pool))
        with anyio.fail_after(5):
            await pool.aclose(0.01)
        await caller.over.wait()
        assert isinstance(caller.error, PoolClosedError)
    assert pool.slots.size == 0
    check(pool.slots)


async def test_no_32_close_while_a_create_fails() -> None:
    """A create that fails after `aclose` began ends the wait of `aclose`, too."""
    go = anyio.Event()

    async def create() -> None:
        await go.wait()
        raise OSError("no")

    pool = Pool(Maker(create=create), max_size=1)
    await pool.open()
    with anyio.fail_after(5):
        async with anyio.create_task_group() as tg:
            caller = await start(tg, Caller(pool))
            tg.start_soon(pool.aclose)
            await settle()
            go.set()
    assert isinstance(caller.error, PoolClosedError)
    assert pool.slots.size == 0


def test_no_32_close_after_the_loop_was_left() -> None:
    """`aclose` in a later run returns at once: what is gone with its loop cannot be awaited."""
    for backend in ("asyncio", "trio"):
        pool = Pool(Maker(), min_size=1, max_size=1)
        anyio.run(pool.open, backend=backend)
        anyio.run(pool.aclose, backend=backend)
        assert pool.slots.closed
        assert "closed" in repr(pool)


async def test_no_33_nested_leases_of_one_pool() -> None:
    """With one item the inner lease times out, and the error names who holds it and where."""
    async with Pool(Maker(), max_size=1, record_holders=True) as pool:
        outer = pool.lease()
        async with outer:
            with pytest.raises(PoolTimeoutError) as caught:
                async with pool.lease(timeout=0.01):
                    pass
        (holder,) = caught.value.holders
        assert holder.lease_id == outer.id
        assert holder.where is not None
        assert holder.where.startswith(__file__)
        assert f"lease {outer.id} for " in str(caught.value)
        assert f"(acquired at {__file__}:" in str(caught.value)
        await all_acquirable(pool)


@pytest.mark.parametrize("second", ["asyncio", "trio"])
@pytest.mark.parametrize("first", ["asyncio", "trio"])
@pytest.mark.parametrize("where", ["same thread", "other thread"])
def test_no_34_a_second_loop(first: str, second: str, where: str) -> None:
    """A pool with an idle item, used from a later run or another thread: refused, unharmed."""
    pool = Pool(Maker(), min_size=1, max_size=1, acquire_timeout=None)
    errors: list[BaseException] = []

    async def use_pool() -> None:
        for call in (pool.lease().__aenter__, pool.resize, pool.drain):
            try:
                await call()
            except WrongLoopError as error:
                errors.append(error)

    async def use_in_thread() -> None:
        await pool.open()
        thread = threading.Thread(target=lambda: anyio.run(use_pool, backend=second))
        thread.start()
        thread.join()
        await all_acquirable(pool)
        await pool.aclose()

    if where == "same thread":
        anyio.run(pool.open, backend=first)
        anyio.run(use_pool, backend=second)
    else:
        anyio.run(use_in_thread, backend=first)
    assert len(errors) == 3
    for error in errors:
        assert "pool 'pool' was opened in another event loop or thread" in str(error)
        assert "make one pool for each loop" in str(error)


async def test_no_35_hooks_raise_a_thousand_times(caplog: pytest.LogCaptureFixture) -> None:
    """Destroys that raise in the timer's passes: it lives, and each error is logged."""
    caplog.set_level(logging.WARNING)
    clock = Clock()

    def destroy(item: Item) -> None:
        raise OSError(f"no {item.number}")

    maker = Maker(destroy=destroy)
    async with Pool(
        maker, min_size=10, max_size=10, max_lifetime=1.0, max_creating=10, clock=clock
    ) as pool:
        for _ in range(100):
            clock.now += 2.0
            pool._on_timer()
            check(pool.slots)
            await settle()
        assert len(maker.destroyed) == 1000
        assert len(caplog.records) == 1000
        maker.on_destroy = None
        await all_acquirable(pool)
    caplog.clear()


@pytest.mark.parametrize("record", [True, False])
async def test_no_36_a_leak_is_reported_once(record: bool) -> None:
    """A lease dropped without its exit warns once, with the place; one that was released never."""
    pool = Pool(Maker(), max_size=1, record_holders=record)
    await pool.open()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(3):
            lease = pool.lease()
            await lease.__aenter__()
            await lease.__aexit__(None, None, None)
            del lease
            gc.collect()
        abandoned = pool.lease()
        del abandoned  # never entered
        gc.collect()
    lease = pool.lease()
    await lease.__aenter__()
    with pytest.warns(ResourceWarning) as caught:
        del lease
    gc.collect()
    assert len(caught) == 1
    text = str(caught[0].message)
    assert "was dropped without being released" in text
    assert "its item is lost to the pool" in text
    assert (f"(acquired at {__file__}:" in text) is record
    check(pool.slots)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        await pool.aclose(0)
        del pool
        gc.collect()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_clock_may_be_ahead_of_the_timer(backend: Literal["asyncio", "trio"]) -> None:
    """A timer that fires a moment early is set again, and does not miss its deadline."""

    async def main() -> None:
        slow = anyio.current_time()
        async with (
            Pool(
                Maker(), max_size=1, clock=lambda: slow + (anyio.current_time() - slow) * 0.9
            ) as pool,
            pool.lease(),
        ):
            began = anyio.current_time()
            with pytest.raises(PoolTimeoutError):
                await pool.lease(timeout=9.0).__aenter__()
            assert anyio.current_time() - began == pytest.approx(10.0, rel=0.01)

    run_in_virtual_time(backend, main)


# --- what a check and a replacement may cost ------------------------------------------------------


@pytest.mark.parametrize("check_after", [None, 0.0, 10.0])
async def test_on_acquire_does_not_change_when_items_are_checked(check_after: float | None) -> None:
    """With `on_acquire` each lease is prepared, but checked only as often as `check_after` says."""
    clock = Clock()
    looks = 0

    def look(_: Item) -> bool:
        nonlocal looks
        looks += 1
        return True

    prepared: list[Item] = []
    async with Pool(
        Maker(check=look),
        max_size=1,
        check_after=check_after,
        on_acquire=prepared.append,
        clock=clock,
    ) as pool:
        for idle in (1.0, 11.0, 1.0):
            async with pool.lease():
                pass
            clock.now += idle
        async with pool.lease():
            pass
        assert len(prepared) == 4
        assert looks == {None: 0, 0.0: 3, 10.0: 1}[check_after]
        await all_acquirable(pool)


def test_a_waiters_create_pays_what_is_owed() -> None:
    """One worn item, one waiter: one create, not one for each."""
    slots: Slots[str] = Slots("pool", 0, 10, Limits(max_uses=1, replaces=True, max_creating=10))
    slots.resize(0, 10, 0.0)
    first = slots.enqueue(Bell(), 0.0, inf)
    _, slot = slots.jobs.popleft()
    slots.create_done(slot, "item", 0.0)
    assert first.slot is slot
    slots.limits = Limits(max_uses=1, replaces=True, max_creating=1)
    hanging = slots.enqueue(Bell(), 0.0, inf)
    slots.give_up(hanging, 0.0)
    assert len(slots.jobs) == 1  # `max_creating` is used up: what is worn now stays owed
    slots.end_lease(slot, 1.0)
    slots.enqueue(Bell(), 1.0, inf)
    slots.enqueue(Bell(), 1.0, inf)
    creates = 0
    while slots.jobs:
        job, slot = slots.jobs.popleft()
        if job is Job.CREATE:
            creates += 1
            slots.create_done(slot, "item", 1.0)
        else:
            slots.destroy_done(slot, 1.0)
        check(slots)
    assert creates == 2
