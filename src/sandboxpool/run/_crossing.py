"""One ASGI call that runs in the loop of another thread.

Crossing to another thread and back is what this way of running costs, so there is as little of
it as possible. What the app sends goes back without a wait for an answer, in one go with what
follows it and with the end of the call. A request that reads no body and streams nothing crosses
once there and once back. Answers are waited for where they matter: on a websocket, and for each
part of a stream, so that an app is as fast as its client, and learns when that has gone.
"""

from __future__ import annotations

from collections import deque
from contextvars import Context, copy_context
from typing import Any

import anyio
import anyio.lowlevel

from sandboxpool._exceptions import LeaseEndedError
from sandboxpool._loop import Background, Wakeup
from sandboxpool._types import ASGIApp, Message, Receive, Scope, Send

from ._errand import Errand, Port
from ._loop_thread import LoopThread

# Bytes of a body that are read ahead of the app, about; then the client must wait.
_ENOUGH = 64 * 1024
# What a message counts besides what is in it, so that empty ones come to an end, too.
_A_MESSAGE = 256

_UNANSWERED = frozenset(
    {"http.response.start", "http.response.body", "websocket.accept", "websocket.close"}
)
_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})
_GONE = frozenset({"http.disconnect", "websocket.disconnect"})


class _Sent:
    """A message of the app on its way to the server.

    Attributes:
        wakeup: Of the app, if it waits for the server's answer.
        error: What the server answered with.
    """

    __slots__ = ("error", "message", "wakeup")

    def __init__(self, message: Message, wakeup: Wakeup | None) -> None:
        self.message = message
        self.wakeup = wakeup
        self.error: BaseException | None = None


class _Look:
    """The question whether a message of the client is there already."""

    __slots__ = ("wakeup",)

    def __init__(self, wakeup: Wakeup) -> None:
        self.wakeup = wakeup


_READ = object()
"""Asks for the next messages of the client."""


def size_of(message: Message) -> int:
    """Return how many bytes a message counts."""
    size = _A_MESSAGE
    for part in ("body", "bytes", "text"):
        size += len(message.get(part) or b"")
    return size


class Crossing(Errand):
    """A call of a sandbox's app.

    Args:
        thread: Where the app runs.
        port: Of the server's loop.
        app: The app.
        scope: The scope, the server's own dict.
        receive: The server's.
        send: The server's.

    Attributes:
        steps: What the app returned, while it runs.
        app_context: The context variables as the app has left them.
    """

    def __init__(
        self,
        thread: LoopThread,
        port: Port,
        app: ASGIApp,
        scope: Scope,
        receive: Receive,
        send: Send,
    ) -> None:
        path = scope.get("path", "")
        context: Context = copy_context()
        super().__init__(thread, port, None, f"request {path}", context)
        self.steps: Any = None
        self.app_context = context
        self._app = app
        self._scope = scope
        self._is_websocket = scope["type"] == "websocket"
        self._server_receive = receive
        self._server_send = send
        self._outbox: deque[Any] = deque()
        self._inbox: deque[Message] = deque()
        # Each counted by one side alone, so that no two threads add to the same number.
        self._given = self._taken = 0
        self._failure: BaseException | None = None
        self._reading = self._paused = self._left = False
        self._reader: Background | None = None
        self._read_on: Wakeup | None = None
        self._receive_error: Exception | None = None
        self._receivers: list[Wakeup] = []

    # --- at home ------------------------------------------------------------------------------

    async def run(self) -> Any:
        """Run the app, and return or raise what it returns or raises."""
        if self._is_websocket or (
            self._scope.get("method") in _WITH_BODY and not _expects(self._scope)
        ):
            # It will most likely want to read, so what is there gets under way now.
            self._reading = True
            self._start_reading()
        result = await super().run()
        if self._failure is not None:
            # The app has not noticed: it had sent its last message when the server refused it.
            failure, self._failure = self._failure, None
            try:
                raise failure
            finally:
                del failure
        return result

    def pending(self) -> bool:
        return bool(self._outbox)

    async def handle(self) -> None:
        """Do what the app has asked for, in order."""
        outbox = self._outbox
        while outbox:
            item = outbox.popleft()
            if type(item) is _Sent:
                await self._pass_on(item)
            elif item is _READ:
                self._start_reading()
            else:
                await self._answer_look(item)

    async def _pass_on(self, item: _Sent) -> None:
        if self._failure is None or item.wakeup is not None:
            try:
                await self._server_send(item.message)
            except Exception as error:
                if item.wakeup is not None:
                    item.error = error
                else:
                    self._failure = error
        if item.wakeup is not None:
            self.thread.post(item.wakeup.wake)

    def _start_reading(self) -> None:
        if self._reader is None:
            self._reader = self._port.loop.spawn(self._read, "read for a sandbox in a thread")
        elif self._read_on is not None:
            self._read_on.wake()

    async def _answer_look(self, look: _Look) -> None:
        # A reader that has just been started, or woken, must have had its first step.
        await anyio.lowlevel.checkpoint()
        await anyio.lowlevel.checkpoint()
        self.thread.post(look.wakeup.wake)

    async def _read(self) -> None:
        """Receive from the server, and hand over; never cancelled before the call is over.

        For a server may lose the message that a cancelled receive was about to return.
        """
        try:
            while not self._left:
                message = await self._server_receive()
                self._given += size_of(message)
                self._inbox.append(message)
                self.thread.post(self._arrived)
                if message["type"] in _GONE:
                    return
                if self._given - self._taken >= _ENOUGH:
                    self._read_on = self._port.loop.wakeup()
                    # In this order: the app looks at `_paused` after it has taken something.
                    self._paused = True
                    if self._given - self._taken >= _ENOUGH:
                        await self._read_on
                    self._paused = False
                    self._read_on = None
        except Exception as error:
            self._receive_error = error
            self.thread.post(self._arrived)

    def leave(self) -> None:
        """End the receive that is under way: the call is over."""
        self._left = True
        if self._reader is not None:
            self._reader.cancel()

    # --- away ---------------------------------------------------------------------------------

    async def serve(self) -> Any:
        self.steps = steps = self._app(self._scope, self._receive, self._send)
        try:
            return await steps
        finally:
            self.steps = None
            self.app_context = copy_context()

    async def _send(self, message: Message) -> None:
        if self._left or self.ended:
            raise LeaseEndedError(
                f"{message['type']!r} was sent for a request that is over: code that outlives "
                "its request cannot answer it any more."
            )
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        loop = self.thread.loop
        assert loop is not None
        body = message.get("body")
        if body is not None and type(body) is not bytes:
            # The app may use its buffer again before the server has looked at it.
            message = {**message, "body": bytes(body)}
        waits = message["type"] not in _UNANSWERED or message.get("more_body", False)
        item = _Sent(message, loop.wakeup() if waits else None)
        self._outbox.append(item)
        self.tell()
        if item.wakeup is not None:
            await item.wakeup
            if item.error is not None:
                raise item.error

    async def _receive(self) -> Message:
        loop = self.thread.loop
        assert loop is not None
        looked = False
        while True:
            if self._inbox:
                message = self._inbox.popleft()
                self._taken += size_of(message)
                if self._paused:
                    self._ask(_READ)
                return message
            if self._receive_error is not None:
                error, self._receive_error = self._receive_error, None
                raise error
            if self._left or self.ended:
                return {"type": "http.disconnect"}
            if not self._reading:
                self._reading = True
                self._ask(_READ)
            if not looked and anyio.current_effective_deadline() <= anyio.current_time():
                # Whoever asks in a scope that is cancelled already (`is_disconnected()` does)
                # wants what is there at once: so ask the server, and wait for its answer.
                looked = True
                wakeup = loop.wakeup()
                self._ask(_Look(wakeup))
                with anyio.CancelScope(shield=True):
                    await wakeup
                continue
            wakeup = loop.wakeup()
            self._receivers.append(wakeup)
            try:
                await wakeup
            finally:
                self._receivers.remove(wakeup)

    def _ask(self, item: object) -> None:
        self._outbox.append(item)
        self.tell()

    def _arrived(self) -> None:
        for wakeup in self._receivers:
            wakeup.wake()


def _expects(scope: Scope) -> bool:
    """Tell whether the client waits to be asked for the body (`Expect: 100-continue`)."""
    return any(name.lower() == b"expect" for name, _ in scope.get("headers", ()))
