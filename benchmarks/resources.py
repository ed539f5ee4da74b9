"""A borrowed connection of PostgreSQL and `select 1`, side by side with what else would lend one.

Each contender runs one query after another in one task: that is what a request pays. The yardstick
is the driver alone, on one connection that nobody gives back. Wall time, for most of it is spent at
the server, which runs on the same machine.
"""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from time import perf_counter
from typing import Any

from sandboxpool import resources
from tests.hooks.servers import HOST, postgres

from .measure import Loop, Row, Timings, at_least, show, verdict

_ALLOWED = 1.1
_MORE = 5e-6  # seconds


async def interleave(loops: dict[str, Loop], rounds: int, turns: int, into: Timings) -> None:
    """Time each loop in turn, *rounds* times."""
    for _ in range(rounds):
        for name, loop in loops.items():
            gc.collect()
            gc.disable()
            try:
                begin = perf_counter()
                await loop(turns)
                into.add(name, (perf_counter() - begin) / turns)
            finally:
                gc.enable()


def repeated(one: Callable[[], Awaitable[object]]) -> Loop:
    async def loop(turns: int) -> None:
        for _ in range(turns):
            await one()

    return loop


async def contenders(stack: AsyncExitStack, url: str) -> dict[str, Loop]:
    """Return a loop for each contender."""
    import asyncpg
    import psycopg
    from psycopg_pool import AsyncConnectionPool
    from sqlalchemy import text
    from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

    logging.getLogger("psycopg.pool").setLevel(logging.WARNING)
    bare_asyncpg = await asyncpg.connect(url)
    stack.push_async_callback(bare_asyncpg.close)
    bare_psycopg = await psycopg.AsyncConnection.connect(url, autocommit=True)
    stack.push_async_callback(bare_psycopg.close)
    ours_asyncpg = await stack.enter_async_context(resources.asyncpg(url))
    ours_psycopg = await stack.enter_async_context(resources.psycopg(url))
    alchemy = url.replace("postgresql:", "postgresql+asyncpg:")
    ours_alchemy = await stack.enter_async_context(resources.sqlalchemy(alchemy))
    their_asyncpg = await stack.enter_async_context(asyncpg.create_pool(url, min_size=1))
    their_psycopg: Any = AsyncConnectionPool(
        url, min_size=1, max_size=10, open=False, kwargs={"autocommit": True}
    )
    await stack.enter_async_context(their_psycopg)
    engine = create_async_engine(alchemy)
    stack.push_async_callback(engine.dispose)
    query = text("select 1")

    async def asyncpg_alone() -> object:
        return await bare_asyncpg.fetchval("select 1")

    async def asyncpg_of_resource() -> object:
        async with ours_asyncpg.connection() as connection:
            return await connection.fetchval("select 1")

    async def asyncpg_of_pool() -> object:
        async with their_asyncpg.acquire() as connection:
            return await connection.fetchval("select 1")

    async def psycopg_alone() -> object:
        return await (await bare_psycopg.execute("select 1")).fetchone()

    async def psycopg_of_resource() -> object:
        async with ours_psycopg.connection() as connection:
            return await (await connection.execute("select 1")).fetchone()

    async def psycopg_of_pool() -> object:
        async with their_psycopg.connection() as connection:
            return await (await connection.execute("select 1")).fetchone()

    async def alchemy_of_resource() -> object:
        async with ours_alchemy.connection() as session:
            return (await session.execute(query)).scalar()

    async def alchemy_of_pool() -> object:
        async with AsyncSession(engine, expire_on_commit=False) as session:
            return (await session.execute(query)).scalar()

    async def alchemy_core_of_pool() -> object:
        async with engine.connect() as connection:
            return (await connection.exec_driver_sql("select 1")).scalar()

    return {
        "asyncpg alone": repeated(asyncpg_alone),
        "asyncpg, resource": repeated(asyncpg_of_resource),
        "asyncpg, its own pool": repeated(asyncpg_of_pool),
        "psycopg alone": repeated(psycopg_alone),
        "psycopg, resource": repeated(psycopg_of_resource),
        "psycopg, psycopg_pool": repeated(psycopg_of_pool),
        "SQLAlchemy session, resource": repeated(alchemy_of_resource),
        "SQLAlchemy session, its own pool": repeated(alchemy_of_pool),
        "SQLAlchemy connection, its own pool": repeated(alchemy_core_of_pool),
    }


def report(timings: Timings) -> list[Row]:
    rows = []
    for name in timings.rounds:
        driver = name.split(",")[0].split()[0]
        alone = f"{driver} alone"
        figure = f"{timings.best(name) * 1e6:.1f} us"
        if alone in timings.rounds and name != alone:
            ratio = timings.best(name) / timings.best(alone)
            figure += f" ({ratio:.2f} x)"
        rows.append(Row(name, figure))
    for driver in ("asyncpg", "psycopg"):
        # Of each round's own figures: the server's mood changes from one round to the next.
        pairs = zip(
            timings.rounds[f"{driver}, resource"], timings.rounds[f"{driver} alone"], strict=True
        )
        over = sorted(ours - (_ALLOWED * alone + _MORE) for ours, alone in pairs)
        middle = over[len(over) // 2]
        rows.append(
            verdict(
                f"{driver}, resource: over 1.1 x + 5 us",
                f"{middle * 1e6:+.1f} us",
                "<= 0 us",
                middle <= 0,
            )
        )
    for theirs, ours in (
        ("asyncpg, its own pool", "asyncpg, resource"),
        ("psycopg, psycopg_pool", "psycopg, resource"),
        ("SQLAlchemy connection, its own pool", "asyncpg, resource"),
        ("SQLAlchemy session, its own pool", "SQLAlchemy session, resource"),
    ):
        rows.append(at_least(f"{theirs} / {ours}", timings.ratio(theirs, ours), 1.0))
    return rows


async def measure(quick: bool, url: str) -> Timings:
    timings = Timings()
    async with AsyncExitStack() as stack:
        loops = await contenders(stack, url)
        await interleave(loops, 1, 300, Timings())
        # Many rounds: what the machine does besides hits all of them alike.
        await interleave(loops, 25 if quick else 60, 300, timings)
    return timings


def run(quick: bool) -> None:
    """Measure everything and print it."""
    with postgres() as port:
        url = f"postgresql://postgres@{HOST}:{port}/postgres"
        timings = asyncio.run(measure(quick, url))
    show("A borrowed connection of PostgreSQL and `select 1`", report(timings))
