"""The checks of a pool: what it does with its factory, its figures, its bounds and its end."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import anyio

from sandboxpool._exceptions import FactoryError, NestedAcquireError, PoolClosedError
from sandboxpool.abc import Pool

from ._cancelling import every_moment
from ._conformance import check, expect, passes, settle, until
from ._pool_leases import PoolLeases
from ._pool_probe import (
    Caller,
    CheckingFactory,
    Item,
    ProbeFactory,
    in_caller,
    is_closed,
    is_whole,
    sums_up,
    use,
)

_SOON = 0.02  # seconds


class PoolConformance(PoolLeases):
    """The checks of `sandboxpool.abc.Pool`.

    Write `make_pool()`. A pool that knows none of `options` says so, and the checks that need
    one are left out.

    Attributes:
        options: What `make_pool()` takes besides `max_size` and `acquire_timeout`:
            `"max_waiting"` (callers that may wait), `"check_after"` (seconds of idleness after
            which the factory's `check` is asked).
    """

    # --- the factory --------------------------------------------------------------------------

    @check
    async def test_reset_between_two_leases(self) -> None:
        """An item is reset before it is lent again.

        Contract: "Make an item that was used as good as new."
        """
        factory = ProbeFactory()
        async with self.pool(factory) as pool:
            for _ in range(3):
                async with use(pool):
                    pass
                await settle()
            fault = factory.faults("lent again without a reset")
            expect(not fault, fault)

    @check
    async def test_reset_comes_to_its_end(self) -> None:
        """An item whose reset still runs is not lent.

        Contract: "Make an item that was used as good as new."
        """
        factory, done = ProbeFactory(), anyio.Event()
        began = finished = False

        async def reset() -> None:
            nonlocal began, finished
            began = True
            await done.wait()
            finished = True

        factory.on_reset = lambda item: reset()
        async with self.pool(factory) as pool, anyio.create_task_group() as tasks:
            holder = await self.start(tasks, Caller(pool))
            holder.leave.set()
            following = await self.start(tasks, Caller(pool))
            early = following.item is not None and began and not finished
            done.set()
            following.leave.set()
            await following.over.wait()
            expect(not early, f"{following.item} was lent in the middle of its reset")

    @check
    async def test_failed_reset(self) -> None:
        """An item whose reset raises is never lent again; another takes its place.

        Contract: "Anything; the item is retired as `reset_failed` and never lent again."
        """
        factory = ProbeFactory()

        def raises(item: Item) -> None:
            item.failed = True
            raise ValueError("reset")

        async def raises_later(item: Item) -> None:
            await passes(1)
            raises(item)

        async with self.pool(factory) as pool:
            hooks: list[Callable[[Item], Awaitable[None] | None]] = [raises, raises_later]
            for hook in hooks:
                factory.on_reset = hook
                async with use(pool):
                    pass
                await settle()
                factory.on_reset = None
                async with use(pool):
                    pass
                await settle()
            fault = factory.faults("lent although its reset or check had failed")
            expect(not fault, fault)

    @check
    async def test_other_results_of_reset(self) -> None:
        """What `reset` returns is ignored, unless it can be awaited.

        Contract: "Only an awaitable that it returns means that there is more to do; any other
        value is ignored."
        """
        factory = ProbeFactory()
        factory.on_reset = lambda item: 5  # type: ignore[assignment, return-value]
        async with self.pool(factory) as pool:
            for _ in range(2):
                async with pool.lease():
                    pass
                await settle()
            expect(len(factory.items) == 1, "the item whose reset returned 5 was replaced")

    @check
    async def test_failed_create(self) -> None:
        """Who waits for an item that cannot be created gets that error, and the next try counts.

        Contract: "FactoryError: The item this caller waited for could not be created."
        """
        factory, cause = ProbeFactory(), ValueError("create")

        async def fail() -> None:
            await passes(1)
            raise cause

        factory.on_create = fail
        async with self.pool(factory) as pool:
            try:
                async with pool.lease():
                    pass
            except FactoryError as error:
                expect(
                    error.__cause__ is cause, f"the cause is {error.__cause__!r}, not the create's"
                )
            else:
                expect(False, "the lease has got an item")
            factory.on_create = None
            await is_whole(pool, 1, "after a create that failed, ")

    @check
    async def test_nobody_waits_for_a_failed_create(self) -> None:
        """When creates fail and nothing else is left, all who wait are told.

        Contract: "Anything; it reaches the waiting callers as the cause of a `FactoryError`:
        the one that waits longest, or all of them if the pool has nothing else left."
        """
        factory = ProbeFactory()

        async def fail() -> None:
            await passes(3)
            raise ValueError("create")

        factory.on_create = fail
        async with self.pool(factory, acquire_timeout=None) as pool:
            callers = [Caller(pool) for _ in range(3)]
            async with anyio.create_task_group() as tasks:
                for caller in callers:
                    tasks.start_soon(caller)
                with anyio.move_on_after(self.short_while):
                    for caller in callers:
                        await caller.over.wait()
                asleep = sum(not caller.over.is_set() for caller in callers)
                tasks.cancel_scope.cancel()
            expect(not asleep, f"{asleep} of 3 callers still wait, and nothing is created")

    @check
    async def test_hooks_see_no_variables_of_the_caller(self) -> None:
        """What the factory does has nothing of the caller's context variables.

        Contract: "So none of them sees the caller's context variables, nor its cancellation."
        """
        factory, seen = ProbeFactory(), []

        async def look(hook: str) -> None:
            if in_caller.get():
                seen.append(hook)

        factory.on_create = lambda: look("create")
        factory.on_reset = lambda item: look("reset")
        factory.on_destroy = lambda item: look("destroy")
        async with self.pool(factory) as pool:
            token = in_caller.set(True)
            try:
                for _ in range(2):
                    async with pool.lease():
                        pass
            finally:
                in_caller.reset(token)
            await settle()
        expect(not seen, f"seen in {', '.join(sorted(set(seen)))}")

    @check
    async def test_hooks_are_not_cancelled(self) -> None:
        """The `create` that a caller waits for goes on when the caller is cancelled.

        Contract: "So none of them sees the caller's context variables, nor its cancellation."
        """
        factory, go_on = ProbeFactory(), anyio.Event()
        factory.on_create = go_on.wait
        async with self.pool(factory) as pool, anyio.create_task_group() as tasks:
            gone = await self.start(tasks, Caller(pool))
            gone.scope.cancel()
            await gone.over.wait()
            await settle()
            running = factory.creating
            go_on.set()
            expect(running == 1, "the create was cancelled with its caller")

    @check
    async def test_item_that_no_longer_works(self) -> None:
        """An item whose `check` says no is replaced, and the caller gets another one.

        Contract: "`False` or an exception retires the item as `unhealthy` and the caller, who
        keeps its place, gets another."
        """
        factory = CheckingFactory()
        async with self.pool(factory, check_after=0.0) as pool:
            async with use(pool) as first:
                pass
            await settle()
            factory.broken.add(first.number)
            async with use(pool) as second:
                expect(second is not first, f"{first}, whose check says no, was lent")

    @check
    async def test_hook_that_leases(self) -> None:
        """A hook that leases from its own pool gets an error, rather than waiting for itself.

        Contract: "A hook must not acquire from its own pool (`NestedAcquireError`)."
        """
        factory: ProbeFactory = ProbeFactory()
        seen: list[BaseException] = []

        async def nested() -> None:
            try:
                async with pool.lease(timeout=1):
                    pass
            except BaseException as error:
                seen.append(error)
                raise

        factory.on_create = nested
        async with self.pool(factory) as pool:
            try:
                async with pool.lease():
                    pass
            except FactoryError:
                pass
        expect(
            seen and isinstance(seen[0], NestedAcquireError),
            f"it ended with {seen[0]!r}" if seen else "the hook has got an item",
        )

    # --- figures ------------------------------------------------------------------------------

    @check
    async def test_figures_add_up(self) -> None:
        """At every moment each item is in exactly one place.

        Contract: "`idle + in_use + creating + resetting + closing == size` holds in every
        snapshot."
        """
        factory = ProbeFactory()
        wrong: list[str] = []

        async def look(*args: object) -> None:
            for _ in range(3):
                if fault := sums_up(pool):
                    wrong.append(fault)
                await passes(1)

        factory.on_create = factory.on_reset = factory.on_destroy = look

        async def call() -> None:
            for _ in range(3):
                async with pool.lease():
                    await look()

        async with self.pool(factory, 2) as pool:
            async with anyio.create_task_group() as tasks:
                for _ in range(4):
                    tasks.start_soon(call)
            await look()
            await pool.aclose()
            await look()
        expect(not wrong, wrong[0] if wrong else "")

    @check
    async def test_figures_count(self) -> None:
        """Leases, waits, timeouts and creates are counted.

        Contract: "What a pool holds and has done, at one moment."
        """
        async with self.pool(ProbeFactory()) as pool:
            async with anyio.create_task_group() as tasks:
                holder = await self.start(tasks, Caller(pool))
                in_use = pool.statistics().in_use
                late = await self.start(tasks, Caller(pool, timeout=_SOON))
                waiter = await self.start(tasks, Caller(pool))
                await late.over.wait()
                holder.leave.set()
                waiter.leave.set()
            await settle()
            now = pool.statistics()
            counted = {
                "in_use": (in_use, 1), "leases": (now.leases, 2), "waits": (now.waits >= 1, True),
                "timeouts": (now.timeouts, 1), "created": (now.created, 1), "idle": (now.idle, 1),
            }  # fmt: skip
            wrong = [
                f"{name} is {found}, not {right}"
                for name, (found, right) in counted.items()
                if found != right
            ]
            expect(not wrong, "; ".join(wrong))

    # --- bounds -------------------------------------------------------------------------------

    @check
    async def test_larger_pool(self) -> None:
        """When the pool becomes larger, those who wait are served.

        Contract: "Change the bounds live; what is too many is retired when it comes back."
        """
        async with self.pool(ProbeFactory()) as pool, anyio.create_task_group() as tasks:
            await self.start(tasks, Caller(pool))
            waiter = await self.start(tasks, Caller(pool))
            await pool.resize(max_size=2)
            with anyio.move_on_after(self.short_while):
                await waiter.entered.wait()
            served = waiter.item is not None
            tasks.cancel_scope.cancel()
        expect(served, "with room for one more, the caller still waits")

    @check
    async def test_smaller_pool(self) -> None:
        """When the pool becomes smaller, nobody loses an item, and what is too many goes later.

        Contract: "Change the bounds live; what is too many is retired when it comes back."
        """
        factory = ProbeFactory()
        async with self.pool(factory, 3) as pool:
            async with anyio.create_task_group() as tasks:
                callers = [await self.start(tasks, Caller(pool)) for _ in range(3)]
                await pool.resize(max_size=1)
                await settle()
                lost = 3 - len(factory.alive)
                for caller in callers:
                    caller.leave.set()
            expect(not lost, f"{lost} items were destroyed while they were in use")
            with anyio.move_on_after(self.short_while) as limit:
                await until(lambda: len(factory.alive) <= 1)
            expect(
                not limit.cancelled_caught, f"with max_size=1, {len(factory.alive)} items are left"
            )

    @check
    async def test_drain(self) -> None:
        """Draining replaces every item, those in use as they come back.

        Contract: "Replace every item: the idle ones now, the others as their leases end."
        """
        factory = ProbeFactory()
        async with self.pool(factory, 2) as pool:
            async with AsyncExitStack() as stack:
                held = await stack.enter_async_context(pool.lease())
                async with pool.lease() as idle:
                    pass
                await settle()
                done = await pool.drain(_SOON)
                expect(not done, "it says that all are gone, and one is still on lease")
                await settle()
                expect(idle.destroyed, "the idle item is still there")
                expect(not held.destroyed, "an item on lease was destroyed")
            with anyio.move_on_after(self.short_while) as limit:
                await until(lambda: held.destroyed)
            expect(not limit.cancelled_caught, "the item on lease stayed when it came back")
            expect(await pool.drain(1.0), "it says that old items are left, and there are none")

    # --- the end ------------------------------------------------------------------------------

    @check
    async def test_close_wakes_all(self) -> None:
        """Those who wait when the pool is closed are told at once.

        Contract: "PoolClosedError: The pool is closed, or was closed during the wait."
        """
        async with self.pool(ProbeFactory(), acquire_timeout=None) as pool:
            async with anyio.create_task_group() as tasks:
                holder = await self.start(tasks, Caller(pool))
                waiters = [await self.start(tasks, Caller(pool)) for _ in range(3)]
                tasks.start_soon(pool.aclose)
                with anyio.move_on_after(self.short_while):
                    for waiter in waiters:
                        await waiter.over.wait()
                told = [type(waiter.error) for waiter in waiters]
                holder.leave.set()
                tasks.cancel_scope.cancel()
            expect(told == [PoolClosedError] * 3, f"they ended with {told}")

    @check
    async def test_closed_pool_lends_nothing(self) -> None:
        """After `aclose()`, and from its beginning on, no lease succeeds.

        Contract: "Refuse new leases, wake every waiter, let leases end, destroy everything."
        """
        async with self.pool(ProbeFactory(), 2) as pool:
            async with anyio.create_task_group() as tasks:
                holder = await self.start(tasks, Caller(pool))
                tasks.start_soon(pool.aclose)
                await settle()
                await is_closed(pool)
                holder.leave.set()
            await is_closed(pool)

    @check
    async def test_close_lets_leases_end(self) -> None:
        """Closing waits for those who hold an item.

        Contract: "Refuse new leases, wake every waiter, let leases end, destroy everything."
        """
        async with self.pool(ProbeFactory()) as pool, anyio.create_task_group() as tasks:
            holder = await self.start(tasks, Caller(pool))
            tasks.start_soon(pool.aclose)
            await settle()
            item = holder.item
            cut = item is not None and bool(item.destroyed)
            holder.leave.set()
            expect(not cut, f"{item} was destroyed while it was on lease")

    @check
    async def test_close_in_time(self) -> None:
        """Closing with a timeout comes to its end although an item is not given back.

        Contract: "timeout: Seconds to wait for leases to end; afterwards their items are
        destroyed all the same."
        """
        factory = ProbeFactory()
        async with self.pool(factory) as pool:
            async with anyio.create_task_group() as tasks:
                await self.start(tasks, Caller(pool))
                with anyio.move_on_after(self.short_while) as limit:
                    await pool.aclose(_SOON)
                left = len(factory.alive)
                tasks.cancel_scope.cancel()
            expect(not limit.cancelled_caught, f"it still waits long after timeout={_SOON}")
            expect(not left, f"{left} item is left")

    @check
    async def test_second_close(self) -> None:
        """A second `aclose()` is harmless, and over when the first one is.

        Contract: "A second call waits for the first."
        """
        over: list[int] = []
        factory = ProbeFactory()

        async def close(number: int) -> None:
            await pool.aclose()
            over.append(number)

        async with self.pool(factory) as pool:
            async with anyio.create_task_group() as tasks:
                holder = await self.start(tasks, Caller(pool))
                for number in range(2):
                    tasks.start_soon(close, number)
                    await settle()
                early = over == [1]
                holder.leave.set()
            expect(not early, "the second call has returned, and the first one still waits")
            await pool.aclose()

    @check
    async def test_cancelled_close(self) -> None:
        """Closing that is cancelled, at whichever await, leaves no item behind.

        Contract: "Refuse new leases, wake every waiter, let leases end, destroy everything."
        """
        factory = ProbeFactory()
        factory.on_destroy = lambda item: passes(2)

        async def pool_with_two_idle() -> Pool[Any]:
            pool = await self.make_pool(factory, max_size=2, acquire_timeout=5.0)
            async with pool.lease(), pool.lease():
                pass
            await settle()
            return pool

        for moment in every_moment():
            pool = await pool_with_two_idle()
            await moment.cancel(pool.aclose)
            with anyio.move_on_after(self.short_while):
                await until(lambda: not factory.alive)
            expect(not factory.alive, f"{moment}, {len(factory.alive)} items were never destroyed")

    @check
    async def test_destroyed_exactly_once(self) -> None:
        """Every item that was created is destroyed once, whichever way it left the pool.

        Contract: "End an item: called exactly once for each item that `create` returned."
        """
        factory = ProbeFactory()

        async def raises(item: Item) -> None:
            await passes(1)
            if item.number % 3 == 0:
                raise ValueError("reset")

        factory.on_reset = raises
        factory.on_create = lambda: passes(2)
        async with self.pool(factory, 3) as pool:
            async with anyio.create_task_group() as tasks:
                callers = [await self.start(tasks, Caller(pool)) for _ in range(5)]
                await pool.drain(0)
                await pool.resize(max_size=2)
                for caller in callers:
                    caller.leave.set()
            await pool.drain(1)
            go_on = anyio.Event()
            async with anyio.create_task_group() as tasks:
                cut_off = await self.start(tasks, Caller(pool))
                factory.on_create = go_on.wait
                unfinished = await self.start(tasks, Caller(pool))
                tasks.start_soon(pool.aclose, 0)
                await settle()
                go_on.set()
                await settle()
                cut_off.leave.set()
                unfinished.scope.cancel()
            await settle()
        wrong = [
            f"{item} was destroyed {item.destroyed} times"
            for item in factory.items
            if item.destroyed != 1
        ]
        expect(not wrong, ", ".join(wrong))

    @check
    async def test_failed_destroy(self) -> None:
        """An item whose `destroy` raises is gone all the same, and its place is free.

        Contract: "Anything; it is logged, and the item is gone all the same."
        """
        factory = ProbeFactory()

        async def raises(item: Item) -> None:
            raise ValueError("destroy")

        factory.on_destroy = raises
        async with self.pool(factory) as pool:
            async with pool.lease():
                pass
            await settle()
            await pool.drain(1)
            await is_whole(pool, 1, "after a destroy that failed, ")
            await pool.aclose()
