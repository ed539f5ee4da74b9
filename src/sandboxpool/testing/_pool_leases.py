"""The checks of a pool's leases: who gets an item, in which order, and that none is lost."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, ClassVar, TypeVar

import anyio
import anyio.abc

from sandboxpool._exceptions import (
    LeaseEndedError,
    PoolFullError,
    PoolTimeoutError,
)
from sandboxpool.abc import Factory, Pool

from ._cancelling import every_moment
from ._conformance import Conformance, check, expect, leave_out, passes, settle, until
from ._pool_probe import Caller, Item, ProbeFactory, is_whole, use

F = TypeVar("F", bound=ProbeFactory)

_HAND_OFF_PASSES = 9
_SOON = 0.02  # seconds; for waits that are meant to run out
_LONG = 0.06  # seconds; for those that are not, and are looked at only at the end


class PoolLeases(Conformance):
    """The part of `PoolConformance` that is about leases."""

    options: ClassVar[frozenset[str]] = frozenset({"max_waiting", "check_after"})

    async def make_pool(
        self, factory: Factory[Any], *, max_size: int, acquire_timeout: float | None, **options: Any
    ) -> Pool[Any]:
        """Return an open pool of what *factory* makes.

        Args:
            factory: Of the kit.
            max_size: Items at most.
            acquire_timeout: Seconds that a lease waits at most, unless it says otherwise.
            options: Those of `options` that the check needs.
        """
        raise NotImplementedError(f"{type(self).__name__}.make_pool() returns a pool of yours")

    @asynccontextmanager
    async def pool(
        self, factory: ProbeFactory, max_size: int = 1, **options: Any
    ) -> AsyncIterator[Pool[Item]]:
        """Hold a pool open."""
        for option in options:
            if option != "acquire_timeout" and option not in self.options:
                leave_out(f"make_pool() takes no {option}")
        options.setdefault("acquire_timeout", 5.0)
        pool = await self.make_pool(factory, max_size=max_size, **options)
        try:
            yield pool
        finally:
            with anyio.move_on_after(1, shield=True):
                await pool.aclose(0)

    async def start(self, tasks: anyio.abc.TaskGroup, caller: Caller) -> Caller:
        """Start a caller, and let it come as far as it can."""
        tasks.start_soon(caller)
        await settle()
        return caller

    # --- who gets an item ---------------------------------------------------------------------

    @check
    async def test_idle_item_is_lent_at_once(self) -> None:
        """An item that was given back is lent again, and no other is made meanwhile.

        Contract: "Entering takes an idle item at once, or waits in order of arrival."
        """
        factory = ProbeFactory()
        async with self.pool(factory, 2) as pool:
            async with pool.lease() as first:
                pass
            await settle()
            with anyio.move_on_after(self.short_while) as limit:
                async with pool.lease() as second:
                    expect(first is second, f"the idle {first} was left alone for {second}")
            expect(not limit.cancelled_caught, "with an item idle, a lease has waited")

    @check
    async def test_one_holder_at_a_time(self) -> None:
        """No two callers hold the same item.

        Contract: "Lend items to one caller at a time, fairly, and keep them in order."
        """
        factory = ProbeFactory()

        async def call(number: int) -> None:
            for turn in range(8):
                async with use(pool):
                    await passes((number + turn) % 4)

        async with self.pool(factory, 3) as pool:
            async with anyio.create_task_group() as tasks:
                for number in range(10):
                    tasks.start_soon(call, number)
            fault = factory.faults("lent to two callers at once")
            expect(not fault, fault)

    @check
    async def test_never_more_than_max_size(self) -> None:
        """At no moment there are more items than `max_size`, those in creation included.

        Contract: "max_size: Items the pool never exceeds."
        """
        factory = ProbeFactory()
        factory.on_create = lambda: passes(3)
        async with self.pool(factory, 3) as pool, anyio.create_task_group() as tasks:
            callers = [Caller(pool) for _ in range(8)]
            for caller in callers:
                tasks.start_soon(caller)
                caller.leave.set()
        expect(factory.most <= 3, f"with max_size=3, {factory.most} items existed at once")

    @check
    async def test_first_come_first_served(self) -> None:
        """Those who wait get an item in the order in which they came.

        Contract: "Entering takes an idle item at once, or waits in order of arrival."
        """
        order: list[int] = []

        async def call(number: int) -> None:
            async with pool.lease():
                order.append(number)
                await passes(2)

        async with self.pool(ProbeFactory()) as pool:
            async with anyio.create_task_group() as tasks, pool.lease():
                for number in range(6):
                    tasks.start_soon(call, number)
                    await settle()
            expect(order == sorted(order), f"they came as 0 to 5 and were served as {order}")

    @check
    async def test_nobody_overtakes(self) -> None:
        """Who gives an item back and asks again comes after those who wait already.

        Contract: "Lend items to one caller at a time, fairly, and keep them in order."
        """
        order: list[str] = []

        async def greedy() -> None:
            async with pool.lease():
                holds.set()
                await go_on.wait()
            async with pool.lease():
                order.append("the one who had it")

        async def patient() -> None:
            async with pool.lease():
                order.append("the one who waited")

        holds, go_on = anyio.Event(), anyio.Event()
        async with self.pool(ProbeFactory()) as pool:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(greedy)
                await holds.wait()
                tasks.start_soon(patient)
                await settle()
                go_on.set()
            expect(order[0] == "the one who waited", f"served: {', then '.join(order)}")

    # --- cancellation -------------------------------------------------------------------------

    @check
    async def test_cancelled_at_any_await(self) -> None:
        """A lease that is cancelled, at whichever await, loses no item.

        Contract: "Cancelled while it waits, it leaves the queue, nothing is lost, and the
        cancellation is raised."
        """
        factory = ProbeFactory()
        factory.on_create = lambda: passes(2)
        factory.on_reset = lambda item: passes(1)

        async def operation() -> None:
            async with pool.lease():
                await passes(1)

        async with self.pool(factory, 2) as pool:
            for moment in every_moment():
                await moment.cancel(operation)
                await is_whole(pool, 2, f"{moment}, ")

    @check
    async def test_cancellation_is_raised(self) -> None:
        """A caller that is cancelled while it waits gets the cancellation, and no item.

        Contract: "Cancelled while it waits, it leaves the queue, nothing is lost, and the
        cancellation is raised."
        """
        async with self.pool(ProbeFactory()) as pool, anyio.create_task_group() as tasks:
            holder = await self.start(tasks, Caller(pool))
            waiter = await self.start(tasks, Caller(pool))
            waiter.scope.cancel()
            with anyio.move_on_after(self.short_while):
                await waiter.over.wait()
            expect(waiter.cancelled, f"it ended with {waiter.item or waiter.error} instead")
            holder.leave.set()

    @check
    async def test_cancelled_when_its_turn_comes(self) -> None:
        """A waiter that is cancelled around the moment of its turn takes nothing with it.

        Contract: "Cancelled while it waits, it leaves the queue, nothing is lost, and the
        cancellation is raised."
        """
        factory = ProbeFactory()
        async with self.pool(factory) as pool:
            for release_first in (True, False):
                for count in range(_HAND_OFF_PASSES):
                    async with anyio.create_task_group() as tasks:
                        holder = await self.start(tasks, Caller(pool))
                        waiter = await self.start(tasks, Caller(pool))
                        following = await self.start(tasks, Caller(pool))
                        acts = [holder.leave.set, waiter.scope.cancel]
                        for act in acts if release_first else reversed(acts):
                            act()
                            await passes(count)
                        waiter.leave.set()
                        with anyio.move_on_after(self.short_while):
                            await following.entered.wait()
                        served = following.item is not None
                        following.leave.set()
                        if not served:
                            following.scope.cancel()
                    first, then = (
                        ("released", "cancelled") if release_first else ("cancelled", "released")
                    )
                    expect(
                        served,
                        f"{first}, {count} passes of the loop later {then}: the next in the queue "
                        "got nothing",
                    )

    @check
    async def test_cancelled_holder_gives_back(self) -> None:
        """The item of a caller that is cancelled comes back, whatever its reset awaits.

        Contract: "Leaving never waits and cannot be cancelled."
        """
        factory = ProbeFactory()
        factory.on_reset = lambda item: passes(2)
        async with self.pool(factory) as pool:
            async with anyio.create_task_group() as tasks:
                holder = await self.start(tasks, Caller(pool))
                expect(holder.item is not None, "a lease of a free pool has not come")
                holder.scope.cancel()
            await is_whole(pool, 1)

    @check
    async def test_leaving_does_not_wait(self) -> None:
        """Who gives an item back goes on at once, however long the reset takes.

        Contract: "Leaving never waits and cannot be cancelled."
        """
        factory, done = ProbeFactory(), anyio.Event()
        factory.on_reset = lambda item: done.wait()
        async with self.pool(factory) as pool, anyio.create_task_group() as tasks:
            holder = await self.start(tasks, Caller(pool))
            holder.leave.set()
            try:
                with anyio.move_on_after(self.short_while):
                    await holder.over.wait()
                left = holder.over.is_set()
            finally:
                done.set()
            expect(left, "it waits for the reset of its item")

    @check
    async def test_error_in_the_body_passes(self) -> None:
        """What the body of a lease raises comes out as it is, and the item comes back.

        Contract: "Return a context manager that holds an item while it is entered."
        """
        error, raised = ValueError("of the body"), None
        async with self.pool(ProbeFactory()) as pool:
            try:
                async with pool.lease():
                    raise error
            except ValueError as out:
                raised = out
            expect(raised is error, f"what came out is {raised!r}")
            await is_whole(pool, 1)

    # --- limits -------------------------------------------------------------------------------

    @check
    async def test_timeout_of_the_lease(self) -> None:
        """A lease that gets nothing within its own timeout raises, and loses no item.

        Contract: "PoolTimeoutError: Nothing became free in time."
        """
        await self._runs_out({"acquire_timeout": None}, {"timeout": _SOON})

    @check
    async def test_timeout_of_the_pool(self) -> None:
        """A lease that names no timeout has that of the pool.

        Contract: "timeout: Seconds to wait at most, `None` for no limit. Without it, the pool's
        own."
        """
        await self._runs_out({"acquire_timeout": _SOON}, {})

    async def _runs_out(self, pool_options: dict[str, Any], lease_options: dict[str, Any]) -> None:
        async with self.pool(ProbeFactory(), **pool_options) as pool:
            async with anyio.create_task_group() as tasks:
                holder = await self.start(tasks, Caller(pool))
                waiter = await self.start(tasks, Caller(pool, **lease_options))
                with anyio.move_on_after(self.short_while):
                    await waiter.over.wait()
                waiter.scope.cancel()
                holder.leave.set()
            expect(
                isinstance(waiter.error, PoolTimeoutError),
                f"after {_SOON} s it ended with {waiter.error!r}"
                if waiter.error
                else f"after {_SOON} s it still waited",
            )
            await is_whole(pool, 1)

    @check
    async def test_no_timeout(self) -> None:
        """With `timeout=None` a lease waits for as long as it takes.

        Contract: "timeout: Seconds to wait at most, `None` for no limit. Without it, the pool's
        own."
        """
        async with self.pool(ProbeFactory(), acquire_timeout=_SOON) as pool:
            async with anyio.create_task_group() as tasks:
                holder = await self.start(tasks, Caller(pool))
                waiter = await self.start(tasks, Caller(pool, timeout=None))
                with anyio.move_on_after(_LONG):
                    await waiter.over.wait()
                holder.leave.set()
                waiter.leave.set()
            expect(waiter.error is None, f"it ended with {waiter.error!r}")

    @check
    async def test_full_queue(self) -> None:
        """Who comes when `max_waiting` callers wait already is refused at once.

        Contract: "PoolFullError: Too many were waiting already."
        """
        async with self.pool(ProbeFactory(), max_waiting=1) as pool:
            async with anyio.create_task_group() as tasks:
                await self.start(tasks, Caller(pool))
                await self.start(tasks, Caller(pool))
                refused = await self.start(tasks, Caller(pool))
                tasks.cancel_scope.cancel()
            expect(
                isinstance(refused.error, PoolFullError),
                f"the second one to wait ended with {refused.error!r}",
            )

    @check
    async def test_those_who_left_do_not_wait(self) -> None:
        """Waiters that were cancelled or ran out of time count no longer.

        Contract: "waiting: Callers in the queue, the live ones only."
        """
        async with self.pool(ProbeFactory(), 1) as pool:
            async with anyio.create_task_group() as tasks:
                await self.start(tasks, Caller(pool))
                cancelled = await self.start(tasks, Caller(pool))
                late = await self.start(tasks, Caller(pool, timeout=_SOON))
                waited = pool.statistics().waiting
                cancelled.scope.cancel()
                await cancelled.over.wait()
                await late.over.wait()
                await settle()
                waiting = pool.statistics().waiting
                tasks.cancel_scope.cancel()
            expect(waited == 2, f"with two callers in the queue, waiting is {waited}")
            expect(waiting == 0, f"both have left, and waiting is {waiting}")

    # --- the lease itself ---------------------------------------------------------------------

    @check
    async def test_lease_that_has_ended(self) -> None:
        """A lease that shows its item does so only while it is held.

        Contract: "LeaseEndedError: The lease has not begun, or has ended."
        """
        async with self.pool(ProbeFactory()) as pool:
            lease: Any = pool.lease()
            if not hasattr(type(lease), "item"):
                leave_out("the leases of this pool show nothing but their item")
            for state in ("has not begun", "has ended"):
                try:
                    shown = lease.item
                except LeaseEndedError:
                    pass
                else:
                    expect(False, f"a lease that {state} shows {shown}")
                if state == "has not begun":
                    async with lease as item:
                        expect(lease.item is item, f"it holds {item} and shows {lease.item}")

    @check
    async def test_retired_item(self) -> None:
        """An item that its lease has retired is destroyed, and not lent again.

        Contract: "Have the item destroyed instead of reset when this lease ends."
        """
        factory = ProbeFactory()
        async with self.pool(factory) as pool:
            lease: Any = pool.lease()
            if not hasattr(type(lease), "retire"):
                leave_out("the leases of this pool cannot retire their item")
            async with lease as first:
                lease.retire("the kit says so")
            async with pool.lease() as second:
                expect(second is not first, f"{first} was lent again")
            await until(lambda: first.destroyed)

    @check
    async def test_lease_ids(self) -> None:
        """No two leases have the same number.

        Contract: "A number that no other lease of this process has."
        """
        async with self.pool(ProbeFactory(), 3) as pool, AsyncExitStack() as stack:
            leases: list[Any] = [pool.lease() for _ in range(3)]
            if not hasattr(type(leases[0]), "id"):
                leave_out("the leases of this pool have no id")
            for lease in leases:
                await stack.enter_async_context(lease)
            ids = [lease.id for lease in leases]
            expect(len(set(ids)) == 3, f"three leases have the numbers {ids}")
