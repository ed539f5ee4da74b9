"""Servers that die, lines that are cut, and very many requests."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import anyio
import asyncpg  # type: ignore[import-untyped] # it has no types of its own
import pytest

from sandboxpool import FactoryError, resources, wrap
from sandboxpool.resources import Resource

from .databases import Database, each_driver, on_asyncio
from .requests import ask, lifespan, serving, until
from .servers import line_to, restartable

pytestmark = [pytest.mark.server, on_asyncio]


# --- very many requests -------------------------------------------------------------------------


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg", "sqlalchemy-asyncpg"])
async def test_2000_requests_over_20_connections(postgres: str, driver: str) -> None:
    """2000 requests at once are all served, in order of arrival, over 20 connections at most."""
    name = f"many-{driver}"
    url = f"{postgres}?application_name={name}"
    if driver == "sqlalchemy-asyncpg":
        url = postgres
    database = Database(driver, url, max_size=20)
    if driver == "sqlalchemy-asyncpg":
        database.resource = resources.sqlalchemy(
            postgres.replace("postgresql:", "postgresql+asyncpg:"),
            engine_options={"connect_args": {"server_settings": {"application_name": name}}},
            max_size=20,
        )
    order: list[int] = []

    async def handle(path: str) -> Any:
        connection = await database.resource.current()
        order.append(int(path[1:]))
        return await database.run(connection, f"select {path[1:]}")

    answers: dict[int, str] = {}
    seen: list[int] = []

    async def send(number: int) -> None:
        answers[number] = await ask(app, f"/{number}")

    async def watch() -> None:
        watcher = await asyncpg.connect(postgres)
        try:
            while len(answers) < 2000:
                seen.append(
                    await watcher.fetchval(
                        "select count(*) from pg_stat_activity where application_name = $1", name
                    )
                )
                await anyio.sleep(0.01)
        finally:
            await watcher.close()

    async with serving(handle, max_size=2000) as app, anyio.create_task_group() as tasks:
        tasks.start_soon(watch)
        for number in range(2000):
            tasks.start_soon(send, number)
    assert answers == {number: str(number) for number in range(2000)}
    assert order == list(range(2000))
    assert max(seen) == 20
    figures = database.resource.statistics()
    assert (figures.uses, figures.opened) == (2000, 20)


# --- a server that dies -------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_a_server_is_killed_and_started_again(driver: str) -> None:
    """Under load, requests fail while the server is away, and none once it is back."""
    with restartable() as server:
        database = Database(driver, server.url, max_size=5, acquire_timeout=1.0)
        outcomes: Counter[str] = Counter()
        over = anyio.Event()
        errors: list[BaseException] = []

        async def handle(path: str) -> Any:
            connection = await database.resource.current()
            return await database.run(connection, "select 1")

        async def user() -> None:
            while not over.is_set():
                try:
                    outcomes[await ask(app)] += 1
                except Exception as error:
                    errors.append(error)
                    await anyio.sleep(0.01)

        async with serving(handle) as app, anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(user)
            await until(lambda: outcomes["1"] > 200)
            assert errors == []
            await anyio.to_thread.run_sync(server.kill)
            await until(lambda: len(errors) > 40)
            served = outcomes["1"]
            await anyio.to_thread.run_sync(server.start)
            await until(lambda: outcomes["1"] > served + 200)
            # Who got a dead connection or the refusal of a connect has had it by now.
            await until(lambda: database.resource.statistics().opening == 0)
            failed = len(errors)
            served = outcomes["1"]
            await until(lambda: outcomes["1"] > served + 200)
            assert len(errors) == failed
            over.set()
        assert set(outcomes) == {"1"}, "no request got anything but its answer or an error"


@each_driver
async def test_sessions_that_the_server_ends(postgres: str, driver: str) -> None:
    """`pg_terminate_backend` reaches the request whose query runs, and no later one."""
    database = Database(driver, postgres, max_size=3)
    resource = database.resource
    outcomes: list[str] = []
    pids: list[int] = []

    async def handle(path: str) -> str:
        connection = await resource.current()
        pids.append(await database.run(connection, "select pg_backend_pid()"))
        try:
            await database.run(connection, "select 1 from pg_sleep(30)")
        except Exception:
            outcomes.append("ended")
            return "error"
        return "late"

    async def look(path: str) -> Any:
        return await database.run(await resource.current(), "select 1")

    admin = await asyncpg.connect(postgres)
    try:
        async with serving(handle) as app, serving(look) as other:
            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(ask, app)
                await until(lambda: len(pids) == 3)
                for pid in pids:
                    await admin.fetchval("select pg_terminate_backend($1)", pid)
            assert outcomes == ["ended"] * 3
            for _ in range(6):
                assert await ask(other) == "1"

            # Idle ones as well: they are found closed, and replaced.
            killed = await admin.fetchval(
                "select count(pg_terminate_backend(pid)) from pg_stat_activity "
                "where pid <> pg_backend_pid() and backend_type = 'client backend'"
            )
            assert killed >= 1
            await until(lambda: not _alive(resource))
            for _ in range(6):
                assert await ask(other) == "1"
    finally:
        await admin.close()


def _alive(resource: Any) -> bool:
    """Tell whether an idle connection is taken to work."""
    here = resource._shared.heres[0]
    return any(here.driver.alive(slot.item) for slot in here.pool.slots.idle)


# --- a line that is cut -------------------------------------------------------------------------


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg", "sqlalchemy-asyncpg"])
async def test_a_line_that_is_cut(postgres: str, driver: str) -> None:
    """When the line is cut, who uses it gets an error, and the next ones a new connection."""
    port = int(postgres.rpartition(":")[2].partition("/")[0])
    async with line_to(port) as line:
        database = Database(driver, postgres.replace(str(port), str(line.port)), max_size=2)
        async with database.resource:

            async def one() -> str:
                try:
                    await database.ask("select 1 from pg_sleep(30)")
                except Exception:
                    return "cut"
                return "late"

            task = asyncio.create_task(one())
            await until(lambda: database.resource.statistics().used)
            await anyio.sleep(0.05)
            line.cut()
            assert await task == "cut"
            for _ in range(4):
                assert await database.ask("select 7") == 7


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg", "sqlalchemy-asyncpg"])
async def test_a_line_that_stalls(postgres: str, driver: str) -> None:
    """A query on a line that passes nothing on is cut off by its request, and leaves no trace."""
    port = int(postgres.rpartition(":")[2].partition("/")[0])
    async with line_to(port) as line:
        database = Database(driver, postgres.replace(str(port), str(line.port)), max_size=1)
        async with database.resource:
            await database.ask("select 1")
            line.stall()
            with anyio.move_on_after(0.1):
                await database.ask("select 'ada'")
            line.cut()
            line.go_on()
            assert await database.ask("select 'bob'") == "bob"


async def test_a_connect_that_stalls(postgres: str) -> None:
    """A connect that hangs ends at its timeout, and the next one works."""
    port = int(postgres.rpartition(":")[2].partition("/")[0])
    async with line_to(port) as line:
        database = Database(
            "asyncpg", postgres.replace(str(port), str(line.port)), max_size=1, connect_timeout=0.2
        )
        line.stall()
        with pytest.raises(FactoryError):
            await database.resource.open()
        line.cut()
        line.go_on()
        assert await database.ask("select 7") == 7
        await database.resource.aclose()


# --- threads ------------------------------------------------------------------------------------


async def test_threads_have_a_limit_in_common(postgres: str) -> None:
    """With a thread and a loop for each sandbox, all together stay below `max_size`."""
    db = resources.asyncpg(
        f"{postgres}?application_name=threads", max_size=3, name="threads", acquire_timeout=20.0
    )
    await _in_threads(db)
    watcher = await asyncpg.connect(postgres)
    try:
        with anyio.fail_after(10):
            while await watcher.fetchval(  # noqa: ASYNC110 - the server does not tell
                "select count(*) from pg_stat_activity where application_name = 'threads'"
            ):
                await anyio.sleep(0.01)
    finally:
        await watcher.close()


async def _in_threads(db: Resource[Any]) -> None:
    peak: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await lifespan(receive, send)
            return
        connection = await db.current()
        found = await connection.fetchval(
            "select count(*) from pg_stat_activity where application_name = 'threads'"
        )
        peak.append(found)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": str(found).encode()})

    async with (
        wrap(app, run_in="thread", min_size=0, max_size=8) as wrapped,
        anyio.create_task_group() as tasks,
    ):
        for _ in range(60):
            tasks.start_soon(ask, wrapped)
    assert len(peak) == 60
    assert max(peak) <= 3
    assert db.statistics().retired.get("moved", 0) > 0
    assert db.statistics().loops == 0, "closed with the threads"
