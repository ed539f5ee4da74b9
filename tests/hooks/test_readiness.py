"""Requests that wait for the same file descriptors, for many, or for those that are closed."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from sandboxpool.hooks import _poller, _readiness
from tests.wrap.client import Connection

from .request import alone, at_once, sandboxed
from .waiting import until_blocked, waiting

HOOKS = ("sleep", "socket")

pytestmark = [pytest.mark.usefixtures("cooperative"), pytest.mark.backend_with_uvloop]

# More than the buffers of any socket hold.
LARGE = bytes(5_000_000)


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two sockets that are connected."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
    with one, other:
        yield one, other


async def test_one_reads_and_one_writes(pair: Any) -> None:
    """Two requests wait for the same socket, one to read and one to write, and both go on."""
    one, other = pair

    def answer() -> None:
        until_blocked(one, one)
        other.sendall(b"hello")  # wakes who reads
        assert len(_read_exactly(other, len(LARGE))) == len(LARGE)  # and then who writes

    received, *_ = await at_once(lambda: one.recv(10), lambda: one.sendall(LARGE), answer)
    assert received == b"hello"


def _read_exactly(sock: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        data += sock.recv(count - len(data))
    return data


@pytest.mark.parametrize("timeout", [None, 20.0])
async def test_several_read(pair: Any, timeout: float | None) -> None:
    """Several requests wait for the same socket, and each gets what there is for one."""
    one, other = pair
    one.settimeout(timeout)

    def send() -> None:
        until_blocked(one, one, one)
        for part in (b"a", b"b", b"c"):
            other.sendall(part)

    *received, _ = await at_once(*[lambda: one.recv(1)] * 3, send)
    assert sorted(received) == [b"a", b"b", b"c"]


@pytest.mark.parametrize("timeout", [None, 60.0])
async def test_many(timeout: float | None) -> None:
    """Five hundred requests wait at once and are woken at once."""
    pairs = [socket.socketpair() for _ in range(500)]
    for one, _ in pairs:
        one.settimeout(timeout)

    def send() -> None:
        until_blocked(*[one for one, _ in pairs])
        for number, (_, other) in enumerate(pairs):
            other.sendall(b"%d" % number)

    *received, _ = await at_once(*[partial(one.recv, 10) for one, _ in pairs], send)
    assert received == [b"%d" % number for number in range(500)]
    assert not any(waiting(one.fileno()) for one, _ in pairs)
    for sock in [sock for pair in pairs for sock in pair]:
        sock.close()


async def test_who_never_waits(pair: Any) -> None:
    """A request that always finds data lets the others run nevertheless."""
    one, other = pair
    other.sendall(b"x" * 10_000)
    ran = threading.Event()

    def receive() -> int:
        count = 0
        while not ran.is_set():
            count += len(one.recv(1))
        return count

    assert 0 <= (await at_once(receive, ran.set))[0] < 10_000


@pytest.mark.parametrize("how", ["close", "detach", "close in a thread"])
async def test_closed_while_somebody_waits(pair: Any, how: str) -> None:
    """Who waits for a socket that is closed is woken, and its number is free for another one."""
    one, _ = pair
    fd = one.fileno()
    news: list[socket.socket] = []

    def close() -> None:
        until_blocked(one)
        if how == "close":
            one.close()
        elif how == "detach":
            os.close(one.detach())
        else:
            thread = threading.Thread(target=one.close)
            thread.start()
            while thread.is_alive():
                time.sleep(0.001)
        news.extend(socket.socketpair())
        assert fd in (news[0].fileno(), news[1].fileno())

    def receive_again() -> bytes:
        while not news:
            time.sleep(0.001)
        return news[0].recv(10)

    def send_again() -> None:
        while not news:
            time.sleep(0.001)
        until_blocked(news[0])
        news[1].sendall(b"hello")

    code, _, received, _ = await at_once(
        lambda: error_of(lambda: one.recv(10)), close, receive_again, send_again
    )
    assert code == errno.EBADF
    assert received == b"hello"
    for sock in news:
        sock.close()


def error_of(call: Callable[[], Any]) -> int | None:
    """Return the number of the error that a call raises."""
    with pytest.raises(OSError) as caught:  # noqa: PT011
        call()
    return caught.value.errno


async def test_shut_down_while_somebody_waits(pair: Any) -> None:
    """Who waits for data is told of the end when the socket is shut down on this side."""
    one, _ = pair

    def shut_down() -> None:
        until_blocked(one)
        one.shutdown(socket.SHUT_RD)

    assert (await at_once(lambda: one.recv(10), shut_down))[0] == b""


async def test_closed_while_it_connects() -> None:
    """Who connects with a socket that is closed meanwhile is told so."""
    with (
        socket.create_server(("127.0.0.1", 0), backlog=0) as full,
        socket.create_connection(full.getsockname()),
        socket.socket() as sock,
    ):

        def close() -> None:
            until_blocked(sock)
            sock.close()

        code, _ = await at_once(lambda: sock.connect_ex(full.getsockname()), close)
        assert code == errno.EBADF


async def test_closed_by_its_number(pair: Any) -> None:
    """A file that is closed behind the back of its socket stands in nobody's way afterwards."""
    one, _ = pair
    one.settimeout(0.3)
    fd = one.fileno()

    def close() -> bytes:
        until_blocked(one)
        os.close(fd)
        first, second = socket.socketpair()
        with first, second:
            same, other = (first, second) if first.fileno() == fd else (second, first)
            assert same.fileno() == fd
            other.sendall(b"a")
            same.settimeout(10)
            received = same.recv(1)
            assert error_of(lambda: one.recv(1)) is None  # a timeout
            return received

    _, received = await at_once(lambda: error_of(lambda: one.recv(1)), close)
    assert received == b"a"
    one.detach()


ON_ASYNCIO = pytest.mark.parametrize(
    "anyio_backend",
    [
        pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
        pytest.param(("asyncio", {"use_uvloop": True}), id="asyncio+uvloop"),
    ],
    indirect=True,
)


@ON_ASYNCIO
async def test_descriptor_of_a_transport(pair: Any) -> None:
    """A request may wait for a socket that a transport of the loop has, too."""
    one, other = pair
    one = one.dup()
    reader, writer = await asyncio.open_connection(sock=one)
    writer.transport.pause_reading()  # type: ignore[attr-defined]
    same = socket.socket(fileno=writer.get_extra_info("socket").fileno())
    same.settimeout(20)

    def send() -> None:
        until_blocked(same)
        other.sendall(b"hello")

    received, _ = await at_once(lambda: same.recv(10), send)
    assert received == b"hello"
    same.detach()
    writer.transport.resume_reading()  # type: ignore[attr-defined]
    other.sendall(b"again")
    assert await reader.read(10) == b"again"
    writer.close()
    await writer.wait_closed()


@ON_ASYNCIO
async def test_reader_of_the_app(pair: Any) -> None:
    """A reader that the app has given to the loop stays in its place."""
    one, other = pair
    loop = asyncio.get_running_loop()
    seen = asyncio.Event()
    loop.add_reader(one, seen.set)

    def send() -> None:
        until_blocked(one)
        other.sendall(b"hello")

    assert (await at_once(lambda: one.recv(10), send))[0] == b"hello"
    seen.clear()
    other.sendall(b"again")
    await asyncio.wait_for(seen.wait(), 10)
    loop.remove_reader(one)


async def test_cancelled(pair: Any) -> None:
    """A request that is cancelled stops to wait, and its socket can be used afterwards."""
    one, other = pair
    with anyio.fail_after(10):
        async with sandboxed(lambda: one.recv(10)) as app, anyio.create_task_group() as tasks:
            tasks.start_soon(Connection(app, "/0").run)
            while not waiting(one.fileno()):
                await anyio.lowlevel.checkpoint()
            tasks.cancel_scope.cancel()
    assert not waiting(one.fileno())
    assert one.gettimeout() is None
    other.sendall(b"hello")
    assert await alone(lambda: one.recv(10)) == b"hello"


@pytest.mark.parametrize("what", ["recv", "sendall", "connect", "accept"])
async def test_execution_timeout(pair: Any, what: str) -> None:
    """The watchdog cuts a request short that waits for the other side."""
    with (
        socket.create_server(("127.0.0.1", 0), backlog=0) as full,
        socket.create_connection(full.getsockname()),
        socket.create_server(("127.0.0.1", 0)) as listener,
        socket.socket() as sock,
    ):
        calls: dict[str, Callable[[], Any]] = {
            "recv": lambda: pair[0].recv(10),
            "sendall": lambda: pair[0].sendall(LARGE),
            "connect": lambda: sock.connect(full.getsockname()),
            "accept": listener.accept,
        }
        with anyio.fail_after(10):
            async with sandboxed(calls[what], execution_timeout=0.1) as app:
                assert (await Connection(app, "/0").run()).status == 504


async def test_other_threads(pair: Any) -> None:
    """Another thread gets the original, also for a socket that a request waits for."""
    one, other = pair
    received: list[bytes] = []

    def receive() -> bytes:
        thread = threading.Thread(target=lambda: received.append(one.recv(1)))
        thread.start()
        received.append(one.recv(1))
        while thread.is_alive():
            time.sleep(0.001)
        return b"".join(received)

    def send() -> None:
        until_blocked(one)
        other.sendall(b"a")
        while not received:
            time.sleep(0.001)
        other.sendall(b"b")

    assert (await at_once(receive, send))[0] == b"ab"


async def test_without_epoll(monkeypatch: pytest.MonkeyPatch, pair: Any) -> None:
    """Where there is no epoll the best selector of the platform is used instead."""
    monkeypatch.setattr(_poller, "_epoll", None)
    monkeypatch.setattr(_readiness, "_here", _readiness._Here())
    one, other = pair

    one.settimeout(0.01)
    with pytest.raises(TimeoutError):
        await alone(lambda: one.recv(10))
    one.settimeout(None)

    def answer() -> bytes:
        until_blocked(one, one)
        other.sendall(b"hello")
        return _read_exactly(other, len(LARGE))

    received, _, sent = await at_once(lambda: one.recv(10), lambda: one.sendall(LARGE), answer)
    assert (received, sent) == (b"hello", LARGE)
    await test_closed_while_somebody_waits((one, other), "close")
