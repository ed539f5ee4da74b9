"""The body of a request, as a WSGI app reads it."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import pytest

from tests.wrap.client import Connection

from .served import StartResponse, ask, each_way, opened

Read = Callable[[Any], Any]


def reading(read: Read) -> Any:
    """Return an app that answers with what *read* makes of the input, and with the rest."""

    def app(environ: dict[str, Any], start_response: StartResponse) -> list[bytes]:
        body = environ["wsgi.input"]
        found = repr(read(body)).encode()
        start_response("200 OK", [])
        return [found, b" + ", body.read()]

    return app


def read_after_the_end(body: Any) -> list[bytes]:
    return [body.read(), body.read(), body.read(5), body.readline(), *body.readlines()]


@each_way
@pytest.mark.parametrize(
    ("read", "found"),
    [
        (lambda body: body.read(), b"b'one\\ntwo\\n\\nfour' + "),
        (lambda body: body.read(-1), b"b'one\\ntwo\\n\\nfour' + "),
        (lambda body: body.read(None), b"b'one\\ntwo\\n\\nfour' + "),
        (lambda body: body.read(5), b"b'one\\nt' + wo\n\nfour"),
        (lambda body: body.read(0), b"b'' + one\ntwo\n\nfour"),
        (lambda body: body.read(500), b"b'one\\ntwo\\n\\nfour' + "),
        (lambda body: body.readline(), b"b'one\\n' + two\n\nfour"),
        (lambda body: body.readline(2), b"b'on' + e\ntwo\n\nfour"),
        (lambda body: body.readlines(), b"[b'one\\n', b'two\\n', b'\\n', b'four'] + "),
        (lambda body: body.readlines(5), b"[b'one\\n', b'two\\n'] + \nfour"),
        (lambda body: list(body), b"[b'one\\n', b'two\\n', b'\\n', b'four'] + "),
        (read_after_the_end, b"[b'one\\ntwo\\n\\nfour', b'', b'', b''] + "),
    ],
)
async def test_ways_to_read(run_in: str, read: Read, found: bytes) -> None:
    """Each way to read gives what a file would, however the body was cut into parts."""
    got = await ask(reading(read), run_in, body=[b"o", b"ne\ntw", b"", b"o\n\nfo", b"ur"])
    assert got.body == found


@each_way
async def test_no_body(run_in: str) -> None:
    """A request without a body has nothing to read, and that is at its end."""
    assert (await ask(reading(read_after_the_end), run_in)).body == b"[b'', b'', b'', b''] + "


@each_way
async def test_parts_are_read_on_demand(run_in: str) -> None:
    """No more of the body is taken from the server than the app asks for, and a little ahead."""

    def app(environ: dict[str, Any], start_response: StartResponse) -> Iterator[bytes]:
        body = environ["wsgi.input"]
        start_response("200 OK", [])
        yield str(len(body.read(10))).encode()
        yield b" + " + str(len(body.read())).encode()

    async with opened(app, run_in) as sandboxed:
        connection = Connection(sandboxed, body=[b"x" * 65_536] * 100, method="POST")
        gate = anyio.Event()

        async def send(message: Any) -> None:
            await Connection.send(connection, message)
            await gate.wait()

        connection.send = send  # type: ignore[method-assign]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(connection.run)
            await connection.started.wait()
            assert connection.receives <= (3 if run_in == "thread" else 1)
            gate.set()
    assert connection.body == b"10 + 6553590"


@each_way
async def test_an_app_that_does_not_read(run_in: str) -> None:
    """What the app does not read is not taken from the server, but for what is sent ahead."""

    def app(environ: dict[str, Any], start_response: StartResponse) -> list[bytes]:
        start_response("200 OK", [])
        return [b"no thanks"]

    async with opened(app, run_in) as sandboxed:
        connection = Connection(sandboxed, body=[b"x" * 65_536] * 10, method="POST")
        await connection.run()
        assert connection.body == b"no thanks"
        assert connection.receives <= (2 if run_in == "thread" else 0)


@each_way
async def test_large_upload(run_in: str) -> None:
    """20 MB go through, block by block, whole."""
    part = bytes(range(256)) * 256
    expected = hashlib.sha256(part * 320).hexdigest()

    def app(environ: dict[str, Any], start_response: StartResponse) -> list[bytes]:
        digest = hashlib.sha256()
        while block := environ["wsgi.input"].read(100_000):
            digest.update(block)
        start_response("200 OK", [])
        return [digest.hexdigest().encode()]

    assert (await ask(app, run_in, method="POST", body=[part] * 320)).text == expected


@each_way
async def test_echo(run_in: str) -> None:
    """An app may read on while it streams its answer."""

    def app(environ: dict[str, Any], start_response: StartResponse) -> Iterator[bytes]:
        start_response("200 OK", [])
        for line in environ["wsgi.input"]:
            yield line.upper()

    async with opened(app, run_in) as sandboxed:
        connection = Connection(sandboxed, body=None, method="POST")
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(connection.run)
            for number in range(5):
                line = b"line %d\n" % number
                connection.say({"type": "http.request", "body": line, "more_body": number < 4})
                with anyio.fail_after(5):
                    while not connection.body.endswith(line.upper()):
                        await anyio.sleep(0.001)
    assert connection.body.count(b"LINE") == 5


@pytest.mark.parametrize("run_in", ["loop", "thread"])
async def test_reading_in_another_thread(run_in: str) -> None:
    """Where an app runs in a thread, threads that it starts may read the body, too."""

    def app(environ: dict[str, Any], start_response: StartResponse) -> list[bytes]:
        with ThreadPoolExecutor(1) as pool:
            body = pool.submit(environ["wsgi.input"].read).result()
        start_response("200 OK", [])
        return [body.upper()]

    assert (await ask(app, run_in, body=[b"some", b"thing"])).body == b"SOMETHING"


@each_way
async def test_hang_up_while_reading(run_in: str) -> None:
    """A client that goes in the middle of its body is an OSError for the app, as with a socket."""
    seen: list[BaseException] = []

    def app(environ: dict[str, Any], start_response: StartResponse) -> list[bytes]:
        try:
            environ["wsgi.input"].read()
        except OSError as error:
            seen.append(error)
            raise
        return []

    async with opened(app, run_in) as sandboxed:
        connection = Connection(sandboxed, body=None, method="POST")
        connection.say({"type": "http.request", "body": b"some", "more_body": True})
        connection.hang_up()
        await connection.run()  # nobody is there to whom that would be an error
    (error,) = seen
    assert isinstance(error, ConnectionResetError)
    assert str(error) == "the client has hung up."
    assert connection.sent == []


@each_way
async def test_an_error_of_the_app_about_a_connection(run_in: str) -> None:
    """An error of the same class that is the app's own is not taken for a client that is gone."""

    def app(environ: dict[str, Any], start_response: StartResponse) -> list[bytes]:
        raise ConnectionResetError("the database has hung up")

    with pytest.raises(ConnectionResetError, match="the database has hung up"):
        await ask(app, run_in)
