"""What `wrap()` adds to a request, in this process and without a server."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import Awaitable, Callable
from typing import Any

import sandboxpool
from sandboxpool import hooks

from .measure import Timings, interleave

App = Callable[[Any, Any, Any], Awaitable[Any]]


class Empty:
    """The least that any wrapper is: one more call."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> Any:
        return await self.app(scope, receive, send)


async def raw(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"hello"})


def fastapi_app() -> App:
    from fastapi import FastAPI

    app = FastAPI()

    @app.get("/")
    async def hello() -> dict[str, str]:
        return {"hello": "world"}

    return app


def scope() -> dict[str, Any]:
    """Return what uvicorn gives to a small request."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "server": ("127.0.0.1", 8000),
        "client": ("127.0.0.1", 50000),
        "scheme": "http",
        "method": "GET",
        "root_path": "",
        "path": "/",
        "raw_path": b"/",
        "query_string": b"",
        "headers": [(b"host", b"127.0.0.1:8000"), (b"accept", b"*/*")],
        "state": {},
    }


async def receive() -> dict[str, Any]:
    return {"type": "http.request", "body": b"", "more_body": False}


async def send(message: Any) -> None:
    pass


def serving(app: App) -> Callable[[int], Awaitable[object]]:
    async def loop(turns: int) -> None:
        for _ in range(turns):
            await app(scope(), receive, send)

    return loop


async def measure(quick: bool) -> None:
    apps: dict[str, App] = {"raw ASGI": raw, "FastAPI hello world": fastapi_app()}
    print("\nWhat wrap() adds to a request in-process, in microseconds (asyncio)")
    print("Every default is on but for the monitor thread, which would report the benchmark.")
    print(
        f"{'':22}{'as it is':>10}{'empty wrapper':>15}{'wrapped':>10}{'adds':>8}{'median':>8}"
        f"{'cooperative adds':>18}"
    )
    for name, app in apps.items():
        timings = Timings()
        async with (
            sandboxpool.wrap(app, stall_after=None) as wrapped,
            sandboxpool.wrap(app, stall_after=None, run_in="cooperative") as cooperative,
        ):
            loops = {
                "bare": serving(app),
                "empty": serving(Empty(app)),
                "wrapped": serving(wrapped),
                "cooperative": serving(cooperative),
            }
            turns = dict.fromkeys(loops, 300)
            await interleave(loops, 3, turns, Timings())
            await interleave(loops, 15 if quick else 60, turns, timings)
        added = [
            (a - b) * 1e6
            for a, b in zip(timings.rounds["wrapped"], timings.rounds["bare"], strict=True)
        ]
        best = {loop: timings.best(loop) * 1e6 for loop in loops}
        print(
            f"{name:22}{best['bare']:>10.1f}{best['empty']:>15.1f}{best['wrapped']:>10.1f}"
            f"{best['wrapped'] - best['bare']:>8.1f}{statistics.median(added):>8.1f}"
            f"{best['cooperative'] - best['bare']:>18.1f}"
        )
    print("target: 8, aim at 5, on a machine on which the FastAPI app takes about 41 by itself")


def run(quick: bool) -> None:
    """Print the table."""
    hooks.install()
    try:
        asyncio.run(measure(quick))
    finally:
        hooks.uninstall()


if __name__ == "__main__":
    run(quick=False)
