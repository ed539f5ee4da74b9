"""How long a start takes, and for how long the server's loop is held up; for asyncio's own loop.

Three figures, because they are three things. The longest callback is what nothing else could come
in between. The longest garbage collection may be in it, and what was collected is that of the
whole process. The longest pause between two beats has everything in it that was due at once: when
2000 requests end in the same moment, the loop is busy with them for a while, wrapped or not.
"""

from __future__ import annotations

import asyncio
import gc
import json
import threading
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any

from sandboxpool.abc import ASGIApp, Message, Receive, Scope, Send

_PAUSE = 0.005  # seconds between two beats


@dataclass
class Longest:
    """The longest of each kind, in seconds.

    Attributes:
        callback: What the loop ran in one go.
        blocker: Which that was.
        collection: A garbage collection.
        pause: Between two heartbeats.
    """

    callback: float = 0.0
    blocker: str = ""
    collection: float = 0.0
    pause: float = 0.0


class Probe:
    """Measures an app from outside; answers at `/probe` with what it saw since the last time."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._longest = Longest()
        self._start: dict[str, float | str] = {}
        self._seconds = 0.0
        self._beating: asyncio.Task[None] | None = None
        self._collecting_since = 0.0
        self._time_callbacks()
        gc.callbacks.append(self._collecting)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
        elif scope["path"] == "/probe":
            await self._answer(send)
        else:
            await self._app(scope, receive, send)

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = 0.0

        async def receive_and_start() -> Message:
            nonlocal began
            message = await receive()
            if message["type"] == "lifespan.startup":
                self._beating = asyncio.create_task(self._beat())
                self._longest = Longest()
                began = perf_counter()
            return message

        async def stop_and_send(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                self._seconds = perf_counter() - began
                self._start = asdict(self._longest)
                self._longest = Longest()
            await send(message)

        await self._app(scope, receive_and_start, stop_and_send)

    async def _beat(self) -> None:
        while True:
            began = perf_counter()
            await asyncio.sleep(_PAUSE)
            late = perf_counter() - began - _PAUSE
            self._longest.pause = max(self._longest.pause, late)

    def _time_callbacks(self) -> None:
        """Time each callback that asyncio's loop runs in this thread."""
        handles: Any = asyncio.Handle
        original = handles._run
        here = threading.get_ident()

        def timed(handle: Any) -> None:
            if threading.get_ident() != here:  # the loop of a sandbox, which may block
                original(handle)
                return
            began = perf_counter()
            original(handle)
            took = perf_counter() - began
            if took > self._longest.callback:
                self._longest.callback = took
                self._longest.blocker = _named(handle._callback)

        handles._run = timed

    def _collecting(self, phase: str, info: dict[str, int]) -> None:
        """Time each collection; one callback of `gc` for both ends of it."""
        if phase == "start":
            self._collecting_since = perf_counter()
        else:
            took = perf_counter() - self._collecting_since
            self._longest.collection = max(self._longest.collection, took)

    async def _answer(self, send: Send) -> None:
        seen = {"seconds": self._seconds, "start": self._start, "since": asdict(self._longest)}
        self._longest = Longest()
        body = json.dumps(seen).encode()
        headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


def _named(callback: Any) -> str:
    """Say what a callback is; of the step of a task, which task."""
    owner = getattr(callback, "__self__", None)
    if isinstance(owner, asyncio.Task):
        return f"a step of {owner.get_coro()!r}"
    return repr(callback)
