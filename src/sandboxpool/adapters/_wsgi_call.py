"""One call of a WSGI app: the server's side of PEP 3333."""

from __future__ import annotations

import inspect
import io
import logging
from collections.abc import Callable, Iterable
from typing import Any

from sandboxpool._context import RequestLease
from sandboxpool._types import Message, Scope, WSGIApp

from ._wsgi_client import Client
from ._wsgi_environ import build_environ

logger = logging.getLogger("sandboxpool.wsgi")


class WSGICall:
    """A call of a WSGI app.

    All of it runs where the app does, which may be a thread.

    Args:
        app: The WSGI app.
        name: What errors call it.
        scope: The ASGI scope.

    Attributes:
        lease: That of the request, if it has one.
    """

    def __init__(self, app: WSGIApp, name: str, scope: Scope) -> None:
        self.lease: RequestLease | None = scope.get("sandboxpool.lease")
        self._app = app
        self._name = name
        self._scope = scope
        self._client: Client | None = None  # before it began and after it has ended
        self._more_to_read = True
        self._gone: ConnectionResetError | None = None
        self._status = 0
        self._headers: list[tuple[bytes, bytes]] = []
        self._length: int | None = None  # what the app declared
        self._sent = 0
        self._begun = self._complete = False

    def run(self, client: Client) -> None:
        """Call the app and send what it answers.

        Args:
            client: To whom.

        Raises:
            RuntimeError: The app has not kept to PEP 3333.
            TypeError: Nor has this one.
            BaseException: Whatever the app raises.
        """
        self._client = client
        try:
            self._run()
        except ConnectionResetError as error:
            if error is not self._gone:
                raise
            logger.debug("%s %s: %s", self._scope["method"], self._scope["path"], error)
        finally:
            self._client = None

    def _run(self) -> None:
        body = io.BufferedReader(_Body(self._read))
        blocks = self._app(build_environ(self._scope, body), self.start_response)
        try:
            self._check(blocks)
            if isinstance(blocks, list | tuple) and len(blocks) == 1:
                self._declare_length_of(blocks[0])
            for block in blocks:
                self._check_block(block)
                if block:
                    self._give(block)
                    if self._complete:
                        break
            self._finish()
        finally:
            close = getattr(blocks, "close", None)
            if close is not None:
                close()

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: Any = None
    ) -> Callable[[bytes], None]:
        """Take the status and the headers, as PEP 3333 has it; return its `write()`."""
        if exc_info:
            try:
                if self._begun:
                    raise exc_info[1].with_traceback(exc_info[2])
            finally:
                exc_info = None  # its traceback leads here
        elif self._status:
            raise RuntimeError(
                f"{self._name} called start_response() a second time: a response is replaced "
                "only after an error, with exc_info, and before its body has begun."
            )
        if not isinstance(status, str):
            raise TypeError(
                f"{self._name} gave start_response() the status {status!r}, which must be text "
                'such as "200 OK".'
            )
        code = status[:3]
        if not (code.isascii() and code.isdigit() and len(code) == 3 and status[3:4] in ("", " ")):
            raise ValueError(
                f"{self._name} gave start_response() the status {status!r}: it starts with a "
                'number of three digits, as in "200 OK".'
            )
        self._status = int(code)
        self._headers = []
        self._length = None
        for name, value in headers:
            self._add_header(name, value)
        return self.write

    def write(self, block: bytes, /) -> None:
        """Send a block of the body; for apps that do not return them all."""
        self._reached()
        self._check_block(block)
        self._give(block)

    def _add_header(self, name: object, value: object) -> None:
        if not isinstance(name, str) or not isinstance(value, str):
            raise TypeError(
                f"{self._name} gave start_response() the header {name!r}: {value!r}; both must "
                "be text."
            )
        if "\n" in value or "\r" in value:
            raise ValueError(
                f"{self._name} gave start_response() the header {name!r}: {value!r}, which has "
                "more than one line."
            )
        raw = name.encode("latin-1").lower()
        if raw == b"content-length":
            if self._has_no_body:
                return  # it would announce a body that does not come
            if not (value.isascii() and value.isdigit()):
                raise ValueError(
                    f"{self._name} gave start_response() a Content-Length of {value!r}, which "
                    "must be a number of bytes."
                )
            self._length = int(value)
        self._headers.append((raw, value.encode("latin-1")))

    @property
    def _has_no_body(self) -> bool:
        return self._status < 200 or self._status in (204, 304)

    @property
    def _sends_no_body(self) -> bool:
        return self._has_no_body or self._scope["method"] == "HEAD"

    def _declare_length_of(self, body: object) -> None:
        """Add the length that the app has not told, now that the whole body is known."""
        untold = self._status and not self._begun and self._length is None
        if untold and isinstance(body, bytes) and not self._has_no_body:
            self._length = len(body)
            self._headers.append((b"content-length", str(len(body)).encode()))

    def _give(self, block: bytes) -> None:
        """Hand over a block of the body, the first one with the head of the response."""
        if self._complete:
            return
        messages = [] if self._begun else [self._head()]
        last = False
        if self._sends_no_body:
            block, last = b"", True
        elif self._length is not None:
            left = self._length - self._sent
            if len(block) > left:
                logger.error(
                    "%s sends more than the %d bytes of its Content-Length; the rest is dropped",
                    self._name,
                    self._length,
                )
                block = block[:left]
            last = len(block) == left
        self._sent += len(block)
        messages.append({"type": "http.response.body", "body": block, "more_body": not last})
        self._begun = True
        self._complete = last
        self._transmit(messages)

    def _finish(self) -> None:
        if self._complete:
            return
        messages = []
        if not self._begun:
            if self._scope["method"] != "HEAD":
                self._declare_length_of(b"")
            messages.append(self._head())
        if self._length is not None and self._sent < self._length and not self._sends_no_body:
            raise RuntimeError(
                f"{self._name} declared a Content-Length of {self._length} bytes and sent "
                f"{self._sent}."
            )
        messages.append({"type": "http.response.body", "body": b"", "more_body": False})
        self._begun = self._complete = True
        self._transmit(messages)

    def _head(self) -> Message:
        if not self._status:
            raise RuntimeError(
                f"{self._name} has not called start_response(), which must come before the first "
                "byte of the body and before the end of the response."
            )
        return {
            "type": "http.response.start",
            "status": self._status,
            "headers": self._headers,
        }

    def _check(self, blocks: object) -> None:
        if isinstance(blocks, str | bytes | bytearray) or not isinstance(blocks, Iterable):
            if inspect.iscoroutine(blocks):
                blocks.close()
            raise TypeError(
                f"{self._name} returned {_shown(blocks)}; a WSGI app returns an iterable of "
                "bytes, such as [body]."
            )

    def _check_block(self, block: object) -> None:
        if not isinstance(block, bytes):
            raise TypeError(
                f"{self._name} sends {_shown(block)} as a block of its body; it must be bytes, "
                "so encode text before."
            )

    def _read(self) -> bytes:
        """Return the next part of the body, empty at its end.

        Raises:
            ConnectionResetError: The client has hung up before the end.
        """
        while self._more_to_read:
            message = self._reached().receive()
            if message["type"] == "http.disconnect":
                raise self._hung_up()
            self._more_to_read = message.get("more_body", False)
            part: bytes = message.get("body", b"")
            if part:
                return part
        return b""

    def _transmit(self, messages: list[Message]) -> None:
        """Send messages to the client.

        Raises:
            ConnectionResetError: The client has hung up.
        """
        if not self._reached().send(messages):
            raise self._hung_up()

    def _reached(self) -> Client:
        if self._client is None:
            raise RuntimeError("the request is over: nothing can be read or sent for it any more.")
        return self._client

    def _hung_up(self) -> ConnectionResetError:
        if self._gone is None:
            self._gone = ConnectionResetError("the client has hung up.")
        return self._gone


class _Body(io.RawIOBase):
    """What `wsgi.input` reads from; never more than one part of the body is here."""

    def __init__(self, read: Callable[[], bytes]) -> None:
        self._read_part = read
        self._part = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        part = self._part
        if not part:
            part = memoryview(self._read_part())
        size = min(len(part), len(buffer))
        buffer[:size] = part[:size]
        self._part = part[size:]
        return size


def _shown(value: object) -> str:
    text = repr(value)
    if len(text) > 60:
        text = text[:57] + "..."
    return f"{text} of type {type(value).__name__}"
