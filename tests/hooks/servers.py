"""Real servers on the loopback interface, in processes of their own, which take their time.

Those of databases come with the system; a test that needs one is skipped where it is missing. An
HTTP and an SMTP server are here: `python -m tests.hooks.servers http` says its port and serves.
"""

from __future__ import annotations

import asyncio
import os
import pwd
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import pytest
import trustme

ROOT = Path(__file__).parent.parent.parent
HOST = "127.0.0.1"
PATIENCE = 30.0

# Some clients leave it to the garbage collector to close what an exception has interrupted, and it
# may find the socket before the file that would close it.
UNCLOSED = pytest.mark.filterwarnings("ignore:unclosed <socket:ResourceWarning")


class Fleet:
    """
    The servers of a test session, each started when it is first asked for.

    Attributes:
        authority: The file with the certificate of who issues that of the HTTPS server.
    """

    def __init__(self, directory: Path, stack: ExitStack) -> None:
        self.authority = directory / "authority"
        self._directory = directory
        self._stack = stack
        self._ports: dict[Any, int] = {}

    def __call__(self, name: str, *arguments: Any) -> int:
        """Return the port of a server: http, https, smtp, redis, postgres or mariadb."""
        key = name, arguments
        if key not in self._ports:
            self._ports[key] = self._stack.enter_context(self._start(name, *arguments))
        return self._ports[key]

    def _start(self, name: str, *arguments: Any) -> AbstractContextManager[int]:
        if name == "https":
            authority = trustme.CA()
            authority.cert_pem.write_to_path(str(self.authority))
            certificate, key = str(self._directory / "certificate"), str(self._directory / "key")
            issued = authority.issue_cert("localhost")
            issued.cert_chain_pems[0].write_to_path(certificate)
            issued.private_key_pem.write_to_path(key)
            return ours("http", certificate, key)
        if name in ("http", "smtp"):
            return ours(name, *map(str, arguments))
        start = {"redis": redis, "postgres": postgres, "mariadb": mariadb}[name]
        return start()


@pytest.fixture(scope="session")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Start servers as they are needed, and stop them in the end."""
    with ExitStack() as stack:
        yield Fleet(tmp_path_factory.mktemp("servers"), stack)


# --- databases ----------------------------------------------------------------------------------


@contextmanager
def redis() -> Iterator[int]:
    """Run a Redis that keeps nothing; yields its port."""
    program = _find("redis-server", package="redis-server")
    port = free_port()
    command = [program, "--bind", HOST, "--port", str(port), "--save", ""]
    with _running(command, port):
        yield port


@contextmanager
def postgres() -> Iterator[int]:
    """Run a PostgreSQL that trusts everybody; yields its port."""
    program = _find("postgres", "/usr/lib/postgresql/*/bin", package="postgresql")
    with _directory("postgres") as (directory, user):  # it refuses to run as root
        initdb = Path(program).resolve().with_name("initdb")
        create = [str(initdb), "--auth=trust", "--username=postgres", "--no-sync", directory]
        subprocess.run(create, check=True, stdout=subprocess.DEVNULL, **user)
        port = free_port()
        options = {
            "listen_addresses": HOST,
            "port": port,
            "unix_socket_directories": "",
            "fsync": "off",
            "max_connections": 300,
        }
        settings = [part for name, value in options.items() for part in ("-c", f"{name}={value}")]
        # SIGINT: at once. SIGTERM would wait until the last client has gone.
        command = [program, "-D", directory, *settings]
        with _running(command, port, stop=signal.SIGINT, **user):
            # It accepts connections before it is ready to serve them.
            check = Path(program).resolve().with_name("pg_isready")
            _until(
                lambda: subprocess.run([check, "-q", "-h", HOST, "-p", str(port)]).returncode == 0
            )
            yield port


@contextmanager
def mariadb() -> Iterator[int]:
    """Run a MariaDB that trusts everybody; yields its port."""
    program = _find("mariadbd", "/usr/sbin", package="mariadb-server")
    install = _find("mariadb-install-db", package="mariadb-server")
    with _directory("mysql") as (directory, user):
        common = ["--no-defaults", f"--datadir={directory}"]
        subprocess.run([install, *common], check=True, stdout=subprocess.DEVNULL, **user)
        port = free_port()
        options = [
            f"--bind-address={HOST}",
            f"--port={port}",
            f"--socket={directory}/socket",
            "--skip-grant-tables",
            "--skip-networking=0",
            "--max-connections=300",
        ]
        with _running([program, *common, *options], port, **user):
            yield port


def _find(program: str, *places: str, package: str) -> str:
    """Return the path of a program, the newest if there are several, or skip the test."""
    found = shutil.which(program)
    if found is not None:
        return found
    for place in places:
        paths = sorted(Path("/").glob(f"{place.lstrip('/')}/{program}"))
        if paths:
            return str(paths[-1])
    pytest.skip(f"{program} is missing: it comes with the Debian package {package}")


@contextmanager
def _directory(owner: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Make a directory for data, and the options to run a process as its owner."""
    with tempfile.TemporaryDirectory(prefix=f"{owner}-") as directory:
        if os.getuid() != 0:
            yield directory, {}
            return
        user = pwd.getpwnam(owner)
        os.chown(directory, user.pw_uid, user.pw_gid)
        ids = {"user": user.pw_uid, "group": user.pw_gid, "extra_groups": ()}
        yield directory, {**ids, "cwd": directory}


def free_port() -> int:
    """Return a port that nobody uses now."""
    with socket.socket() as sock:
        sock.bind((HOST, 0))
        return int(sock.getsockname()[1])


@contextmanager
def _running(
    command: list[str], port: int, *, stop: int = signal.SIGTERM, **options: Any
) -> Iterator[None]:
    """Run a server as long as the block lasts, which begins when it accepts connections."""
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **options
    )

    def accepts() -> bool:
        assert process.poll() is None, f"{command} ended with {process.returncode}"
        with socket.socket() as sock:
            return sock.connect_ex((HOST, port)) == 0

    try:
        _until(accepts)
        yield
    finally:
        process.send_signal(stop)
        process.wait(PATIENCE)


def _until(happened: Callable[[], bool]) -> None:
    deadline = monotonic() + PATIENCE
    while not happened():
        assert monotonic() < deadline, "the server does not come up"
        sleep(0.02)


# --- our own ------------------------------------------------------------------------------------


@contextmanager
def ours(*arguments: str) -> Iterator[int]:
    """Run one of the servers below; yields its port."""
    process = subprocess.Popen(
        [sys.executable, "-m", __name__, *arguments], stdout=subprocess.PIPE, cwd=ROOT, text=True
    )
    with process:
        try:
            assert process.stdout is not None
            yield int(process.stdout.readline())
        finally:
            process.terminate()


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answer `/wait/0.5` after half a second; `/half` breaks off in the middle of the answer."""
    if scope["type"] != "http":
        return
    _, what, *rest = scope["path"].split("/")
    headers = [(b"content-length", b"100" if what == "half" else b"5")]
    if what == "wait":
        await asyncio.sleep(float(rest[0]))
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"hello", "more_body": what == "half"})


def serve_http(sock: socket.socket, *files: str) -> None:
    """Serve `app`, with TLS if there are files with a certificate and its key."""
    import uvicorn

    certificate, key = files or (None, None)
    config = uvicorn.Config(
        app,
        log_level="critical",
        ssl_certfile=certificate,
        ssl_keyfile=key,
        timeout_graceful_shutdown=1,
        backlog=1000,
    )
    uvicorn.Server(config).run(sockets=[sock])


async def smtp(delay: float, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Take a mail, and think about it for a while."""
    answers = {b"DATA": b"354 go on", b"QUIT": b"221 bye"}
    writer.write(b"220 ready\r\n")
    while line := await reader.readline():
        verb = line[:4].strip().upper()
        writer.write(answers.get(verb, b"250 fine") + b"\r\n")
        if verb == b"DATA":
            await reader.readuntil(b"\r\n.\r\n")
            await asyncio.sleep(delay)
            writer.write(b"250 delivered\r\n")
        elif verb == b"QUIT":
            break
    writer.close()


async def serve_smtp(sock: socket.socket, delay: str) -> None:
    """Serve `smtp`."""
    server = await asyncio.start_server(partial(smtp, float(delay)), sock=sock, backlog=1000)
    await server.serve_forever()


def main(kind: str, *arguments: str) -> None:
    """Say the port, and serve."""
    with socket.create_server((HOST, 0), backlog=1000) as sock:
        print(sock.getsockname()[1], flush=True)
        if kind == "http":
            serve_http(sock, *arguments)
        else:
            asyncio.run(serve_smtp(sock, *arguments))


if __name__ == "__main__":
    main(*sys.argv[1:])
