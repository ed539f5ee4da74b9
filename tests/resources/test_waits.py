"""Waits that can never end are found, and those that can are left alone."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest

from sandboxpool import DeadlockError, PoolTimeoutError
from sandboxpool.resources import Resource

from .databases import on_asyncio
from .requests import ask, serving, until


def pool(name: str, size: int = 1, **options: Any) -> Resource[object]:
    """Return a resource that is used up quickly."""
    return Resource(object, name=name, max_size=size, acquire_timeout=20.0, **options)


# --- real ones ----------------------------------------------------------------------------------


async def test_a_nested_acquire() -> None:
    """Who has all the connections and wants one more is told at once, and how that came."""
    db = pool("db")
    async with db, db.connection():
        with pytest.raises(DeadlockError, match="waiting for 'db' would never end") as caught:
            async with db.connection():
                pass
    assert len(caught.value.chain) == 1
    assert caught.value.chain[0].count("'db'") == 1
    assert db.statistics().deadlocks == 1


async def test_two_pools_in_opposite_order() -> None:
    """The request that closes the cycle gets the error and lets go, so that the other goes on."""
    one, two = pool("one"), pool("two")
    ready = anyio.Event()

    async def handle(path: str) -> str:
        first, second = (one, two) if path == "/a" else (two, one)
        await first.current()
        if path == "/a":
            ready.set()
        else:
            await ready.wait()
        await until(lambda: one.statistics().used and two.statistics().used)
        try:
            await second.current()
        except DeadlockError as error:
            first.release()
            return f"refused: {'; '.join(error.chain)}"
        return "served"

    answers: dict[str, str] = {}

    async def send(path: str) -> None:
        answers[path] = await ask(app, path)

    async with serving(handle) as app, anyio.create_task_group() as tasks:
        tasks.start_soon(send, "/a")
        tasks.start_soon(send, "/b")
    assert sorted(answer[:6] for answer in answers.values()) == ["refuse", "served"]
    told = next(answer for answer in answers.values() if answer != "served")
    for part in ("(/a)", "(/b)", "waits for 'one', which", "waits for 'two', which"):
        assert part in told


async def test_a_parent_waits_for_its_child() -> None:
    """A child that wants what its parent has, while the parent waits for it, is told."""
    db = pool("db")

    async def handle(path: str) -> str:
        await db.current()
        caught: list[DeadlockError] = []

        async def child() -> None:
            try:
                async with db.connection():
                    pass
            except DeadlockError as error:
                caught.append(error)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(child)
        return " / ".join(caught[0].chain)

    async with serving(handle) as app:
        told = await ask(app)
    assert "waits for 'db', which request" in told
    assert "waits for a task that it has started" in told


async def test_found_later() -> None:
    """A cycle that closes without a new wait, when the parent begins to wait, is found as well."""
    db = pool("db")
    done: list[str] = []
    async with db, db.connection():

        async def child() -> None:
            try:
                async with db.connection():
                    pass
            except DeadlockError:
                done.append("found")

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(child)
            await until(lambda: db.statistics().pending_requests)
    assert done == ["found"]


async def test_all_holders_are_stuck() -> None:
    """With several connections it is a deadlock only once all who have one want another."""
    db = pool("db", 3)
    errors: list[DeadlockError] = []
    async with db, anyio.create_task_group() as tasks:
        everybody = anyio.Event()

        async def greedy() -> None:
            async with db.connection():
                if db.statistics().used == 3:
                    everybody.set()
                await everybody.wait()
                try:
                    async with db.connection():
                        pass
                except DeadlockError as error:
                    errors.append(error)

        for _ in range(3):
            tasks.start_soon(greedy)
    assert len(errors) == 1, "one lets go, and the others go on"
    assert "(as 3 do, all of them stuck)" in str(errors[0])


@on_asyncio
@pytest.mark.parametrize("how", ["await", "gather", "group"])
async def test_ways_to_wait_for_a_child(how: str) -> None:
    """However asyncio lets a task wait for others, it is seen."""
    if how == "group" and sys.version_info < (3, 11):
        pytest.skip("asyncio has task groups since Python 3.11")
    db = pool("db")

    async def child() -> None:
        with pytest.raises(DeadlockError):
            async with db.connection():
                pass

    async with db, db.connection():
        if how == "await":
            await asyncio.create_task(child())
        elif how == "gather":
            await asyncio.gather(child())
        else:
            async with asyncio.TaskGroup() as group:
                group.create_task(child())


# --- none ---------------------------------------------------------------------------------------


async def calm(db: Resource[object], run: Callable[[], Awaitable[object]]) -> None:
    """Run something in which nothing must be taken for a deadlock."""
    async with db:
        await run()
        assert db.statistics().deadlocks == 0


async def test_children_take_turns() -> None:
    """Two children of one request that want the same connection one after the other are none."""
    db = pool("db")

    async def run() -> None:
        async def child() -> None:
            async with db.connection():
                await anyio.sleep(0.3)  # long enough for the later looks

        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(child)

    await calm(db, run)


async def test_a_holder_that_waits_for_something_else() -> None:
    """A holder that waits for anything but a pool may go on any time."""
    db = pool("db")

    async def run() -> None:
        go = anyio.Event()

        async def holder() -> None:
            async with db.connection():
                await go.wait()

        async def waiter() -> None:
            async with db.connection():
                pass

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(holder)
            await until(lambda: db.statistics().used)
            tasks.start_soon(waiter)
            await until(lambda: db.statistics().pending_requests)
            await anyio.sleep(0.6)
            go.set()

    await calm(db, run)


async def test_one_of_the_holders_goes_on() -> None:
    """As long as one holder is not stuck, the wait may end."""
    db = pool("db", 2)

    async def run() -> None:
        go = anyio.Event()

        async def holder() -> None:
            async with db.connection():
                await go.wait()

        async def greedy() -> None:
            async with db.connection(), db.connection():
                pass

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(holder)
            await until(lambda: db.statistics().used)
            tasks.start_soon(greedy)
            await until(lambda: db.statistics().pending_requests)
            await anyio.sleep(0.6)
            go.set()

    await calm(db, run)


async def test_a_sibling_may_end_the_group() -> None:
    """A child that runs may end the group by an exception, and so the wait of the other child."""
    db = pool("db")

    async def run() -> None:
        async def stuck() -> None:
            async with db.connection():
                pass

        async def fails() -> None:
            await anyio.sleep(0.6)
            raise ValueError

        try:
            async with db.connection(), anyio.create_task_group() as tasks:
                tasks.start_soon(stuck)
                tasks.start_soon(fails)
        except Exception as group:
            (error,) = group.exceptions  # type: ignore[attr-defined] # a group of exceptions
            assert isinstance(error, ValueError)

    await calm(db, run)


async def test_a_wait_with_a_timeout_of_its_own() -> None:
    """A wait with a timeout of its own is an attempt, and ends by its timeout."""
    db = pool("db")

    async def run() -> None:
        async with db.connection():
            with pytest.raises(PoolTimeoutError):
                async with db.connection(timeout=0.4):
                    pass

    await calm(db, run)


async def test_a_wait_inside_of_a_deadline() -> None:
    """A wait inside of a scope with a deadline is an attempt, too."""
    db = pool("db")

    async def run() -> None:
        async with db.connection():
            with anyio.move_on_after(0.4) as scope:
                async with db.connection():
                    pass
            assert scope.cancelled_caught

    await calm(db, run)


async def test_two_pools_in_the_same_order() -> None:
    """Many requests that acquire in one order get everything."""
    one, two = pool("one", 2), pool("two", 2)
    served = 0

    async def handle(path: str) -> str:
        nonlocal served
        async with one.connection():
            await anyio.lowlevel.checkpoint()
            async with two.connection():
                await anyio.lowlevel.checkpoint()
        served += 1
        return "ok"

    async with serving(handle) as app, anyio.create_task_group() as tasks:
        for _ in range(50):
            tasks.start_soon(ask, app)
    assert served == 50
    assert one.statistics().deadlocks == two.statistics().deadlocks == 0


# --- held, and something else done --------------------------------------------------------------


@pytest.mark.server
@on_asyncio
@pytest.mark.parametrize("how", ["idle", "with an open transaction"])
async def test_an_idle_holder_is_named(
    postgres: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A request that does something else while it has a connection is named, with its place."""
    from sandboxpool import resources

    db = resources.asyncpg(postgres, idle_warning=0.1)

    async def elsewhere() -> None:
        await until(lambda: db.statistics().held_idle)

    async def handle(path: str) -> None:
        connection = await db.current()
        await connection.execute("begin" if how != "idle" else "select 1")
        await elsewhere()

    async with serving(handle) as app:
        await ask(app, "/shop")
    (record,) = [r for r in caplog.records if r.name == "sandboxpool.resources"]
    told = record.getMessage()
    assert "(/shop) holds a connection of 'postgresql' " + how in told
    assert "in elsewhere" in told
    assert db.statistics().held_idle == 1


@pytest.mark.server
@on_asyncio
async def test_a_busy_holder_is_not_named(postgres: str, caplog: pytest.LogCaptureFixture) -> None:
    """A query that takes long is work, and so are many short ones."""
    from sandboxpool import resources

    db = resources.asyncpg(postgres, idle_warning=0.2)

    async def handle(path: str) -> None:
        connection = await db.current()
        await connection.execute("select pg_sleep(0.6)")

    async with serving(handle) as app:
        await ask(app)
    assert db.statistics().held_idle == 0
    assert caplog.records == []
