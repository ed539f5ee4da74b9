"""Requests to a wrapped app, in the test's own process."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import anyio

from sandboxpool import SandboxedApp, wrap
from tests.wrap.client import Connection

Handler = Callable[[str], Awaitable[Any]]


def serving(handler: Handler, **options: Any) -> SandboxedApp:
    """Return a wrapped app that answers with the text of what *handler* returns for a path."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await lifespan(receive, send)
            return
        body = str(await handler(scope["path"])).encode()
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body})

    return wrap(app, **{"name": "app", **options})


async def lifespan(receive: Any, send: Any) -> None:
    """Serve a lifespan in which nothing happens."""
    await receive()
    await send({"type": "lifespan.startup.complete"})
    await receive()
    await send({"type": "lifespan.shutdown.complete"})


async def ask(app: Any, path: str = "/") -> str:
    """Send a request, and return the text of the answer."""
    connection = Connection(app, path)
    await app(connection.scope, connection.receive, connection.send)
    return connection.text


async def until(happened: Callable[[], object]) -> None:
    """Wait until something in the background has happened."""
    with anyio.fail_after(20):
        while not happened():  # noqa: ASYNC110 - nobody tells when
            await anyio.sleep(0.002)
