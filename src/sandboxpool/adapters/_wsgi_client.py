"""How a WSGI app, which cannot await, reaches its client."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Protocol, TypeVar

import anyio.lowlevel

from sandboxpool._loop import running_loop
from sandboxpool._read_ahead import ReadAhead
from sandboxpool._types import Message, Receive, Send
from sandboxpool.run._crossing import Crossing

T = TypeVar("T")


class Await(Protocol):
    """Waits for an async function from where the app runs."""

    def __call__(self, function: Callable[..., Awaitable[T]], /, *args: object) -> T:
        """Return what the function returns."""
        ...


class Client(Protocol):
    """The client of a request; its methods block where the app runs."""

    def receive(self) -> Message:
        """Return its next message."""
        ...

    def send(self, messages: list[Message]) -> bool:
        """Send it messages; return `False` if it goes on and the client has gone."""
        ...


class LoopClient:
    """A client that is reached through the event loop, which runs on meanwhile.

    Args:
        receive: The server's.
        send: The server's.
        await_: Runs these in the event loop.
    """

    def __init__(self, receive: Receive, send: Send, await_: Await) -> None:
        self._receive = receive
        self._send = send
        self._await = await_
        self._ahead: ReadAhead | None = None

    def receive(self) -> Message:
        """Return its next message."""
        return self._await(self._receive)

    def send(self, messages: list[Message]) -> bool:
        """Send it messages; return `False` if it goes on and the client has gone."""
        return self._await(self._transmit, messages)

    # --- in the event loop --------------------------------------------------------------------

    async def _transmit(self, messages: list[Message]) -> bool:
        # It streams, perhaps without an end, and most servers let one send to nobody.
        if messages[0].get("more_body") and await self._has_gone():
            return False
        for message in messages:
            await self._send(message)
        return True

    async def _has_gone(self) -> bool:
        """Listen to the client from now on, and tell whether it has hung up."""
        ahead = self._ahead
        if ahead is None:
            ahead = self._ahead = ReadAhead(running_loop(), self._receive)
            self._receive = ahead.receive
            ahead.start(_nobody_waits)
        # Not every server waits when it sends, and whoever listens must have a turn.
        await anyio.lowlevel.checkpoint()
        return ahead.hung_up

    def close(self) -> None:
        """Listen to the client no longer."""
        if self._ahead is not None:
            self._ahead.close()


class CrossingClient:
    """A client that is reached from the thread of a sandbox, without the loop of that.

    Args:
        crossing: The call that runs in the thread.
    """

    def __init__(self, crossing: Crossing) -> None:
        self._crossing = crossing
        crossing.blocks = True

    def receive(self) -> Message:
        """Return its next message."""
        return self._crossing.receive_blocking()

    def send(self, messages: list[Message]) -> bool:
        """Send it messages; return `False` if it goes on and the client has gone."""
        crossing = self._crossing
        if messages[0].get("more_body"):  # as above
            crossing.listen()
            if crossing.hung_up:
                return False
        crossing.send_blocking(messages)
        return True


def _nobody_waits() -> None: ...
