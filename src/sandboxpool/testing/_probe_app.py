"""The app that the checks of sandboxes run, and the client that calls it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from itertools import count
from typing import Any, TypeAlias

import anyio
import attrs

from sandboxpool._context import RequestLease, current
from sandboxpool._types import ASGIApp, Message, Receive, Scope, Send

Act: TypeAlias = Callable[["ProbeApp", Scope, Receive, Send], Awaitable[Any]]
"""What the probe app does for one call."""

_acts: dict[str, Act] = {}
"""By path. Outside of the app, for a sandbox may copy whatever is inside."""

_numbers = count(1)


class Lifespans:
    """Counts what the lifespans of probe apps did.

    Attributes:
        started: How many have begun.
        stopped: How many came to their end.
        failing: Which phase fails, `"startup"` or `"shutdown"`, or `None`.
    """

    def __init__(self) -> None:
        self.started = 0
        self.stopped = 0
        self.failing: str | None = None


class ProbeApp:
    """An ASGI app with state of its own; what it does for a call is said by the check.

    Attributes:
        remembered: The last value that a call has left.
        values: All of them.
    """

    def __init__(self, lifespans: Lifespans | None = None) -> None:
        self.remembered: str | None = None
        self.values: list[str] = []
        self._lifespans = lifespans or Lifespans()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> Any:
        """Do what the check has registered for the path."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
            return None
        return await _acts[scope["path"]](self, scope, receive, send)

    async def _live(self, receive: Receive, send: Send) -> None:
        lifespans = self._lifespans
        await receive()
        if lifespans.failing == "startup":
            await send({"type": "lifespan.startup.failed", "message": "the kit says so"})
            return
        lifespans.started += 1
        await send({"type": "lifespan.startup.complete"})
        await receive()
        lifespans.stopped += 1
        outcome = "failed" if lifespans.failing == "shutdown" else "complete"
        await send({"type": f"lifespan.shutdown.{outcome}"})


@attrs.define
class Call:
    """One call of a sandbox, from the side of the server.

    Attributes:
        scope: What the call is made with.
        incoming: What the client sends, in order; then it stays on the line.
        sent: What the app has sent so far.
        on_send: Called with each message that the app sends.
        received: How many of the incoming messages were asked for.
    """

    scope: dict[str, Any]
    incoming: Sequence[Message]
    on_send: Callable[[Message], object]
    sent: list[Message] = attrs.field(factory=list)
    received: int = 0

    async def receive(self) -> Message:
        """Return the next message of the client."""
        if self.received >= len(self.incoming):
            await anyio.sleep_forever()
        self.received += 1
        return self.incoming[self.received - 1]

    async def send(self, message: Message) -> None:
        """Take a message of the app."""
        self.sent.append(message)
        self.on_send(message)

    async def run(self, app: ASGIApp, act: Act) -> Any:
        """Have an app do *act* for this call; return or raise what comes out."""
        path = self.scope["path"] = f"/probe/{next(_numbers)}"
        self.scope["raw_path"] = path.encode()
        _acts[path] = act
        try:
            return await app(self.scope, self.receive, self.send)
        finally:
            del _acts[path]


def new_call(
    kind: str = "http",
    incoming: Sequence[Message] = ({"type": "http.request", "body": b"", "more_body": False},),
    on_send: Callable[[Message], object] = bool,
    **scope: Any,
) -> Call:
    """Return a call as a server makes it."""
    full: dict[str, Any] = {
        "type": kind,
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "scheme": "http" if kind == "http" else "ws",
        "query_string": b"",
        "root_path": "",
        "headers": [(b"host", b"sandbox.test")],
        "client": ("127.0.0.1", 50000),
        "server": ("sandbox.test", 80),
        **({"method": "GET"} if kind == "http" else {"subprotocols": []}),
        **scope,
    }
    return Call(full, incoming, on_send)


def leased(sandbox: Any, owner: object) -> ASGIApp:
    """Return an app that gives a sandbox a lease for each call, as `wrap()` does."""

    async def app(scope: Scope, receive: Receive, send: Send) -> Any:
        lease = RequestLease(owner, sandbox, scope, current.get())
        ask = getattr(sandbox, "request_state", None)
        state = None if ask is None else ask(scope.get("state"))
        if state is not None:
            scope["state"] = state
        token = current.set(lease)
        try:
            return await sandbox(scope, receive, send)
        finally:
            current.reset(token)
            lease.seal()
            leave = getattr(sandbox, "leave", None)
            if leave is not None:
                leave(scope)

    return app
