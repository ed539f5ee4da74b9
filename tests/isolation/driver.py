"""Drive sandboxes without a pool: the test decides which sandbox serves which request."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import attrs

from sandboxpool._context import RequestLease, current


@attrs.frozen
class Answer:
    """What came back."""

    status: int
    body: bytes

    @property
    def data(self) -> Any:
        """The body, as JSON."""
        return json.loads(self.body)


async def call(app: Any, path: str, *, query: str = "", **scope: Any) -> Answer:
    """Send one GET request to an ASGI app, in the task of the caller."""
    full: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": path,
        "raw_path": path.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "headers": [(b"host", b"testserver")],
        "client": ("127.0.0.1", 50000),
        "server": ("testserver", 80),
        **scope,
    }
    status, body, sent = 0, b"", False

    async def receive() -> dict[str, Any]:
        nonlocal sent
        if sent:
            await anyio.sleep_forever()
        sent = True
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        nonlocal status, body
        if message["type"] == "http.response.start":
            status = message["status"]
        elif message["type"] == "http.response.body":
            body += message.get("body", b"")

    await app(full, receive, send)
    return Answer(status, body)


async def talk(app: Any, path: str, **scope: Any) -> str:
    """Open a websocket and return the first text that the app sends."""
    said: list[str] = []
    messages: list[dict[str, Any]] = [
        {"type": "websocket.connect"},
        {"type": "websocket.disconnect", "code": 1000},
    ]

    async def receive() -> dict[str, Any]:
        return messages.pop(0)

    async def send(message: Any) -> None:
        if message["type"] == "websocket.send":
            said.append(message["text"])

    await app(
        {
            "type": "websocket",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "path": path,
            "query_string": b"",
            "root_path": "",
            "headers": [],
            "subprotocols": [],
            **scope,
        },
        receive,
        send,
    )
    return said[0]


class Driver:
    """A few sandboxes of one factory.

    Args:
        factory: A `SandboxFactory`.
        size: How many sandboxes.
    """

    def __init__(self, factory: Any, size: int = 2) -> None:
        self.factory = factory
        self.size = size
        self.sandboxes: list[Any] = []

    async def __aenter__(self) -> Driver:
        await self.factory.start()
        for _ in range(self.size):
            self.sandboxes.append(await self.factory.create())
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        for sandbox in self.sandboxes:
            await self.factory.destroy(sandbox)
        await self.factory.stop()

    def app(self, number: int) -> Callable[..., Awaitable[Any]]:
        """Return an ASGI app that leases one sandbox for every call, as the pool would."""
        sandbox = self.sandboxes[number]

        async def leased(scope: dict[str, Any], receive: Any, send: Any) -> Any:
            lease = RequestLease(self.factory, sandbox, scope, current.get())
            scope = dict(scope)
            state = sandbox.request_state(scope.get("state"))
            if state is not None:
                scope["state"] = state
            token = current.set(lease)
            try:
                return await sandbox(scope, receive, send)
            finally:
                current.reset(token)
                lease.seal()
                if hasattr(sandbox, "leave"):
                    sandbox.leave(scope)
                waiting = self.factory.reset(sandbox)
                if waiting is not None:
                    await waiting

        return leased

    async def get(self, number: int, path: str, **scope: Any) -> Answer:
        """Send a GET request to one sandbox."""
        return await call(self.app(number), path, **scope)

    async def talk(self, number: int, path: str) -> str:
        """Open a websocket to one sandbox and return the first text."""
        return await talk(self.app(number), path)


class Meeting:
    """A point that a number of requests reach before any of them goes on."""

    def __init__(self, parties: int) -> None:
        self._missing = parties
        self._complete = anyio.Event()

    async def __call__(self) -> None:
        self._missing -= 1
        if self._missing <= 0:
            self._complete.set()
        await self._complete.wait()
