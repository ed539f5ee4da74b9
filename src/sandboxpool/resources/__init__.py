"""What requests use one at a time: pooled connections, shared by all sandboxes of a worker.

    db = resources.asyncpg("postgresql://...", max_size=20)

    async with db.connection() as connection:
        await connection.execute("select 1")

Each driver is an extra of its own, and loaded when a resource of it is declared.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Mapping
from typing import TYPE_CHECKING, Any

from typing_extensions import Unpack

from ._budget import Budget, budget
from ._figures import Histogram, Metric, ResourceStatistics
from ._resource import PoolOptions, Resource

if TYPE_CHECKING:
    from aiosqlite import Connection as _SqliteConnection
    from asyncpg import (  # type: ignore[import-untyped] # it has no types of its own
        Connection as _AsyncpgConnection,
    )
    from psycopg import AsyncConnection as _PsycopgConnection
    from redis.asyncio import Redis as _Redis
    from sqlalchemy.engine import URL as _URL
    from sqlalchemy.ext.asyncio import AsyncConnection as _SqlalchemyConnection
    from sqlalchemy.ext.asyncio import AsyncSession as _AsyncSession

    from ._http import HttpResource as HttpResource

__all__ = (
    "Budget",
    "Histogram",
    "Metric",
    "PoolOptions",
    "Resource",
    "ResourceStatistics",
    "asyncpg",
    "budget",
    "http",
    "psycopg",
    "redis",
    "sqlalchemy",
    "sqlite",
)


def asyncpg(
    dsn: str | None = None,
    *,
    setup: Callable[[_AsyncpgConnection], Awaitable[object]] | None = None,
    arguments: Mapping[str, Any] | None = None,
    **options: Unpack[PoolOptions],
) -> Resource[_AsyncpgConnection]:
    """Declare a PostgreSQL server, used by way of asyncpg.

    Args:
        dsn: Like `"postgresql://user:password@host:port/database"`.
        setup: Called with each new connection, and again after each reset of its session, for
            example to set a search path or codecs.
        arguments: For `asyncpg.connect()`.
        options: See `PoolOptions`.

    Raises:
        ImportError: asyncpg is missing.
        OptionError: An option cannot work.
    """
    try:
        from ._asyncpg import AsyncpgDriver
    except ImportError as error:
        raise _missing("asyncpg", error) from error
    return Resource.of(AsyncpgDriver(dsn, dict(arguments or {}), setup), options, sys._getframe(1))


def psycopg(
    conninfo: str = "",
    *,
    setup: Callable[[_PsycopgConnection[Any]], Awaitable[object]] | None = None,
    arguments: Mapping[str, Any] | None = None,
    **options: Unpack[PoolOptions],
) -> Resource[_PsycopgConnection[Any]]:
    """Declare a PostgreSQL server, used by way of psycopg 3.

    Connections are in autocommit mode, unless *arguments* say `"autocommit": False`: a statement is
    a transaction of its own, and `async with connection.transaction():` makes one of several. In
    the other mode the first statement begins one, and what nobody commits is rolled back.

    Args:
        conninfo: Like `"postgresql://user:password@host:port/database"`.
        setup: Called with each new connection, and again after each reset of its session.
        arguments: For `psycopg.AsyncConnection.connect()`.
        options: See `PoolOptions`.

    Raises:
        ImportError: psycopg is missing.
        OptionError: An option cannot work.
    """
    try:
        from ._psycopg import PsycopgDriver
    except ImportError as error:
        raise _missing("psycopg", error) from error
    return Resource.of(
        PsycopgDriver(conninfo, dict(arguments or {}), setup), options, sys._getframe(1)
    )


def sqlalchemy(
    url: str | _URL,
    *,
    setup: Callable[[_SqlalchemyConnection], Awaitable[object]] | None = None,
    engine_options: Mapping[str, Any] | None = None,
    session_options: Mapping[str, Any] | None = None,
    **options: Unpack[PoolOptions],
) -> Resource[_AsyncSession]:
    """Declare a database, used by way of SQLAlchemy's async sessions.

    What is borrowed is an `AsyncSession` of one's own over a pooled connection of one engine. What
    nobody commits is rolled back.

    Args:
        url: Like `"postgresql+asyncpg://user:password@host/database"`.
        setup: Called with each new connection, and again after each reset of its session.
        engine_options: For `create_async_engine()`, but for those about its pool.
        session_options: For `AsyncSession`; `expire_on_commit` is false unless they say otherwise.
        options: See `PoolOptions`.

    Raises:
        ImportError: SQLAlchemy, or what it needs for async use, is missing.
        OptionError: An option cannot work.
    """
    try:
        from ._sqlalchemy import SqlalchemyDriver
    except ImportError as error:
        raise _missing("sqlalchemy", error) from error
    driver = SqlalchemyDriver(url, dict(engine_options or {}), dict(session_options or {}), setup)
    return Resource.of(driver, options, sys._getframe(1))


def redis(
    url: str = "redis://localhost:6379/0",
    *,
    arguments: Mapping[str, Any] | None = None,
    **options: Unpack[PoolOptions],
) -> Resource[_Redis]:
    """Declare a Redis server.

    What is borrowed is a `redis.asyncio.Redis` over one connection.

    Args:
        url: Like `"redis://user:password@host:port/0"`.
        arguments: For `redis.asyncio.ConnectionPool.from_url()`, like
            `{"decode_responses": True}`.
        options: See `PoolOptions`.

    Raises:
        ImportError: redis-py is missing.
        OptionError: An option cannot work.
    """
    try:
        from ._redis import RedisDriver
    except ImportError as error:
        raise _missing("redis", error) from error
    return Resource.of(RedisDriver(url, dict(arguments or {})), options, sys._getframe(1))


def sqlite(
    database: str,
    *,
    setup: Callable[[_SqliteConnection], Awaitable[object]] | None = None,
    arguments: Mapping[str, Any] | None = None,
    **options: Unpack[PoolOptions],
) -> Resource[_SqliteConnection]:
    """Declare a SQLite database.

    Args:
        database: The file.
        setup: Called with each new connection, for example to set pragmas.
        arguments: For `sqlite3.connect()`, like `{"uri": True}`.
        options: See `PoolOptions`.

    Raises:
        ImportError: aiosqlite is missing.
        OptionError: An option cannot work, or the database is one in memory that connections
            do not share.
    """
    try:
        from ._sqlite import SqliteDriver
    except ImportError as error:
        raise _missing("sqlite", error) from error
    driver = SqliteDriver(str(database), dict(arguments or {}), setup)
    return Resource.of(driver, options, sys._getframe(1))


def http(
    base_url: str = "",
    *,
    client_options: Mapping[str, Any] | None = None,
    transport_options: Mapping[str, Any] | None = None,
    **options: Unpack[PoolOptions],
) -> HttpResource:
    """Declare HTTP: hot connections in common, a client of its own for each request.

    Args:
        base_url: What relative URLs are relative to.
        client_options: For `httpx.AsyncClient`, like `{"timeout": 5.0}`: what each client begins
            with. Proxies of the environment are not used.
        transport_options: For `httpx.AsyncHTTPTransport`, like `{"http2": True}`.
        options: See `PoolOptions`; here `max_size` is how many requests may be under way at once,
            100 by default.

    Raises:
        ImportError: httpx (or httpx2) is missing.
        OptionError: An option cannot work.
    """
    try:
        from ._http import HttpResource as HttpResource
    except ImportError as error:
        raise _missing("http", error) from error
    return HttpResource(
        {"base_url": base_url, **(client_options or {})},
        dict(transport_options or {}),
        options,
        sys._getframe(1),
    )


def _missing(extra: str, error: ImportError) -> ImportError:
    return ImportError(
        f"resources.{extra}() needs {error.name}, which is not installed: "
        f"pip install 'sandboxpool[{extra}]'.",
        name=error.name,
    )
