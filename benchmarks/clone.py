"""What a clone costs: time, memory, the reset, and the garbage collector.

Run: `python -m benchmarks.clone`
"""

from __future__ import annotations

import gc
import time
import timeit
import tracemalloc
from collections.abc import Callable
from typing import Any

import anyio
from fastapi import APIRouter, FastAPI
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from sandboxpool.isolation.clone import CloneFactory


class Middleware:
    """Pure ASGI middleware with a little state."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.count = 0
        self.seen: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app(scope, receive, send)


def endpoint() -> str:
    return "hello"


async def answer(request: Request) -> PlainTextResponse:
    return PlainTextResponse("hello")


def hello() -> FastAPI:
    app = FastAPI()
    app.get("/")(endpoint)
    return app


def forty_routes() -> FastAPI:
    """Return an app with nested routers, two mounted apps and 40 routes."""
    app = FastAPI()
    for number in range(20):
        app.get(f"/direct/{number}")(endpoint)
    inner, middle = APIRouter(), APIRouter(prefix="/middle")
    for number in range(16):
        inner.get(f"/{number}")(endpoint)
    middle.include_router(inner, prefix="/inner")
    app.include_router(middle)
    sub = FastAPI()
    for number in range(2):
        sub.get(f"/{number}")(endpoint)
    app.mount("/sub", sub)
    plain = [Route(f"/{number}", answer) for number in range(2)]
    app.mount("/starlette", Starlette(routes=plain))
    return app


def five_middlewares() -> FastAPI:
    app = forty_routes()
    for _ in range(5):
        app.add_middleware(Middleware)
    return app


def best(run: Callable[[], Any], number: int, repeat: int = 7) -> float:
    """Return the best of several means, in seconds."""
    return min(timeit.repeat(run, number=number, repeat=repeat)) / number


async def measure(make: Callable[[], Any]) -> list[str]:
    """Return one line of the table."""
    factory = CloneFactory(make(), lifespan="off")
    await factory.start()

    def clone() -> Any:
        return factory.build()

    gc.collect()
    per_clone = best(clone, 200)
    started = time.perf_counter()
    clones = [clone() for _ in range(2000)]
    total = time.perf_counter() - started
    started = time.perf_counter()
    gc.collect()
    collect = time.perf_counter() - started
    gc.freeze()
    started = time.perf_counter()
    gc.collect()
    frozen = time.perf_counter() - started
    gc.unfreeze()
    del clones
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    clones = [clone() for _ in range(500)]
    size = (tracemalloc.get_traced_memory()[0] - before) / 500
    for one in clones:
        one.arm()
    used = (tracemalloc.get_traced_memory()[0] - before) / 500
    tracemalloc.stop()
    sandbox = clones[0]
    reset = best(sandbox.reset, 5000)

    def touched() -> None:
        sandbox.app.state.user = "alice"
        sandbox.reset()

    with_state = best(touched, 5000)
    template = sandbox.template
    refresh = best(lambda: template.refresh(sandbox), 5000)
    await factory.stop()
    return [
        f"{per_clone * 1e6:.0f}",
        f"{total:.2f}",
        f"{size / 1000:.1f}",
        f"{used / 1000:.1f}",
        f"{reset * 1e6:.2f}",
        f"{with_state * 1e6:.2f}",
        f"{refresh * 1e6:.2f}",
        f"{collect * 1e3:.0f}",
        f"{frozen * 1e3:.0f}",
    ]


HEAD = (
    "app",
    "clone µs",
    "2000 s",
    "kB idle",
    "kB used",
    "reset µs",
    "with state µs",
    "check µs",
    "gc of 2000 ms",
    "frozen ms",
)


def main() -> None:
    """Print the table."""
    print("| " + " | ".join(HEAD) + " |")
    print("|---" * len(HEAD) + "|")
    for make in (hello, forty_routes, five_middlewares):
        row = anyio.run(measure, make)
        print("| " + " | ".join([make.__name__, *row]) + " |")


if __name__ == "__main__":
    main()
