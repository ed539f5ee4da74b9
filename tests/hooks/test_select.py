"""`select`, `poll`, `epoll` and `selectors` in cooperative requests."""

from __future__ import annotations

import asyncio
import os
import select
import selectors
import socket
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import anyio
import pytest

from sandboxpool import hooks
from tests.wrap.client import Connection

from .request import alone, at_once, sandboxed
from .waiting import waiting

HOOKS = ("sleep", "select")

pytestmark = [pytest.mark.usefixtures("cooperative"), pytest.mark.backend_with_uvloop]

_originals = {"select": select.select, "poll": select.poll, "epoll": select.epoll}


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two sockets that are connected and do not block."""
    one, other = socket.socketpair()
    with one, other:
        one.setblocking(False)
        other.setblocking(False)
        yield one, other


# Each waits for a socket to be readable or, if so asked, writable, and tells whether it is.


def by_select(sock: socket.socket, timeout: float | None, write: bool = False) -> bool:
    lists: Any = ([], [sock], []) if write else ([sock], [], [])
    ready = (
        select.select(*lists)
        if timeout is None
        else select.select(lists[0], lists[1], lists[2], timeout)
    )
    assert ready in (lists, ([], [], []))
    return bool(ready == lists)


def by_poll(sock: socket.socket, timeout: float | None, write: bool = False) -> bool:
    poll = select.poll()
    mask = select.POLLOUT if write else select.POLLIN
    poll.register(sock)
    poll.modify(sock, mask)
    events = poll.poll(None if timeout is None else timeout * 1000)
    assert events in ([(sock.fileno(), mask)], [])
    return bool(events)


def by_epoll(sock: socket.socket, timeout: float | None, write: bool = False) -> bool:
    with select.epoll() as epoll:
        mask = select.EPOLLOUT if write else select.EPOLLIN
        epoll.register(sock, mask)
        events = epoll.poll(timeout)
        assert events in ([(sock.fileno(), mask)], [])
    assert epoll.closed
    return bool(events)


def by_selector(
    kind: Callable[[], selectors.BaseSelector],
    sock: socket.socket,
    timeout: float | None,
    write: bool = False,
) -> bool:
    with kind() as selector:
        mask = selectors.EVENT_WRITE if write else selectors.EVENT_READ
        key = selector.register(sock, mask, "data")
        events = selector.select(timeout)
        assert events in ([(key, mask)], [])
    return bool(events)


WAYS: dict[str, Callable[..., bool]] = {
    "select": by_select,
    "poll": by_poll,
    "epoll": by_epoll,
    "SelectSelector": partial(by_selector, selectors.SelectSelector),
    "PollSelector": partial(by_selector, selectors.PollSelector),
    "EpollSelector": partial(by_selector, selectors.EpollSelector),
}

each_way = pytest.mark.parametrize("way", WAYS)


@each_way
@pytest.mark.parametrize("timeout", [None, 20.0])
async def test_waiting(pair: Any, way: str, timeout: float | None) -> None:
    """A request that waits for data lets the one run that sends it."""
    one, other = pair

    def send() -> None:
        time.sleep(0.01)
        other.send(b"hello")

    ready, _ = await at_once(lambda: WAYS[way](one, timeout), send)
    assert ready
    assert one.recv(10) == b"hello"


@each_way
async def test_waiting_to_write(pair: Any, way: str) -> None:
    """A request that waits for room lets the one run that makes room."""
    one, other = pair
    with pytest.raises(BlockingIOError):
        while True:
            one.send(bytes(65536))

    def receive() -> None:
        time.sleep(0.01)
        with pytest.raises(BlockingIOError):
            while True:
                other.recv(65536)

    ready, _ = await at_once(lambda: WAYS[way](one, None, write=True), receive)
    assert ready


@each_way
async def test_timeout(pair: Any, way: str) -> None:
    """If nothing happens, nothing is reported when the time is up; without a time, at once."""
    one, other = pair

    def wait() -> float:
        assert not WAYS[way](one, 0)
        before = monotonic()
        assert not WAYS[way](one, 0.05)
        return monotonic() - before

    assert 0.04 < await alone(wait) < 10
    other.send(b"x")
    assert await alone(lambda: (WAYS[way](one, 0), WAYS[way](one, None))) == (True, True)


@each_way
async def test_end(pair: Any, way: str) -> None:
    """The end of a stream can be read."""
    one, other = pair

    def close() -> None:
        time.sleep(0.01)
        other.shutdown(socket.SHUT_WR)

    assert (await at_once(lambda: WAYS[way](one, None), close))[0]


@each_way
async def test_cancelled(pair: Any, way: str) -> None:
    """A request that is cancelled stops to wait."""
    one, _ = pair
    with anyio.fail_after(10):
        async with sandboxed(lambda: WAYS[way](one, None), execution_timeout=0.1) as app:
            assert (await Connection(app, "/0").run()).status == 504
    assert not waiting(one.fileno())


async def test_many_files() -> None:
    """A request waits for hundreds of files, in each way, and learns which ones are ready."""
    pairs = [socket.socketpair() for _ in range(300)]
    ready = [pairs[7][0], pairs[200][0]]

    def send() -> None:
        time.sleep(0.01)
        for number in (7, 200):
            pairs[number][1].send(b"x")

    def by_select() -> Any:
        return select.select((one for one, _ in pairs), [], [one for one, _ in pairs], 20)[0]

    def by_poll() -> Any:
        poll = select.poll()
        for one, _ in pairs:
            poll.register(one.fileno(), select.POLLIN)
        poll.unregister(pairs[3][0])
        fds = [fd for fd, _ in poll.poll()]
        return [one for one, _ in pairs if one.fileno() in fds]

    def by_selector() -> Any:
        with selectors.PollSelector() as selector:
            for one, other in pairs:
                selector.register(one, selectors.EVENT_READ)
                selector.register(other, selectors.EVENT_READ)
            return sorted((key.fileobj for key, _ in selector.select()), key=ready.index)

    results = await at_once(by_select, by_poll, by_selector, send)
    assert [len(result) in (1, 2) and set(result) <= set(ready) for result in results[:3]] == [
        True
    ] * 3
    for sock in [sock for pair in pairs for sock in pair]:
        sock.close()


async def test_nothing_to_wait_for() -> None:
    """Without any file the time is waited for."""

    def wait() -> float:
        before = monotonic()
        assert select.select([], [], [], 0.05) == ([], [], [])
        assert select.poll().poll(50) == []
        with selectors.DefaultSelector() as selector:
            assert selector.select(0.05) == []
        return monotonic() - before

    assert 0.12 < await alone(wait) < 10


async def test_regular_file(tmp_path: Path) -> None:
    """A regular file is always ready, but never has urgent data."""
    path = tmp_path / "file"
    path.write_text("x")
    with path.open() as file:

        def wait() -> Any:
            poll = select.poll()
            poll.register(file, select.POLLPRI)
            urgent = poll.poll(50)
            poll.modify(file, select.POLLIN | select.POLLOUT)
            return urgent, poll.poll(), select.select([file], [file], [file], 5)

        every = [(file.fileno(), select.POLLIN | select.POLLOUT)]
        assert await alone(wait) == ([], every, ([file], [file], []))


async def test_urgent_data() -> None:
    """Urgent data is waited for, and other data does not pass for it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        one = socket.create_connection(listener.getsockname())
        other, _ = listener.accept()
    with one, other:
        other.sendall(b"not urgent")

        def send() -> None:
            time.sleep(0.01)
            other.send(b"!", socket.MSG_OOB)

        ready, _ = await at_once(lambda: select.select([], [], [one], 20), send)
        assert ready == ([], [], [one])


async def test_hang_up_is_nothing_urgent(pair: Any) -> None:
    """Who waits for urgent data only is not told of a hang-up, and does not keep the loop busy."""
    one, other = pair
    other.close()
    turns = []

    def count() -> int:
        for _ in range(5):
            time.sleep(0.02)
            turns.append(True)
        return len(turns)

    ready, _ = await at_once(lambda: select.select([], [], [one], 0.1), count)
    assert ready == ([], [], [])
    assert len(turns) == 5


async def test_closed_file(pair: Any) -> None:
    """A file that is closed is refused as without hooks."""
    one, _ = pair
    fd = os.dup(one.fileno())

    def wait() -> Any:
        poll = select.poll()
        poll.register(fd)
        os.close(fd)
        with pytest.raises(OSError, match="Bad file descriptor"):
            select.select([fd], [], [], 5)
        return poll.poll(5000)

    assert await alone(wait) == [(fd, select.POLLNVAL)]


WRONG: list[Any] = [(5, [], []), ([object()], [], []), ([], [], [], "long")]


def test_as_the_original(pair: Any) -> None:
    """Outside of requests the replacements do what the originals do, errors included."""
    one, other = pair
    poll = select.poll()
    poll.register(one.fileno(), select.POLLIN)
    assert poll.poll(0) == []
    with pytest.raises(FileNotFoundError):
        poll.modify(other, select.POLLIN)
    with pytest.raises(KeyError):
        poll.unregister(other)
    poll.unregister(one)
    with select.epoll(sizehint=10) as epoll, select.epoll.fromfd(os.dup(epoll.fileno())) as same:
        same.register(one, select.EPOLLIN | select.EPOLLOUT)
        same.register(other, select.EPOLLIN | select.EPOLLOUT)
        assert len(epoll.poll(maxevents=1)) == 1
        assert len(epoll.poll(-1)) == 2
        same.unregister(other)
        epoll.modify(one, select.EPOLLIN)
        assert epoll.poll(0) == epoll.poll(0.01) == []
        assert not epoll.closed
    with pytest.raises(ValueError, match="closed"):
        epoll.poll()
    assert select.select([], [one], [], None) == ([], [one], [])
    for wrong in WRONG:
        with pytest.raises(TypeError):
            select.select(*wrong)


async def test_epoll_without_end(pair: Any) -> None:
    """An epoll waits for ever if it is told to wait for less than no time."""
    one, other = pair

    def wait() -> Any:
        with select.epoll() as epoll:
            epoll.register(one, select.EPOLLIN)
            return epoll.poll(-1, 5)

    def send() -> None:
        time.sleep(0.01)
        other.send(b"x")

    events, _ = await at_once(wait, send)
    assert events == [(one.fileno(), select.EPOLLIN)]


@pytest.mark.parametrize("anyio_backend", ["trio"], indirect=True)
async def test_event_loop_in_a_request() -> None:
    """On Trio a request may run an event loop of asyncio, which is not left in the middle."""

    async def nested() -> str:
        await asyncio.sleep(0.01)
        return type(asyncio.get_running_loop()).__name__

    results = await at_once(*[lambda: asyncio.run(nested())] * 3)
    assert len(set(results)) == 1


async def test_wrong_arguments() -> None:
    """Wrong arguments are refused as without hooks."""

    def wrong() -> None:
        for arguments in WRONG:
            with pytest.raises(TypeError):
                select.select(*arguments)
        with pytest.raises(ValueError, match="non-negative"):
            select.select([], [], [], -1)

    await alone(wrong)


def test_uninstalled() -> None:
    """After `uninstall()` the originals are back."""
    hooks.uninstall("select")
    assert {name: getattr(select, name) for name in _originals} == _originals
    assert "select" not in vars(selectors.PollSelector)
