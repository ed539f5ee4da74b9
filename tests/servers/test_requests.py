"""Requests, uploads, streams and websockets through every server, over real sockets."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from .conftest import Fleet, every
from .processes import DIRECT, PATIENCE, SERVERS, RunningServer, answer, ask, send_get
from .shop import CHUNK

STREAMING = [server for server in SERVERS if server.streams_body]


def two_at_once(running: RunningServer, place: str) -> list[dict[str, Any]]:
    with running.connection() as first, running.connection() as second:
        send_get(first, "/meet", user="alice", place=place)
        send_get(second, "/meet", user="bob", place=place)
        return [answer(first), answer(second)]


@every(DIRECT)
def test_unwrapped_requests_see_each_other(fleet: Fleet) -> None:
    """Without wrap(), of two requests at once one gets the other's user: the tests can see it."""
    users = [answer["user"] for answer in two_at_once(fleet("plain"), "control")]
    assert users[0] == users[1]


@every(SERVERS)
def test_requests_at_once_have_a_sandbox_each(fleet: Fleet) -> None:
    """Two requests that meet inside of their handlers are in different sandboxes."""
    alice, bob = two_at_once(fleet("wrapped"), "isolated")
    assert (alice["user"], bob["user"]) == ("alice", "bob")
    assert alice["sandbox"] != bob["sandbox"]


@every(SERVERS)
def test_streamed_response(fleet: Fleet) -> None:
    """10 MB that the app streams arrive whole."""
    chunks = 160
    expected = hashlib.sha256(b"".join(bytes([n % 256]) * CHUNK for n in range(chunks)))
    with fleet("wrapped").connection() as connection:
        send_get(connection, "/stream", chunks=chunks)
        body = connection.getresponse().read()
    assert len(body) == chunks * CHUNK > 10_000_000
    assert hashlib.sha256(body).digest() == expected.digest()


@every(STREAMING)
def test_slow_upload(fleet: Fleet) -> None:
    """The app gets each piece of a body when it arrives, and all of them."""
    running = fleet("wrapped")
    with running.held("slow", size=30) as upload:
        for size in (10, 20):
            upload.send(b"x" * 10)
            running.wait_for(rf"^got slow {size}$")
        told = upload.finish()
    assert told == {
        "key": "slow",
        "size": 30,
        "digest": hashlib.sha256(b"x" * 30).hexdigest(),
    }


@every(SERVERS)
def test_large_upload(fleet: Fleet) -> None:
    """3 MB that are sent at once reach the app whole."""
    body = bytes(range(256)) * 12_288
    with fleet("wrapped").connection() as connection:
        connection.request("POST", "/hold?key=large", body)
        assert answer(connection)["digest"] == hashlib.sha256(body).hexdigest()


@every(STREAMING)
def test_hang_up_while_served(fleet: Fleet) -> None:
    """A client that goes while its request runs is told to the app, and frees the sandbox."""
    running = fleet("single")
    with running.held("served") as upload:
        running.wait_for("^holding served$")
        upload.hang_up()
    running.wait_for("^gone served ClientDisconnect$")
    running.stats_until(lambda stats: stats["concurrency"] == 0)
    assert running.get("/who") == "nobody"


@every(STREAMING)
def test_hang_up_in_the_queue(fleet: Fleet) -> None:
    """A client that goes while it waits for a sandbox never gets one, and blocks nobody."""
    running = fleet("single")
    before = running.get("/stats")["hung_up"]
    with running.held("busy") as busy:
        running.wait_for("^holding busy$")
        with running.held("impatient") as waiting:
            running.stats_until(lambda stats: stats["pool"]["waiting"] == 1)
            waiting.hang_up()
        stats = running.stats_until(lambda stats: stats["hung_up"] == before + 1)
        assert stats["pool"]["waiting"] == 0
        assert busy.finish()["key"] == "busy"
    assert running.get("/who") == "nobody"
    assert running.count("holding impatient") == 0


@every(STREAMING)
def test_refused_when_saturated(fleet: Fleet) -> None:
    """A request for which there is no place in the queue is answered 503 with Retry-After."""
    running = fleet("single")
    with running.held("saturated") as busy, running.connection() as waiting:
        running.wait_for("^holding saturated$")
        send_get(waiting, "/who")
        running.stats_until(lambda stats: stats["pool"]["waiting"] == 1)
        with running.connection() as connection:
            send_get(connection, "/who")
            response = connection.getresponse()
            assert response.status == 503
            assert int(response.headers["Retry-After"]) >= 1
            assert b"1 requests are waiting for one already" in response.read()
            busy.finish()
            assert answer(waiting) == "nobody"
            # The connection of the refused request goes on.
            assert ask(connection, "/who") == "nobody"


@every(SERVERS)
def test_websocket_denied_when_saturated(fleet: Fleet) -> None:
    """A websocket for which there is no place is denied before it is accepted."""
    running = fleet("single")
    url = f"ws://127.0.0.1:{running.port}/echo"
    with connect(url, open_timeout=PATIENCE) as busy, running.connection() as waiting:
        busy.send("taken")
        assert busy.recv(PATIENCE) == "taken"
        send_get(waiting, "/who")
        running.stats_until(lambda stats: stats["pool"]["waiting"] == 1)
        with pytest.raises(InvalidStatus) as caught, connect(url, open_timeout=PATIENCE):
            pass
        assert caught.value.response.status_code == fleet.server.denial
        busy.close()
        assert answer(waiting) == "nobody"


@every(SERVERS)
def test_websocket(fleet: Fleet) -> None:
    """A websocket speaks to the app in both directions."""
    with connect(f"ws://127.0.0.1:{fleet('wrapped').port}/echo", open_timeout=PATIENCE) as socket:
        for text in ("one", "two", "x" * 100_000):
            socket.send(text)
            assert socket.recv(PATIENCE) == text


@every(SERVERS)
def test_websockets_at_once_have_a_sandbox_each(fleet: Fleet) -> None:
    """Two websockets that meet inside of their handlers are in different sandboxes."""
    alice, bob = _two_websockets(fleet("wrapped"))
    assert (alice["user"], bob["user"]) == ("alice", "bob")
    assert alice["sandbox"] != bob["sandbox"]


@every(DIRECT)
def test_unwrapped_websockets_see_each_other(fleet: Fleet) -> None:
    """Without wrap(), of two websockets at once one gets the other's user."""
    alice, bob = _two_websockets(fleet("plain"))
    assert alice["user"] == bob["user"]


def _two_websockets(running: RunningServer) -> list[dict[str, Any]]:
    url = f"ws://127.0.0.1:{running.port}/meet?place=websockets&user="
    with (
        connect(url + "alice", open_timeout=PATIENCE) as first,
        connect(url + "bob", open_timeout=PATIENCE) as second,
    ):
        return [json.loads(socket.recv(PATIENCE)) for socket in (first, second)]
