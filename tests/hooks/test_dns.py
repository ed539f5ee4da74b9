"""Looking up names in cooperative requests."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import anyio
import pytest

from sandboxpool import hooks
from sandboxpool.hooks import _dns
from tests.wrap.client import Connection

from .request import alone, at_once, sandboxed

HOOKS = ("sleep", "dns")

pytestmark = [pytest.mark.usefixtures("cooperative"), pytest.mark.backend_with_uvloop]

LOOK_UPS: dict[str, Callable[[], Any]] = {
    "getaddrinfo": lambda: socket.getaddrinfo("localhost", 80, type=socket.SOCK_STREAM),
    "gethostbyname": lambda: socket.gethostbyname("localhost"),
    "gethostbyname_ex": lambda: socket.gethostbyname_ex("localhost"),
    "gethostbyaddr": lambda: socket.gethostbyaddr("127.0.0.1"),
    "getnameinfo": lambda: socket.getnameinfo(("127.0.0.1", 80), 0),
    "getfqdn": lambda: socket.getfqdn("localhost"),
}

NUMBERS: dict[str, Callable[[], Any]] = {
    "getaddrinfo": lambda: socket.getaddrinfo("127.0.0.1", 80, type=socket.SOCK_STREAM),
    "getaddrinfo of IPv6": lambda: socket.getaddrinfo("::1", 80),
    "getaddrinfo without a host": lambda: socket.getaddrinfo(None, 80),
    "gethostbyname": lambda: socket.gethostbyname("127.0.0.1"),
    "gethostbyname_ex": lambda: socket.gethostbyname_ex("127.0.0.1"),
    "getnameinfo": lambda: socket.getnameinfo(
        ("127.0.0.1", 80), socket.NI_NUMERICHOST | socket.NI_NUMERICSERV
    ),
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[threading.Thread]:
    """Note the threads in which the C library is asked for more than numbers."""
    threads: list[threading.Thread] = []
    in_thread = _dns._in_thread

    def noting(look_up: Callable[[], Any]) -> Any:
        def noted() -> Any:
            threads.append(threading.current_thread())
            return look_up()

        return in_thread(noted)

    monkeypatch.setattr(_dns, "_in_thread", noting)
    return threads


@pytest.mark.parametrize("name", LOOK_UPS)
async def test_looking_up(name: str, asked: list[threading.Thread]) -> None:
    """A name is looked up in another thread, with the same result."""
    assert await alone(LOOK_UPS[name]) == LOOK_UPS[name]()
    assert len(asked) == 1
    assert asked[0] is not threading.current_thread()


@pytest.mark.parametrize("name", NUMBERS)
async def test_numbers(name: str, asked: list[threading.Thread]) -> None:
    """What needs no looking up takes no thread."""
    assert await alone(NUMBERS[name]) == NUMBERS[name]()
    assert asked == []


@pytest.mark.parametrize(
    "look_up",
    [
        lambda: socket.getaddrinfo("no.invalid", 80),
        lambda: socket.getaddrinfo("127.0.0.1", "no-such-service"),
        lambda: socket.getaddrinfo("x" * 70 + ".invalid", 80),
        lambda: socket.getaddrinfo(5, 80),  # type: ignore[arg-type]
        lambda: socket.gethostbyname("no.invalid"),
        lambda: socket.gethostbyname(5),  # type: ignore[arg-type]
        lambda: socket.gethostbyname("x" * 70 + ".invalid"),
        lambda: socket.gethostbyname_ex("no.invalid"),
        lambda: socket.gethostbyaddr("no.invalid"),
        lambda: socket.getnameinfo(("no.invalid", 80), 0),
        lambda: socket.getnameinfo("no address", 0),  # type: ignore[arg-type]
    ],
)
async def test_failures(look_up: Callable[[], Any]) -> None:
    """What cannot be looked up raises what it raises without hooks."""

    def failure() -> Any:
        with pytest.raises((OSError, TypeError, UnicodeError)) as caught:
            look_up()
        return type(caught.value), str(caught.value)

    assert await alone(failure) == failure()


@pytest.fixture
def resolver_hangs(monkeypatch: pytest.MonkeyPatch) -> Iterator[threading.Event]:
    """Have names looked up without an answer, until the event is set."""
    answers = threading.Event()

    def hanging(hostname: str) -> str:
        assert answers.wait(20)
        return "192.0.2.1"

    monkeypatch.setattr(_dns, "_gethostbyname", hanging)
    yield answers
    answers.set()


async def test_others_run_meanwhile(resolver_hangs: threading.Event) -> None:
    """While a resolver hangs other requests run."""

    def other() -> None:
        time.sleep(0.01)
        resolver_hangs.set()

    found, _ = await at_once(lambda: socket.gethostbyname("example.invalid"), other)
    assert found == "192.0.2.1"


async def test_execution_timeout(resolver_hangs: threading.Event) -> None:
    """The watchdog cuts a request short whose resolver hangs, and leaves its thread behind."""
    look_up = partial(socket.gethostbyname, "example.invalid")
    with anyio.fail_after(10):
        async with sandboxed(look_up, execution_timeout=0.1) as app:
            assert (await Connection(app, "/0").run()).status == 504
            assert not resolver_hangs.is_set()
            resolver_hangs.set()


async def test_asked_for_numbers_only(asked: list[threading.Thread]) -> None:
    """Who asks whether a host is a number, as Trio does before it looks up, takes no thread."""

    def ask() -> Any:
        with pytest.raises(socket.gaierror) as caught:
            socket.getaddrinfo("localhost", 80, flags=socket.AI_NUMERICHOST)
        return caught.value.errno

    assert await alone(ask) == socket.EAI_NONAME
    assert asked == []


def test_uninstalled() -> None:
    """After `uninstall()` the originals are back."""
    hooks.uninstall("dns")
    assert socket.getaddrinfo is _dns._getaddrinfo
    assert socket.getnameinfo is _dns._getnameinfo
