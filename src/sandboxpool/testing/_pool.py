"""The checks of a pool: what it does with its factory, and its figures."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import anyio

from sandboxpool._exceptions import FactoryError, NestedAcquireError

from ._conformance import check, expect, passes, settle
from ._pool_ends import PoolEnds
from ._pool_probe import (
    Caller,
    CheckingFactory,
    Item,
    ProbeFactory,
    in_caller,
    is_whole,
    sums_up,
    use,
)

_SOON = 0.02  # seconds


class PoolConformance(PoolEnds):
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
