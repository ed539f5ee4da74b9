"""Listen to a client while its request waits for a sandbox.

To notice that it hangs up, one must receive; what else comes is kept for the app. A receive that
is under way when the wait ends is not cancelled, because some servers lose a message with it:
the app's first `receive()` waits for its result.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from ._loop import Background, Loop, Wakeup
from ._types import Message, Receive

# Bytes that are kept at most, about; then the client must wait, as it would without us.
_ENOUGH = 64 * 1024
# What a message costs besides what is in it, so that empty ones come to an end, too.
_A_MESSAGE = 256


class ReadAhead:
    """Receive on behalf of an app that has not started yet.

    Args:
        loop: The running loop.
        receive: The server's.

    Attributes:
        hung_up: Whether the client has gone.
        connect_seen: Whether `websocket.connect` was received.
    """

    def __init__(self, loop: Loop, receive: Receive) -> None:
        self.hung_up = False
        self.connect_seen = False
        self._loop = loop
        self._receive = receive
        self._messages: deque[Message] = deque()
        self._error: Exception | None = None
        self._reading = False
        self._enough = False
        self._task: Background | None = None
        self._waiting: list[Wakeup] = []
        self._leave: Callable[[], None] | None = None

    def start(self, leave: Callable[[], None]) -> None:
        """Begin to listen; *leave* is called when the client hangs up."""
        self._leave = leave
        self._reading = True
        self._task = self._loop.spawn(self._read, "sandboxpool read-ahead")

    def stop(self) -> None:
        """Begin no further receive."""
        self._enough = True
        self._leave = None

    def close(self) -> None:
        """Give up the receive that is still under way: the request is over."""
        self.stop()
        if self._reading and self._task is not None:
            self._task.cancel()

    async def receive(self) -> Message:
        """Return the next message: what was kept first, then the server's."""
        while True:
            if self._messages:
                return self._messages.popleft()
            if self._error is not None:
                error, self._error = self._error, None
                raise error
            if not self._reading:
                return await self._receive()
            # An app may receive in several tasks, so there may be several of these.
            wakeup = self._loop.wakeup()
            self._waiting.append(wakeup)
            try:
                await wakeup
            finally:
                self._waiting.remove(wakeup)

    async def _read(self) -> None:
        kept = 0
        try:
            while not self._enough and kept < _ENOUGH:
                message = await self._receive()
                self._messages.append(message)
                kept += _A_MESSAGE
                for part in ("body", "bytes", "text"):
                    kept += len(message.get(part) or b"")
                kind = message["type"]
                if kind == "websocket.connect":
                    self.connect_seen = True
                elif kind in ("http.disconnect", "websocket.disconnect"):
                    self.hung_up = True
                    if self._leave is not None:
                        self._leave()
                    return
                self._wake()
        except Exception as error:
            self._error = error
        finally:
            self._reading = False
            self._wake()

    def _wake(self) -> None:
        for wakeup in self._waiting:
            wakeup.wake()
