"""The answers of WSGI apps: what PEP 3333 promises the app, wherever it runs."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from io import BytesIO
from typing import Any

import anyio
import pytest

from tests.wrap.client import Connection

from .served import Blocks, StartResponse, ask, each_way, opened

HTML = [("Content-Type", "text/html")]


def answering(blocks: Any, status: str = "200 OK", headers: list[tuple[str, str]] = HTML) -> Any:
    """Return a WSGI app that answers always the same."""

    def app(environ: dict[str, Any], start_response: StartResponse) -> Any:
        start_response(status, list(headers))
        return blocks

    return app


@each_way
@pytest.mark.backend_with_uvloop
async def test_whole_answer(run_in: str) -> None:
    """Status, headers and body reach the client; a body of one block is told with its length."""
    got = await ask(answering([b"hello"], "201 Created"), run_in)
    assert (got.status, got.body) == (201, b"hello")
    assert got.headers == {"content-type": "text/html", "content-length": "5"}
    assert got.types == ["http.response.start", "http.response.body"]
    assert not got.sent[-1]["more_body"]


@each_way
async def test_headers_as_they_were_given(run_in: str) -> None:
    """A header that is set twice is sent twice, in order, in Latin-1."""
    headers = [("Set-Cookie", "a=1"), ("X-Name", "Jos\xe9"), ("Set-Cookie", "b=2")]
    got = await ask(answering([b"x"], headers=headers), run_in)
    assert got.sent[0]["headers"] == [
        (b"set-cookie", b"a=1"),
        (b"x-name", b"Jos\xe9"),
        (b"set-cookie", b"b=2"),
        (b"content-length", b"1"),
    ]


@each_way
@pytest.mark.parametrize("blocks", [[], [b""], [b"", b""], Blocks(), Blocks(b"")])
async def test_empty_body(run_in: str, blocks: Any) -> None:
    """A response without a body has a length of 0."""
    got = await ask(answering(blocks), run_in)
    assert (got.status, got.body, got.headers["content-length"]) == (200, b"", "0")


@each_way
async def test_start_response_late(run_in: str) -> None:
    """A generator may start the response with its first block, after empty ones."""

    def app(environ: dict[str, Any], start_response: StartResponse) -> Iterator[bytes]:
        yield b""
        start_response("404 Not Found", [])
        yield b"no"

    got = await ask(app, run_in)
    assert (got.status, got.body) == (404, b"no")


@each_way
async def test_write(run_in: str) -> None:
    """What the app writes itself is sent before what it returns."""

    def app(environ: dict[str, Any], start_response: StartResponse) -> list[bytes]:
        write = start_response("200 OK", HTML)
        write(b"one ")
        write(b"two ")
        return [b"three"]

    got = await ask(app, run_in)
    assert got.body == b"one two three"
    assert "content-length" not in got.headers


@each_way
async def test_write_of_nothing_sends_the_head(run_in: str) -> None:
    """write() sends the head at once, also with an empty block."""
    seen = []

    def app(environ: dict[str, Any], start_response: StartResponse) -> list[bytes]:
        start_response("200 OK", [])(b"")
        seen.append([message["type"] for message in got.sent])
        return []

    async with opened(app, run_in) as sandboxed:
        got = Connection(sandboxed)
        await got.run()
    if run_in != "thread":  # which need not wait until it is sent
        assert seen == [["http.response.start", "http.response.body"]]
    assert got.status == 200


@each_way
async def test_blocks_are_sent_as_they_come(run_in: str) -> None:
    """Each block is on its way before the app makes the next one."""
    sent: list[bytes] = []
    asked: list[int] = []

    def app(environ: dict[str, Any], start_response: StartResponse) -> Iterator[bytes]:
        start_response("200 OK", [])
        for number in range(4):
            asked.append(len(sent))
            yield bytes([number]) * 70_000

    async with opened(app, run_in) as sandboxed:
        connection = Connection(sandboxed)

        async def send(message: Any) -> None:
            if message.get("body"):
                sent.append(message["body"])
            await Connection.send(connection, message)

        connection.send = send  # type: ignore[method-assign]
        await connection.run()
    assert len(connection.body) == 280_000
    # A sandbox in a thread of its own may be ahead by one.
    assert asked in ([0, 1, 2, 3], [0, 0, 1, 2])


@each_way
async def test_slow_client(run_in: str) -> None:
    """A client that does not take the blocks stops the app from making them."""
    blocks = Blocks(*[b"x" * 70_000] * 50)
    async with opened(answering(blocks), run_in) as sandboxed:
        connection = Connection(sandboxed)
        gate = anyio.Event()

        async def send(message: Any) -> None:
            await Connection.send(connection, message)
            if message.get("body"):
                await gate.wait()

        connection.send = send  # type: ignore[method-assign]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(connection.run)
            await connection.started.wait()
            await anyio.sleep(0.1)  # long enough to make all of them
            assert blocks.given <= 3
            gate.set()
    assert len(connection.body) == 50 * 70_000
    assert blocks.closed == 1


@each_way
@pytest.mark.parametrize(
    ("method", "status", "length"),
    [
        ("HEAD", "200 OK", "9"),
        ("GET", "204 No Content", None),
        ("GET", "304 Not Modified", None),
    ],
)
async def test_no_body(run_in: str, method: str, status: str, length: str | None) -> None:
    """Where no body belongs, none is sent, and none is announced but to HEAD."""
    blocks = Blocks(b"some", b" body", b"!")
    app = answering(blocks, status, [("Content-Length", "9")])
    got = await ask(app, run_in, method=method)
    assert (got.status, got.body) == (int(status[:3]), b"")
    assert got.headers.get("content-length") == length
    assert (blocks.given, blocks.closed) == (1, 1)


@each_way
async def test_head_of_nothing(run_in: str) -> None:
    """A HEAD that yields nothing is not told to have a length of 0, which GET may not have."""
    got = await ask(answering([]), run_in, method="HEAD")
    assert (got.status, got.headers) == (200, {"content-type": "text/html"})


@each_way
async def test_end_by_length(run_in: str) -> None:
    """With the last byte of its Content-Length a response is over, before it is closed."""
    blocks = Blocks(b"12", b"345", b"not asked for")
    got = await ask(answering(blocks, headers=[("Content-Length", "5")]), run_in)
    assert got.body == b"12345"
    assert [message.get("more_body") for message in got.sent] == [None, True, False]
    assert (blocks.given, blocks.closed) == (2, 1)


@each_way
async def test_too_much(run_in: str, caplog: pytest.LogCaptureFixture) -> None:
    """What is beyond the Content-Length is dropped, and the log says so."""
    got = await ask(answering([b"12345678"], headers=[("Content-Length", "5")]), run_in)
    assert got.body == b"12345"
    assert "sends more than the 5 bytes of its Content-Length; the rest is dropped" in caplog.text


@each_way
async def test_too_little(run_in: str) -> None:
    """A body that ends before its Content-Length is an error, not an answer that seems whole."""
    blocks = Blocks(b"123")
    with pytest.raises(RuntimeError, match=r"declared a Content-Length of 5 bytes and sent 3\."):
        await ask(answering(blocks, headers=[("Content-Length", "5")]), run_in)
    assert blocks.closed == 1


class BoomError(Exception):
    """What the apps raise."""


def raise_deep() -> None:
    raise BoomError("deep")


@each_way
@pytest.mark.parametrize("when", ["before", "started", "first", "later", "close"])
async def test_errors_reach_the_server(run_in: str, when: str) -> None:
    """What the app raises, whenever it does, comes out with its own traceback."""

    class Answer(Blocks):
        def __next__(self) -> Any:
            if when == "first" or (when == "later" and self.given):
                raise_deep()
            return super().__next__()

        def close(self) -> None:
            super().close()
            if when == "close":
                raise_deep()

    answer = Answer(b"some", b"thing")

    def app(environ: dict[str, Any], start_response: StartResponse) -> Any:
        if when == "before":
            raise_deep()
        start_response("200 OK", [])
        if when == "started":
            raise_deep()
        return answer

    async with opened(app, run_in) as sandboxed:
        connection = Connection(sandboxed)
        with pytest.raises(BoomError, match="deep") as caught:
            await connection.run()
    names = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
    assert names[-1] == "raise_deep"
    assert "app" in names or when in ("first", "later", "close")
    expected = {"later": b"some", "close": b"something"}.get(when, b"")
    assert connection.body == expected
    assert bool(connection.sent) == (when in ("later", "close"))
    assert answer.closed == (when in ("first", "later", "close"))


@each_way
async def test_another_response_after_an_error(run_in: str) -> None:
    """Before the body has begun, start_response() with exc_info replaces the response."""

    def app(environ: dict[str, Any], start_response: StartResponse) -> list[bytes]:
        start_response("200 OK", [("Content-Length", "99")])
        try:
            raise_deep()
        except BoomError:
            start_response("500 Oops", [("X-Failed", "yes")], sys.exc_info())
        return [b"sorry"]

    got = await ask(app, run_in)
    assert (got.status, got.body) == (500, b"sorry")
    assert got.headers == {"x-failed": "yes", "content-length": "5"}


@each_way
async def test_an_error_that_comes_too_late(run_in: str) -> None:
    """After the body has begun, start_response() raises the error that it is given."""

    def app(environ: dict[str, Any], start_response: StartResponse) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"some"
        try:
            raise_deep()
        except BoomError:
            start_response("500 Oops", [], sys.exc_info())
        yield b"never"

    async with opened(app, run_in) as sandboxed:
        connection = Connection(sandboxed)
        with pytest.raises(BoomError, match="deep"):
            await connection.run()
    assert (connection.status, connection.body) == (200, b"some")


def twice(environ: dict[str, Any], start_response: StartResponse) -> list[bytes]:
    start_response("200 OK", [])
    start_response("200 OK", [])
    return []


def silent(environ: dict[str, Any], start_response: StartResponse) -> list[bytes]:
    return [b"body"]


def silent_and_empty(environ: dict[str, Any], start_response: StartResponse) -> list[bytes]:
    return []


def writing_text(environ: dict[str, Any], start_response: StartResponse) -> list[bytes]:
    start_response("200 OK", [])("text")  # type: ignore[arg-type]
    return []


async def later(environ: dict[str, Any], start_response: StartResponse) -> list[bytes]:
    return []


def calling_async(environ: dict[str, Any], start_response: StartResponse) -> Any:
    return later(environ, start_response)


BROKEN: list[tuple[Any, type[Exception], str]] = [
    (twice, RuntimeError, r"twice called start_response\(\) a second time: .* with exc_info"),
    (silent, RuntimeError, r"silent has not called start_response\(\), which must come before"),
    (silent_and_empty, RuntimeError, r"silent_and_empty has not called start_response\(\)"),
    (writing_text, TypeError, r"sends 'text' of type str as a block .* must be bytes, so encode"),
    (answering("text"), TypeError, r"returned 'text' of type str; .* such as \[body\]"),
    (answering(b"bytes"), TypeError, r"returned b'bytes' of type bytes; .* an iterable of bytes"),
    (answering(None), TypeError, r"returned None of type NoneType; a WSGI app returns"),
    (answering(["text"]), TypeError, r"sends 'text' of type str as a block of its body"),
    (answering([b"x", 3]), TypeError, r"sends 3 of type int as a block of its body"),
    (answering(["x" * 99]), TypeError, r"sends 'x{56}\.\.\. of type str"),
    (calling_async, TypeError, r"returned <coroutine object later .* of type coroutine"),
    (answering([], 200), TypeError, r"the status 200, which must be text such as \"200 OK\""),  # type: ignore[arg-type]
    (answering([], "OK"), ValueError, r"the status 'OK': it starts with a number of three digits"),
    (answering([], "20 OK"), ValueError, r"the status '20 OK': it starts with"),
    (answering([], "2000 OK"), ValueError, r"the status '2000 OK': it starts with"),
    (answering([], headers=[("X", 1)]), TypeError, r"the header 'X': 1; both must be text"),  # type: ignore[list-item]
    (answering([], headers=[(b"X", "1")]), TypeError, r"the header b'X': '1'; both must"),  # type: ignore[list-item]
    (answering([], headers=[("X", "a\nb")]), ValueError, r"'X': 'a\\nb', which has more than one"),
    (
        answering([], headers=[("Content-Length", "five")]),
        ValueError,
        r"a Content-Length of 'five', which must be a number of bytes",
    ),
]


@pytest.mark.parametrize(("app", "error", "text"), BROKEN)
async def test_broken_apps(app: Any, error: type[Exception], text: str) -> None:
    """What PEP 3333 does not allow is an error that names the app and says what to do."""
    with pytest.raises(error, match=text) as caught:
        await ask(app, "loop")
    assert str(caught.value).startswith(f"{__name__}.")


@each_way
async def test_the_servers_error(run_in: str) -> None:
    """What the server raises when something is sent comes out, and the response is closed."""
    blocks = Blocks(*[b"x" * 70_000] * 4)
    async with opened(answering(blocks), run_in) as sandboxed:
        connection = Connection(sandboxed)

        async def send(message: Any) -> None:
            raise OSError("the connection is broken")

        connection.send = send  # type: ignore[method-assign]
        with pytest.raises(OSError, match="the connection is broken"):
            await connection.run()
    assert blocks.closed == 1
    assert blocks.given <= 2


@each_way
async def test_file_wrapper(run_in: str) -> None:
    """A file that the app hands over is sent in large blocks, and closed."""
    file = BytesIO(bytes(range(256)) * 512)

    def app(environ: dict[str, Any], start_response: StartResponse) -> Any:
        start_response("200 OK", [])
        return environ["wsgi.file_wrapper"](file, 4096)

    got = await ask(app, run_in)
    assert got.body == bytes(range(256)) * 512
    assert max(len(message.get("body", b"")) for message in got.sent) == 64 * 1024
    assert file.closed


async def test_an_instance_for_each_call() -> None:
    """A class whose instances are responses is a WSGI app, as PEP 3333 has it."""

    class Response:
        def __init__(self, environ: dict[str, Any], start_response: StartResponse) -> None:
            start_response("200 OK", [("X-Path", environ["PATH_INFO"])])

        def __iter__(self) -> Iterator[bytes]:
            yield b"hello"

    got = await ask(Response, "loop", "/there")
    assert (got.body, got.headers["x-path"]) == (b"hello", "/there")


@each_way
async def test_threads_do_not_run_out(run_in: str) -> None:
    """More requests than the server has threads for others block at the same time."""
    number = 45  # anyio's limit is 40
    inside = 0
    everybody = anyio.Event()

    def app(environ: dict[str, Any], start_response: StartResponse) -> Iterator[bytes]:
        start_response("200 OK", [])
        yield b"in"
        yield b"out"

    async with opened(app, run_in, max_size=number) as sandboxed:

        async def one() -> None:
            nonlocal inside
            connection = Connection(sandboxed)

            async def send(message: Any) -> None:
                nonlocal inside
                if message.get("body") == b"in":
                    inside += 1
                    if inside == number:
                        everybody.set()
                    await everybody.wait()
                await Connection.send(connection, message)

            connection.send = send  # type: ignore[method-assign]
            await connection.run()
            assert connection.body == b"inout"

        with anyio.fail_after(20):
            async with anyio.create_task_group() as tasks:
                for _ in range(number):
                    tasks.start_soon(one)
