"""Real servers as processes on the loopback interface, and what to ask them with."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from time import monotonic, sleep
from typing import Any
from urllib.parse import urlencode

import attrs

ROOT = Path(__file__).parent.parent.parent
PATIENCE = 20.0  # seconds until a test gives up on something that should happen at once


@attrs.frozen
class Server:
    """
    A server, and how to start it.

    Args:
        name: What the tests call it.
        command: What is run, with `{port}` and `{app}`.
        wraps: Whether it is `sandboxpool serve`, which wraps the app by itself.
        lifespan: Whether it sends lifespan events.
        streams_body: Whether the app gets a body while it arrives.
        denial: The status of a websocket that is refused.
        signal_exit: The exit code after SIGTERM.
    """

    name: str
    command: tuple[str, ...]
    wraps: bool = False
    lifespan: bool = True
    streams_body: bool = True
    denial: int = 503

    def start(self, app: str, *extra: str, module: str = "shop") -> RunningServer:
        with socket.socket() as chosen:
            chosen.bind(("127.0.0.1", 0))
            port = chosen.getsockname()[1]
        options: tuple[str, ...] = ()
        if self.wraps:
            app, options = _OPTIONS[app]
        target = f"tests.servers.{module}:{app}"
        command = [part.format(port=port, app=target) for part in self.command]
        if self.wraps:
            # Behind `--` stand the options of the server itself.
            split = command.index("--") if "--" in command else len(command)
            command[split:split] = [*options, *extra]
        else:
            command += extra
        return RunningServer(self, command, port)


# The apps of `shop`, as `sandboxpool serve` is asked for them.
_OPTIONS: dict[str, tuple[str, tuple[str, ...]]] = {
    "wrapped": ("plain", ("--stats", "/stats", "--max-size", "60")),
    "single": ("plain", ("--stats", "/stats", "--max-size", "1", "--max-waiting", "1")),
    "greeted": ("greeted_plain", ()),
    "broken": ("broken_plain", ()),
    "broken_plain": ("broken_plain", ()),
}


class RunningServer:
    """A server that runs; its log is kept."""

    def __init__(self, server: Server, command: list[str], port: int) -> None:
        self.server = server
        self.port = port
        self.lines: list[str] = []
        self._changed = threading.Condition()
        self.process = subprocess.Popen(
            command,
            cwd=ROOT,
            env={**os.environ, "PYTHONUNBUFFERED": "1", "NO_COLOR": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def __enter__(self) -> RunningServer:
        try:
            self._wait_for_port()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        self.stop()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with self._changed:
                self.lines.append(line.rstrip("\n"))
                self._changed.notify_all()

    def _wait_for_port(self) -> None:
        end = monotonic() + PATIENCE
        while monotonic() < end:
            assert self.process.poll() is None, self.log
            try:
                # Some listen before the app has started: an answer is what counts.
                with self.connection() as connection:
                    connection.request("GET", "/pid")
                    connection.getresponse().read()
                    return
            except OSError:
                sleep(0.02)
        raise AssertionError(f"{self.server.name} does not listen:\n{self.log}")

    @property
    def log(self) -> str:
        with self._changed:
            return "\n".join(self.lines)

    def count(self, pattern: str) -> int:
        return len(re.findall(pattern, self.log))

    def wait_for(self, pattern: str, count: int = 1) -> None:
        """Wait until so many lines of the log match."""
        end = monotonic() + PATIENCE
        with self._changed:
            while sum(bool(re.search(pattern, line)) for line in self.lines) < count:
                assert self._changed.wait(end - monotonic()), (
                    f"no {count} x {pattern!r} in:\n" + "\n".join(self.lines)
                )

    def wait_for_end(self) -> int:
        """Wait until the process has ended by itself and all it said is here."""
        code = self.process.wait(PATIENCE)
        self._reader.join(PATIENCE)
        return code

    def terminate(self) -> None:
        self.process.send_signal(signal.SIGTERM)

    def stop(self) -> None:
        if self.process.poll() is None:
            self.terminate()
            try:
                self.process.wait(3)
            except subprocess.TimeoutExpired:
                pass
        try:
            os.killpg(self.process.pid, signal.SIGKILL)  # also workers that were left behind
        except (ProcessLookupError, PermissionError):
            pass
        self.process.wait()
        self._reader.join(PATIENCE)
        assert self.process.stdout is not None
        self.process.stdout.close()

    # --- asking -------------------------------------------------------------------------------

    @contextmanager
    def connection(self) -> Iterator[HTTPConnection]:
        connection = HTTPConnection("127.0.0.1", self.port, timeout=PATIENCE)
        try:
            yield connection
        finally:
            connection.close()

    def get(self, path: str, **query: object) -> Any:
        with self.connection() as connection:
            return ask(connection, path, **query)

    def stats_until(self, wanted: Any) -> dict[str, Any]:
        """Ask for the statistics until they are as wanted."""
        end = monotonic() + PATIENCE
        while True:
            stats: dict[str, Any] = self.get("/stats")
            if wanted(stats):
                return stats
            assert monotonic() < end, stats

    @contextmanager
    def held(self, key: str, size: int = 10) -> Iterator[Upload]:
        """Send a request that holds its sandbox until its body is complete."""
        with self.connection() as connection:
            connection.putrequest("POST", f"/hold?key={key}")
            connection.putheader("Content-Length", str(size))
            connection.endheaders()
            yield Upload(connection, size)


@attrs.define
class Upload:
    """A request whose body is sent bit by bit."""

    connection: HTTPConnection
    left: int

    def send(self, data: bytes) -> None:
        self.left -= len(data)
        self.connection.send(data)

    def finish(self) -> Any:
        """Send the rest; return the answer."""
        self.send(b"x" * self.left)
        return answer(self.connection)

    def hang_up(self) -> None:
        self.connection.close()


def send_get(connection: HTTPConnection, path: str, **query: object) -> None:
    connection.request("GET", f"{path}?{urlencode(query)}" if query else path)


def answer(connection: HTTPConnection) -> Any:
    response = connection.getresponse()
    body = response.read()
    assert response.status == 200, (response.status, body)
    return json.loads(body)


def ask(connection: HTTPConnection, path: str, **query: object) -> Any:
    send_get(connection, path, **query)
    return answer(connection)


_RUN = (sys.executable, "-m")
_UVICORN = (*_RUN, "uvicorn", "{app}", "--port", "{port}", "--no-access-log")
_HYPERCORN = (*_RUN, "hypercorn", "{app}", "--bind", "127.0.0.1:{port}")
_GRANIAN = (*_RUN, "granian", "{app}", "--interface", "asgi", "--port", "{port}")
_SERVE = (*_RUN, "sandboxpool", "serve", "{app}", "--port", "{port}", "--server")

UVICORN_H11 = Server("uvicorn-h11", (*_UVICORN, "--loop", "asyncio", "--http", "h11"))
UVICORN = Server("uvicorn-httptools", (*_UVICORN, "--loop", "asyncio", "--http", "httptools"))
UVICORN_UVLOOP = Server("uvicorn-uvloop", (*_UVICORN, "--loop", "uvloop", "--http", "httptools"))
HYPERCORN = Server("hypercorn-asyncio", _HYPERCORN)
HYPERCORN_TRIO = Server("hypercorn-trio", (*_HYPERCORN, "--worker-class", "trio"))
GRANIAN = Server("granian", _GRANIAN)
# No lifespan, no state, a body is passed on when it is complete, no response for a websocket.
DAPHNE = Server(
    "daphne",
    (*_RUN, "daphne", "{app}", "--port", "{port}"),
    lifespan=False,
    streams_body=False,
    denial=403,
)
SERVE_UVICORN = Server("serve-uvicorn", (*_SERVE, "uvicorn"), wraps=True)
SERVE_HYPERCORN = Server(
    "serve-hypercorn-trio",
    (*_SERVE, "hypercorn", "--", "--worker-class", "trio"),
    wraps=True,
)
SERVE_GRANIAN = Server("serve-granian", (*_SERVE, "granian"), wraps=True)

DIRECT = [
    UVICORN_H11,
    UVICORN,
    UVICORN_UVLOOP,
    HYPERCORN,
    HYPERCORN_TRIO,
    GRANIAN,
    DAPHNE,
]
SERVES = [SERVE_UVICORN, SERVE_HYPERCORN, SERVE_GRANIAN]
SERVERS = [*DIRECT, *SERVES]
