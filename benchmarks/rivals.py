"""What else could lend items, each with items that do nothing, so that only the pool is timed.

* psycopg_pool: a `connection_class` whose `connect()` returns a stand-in; no server.
* asyncpg: `connect=` returns a stand-in of its `Connection`; its reset query does nothing.
* SQLAlchemy: the pool class of its async engines, with a `creator` that returns a stand-in and
  the DBAPI dialect that pools have by default. Used as it is meant to be used without an engine,
  `connect()` and `close()`. (Its waiting runs in greenlets, so it takes no part in hand-offs.)
* asyncio-connection-pool: a strategy that returns an object.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from types import SimpleNamespace
from typing import Any

import anyio

from .measure import Loop


class Bare:
    """The yardstick: a bare deque behind a hand-written `async with` class."""

    __slots__ = ("_item", "_items")

    def __init__(self, items: deque[object]) -> None:
        self._items = items

    async def __aenter__(self) -> object:
        self._item = item = self._items.pop()
        return item

    async def __aexit__(self, exc_type: object, exc: object, traceback: object) -> None:
        self._items.append(self._item)


class BarePair:
    """Cheaper still: no `async with`, so that an exception loses the item."""

    def __init__(self, items: deque[object]) -> None:
        self._items = items

    async def take(self) -> object:
        return self._items.pop()

    def put(self, item: object) -> None:
        self._items.append(item)


def loops_without_waiting(size: int) -> dict[str, Loop]:
    """Return what works on every event loop, but fails or overtakes when nothing is idle."""
    items: deque[object] = deque(object() for _ in range(size))
    pair = BarePair(items)
    limiter = anyio.CapacityLimiter(size)

    async def bare(turns: int) -> None:
        for _ in range(turns):
            async with Bare(items):
                pass

    async def bare_pair(turns: int) -> None:
        for _ in range(turns):
            item = await pair.take()
            pair.put(item)

    async def limited(turns: int) -> None:
        for _ in range(turns):
            async with limiter:
                item = items.pop()
                items.append(item)

    return {"bare": bare, "pair": bare_pair, "CapacityLimiter + deque": limited}


class _PsycopgStandIn:
    def __init__(self) -> None:
        from psycopg.pq import TransactionStatus

        self.pgconn = SimpleNamespace(transaction_status=TransactionStatus.IDLE)
        self._pool: Any = None
        self._created_at = 0.0
        self._expire_at = 0.0
        self.closed = False

    @classmethod
    async def connect(cls, *_args: object, **_kwargs: object) -> _PsycopgStandIn:
        return cls()

    async def close(self) -> None:
        self.closed = True

    async def __aenter__(self) -> _PsycopgStandIn:
        return self

    async def __aexit__(self, *_exc: object) -> None:
        pass


@asynccontextmanager
async def psycopg_pool(size: int) -> AsyncIterator[Any]:
    from psycopg_pool import AsyncConnectionPool

    logging.getLogger("psycopg.pool").setLevel(logging.WARNING)
    pool: Any = AsyncConnectionPool(
        connection_class=_PsycopgStandIn,  # type: ignore[type-var]
        min_size=size,
        max_size=size,
        open=False,
    )
    await pool.open(wait=True)

    @asynccontextmanager
    async def connection() -> AsyncIterator[Any]:
        item = await pool.getconn()
        try:
            yield item
        finally:
            await pool.putconn(item)

    # Its own `connection()` does this and the connection's `async with`, a transaction.
    try:
        yield connection
    finally:
        await pool.close()


@asynccontextmanager
async def asyncpg_pool(size: int) -> AsyncIterator[Any]:
    import asyncpg

    class StandIn(asyncpg.Connection):  # type: ignore[misc]
        __slots__ = ()

        def __init__(self) -> None:
            self._protocol = SimpleNamespace(
                queries_count=0, _is_cancelling=bool, is_in_transaction=bool
            )
            self._proxy = None
            self._pool_release_ctr = 0
            self._aborted = False

        def is_closed(self) -> bool:
            return False

        def _on_release(self, stacklevel: int = 1) -> None:
            pass

        async def _reset(self) -> None:
            pass

        async def reset(self, *, timeout: float | None = None) -> None:
            pass

        async def close(self, *, timeout: float | None = None) -> None:
            pass

        def terminate(self) -> None:
            pass

        def _drop_local_statement_cache(self) -> None:
            pass

        def __del__(self) -> None:
            pass

    async def connect(*_args: object, **_kwargs: object) -> Any:
        return StandIn()

    pool = asyncpg.create_pool(
        connect=connect, connection_class=StandIn, min_size=size, max_size=size
    )
    await pool
    try:
        yield pool.acquire
    finally:
        pool.terminate()


@asynccontextmanager
async def asyncio_connection_pool(size: int) -> AsyncIterator[Any]:
    from asyncio_connection_pool import ConnectionPool, ConnectionStrategy

    class Strategy(ConnectionStrategy[object]):
        async def make_connection(self) -> object:
            return object()

        def connection_is_closed(self, conn: object) -> bool:
            return False

        async def close_connection(self, conn: object) -> None:
            pass

    yield ConnectionPool(strategy=Strategy(), max_size=size).get_connection


@asynccontextmanager
async def asyncio_queue(size: int) -> AsyncIterator[Any]:
    queue: asyncio.Queue[object] = asyncio.Queue()
    for _ in range(size):
        queue.put_nowait(object())

    class Lease:
        __slots__ = ("_item",)

        async def __aenter__(self) -> object:
            self._item = await queue.get()
            return self._item

        async def __aexit__(self, *_exc: object) -> None:
            queue.put_nowait(self._item)

    yield Lease


@asynccontextmanager
async def limiter_and_deque(size: int) -> AsyncIterator[Any]:
    items: deque[object] = deque(object() for _ in range(size))
    limiter = anyio.CapacityLimiter(size)

    class Lease:
        __slots__ = ("_item", "_token")

        async def __aenter__(self) -> object:
            self._token = object()
            await limiter.acquire_on_behalf_of(self._token)
            self._item = items.pop()
            return self._item

        async def __aexit__(self, *_exc: object) -> None:
            items.append(self._item)
            limiter.release_on_behalf_of(self._token)

    yield Lease


RIVALS = {
    "asyncio.Queue": asyncio_queue,
    "CapacityLimiter + deque": limiter_and_deque,
    "asyncio-connection-pool": asyncio_connection_pool,
    "psycopg_pool": psycopg_pool,
    "asyncpg": asyncpg_pool,
}


async def open_rivals(stack: AsyncExitStack, size: int) -> dict[str, Any]:
    """Return how each rival makes a lease; those that are not installed are left out."""
    rivals: dict[str, Any] = {}
    for name, rival in RIVALS.items():
        try:
            rivals[name] = await stack.enter_async_context(rival(size))
        except ImportError as error:
            print(f"not measured: {name} ({error})")
    return rivals


def sqlalchemy_loop(size: int) -> Loop | None:
    """Return a loop over SQLAlchemy's pool for async engines."""
    try:
        from sqlalchemy.pool import AsyncAdaptedQueuePool
    except ImportError as error:
        print(f"not measured: SQLAlchemy ({error})")
        return None

    def creator() -> Any:
        return SimpleNamespace(rollback=lambda: None, commit=lambda: None, close=lambda: None)

    pool: Any = AsyncAdaptedQueuePool(creator, pool_size=size, max_overflow=0)

    async def loop(turns: int) -> None:
        for _ in range(turns):
            connection = pool.connect()
            connection.close()

    return loop
