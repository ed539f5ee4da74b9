"""The checks of a pool's bounds, and of its end."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

import anyio

from sandboxpool._exceptions import PoolClosedError
from sandboxpool.abc import Pool

from ._cancelling import every_moment
from ._conformance import check, expect, passes, settle, until
from ._pool_leases import PoolLeases
from ._pool_probe import Caller, Item, ProbeFactory, is_closed, is_whole

_SOON = 0.02  # seconds


class PoolEnds(PoolLeases):
    """The part of `PoolConformance` that is about its size and its end."""

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
