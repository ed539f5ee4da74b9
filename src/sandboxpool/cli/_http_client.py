"""A small HTTP client on asyncio streams, so that the demo needs no further package."""

from __future__ import annotations

import asyncio
from types import TracebackType

from typing_extensions import Self


class Connection:
    """One connection that is kept alive, for GET requests whose answers tell their length.

    Args:
        port: The port on the loopback interface.
    """

    def __init__(self, port: int) -> None:
        self._port = port
        self._reader: asyncio.StreamReader
        self._writer: asyncio.StreamWriter

    async def __aenter__(self) -> Self:
        self._reader, self._writer = await asyncio.open_connection("127.0.0.1", self._port)
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._writer.close()
        try:
            await self._writer.wait_closed()
        except ConnectionError:
            pass

    async def get(self, target: str) -> tuple[int, bytes]:
        """Return the status and the body of the answer.

        Raises:
            ConnectionError: The server ended the connection before it had answered.
        """
        self._writer.write(f"GET {target} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        try:
            head = await self._reader.readuntil(b"\r\n\r\n")
            status, *lines = head.decode("latin-1").split("\r\n")
            headers = dict(line.lower().split(": ", 1) for line in lines if ": " in line)
            body = await self._reader.readexactly(int(headers.get("content-length", "0")))
        except asyncio.IncompleteReadError as error:
            raise ConnectionError(f"the server ended the connection at GET {target}") from error
        return int(status.split()[1]), body
