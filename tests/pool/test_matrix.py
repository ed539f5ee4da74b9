"""Every hook in every mood: {ok, error, slow, never} for each of five, all 1024 combinations.

In virtual time, so that "never" costs nothing.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Awaitable, Callable
from itertools import product
from typing import Any

import anyio
import pytest

from sandboxpool import FactoryError, PoolTimeoutError
from sandboxpool._pool import Pool
from tests.pool.rig import Item, Maker, check, run_in_virtual_time, use

MOODS = ("ok", "error", "slow", "never")
LIMIT = 1.0


def mood(name: str) -> Callable[..., Awaitable[Any]]:
    """Return a hook of that mood."""

    async def hook(_: Item | None = None) -> Any:
        if name == "error":
            raise OSError("no")
        if name == "slow":
            await anyio.sleep(LIMIT / 2)
        elif name == "never":
            await anyio.sleep_forever()
        return True

    return hook


async def run(moods: tuple[str, str, str, str, str]) -> None:
    """Use a pool whose hooks have these moods, with three callers in two rounds."""
    create, inner_look, reset, on_acquire, destroy = (mood(name) for name in moods)
    looks = 0

    async def look(item: Item) -> Any:
        nonlocal looks
        looks += 1
        return await inner_look(item)

    maker = Maker(create=create, reset=reset, destroy=destroy, check=look)
    pool: Pool[Item] = Pool(
        maker,
        max_size=2,
        max_uses=3,
        check_after=0.0,
        on_acquire=on_acquire,
        acquire_timeout=4 * LIMIT,
        create_timeout=LIMIT,
        check_timeout=LIMIT,
        reset_timeout=LIMIT,
        destroy_timeout=LIMIT,
        create_backoff=0.01,
        max_create_backoff=0.1,
        clock=anyio.current_time,
    )
    await pool.open()
    outcomes: Counter[str] = Counter()

    async def caller() -> None:
        for _ in range(3):
            began = anyio.current_time()
            try:
                async with pool.lease() as item:
                    with use(item):
                        outcomes["served"] += 1
                        look_at(pool)
                        await anyio.sleep(0.1)
            except FactoryError:
                outcomes["told"] += 1
            except PoolTimeoutError:
                outcomes["timed out"] += 1
            assert anyio.current_time() - began <= 4 * LIMIT + 0.2
            look_at(pool)
            await anyio.sleep(1.2 * LIMIT)  # so that items become idle, and stale

    async with anyio.create_task_group() as tg:
        for _ in range(3):
            tg.start_soon(caller)
    assert sum(outcomes.values()) == 9
    usable = moods[0] in ("ok", "slow") and moods[3] in ("ok", "slow")
    if usable:
        assert outcomes["served"] > 0, outcomes
        assert outcomes["told"] == 0, outcomes
        assert looks > 0 or moods[2] in ("error", "never")
    else:
        assert outcomes["served"] == 0, outcomes
        assert outcomes["told"] > 0, outcomes  # reported, not only timed out
    await anyio.sleep(10 * LIMIT)  # whatever runs out does so
    look_at(pool)
    stats = pool.statistics()
    assert (stats.waiting, stats.in_use, stats.creating, stats.resetting, stats.closing) == (
        0, 0, 0, 0, 0,
    )  # fmt: skip
    began = anyio.current_time()
    await pool.aclose()
    assert anyio.current_time() - began <= LIMIT + 0.1
    assert pool.slots.size == 0
    assert maker.alive == 0
    look_at(pool)


def look_at(pool: Pool[Item]) -> None:
    check(pool.slots)
    assert 0 <= pool.slots.size <= pool.slots.max_size


@pytest.mark.parametrize("create", MOODS)
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_no_24_matrix(backend: str, create: str) -> None:
    """Never more than `max_size`, every caller has an outcome in time, the pool ends usable."""
    logging.getLogger("sandboxpool.pool").setLevel(logging.CRITICAL)
    try:
        for rest in product(MOODS, repeat=4):
            moods = (create, *rest)

            async def main(moods: Any = moods) -> None:
                try:
                    await run(moods)
                except BaseException as error:
                    raise AssertionError(f"with {moods}") from error

            run_in_virtual_time(backend, main)
    finally:
        logging.getLogger("sandboxpool.pool").setLevel(logging.NOTSET)
