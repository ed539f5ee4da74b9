"""Hand-off and cancellation: no moment at which a waiter can leave may cost an item."""

from __future__ import annotations

import asyncio
import random
import sys
from collections.abc import AsyncIterator, Callable
from typing import Any

import anyio
import pytest

from sandboxpool import PoolClosedError, PoolTimeoutError
from sandboxpool._loop import running_backend
from sandboxpool._pool import Pool
from tests.pool.rig import Caller, Clock, Item, Maker, all_acquirable, check, passes, settle, start

HOW = pytest.mark.parametrize("how", ["native", "scope", "timeout"])


def strike(caller: Caller, how: str) -> None:
    """Cancel a caller, or let its deadline of this instant pass."""
    if how == "timeout":
        pool = caller.pool
        assert isinstance(pool.clock, Clock)
        pool.clock.now += 10.0
        pool.slots.sweep(pool.clock.now)
        pool._follow_up()
    else:
        caller.cancel(how)


@HOW
@pytest.mark.parametrize("waiters", [1, 2, 3])
@pytest.mark.backend_with_uvloop
async def test_no_01_and_02_sweep(how: str, waiters: int) -> None:
    """A release and a cancel, k passes apart, either first: nothing is lost, the next is served."""
    for k in range(9):
        for release_first in (True, False):
            async with Pool(Maker(), max_size=1, clock=Clock()) as pool:
                async with anyio.create_task_group() as tg:
                    holder = await start(tg, Caller(pool))
                    victim = await start(tg, Caller(pool, timeout=10.0))
                    others = [await start(tg, Caller(pool)) for _ in range(waiters - 1)]
                    if release_first:
                        holder.leave.set()
                        await passes(k)
                        strike(victim, how)
                    else:
                        strike(victim, how)
                        await passes(k)
                        holder.leave.set()
                    check(pool.slots)
                    await holder.over.wait()
                    await settle()
                    check(pool.slots)
                    served = victim.entered.is_set()
                    if how != "timeout":
                        assert victim.cancelled
                        assert victim.over.is_set()
                    elif not served:
                        assert isinstance(victim.error, PoolTimeoutError)
                    victim.leave.set()
                    await victim.over.wait()
                    for other in others:
                        await settle()
                        assert other.entered.is_set()
                        check(pool.slots)
                        other.leave.set()
                        await other.over.wait()
                await all_acquirable(pool)
                assert pool.statistics().created == 1


@pytest.mark.backend_with_uvloop
async def test_no_02_the_next_is_served_in_the_same_pass() -> None:
    """A waiter that is cancelled after its grant hands on in the very step in which it ends."""
    async with Pool(Maker(), max_size=1) as pool, anyio.create_task_group() as tg:
        holder, first, second, third = [await start(tg, Caller(pool)) for _ in range(4)]
        holder.leave.set()
        await holder.over.wait()
        first.cancel("native")
        second.cancel("native")
        for _ in range(20):
            check(pool.slots)
            assert not pool.slots.idle
            if third.entered.is_set():
                break
            await passes(1)
        assert third.entered.is_set()
        assert first.cancelled
        assert second.cancelled
        third.leave.set()
        await third.over.wait()
        await all_acquirable(pool)


@pytest.mark.parametrize("gap", [0, 1, 2, 3])
@pytest.mark.parametrize("pair", [("native", "native"), ("scope", "native"), ("native", "scope")])
@pytest.mark.backend_with_uvloop
async def test_no_03_cancelled_twice(pair: tuple[str, str], gap: int) -> None:
    """A second cancellation in the clean-up of the first one changes nothing."""

    async def pause(_: Item) -> None:
        await passes(3)

    for granted in (True, False):
        async with Pool(Maker(reset=pause), max_size=1) as pool, anyio.create_task_group() as tg:
            holder, victim, other = [await start(tg, Caller(pool)) for _ in range(3)]
            if granted:
                holder.leave.set()
                await passes(1)
            for how in pair:
                victim.cancel(how)
                check(pool.slots)
                await passes(gap)
            await victim.over.wait()
            assert victim.cancelled
            holder.leave.set()
            await other.entered.wait()
            other.leave.set()
            await other.over.wait()
            await all_acquirable(pool)


@pytest.mark.parametrize("seeds", [range(20), range(20, 40)], ids=["0-19", "20-39"])
@pytest.mark.backend_with_uvloop
async def test_no_04_storm(seeds: range) -> None:
    """60 tasks over 5 items, cancelled at random ticks in both ways, for many seeds."""
    for seed in seeds:
        rng = random.Random(seed)

        async def pause(_: Item, rng: random.Random = rng) -> None:
            await passes(rng.randrange(4))

        maker = Maker(reset=pause if seed % 2 else None, destroy=pause if seed % 3 else None)
        async with Pool(maker, max_size=5, max_uses=rng.choice([None, 3])) as pool:
            async with anyio.create_task_group() as tg:
                callers = [Caller(pool, body=pause) for _ in range(60)]
                for caller in callers:
                    tg.start_soon(caller)
                for _ in range(30):
                    await passes(rng.randrange(3))
                    victims = [c for c in rng.sample(callers, 3) if c.started.is_set()]
                    for victim in victims:
                        victim.cancel(rng.choice(["native", "scope"]))
                    check(pool.slots)
            for caller in callers:
                assert caller.cancelled or caller.error is None, (seed, caller.error)
            await all_acquirable(pool)
        assert maker.alive == 0


@pytest.mark.parametrize("close_first", [True, False])
@pytest.mark.parametrize("how", ["native", "scope", "timeout"])
async def test_no_05_cancelled_and_closed_in_the_same_tick(how: str, close_first: bool) -> None:
    """Both at once: the waiter ends by one of them, and the pool closes empty."""
    maker = Maker()
    pool = Pool(maker, max_size=1, clock=Clock())
    await pool.open()
    async with anyio.create_task_group() as tg:
        holder, victim, other = [
            await start(tg, Caller(pool, timeout=seconds)) for seconds in (None, 10.0, None)
        ]
        if close_first:
            pool.begin_close()
            strike(victim, how)
        else:
            strike(victim, how)
            pool.begin_close()
        check(pool.slots)
        await victim.over.wait()
        await other.over.wait()
        assert victim.cancelled or isinstance(victim.error, PoolClosedError | PoolTimeoutError)
        if how == "native" and running_backend() == "asyncio":
            assert victim.cancelled  # a native cancellation is never swallowed
        assert isinstance(other.error, PoolClosedError)
        holder.leave.set()
        await pool.aclose()
    assert maker.alive == 0
    assert pool.slots.size == 0


async def test_no_05_timed_out_and_granted_in_the_same_tick() -> None:
    """Released and timed out at one moment, in both orders: one of the two, and no item lost."""
    for release_first in (True, False):
        clock = Clock()
        async with (
            Pool(Maker(), max_size=1, clock=clock) as pool,
            anyio.create_task_group() as tg,
        ):
            lease = pool.lease()
            await lease.__aenter__()
            waiter = await start(tg, Caller(pool, timeout=5.0))
            clock.now += 5.0
            if release_first:
                await lease.__aexit__(None, None, None)
                pool._on_timer()
            else:
                pool._on_timer()
                await lease.__aexit__(None, None, None)
            check(pool.slots)
            waiter.leave.set()
            await waiter.over.wait()
            assert waiter.entered.is_set() is release_first
            assert isinstance(waiter.error, PoolTimeoutError) is not release_first
            assert pool.statistics().timeouts == (not release_first)
            await all_acquirable(pool)


async def _wait_for(coroutine: Any) -> None:
    await asyncio.wait_for(coroutine, 0.001)


async def _shield(coroutine: Any) -> None:
    with anyio.move_on_after(0.001):
        await asyncio.shield(coroutine)


async def _timeout(coroutine: Any) -> None:
    if sys.version_info >= (3, 11):
        async with asyncio.timeout(0.001):
            await coroutine
    else:
        await asyncio.wait_for(coroutine, 0.001)


async def _move_on_after(coroutine: Any) -> None:
    with anyio.move_on_after(0.001):
        await coroutine


async def _fail_after(coroutine: Any) -> None:
    with anyio.fail_after(0.001):
        await coroutine


@pytest.mark.parametrize("wrapper", [_wait_for, _timeout, _shield, _move_on_after, _fail_after])
@pytest.mark.backend_with_uvloop
async def test_no_06_limits_around_acquire(wrapper: Callable[[Any], Any]) -> None:
    """Every way to limit or shield an acquire: no item lost, no cancellation left behind."""
    if running_backend() == "trio" and wrapper in (_wait_for, _timeout, _shield):
        pytest.skip("asyncio's own")
    async with Pool(Maker(), max_size=1) as pool:
        for k in range(6):
            async with anyio.create_task_group() as tg:
                holder = await start(tg, Caller(pool))
                inner = Caller(pool, body=lambda _: passes(1))
                try:
                    await wrapper(inner.run())
                except (TimeoutError, asyncio.TimeoutError):  # two classes, before Python 3.11
                    pass
                task = asyncio.current_task() if running_backend() == "asyncio" else None
                if task is not None and sys.version_info >= (3, 11):
                    assert task.cancelling() == 0
                await passes(k)
                holder.leave.set()
                await holder.over.wait()
                await settle()
                check(pool.slots)
            await all_acquirable(pool)


@pytest.mark.parametrize("idle", [True, False], ids=["idle", "busy"])
@pytest.mark.parametrize("checkpoint", [False, True], ids=["plain", "checkpoint"])
async def test_no_07_acquire_in_a_cancelled_scope(idle: bool, checkpoint: bool) -> None:
    """The fast path is no checkpoint and succeeds; `checkpoint=True` and any wait raise."""
    async with Pool(Maker(), min_size=1, max_size=1, checkpoint=checkpoint) as pool:
        async with anyio.create_task_group() as tg:
            holder = Caller(pool)
            if not idle:
                await start(tg, holder)
            got = False
            with anyio.CancelScope() as scope:
                scope.cancel()
                async with pool.lease():
                    got = True
            assert got is (idle and not checkpoint)
            assert scope.cancelled_caught is not got
            check(pool.slots)
            holder.leave.set()
        await all_acquirable(pool)


async def test_no_07_cancelled_before_the_first_step() -> None:
    """A task that never ran a step takes nothing, with an idle item and without one."""
    async with Pool(Maker(), max_size=1) as pool, anyio.create_task_group() as tg:
        for holders in (0, 1):
            callers = [await start(tg, Caller(pool)) for _ in range(holders)]
            victim = Caller(pool)
            if running_backend() == "asyncio":
                task = asyncio.get_running_loop().create_task(victim())
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            else:
                victim.scope.cancel()
                tg.start_soon(victim)
                await settle()
            assert not victim.entered.is_set() or victim.over.is_set()
            check(pool.slots)
            for caller in callers:
                caller.leave.set()
                await caller.over.wait()
        await all_acquirable(pool)


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit, ValueError])
async def test_no_08_interrupted_body(error: type[BaseException]) -> None:
    """Whatever ends the body comes out unchanged, and the item is back."""
    async with Pool(Maker(), max_size=1) as pool:
        for record in (False, True):
            pool._record_holders = record
            with pytest.raises(error):
                async with pool.lease():
                    raise error
            check(pool.slots)
            assert pool.slots.in_use == 0
        await all_acquirable(pool)


class Interrupt(BaseException):
    """Stands in for Ctrl-C, which would end the test run."""


@pytest.mark.parametrize("hook", ["reset", "destroy"])
async def test_no_08_an_interrupt_in_the_hooks_of_a_release(hook: str) -> None:
    """Ctrl-C in a synchronous reset or destroy comes out, and costs no more than that item."""

    def interrupt(item: Item) -> None:
        if item.number == 0:
            raise Interrupt

    maker = Maker(reset=interrupt) if hook == "reset" else Maker(destroy=interrupt)
    async with Pool(maker, max_size=3) as pool:
        leases = [pool.lease() for _ in range(3)]
        items = [await lease.__aenter__() for lease in leases]
        for lease, item in zip(leases, items, strict=True):
            if hook == "reset" and item.number == 0:
                with pytest.raises(Interrupt):
                    await lease.__aexit__(None, None, None)
            else:
                await lease.__aexit__(None, None, None)
            check(pool.slots)
        if hook == "destroy":
            with pytest.raises(Interrupt):
                await pool.drain(1)  # the others must follow all the same
            check(pool.slots)
            assert await pool.drain(1)
            assert len(maker.destroyed) == 3
        await all_acquirable(pool)


async def test_no_08_generator_that_holds_a_lease() -> None:
    """A generator that is closed gives its item back; one that is dropped is reported."""
    pool = Pool(Maker(), max_size=2)
    await pool.open()

    async def rows() -> AsyncIterator[Item]:
        async with pool.lease() as item:
            yield item
            yield item

    generator = rows()
    async for _ in generator:
        break
    assert pool.slots.in_use == 1
    await generator.aclose()  # type: ignore[attr-defined]
    assert pool.slots.in_use == 0
    await all_acquirable(pool)

    def frame() -> None:
        # A coroutine that nobody finishes: its `async with` never comes to its end.
        async def hold() -> None:
            await pool.lease().__aenter__()

        coroutine = hold()
        with pytest.raises(StopIteration):
            coroutine.send(None)

    with pytest.warns(ResourceWarning, match=r"PoolLease \d+ of 'pool' open> was dropped"):
        frame()
    check(pool.slots)
    assert pool.slots.in_use == 1
    await pool.aclose(0)
    assert pool.slots.size == 0
