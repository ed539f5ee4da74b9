"""Release, fairness and the factory: what must not be lost, overtaken or started in vain."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from contextlib import suppress
from math import inf
from typing import Any

import anyio
import pytest
import trio

from sandboxpool import (
    FactoryError,
    LeaseEndedError,
    NestedAcquireError,
    PoolTimeoutError,
    WrongLoopError,
)
from sandboxpool._loop import running_backend
from sandboxpool._pool import Pool
from sandboxpool._slots import Limits, Slots
from tests.pool.rig import (
    Bell,
    Caller,
    Clock,
    Item,
    Maker,
    all_acquirable,
    check,
    passes,
    settle,
    start,
)


@pytest.mark.parametrize("k", range(5))
async def test_no_09_cancelled_scope_and_async_reset(k: int) -> None:
    """The reset runs in a task of the pool: the body's cancelled scope cannot reach it."""

    async def reset(_: Item) -> None:
        await passes(k)
        await anyio.lowlevel.checkpoint()

    maker = Maker(reset=reset)
    async with Pool(maker, max_size=1) as pool:
        with anyio.CancelScope() as scope:
            async with pool.lease():
                scope.cancel()
                await anyio.sleep_forever()
        check(pool.slots)
        await all_acquirable(pool)
        assert len(maker.made) == 1
        assert pool.statistics().reset_failures == 0


@pytest.mark.parametrize("sync", [True, False], ids=["sync", "async"])
async def test_no_10_reset_and_destroy_fail(sync: bool, caplog: pytest.LogCaptureFixture) -> None:
    """A reset that raises retires, a destroy that raises is logged, and neither costs a place."""

    def raises(item: Item) -> None:
        raise OSError(f"no {item.number}")

    async def araises(item: Item) -> None:
        raises(item)

    hook = raises if sync else araises
    maker = Maker(reset=hook, destroy=hook)
    async with Pool(maker, max_size=1) as pool:
        for _ in range(5):
            async with pool.lease(timeout=5):
                check(pool.slots)
        await settle()
        maker.on_reset = maker.on_destroy = None
        await all_acquirable(pool)
        assert pool.statistics().retired == {"reset_failed": 5}
    assert caplog.text.count("reset failed: OSError: no") == 5
    assert caplog.text.count("destroy failed: OSError: no") == 5


async def test_no_10_destroy_of_a_broken_item_hangs(caplog: pytest.LogCaptureFixture) -> None:
    """After `destroy_timeout` its place is free, and a drain meanwhile ends."""

    async def hang(item: Item) -> None:
        if item.number == 0:
            await anyio.sleep_forever()

    async with Pool(Maker(destroy=hang), max_size=1, destroy_timeout=0.05) as pool:
        lease = pool.lease()
        async with lease:
            lease.retire("broken")
        assert await pool.drain(0) is True  # it is closing already: nothing old is left to go
        assert pool.statistics().closing == 1
        await all_acquirable(pool)
        assert pool.statistics().retired == {"broken": 1}
    assert "destroy failed: TimeoutError" in caplog.text


async def test_no_11_release_where_it_does_not_belong() -> None:
    """Twice, after close, from another task (allowed), from another thread (refused)."""
    maker = Maker()
    async with Pool(maker, max_size=2) as pool, anyio.create_task_group() as tg:
        lease = pool.lease()
        await lease.__aenter__()
        errors: list[BaseException] = []

        def elsewhere() -> None:
            try:
                lease.__aexit__(None, None, None).send(None)
            except BaseException as error:
                errors.append(error)

        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        assert isinstance(errors[0], WrongLoopError)
        assert "released in another event loop or thread" in str(errors[0])
        assert "nothing has changed" in str(errors[0])
        assert pool.slots.in_use == 1

        async def other_task() -> None:
            await lease.__aexit__(None, None, None)

        tg.start_soon(other_task)
        await settle()
        assert pool.slots.in_use == 0
        with pytest.raises(LeaseEndedError, match="cannot be released"):
            await lease.__aexit__(None, None, None)
        check(pool.slots)
        await all_acquirable(pool)
    with pytest.raises(LeaseEndedError, match="cannot be released"):
        await lease.__aexit__(None, None, None)


async def test_no_12_use_after_release() -> None:
    """The lease a caller still holds refuses to name an item that is someone else's by now."""
    async with Pool(Maker(), max_size=1) as pool:
        first = pool.lease()
        async with first as item:
            pass
        second = pool.lease()
        async with second as again:
            assert again is item
            assert second.item is item
            with pytest.raises(LeaseEndedError, match="holds nothing"):
                _ = first.item
            with pytest.raises(LeaseEndedError, match="holds nothing"):
                first.retire()
            assert first.id != second.id
        assert pool.statistics().retired == {}
        await all_acquirable(pool)


@pytest.mark.parametrize("hook", ["create", "reset", "check", "on_acquire", "destroy"])
async def test_no_13_a_hook_acquires_from_its_own_pool(
    hook: str, caplog: pytest.LogCaptureFixture
) -> None:
    """An error that says so, not a deadlock: at size 1 the hook would wait for itself."""
    errors: list[BaseException] = []

    async def nested(_: Item | None = None) -> Any:
        try:
            async with pool.lease(timeout=None):
                pass
        except NestedAcquireError as error:
            errors.append(error)
            raise

    maker = Maker()
    if hook == "check":
        maker.check = nested
    elif hook != "on_acquire":
        setattr(maker, f"on_{hook}", nested)
    pool: Pool[Item] = Pool(
        maker, max_size=1, check_after=0, on_acquire=nested if hook == "on_acquire" else None
    )
    async with pool:
        for _ in range(2):
            with suppress(FactoryError):
                async with pool.lease(timeout=5):
                    pass
            await settle()
            check(pool.slots)
        maker.on_create = maker.on_reset = maker.on_destroy = None
        if hook == "destroy":
            maker.on_destroy = nested
            await pool.drain(1)
            maker.on_destroy = None
        if hook in ("create", "reset", "destroy"):
            await all_acquirable(pool)
    assert errors
    assert all("acquires from that same pool" in str(error) for error in errors)


async def test_no_14_reacquire_without_yielding() -> None:
    """A holder that releases and acquires in one breath gets its turn after the one that waits."""
    order: list[str] = []
    async with Pool(Maker(), max_size=1) as pool:

        async def greedy() -> None:
            for _ in range(3):
                async with pool.lease():
                    order.append("greedy")
                    if len(order) == 1:
                        await settle()

        async def modest() -> None:
            async with pool.lease():
                order.append("modest")

        async with anyio.create_task_group() as tg:
            tg.start_soon(greedy)
            await passes(3)
            tg.start_soon(modest)
        assert order[:3] == ["greedy", "modest", "greedy"]
        await all_acquirable(pool)


@pytest.mark.parametrize("tasks", [1000, pytest.param(10_000, marks=pytest.mark.slow)])
@pytest.mark.backend_with_uvloop
async def test_no_15_turns_are_equal(tasks: int) -> None:
    """Looping tasks over 100 items: turns differ by one at most, and grants follow arrivals."""
    turns = [0] * tasks
    over = False
    async with Pool(Maker(), min_size=100, max_size=100, acquire_timeout=None) as pool:

        async def loop(number: int) -> None:
            while not over:
                async with pool.lease():
                    turns[number] += 1
                    await passes(1)

        async with anyio.create_task_group() as tg:
            for number in range(tasks):
                tg.start_soon(loop, number)
            head = 0
            while sum(turns) < 5 * tasks:
                queue = [w.seq for w in pool.slots._queue if w.outcome is None]
                assert queue == sorted(queue)
                # Granted are always those at the head: who came later stands behind, unbroken.
                assert not queue or queue == list(range(queue[0], queue[0] + len(queue)))
                assert not queue or queue[0] >= head
                head = queue[0] if queue else head
                await passes(1)
            spread = max(turns) - min(turns)
            over = True
        assert spread <= 1
        await all_acquirable(pool)


async def test_no_16_a_dead_item_costs_no_place() -> None:
    """The first in the queue whose item fails its check stays first, with its old deadline."""
    clock = Clock()
    bad = True

    async def look(_: Item) -> bool:
        await passes(2)
        return not bad

    async with (
        Pool(Maker(check=look), max_size=1, check_after=1, clock=clock) as pool,
        anyio.create_task_group() as tg,
    ):
        async with pool.lease():
            pass
        clock.now += 2
        order: list[int] = []

        async def note(number: int) -> None:
            order.append(number)

        callers = [
            Caller(pool, timeout=5.0, body=lambda _, number=number: note(number))
            for number in range(3)
        ]
        for caller in callers:
            tg.start_soon(caller)
            await caller.started.wait()
        waiter = next(w for w in pool.slots._queue)
        assert waiter.deadline == clock.now + 5
        for caller in callers:
            await caller.over.wait()
            assert caller.error is None
        assert order == [0, 1, 2]
        assert waiter.deadline == clock.now + 5
        assert pool.statistics().retired == {"unhealthy": 1}
        bad = False
        await all_acquirable(pool)


def test_no_17_mixed_timeouts() -> None:
    """A short timeout behind a long one ends on time, and leaves the long one its place."""
    slots: Slots[str] = Slots("pool", 0, 1, Limits())
    slots.resize(0, 1, 0.0)
    holder = slots.enqueue(Bell(), 0.0, inf)
    _, slot = slots.jobs.popleft()
    slots.create_done(slot, "item", 0.0)
    forever = slots.enqueue(Bell(), 0.0, inf)
    long = slots.enqueue(Bell(), 0.0, 30.0)
    short = slots.enqueue(Bell(), 0.0, 1.0)
    assert slots.due(0.0) == 1.0
    slots.sweep(1.0)
    check(slots)
    assert [w.outcome and w.outcome.value for w in (forever, long, short)] == [
        None,
        None,
        "timed out",
    ]
    assert slots.due(1.0) == 30.0
    assert holder.slot is slot
    slots.end_lease(slot, 2.0)
    slots.reset_done(slot, 2.0)
    assert forever.slot is slot
    check(slots)


@pytest.mark.parametrize("failures", [1, 2, None], ids=["once", "twice", "always"])
async def test_no_18_create_fails(failures: int | None, caplog: pytest.LogCaptureFixture) -> None:
    """With three waiters and one place nobody sleeps: each gets the error or an item."""

    async def create() -> None:
        await passes(2)
        if failures is None or maker.creates <= failures:
            raise OSError("no")

    maker = Maker(create=create)
    async with Pool(
        maker, max_size=1, max_creating=1, create_backoff=0.001, max_create_backoff=0.002
    ) as pool:
        async with anyio.create_task_group() as tg:
            callers = [Caller(pool, timeout=5, body=lambda _: passes(1)) for _ in range(3)]
            for caller in callers:
                tg.start_soon(caller)
        told = [caller.error for caller in callers if caller.error is not None]
        assert all(isinstance(error, FactoryError) for error in told)
        assert all(error.phase == "create" for error in told if isinstance(error, FactoryError))
        if failures is None:
            assert len(told) == 3
        check(pool.slots)
        failures = 0
        await all_acquirable(pool)
    assert "create failed: OSError: no" in caplog.text


async def test_no_18_the_error_is_that_of_the_hook_that_failed() -> None:
    """A create that fails beside one that succeeds in the same tick is not taken for another."""
    go = anyio.Event()

    async def create() -> None:
        number = maker.creates
        await go.wait()
        if number == 1:
            raise OSError("no")

    maker = Maker(create=create)
    async with (
        Pool(maker, max_size=2, max_creating=2, create_backoff=0.001) as pool,
        anyio.create_task_group() as tg,
    ):
        callers = [await start(tg, Caller(pool)) for _ in range(2)]
        go.set()
        await settle()
        assert pool.statistics().create_failures == 1
        errors = [caller.error for caller in callers if caller.error is not None]
        if errors:
            (failed,) = errors
            assert isinstance(failed, FactoryError)
            assert failed.phase == "create"
            assert "could not create an item: OSError: no" in str(failed)
        else:
            # Trio ran the other create first: the oldest caller, for whom the failed one had
            # begun, has that item, and the one who came later gets a create of its own.
            assert callers[0].item is not None
            await callers[1].entered.wait()
            assert maker.creates == 3
        for caller in callers:
            caller.leave.set()
        await settle()
        await all_acquirable(pool)


@pytest.mark.parametrize("ends", ["returns", "is cut"])
async def test_no_19_create_hangs(ends: str, caplog: pytest.LogCaptureFixture) -> None:
    """The acquire timeout holds, and the place is free again when the create ends or is cut."""
    go = anyio.Event()

    async def create() -> None:
        if maker.creates == 1:
            await go.wait()

    maker = Maker(create=create)
    timeout = 60 if ends == "returns" else 0.05
    async with Pool(maker, max_size=1, create_timeout=timeout, create_backoff=0.001) as pool:
        with pytest.raises(PoolTimeoutError, match="1 being created"):
            await pool.lease(timeout=0.005).__aenter__()
        assert pool.slots.creating == 1
        check(pool.slots)
        if ends == "returns":
            go.set()
        else:
            await settle()
        await all_acquirable(pool)
        assert maker.creates == (1 if ends == "returns" else 2)
    assert ("create failed: TimeoutError" in caplog.text) is (ends == "is cut")


async def test_no_19_a_hanging_create_does_not_hold_up_an_idle_item() -> None:
    """Who comes while a create hangs gets the idle item, although that must pass a check first."""
    maker = Maker()
    async with (
        Pool(maker, max_size=2, on_acquire=lambda _: None) as pool,
        anyio.create_task_group() as tg,
    ):
        first = await start(tg, Caller(pool))
        maker.on_create = anyio.sleep_forever
        second = await start(tg, Caller(pool))
        second.cancel("scope")
        first.leave.set()
        await first.over.wait()
        await settle()
        assert (pool.slots.creating, len(pool.slots.idle)) == (1, 1)
        third = await start(tg, Caller(pool))
        assert third.item is first.item
        check(pool.slots)
        third.leave.set()
        await third.over.wait()
        await pool.aclose(0)
    check(pool.slots)
    assert pool.slots.size == 0


@pytest.mark.parametrize("how", ["native", "scope"])
@pytest.mark.backend_with_uvloop
async def test_no_20_caller_cancelled_in_create(how: str) -> None:
    """At each tick of a create: its place comes back, and the item serves the next one."""
    for k in range(8):

        async def create() -> None:
            await passes(3)

        maker = Maker(create=create)
        async with Pool(maker, max_size=1) as pool, anyio.create_task_group() as tg:
            victim, other = Caller(pool), Caller(pool)
            tg.start_soon(victim)
            await victim.started.wait()
            tg.start_soon(other)
            await passes(k)
            check(pool.slots)
            victim.cancel(how)
            await victim.over.wait()
            assert victim.cancelled
            await other.entered.wait()
            check(pool.slots)
            other.leave.set()
            await other.over.wait()
            await all_acquirable(pool)
            assert maker.creates == 1


async def test_no_21_slow_create_and_tight_timeout() -> None:
    """Callers that always give up before a create ends do not cause one create each."""
    go = anyio.Event()

    async def create() -> None:
        await go.wait()

    maker = Maker(create=create)
    async with Pool(maker, max_size=5, max_creating=5) as pool:
        for _ in range(30):
            with pytest.raises(PoolTimeoutError):
                await pool.lease(timeout=0).__aenter__()
            check(pool.slots)
        assert maker.creates == 1
        go.set()
        await settle()
        assert len(pool.slots.idle) == 1
        await all_acquirable(pool)


@pytest.mark.parametrize("event", ["close", "drain", "shrink"])
@pytest.mark.parametrize("fails", [False, True], ids=["succeeds", "fails"])
async def test_no_22_create_ends_after(
    event: str, fails: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """What arrives after a close, drain or shrink is destroyed; whoever waits for it is told."""
    go = anyio.Event()

    async def create() -> None:
        if maker.creates > 1:
            await go.wait()
            if fails and maker.creates == 2:
                raise OSError("no")

    maker = Maker(create=create)
    pool = Pool(maker, max_size=2, create_backoff=0.001)
    await pool.open()
    async with anyio.create_task_group() as tg:
        first = await start(tg, Caller(pool))
        second = await start(tg, Caller(pool, timeout=5))
        done = anyio.Event()

        async def close_or_drain() -> None:
            if event == "close":
                await pool.aclose()
            else:
                assert await pool.drain()
            done.set()

        if event == "shrink":
            await pool.resize(max_size=1)
        else:
            tg.start_soon(close_or_drain)
        await settle()
        check(pool.slots)
        first.leave.set()
        await first.over.wait()
        go.set()
        await settle()
        second.leave.set()
        with anyio.fail_after(5):
            await second.over.wait()
            if event != "shrink":
                await done.wait()
        await settle()
        check(pool.slots)
        assert pool.slots.size <= pool.slots.max_size
        if event == "close":
            assert maker.alive == 0
        else:
            await all_acquirable(pool)
    await pool.aclose()
    assert maker.alive == 0
    caplog.clear()


async def test_no_23_cold_start() -> None:
    """1000 waiters over 100 places: `max_creating` creates at once, 100 items at most."""

    async def create() -> None:
        await passes(3)

    maker = Maker(create=create)
    async with Pool(maker, max_size=100, max_creating=7) as pool:
        async with anyio.create_task_group() as tg:
            callers = [Caller(pool, body=lambda _: passes(2)) for _ in range(1000)]
            for caller in callers:
                tg.start_soon(caller)
        assert all(caller.error is None for caller in callers)
        assert maker.most_creating == 7
        assert maker.creates <= 100
        await all_acquirable(pool)


async def test_create_that_is_cancelled_by_what_it_awaits(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A create that ends in a cancellation of its own has failed: its waiter is told, once."""
    if running_backend() == "trio":
        pytest.skip("Trio has no such cancellations")

    async def create() -> None:
        if maker.creates < 3:
            raise asyncio.CancelledError

    maker = Maker(create=create)
    async with Pool(maker, max_size=1, create_backoff=0.001) as pool:
        for _ in range(2):
            with pytest.raises(FactoryError) as caught:
                await pool.lease(timeout=5).__aenter__()
            assert isinstance(caught.value.__cause__, asyncio.CancelledError)
            check(pool.slots)
        await all_acquirable(pool)
        assert maker.creates == 3


async def test_create_in_flight_is_not_collected() -> None:
    """A create that waits for what nothing else holds is not garbage: asyncio would collect it."""
    holder: list[Any] = []

    async def create() -> None:
        event = anyio.Event()
        holder.append(weakref.ref(event))
        await event.wait()

    async with (
        Pool(Maker(create=create), max_size=1, create_timeout=None) as pool,
        anyio.create_task_group() as tg,
    ):
        caller = await start(tg, Caller(pool))
        gc.collect()
        event = holder[0]()
        assert event is not None
        event.set()
        await caller.entered.wait()
        caller.leave.set()
        await caller.over.wait()
        await all_acquirable(pool)


def test_the_run_ends_with_a_create_in_flight() -> None:
    """When Trio's main task returns with the pool open, the pool does not keep the run alive."""
    maker = Maker(create=trio.sleep_forever)

    async def main() -> None:
        pool = Pool(maker, max_size=2)
        await pool.open()
        await pool.resize(min_size=1)
        await settle()
        assert maker.creating == 1

    trio.run(main)
    assert maker.creates == 1
