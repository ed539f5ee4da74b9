"""`interval()`: a value that is kept fresh, so that readers hardly ever wait for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import pytest

from sandboxpool import Cache, CacheError, NoLeaseError, OptionError, current_lease, wrap
from tests.wrap.client import get

from .conftest import Clock

Make = Callable[..., Cache]
PATIENCE = 20


class Resolver:
    """Returns how often it has run, or fails when it is told to."""

    def __init__(self) -> None:
        self.runs = 0
        self.fails = False
        self.leases: list[bool] = []

    async def __call__(self) -> int:
        self.runs += 1
        try:
            current_lease()
            self.leases.append(True)
        except NoLeaseError:
            self.leases.append(False)
        if self.fails:
            raise LookupError("the database is away")
        return self.runs


async def until(condition: Callable[[], Any]) -> None:
    with anyio.fail_after(PATIENCE):
        while not condition():
            await anyio.sleep(0.001)


async def test_readers_do_not_wait(make: Make, clock: Clock) -> None:
    """The first reader waits; later ones get the value at once, also while a new one is made."""
    cache, resolver = make(), Resolver()
    cache.interval("rates", 10, resolver)
    assert resolver.runs == 0
    assert await cache.get("rates") == 1
    assert [await cache.get("rates") for _ in range(5)] == [1] * 5
    clock.now += 11
    assert await cache.get("rates") == 1
    await until(lambda: resolver.runs == 2)
    with anyio.fail_after(PATIENCE):
        while await cache.get("rates") == 1:
            await anyio.sleep(0.001)
    assert await cache.get("rates") == 2
    # The first value was for its reader; those that came by themselves are nobody's.
    assert resolver.leases == [False, False]
    cache.close()


async def test_it_is_refreshed_without_readers(make: Make) -> None:
    """The value is refreshed every so many seconds, whether somebody reads it or not."""
    cache, resolver = make(clock=None), Resolver()
    cache.interval("rates", 0.05, resolver)
    assert await cache.get("rates") == 1
    await until(lambda: resolver.runs >= 4)
    assert await cache.get("rates") >= 3
    cache.close()
    runs = resolver.runs
    await anyio.sleep(0.12)
    assert resolver.runs <= runs + 1


async def test_failure_leaves_the_old_value(
    make: Make, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """While the resolver fails readers get the old value, up to the bound, then the failure."""
    cache, resolver = make(retry_after=0), Resolver()
    cache.interval("rates", 10, resolver, stale_for=20)
    assert await cache.get("rates") == 1
    resolver.fails = True
    clock.now += 15
    assert await cache.get("rates") == 1
    await until(lambda: resolver.runs >= 2)
    assert await cache.get("rates") == 1
    await until(lambda: "the database is away" in caplog.text)
    clock.now += 16
    with pytest.raises(LookupError):
        await cache.get("rates")
    resolver.fails = False
    assert await cache.get("rates") >= 3
    cache.close()


async def test_many_readers_resolve_once(make: Make) -> None:
    """A thousand readers of a value that is not there yet run its resolver once."""
    cache, resolver = make(), Resolver()
    cache.interval("rates", 10, resolver)
    got: list[int] = []

    async def read() -> None:
        got.append(await cache.get("rates"))

    async with anyio.create_task_group() as tasks:
        for _ in range(300):
            tasks.start_soon(read)
    assert got == [1] * 300
    cache.close()


def test_several_loops_and_threads(make: Make) -> None:
    """Each loop and thread reads the one value; when its loop has ended another one goes on."""
    cache, resolver = make(clock=None), Resolver()
    cache.interval("rates", 0.05, resolver)

    async def read() -> int:
        return int(await cache.get("rates"))

    assert anyio.run(read) == 1

    async def read_until_fresh() -> None:
        assert await cache.get("rates") >= 1
        await until(lambda: resolver.runs >= 4)

    anyio.run(read_until_fresh, backend="trio")
    with ThreadPoolExecutor(4) as pool:
        assert all(value >= 1 for value in pool.map(lambda _: anyio.run(read), range(4)))
    cache.close()


def test_without_a_loop(make: Make) -> None:
    """A thread resolves the value itself, if a plain function does that; otherwise it is told."""
    cache = make()
    cache.interval("plain", 10, lambda: 7)
    assert cache.blocking.get("plain") == 7
    cache.interval("async", 10, Resolver().__call__)
    with pytest.raises(CacheError, match=r"'async' has no value yet.*needs an event loop"):
        cache.blocking.get("async")
    assert anyio.run(cache.get, "async") == 1
    assert cache.blocking.get("async") == 1
    cache.close()


async def test_declared_again(make: Make) -> None:
    """A key that is declared again, as by each private module, has the new terms and one task."""
    cache, first, second = make(), Resolver(), Resolver()
    cache.interval("rates", 10, first)
    assert await cache.get("rates") == 1
    cache.interval("rates", 10, second)
    assert await cache.get("rates") == 1
    with anyio.fail_after(PATIENCE):
        while not second.runs:
            await cache.delete("rates")
            await cache.get("rates")
    assert [interval._runs_begun for interval in cache._shared.intervals.values()] == [1]
    cache.close()


@pytest.mark.parametrize("run_in", ["loop", "thread", "cooperative"])
async def test_in_sandboxes(run_in: Any) -> None:
    """In sandboxes of any kind all requests read one value, and one task keeps it fresh."""
    cache, resolver = Cache(f"interval-{run_in}"), Resolver()
    cache.interval("rates", 0.03, resolver)

    async def app(scope: Any, receive: Any, send: Any) -> Any:
        return await cache.get("rates") if scope["type"] == "http" else None

    async with wrap(app, run_in=run_in, max_size=3) as wrapped:
        got = [(await get(wrapped)).result for _ in range(5)]
        await until(lambda: resolver.runs >= 3)
        later = (await get(wrapped)).result
    cache.close()
    assert got[0] == 1
    assert later >= 2
    assert not any(resolver.leases[1:])
    assert threading.active_count() < 50


def test_wrong_options(make: Make) -> None:
    """What cannot be meant is refused."""
    cache = make()
    with pytest.raises(OptionError, match="seconds=0: give a number of seconds, more than 0"):
        cache.interval("rates", 0, lambda: 1)
    with pytest.raises(OptionError, match="stale_for=-1: give a number of seconds"):
        cache.interval("rates", 1, lambda: 1, stale_for=-1)
    with pytest.raises(TypeError, match="give the function itself"):
        cache.interval("rates", 1, 7)  # type: ignore[arg-type]
