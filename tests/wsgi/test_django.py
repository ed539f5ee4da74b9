"""A site of Django behind a real server, for its settings are global: a process of its own."""

from __future__ import annotations

import asyncio
import hashlib
import socket
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from time import monotonic
from typing import Any

import django.utils.asyncio  # type: ignore[import-untyped]
import pytest
from django.core.exceptions import SynchronousOnlyOperation  # type: ignore[import-untyped]

from tests.servers.processes import RunningServer, Server, answer, ask
from tests.wrap.client import get

from .served import WAYS, StartResponse, each_way, opened

pytestmark = pytest.mark.server

each = pytest.mark.parametrize("running", WAYS, indirect=True)
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
                command = [sys.executable, "-m", "uvicorn", f"tests.wsgi.django_site:{name}"]
                command += ["--port", str(port), "--no-access-log"]
                server = RunningServer(Server(f"django-{name}", ()), command, port)
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


@each
def test_request(running: RunningServer) -> None:
    """What the client has sent is what Django sees."""
    told = running.get("/echo/caf%C3%A9/a%20b", name="\xe9")
    assert told == {
        "rest": "caf\xe9/a b",
        "path": "/echo/caf\xe9/a b",
        "query": {"name": "\xe9"},
    }


@each
def test_blocked_at_once(running: RunningServer) -> None:
    """50 blocked requests take about a second together, each with middleware of its own."""
    users = [f"user-{number}" for number in range(50)]
    began = monotonic()
    told = all_at_once(50, lambda at: running.get("/sleep", seconds=1, user=users[at]))
    took = monotonic() - began
    assert told == users
    assert 1 <= took < 12, took
    # Nobody finds what another one has left there.
    assert all_at_once(50, lambda _: running.get("/sleep", seconds=0.01)) == [""] * 50


def test_control(start: Start) -> None:
    """One app for all requests has one middleware for all of them, which mixes them up."""
    running = start("shared")
    users = [f"user-{number}" for number in range(10)]
    told = all_at_once(10, lambda at: running.get("/sleep", seconds=0.3, user=users[at]))
    assert told != users


@each
def test_languages(running: RunningServer) -> None:
    """What Django itself keeps for each request apart stays apart."""
    languages = ["de", "fr", "en", "es"]
    told = all_at_once(4, lambda at: running.get("/language", language=languages[at]))
    assert told == languages


@each
def test_bodies(running: RunningServer) -> None:
    """Uploads, streams and files get through whole."""
    body = bytes(range(256)) * 10_000
    with running.connection() as connection:
        connection.request("POST", "/upload", body)
        assert answer(connection) == hashlib.sha256(body).hexdigest()
        connection.request("GET", "/stream")
        streamed = connection.getresponse().read()
        assert streamed == b"".join(bytes([number]) * 65_536 for number in range(100))
        connection.request("GET", "/file")
        file = connection.getresponse().read()
        assert file == Path(__file__).with_name("django_site.py").read_bytes()
        assert ask(connection, "/pid")


@each
def test_database(running: RunningServer) -> None:
    """The ORM's database works, with a connection for each request that is under way."""
    users = ["ada", "bob", "cyd", "dan"]
    told = all_at_once(4, lambda at: running.get("/database", user=users[at]))
    assert told == [[user] for user in users]


@each_way
async def test_other_code_is_still_refused(
    run_in: str, monkeypatch: pytest.MonkeyPatch, anyio_backend_name: str
) -> None:
    """What Django forbids beside an event loop is allowed where it may block, and only there."""
    monkeypatch.setattr(django.utils.asyncio, "get_running_loop", asyncio.get_running_loop)

    @django.utils.asyncio.async_unsafe  # type: ignore[untyped-decorator]
    def query() -> bytes:
        return b"found"

    def app(environ: dict[str, Any], start_response: StartResponse) -> list[bytes]:
        start_response("200 OK", [])
        return [query()]

    async with opened(app, run_in) as sandboxed:
        for _ in range(2):
            assert (await get(sandboxed)).body == b"found"
        if anyio_backend_name == "asyncio":  # Django does not know Trio's
            with pytest.raises(SynchronousOnlyOperation):
                query()
