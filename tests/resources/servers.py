"""A PostgreSQL that can be killed and started again, and a line to a server that can be cut."""

from __future__ import annotations

import signal
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import anyio
import anyio.abc

from tests.hooks.servers import HOST, _directory, _find, _until, free_port

PATIENCE = 30.0


class Restartable:
    """A PostgreSQL of one's own."""

    def __init__(self, program: str, directory: str, user: dict[str, Any]) -> None:
        self.port = free_port()
        self.url = f"postgresql://postgres@{HOST}:{self.port}/postgres"
        self._program = program
        self._directory = directory
        self._user = user
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it, and wait until it serves."""
        options = {
            "listen_addresses": HOST,
            "port": self.port,
            "unix_socket_directories": "",
            "fsync": "off",
        }
        settings = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        self._process = subprocess.Popen(
            [self._program, "-D", self._directory, *settings],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            **self._user,
        )
        ready = Path(self._program).resolve().with_name("pg_isready")
        command = [str(ready), "-q", "-h", HOST, "-p", str(self.port)]
        _until(lambda: subprocess.run(command).returncode == 0)

    def kill(self) -> None:
        """End it at once, as a crash would: its sessions are cut."""
        assert self._process is not None
        self._process.send_signal(signal.SIGQUIT)
        self._process.wait(PATIENCE)


@contextmanager
def restartable() -> Iterator[Restartable]:
    """Run a PostgreSQL that a test may kill."""
    program = _find("postgres", "/usr/lib/postgresql/*/bin", package="postgresql")
    with _directory("postgres") as (directory, user):
        initdb = Path(program).resolve().with_name("initdb")
        create = [str(initdb), "--auth=trust", "--username=postgres", "--no-sync", directory]
        subprocess.run(create, check=True, stdout=subprocess.DEVNULL, **user)
        server = Restartable(program, directory, user)
        server.start()
        try:
            yield server
        finally:
            server.kill()


class Line:
    """
    A TCP line to a server, in the test's own loop.

    Attributes:
        port: Where to connect to.
        open: The connections that go through it.
    """

    def __init__(self, target: int) -> None:
        self._target = target
        self.port = 0
        self.open: set[anyio.CancelScope] = set()
        self._moving = anyio.Event()
        self._moving.set()

    def stall(self) -> None:
        """Pass on nothing more, and close nothing."""
        self._moving = anyio.Event()

    def go_on(self) -> None:
        """Pass on again."""
        self._moving.set()

    def cut(self) -> None:
        """Close every connection."""
        for scope in tuple(self.open):
            scope.cancel()

    async def serve(self, client: anyio.abc.SocketStream) -> None:
        with anyio.CancelScope() as scope:
            self.open.add(scope)
            try:
                async with (
                    client,
                    await anyio.connect_tcp(HOST, self._target) as server,
                    anyio.create_task_group() as tasks,
                ):

                    async def pass_on(
                        source: anyio.abc.SocketStream, target: anyio.abc.SocketStream
                    ) -> None:
                        try:
                            async for data in source:
                                await self._moving.wait()
                                await target.send(data)
                        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
                            pass
                        tasks.cancel_scope.cancel()

                    tasks.start_soon(pass_on, client, server)
                    tasks.start_soon(pass_on, server, client)
            except OSError:
                pass
            finally:
                self.open.discard(scope)


@asynccontextmanager
async def line_to(port: int) -> AsyncIterator[Line]:
    """Run a line as long as the block lasts."""
    line = Line(port)
    listener = await anyio.create_tcp_listener(local_host=HOST, local_port=0)
    line.port = listener.extra(anyio.abc.SocketAttribute.local_port)
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, line.serve)
        yield line
        tasks.cancel_scope.cancel()
