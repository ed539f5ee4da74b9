"""
Pool something else: TCP connections that have a session, can break and must be reset.

What it shows: `Pool` lends whatever a factory makes. A small line server in this process stands
for a database: it remembers a name for each connection. Twenty tasks share three connections.
`reset` makes the server forget the name, so nobody reads that of the task before; `check` finds
the connections that the server has closed meanwhile, and the pool replaces them.

Install:  pip install sandboxpool
Run:      python examples/pool_of_connections.py

You see:

    20 tasks, 3 connections, peak in use: 3
    tasks that met a name that was left behind: 0
    after the server closed them all, retired as unhealthy: 3
    and the answer is still: PONG
"""

from __future__ import annotations

import anyio
from anyio.abc import Listener, SocketAttribute, SocketStream
from anyio.streams.buffered import BufferedByteReceiveStream

from sandboxpool import Pool


class Connection:
    """A connection to the line server."""

    def __init__(self, stream: SocketStream) -> None:
        self._stream = stream
        self._lines = BufferedByteReceiveStream(stream)

    async def ask(self, line: str) -> str:
        await self._stream.send(f"{line}\n".encode())
        return (await self._lines.receive_until(b"\n", 100)).decode()

    async def aclose(self) -> None:
        await self._stream.aclose()


class Connections:
    """Makes, resets, checks and ends connections; the pool calls this in tasks of its own."""

    def __init__(self, port: int) -> None:
        self._port = port

    async def create(self) -> Connection:
        return Connection(await anyio.connect_tcp("127.0.0.1", self._port))

    async def reset(self, connection: Connection, /) -> None:
        await connection.ask("FORGET")

    async def destroy(self, connection: Connection, /) -> None:
        await connection.aclose()

    async def check(self, connection: Connection, /) -> bool:
        try:
            return await connection.ask("PING") == "PONG"
        except (anyio.IncompleteRead, anyio.BrokenResourceError):
            return False


class LineServer:
    """Knows NAME <name>, WHO, FORGET and PING; remembers one name for each connection."""

    def __init__(self) -> None:
        self.streams: set[SocketStream] = set()

    async def serve(self, listener: Listener[SocketStream]) -> None:
        async with listener:
            await listener.serve(self.handle)

    async def handle(self, stream: SocketStream) -> None:
        name = "nobody"
        lines = BufferedByteReceiveStream(stream)
        self.streams.add(stream)
        async with stream:
            while True:
                try:
                    line = (await lines.receive_until(b"\n", 100)).decode()
                except (anyio.IncompleteRead, anyio.ClosedResourceError, anyio.BrokenResourceError):
                    return
                verb, _, rest = line.partition(" ")
                if verb == "NAME":
                    name = rest
                elif verb == "FORGET":
                    name = "nobody"
                await stream.send(b"PONG\n" if verb == "PING" else f"{name}\n".encode())

    async def hang_up(self) -> None:
        """Close every connection, as a database does that restarts."""
        for stream in self.streams:
            await stream.aclose()
        self.streams.clear()


async def main() -> None:
    server = LineServer()
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1")
    port = int(listener.extra(SocketAttribute.local_port))
    left_behind = 0

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(server.serve, listener)
        # check_after=0: each idle connection is checked before it is lent.
        async with Pool(Connections(port), max_size=3, check_after=0, name="lines") as pool:

            async def work(number: int) -> None:
                nonlocal left_behind
                async with pool.lease(timeout=10) as connection:
                    left_behind += await connection.ask("WHO") != "nobody"
                    await connection.ask(f"NAME task-{number}")
                    await anyio.sleep(0.01)
                    assert await connection.ask("WHO") == f"task-{number}"

            async with anyio.create_task_group() as workers:
                for number in range(20):
                    workers.start_soon(work, number)
            figures = pool.statistics()
            print(f"20 tasks, {figures.size} connections, peak in use: {figures.peak_in_use}")
            print(f"tasks that met a name that was left behind: {left_behind}")

            while pool.statistics().idle < 3:  # noqa: ASYNC110  # the last resets are on their way
                await anyio.sleep(0.01)
            await server.hang_up()
            async with pool.lease(timeout=10) as connection:
                answer = await connection.ask("PING")
            retired = pool.statistics().retired.get("unhealthy", 0)
            print(f"after the server closed them all, retired as unhealthy: {retired}")
            print(f"and the answer is still: {answer}")
        tasks.cancel_scope.cancel()


if __name__ == "__main__":
    anyio.run(main)
