"""The checks of a factory: what it makes is new, as new after a reset, and gone in the end."""

from __future__ import annotations

import inspect
import unittest
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from contextvars import Context
from functools import partial
from typing import Any

import anyio

from sandboxpool._loop import running_loop
from sandboxpool._pool import Pool
from sandboxpool.abc import Factory

from ._cancelling import every_moment
from ._conformance import Conformance, check, expect, leave_out, passes

_ITEMS = 4


class FactoryConformance(Conformance):
    """The checks of `sandboxpool.abc.Factory`.

    Write `make_factory()`, and as much of the rest as there is to say about the items: checks
    that would need more are left out.
    """

    def make_factory(self) -> Factory[Any]:
        """Return a new factory."""
        raise NotImplementedError(f"{type(self).__name__}.make_factory() returns one of yours")

    async def use(self, item: Any, value: str) -> None:
        """Use an item as its callers do, so that *value* stays in it."""
        raise unittest.SkipTest("the kit does not say how an item is used")

    async def look(self, item: Any) -> object:
        """Return what is to be seen in an item: equal for any two that are as good as new."""
        raise unittest.SkipTest("the kit does not say what is to be seen in an item")

    def alive(self, factory: Any) -> int:
        """Return how many items exist: open sockets, files, whatever they hold."""
        raise unittest.SkipTest("the kit does not say how to count what exists")

    @asynccontextmanager
    async def factory(self) -> AsyncIterator[Any]:
        """Hold a factory ready."""
        yield self.make_factory()

    async def _reset(self, factory: Any, item: Any) -> None:
        pending = factory.reset(item)
        if inspect.isawaitable(pending):
            await pending

    async def _destroy(self, factory: Any, *items: Any) -> None:
        for item in items:
            pending = factory.destroy(item)
            if inspect.isawaitable(pending):
                await pending

    async def _in_a_task(self, hook: Callable[[], Awaitable[Any]]) -> Any:
        """Run a hook as a pool does: in a task of its own, without anybody's variables."""
        result: list[Any] = []
        failure: list[Exception] = []

        async def run() -> None:
            try:
                result.append(await hook())
            except Exception as error:
                failure.append(error)

        await running_loop().spawn(run, "a hook of a factory", Context()).wait()
        if failure:
            raise failure[0]
        return result[0]

    # --- create -------------------------------------------------------------------------------

    @check
    async def test_items_are_new(self) -> None:
        """Each create returns another item.

        Contract: "Return a new item."
        """
        async with self.factory() as factory:
            first, second = await factory.create(), await factory.create()
            await self._destroy(factory, *({id(item): item for item in (first, second)}.values()))
            expect(first is not second, f"two creates have returned {first!r}")

    @check
    async def test_creates_at_the_same_time(self) -> None:
        """Creates that run at the same time do not get into each other's way.

        Contract: "Return a new item."
        """
        items: list[Any] = []

        async def create() -> None:
            items.append(await factory.create())

        async with self.factory() as factory:
            async with anyio.create_task_group() as tasks:
                for _ in range(_ITEMS):
                    tasks.start_soon(create)
            different = {id(item): item for item in items}
            await self._destroy(factory, *different.values())
            expect(
                len(different) == _ITEMS,
                f"{_ITEMS} creates at the same time have returned {len(different)} items",
            )

    @check
    async def test_create_that_is_cancelled(self) -> None:
        """A create that is cancelled, at whichever await, does not hide that, and the next works.

        Contract: "The pool calls these in background tasks of its own, never in the task of a
        caller (but for a `reset` or `destroy` that is a plain function), each within its time
        limit."
        """
        async with self.factory() as factory:
            for moment in every_moment():
                await moment.cancel(factory.create)
                expect(moment.error is None, f"{moment}, it raised {moment.error!r} instead")
                if moment.value is not None:
                    await self._destroy(factory, moment.value)
                made: list[Any] = []
                with anyio.move_on_after(self.short_while):
                    made.append(await factory.create())
                expect(made, f"{moment}, and the next create hangs")
                await self._destroy(factory, *made)

    @check
    async def test_cancelled_create_leaves_nothing(self) -> None:
        """A create that is cancelled leaves nothing behind.

        Contract: "The pool calls these in background tasks of its own, never in the task of a
        caller (but for a `reset` or `destroy` that is a plain function), each within its time
        limit."
        """
        async with self.factory() as factory:
            before = self.alive(factory)
            for moment in every_moment():
                await moment.cancel(factory.create)
                if moment.value is not None:
                    await self._destroy(factory, moment.value)
                left = self.alive(factory) - before
                expect(not left, f"{moment}, {left} of what it had made is left")

    # --- reset --------------------------------------------------------------------------------

    @check
    async def test_reset(self) -> None:
        """After a reset nothing is to be seen of what the item was used for.

        Contract: "Make an item that was used as good as new."
        """
        async with self.factory() as factory:
            item = await factory.create()
            new = await self.look(item)
            await self._reset(factory, item)
            untouched = await self.look(item)
            await self._reset(factory, item)
            expect(untouched == new, f"the reset of an unused item made {untouched} of {new}")
            for value in ("first", "second"):
                await self.use(item, value)
                used = await self.look(item)
                expect(used != new, f"use() leaves nothing that look() sees: {used}")
                await self._reset(factory, item)
                found = await self.look(item)
                expect(found == new, f"a new item shows {new}, and this one {found}")
                await self._reset(factory, item)
            await self._destroy(factory, item)

    @check
    async def test_reset_of_one(self) -> None:
        """A reset concerns its item alone.

        Contract: "Make an item that was used as good as new."
        """
        async with self.factory() as factory:
            one, other = await factory.create(), await factory.create()
            await self.use(one, "one")
            await self.use(other, "other")
            before = await self.look(other)
            await self._reset(factory, one)
            after = await self.look(other)
            await self._destroy(factory, one, other)
            expect(before == after, f"with the reset of one, another changed: {before} to {after}")

    @check
    async def test_reset_that_is_cancelled(self) -> None:
        """A reset that is cancelled does not hide that, and its item can be destroyed.

        Contract: "An `async def` runs in a task of the pool; it may be cancelled after
        `reset_timeout`."
        """
        async with self.factory() as factory:
            for moment in every_moment():
                item = await factory.create()
                await moment.cancel(partial(self._reset, factory, item))
                expect(moment.error is None, f"{moment}, it raised {moment.error!r} instead")
                await self._destroy(factory, item)

    # --- destroy ------------------------------------------------------------------------------

    @check
    async def test_destroy_of_one(self) -> None:
        """When one item ends, the others still work.

        Contract: "End an item: called exactly once for each item that `create` returned."
        """
        async with self.factory() as factory:
            one, other = await factory.create(), await factory.create()
            before = await self.look(other)
            await self._destroy(factory, one)
            after = await self.look(other)
            await self._destroy(factory, other)
            expect(before == after, f"with the end of one, another changed: {before} to {after}")

    @check
    async def test_destroy_of_a_used_item(self) -> None:
        """An item is destroyed as it comes back, without a reset, when it is retired.

        Contract: "Have the item destroyed instead of reset when this lease ends."
        """
        async with self.factory() as factory:
            item = await factory.create()
            await self.use(item, "value")
            await self._destroy(factory, item)

    @check
    async def test_destroy_leaves_nothing(self) -> None:
        """When its items are destroyed, nothing of them is left.

        Contract: "End an item: called exactly once for each item that `create` returned."
        """
        async with self.factory() as factory:
            before = self.alive(factory)
            items = [await factory.create() for _ in range(_ITEMS)]
            made = self.alive(factory) - before
            await self._destroy(factory, *items)
            left = self.alive(factory) - before
            expect(made == _ITEMS, f"{_ITEMS} were created, and alive() counts {made}")
            expect(not left, f"{_ITEMS} were destroyed, and {left} of them is left")

    # --- as a pool uses it --------------------------------------------------------------------

    @check
    async def test_hooks_in_tasks_of_their_own(self) -> None:
        """An item can be created, reset and destroyed in different tasks, with no variables set.

        Contract: "The pool calls these in background tasks of its own, never in the task of a
        caller (but for a `reset` or `destroy` that is a plain function), each within its time
        limit."
        """
        async with self.factory() as factory:
            item = await self._in_a_task(factory.create)
            await self._in_a_task(lambda: self._reset(factory, item))
            await self._in_a_task(lambda: self._destroy(factory, item))

    @check
    async def test_check(self) -> None:
        """An item that works passes the check, new or used.

        Contract: "`False` or an exception retires the item as `unhealthy` and the caller, who
        keeps its place, gets another."
        """
        async with self.factory() as factory:
            if getattr(factory, "check", None) is None:
                leave_out("the factory has no check")
            item = await factory.create()
            for state in ("new", "used and reset"):
                pending = factory.check(item)
                expect(inspect.isawaitable(pending), f"it is to be async, and returns {pending!r}")
                works = await pending
                expect(works in (True, None), f"for an item that is {state} it says {works!r}")
                await self._reset(factory, item)
            await self._destroy(factory, item)

    @check
    async def test_in_a_pool(self) -> None:
        """Under a pool, with many callers, everybody gets an item that is as good as new.

        Contract: "Make, restore and end what a pool holds."
        """
        wrong: list[str] = []

        async def call(number: int) -> None:
            async with pool.lease() as item:
                seen = await self.look(item)
                if seen != new:
                    wrong.append(f"a new item shows {new}, and one that was leased {seen}")
                await self.use(item, f"caller {number}")
                await passes(number % 3)

        async with self.factory() as factory:
            item = await factory.create()
            new = await self.look(item)
            await self._destroy(factory, item)
            pool = Pool(factory, max_size=3, acquire_timeout=None)
            async with pool, anyio.create_task_group() as tasks:
                for number in range(12):
                    tasks.start_soon(call, number)
            expect(not wrong, wrong[0] if wrong else "")
