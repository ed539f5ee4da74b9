"""The clients that people use, against real servers: many requests block at once, none waits."""

from __future__ import annotations

import gc
import http.client
import smtplib
import ssl
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from email.message import EmailMessage
from time import monotonic
from typing import Any

import anyio
import httpx2
import pg8000.dbapi  # type: ignore[import-untyped]
import pymysql
import pytest
import redis
import requests
import requests.adapters
import sqlalchemy

from tests.wrap.client import Connection

from .request import alone, at_once, sandboxed
from .servers import HOST, UNCLOSED, Fleet
from .servers import fleet as fleet

pytestmark = [
    pytest.mark.server,
    pytest.mark.usefixtures("cooperative"),
    pytest.mark.backend_with_uvloop,
    UNCLOSED,
]

SECONDS = 0.5
AT_ONCE = 100

# --- calls that block for a time ----------------------------------------------------------------

# Without being told these drivers load all authorities of the system for each connection, also
# for one without TLS, which takes longer than everything else.
PLAIN_POSTGRES: Any = {"ssl_context": False}
PLAIN_MYSQL: Any = {"ssl_disabled": True}

# Each makes, with the servers, a function that blocks for some seconds and returns what it got.
Client = Callable[[Fleet, float], Callable[[], Any]]


def by_requests(fleet: Fleet, seconds: float) -> Callable[[], Any]:
    url = f"http://{HOST}:{fleet('http')}/wait/{seconds}"
    return lambda: requests.get(url, timeout=20).text


def by_requests_with_tls(fleet: Fleet, seconds: float) -> Callable[[], Any]:
    url = f"https://localhost:{fleet('https')}/wait/{seconds}"
    return lambda: requests.get(url, timeout=20, verify=str(fleet.authority)).text


def by_urllib(fleet: Fleet, seconds: float) -> Callable[[], Any]:
    url = f"http://{HOST}:{fleet('http')}/wait/{seconds}"

    def call() -> str:
        with urllib.request.urlopen(url) as response:
            return str(response.read().decode())

    return call


def by_http_client_with_tls(fleet: Fleet, seconds: float) -> Callable[[], Any]:
    port = fleet("https")
    context = ssl.create_default_context(cafile=fleet.authority)

    def call() -> str:
        connection = http.client.HTTPSConnection("localhost", port, timeout=20, context=context)
        with closing(connection):
            connection.request("GET", f"/wait/{seconds}")
            return connection.getresponse().read().decode()

    return call


def by_httpx(fleet: Fleet, seconds: float) -> Callable[[], Any]:
    url = f"http://{HOST}:{fleet('http')}/wait/{seconds}"
    context = ssl.create_default_context()  # each client would load all authorities of the system

    def call() -> str:
        with httpx2.Client(verify=context, timeout=20, trust_env=False) as client:
            return client.get(url).text

    return call


def by_redis(fleet: Fleet, seconds: float) -> Callable[[], Any]:
    client = redis.Redis(port=fleet("redis"), protocol=2, socket_timeout=None)

    def call() -> str:
        assert client.blpop(["nothing"], timeout=seconds) is None
        return "hello"

    return call


def by_pg8000(fleet: Fleet, seconds: float) -> Callable[[], Any]:
    port = fleet("postgres")

    def call() -> Any:
        options = {"user": "postgres", "host": HOST, "port": port, **PLAIN_POSTGRES}
        with closing(pg8000.dbapi.connect(**options)) as connection:
            cursor = connection.cursor()
            cursor.execute("SELECT 'hello', pg_sleep(%s)", (seconds,))
            return cursor.fetchone()[0]

    return call


def by_pymysql(fleet: Fleet, seconds: float) -> Callable[[], Any]:
    port = fleet("mariadb")

    def call() -> Any:
        options = {"user": "root", "host": HOST, "port": port, **PLAIN_MYSQL}
        with closing(pymysql.connect(**options)) as connection:
            cursor = connection.cursor()
            cursor.execute("SELECT 'hello', SLEEP(%s)", (seconds,))
            row = cursor.fetchone()
            return row and row[0]

    return call


def by_sqlalchemy(fleet: Fleet, seconds: float) -> Callable[[], Any]:
    engine = _engine(fleet, pool_size=AT_ONCE)

    def call() -> Any:
        with engine.connect() as connection:
            statement = sqlalchemy.text("SELECT 'hello', pg_sleep(:seconds)")
            return connection.execute(statement, {"seconds": seconds}).one()[0]

    def close() -> None:
        engine.dispose()
        gc.collect()  # now, not in somebody else's test

    call.close = close  # type: ignore[attr-defined]
    return call


def _engine(fleet: Fleet, **options: Any) -> sqlalchemy.Engine:
    url = f"postgresql+pg8000://postgres@{HOST}:{fleet('postgres')}/postgres"
    return sqlalchemy.create_engine(url, connect_args=PLAIN_POSTGRES, **options)


def by_smtplib(fleet: Fleet, seconds: float) -> Callable[[], Any]:
    port = fleet("smtp", seconds)

    def call() -> str:
        message = EmailMessage()
        message["From"], message["To"] = "one@example.org", "other@example.org"
        message.set_content("Hello.\n.\nThat was a dot.")
        client = smtplib.SMTP(HOST, port, timeout=20)
        # `with client` would take leave of the server politely, also if it is cut off.
        with closing(client):
            assert client.send_message(message) == {}
        return "hello"

    return call


CLIENTS: dict[str, Client] = {
    name.removeprefix("by_"): client
    for name, client in list(globals().items())
    if name.startswith("by_")
}


@pytest.fixture
def client(request: pytest.FixtureRequest, fleet: Fleet) -> Iterator[Callable[[], Any]]:
    """One call of the client that the test is about."""
    call = CLIENTS[request.param](fleet, SECONDS)
    yield call
    getattr(call, "close", lambda: None)()


every_client = pytest.mark.parametrize("client", CLIENTS, indirect=True)


@every_client
async def test_at_once(client: Callable[[], Any]) -> None:
    """A hundred requests that wait for a server take about as long as one of them."""
    before = monotonic()
    results = await at_once(*[client] * AT_ONCE)
    took = monotonic() - before
    assert results == ["hello"] * AT_ONCE
    assert SECONDS <= took < SECONDS * AT_ONCE / 5


@every_client
@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_control(client: Callable[[], Any]) -> None:
    """Without hooks the same calls add up."""
    before = monotonic()
    assert await at_once(client, client, run_in="loop") == ["hello"] * 2
    assert monotonic() - before >= 2 * SECONDS


@every_client
async def test_execution_timeout(client: Callable[[], Any]) -> None:
    """The watchdog cuts a request short that waits for a server, and others go on."""
    with anyio.fail_after(20):
        async with sandboxed(client, client, execution_timeout=SECONDS / 3) as app:
            before = monotonic()
            assert (await Connection(app, "/0").run()).status == 504
            assert monotonic() - before < 10
    assert await alone(client) == "hello"
