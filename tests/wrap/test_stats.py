"""What a wrapped app says about itself."""

from __future__ import annotations

import json
import os
from typing import Any

import anyio
import attrs
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route

from sandboxpool import AppStatistics, NoLeaseError, stats_route, wrap

from .client import Connection, Gated, get, respond, settle

POOL_KEYS = {
    "name", "min_size", "max_size", "size", "idle", "in_use", "creating", "resetting", "closing",
    "waiting", "peak_in_use", "leases", "waits", "wait_time", "hold_time", "timeouts", "refusals",
    "created", "create_failures", "resets", "reset_failures", "retired",
}  # fmt: skip


async def test_figures() -> None:
    """The figures follow what happens, and are frozen."""
    gated = Gated()
    sandboxed = wrap(gated.app(), max_size=2, max_waiting=0, name="shop", stall_after=None)
    closed = sandboxed.statistics()
    assert (closed.state, closed.pool.size, closed.requests) == ("closed", 0, 0)
    async with sandboxed, anyio.create_task_group() as tasks:
        for path in ("/a", "/b"):
            tasks.start_soon(Connection(sandboxed, path, query_string=b"password=secret").run)
        await gated.came(2)
        await get(sandboxed, "/c")
        statistics = sandboxed.statistics()
        assert isinstance(statistics, AppStatistics)
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            statistics.name = "other"  # type: ignore[misc]
        assert statistics.pid == os.getpid()
        assert statistics.name == "shop"
        assert statistics.isolation == "clone"
        assert statistics.state == "open"
        assert statistics.concurrency == 2
        assert statistics.peak_concurrency == 2
        assert statistics.requests == 2
        assert statistics.refused == 1
        assert statistics.pool.in_use == 2
        assert sandboxed.pool is not None
        assert sandboxed.pool.statistics().in_use == 2
        for path in ("/a", "/b"):
            gated.open(path)
    after = sandboxed.statistics()
    assert (after.concurrency, after.peak_concurrency, after.state) == (0, 2, "closed")
    assert statistics.concurrency == 2


async def test_as_dict() -> None:
    """As plain data they go through JSON and back unchanged, with nothing private in them."""
    gated = Gated()
    async with (
        wrap(gated.app(), max_size=1, max_uses=1, stall_after=None) as sandboxed,
        anyio.create_task_group() as tasks,
    ):
        connection = Connection(
            sandboxed,
            "/private/path",
            method="POST",
            query_string=b"password=secret",
            headers=[(b"cookie", b"secret")],
            body=[b"secret"],
        )
        tasks.start_soon(connection.run)
        await gated.came(1)
        data = sandboxed.statistics().as_dict()
        text = json.dumps(data)
        assert json.loads(text).keys() == {field.name for field in attrs.fields(AppStatistics)}
        assert "secret" not in text
        assert set(data["pool"]) >= POOL_KEYS
        (oldest,) = data["oldest"]
        assert set(oldest) == {"lease_id", "type", "method", "path", "age"}
        assert (oldest["path"], oldest["method"], oldest["type"]) == (
            "/private/path",
            "POST",
            "http",
        )
        assert oldest["age"] >= 0
        gated.open("/private/path")
    data = json.loads(json.dumps(sandboxed.statistics().as_dict()))
    assert data["pool"]["retired"]["max_uses"] == 1
    assert data["oldest"] == []


async def test_oldest() -> None:
    """The requests in flight that began first are shown, the oldest first, ten at most."""
    gated = Gated()
    async with (
        wrap(gated.app(), max_size=20, stall_after=None) as sandboxed,
        anyio.create_task_group() as tasks,
    ):
        for number in range(12):
            type = "websocket" if number == 3 else "http"
            tasks.start_soon(Connection(sandboxed, f"/{number}", type=type).run)
            await gated.came(number + 1)
        oldest = sandboxed.statistics().oldest
        assert [request.path for request in oldest] == [f"/{number}" for number in range(10)]
        assert [request.age for request in oldest] == sorted(
            (request.age for request in oldest), reverse=True
        )
        assert (oldest[3].type, oldest[3].method) == ("websocket", None)
        gated.open("/0")
        await settle()
        assert sandboxed.statistics().oldest[0].path == "/1"
        for number in range(1, 12):
            gated.open(f"/{number}")


async def test_stats_path() -> None:
    """`stats=` answers outside of the pool: also when every sandbox is taken, and unopened."""
    gated = Gated()
    sandboxed = wrap(gated.app(), max_size=1, stats="/stats", stall_after=None)
    assert (await get(sandboxed, "/stats")).json["state"] == "closed"
    async with sandboxed, anyio.create_task_group() as tasks:
        tasks.start_soon(Connection(sandboxed, "/a").run)
        await gated.came(1)
        answer = await get(sandboxed, "/stats")
        assert answer.status == 200
        assert answer.headers["content-type"] == "application/json"
        assert answer.headers["cache-control"] == "no-store"
        assert answer.headers["content-length"] == str(len(answer.body))
        assert answer.json["concurrency"] == 1
        assert answer.json["oldest"][0]["path"] == "/a"
        head = await get(sandboxed, "/stats", method="HEAD")
        assert (head.status, head.body) == (200, b"")
        assert int(head.headers["content-length"]) > 0
        gated.open("/a")
    assert (await get(sandboxed, "/stats")).json["state"] == "closed"
    assert gated.entered == ["/a"]


async def test_stats_path_is_for_get() -> None:
    """Only GET and HEAD are answered there."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(send)

    async with wrap(app, stats="/stats", lifespan="off", stall_after=None) as sandboxed:
        answer = await get(sandboxed, "/stats", method="POST")
        assert answer.status == 405
        assert answer.headers["allow"] == "GET, HEAD"


async def test_stats_path_and_websockets() -> None:
    """A websocket to that path is the app's."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "websocket.accept"})

    async with wrap(app, stats="/stats", lifespan="off", stall_after=None) as sandboxed:
        connection = await Connection(sandboxed, "/stats", type="websocket").run()
        assert connection.types == ["websocket.accept"]


async def test_stats_path_below_a_mount() -> None:
    """Mounted somewhere, the app answers below its mount, as its own routes do."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(send)

    sandboxed = wrap(app, stats="/stats", lifespan="off", stall_after=None)
    outer = Starlette(routes=[Mount("/shop", app=sandboxed)])
    assert (await get(outer, "/shop/stats")).json["name"] == sandboxed.wrap_options.name
    assert (await get(outer, "/shop/other")).text == "ok"
    # The same from a server with a root path of its own.
    answer = await get(sandboxed, "/api/stats", root_path="/api")
    assert answer.json["pid"] == os.getpid()
    await sandboxed.aclose()


async def test_stats_route_inside() -> None:
    """Among the app's own routes `stats_route()` shows the app that serves it; it takes a lease."""

    def hello(request: Request) -> Response:
        return PlainTextResponse("hello")

    async def dispatch(request: Request, call_next: Any) -> Response:
        response: Response = await call_next(request)
        return response

    app = Starlette(
        routes=[Route("/", hello), stats_route(path="/about")],
        middleware=[Middleware(BaseHTTPMiddleware, dispatch=dispatch)],
    )
    async with wrap(app, max_size=1, name="inside", stall_after=None) as sandboxed:
        answer = await get(sandboxed, "/about")
        assert (answer.json["name"], answer.json["concurrency"]) == ("inside", 1)
        assert answer.json["oldest"][0]["path"] == "/about"
        assert (await get(sandboxed, "/about", method="POST")).status == 405


async def test_stats_route_outside() -> None:
    """In another app `stats_route(sandboxed)` answers while every sandbox is taken."""
    gated = Gated()
    sandboxed = wrap(gated.app(), max_size=1, stall_after=None)
    outer = Starlette(routes=[stats_route(sandboxed), Mount("/app", app=sandboxed)])
    async with sandboxed, anyio.create_task_group() as tasks:
        tasks.start_soon(Connection(outer, "/app/a").run)
        await gated.came(1)
        assert (await get(outer, "/stats")).json["concurrency"] == 1
        gated.open("/app/a")


async def test_stats_route_of_nobody() -> None:
    """A route that was told nothing, in an app that is not wrapped, says what to write."""
    app = Starlette(routes=[stats_route()])
    with pytest.raises(NoLeaseError, match=r"write stats_route\(sandboxed\), or wrap\(\) the app"):
        await get(app, "/stats")


async def test_stats_app() -> None:
    """`sandboxed.stats_app` is an ASGI app of its own."""
    sandboxed = wrap(Starlette(), name="shop")
    assert (await get(sandboxed.stats_app)).json["name"] == "shop"
