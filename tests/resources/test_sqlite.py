"""SQLite: what a request leaves on a connection, and when it is cut off in the middle."""

from __future__ import annotations

import sqlite3
from pathlib import Path
from typing import Any

import anyio
import pytest

from sandboxpool import FunctionFactory, LeaseEndedError, OptionError, Pool, resources

from .databases import on_asyncio
from .requests import ask, serving

LEFT: dict[str, tuple[str, str, Any]] = {
    "pragma": ("pragma case_sensitive_like = on", "select 'A' like 'a'", 1),
    "temporary table": (
        "create temporary table left_behind (x)",
        "select count(*) from temp.sqlite_master",
        0,
    ),
    "attached file": (
        "attach ':memory:' as left_behind",
        "select count(*) from pragma_database_list where name = 'left_behind'",
        0,
    ),
    "open transaction": ("insert into items values ('ada')", "select count(*) from items", 0),
}


@pytest.fixture
def file(tmp_path: Path) -> str:
    """Return a database with a table."""
    path = str(tmp_path / "shop.db")
    connection = sqlite3.connect(path)
    connection.execute("create table items (name)")
    connection.close()
    return path


async def first_value(connection: Any, statement: str) -> Any:
    cursor = await connection.execute(statement)
    row = await cursor.fetchone()
    return row[0] if row else None


@on_asyncio
@pytest.mark.parametrize("left", LEFT)
async def test_a_plain_pool_leaks(file: str, left: str) -> None:
    """The control: over a pool without a reset the next user finds what the last one left."""
    import aiosqlite

    statement, look, fresh = LEFT[left]

    async def connect() -> Any:
        return await aiosqlite.connect(file)

    factory = FunctionFactory(connect, destroy=lambda connection: connection.close())
    async with Pool(factory, max_size=1) as pool:
        async with pool.lease() as connection:
            await connection.execute(statement)
        async with pool.lease() as connection:
            assert await first_value(connection, look) != fresh


@on_asyncio
@pytest.mark.parametrize("left", LEFT)
async def test_nothing_stays(file: str, left: str) -> None:
    """Whatever a request leaves on its connection, the next one finds none of it."""
    statement, look, fresh = LEFT[left]
    db = resources.sqlite(file, max_size=1)

    async def handle(path: str) -> Any:
        connection = await db.current()
        return await first_value(connection, look if path == "/look" else statement)

    async with serving(handle) as app:
        await ask(app)
        assert await ask(app, "/look") == str(fresh)


@on_asyncio
@pytest.mark.parametrize("level", [None, "", "IMMEDIATE"])
async def test_an_open_transaction_is_rolled_back(file: str, level: str | None) -> None:
    """Whichever isolation level a connection has, what was not committed is gone."""
    db = resources.sqlite(file, max_size=1, arguments={"isolation_level": level})
    async with db:
        async with db.connection() as connection:
            if level is None:
                await connection.execute("begin")
            await connection.execute("insert into items values ('ada')")
        async with db.connection() as connection:
            assert await first_value(connection, "select count(*) from items") == 0
        assert db.statistics().opened == 1


@on_asyncio
async def test_what_is_set_on_a_connection(file: str) -> None:
    """Row factories and functions that a request sets do not stay."""
    db = resources.sqlite(file, max_size=1)
    async with db:
        async with db.connection() as connection:
            connection.row_factory = sqlite3.Row
            connection.isolation_level = "IMMEDIATE"
        async with db.connection() as connection:
            assert connection.row_factory is None
            assert connection.isolation_level != "IMMEDIATE"
            await connection.create_function("f", 0, lambda: "ada's")
            assert await first_value(connection, "select f()") == "ada's"
        assert db.statistics().opened == 1
        async with db.connection() as connection:
            with pytest.raises(sqlite3.OperationalError, match="no such function"):
                await connection.execute("select f()")
        assert db.statistics().retired == {"dirty": 1}


@on_asyncio
async def test_a_plain_use_keeps_the_connection(file: str) -> None:
    """After statements about data the connection is free at once."""
    db = resources.sqlite(file, max_size=1)
    async with db:
        for _ in range(3):
            async with db.connection() as connection:
                await connection.execute("insert into items values ('x')")
                await connection.commit()
            assert db.statistics().idle == 1
        assert db.statistics().opened == 1


@on_asyncio
async def test_a_query_that_was_cut_off(file: str) -> None:
    """A query that was cut off is stopped, and its connection closed."""
    endless = "with recursive n(i) as (select 1 union all select i + 1 from n) select max(i) from n"
    db = resources.sqlite(file, max_size=1)
    async with db:
        with anyio.move_on_after(0.05):
            async with db.connection() as connection:
                await connection.execute(endless)
        async with db.connection() as connection:
            assert await first_value(connection, "select 'bob'") == "bob"
        assert db.statistics().retired == {"cancelled": 1}


@on_asyncio
async def test_nothing_works_after_the_end(file: str) -> None:
    """Connections and cursors refuse to work when the connection was given back."""
    db = resources.sqlite(file, max_size=1)
    async with db:
        async with db.connection() as connection:
            cursor = await connection.execute("select 1")
        with pytest.raises(LeaseEndedError, match="of 'sqlite' was given back"):
            await connection.execute("select 1")
        with pytest.raises(LeaseEndedError):
            await cursor.fetchone()


@on_asyncio
async def test_setup_and_arguments(file: str) -> None:
    """`setup` runs on each new connection, `arguments` are those of `sqlite3.connect()`."""

    async def setup(connection: Any) -> None:
        await connection.execute("pragma foreign_keys = on")

    db = resources.sqlite(f"file:{file}?mode=ro", arguments={"uri": True}, setup=setup)
    async with db, db.connection() as connection:
        assert await first_value(connection, "pragma foreign_keys") == 1
        with pytest.raises(sqlite3.OperationalError, match="readonly"):
            await connection.execute("insert into items values ('x')")


@pytest.mark.parametrize("name", [":memory:", "", "file:x?mode=memory"])
def test_private_memory_is_refused(name: str) -> None:
    """A database in memory that connections would not share is refused."""
    with pytest.raises(OptionError, match="a database of its own"):
        resources.sqlite(name, arguments={"uri": True})
