"""Servers as processes: each on a port of its own, with its log in a file, ended in any case."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from .processes import processor_time, resident

ROOT = Path(__file__).parent.parent
PORT = "{port}"
"""Stands for the port in the arguments of a server."""

_STARTING = 60.0  # seconds, on a busy machine
_BAD = re.compile(r"ERROR|WARNING|CRITICAL|Traceback|Exception|sandboxpool:")
_ADVICE = "Configuration allows spawning up to"  # granian's, for many threads


class ServerError(Exception):
    """A server did not come up."""


@dataclass
class Server:
    """A server, with all processes that it has started.

    Attributes:
        name: What it is called.
        process: The process that was started.
        port: Where it listens.
        log: What it has written so far, in a file that is there as long as it runs.
        killed: Whether it did not end by itself.
    """

    name: str
    process: subprocess.Popen[bytes]
    port: int
    log: Path
    killed: bool = False
    _said: str | None = None

    def get(self, path: str, timeout: float = 30) -> bytes:
        url = f"http://127.0.0.1:{self.port}{path}"
        with urllib.request.urlopen(url, timeout=timeout) as answer:
            return bytes(answer.read())

    @property
    def cpu(self) -> float:
        """Seconds of processor time that it has used."""
        return processor_time(self.process.pid)

    @property
    def memory(self) -> int:
        """Bytes that it holds in memory."""
        return resident(self.process.pid)

    @property
    def said(self) -> str:
        """All that it has logged, also after its end."""
        return self.log.read_text(errors="replace") if self._said is None else self._said

    @property
    def complaints(self) -> list[str]:
        lines = self.said.splitlines()
        return [line for line in lines if _BAD.search(line) and _ADVICE not in line]

    @property
    def stalls(self) -> int:
        """How often the log says that the loop was blocked."""
        return self.said.count("the event loop has been blocked")


def uvicorn(app: str, *options: str) -> tuple[str, ...]:
    """Return the command that serves an app with one process of uvicorn."""
    return (
        *(sys.executable, "-m", "uvicorn", app, "--port", PORT),
        *("--no-access-log", "--backlog", "4096", *options),
    )


@contextmanager
def serving(
    name: str,
    command: Sequence[str],
    *,
    environment: Mapping[str, str] | None = None,
    ready: str = "/hello",
    stopping: float = 10.0,
) -> Iterator[Server]:
    """Run a server, from when it answers on.

    Args:
        name: What to call it.
        command: The program and its arguments, `PORT` where the port belongs.
        environment: Variables to set for it.
        ready: The path at which it answers when it is up.
        stopping: Seconds that it gets to end by itself.

    Raises:
        ServerError: It does not answer; the message has the end of its log.
    """
    port = _free_port()
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [argument.replace(PORT, str(port)) for argument in command],
                cwd=ROOT,
                env={**os.environ, **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # A group of its own, so that none of its workers is left behind.
                start_new_session=True,
            )
        server = Server(name, process, port, log)
        try:
            _wait(server, ready)
            yield server
        finally:
            server.killed = not _end(process, stopping)
            server._said = server.said


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait(server: Server, path: str) -> None:
    end = time.monotonic() + _STARTING
    while time.monotonic() < end and server.process.poll() is None:
        try:
            server.get(path)
        except OSError:
            time.sleep(0.05)
        else:
            return
    last = "\n".join(server.said.splitlines()[-10:])
    how = "does not answer" if server.process.poll() is None else "ended while it started"
    raise ServerError(f"{server.name} {how}:\n{last}")


def _end(process: subprocess.Popen[bytes], seconds: float) -> bool:
    """End a server and whatever it has started; return whether it ended by itself in time."""
    try:
        process.terminate()
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        return False
    finally:
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            pass
        process.wait()
    return True
