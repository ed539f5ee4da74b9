"""Requests that block, in threads and cooperatively, on every server."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import Any

import pytest
from websockets.sync.client import connect

from .blocking_shop import SECONDS
from .conftest import Fleet, every
from .processes import DIRECT, PATIENCE, RunningServer, ask

MODES = pytest.mark.parametrize("mode", ["thread", "cooperative"])


def serving(fleet: Fleet, mode: str) -> RunningServer:
    """Return the server that serves the app that runs in this way."""
    return fleet(mode, module="blocking_shop")


@every(DIRECT)
@MODES
@pytest.mark.parametrize("path", ["/async", "/def"])
def test_blocked_at_once(fleet: Fleet, mode: str, path: str) -> None:
    """Requests that block run at once, each with a state of its own."""
    server = serving(fleet, mode)

    def one(number: int) -> dict[str, Any]:
        found: dict[str, Any] = server.get(path, user=f"user{number}")
        return found

    began = monotonic()
    with ThreadPoolExecutor(20) as clients:
        answers = list(clients.map(one, range(20)))
    assert monotonic() - began < 20 * SECONDS / 2
    assert [answer["user"] for answer in answers] == [f"user{number}" for number in range(20)]
    threads = {answer["thread"] for answer in answers}
    assert len(threads) == (1 if (mode, path) == ("cooperative", "/async") else 20)
    assert server.get("/stats")["peak_concurrency"] >= 20


@every(DIRECT)
@MODES
def test_bodies_and_websockets(fleet: Fleet, mode: str) -> None:
    """Uploads, streams and websockets work in code that blocks."""
    server = serving(fleet, mode)
    with server.connection() as connection:
        connection.request("POST", "/upload", body=bytes(1_000_000))
        assert connection.getresponse().read() == b"1000000"
        # The connection goes on to be of use.
        connection.request("GET", "/stream")
        body = connection.getresponse().read()
        assert body == b"".join(str(number).encode() * 10_000 for number in range(5))
        assert ask(connection, "/async", user="ada")["user"] == "ada"
    with connect(f"ws://127.0.0.1:{server.port}/echo", open_timeout=PATIENCE) as websocket:
        for text in ("one", "two"):
            websocket.send(text)
            assert websocket.recv(PATIENCE) == text


@every(DIRECT)
@MODES
def test_cut_off(fleet: Fleet, mode: str) -> None:
    """A request that blocks longer than it may is answered 504 in time; the others go on."""
    server = serving(fleet, mode)
    with server.connection() as late:
        began = monotonic()
        late.request("GET", "/long?seconds=6")
        assert server.get("/async", user="bob")["user"] == "bob"
        response = late.getresponse()
        assert response.status == 504
        assert monotonic() - began < 5.5
        response.read()
    abandoned = server.get("/stats")["abandoned"]
    assert abandoned == (1 if mode == "thread" else 0)
    server.stats_until(lambda stats: stats["abandoned"] == 0)
