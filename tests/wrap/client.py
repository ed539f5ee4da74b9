"""An ASGI server in the test's own process: it says what it is told to, and notes what it hears."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable
from typing import Any

import anyio
import anyio.lowlevel

SENTINEL: Any = object()


class Connection:
    """One connection as a server sees it.

    Attributes:
        scope: What the app gets.
        sent: The messages of the app.
        receives: How often `receive()` was called.
        result: What the app returned.
        started: Set with the first message of the app.
        over: Set when the app has returned or raised.
    """

    def __init__(
        self,
        app: Any,
        path: str = "/",
        *,
        type: str = "http",
        body: Iterable[bytes] | None = (b"",),
        **scope: Any,
    ) -> None:
        self.app = app
        self.scope: dict[str, Any] = {
            "type": type,
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http" if type == "http" else "ws",
            "path": path,
            "raw_path": path.encode(),
            "query_string": b"",
            "root_path": "",
            "headers": [(b"host", b"testserver")],
            "client": ("127.0.0.1", 50000),
            "server": ("testserver", 80),
            **scope,
        }
        self.sent: list[dict[str, Any]] = []
        self.receives = 0
        self.result: Any = SENTINEL
        self.started = anyio.Event()
        self.over = anyio.Event()
        self._incoming: deque[Any] = deque()
        self._arrived = anyio.Event()
        if type == "websocket":
            del self.scope["method"]
            self.scope["subprotocols"] = []
            self.say({"type": "websocket.connect"})
        elif body is not None:
            parts = list(body)
            for number, part in enumerate(parts, 1):
                more = number < len(parts)
                self.say({"type": "http.request", "body": part, "more_body": more})

    # --- the client's side --------------------------------------------------------------------

    def say(self, message: dict[str, Any]) -> None:
        """Let the app receive a message."""
        self._incoming.append(message)
        self._arrived.set()

    def fail(self, error: BaseException) -> None:
        """Let `receive()` raise."""
        self._incoming.append(error)
        self._arrived.set()

    def hang_up(self) -> None:
        """Let the app receive the end of the connection."""
        if self.scope["type"] == "http":
            self.say({"type": "http.disconnect"})
        else:
            self.say({"type": "websocket.disconnect", "code": 1006})

    @property
    def unread(self) -> int:
        """How many messages nobody has received yet."""
        return len(self._incoming)

    @property
    def status(self) -> int:
        """The status of the response, or of the denial of a websocket."""
        for message in self.sent:
            if message["type"].endswith("http.response.start"):
                return int(message["status"])
        return 0

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the response."""
        for message in self.sent:
            if message["type"].endswith("http.response.start"):
                return {k.decode().lower(): v.decode() for k, v in message.get("headers", ())}
        return {}

    @property
    def body(self) -> bytes:
        """The body of the response."""
        return b"".join(m.get("body", b"") for m in self.sent if m["type"].endswith(".body"))

    @property
    def text(self) -> str:
        """The body, as text."""
        return self.body.decode()

    @property
    def json(self) -> Any:
        """The body, as JSON."""
        return json.loads(self.body)

    @property
    def types(self) -> list[str]:
        """The types of the messages of the app."""
        return [message["type"] for message in self.sent]

    # --- the server's side --------------------------------------------------------------------

    async def receive(self) -> Any:
        """Return the next message of the client."""
        self.receives += 1
        while not self._incoming:
            self._arrived = anyio.Event()
            await self._arrived.wait()
        message = self._incoming.popleft()
        if isinstance(message, BaseException):
            raise message
        return message

    async def send(self, message: Any) -> None:
        """Note a message of the app."""
        self.sent.append(message)
        self.started.set()
        await anyio.lowlevel.checkpoint()

    async def run(self) -> Connection:
        """Call the app."""
        try:
            self.result = await self.app(self.scope, self.receive, self.send)
        finally:
            self.over.set()
        return self


async def get(app: Any, path: str = "/", **scope: Any) -> Connection:
    """Send one request and wait for all of its answer."""
    with anyio.fail_after(5):
        return await Connection(app, path, **scope).run()


async def settle() -> None:
    """Let every task go on for as long as it can without time passing."""
    for _ in range(25):
        await anyio.lowlevel.checkpoint()


async def respond(send: Any, body: bytes = b"ok", status: int = 200) -> None:
    """Send a whole response."""
    await send({"type": "http.response.start", "status": status, "headers": []})
    await send({"type": "http.response.body", "body": body})


class Gated:
    """A raw app that waits at a gate, and notes who came.

    Attributes:
        entered: The paths of those that came in, in order.
        gates: An event for each path that was entered.
    """

    def __init__(self) -> None:
        self.entered: list[str] = []
        self.left: list[str] = []
        self.gates: dict[str, anyio.Event] = {}
        self._came = anyio.Event()

    def open(self, path: str) -> None:
        """Let a request go on."""
        self.gates[path].set()

    async def came(self, number: int) -> None:
        """Wait until that many requests have come in."""
        with anyio.fail_after(5):
            while len(self.entered) < number:
                self._came = anyio.Event()
                await self._came.wait()

    def app(self) -> Any:
        """Return the app: a function, because that is shared by all sandboxes."""

        async def gated(scope: Any, receive: Any, send: Any) -> None:
            path = scope["path"]
            if scope["type"] == "lifespan":
                raise RuntimeError("no lifespan here")
            gate = self.gates[path] = anyio.Event()
            self.entered.append(path)
            self._came.set()
            if scope["type"] == "websocket":
                await receive()
                await send({"type": "websocket.accept"})
                await gate.wait()
                await send({"type": "websocket.close", "code": 1000})
            else:
                await gate.wait()
                await respond(send, path.encode())
            self.left.append(path)

        return gated


class Lifespan:
    """A server's side of the lifespan protocol, for `async with`.

    Attributes:
        sent: What the app said.
        state: What the server would hand to each request.
    """

    def __init__(self, app: Any) -> None:
        self.app = app
        self.sent: list[dict[str, Any]] = []
        self.state: dict[str, Any] = {}
        self.error: BaseException | None = None
        self.said = anyio.Event()
        self.over = anyio.Event()
        self._stop = anyio.Event()
        self._asked = False

    @property
    def types(self) -> list[str]:
        """The types of what the app said."""
        return [message["type"] for message in self.sent]

    async def run(self) -> None:
        """Call the app with a lifespan scope."""
        scope = {
            "type": "lifespan",
            "asgi": {"version": "3.0", "spec_version": "2.0"},
            "state": self.state,
        }
        try:
            await self.app(scope, self._receive, self._send)
        except Exception as error:
            self.error = error
        finally:
            self.over.set()
            self.said.set()

    async def start(self, tasks: anyio.abc.TaskGroup) -> None:
        """Begin, and wait for the answer."""
        tasks.start_soon(self.run)
        with anyio.fail_after(5):
            await self.said.wait()

    async def stop(self) -> None:
        """Ask to shut down, and wait for the end."""
        self._stop.set()
        with anyio.fail_after(10):
            await self.over.wait()

    def ask_to_stop(self) -> None:
        """Ask to shut down."""
        self._stop.set()

    async def _receive(self) -> Any:
        if not self._asked:
            self._asked = True
            return {"type": "lifespan.startup"}
        await self._stop.wait()
        return {"type": "lifespan.shutdown"}

    async def _send(self, message: Any) -> None:
        self.sent.append(message)
        self.said.set()
        await anyio.lowlevel.checkpoint()
