"""A Flask app behind a real server, over real sockets, in each way that it can run."""

from __future__ import annotations

import hashlib
import http.client
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from time import monotonic
from typing import Any

import pytest
import requests
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from tests.servers.processes import PATIENCE, RunningServer, Server, answer, ask

from .served import WAYS

pytestmark = pytest.mark.server

UVICORN = ("-m", "uvicorn", "{app}", "--port", "{port}", "--no-access-log", "--http")
SERVE = ("-m", "sandboxpool", "serve", "tests.wsgi.flask_shop:create_app", "--factory", "--wsgi")
HOW = ("--max-size", "60", "--stats", "/stats", "--port", "{port}")

COMMANDS: dict[str, tuple[str, ...]] = {
    "loop": (*UVICORN, "h11"),
    "thread": (*UVICORN, "httptools"),
    "cooperative": (*UVICORN, "httptools"),
    "hypercorn-trio": (
        *("-m", "hypercorn", "tests.wsgi.flask_served:thread", "--bind", "127.0.0.1:{port}"),
        *("--worker-class", "trio"),
    ),
    "granian": (
        *("-m", "granian", "tests.wsgi.flask_served:cooperative", "--interface", "asgi"),
        *("--port", "{port}"),
    ),
    "serve-loop": (*SERVE, *HOW),
    "serve-thread": (*SERVE, "--run-in", "thread", *HOW),
    "serve-cooperative": (*SERVE, "--run-in", "cooperative", "--hooks", "sleep", *HOW),
}
each = pytest.mark.parametrize("running", WAYS, indirect=True)
all_ways = pytest.mark.parametrize("running", COMMANDS, indirect=True)

Start = Callable[[str], RunningServer]


@pytest.fixture(scope="module")
def start() -> Iterator[Start]:
    """Start each server once, for all tests."""
    running: dict[str, RunningServer] = {}
    with ExitStack() as stack:

        def start(name: str) -> RunningServer:
            if name not in running:
                with socket.socket() as chosen:
                    chosen.bind(("127.0.0.1", 0))
                    port = chosen.getsockname()[1]
                target = f"tests.wsgi.flask_served:{name}"
                command = [part.format(app=target, port=port) for part in COMMANDS[name]]
                server = RunningServer(Server(name, ()), [sys.executable, *command], port)
                running[name] = stack.enter_context(server)
            return running[name]

        yield start


@pytest.fixture
def running(request: pytest.FixtureRequest, start: Start) -> RunningServer:
    return start(request.param)


def all_at_once(number: int, function: Callable[[int], Any]) -> list[Any]:
    """Call a function in so many threads at the same time."""
    with ThreadPoolExecutor(number) as pool:
        return list(pool.map(function, range(number)))


@all_ways
def test_request(running: RunningServer) -> None:
    """What the client has sent is what Flask sees."""
    with running.connection() as connection:
        connection.request(
            "GET", "/echo/caf%C3%A9/a%20b?name=%C3%A9&n=1", headers={"X-Name": "Jos\xe9"}
        )
        told = answer(connection)
    assert told == {
        "path": "/echo/caf\xe9/a b",
        "rest": "caf\xe9/a b",
        "query": {"name": "\xe9", "n": "1"},
        "header": "Jos\xe9",
        "remote": "127.0.0.1",
        "url": f"http://127.0.0.1:{running.port}/echo/caf\xe9/a%20b?name=\xe9&n=1",
        "same_lease": True,
    }


@all_ways
def test_blocked_at_once(running: RunningServer) -> None:
    """50 requests that each block for a second take about a second together."""
    began = monotonic()
    told = all_at_once(50, lambda number: running.get("/sleep", seconds=1))
    took = monotonic() - began
    assert told == ["rested"] * 50
    assert 1 <= took < 12, took
    # More than anyio has threads for, whether the last ones came in time or not.
    assert running.get("/stats")["peak_concurrency"] > 40


@all_ways
def test_apps_are_private(running: RunningServer) -> None:
    """Two requests that meet inside of their views have an app each, and leave nothing in it."""
    users = ["ada", "bob"]
    told = all_at_once(2, lambda at: running.get("/meet", user=users[at], place="flask"))
    assert told == users
    assert all_at_once(4, lambda _: running.get("/user")) == [""] * 4


@each
def test_upload(running: RunningServer) -> None:
    """5 MB reach the app whole, with a length and without."""
    body = bytes(range(256)) * 20_000
    expected = {"size": len(body), "digest": hashlib.sha256(body).hexdigest()}
    with running.connection() as connection:
        connection.request("POST", "/upload", body)
        assert answer(connection) == expected
        parts = (body[at : at + 100_000] for at in range(0, len(body), 100_000))
        connection.request("POST", "/upload", parts, encode_chunked=True)
        assert answer(connection) == expected


@each
def test_upload_in_small_steps(running: RunningServer) -> None:
    """The app gets each part of a body when it arrives."""
    size = 2 * 65_536
    with running.connection() as connection:
        connection.putrequest("POST", "/upload?slowly=1")
        connection.putheader("Content-Length", str(size))
        connection.endheaders()
        connection.send(b"x" * 65_536)
        running.wait_for("^got 65536$")
        connection.send(b"x" * 65_536)
        assert answer(connection)["size"] == size


@each
def test_form_with_a_file(running: RunningServer) -> None:
    """A multipart form with a file, as browsers send it."""
    response = requests.post(
        f"http://127.0.0.1:{running.port}/form",
        data={"name": "ada"},
        files={"file": ("list.txt", b"x" * 1_000_000)},
        timeout=PATIENCE,
    )
    assert response.json() == {"name": "ada", "file": "list.txt", "size": 1_000_000}


@each
def test_hang_up_in_an_upload(running: RunningServer) -> None:
    """A client that goes in the middle of its body costs one request, and no sandbox for long."""
    with running.connection() as connection:
        connection.putrequest("POST", "/upload")
        connection.putheader("Content-Length", "100000")
        connection.endheaders()
        connection.send(b"x" * 1000)
        running.stats_until(lambda stats: stats["concurrency"] == 1)
    running.stats_until(lambda stats: stats["concurrency"] == 0)
    assert running.get("/user") == ""


@each
def test_stream(running: RunningServer) -> None:
    """A generator's blocks reach the client whole and in order, also one that takes its time."""
    with running.connection() as connection:
        connection.request("GET", "/stream?chunks=100")
        response = connection.getresponse()
        for number in range(100):
            assert response.read(65_536) == bytes([number]) * 65_536
        assert response.read() == b""
        # The connection goes on.
        assert ask(connection, "/user") == ""


@each
def test_hang_up_in_a_stream(running: RunningServer) -> None:
    """A client that goes away from an endless response ends it, and the app cleans up."""
    before = running.count("the stream is closed")
    with running.connection() as connection:
        connection.request("GET", "/endless")
        response = connection.getresponse()
        assert response.readline() == b"tick\n"
        response.close()
    running.wait_for("the stream is closed", before + 1)
    running.stats_until(lambda stats: stats["concurrency"] == 0)


@each
def test_errors(running: RunningServer) -> None:
    """An error of a view is Flask's own answer, one in the middle of a response ends it."""
    with running.connection() as connection:
        connection.request("GET", "/boom")
        response = connection.getresponse()
        assert (response.status, b"Internal Server Error" in response.read()) == (500, True)
        assert ask(connection, "/user") == ""
    running.wait_for("ZeroDivisionError: division by zero")
    with running.connection() as connection:
        connection.request("GET", "/boom-later")
        response = connection.getresponse()
        assert response.status == 200
        with pytest.raises(http.client.IncompleteRead) as caught:
            response.read()
        assert caught.value.partial == b"some"
    running.wait_for("ValueError: in the middle")


@each
def test_no_body(running: RunningServer) -> None:
    """HEAD and 204 have no body, and the connection goes on after them."""
    with running.connection() as connection:
        connection.request("HEAD", "/user")
        response = connection.getresponse()
        assert (response.status, response.headers["Content-Length"]) == (200, "3")
        assert response.read() == b""
        connection.request("GET", "/nothing")
        response = connection.getresponse()
        assert (response.status, response.read()) == (204, b"")
        assert ask(connection, "/user") == ""


@each
def test_session(running: RunningServer) -> None:
    """Cookies, sessions and redirects of a browser work, for each browser its own."""

    def log_in(number: int) -> Any:
        with requests.Session() as browser:
            url = f"http://127.0.0.1:{running.port}/login?user=user-{number}"
            return browser.get(url, timeout=PATIENCE).json()

    assert all_at_once(8, log_in) == [f"user-{number}" for number in range(8)]


@each
def test_websocket(running: RunningServer) -> None:
    """A websocket is refused, and the log says why."""
    with (
        pytest.raises(InvalidStatus) as caught,
        connect(f"ws://127.0.0.1:{running.port}/chat", open_timeout=PATIENCE),
    ):
        pass
    assert caught.value.response.status_code == 501
    running.wait_for("the websocket /chat is refused: .*create_app is a WSGI app")


def test_an_app_without_wsgi() -> None:
    """`serve` says what is missing when it is given a WSGI app."""
    done = subprocess.run(
        [sys.executable, "-m", "sandboxpool", "serve", "tests.wsgi.flask_shop:app"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "looks like a WSGI app: pass wsgi=True" in done.stderr


def test_statistics_say_how(start: Start) -> None:
    """The statistics name the isolation and where the app runs."""
    for name in WAYS:
        stats = start(name).get("/stats")
        assert (stats["isolation"], stats["run_in"]) == ("factory", name)
