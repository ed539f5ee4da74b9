"""
A worker process that shares a cache over Redis: `python -m tests.cache.worker PORT BACKEND`.

It reads commands, one a line, and answers each with one line when it is done:
`get_or_set KEY SECONDS [fail]` with a resolver that says `begun` and takes so long, `incr KEY N`,
`interval KEY SECONDS` with a resolver that counts its runs under the key `runs`.
"""

from __future__ import annotations

import os
import sys

import anyio
import anyio.to_thread

from sandboxpool import Cache
from sandboxpool.cache import RedisStore


class WorkerError(Exception):
    """What a resolver raises when it is told to."""


async def main(port: str) -> None:
    store = RedisStore(f"redis://127.0.0.1:{port}/0", takeover_after=0.6)
    cache = Cache("workers", store=store)
    async with anyio.create_task_group() as tasks:
        print("ready", flush=True)
        while line := await anyio.to_thread.run_sync(sys.stdin.readline, abandon_on_cancel=True):
            tasks.start_soon(serve, cache, line.split())
    cache.close()


async def serve(cache: Cache, words: list[str]) -> None:
    command, key, *rest = words
    if command == "incr":
        for _ in range(int(rest[0])):
            await cache.incr(key)
        print("counted", flush=True)
        return

    if command == "interval":
        cache.interval(key, float(rest[0]), lambda: cache.incr("runs"))
        print(await cache.get(key), flush=True)
        return

    async def resolve() -> str:
        print("begun", flush=True)
        await anyio.sleep(float(rest[0]))
        if "fail" in rest:
            raise WorkerError("as told", os.getpid())
        return f"by {os.getpid()}"

    try:
        print(await cache.get_or_set(key, resolve, 60), flush=True)
    except WorkerError as error:
        print("failed", *error.args, flush=True)


if __name__ == "__main__":
    anyio.run(main, sys.argv[1], backend=sys.argv[2])
