"""Sockets in cooperative requests."""

from __future__ import annotations

import array
import errno
import os
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import anyio
import pytest

from sandboxpool import OptionError, hooks
from sandboxpool.hooks import _socket

from .request import alone, at_once
from .waiting import until_blocked

HOOKS = ("sleep", "socket", "dns")

pytestmark = [pytest.mark.usefixtures("cooperative"), pytest.mark.backend_with_uvloop]

_originals = {name: getattr(socket.socket, name) for name in ("recv", "connect", "accept")}

# More than the buffers of any socket hold.
LARGE = bytes(range(256)) * 20_000


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two sockets that are connected."""
    one, other = socket.socketpair()
    with one, other:
        yield one, other


@pytest.fixture
def tcp() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two sockets that are connected by TCP."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
    with one, other:
        yield one, other


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    """A socket that listens."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield listener


def failure(call: Callable[[], Any]) -> Exception:
    """Return what a call raises."""
    with pytest.raises(Exception) as caught:  # noqa: PT011
        call()
    return caught.value


# --- every call that waits ----------------------------------------------------------------------

RECEIVING: dict[str, Callable[[socket.socket], bytes]] = {
    "recv": lambda sock: sock.recv(100),
    "recv_into": lambda sock: _into(sock.recv_into),
    "recvfrom": lambda sock: sock.recvfrom(100)[0],
    "recvfrom_into": lambda sock: _into(sock.recvfrom_into),
    "recvmsg": lambda sock: sock.recvmsg(100)[0],
    "recvmsg_into": lambda sock: _into(lambda buffer: sock.recvmsg_into(iter([buffer]))),
    "readline": lambda sock: sock.makefile("rb").readline(),
}

SENDING: dict[str, Callable[[socket.socket], Any]] = {
    "send": lambda sock: sock.send(LARGE),
    "sendall": lambda sock: sock.sendall(LARGE),
    "sendall of an array": lambda sock: sock.sendall(array.array("I", LARGE)),
    "sendmsg": lambda sock: sock.sendmsg(iter([LARGE[:10], LARGE[10:]])),
    "write": lambda sock: sock.makefile("wb").write(LARGE),
}


def _into(receive: Callable[[bytearray], Any]) -> bytes:
    buffer = bytearray(100)
    count = receive(buffer)
    return bytes(buffer[: count if isinstance(count, int) else count[0]])


def _read_all(sock: socket.socket) -> bytes:
    parts = []
    while part := sock.recv(65536):
        parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize("timeout", [None, 20.0])
@pytest.mark.parametrize("method", RECEIVING)
async def test_receiving(pair: Any, method: str, timeout: float | None) -> None:
    """A request that receives waits for what another one sends."""
    one, other = pair
    one.settimeout(timeout)

    def send() -> None:
        until_blocked(one)
        other.sendall(b"line\n")

    received, _ = await at_once(lambda: RECEIVING[method](one), send)
    assert received == b"line\n"
    assert one.gettimeout() == timeout


@pytest.mark.parametrize("timeout", [None, 20.0])
@pytest.mark.parametrize("method", SENDING)
async def test_sending(tcp: Any, method: str, timeout: float | None) -> None:
    """A request that sends more than there is room for waits for one that receives."""
    one, other = tcp
    one.settimeout(timeout)

    def send() -> Any:
        sent = SENDING[method](one)
        one.close()
        return sent

    def receive() -> bytes:
        if timeout is None or method in ("sendall", "sendall of an array"):
            until_blocked(one)  # the others may return when they have sent a part
        return _read_all(other)

    sent, received = await at_once(send, receive)
    if method == "sendall of an array":
        assert received == array.array("I", LARGE).tobytes()
    elif timeout is None or method in ("sendall", "write"):
        # Without a timeout the kernel, too, does not return before all of it is on its way.
        assert received == LARGE
        assert sent in (None, len(LARGE))
    else:
        assert received == LARGE[:sent]


@pytest.mark.parametrize("timeout", [None, 20.0])
async def test_connecting(listener: socket.socket, timeout: float | None) -> None:
    """Accepting waits for a connection; what is accepted and what has connected can talk."""
    listener.settimeout(timeout)

    def serve() -> str:
        connection, address = listener.accept()
        with connection:
            connection.sendall(connection.recv(100).upper())
        return str(address[0])

    def ask() -> bytes:
        until_blocked(listener)
        with socket.create_connection(listener.getsockname(), timeout) as sock:
            assert sock.gettimeout() == timeout
            sock.sendall(b"hello")
            return sock.recv(100)

    assert await at_once(serve, ask) == ["127.0.0.1", b"HELLO"]


async def test_connecting_by_name(listener: socket.socket) -> None:
    """A name is looked up without blocking the loop, also where C code would do it by itself."""
    port = listener.getsockname()[1]

    def connect() -> Any:
        with socket.socket() as sock:
            sock.connect(("localhost", port))
            return sock.getpeername()

    def send() -> Any:
        with (
            socket.socket(type=socket.SOCK_DGRAM) as server,
            socket.socket(type=socket.SOCK_DGRAM) as client,
        ):
            server.bind(("127.0.0.1", 0))
            client.sendto(b"hello", ("localhost", server.getsockname()[1]))
            client.sendto(b"hello", 0, ("localhost", server.getsockname()[1]))
            client.sendmsg([b"hello"], [], 0, ("localhost", server.getsockname()[1]))
            return [server.recv(100) for _ in range(3)]

    assert await at_once(connect, send) == [("127.0.0.1", port), [b"hello"] * 3]

    def fail() -> Any:
        with socket.socket() as sock:
            return type(failure(lambda: sock.connect(("no.invalid", 1))))

    assert await alone(fail) is socket.gaierror


async def test_datagrams() -> None:
    """A datagram and the address of its sender arrive as they were sent."""
    with (
        socket.socket(type=socket.SOCK_DGRAM) as one,
        socket.socket(type=socket.SOCK_DGRAM) as other,
    ):
        one.bind(("127.0.0.1", 0))
        other.bind(("127.0.0.1", 0))

        def send() -> None:
            until_blocked(one)
            assert other.sendto(b"first", one.getsockname()) == 5
            other.sendto(b"second", 0, one.getsockname())

        received, _ = await at_once(lambda: (one.recvfrom(100), one.recvfrom(3)), send)
        assert received == ((b"first", other.getsockname()), (b"sec", other.getsockname()))


async def test_file_descriptors(pair: Any) -> None:
    """A file descriptor can be sent, while the receiver waits."""
    one, other = pair

    def receive() -> bool:
        _, (fd,), _, _ = socket.recv_fds(one, 10, 1)
        with open(fd, "rb") as file:
            return os.path.sameopenfile(file.fileno(), 0)

    def send() -> None:
        until_blocked(one)
        socket.send_fds(other, [b"x"], [0])

    assert (await at_once(receive, send))[0]


async def test_sending_a_file(tcp: Any, tmp_path: Path) -> None:
    """A file is sent to the end, or as much of it as was asked for."""
    one, other = tcp
    path = tmp_path / "large"
    path.write_bytes(LARGE)

    def send() -> int:
        with path.open("rb") as file:
            sent: int = one.sendfile(file, 10) + one.sendfile(file, 5, 20)
            assert file.tell() == 25
        one.close()
        return sent

    def receive() -> bytes:
        until_blocked(one)
        return _read_all(other)

    sent, received = await at_once(send, receive)
    assert received == LARGE[10:] + LARGE[5:25]
    assert sent == len(received)


@pytest.mark.parametrize("into", [False, True])
async def test_waiting_for_all(pair: Any, into: bool) -> None:
    """With MSG_WAITALL a request waits for all the data, or for the end."""
    one, other = pair

    def receive() -> bytes:
        if into:
            buffer = bytearray(6)
            return bytes(buffer[: one.recv_into(buffer, flags=socket.MSG_WAITALL)])
        received: bytes = one.recv(6, socket.MSG_WAITALL)
        return received

    def send() -> None:
        for part in (b"ab", b"cd", b"ef", b"gh"):
            until_blocked(one)
            other.sendall(part)
        until_blocked(one)
        other.close()

    received, _ = await at_once(lambda: (receive(), receive()), send)
    assert received == (b"abcdef", b"gh")


# --- what goes wrong ----------------------------------------------------------------------------


async def test_refused() -> None:
    """A refused connection raises what it raises without hooks."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        address = unused.getsockname()

        def connect() -> Any:
            with socket.socket() as one, socket.socket() as other:
                error = failure(lambda: one.connect(address))
                return type(error), str(error), other.connect_ex(address)

        assert await alone(connect) == connect()
        assert connect()[0] is ConnectionRefusedError


async def test_connect_timeout() -> None:
    """A connection that nobody accepts runs into the timeout of the socket."""
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        address = listener.getsockname()
        with socket.create_connection(address):  # the queue is full now

            def connect() -> Any:
                with socket.socket() as one, socket.socket() as other:
                    one.settimeout(0.05)
                    other.settimeout(0.05)
                    error = failure(lambda: one.connect(address))
                    return type(error), error.args, other.connect_ex(address)

            assert await alone(connect) == connect() == (TimeoutError, ("timed out",), errno.EAGAIN)


async def test_full_queue_of_a_unix_socket(tmp_path: Path) -> None:
    """Connecting to a Unix socket waits for room in its queue; with a timeout it fails at once."""
    path = str(tmp_path / "socket")
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(path)
        listener.listen(0)
        first.connect(path)
        tried = []

        def connect() -> bytes:
            with socket.socket(socket.AF_UNIX) as sock:
                sock.settimeout(5)
                assert sock.connect_ex(path) == errno.EAGAIN
                sock.settimeout(None)
                tried.append(True)
                sock.connect(path)
                return sock.recv(10)

        def accept() -> None:
            while not tried:
                time.sleep(0.001)
            listener.accept()[0].close()
            second, _ = listener.accept()
            with second:
                second.sendall(b"hello")

        assert (await at_once(connect, accept))[0] == b"hello"


@pytest.mark.parametrize("method", [*RECEIVING, "accept"])
async def test_timeout(pair: Any, listener: socket.socket, method: str) -> None:
    """The timeout of a socket raises what it raises without hooks."""
    sock = listener if method == "accept" else pair[0]
    sock.settimeout(0.05)
    call = RECEIVING.get(method, lambda sock: sock.accept())

    def receive() -> Any:
        before = monotonic()
        error = failure(lambda: call(sock))
        assert monotonic() - before > 0.04
        return type(error), error.args

    assert await alone(receive) == receive() == (TimeoutError, ("timed out",))


async def test_one_timeout_for_all(tcp: Any) -> None:
    """The timeout of `sendall()` counts for all of it, also if the other side goes on reading."""
    one, other = tcp
    one.settimeout(0.2)
    over = threading.Event()

    def send() -> Exception:
        try:
            return failure(lambda: one.sendall(LARGE * 50))
        finally:
            over.set()

    def receive() -> None:
        while not over.is_set():
            other.recv(1000)
            time.sleep(0.01)

    error, _ = await at_once(send, receive)
    assert (type(error), error.args) == (TimeoutError, ("timed out",))


async def test_not_blocking(pair: Any, listener: socket.socket) -> None:
    """What must not block raises at once, as without hooks."""
    one, _ = pair

    def receive() -> Any:
        one.setblocking(True)
        errors = [type(failure(lambda: one.recv(1, socket.MSG_DONTWAIT)))]
        one.setblocking(False)
        listener.setblocking(False)
        errors += [
            type(failure(partial(call, one)))
            for method, call in RECEIVING.items()
            if method != "readline"
        ]
        errors.append(type(failure(listener.accept)))
        with socket.create_server(("127.0.0.1", 0)) as other, socket.socket() as sock:
            sock.setblocking(False)
            assert sock.connect_ex(other.getsockname()) == errno.EINPROGRESS
        with pytest.raises(ValueError, match="non-blocking"), open(__file__, "rb") as file:
            one.sendfile(file)
        return errors

    assert await alone(receive) == receive()


async def test_wrong_arguments(pair: Any) -> None:
    """Wrong arguments are refused as without hooks."""
    one, _ = pair

    def errors() -> Any:
        calls: list[Callable[[], Any]] = [
            lambda: one.recv("many"),
            lambda: one.recv(-1),
            lambda: one.send("text"),
            lambda: one.sendall("text"),
            lambda: one.sendto(b""),
            lambda: one.sendto(b"", None, None),
            lambda: one.recv_into(b"read-only"),
            lambda: one.connect(5),
        ]
        return [type(failure(call)) for call in calls]

    assert await alone(errors) == errors()


async def test_half_closed(tcp: Any) -> None:
    """The end of one direction is told, and the other direction still works."""
    one, other = tcp

    def receive() -> bytes:
        received: bytes = one.recv(10)
        one.sendall(b"thanks")
        return received

    def close() -> bytes:
        until_blocked(one)
        other.shutdown(socket.SHUT_WR)
        received: bytes = other.recv(10)
        return received

    assert await at_once(receive, close) == [b"", b"thanks"]


async def test_reset(tcp: Any) -> None:
    """A connection that is torn down raises what it raises without hooks."""
    one, other = tcp

    def receive() -> Any:
        errors = [failure(lambda: one.recv(10)), failure(lambda: one.sendall(b"x"))]
        return [(type(error), error.args[0]) for error in errors]

    def tear_down() -> None:
        until_blocked(one)
        other.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        other.close()

    errors, _ = await at_once(receive, tear_down)
    assert errors == [(ConnectionResetError, errno.ECONNRESET), (BrokenPipeError, errno.EPIPE)]


# --- installing ---------------------------------------------------------------------------------


def test_uninstalled() -> None:
    """After `uninstall()` the originals are back, with which C code waits."""
    assert all(vars(socket.socket).get(name) is not None for name in ("recv", "connect", "detach"))
    hooks.uninstall("socket")
    assert {name: getattr(socket.socket, name) for name in _originals} == _originals
    assert "recv" not in vars(socket.socket)


async def test_uninstalled_while_somebody_waits(pair: Any) -> None:
    """A call that waits while the hooks are taken out goes on to its end."""
    one, other = pair

    def send() -> None:
        until_blocked(one)
        hooks.uninstall("socket")
        other.sendall(b"hello")

    assert (await at_once(lambda: one.recv(10), send))[0] == b"hello"


@pytest.mark.parametrize("run_in", ["cooperative", "loop"])
async def test_control(pair: Any, run_in: str) -> None:
    """In a request that is not cooperative the original blocks, and nobody comes to send."""
    one, other = pair
    one.settimeout(0.2)
    begun = anyio.Event()

    async def receive() -> bytes:
        begun.set()
        try:
            return bytes(one.recv(10))
        except TimeoutError:
            return b""

    async def send() -> None:
        await begun.wait()
        other.sendall(b"hello")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(send)
        received = await alone(receive, run_in=run_in)
    assert received == (b"" if run_in == "loop" else b"hello")


def test_platform_without_the_flag(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a single call cannot be told not to block, the hook says that it does not work."""
    monkeypatch.setattr(_socket, "_AT_ONCE", 0)
    with pytest.raises(OptionError, match=r"MSG_DONTWAIT.*without 'socket'.*run_in='thread'"):
        list(_socket.patches())
