"""The kit for pools: it passes what is right, and each of its checks notices what it is for."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable
from contextvars import copy_context
from typing import Any, ClassVar

import anyio
import anyio.lowlevel
import attrs
import pytest

from sandboxpool import (
    ConformanceError,
    FactoryError,
    FunctionFactory,
    Pool,
    PoolClosedError,
    PoolTimeoutError,
)
from sandboxpool._loop import running_backend
from sandboxpool.abc import Factory
from sandboxpool.testing import PoolConformance, check_conformance

from .kits import impatient, noticed, silent
from .small_pool import SmallLease, SmallPool, Waiter, in_hook, spawn


class TestOurPool(PoolConformance):
    """The library's own pool."""

    async def make_pool(self, factory: Factory[Any], **options: Any) -> Pool[Any]:
        pool = Pool(factory, **options)
        await pool.open()
        return pool


class SmallKit(PoolConformance):
    """The kit on a pool that shares no code with the library's."""

    options: ClassVar[frozenset[str]] = frozenset({"max_waiting"})
    pool_class: ClassVar[type[SmallPool]] = SmallPool

    async def make_pool(self, factory: Factory[Any], **options: Any) -> SmallPool:
        return self.pool_class(factory, **options)


class TestSmallPool(SmallKit):
    """A pool of somebody else."""


# --- pools that are broken, each in one way ---------------------------------------------------


class NewItemEachTime(SmallPool):
    """Leaves idle items alone as long as there is room for another."""

    async def acquire(self, timeout: float | None) -> Any:
        self.may_lease()
        if self.size < self.max_size and self.idle:
            self.counts["leases"] += 1
            return self.lend(await self.wait(timeout))
        return await super().acquire(timeout)


class LendsTwice(SmallPool):
    """Lends what is in use already when there is more than one."""

    async def acquire(self, timeout: float | None) -> Any:
        self.may_lease()
        if not self.idle and self.size == self.max_size and len(self.in_use) > 2:
            self.counts["leases"] += 1
            return self.in_use[0]
        return await super().acquire(timeout)


class OneTooMany(SmallPool):
    """Makes a spare item when several are wanted at once, and throws it away."""

    def grow(self) -> None:
        if self.size == self.max_size and self.creating and len(self.queue) > self.creating:
            spawn(self.spare)
        super().grow()

    async def spare(self) -> None:
        try:
            pending = self.factory.destroy(await self.factory.create())
            if inspect.isawaitable(pending):
                await pending
        except Exception:
            pass


class ForgetsWhatNobodyTakes(SmallPool):
    """Drops an item whose caller is gone when it is created."""

    def __init__(self, factory: Any, **options: Any) -> None:
        super().__init__(factory, **options)
        self.seen: list[Any] = []

    def put(self, item: Any) -> None:
        new = item not in self.seen
        self.seen.append(item)
        if not new or self.queue or self.closed:
            super().put(item)


class LastComeFirstServed(SmallPool):
    """Serves the newest waiter."""

    def next_waiter(self) -> Waiter:
        return self.queue.pop()


class Barging(SmallPool):
    """Wakes a waiter, but leaves the item for whoever takes it first."""

    def put(self, item: Any) -> None:
        if self.closed or self.size > self.max_size or item in self.old or not self.queue:
            super().put(item)
            return
        self.idle.append(item)
        spawn(self.match)

    async def match(self) -> None:
        if self.idle and self.queue:
            super().put(self.idle.pop())


class LosesItemsOfCancelled(SmallPool):
    """Forgets the item that was granted to a waiter that is cancelled at that moment."""

    def leave(self, waiter: Waiter) -> None:
        if waiter in self.queue:
            self.queue.remove(waiter)
        elif waiter.item is not None:
            self.in_use.remove(waiter.item)


class GrantsToTheDead(SmallPool):
    """Leaves those who are gone in the queue, and gives them items."""

    def leave(self, waiter: Waiter) -> None:
        waiter.item = None


class SwallowsCancellation(SmallPool):
    """Takes a cancellation while waiting for a timeout."""

    async def wait(self, timeout: float | None) -> Any:
        try:
            return await super().wait(timeout)
        except anyio.get_cancelled_exc_class():
            raise PoolTimeoutError("something went wrong") from None


class ReleasesInTheBody(SmallLease):
    """Waits for the reset of the item, and is cancelled in it."""

    async def __aexit__(self, *exc_info: object) -> None:
        await anyio.lowlevel.checkpoint()
        self.pool.release(self.item)


class LosesItemsOfHolders(SmallPool):
    """Awaits something before an item is given back."""

    lease_class = ReleasesInTheBody


class WaitsAtTheEnd(SmallLease):
    """Leaves when the item can be leased again."""

    async def __aexit__(self, *exc_info: object) -> None:
        self.pool.release(self.item)
        with anyio.CancelScope(shield=True):
            await self.pool.until(lambda: not self.pool.resetting)


class WaitsForReset(SmallPool):
    """Has the caller wait for the reset."""

    lease_class = WaitsAtTheEnd

    def put(self, item: Any) -> None:
        super().put(item)
        self.note()


class SwallowsAtTheEnd(SmallLease):
    """Lets no exception of the body out."""

    async def __aexit__(self, *exc_info: object) -> bool:  # type: ignore[override]
        self.pool.release(self.item)
        return exc_info[0] is ValueError


class SwallowsErrors(SmallPool):
    """Takes the exceptions of callers for its own."""

    lease_class = SwallowsAtTheEnd


class IgnoresOwnTimeout(SmallPool):
    """Waits as long as the pool says, whatever the lease says."""

    def lease(self, *, timeout: float | None = -1) -> Any:
        return super().lease(timeout=None if self.acquire_timeout is None else timeout)


class IgnoresPoolTimeout(SmallPool):
    """Waits for ever, unless the lease says otherwise."""

    def lease(self, *, timeout: float | None = -1) -> Any:
        return super().lease(timeout=None if timeout == -1 else timeout)


class NoneMeansDefault(SmallPool):
    """Takes `timeout=None` for no timeout given."""

    def lease(self, *, timeout: float | None = -1) -> Any:
        return super().lease(timeout=-1 if timeout is None else timeout)


class EndlessQueue(SmallPool):
    """Refuses nobody."""

    async def wait(self, timeout: float | None) -> Any:
        self.max_waiting = None
        return await super().wait(timeout)


class CountsTheDead(SmallPool):
    """Counts those who have left the queue as waiting."""

    ever = 0

    def enqueue(self, waiter: Waiter) -> None:
        super().enqueue(waiter)
        if self.size:
            self.ever += 1

    def statistics(self) -> Any:
        return attrs.evolve(super().statistics(), waiting=self.ever)


class NoReset(SmallPool):
    """Lends items as they come back."""

    def release(self, item: Any) -> None:
        factory, self.factory = self.factory, FunctionFactory(object)
        try:
            super().release(item)
        finally:
            self.factory = factory


class LendsInReset(SmallPool):
    """Takes an item for free as soon as its reset has begun."""

    def finish(self, item: Any, pending: Awaitable[None]) -> None:
        async def run() -> None:
            try:
                await pending
            except Exception:
                if item in self.idle:
                    self.idle.remove(item)
                    self.retire(item)

        self.resetting -= 1
        spawn(run)
        self.put(item)


class KeepsFailedItems(SmallPool):
    """Takes an item whose reset has failed for a good one."""

    def finish(self, item: Any, pending: Awaitable[None]) -> None:
        async def run() -> None:
            try:
                await pending
            except Exception:
                pass
            self.resetting -= 1
            self.put(item)

        spawn(run)


class AwaitsAnything(SmallPool):
    """Retires an item whose reset returns something odd."""

    def release(self, item: Any) -> None:
        make, calls = self.factory.reset, []

        class Strict:
            def reset(self, item: Any) -> Any:
                calls.append(make(item))
                if calls[0] is not None and not inspect.isawaitable(calls[0]):
                    raise TypeError("a reset returns None or an awaitable")
                return calls[0]

        factory, self.factory = self.factory, Strict()
        try:
            super().release(item)
        finally:
            self.factory = factory


class NoCause(SmallPool):
    """Says that a create failed, and not why."""

    def fail(self, waiter: Waiter, error: Exception) -> None:
        error.__cause__ = None
        super().fail(waiter, error)


class ForgetsFailedSlot(SmallPool):
    """Counts an item that could not be created as one that exists."""

    def create_failed(self, cause: Exception) -> None:
        super().create_failed(cause)
        self.size += 1


class TellsOnlyTheFirst(SmallPool):
    """Tells one waiter of a failed create, and tries no other."""

    def create_failed(self, cause: Exception) -> None:
        error = FactoryError("create failed", phase="create")
        error.__cause__ = cause
        self.fail(self.queue.popleft(), error)


class CreatesInCaller(SmallPool):
    """Creates with the caller's context variables."""

    def __init__(self, factory: Any, **options: Any) -> None:
        super().__init__(factory, **options)
        create = factory.create

        class Seeing:
            reset, destroy = factory.reset, factory.destroy

            async def create(_) -> Any:
                return await _In(self.context, create())

        self.factory = Seeing()

    def grow(self) -> None:
        self.context = copy_context()
        self.context.run(in_hook.set, (self,))
        super().grow()


class _In:
    """Runs the steps of a coroutine in a context."""

    def __init__(self, context: Any, awaited: Any) -> None:
        self.context, self.awaited = context, awaited

    def __await__(self) -> Any:
        steps = self.awaited.__await__()
        given = None
        while True:
            try:
                awaits = self.context.run(steps.send, given)
            except StopIteration as end:
                return end.value
            given = yield awaits


class CreatesForOne(SmallPool):
    """Stops a create when the caller that asked for it is gone."""

    def __init__(self, factory: Any, **options: Any) -> None:
        super().__init__(factory, **options)
        self.scopes: list[anyio.CancelScope] = []

    async def create(self) -> None:
        with anyio.CancelScope() as scope:
            self.scopes.append(scope)
            await super().create()
        if scope.cancelled_caught:
            self.size -= 1
            self.creating -= 1
            self.grow()

    def leave(self, waiter: Waiter) -> None:
        super().leave(waiter)
        if not self.closed and self.creating and not self.queue and self.scopes:
            self.scopes.pop().cancel()


class NestedWaits(SmallPool):
    """Lets a hook wait for the item that it makes."""

    def may_lease(self) -> None:
        if self.closed:
            raise PoolClosedError("closed")


class ForgetsResetting(SmallPool):
    """Does not count what is being reset."""

    def statistics(self) -> Any:
        return attrs.evolve(super().statistics(), resetting=0)


class CountsNoTimeouts(SmallPool):
    """Does not count those who ran out of time."""

    def statistics(self) -> Any:
        return attrs.evolve(super().statistics(), timeouts=0)


class GrowsLater(SmallPool):
    """Makes use of a larger size when the next one asks."""

    async def resize(self, *, min_size: int | None = None, max_size: int | None = None) -> None:
        self.max_size = self.max_size if max_size is None else max_size
        self.shrink()


class CutsWhenSmaller(SmallPool):
    """Takes items away from those who hold them."""

    def shrink(self) -> None:
        super().shrink()
        while len(self.in_use) > self.max_size:
            self.retire(self.in_use.pop())


class NeverShrinks(SmallPool):
    """Keeps what is too many."""

    def put(self, item: Any) -> None:
        size, self.size = self.size, 0 if self.max_size == 1 and self.size == 3 else self.size
        super().put(item)
        self.size += size - self.size

    def release(self, item: Any) -> None:
        limit = self.max_size
        self.max_size = max(limit, self.size)
        try:
            super().release(item)
        finally:
            self.max_size = limit


class DrainsOnlyIdle(SmallPool):
    """Leaves what is in use as it is."""

    async def drain(self, timeout: float | None = None) -> bool:
        in_use, self.in_use = self.in_use, []
        try:
            await super().drain(timeout)
        finally:
            self.in_use = in_use
        return not in_use


class DrainsAlwaysWell(SmallPool):
    """Says that all are gone, in time or not."""

    async def drain(self, timeout: float | None = None) -> bool:
        await super().drain(timeout)
        return True


class ClosesSilently(SmallPool):
    """Leaves those who wait when it closes where they are."""

    def begin_close(self) -> None:
        self.closed = True
        self.drain_idle()


class LendsWhenClosed(SmallPool):
    """Lets callers wait although it closes."""

    def may_lease(self) -> None:
        closed, self.closed = self.closed, False
        try:
            super().may_lease()
        finally:
            self.closed = closed

    def grow(self) -> None:
        if not self.closed:
            super().grow()


class CutsAtOnce(SmallPool):
    """Destroys what is in use when it closes."""

    def begin_close(self) -> None:
        super().begin_close()
        self.cut()


class ClosesPatiently(SmallPool):
    """Waits for leases however long that takes."""

    async def aclose(self, timeout: float | None = None) -> None:
        await super().aclose(None)


class SecondCloseReturns(SmallPool):
    """Has nothing to do when it is closed a second time."""

    async def aclose(self, timeout: float | None = None) -> None:
        if not self.closed:
            await super().aclose(timeout)


class ClosesHalf(SmallPool):
    """Stops closing in the middle when it is cancelled."""

    async def aclose(self, timeout: float | None = None) -> None:
        self.closed = True
        await anyio.lowlevel.checkpoint()
        await super().aclose(timeout)


class DestroysTwice(SmallPool):
    """Destroys an item that is cut off again when it comes back."""

    def release(self, item: Any) -> None:
        if item not in self.in_use and self.closed:
            self.size += 1
            self.retire(item)
            return
        super().release(item)


class DropsLateCreates(SmallPool):
    """Forgets an item that is created when the pool is closed already."""

    def put(self, item: Any) -> None:
        if self.closed:
            self.size -= 1
            self.note()
            return
        super().put(item)


class StumblesOverDestroy(SmallPool):
    """Keeps the place of an item that could not be destroyed."""

    async def destroy(self, item: Any) -> None:
        try:
            pending = self.factory.destroy(item)
            if inspect.isawaitable(pending):
                await pending
        except Exception:
            self.closing -= 1
            self.old.append(item)
            if self.closed:
                self.size -= 1
            self.note()
            return
        self.destroyed(item)


MUTANTS: list[tuple[type[SmallPool], set[str]]] = [
    (NewItemEachTime, {"test_idle_item_is_lent_at_once"}),
    (LendsTwice, {"test_one_holder_at_a_time"}),
    (OneTooMany, {"test_never_more_than_max_size"}),
    (ForgetsWhatNobodyTakes, {"test_cancelled_at_any_await"}),
    (LastComeFirstServed, {"test_first_come_first_served"}),
    (Barging, {"test_nobody_overtakes"}),
    (LosesItemsOfCancelled, {"test_cancelled_when_its_turn_comes"}),
    (
        GrantsToTheDead,
        {
            "test_cancelled_when_its_turn_comes",
            "test_cancelled_at_any_await",
            "test_timeout_of_the_lease",
            "test_timeout_of_the_pool",
            "test_those_who_left_do_not_wait",
            "test_figures_count",
        },
    ),
    (SwallowsCancellation, {"test_cancellation_is_raised"}),
    (
        LosesItemsOfHolders,
        {
            "test_cancelled_holder_gives_back",
            "test_cancelled_at_any_await",
            "test_cancelled_when_its_turn_comes",
        },
    ),
    (WaitsForReset, {"test_leaving_does_not_wait"}),
    (SwallowsErrors, {"test_error_in_the_body_passes"}),
    (IgnoresOwnTimeout, {"test_timeout_of_the_lease"}),
    (IgnoresPoolTimeout, {"test_timeout_of_the_pool"}),
    (NoneMeansDefault, {"test_no_timeout"}),
    (EndlessQueue, {"test_full_queue"}),
    (CountsTheDead, {"test_those_who_left_do_not_wait"}),
    (NoReset, {"test_reset_between_two_leases"}),
    (LendsInReset, {"test_reset_comes_to_its_end"}),
    (KeepsFailedItems, {"test_failed_reset"}),
    (AwaitsAnything, {"test_other_results_of_reset"}),
    (NoCause, {"test_failed_create"}),
    (ForgetsFailedSlot, {"test_failed_create"}),
    (TellsOnlyTheFirst, {"test_nobody_waits_for_a_failed_create"}),
    (CreatesInCaller, {"test_hooks_see_no_variables_of_the_caller"}),
    (CreatesForOne, {"test_hooks_are_not_cancelled"}),
    (NestedWaits, {"test_hook_that_leases"}),
    (ForgetsResetting, {"test_figures_add_up"}),
    (CountsNoTimeouts, {"test_figures_count"}),
    (GrowsLater, {"test_larger_pool"}),
    (CutsWhenSmaller, {"test_smaller_pool"}),
    (NeverShrinks, {"test_smaller_pool"}),
    (DrainsOnlyIdle, {"test_drain"}),
    (DrainsAlwaysWell, {"test_drain"}),
    (ClosesSilently, {"test_close_wakes_all"}),
    (LendsWhenClosed, {"test_closed_pool_lends_nothing"}),
    (CutsAtOnce, {"test_close_lets_leases_end"}),
    (ClosesPatiently, {"test_close_in_time"}),
    (SecondCloseReturns, {"test_second_close"}),
    (ClosesHalf, {"test_cancelled_close"}),
    (DestroysTwice, {"test_destroyed_exactly_once"}),
    (DropsLateCreates, {"test_destroyed_exactly_once"}),
    (StumblesOverDestroy, {"test_failed_destroy"}),
]


class WithoutCheck(PoolConformance):
    """The library's pool, with a factory whose `check` it does not see."""

    async def make_pool(self, factory: Any, **options: Any) -> Pool[Any]:
        blind = FunctionFactory(factory.create, reset=factory.reset, destroy=factory.destroy)
        pool = Pool(blind, **options)
        await pool.open()
        return pool


class WithBrokenLease(PoolConformance):
    """The library's pool, with leases that do one thing wrong."""

    fault: ClassVar[str]

    async def make_pool(self, factory: Any, **options: Any) -> Any:
        pool = Pool(factory, **options)
        await pool.open()
        lease, fault = pool.lease, self.fault

        class Broken:
            id = 1 if fault == "id" else property(lambda self: self.inner.id)

            def __init__(self, timeout: Any) -> None:
                self.inner = lease(**timeout)
                self.last: Any = None

            @property
            def item(self) -> Any:
                return self.last if fault == "item" else self.inner.item

            def retire(self, reason: str) -> None:
                if fault != "retire":
                    self.inner.retire(reason)

            async def __aenter__(self) -> Any:
                self.last = await self.inner.__aenter__()
                return self.last

            async def __aexit__(self, *exc_info: Any) -> None:
                await self.inner.__aexit__(*exc_info)

        pool.lease = lambda **timeout: Broken(timeout)  # type: ignore[method-assign, assignment]
        return pool


LEASES = {
    "id": "test_lease_ids",
    "item": "test_lease_that_has_ended",
    "retire": "test_retired_item",
}


@pytest.mark.parametrize(
    ("broken", "checks"), [pytest.param(*row, id=row[0].__name__) for row in MUTANTS]
)
async def test_broken_pool_is_noticed(broken: type[SmallPool], checks: set[str]) -> None:
    """A pool that breaks one rule is noticed by the check of that rule."""
    if broken is LosesItemsOfCancelled and running_backend() == "trio":
        pytest.skip("on Trio, who was woken is not cancelled any more")
    assert await noticed(impatient(SmallKit, pool_class=broken), checks) == checks


@pytest.mark.slow
@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
@pytest.mark.parametrize(
    ("broken", "checks"), [pytest.param(*row, id=row[0].__name__) for row in MUTANTS]
)
async def test_nothing_else_notices_a_broken_pool(
    broken: type[SmallPool], checks: set[str]
) -> None:
    """The checks of the other rules pass with it: each is about its own."""
    others = [name for name in SmallKit.names() if name not in checks]
    assert await noticed(impatient(SmallKit, pool_class=broken), others) == set()


async def test_pool_that_does_not_check_is_noticed() -> None:
    """A pool that never asks its factory's `check` is noticed by that check alone."""
    check = "test_item_that_no_longer_works"
    assert await noticed(impatient(WithoutCheck), [check]) == {check}


@pytest.mark.parametrize("fault", LEASES)
async def test_broken_lease_is_noticed(fault: str) -> None:
    """A lease that shows too much, retires nothing, or shares its number is noticed by that."""
    check = LEASES[fault]
    assert await noticed(impatient(WithBrokenLease, fault=fault), [check]) == {check}


def test_every_check_of_pools_has_a_broken_pool() -> None:
    """No check of the kit could be left out without a broken pool that slips through."""
    caught = {check for _, checks in MUTANTS for check in checks} | set(LEASES.values())
    assert caught | {"test_item_that_no_longer_works"} == set(PoolConformance.names())


async def test_error_names_rule_and_contract() -> None:
    """What a check raises says which rule is broken, what was seen, and what the contract says."""
    with pytest.raises(ConformanceError) as raised:
        await check_conformance(impatient(SmallKit, pool_class=LastComeFirstServed))
    assert str(raised.value) == (
        "Those who wait get an item in the order in which they came.\n"
        "  seen: they came as 0 to 5 and were served as [5, 4, 3, 2, 1, 0]\n"
        "  contract: Entering takes an idle item at once, or waits in order of arrival.\n"
        "  check: test_first_come_first_served"
    )


async def test_first_of_several_rules_counts_the_others() -> None:
    """Without pytest, the first broken rule is raised, and says which others there are."""
    with silent(), pytest.raises(ConformanceError, match="and 2 more: test_cancelled_when_its"):
        await check_conformance(impatient(SmallKit, pool_class=LosesItemsOfHolders))


async def test_right_pool_passes_without_pytest() -> None:
    """`check_conformance()` returns when every rule is kept."""
    with silent():
        await check_conformance(TestOurPool())


async def test_kit_without_a_pool() -> None:
    """A kit that makes no pool says which method is missing."""
    with pytest.raises(NotImplementedError, match=r"PoolConformance\.make_pool\(\) returns a pool"):
        await PoolConformance().make_pool(FunctionFactory(object), max_size=1, acquire_timeout=1)
