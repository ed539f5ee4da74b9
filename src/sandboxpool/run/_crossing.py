"""One ASGI call that runs in the loop of another thread.

Crossing to another thread and back is what this way of running costs, so there is as little of
it as possible. What the app sends goes back without a wait for an answer, in one go with what
follows it and with the end of the call. A request that reads no body and streams nothing crosses
once there and once back. Answers are waited for where they matter: on a websocket, and for each
part of a stream, so that an app is as fast as its client, and learns when that has gone.

Code that is not async may also read and send right in the thread, whose loop stands still then:
it waits for locks, which the server's loop releases.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from contextvars import Context, copy_context
from threading import Lock, get_ident
from typing import Any

import anyio
import anyio.lowlevel

from sandboxpool._exceptions import LeaseEndedError
from sandboxpool._loop import Background, Wakeup
from sandboxpool._types import ASGIApp, Message, Receive, Scope, Send

from ._errand import Errand, Port
from ._loop_thread import CutOffError, LoopThread

# Bytes of a body that are read ahead of the app, about; then the client must wait.
_ENOUGH = 64 * 1024
# What a message counts besides what is in it, so that empty ones come to an end, too.
_A_MESSAGE = 256

_UNANSWERED = frozenset(
    {"http.response.start", "http.response.body", "websocket.accept", "websocket.close"}
)
_WITH_BODY = frozenset({"POST", "PUT", "PATCH"})
_GONE = frozenset({"http.disconnect", "websocket.disconnect"})


class _Latch:
    """What a thread waits for without its event loop."""

    __slots__ = ("_lock",)

    def __init__(self) -> None:
        self._lock = Lock()
        self._lock.acquire()

    def wake(self) -> None:
        """Let the waiting thread go on, or not wait at all; for any thread."""
        try:
            self._lock.release()
        except RuntimeError:
            pass  # a second time

    def wait(self) -> None:
        """Wait, once."""
        self._lock.acquire()


class _Sent:
    """A message of the app on its way to the server.

    Attributes:
        wakeup: Of the app, if it waits for the server's answer.
        error: What the server answered with.
    """

    __slots__ = ("error", "message", "wakeup")

    def __init__(self, message: Message, wakeup: Wakeup | _Latch | None) -> None:
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
        blocks: Whether code runs in the thread that reads and sends without its loop.
        hung_up: Whether the client has gone, as far as anybody has listened.
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
        self.blocks = self.hung_up = False
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
        self._receivers: list[Wakeup | _Latch] = []
        # Of code that reads and sends without the thread's loop.
        self._cut_off = False
        self._latches: list[_Latch] = []

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
        if type(item.wakeup) is _Latch:
            item.wakeup.wake()
        elif item.wakeup is not None:
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
                self.hung_up = message["type"] in _GONE
                self._note_arrival()
                if self.hung_up:
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
            self._note_arrival()

    def _note_arrival(self) -> None:
        # Who blocks says so before it looks at the inbox, and this comes after the filling of it.
        if self.blocks:
            self._arrived()
        else:
            self.thread.post(self._arrived)

    async def _end_early(self) -> None:
        self._release()
        await super()._end_early()
        if self.blocks and not self.ended:
            # Its loop stands still, so that it cannot be cancelled, and it has had its time.
            self.blocks_thread = True

    def _release(self) -> None:
        """Let code that waits for the client without a loop go on, which is cut off by that."""
        self._cut_off = not self.ended
        for latch in tuple(self._latches):
            latch.wake()

    def leave(self) -> None:
        """End the receive that is under way: the call is over."""
        self._left = True
        self._release()
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
        loop = self.thread.loop
        assert loop is not None
        wakeup = loop.wakeup() if _waits(message) else None
        item = self._item(message, wakeup)
        self._outbox.append(item)
        self.tell()
        if wakeup is not None:
            await wakeup
            if item.error is not None:
                raise item.error

    def _item(self, message: Message, wakeup: Wakeup | _Latch | None) -> _Sent:
        if self._left or self.ended:
            raise LeaseEndedError(
                f"{message['type']!r} was sent for a request that is over: code that outlives "
                "its request cannot answer it any more."
            )
        if self._failure is not None:
            failure, self._failure = self._failure, None
            raise failure
        body = message.get("body")
        if body is not None and type(body) is not bytes:
            # The app may use its buffer again before the server has looked at it.
            message = {**message, "body": bytes(body)}
        return _Sent(message, wakeup)

    async def _receive(self) -> Message:
        loop = self.thread.loop
        assert loop is not None
        looked = False
        while True:
            message = self._take()
            if message is not None:
                return message
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

    def _take(self) -> Message | None:
        """Return what is there; have it brought, if there is nothing."""
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
        self.listen()
        return None

    def listen(self) -> None:
        """Have `hung_up` tell, from now on, when the client goes."""
        if not self._reading:
            self._reading = True
            self._ask(_READ)

    def _ask(self, item: object) -> None:
        self._outbox.append(item)
        if self.blocks:
            self._port.note_from_elsewhere(self)
        else:
            self.tell()

    def _arrived(self) -> None:
        for wakeup in tuple(self._receivers):
            wakeup.wake()

    # --- away, by code that blocks; in any thread -----------------------------------------------

    def receive_blocking(self) -> Message:
        """Return the next message of the client.

        Raises:
            CutOffError: The request was cut off.
        """
        while True:
            latch = _Latch()
            # Before the look: who brings something after it finds the latch.
            self._receivers.append(latch)
            try:
                self._check_cut_off()
                message = self._take()
                if message is not None:
                    return message
                self._wait(latch)
            finally:
                self._receivers.remove(latch)

    def send_blocking(self, messages: Iterable[Message]) -> None:
        """Send messages; wait until the server has taken them, if the response goes on.

        Raises:
            CutOffError: The request was cut off.
            LeaseEndedError: The request is over.
            Exception: Whatever the server raises.
        """
        self._check_cut_off()
        for message in messages:
            latch = _Latch() if _waits(message) else None
            item = self._item(message, latch)
            self._outbox.append(item)
            if latch is not None:
                self._port.note_from_elsewhere(self)
                self._wait(latch)
                if item.error is not None:
                    raise item.error
        if not self._outbox:
            return
        # The end of the response: it goes back with the end of the call, or in an instant.
        if get_ident() == self.thread.thread.ident:
            self.tell()
        else:
            self._port.note_from_elsewhere(self)

    def _wait(self, latch: _Latch) -> None:
        self._latches.append(latch)
        try:
            # After that: who cuts off looks at the latches after it has said so.
            self._check_cut_off()
            latch.wait()
        finally:
            self._latches.remove(latch)
        self._check_cut_off()

    def _check_cut_off(self) -> None:
        if self._cut_off:
            self.answered = True
            raise CutOffError("the request was cut off.")


def _waits(message: Message) -> bool:
    """Tell whether the app waits for the server's answer to a message."""
    return message["type"] not in _UNANSWERED or bool(message.get("more_body", False))


def _expects(scope: Scope) -> bool:
    """Tell whether the client waits to be asked for the body (`Expect: 100-continue`)."""
    return any(name.lower() == b"expect" for name, _ in scope.get("headers", ()))
