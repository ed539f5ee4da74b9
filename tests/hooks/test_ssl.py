"""TLS sockets in cooperative requests."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest
import trustme

from sandboxpool import hooks
from sandboxpool.hooks import _ssl
from tests.wrap.client import Connection

from .request import alone, at_once, sandboxed
from .waiting import until_blocked, waiting

HOOKS = ("sleep", "socket", "ssl")

pytestmark = [pytest.mark.usefixtures("cooperative"), pytest.mark.backend_with_uvloop]

LARGE = bytes(range(256)) * 20_000


@pytest.fixture(scope="module")
def authority() -> trustme.CA:
    """Who issues the certificates."""
    return trustme.CA()


@pytest.fixture(scope="module")
def server(authority: trustme.CA) -> ssl.SSLContext:
    """What a server needs."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost").configure_cert(context)
    return context


@pytest.fixture(scope="module")
def client(authority: trustme.CA) -> ssl.SSLContext:
    """What a client needs that trusts the server."""
    context = ssl.create_default_context()
    authority.configure_trust(context)
    return context


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two sockets that are connected."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
    with one, other:
        yield one, other


@pytest.fixture
def tls(
    pair: Any, server: ssl.SSLContext, client: ssl.SSLContext
) -> Iterator[tuple[ssl.SSLSocket, ssl.SSLSocket]]:
    """Two TLS sockets that are connected and have done their handshake, without any request."""
    one = client.wrap_socket(pair[0], server_hostname="localhost", do_handshake_on_connect=False)
    other = server.wrap_socket(pair[1], server_side=True, do_handshake_on_connect=False)
    with one, other:
        one.setblocking(False)
        other.setblocking(False)
        over = {one: False, other: False}
        while not all(over.values()):
            for sock in over:
                try:
                    sock.do_handshake()
                    over[sock] = True
                except ssl.SSLWantReadError:
                    pass
        one.setblocking(True)
        other.setblocking(True)
        yield one, other


def failure(call: Callable[[], Any]) -> Exception:
    """Return what a call raises."""
    with pytest.raises(Exception) as caught:  # noqa: PT011
        call()
    return caught.value


# --- handshakes ---------------------------------------------------------------------------------


@pytest.mark.parametrize("timeout", [None, 20.0])
async def test_wrapping_what_is_connected(
    pair: Any, server: ssl.SSLContext, client: ssl.SSLContext, timeout: float | None
) -> None:
    """Two requests do their handshake with each other, inside of `wrap_socket()`."""
    for sock in pair:
        sock.settimeout(timeout)

    def ask() -> Any:
        with client.wrap_socket(pair[0], server_hostname="localhost") as sock:
            assert sock.gettimeout() == timeout
            sock.sendall(b"hello")
            return sock.recv(100), sock.version()

    def answer() -> None:
        with server.wrap_socket(pair[1], server_side=True) as sock:
            assert sock.gettimeout() == timeout
            sock.sendall(sock.recv(100).upper())

    answered, _ = await at_once(ask, answer)
    assert answered == (b"HELLO", "TLSv1.3")


async def test_connecting(server: ssl.SSLContext, client: ssl.SSLContext) -> None:
    """Connecting and accepting do the handshake, too."""
    listener = server.wrap_socket(socket.create_server(("127.0.0.1", 0)), server_side=True)
    with listener:

        def serve() -> None:
            for _ in range(2):
                sock, _ = listener.accept()
                with sock:
                    sock.sendall(sock.recv(100).upper())

        def ask() -> Any:
            until_blocked(listener)
            answers = []
            for connect in ("connect", "connect_ex"):
                with client.wrap_socket(socket.socket(), server_hostname="localhost") as sock:
                    assert not getattr(sock, connect)(listener.getsockname())
                    sock.sendall(b"hello")
                    answers.append(sock.recv(100))
            return answers

        assert (await at_once(serve, ask))[1] == [b"HELLO"] * 2


async def test_handshake_that_blocks(pair: Any, server: Any, client: Any) -> None:
    """A socket that does not block does so for a handshake, if it is asked to."""

    def ask() -> Any:
        sock = client.wrap_socket(
            pair[0], server_hostname="localhost", do_handshake_on_connect=False
        )
        with sock:
            sock.setblocking(False)
            with pytest.raises(ssl.SSLWantReadError):
                sock.do_handshake()
            sock.do_handshake(block=True)
            assert sock.gettimeout() == 0
            return sock.version()

    def answer() -> None:
        until_blocked(pair[0].fileno() if pair[0].fileno() >= 0 else fd)
        server.wrap_socket(pair[1], server_side=True).close()

    fd = pair[0].fileno()
    assert (await at_once(ask, answer))[0] == "TLSv1.3"


@pytest.mark.parametrize("host", ["localhost", "elsewhere"])
async def test_certificates(pair: Any, server: Any, client: Any, host: str) -> None:
    """A certificate that is not trusted, or is another host's, is refused as without hooks."""
    if host == "localhost":
        client = ssl.create_default_context()

    def ask() -> Any:
        error = failure(lambda: client.wrap_socket(pair[0], server_hostname=host))
        assert isinstance(error, ssl.SSLCertVerificationError)
        return error.verify_message

    def answer() -> Any:
        return type(failure(lambda: server.wrap_socket(pair[1], server_side=True).recv(1)))

    message, other = await at_once(ask, answer)
    assert (
        message
        == {
            "localhost": "unable to get local issuer certificate",
            "elsewhere": "Hostname mismatch, certificate is not valid for 'elsewhere'.",
        }[host]
    )
    assert issubclass(other, ssl.SSLError)


# --- reading and writing ------------------------------------------------------------------------

RECEIVING: dict[str, Callable[[ssl.SSLSocket], bytes]] = {
    "recv": lambda sock: sock.recv(100),
    "recv_into": lambda sock: _into(sock.recv_into),
    "read": lambda sock: sock.read(100),
    "read into": lambda sock: _into(lambda buffer: sock.read(100, buffer)),
    "readline": lambda sock: sock.makefile("rb").readline(),
}

SENDING: dict[str, Callable[[ssl.SSLSocket], Any]] = {
    "send": lambda sock: [sock.send(LARGE[n : n + 16000]) for n in range(0, len(LARGE), 16000)],
    "sendall": lambda sock: sock.sendall(LARGE),
    "write": lambda sock: [sock.write(LARGE[n : n + 16000]) for n in range(0, len(LARGE), 16000)],
    "file": lambda sock: sock.makefile("wb").write(LARGE),
}


def _into(receive: Callable[[bytearray], Any]) -> bytes:
    buffer = bytearray(100)
    return bytes(buffer[: receive(buffer)])


@pytest.mark.parametrize("timeout", [None, 20.0])
@pytest.mark.parametrize("method", RECEIVING)
async def test_receiving(tls: Any, method: str, timeout: float | None) -> None:
    """A request that receives waits for what another one sends; its timeout stays its own."""
    one, other = tls
    one.settimeout(timeout)

    def send() -> None:
        until_blocked(one)
        assert one.gettimeout() == timeout
        other.sendall(b"line\n")

    received, _ = await at_once(lambda: RECEIVING[method](one), send)
    assert received == b"line\n"


@pytest.mark.parametrize("timeout", [None, 20.0])
@pytest.mark.parametrize("method", SENDING)
async def test_sending(tls: Any, method: str, timeout: float | None) -> None:
    """A request that sends more than there is room for waits for one that receives."""
    one, other = tls
    one.settimeout(timeout)

    def receive() -> bytes:
        until_blocked(one)
        return _read_exactly(other, len(LARGE))

    assert (await at_once(lambda: SENDING[method](one), receive))[1] == LARGE


async def test_sending_a_file(tls: Any, tmp_path: Path) -> None:
    """A file is sent to the end."""
    one, other = tls
    path = tmp_path / "large"
    path.write_bytes(LARGE)

    def send() -> Any:
        with path.open("rb") as file:
            return one.sendfile(file)

    def receive() -> bytes:
        until_blocked(one)
        return _read_exactly(other, len(LARGE))

    assert await at_once(send, receive) == [len(LARGE), LARGE]


def _read_exactly(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        data += sock.recv(count - len(data))
    return data


async def test_pending(tls: Any) -> None:
    """What OpenSSL has read already is there at once."""
    one, other = tls
    other.sendall(b"hello")
    assert await alone(lambda: (one.recv(2), one.pending(), one.recv(10))) == (b"he", 3, b"llo")


async def test_farewell(tls: Any) -> None:
    """Both sides take leave of TLS and go on without."""
    one, other = tls

    def begin() -> Any:
        sock = one.unwrap()
        sock.sendall(b"plain")
        with pytest.raises(ValueError, match="No SSL wrapper"):
            one.unwrap()
        return one.send(b"!")

    def answer() -> Any:
        until_blocked(one)
        assert other.recv(100) == b""
        sock = other.unwrap()
        return sock.recv(5) + other.recv(1)

    assert await at_once(begin, answer) == [1, b"plain!"]


# --- what goes wrong ----------------------------------------------------------------------------


@pytest.mark.parametrize("what", ["read", "write", "handshake"])
async def test_timeout(tls: Any, pair: Any, client: Any, what: str) -> None:
    """The timeout of a socket raises what it raises without hooks."""
    one, _ = tls
    one.settimeout(0.05)

    def fail() -> Any:
        if what == "read":
            error = failure(lambda: one.recv(10))
        elif what == "write":
            error = failure(lambda: one.sendall(LARGE * 3))
        else:
            left, right = socket.socketpair()
            with left, right:
                left.settimeout(0.05)
                error = failure(lambda: client.wrap_socket(left, server_hostname="localhost"))
        return type(error), str(error).rpartition(": ")[2]

    expected = (TimeoutError, f"The {what} operation timed out")
    assert await alone(fail) == expected
    assert fail() == expected


async def test_not_blocking(tls: Any) -> None:
    """A socket that does not block raises at once."""
    one, _ = tls
    one.setblocking(False)

    def fail() -> Any:
        errors = [type(failure(call)) for call in (one.recv, one.read, one.unwrap)]
        return errors, type(failure(lambda: [one.send(LARGE) for _ in range(100)]))

    assert await alone(fail) == ([ssl.SSLWantReadError] * 3, ssl.SSLError)


@pytest.mark.parametrize("suppress", [True, False])
async def test_end_without_farewell(pair: Any, server: Any, client: Any, suppress: bool) -> None:
    """A server that ends in the middle is told from one that takes leave, if that is wanted."""

    def ask() -> Any:
        sock = client.wrap_socket(
            pair[0], server_hostname="localhost", suppress_ragged_eofs=suppress
        )
        with sock:
            assert sock.recv(5) == b"hello"
            return sock.recv(5) if suppress else type(failure(lambda: sock.recv(5)))

    def answer() -> None:
        sock = server.wrap_socket(pair[1], server_side=True)
        sock.sendall(b"hello")
        sock.close()

    assert (await at_once(ask, answer))[0] == (b"" if suppress else ssl.SSLEOFError)


async def test_closed_while_somebody_waits(tls: Any) -> None:
    """Who waits for a socket that is closed is told so."""
    one, _ = tls

    def close() -> None:
        until_blocked(one)
        one.close()

    error, _ = await at_once(lambda: failure(lambda: one.recv(1)), close)
    assert isinstance(error, ValueError)
    assert str(error) == "Read on closed or unwrapped SSL socket."


async def test_execution_timeout(tls: Any) -> None:
    """The watchdog cuts a request short, and the socket can be used afterwards."""
    one, other = tls
    with anyio.fail_after(10):
        async with sandboxed(lambda: one.recv(10), execution_timeout=0.1) as app:
            assert (await Connection(app, "/0").run()).status == 504
    assert not waiting(one.fileno())
    assert one.gettimeout() is None
    other.sendall(b"hello")
    assert await alone(lambda: one.recv(10)) == b"hello"


def test_uninstalled() -> None:
    """After `uninstall()` the originals are back."""
    hooks.uninstall("ssl")
    assert ssl.SSLSocket.read is _ssl._read
    assert ssl.SSLSocket.do_handshake is _ssl._do_handshake
