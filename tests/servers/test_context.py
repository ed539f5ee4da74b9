"""Context variables that a request sets must not meet the next one on its connection.

uvicorn leaks them on the asyncio loop in two ways: a request with a large body leaves its context
on the reader of the connection (cpython#140947), and a pipelined request is started by the one
before it.
"""

from __future__ import annotations

import re
import socket
from contextlib import closing
from urllib.parse import urlencode

import pytest
from websockets.sync.client import connect

from .conftest import Fleet, every
from .processes import DIRECT, PATIENCE, SERVE_UVICORN, UVICORN, UVICORN_H11, RunningServer, ask

LEAKING = [UVICORN_H11, UVICORN]
APPS = [pytest.param("wrapped", id="plainly"), pytest.param("greeted", id="base_http_middleware")]
LARGE = 3 * 1024 * 1024


def after_login(running: RunningServer) -> list[str]:
    """Ask who one is before and after a login with a large body, on one connection."""
    with running.connection() as connection:
        before = ask(connection, "/who")
        connection.request("POST", "/login?user=alice", b"x" * LARGE)
        assert connection.getresponse().read() == str(LARGE).encode()
        return [before, ask(connection, "/who")]


def pipelined(running: RunningServer) -> str:
    """Send a login and the question who one is at once; return the second answer."""
    login = "POST /login?{} HTTP/1.1\r\nHost: here\r\nContent-Length: 2\r\n\r\nhi"
    question = "GET /who HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n"
    with closing(socket.create_connection(("127.0.0.1", running.port), PATIENCE)) as sock:
        sock.sendall((login.format(urlencode({"user": "alice"})) + question).encode())
        received = b""
        while data := sock.recv(65536):
            received += data
    bodies = re.findall(rb'"([a-z ]+)"', received)
    assert received.count(b"HTTP/1.1 200") == 2, received
    return str(bodies[-1].decode())


def websocket_after_login(running: RunningServer) -> str:
    """Log in with a large body, then ask who one is on a websocket on the same connection."""
    with running.connection() as connection:
        connection.request("POST", "/login?user=alice", b"x" * LARGE)
        connection.getresponse().read()
        sock, connection.sock = connection.sock, None
        url = f"ws://127.0.0.1:{running.port}/who"
        with connect(url, sock=sock, open_timeout=PATIENCE) as websocket:
            return str(websocket.recv(PATIENCE))


@every(LEAKING)
@pytest.mark.parametrize("app", ["plain", "greeted_plain"])
def test_unwrapped_app_leaks(fleet: Fleet, app: str) -> None:
    """Without wrap(), the next request on the connection is alice's: the tests can see it."""
    before, after = after_login(fleet(app))
    assert before == "nobody"
    assert after.startswith("alice")


@every(LEAKING)
def test_unwrapped_app_leaks_when_pipelined(fleet: Fleet) -> None:
    """Without wrap(), a pipelined request is alice's."""
    assert pipelined(fleet("plain")) == "alice"


@every(LEAKING)
def test_unwrapped_app_leaks_into_a_websocket(fleet: Fleet) -> None:
    """Without wrap(), a websocket after a request is alice's."""
    assert websocket_after_login(fleet("plain")) == "alice"


@every([*DIRECT, SERVE_UVICORN])
@pytest.mark.parametrize("app", APPS)
def test_next_request(fleet: Fleet, app: str) -> None:
    """Wrapped, the next request on a connection starts without the variables of the last."""
    assert after_login(fleet(app)) == ["nobody", "nobody"]


@every([*DIRECT, SERVE_UVICORN])
@pytest.mark.parametrize("app", APPS)
def test_pipelined_request(fleet: Fleet, app: str) -> None:
    """Wrapped, a pipelined request starts without the variables of the one before it."""
    assert pipelined(fleet(app)) == "nobody"


@every(LEAKING)
@pytest.mark.parametrize("app", APPS)
def test_websocket_after_request(fleet: Fleet, app: str) -> None:
    """Wrapped, a websocket starts without the variables of the request before it."""
    assert websocket_after_login(fleet(app)) == "nobody"
