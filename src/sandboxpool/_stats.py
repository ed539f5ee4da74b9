"""What a wrapped app is doing, as frozen records and as a JSON page."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import attrs

from ._context import current
from ._exceptions import NoLeaseError
from ._types import ASGIApp, Receive, Scope, Send
from .abc import PoolStatistics

if TYPE_CHECKING:
    from ._sandboxed import SandboxedApp

OLDEST_SHOWN = 10
LEAKS_SHOWN = 10


@attrs.frozen
class RequestInFlight:
    """A request that holds a sandbox.

    Attributes:
        lease_id: The id of its lease.
        type: `"http"`, `"websocket"`, or `"sandboxpool.visit"` for periodic work and children of
            `concurrently()` in sandboxes of their own.
        method: The HTTP method, `None` for a websocket.
        path: The path. Neither query nor headers nor body are ever shown.
        age: Seconds since it got its sandbox.
    """

    lease_id: int
    type: str
    method: str | None
    path: str
    age: float


@attrs.frozen
class LeakStatistics:
    """What the requests of a wrapped app have left behind in this process.

    Attributes:
        reports: Requests that have left something behind; always 0 with `leaks="ignore"`.
        leaks: What they have left, altogether.
        paths: What was left most often, ten at most: the path and how many times.
    """

    reports: int = 0
    leaks: int = 0
    paths: tuple[tuple[str, int], ...] = ()


@attrs.frozen
class AppStatistics:
    """What a wrapped app is doing and has done in this process.

    Attributes:
        name: The name of the app.
        pid: The id of this worker's process.
        isolation: How its sandboxes are made.
        run_in: Where they run: `"loop"`, `"thread"` or `"cooperative"`.
        state: `"closed"`, `"open"` or `"draining"`.
        concurrency: Requests that hold a sandbox now.
        peak_concurrency: The most there ever were.
        requests: Requests that got a sandbox; periodic work, and children of `concurrently()` in
            sandboxes of their own, count as such.
        refused: Requests answered 503, because no sandbox came free.
        cut_off: Requests that the watchdog ended.
        hung_up: Clients that left while they waited for a sandbox.
        abandoned: Threads that were left behind because what they run did not stop when it was
            cut off, and that have not come to their end yet.
        stalls: Times that the event loop was blocked for longer than `stall_after`.
        leaks: What requests have left behind.
        pool: The figures of the pool.
        oldest: The requests in flight that started first, ten at most.
    """

    name: str
    pid: int
    isolation: str
    run_in: str
    state: str
    concurrency: int
    peak_concurrency: int
    requests: int
    refused: int
    cut_off: int
    hung_up: int
    abandoned: int
    stalls: int
    leaks: LeakStatistics
    pool: PoolStatistics
    oldest: tuple[RequestInFlight, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain data, as `/stats` shows it."""
        return attrs.asdict(self)


class StatsPage:
    """An ASGI app that answers with the statistics of a wrapped app as JSON.

    Args:
        sandboxed: The wrapped app; without it, the one that serves the request.
    """

    def __init__(self, sandboxed: SandboxedApp | None = None) -> None:
        self._sandboxed = sandboxed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        sandboxed = self._sandboxed
        if sandboxed is None:
            lease = current.get()
            if lease is None:
                raise NoLeaseError(
                    "this statistics page was not told whose statistics to show, and is not "
                    "served by a wrapped app: write stats_route(sandboxed), or wrap() the app."
                )
            sandboxed = lease.serving.owner
        if scope["method"] in ("GET", "HEAD"):
            status = 200
            body = json.dumps(sandboxed.statistics().as_dict(), indent=2).encode()
            headers = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]
        else:
            status = 405
            body = b"Method not allowed.\n"
            headers = [(b"content-type", b"text/plain"), (b"allow", b"GET, HEAD")]
        headers.append((b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send(
            {"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body}
        )


def stats_route(sandboxed: SandboxedApp | None = None, *, path: str = "/stats") -> Any:
    """Return a Starlette route that shows the statistics of a wrapped app as JSON.

    Put it among the routes of the app itself (`app.router.routes.append(stats_route())`), where
    it holds a sandbox like any request; or give *sandboxed* and put it in an app outside, where
    it answers even when every sandbox is taken. `wrap(app, stats="/stats")` does the latter
    without another app.

    Args:
        sandboxed: The wrapped app; without it, the one that serves the request.
        path: Where to show them.

    Returns:
        A `starlette.routing.Route` for GET and HEAD.

    Raises:
        ImportError: Starlette is not installed.
    """
    try:
        from starlette.routing import Route
    except ImportError as error:
        raise ImportError(
            "stats_route() makes a route for Starlette, which is not installed: "
            "pip install sandboxpool[starlette], or use wrap(app, stats='/stats')."
        ) from error
    page: ASGIApp = StatsPage(sandboxed)
    return Route(path, page, methods=["GET", "HEAD"], include_in_schema=False)
