"""The ASGI apps that `benchmarks.blocking` serves as they are."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio.to_thread
from fastapi import FastAPI

SLEEP = float(os.environ.get("BLOCKING_SLEEP", "5"))
AT_ONCE = int(os.environ.get("BLOCKING_AT_ONCE", "2000"))


async def hello() -> dict[str, str]:
    return {"hello": "world"}


async def awaits() -> dict[str, float]:
    await asyncio.sleep(SLEEP)
    return {"waited": SLEEP}


async def blocks() -> dict[str, float]:
    time.sleep(SLEEP)
    return {"waited": SLEEP}


def blocks_in_def() -> dict[str, float]:
    time.sleep(SLEEP)
    return {"waited": SLEEP}


@asynccontextmanager
async def _more_threads(app: FastAPI) -> AsyncIterator[None]:
    anyio.to_thread.current_default_thread_limiter().total_tokens = AT_ONCE
    yield


app = FastAPI()
limiter_raised = FastAPI(lifespan=_more_threads)
for each in (app, limiter_raised):
    each.get("/hello")(hello)
    each.get("/await")(awaits)
    each.get("/block")(blocks)
    # With a response model FastAPI needs a thread a second time, to check the answer: behind all
    # requests that wait for their first, so that none of 2000 is answered for four minutes.
    each.get("/def", response_model=None)(blocks_in_def)
