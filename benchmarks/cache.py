"""The cache, beside what users would pick instead: in memory, and over a real Redis."""

from __future__ import annotations

import asyncio
import copy
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import sandboxpool
from sandboxpool.cache import RedisStore

from .measure import Loop, Row, Timings, interleave, show

PLAIN = "text of a page"
RECORD = {"id": 7, "name": "Keyboard", "tags": ["a", "b"], "price": {"EUR": 49, "USD": 53}}
MISSES = 1000


def repeated(call: Callable[[], Awaitable[object]]) -> Loop:
    async def loop(turns: int) -> None:
        for _ in range(turns):
            await call()

    return loop


def locked_ttl_cache(value: Any) -> Callable[[], Awaitable[object]]:
    """cachetools, which is neither safe for threads nor copies: with the lock and the copy."""
    import cachetools

    cache: Any = cachetools.TTLCache(10_000, 60)
    lock = threading.Lock()
    cache["key"] = value

    async def get() -> object:
        with lock:
            found = cache.get("key")
        return copy.deepcopy(found)

    return get


def bare_ttl_cache(value: Any) -> Callable[[], Awaitable[object]]:
    """The same as its documentation has it: everybody gets the same object."""
    import cachetools

    cache: Any = cachetools.TTLCache(10_000, 60)
    cache["key"] = value

    async def get() -> object:
        found: object = cache.get("key")
        return found

    return get


async def in_memory(rounds: int, turns: int) -> None:
    import aiocache

    rows: list[Row] = []
    for title, value in (("a text", PLAIN), ("a record", RECORD)):
        contenders: dict[str, Callable[[], Awaitable[object]]] = {}
        made = []
        for values in ("copy", "frozen"):
            cache = sandboxpool.Cache(f"bench-{values}", values=values, ttl=600)  # type: ignore[arg-type]
            made.append(cache)
            await cache.set("key", value)
            contenders[values] = lambda cache=cache: cache.get_or_set("key", RECORD.copy)
        memory: Any = aiocache.Cache(aiocache.Cache.MEMORY)
        await memory.set("key", value, ttl=600)
        contenders["aiocache"] = lambda memory=memory: memory.get("key")
        contenders["cachetools, locked and copied"] = locked_ttl_cache(value)
        contenders["cachetools, bare"] = bare_ttl_cache(value)
        timings = Timings()
        loops = {name: repeated(call) for name, call in contenders.items()}
        await interleave(loops, rounds, dict.fromkeys(loops, turns), timings)
        print(f"a hit of {title} takes {timings.best('copy') * 1e6:.2f} us")
        for values in ("copy", "frozen"):
            for other in list(contenders)[2:]:
                rows.append(plain(f"{title}: {values} / {other}", timings.ratio(values, other)))
        for cache in made:
            cache.close()
    show("A hit in memory", rows)


def plain(what: str, ratio: tuple[float, float]) -> Row:
    return Row(what, f"{ratio[0]:.2f} x", f"{ratio[1]:.2f} x")


async def stampede(rounds: int) -> None:
    """A thousand who miss one key at once: how many resolvers run, and how long it takes."""
    import aiocache

    rows = []
    runs = 0

    async def resolve() -> Any:
        nonlocal runs
        runs += 1
        await asyncio.sleep(0.02)
        return RECORD

    ours = sandboxpool.Cache("bench-stampede", ttl=600)
    memory: Any = aiocache.Cache(aiocache.Cache.MEMORY)

    async def with_aiocache() -> Any:
        value = await memory.get("key")
        if value is None:
            value = await resolve()
            await memory.set("key", value)
        return value

    contenders: dict[str, tuple[Callable[[], Awaitable[Any]], Callable[[], Awaitable[Any]]]] = {
        "ours": (lambda: ours.get_or_set("key", resolve), lambda: ours.delete("key")),
        "aiocache": (with_aiocache, lambda: memory.delete("key")),
    }
    for name, (ask, forget) in contenders.items():
        runs, best = 0, float("inf")
        for _ in range(rounds):
            await forget()
            runs = 0
            began = time.perf_counter()
            await asyncio.gather(*[ask() for _ in range(MISSES)])
            best = min(best, time.perf_counter() - began)
        rows.append(Row(f"{name}: resolvers run for {MISSES:,} misses", f"{runs:,}"))
        rows.append(Row(f"{name}: time, with 20 ms for a resolver", f"{best * 1000:.0f} ms"))
    ours.close()
    show("Many who miss one key at once", rows)


@contextmanager
def redis_server() -> Iterator[int | None]:
    program = shutil.which("redis-server")
    if program is None:
        yield None
        return
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
    process = subprocess.Popen(
        [program, "--bind", "127.0.0.1", "--port", str(port), "--save", ""],
        stdout=subprocess.DEVNULL,
    )
    try:
        for _ in range(200):
            with socket.socket() as sock:
                if sock.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.02)
        yield port
    finally:
        os.kill(process.pid, signal.SIGTERM)
        process.wait()


async def over_redis(port: int, rounds: int, turns: int) -> None:
    import pickle

    import redis.asyncio

    url = f"redis://127.0.0.1:{port}/0"
    ours = sandboxpool.Cache("bench-redis", store=RedisStore(url), ttl=600)
    await ours.set("key", RECORD)
    client = redis.asyncio.Redis.from_url(url)
    await client.set("bare", pickle.dumps(RECORD))

    async def bare() -> object:
        found: object = pickle.loads(await client.get("bare"))
        return found

    def at_once(call: Callable[[], Awaitable[object]], number: int) -> Loop:
        async def loop(turns: int) -> None:
            for _ in range(max(1, turns // number)):
                await asyncio.gather(*[call() for _ in range(number)])

        return loop

    rows = []
    for number in (1, 100):
        loops = {
            "ours": at_once(lambda: ours.get("key"), number),
            "bare": at_once(bare, number),
        }
        timings = Timings()
        clocked = time.perf_counter
        await interleave(loops, rounds, dict.fromkeys(loops, turns), timings, clock=clocked)
        print(f"a read over Redis, {number} at once: {timings.best('ours') * 1e6:.0f} us each")
        what = f"{number} at once: ours / redis.asyncio's get and pickle"
        rows.append(plain(what, timings.ratio("ours", "bare")))
    ours.close()
    await client.aclose()
    show("A read over Redis", rows)


async def measure(quick: bool) -> None:
    rounds, turns = (5, 2000) if quick else (15, 10_000)
    await in_memory(rounds, turns)
    await stampede(3 if quick else 10)
    with redis_server() as port:
        if port is None:
            print("over Redis: redis-server is not installed")
        else:
            await over_redis(port, rounds, turns // 10)


def run(quick: bool) -> None:
    """Print all tables."""
    asyncio.run(measure(quick))
