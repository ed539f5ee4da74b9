"""What goes wrong with a server raises what it raises without hooks."""

from __future__ import annotations

import gc
import http.client
import smtplib
import socket
import ssl
import urllib.request
from collections.abc import Callable, Iterator
from typing import Any

import pg8000.dbapi  # type: ignore[import-untyped]
import pymysql
import pytest
import redis
import requests
from redis.backoff import NoBackoff
from redis.retry import Retry

from .request import alone
from .servers import HOST, UNCLOSED, Fleet, free_port
from .servers import fleet as fleet

pytestmark = [
    pytest.mark.server,
    pytest.mark.usefixtures("cooperative"),
    pytest.mark.backend_with_uvloop,
    UNCLOSED,
]


def errors_of(call: Callable[[], Any]) -> list[type[BaseException]]:
    """Return the types of the exception that a call raises and of those that led to it."""
    with pytest.raises(Exception) as caught:  # noqa: PT011
        call()
    types = []
    error: BaseException | None = caught.value
    while error is not None:
        types.append(type(error))
        error = error.__cause__ or error.__context__
    return types


CONNECTING: dict[str, Callable[[int], Any]] = {
    "requests": lambda port: requests.get(f"http://{HOST}:{port}/", timeout=0.1),
    "requests with TLS": lambda port: requests.get(f"https://{HOST}:{port}/", timeout=0.1),
    "urllib": lambda port: urllib.request.urlopen(f"http://{HOST}:{port}/", timeout=0.1),
    "http.client": lambda port: http.client.HTTPSConnection(HOST, port, timeout=0.1).connect(),
    "redis": lambda port: redis.Redis(
        port=port, socket_timeout=0.1, socket_connect_timeout=0.1, retry=Retry(NoBackoff(), 0)
    ).ping(),
    "pg8000": lambda port: pg8000.dbapi.connect(
        "postgres", host=HOST, port=port, timeout=0.1, ssl_context=False
    ),
    "pymysql": lambda port: pymysql.connect(
        host=HOST, port=port, connect_timeout=1, read_timeout=1, ssl_disabled=True
    ),
    "smtplib": lambda port: smtplib.SMTP(HOST, port, timeout=0.1),
}

each_client = pytest.mark.parametrize("client", CONNECTING)


@pytest.fixture
def full() -> Iterator[int]:
    """The port of a server whose queue is full."""
    with (
        socket.create_server((HOST, 0), backlog=0) as listener,
        socket.create_connection(listener.getsockname()),
    ):
        yield listener.getsockname()[1]


@pytest.fixture
def silent() -> Iterator[int]:
    """The port of a server that never says anything."""
    with socket.create_server((HOST, 0)) as listener:
        yield listener.getsockname()[1]


async def same(call: Callable[[], Any]) -> list[type[BaseException]]:
    """Return what a call raises, which must be the same without hooks."""
    errors: list[type[BaseException]] = await alone(lambda: errors_of(call))
    assert errors == errors_of(call)
    gc.collect()  # now, not in somebody else's test
    return errors


@each_client
async def test_refused(client: str) -> None:
    """A connection that is refused."""
    port = free_port()
    assert ConnectionRefusedError in await same(lambda: CONNECTING[client](port))


@each_client
async def test_connect_timeout(client: str, full: int) -> None:
    """A connection that nobody accepts."""
    assert TimeoutError in await same(lambda: CONNECTING[client](full))


@each_client
async def test_read_timeout(client: str, silent: int) -> None:
    """An answer that never comes."""
    assert TimeoutError in await same(lambda: CONNECTING[client](silent))


async def test_unknown_host() -> None:
    """A host that has no address."""
    errors = await same(lambda: requests.get("http://nowhere.invalid/", timeout=5))
    assert socket.gaierror in errors


@pytest.mark.parametrize("scheme", ["http", "https"])
async def test_end_in_the_middle(fleet: Fleet, scheme: str) -> None:
    """A server that breaks off in the middle of its answer."""
    url = f"{scheme}://localhost:{fleet(scheme)}/half"
    errors = await same(lambda: requests.get(url, timeout=20, verify=str(fleet.authority)))
    assert errors[0] is requests.exceptions.ChunkedEncodingError


@pytest.mark.parametrize("what", ["authority", "host"])
async def test_certificate(fleet: Fleet, what: str) -> None:
    """A certificate that nobody trusts, and one that is another host's."""
    port = fleet("https")
    host, verify = ("localhost", None) if what == "authority" else (HOST, str(fleet.authority))
    url = f"https://{host}:{port}/wait/0"
    errors = await same(lambda: requests.get(url, timeout=20, verify=verify))
    assert errors[0] is requests.exceptions.SSLError
    assert ssl.SSLCertVerificationError in errors
