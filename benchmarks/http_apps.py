"""The apps that `benchmarks.http` serves: each as it is, in an empty wrapper, and wrapped."""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import FastAPI

import sandboxpool
from sandboxpool._app_options import WrapOptions

plain = FastAPI()


@plain.get("/hello")
async def hello() -> dict[str, str]:
    return {"hello": "world"}


@plain.get("/wait")
async def wait() -> dict[str, float]:
    await asyncio.sleep(5)
    return {"waited": 5}


class PassThrough:
    """What any wrapper costs: one more call."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> Any:
        return await self.app(scope, receive, send)


passed_through = PassThrough(plain)
wrapped = sandboxpool.wrap(plain, stats="/stats")
_options: dict[str, Any] = {"max_size": 2000}
if "gc_freeze" in WrapOptions.__annotations__:
    # All sandboxes before the first request, where the collector does not look at them.
    _options.update(min_size=2000, gc_freeze=True)
wrapped_2000 = sandboxpool.wrap(plain, stats="/stats", **_options)
