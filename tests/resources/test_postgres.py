"""Sessions of PostgreSQL: what a request leaves in one, and when it is cut off in the middle."""

from __future__ import annotations

import asyncio
from typing import Any

import anyio
import asyncpg  # type: ignore[import-untyped] # it has no types of its own
import psycopg.rows
import psycopg.types.numeric
import pytest

from sandboxpool import FunctionFactory, LeaseEndedError, OptionError, Pool, resources

from .databases import Database, each_driver, on_asyncio
from .requests import ask, serving

pytestmark = [pytest.mark.server, on_asyncio]

# What somebody does, how one sees it afterwards, and what a new session says.
LEFT: dict[str, tuple[str, str, Any]] = {
    "search path": ("set search_path to elsewhere", "show search_path", '"$user", public'),
    "by a function": (
        "select set_config('search_path', 'elsewhere', false)",
        "show search_path",
        '"$user", public',
    ),
    "by a block": (
        "do $$ begin perform set_config('app.user', 'ada', false); end $$",
        "select coalesce(current_setting('app.user', true), '')",
        "",
    ),
    "role": ("set role pg_monitor", "select current_user::text", "postgres"),
    "session authorization": (
        "set session authorization pg_monitor",
        "select session_user::text",
        "postgres",
    ),
    "temporary table": (
        "create temporary table left_behind (x int)",
        "select count(*) from pg_class where relname = 'left_behind'",
        0,
    ),
    "advisory lock": (
        "select pg_advisory_lock(7)",
        "select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()",
        0,
    ),
    "prepared statement": (
        "prepare left_behind as select 1",
        "select count(*) from pg_prepared_statements where from_sql",
        0,
    ),
    "subscription": ("listen news", "select count(*) from pg_listening_channels()", 0),
    "cursor": (
        "declare left_behind cursor with hold for select 1",
        "select count(*) from pg_cursors where is_holdable",
        0,
    ),
    "isolation": (
        "set session characteristics as transaction read only",
        "show default_transaction_read_only",
        "off",
    ),
}


@pytest.mark.parametrize("left", LEFT)
async def test_a_plain_pool_leaks_sessions(postgres: str, left: str) -> None:
    """The control: over a pool without a reset the next user finds what the last one left."""
    statement, look, fresh = LEFT[left]

    async def connect() -> Any:
        return await asyncpg.connect(postgres)

    factory = FunctionFactory(connect, destroy=lambda connection: connection.close())
    async with Pool(factory, max_size=1) as pool:
        async with pool.lease() as connection:
            await connection.execute(statement)
        async with pool.lease() as connection:
            assert await connection.fetchval(look) != fresh


@each_driver
@pytest.mark.parametrize("left", LEFT)
async def test_nothing_stays_in_a_session(postgres: str, driver: str, left: str) -> None:
    """Whatever a request does to its session, the next one that has the connection finds none."""
    statement, look, fresh = LEFT[left]
    database = Database(driver, postgres, max_size=1)

    async def handle(path: str) -> Any:
        connection = await database.resource.current()
        if path == "/look":
            return await database.run(connection, look)
        await database.run(connection, statement)
        await database.commit(connection)

    async with serving(handle) as app:
        await ask(app)
        assert await ask(app, "/look") == str(fresh)


@each_driver
async def test_open_transactions_are_rolled_back(postgres: str, driver: str) -> None:
    """A transaction that a request leaves open is rolled back, not committed or handed on."""
    database = Database(driver, postgres, max_size=1)
    table = f"rolled_back_{driver.replace('-', '_')}"

    async def handle(path: str) -> None:
        connection = await database.resource.current()
        if not driver.startswith("sqlalchemy"):
            await database.run(connection, "begin")
        await database.run(connection, f"insert into {table} values (1)")

    async with serving(handle) as app:
        async with database.resource.connection() as connection:
            await database.run(connection, f"create table {table} (x int)")
            await database.commit(connection)
        await ask(app)
        assert await database.ask(f"select count(*) from {table}") == 0
        assert database.resource.statistics().opened == 1, "the connection goes on"


@each_driver
async def test_a_plain_use_costs_no_round_trip(postgres: str, driver: str) -> None:
    """After statements that leave nothing the connection is free at once, without a reset."""
    database = Database(driver, postgres, max_size=1)
    async with database.resource:
        for statement in ("select 1", "select count(*) from pg_class where relname in ('a', 'b')"):
            async with database.resource.connection() as connection:
                await database.run(connection, statement)
                await database.commit(connection)
            assert database.resource.statistics().idle == 1
        async with database.resource.connection() as connection:
            await database.run(connection, "set search_path to elsewhere")
            await database.commit(connection)
        assert database.resource.statistics().idle == 0, "now there is something to reset"


@each_driver
async def test_setup_comes_back_after_a_reset(postgres: str, driver: str) -> None:
    """What `setup` has done to a session is done again after the session was reset."""
    calls = 0

    async def setup(connection: Any) -> None:
        nonlocal calls
        calls += 1
        if driver.startswith("sqlalchemy"):
            await connection.exec_driver_sql("set search_path to ours")
        else:
            await connection.execute("set search_path to ours")

    database = Database(driver, postgres, max_size=1, setup=setup)
    async with database.resource:
        async with database.resource.connection() as connection:
            await database.run(connection, "set search_path to elsewhere")
            await database.commit(connection)
        assert await database.ask("show search_path") == "ours"
    assert calls == 2


@each_driver
async def test_a_query_that_was_cut_off(postgres: str, driver: str) -> None:
    """A connection on which a query was cut off is not handed on: the next one gets its own."""
    database = Database(driver, postgres, max_size=1)
    resource = database.resource
    async with resource:
        own = await database.ask("select pg_backend_pid()")

        async def one() -> None:
            async with resource.connection() as connection:
                await database.run(connection, "select 'ada' from pg_sleep(30)")

        task = asyncio.create_task(one())
        await _until_running(postgres, own)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await database.ask("select 'bob'") == "bob"
        if driver != "psycopg":
            assert resource.statistics().retired == {"cancelled": 1}
        else:
            # psycopg stops the query and reads what the server says to that: it is clean then.
            assert resource.statistics().retired == {}
            assert await database.ask("select pg_backend_pid()") == own


@each_driver
async def test_a_cut_off_that_the_request_catches(postgres: str, driver: str) -> None:
    """Also if the request catches the cancellation and goes on, the next one is safe from it."""
    database = Database(driver, postgres, max_size=1)

    async def handle(path: str) -> Any:
        connection = await database.resource.current()
        if path == "/next":
            return await database.run(connection, "select 'bob'")
        with anyio.move_on_after(0.05):
            await database.run(connection, "select 'ada' from pg_sleep(30)")

    async with serving(handle) as app:
        await ask(app)
        assert await ask(app, "/next") == "bob"
        assert sum(database.resource.statistics().retired.values()) == 1


@each_driver
async def test_a_query_of_a_stray_task(postgres: str, driver: str) -> None:
    """What still runs on a connection when the request ends is cut off with the connection."""
    database = Database(driver, postgres, max_size=1)
    strays: list[asyncio.Task[Any]] = []

    async def handle(path: str) -> Any:
        connection = await database.resource.current()
        pid = await database.run(connection, "select pg_backend_pid()")
        if path == "/stray":
            run = database.run(connection, "select 'ada' from pg_sleep(30)")
            strays.append(asyncio.create_task(run))
            await _until_running(postgres, pid)
        return pid

    async with serving(handle) as app:
        first = await ask(app, "/stray")
        assert await ask(app) != first
        stray = strays[0]
        stray.cancel()
        await asyncio.wait([stray])
        assert stray.cancelled() or stray.exception() is not None


@each_driver
async def test_nothing_works_after_the_end(postgres: str, driver: str) -> None:
    """A task that outlives its request gets an error instead of the next one's connection."""
    database = Database(driver, postgres, max_size=1)
    go = asyncio.Event()
    strays: list[asyncio.Task[Any]] = []

    async def handle(path: str) -> Any:
        connection = await database.resource.current()
        if path == "/stray":
            strays.append(asyncio.create_task(late(connection)))
        else:
            go.set()
            await asyncio.wait(strays)
            return await database.run(connection, "select 'bob'")

    async def late(connection: Any) -> Any:
        await go.wait()
        return await database.run(connection, "select 'ada'")

    async with serving(handle) as app:
        await ask(app, "/stray")
        assert await ask(app) == "bob"
        assert isinstance(strays[0].exception(), LeaseEndedError)
        assert "was given back" in str(strays[0].exception())


async def test_parts_of_asyncpg_after_the_end(postgres: str) -> None:
    """Statements, cursors and transactions refuse to work when their connection was given back."""
    database = Database("asyncpg", postgres, max_size=1)
    async with database.resource:
        async with database.resource.connection() as connection:
            statement = await connection.prepare("select 1")
            transaction = connection.transaction()
            assert await statement.fetchval() == 1
        async with database.resource.connection():
            with pytest.raises(asyncpg.InterfaceError, match="has been released back"):
                await statement.fetchval()
            with pytest.raises((asyncpg.InterfaceError, LeaseEndedError)):
                await transaction.start()


async def test_a_prepared_statement_that_was_cut_off(postgres: str) -> None:
    """What runs by a statement of asyncpg is not seen, but its connection is not handed on."""
    database = Database("asyncpg", postgres, max_size=1)
    async with database.resource:
        with anyio.move_on_after(0.05):
            async with database.resource.connection() as connection:
                statement = await connection.prepare("select 'ada' from pg_sleep(30)")
                await statement.fetchval()
        assert await database.ask("select 'bob'") == "bob"


async def test_what_is_set_on_a_connection_of_asyncpg(postgres: str) -> None:
    """Codecs and listeners that a request adds to the connection do not stay."""
    database = Database("asyncpg", postgres, max_size=1)
    resource = database.resource
    async with resource:
        async with resource.connection() as connection:
            await connection.set_type_codec(
                "int4", encoder=str, decoder=lambda value: f"ada's {value}", schema="pg_catalog"
            )
            assert await connection.fetchval("select 1") == "ada's 1"
        assert await database.ask("select 1") == 1
        async with resource.connection() as connection:
            connection.add_log_listener(print)
        assert await database.ask("select 1") == 1
        assert resource.statistics().retired == {"dirty": 2}


async def test_what_is_set_on_a_connection_of_psycopg(postgres: str) -> None:
    """Row factories, modes, handlers and adapters that a request sets do not stay."""
    database = Database("psycopg", postgres, max_size=1)
    resource = database.resource

    async def look() -> Any:
        async with resource.connection() as connection:
            row = await (await connection.execute("select 1.5::numeric")).fetchone()
            assert connection.autocommit
            assert connection.isolation_level is None
            assert connection._notice_handlers == []
            return row

    async with resource:
        first = await look()
        async with resource.connection() as connection:
            connection.row_factory = psycopg.rows.dict_row
            await connection.set_autocommit(False)
            await connection.set_isolation_level(psycopg.IsolationLevel.SERIALIZABLE)
            connection.add_notice_handler(print)
        assert await look() == first
        assert resource.statistics().opened == 1
        async with resource.connection() as connection:
            connection.adapters.register_loader("numeric", psycopg.types.numeric.FloatLoader)
            row = await (await connection.execute("select 1.5::numeric")).fetchone()
            assert isinstance(row[0], float)
        assert not isinstance((await look())[0], float)
        assert resource.statistics().opened == 2


@pytest.mark.parametrize("way", ["cursor", "server cursor", "copy", "pipeline", "stream"])
async def test_all_ways_of_psycopg_are_seen(postgres: str, way: str) -> None:
    """Whichever way a statement takes to the server, its effect is known."""
    database = Database("psycopg", postgres, max_size=1)
    resource = database.resource
    call = "select set_config('app.user', 'ada', false)"
    async with resource:
        async with resource.connection() as connection:
            if way == "cursor":
                await connection.cursor().execute(call)
            elif way == "server cursor":
                async with connection.transaction(), connection.cursor(name="c") as cursor:
                    await cursor.execute(call)
            elif way == "copy":
                async with connection.cursor().copy(f"copy ({call}) to stdout") as copy:
                    async for _ in copy:
                        pass
            elif way == "pipeline":
                async with connection.pipeline():
                    await connection.execute(call)
            else:
                async for _ in connection.cursor().stream(call):
                    pass
        assert await database.ask("select coalesce(current_setting('app.user', true), '')") == ""


@pytest.mark.parametrize("way", ["fetch", "execute", "executemany", "prepare", "cursor", "copy"])
async def test_all_ways_of_asyncpg_are_seen(postgres: str, way: str) -> None:
    """Whichever way a statement takes to the server, its effect is known."""
    database = Database("asyncpg", postgres, max_size=1)
    resource = database.resource
    call = "select set_config('app.user', 'ada', false)"
    async with resource:
        async with resource.connection() as connection:
            if way == "fetch":
                await connection.fetch(call)
            elif way == "execute":
                await connection.execute(call)
            elif way == "executemany":
                await connection.executemany("select set_config('app.user', $1, false)", [("ada",)])
            elif way == "prepare":
                await (await connection.prepare(call)).fetch()
            elif way == "cursor":
                async with connection.transaction():
                    async for _ in connection.cursor(call):
                        pass
            else:
                await connection.copy_from_query(call, output=_ignore)
        assert await database.ask("select coalesce(current_setting('app.user', true), '')") == ""


async def _ignore(data: bytes) -> None:
    pass


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_a_connection_with_something_to_read(postgres: str, driver: str) -> None:
    """A request keeps its connection also when a notification waits to be read on it."""
    database = Database(driver, postgres, max_size=2)

    async def handle(path: str) -> bool:
        connection = await database.resource.current()
        await database.run(connection, "listen waiting")
        await database.ask("select pg_notify('waiting', 'now')")
        await anyio.sleep(0.05)
        return await database.resource.current() is connection

    async with serving(handle) as app:
        assert await ask(app) == "True"


# --- the budget ---------------------------------------------------------------------------------


@each_driver
async def test_budget(postgres: str, driver: str, caplog: pytest.LogCaptureFixture) -> None:
    """The server says how many connections it takes, and too many for it are warned of."""
    database = Database(driver, postgres, max_size=20)
    async with database.resource:
        (fits,) = await resources.budget(database.resource, workers=2)
        assert (fits.limit, fits.reserved, fits.needed, fits.fits) == (300, 3, 40, True)
        assert caplog.records == []
        (too_many,) = await resources.budget(database.resource, workers=16, reserve=7)
        assert not too_many.fits
        assert str(too_many) == (
            f"{driver}: 16 workers x 20 connections = 320 of 290 (max_connections=300, "
            "10 reserved), which is too many"
        )
        assert "lower max_size to 18, start fewer workers" in caplog.messages[-1]


async def test_budget_at_the_start(
    postgres: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """An app whose workers may need too many connections says so when it starts."""
    database = Database("asyncpg", postgres, max_size=20)
    monkeypatch.setenv("WEB_CONCURRENCY", "30")

    async def handle(path: str) -> None: ...

    async with serving(handle, resources=(database.resource,)):
        assert "30 workers x 20 connections = 600 of 297" in caplog.text


async def test_budget_of_the_environment(postgres: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a number of workers it is that of the environment, and only servers with a limit."""
    database = Database("asyncpg", postgres, max_size=20)
    monkeypatch.setenv("WEB_CONCURRENCY", "3")
    async with database.resource:
        found = await resources.budget(database.resource, resources.Resource(object))
        assert [record.workers for record in found] == [3]
        monkeypatch.setenv("WEB_CONCURRENCY", "many")
        with pytest.raises(OptionError, match="WEB_CONCURRENCY='many'"):
            await resources.budget(database.resource)


async def _until_running(postgres: str, pid: int) -> None:
    """Wait until a query runs in a session."""
    watcher = await asyncpg.connect(postgres)
    try:
        states: list[Any] = []

        async def look() -> None:
            states.append(
                await watcher.fetchval(
                    "select wait_event = 'PgSleep' from pg_stat_activity where pid = $1", pid
                )
            )

        while not (states and states[-1]):
            await look()
            await anyio.sleep(0.005)
    finally:
        await watcher.close()
