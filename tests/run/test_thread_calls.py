"""An ASGI call crosses to the sandbox's thread and back as if there were none in between."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import AsyncIterator
from contextvars import ContextVar
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import StreamingResponse
from starlette.websockets import WebSocket, WebSocketDisconnect

from sandboxpool import LeaseEndedError, context, current_lease, current_sandbox, wrap
from tests.wrap.client import Connection, get, respond, settle

from .threads import PATIENCE, in_threads, together, until, wait_for


class Oops(Exception):
    """An error of the app's own."""


class Worse(BaseException):
    """One that nobody is supposed to catch."""


@pytest.mark.backend_with_uvloop
async def test_blocked_requests_run_at_once() -> None:
    """Requests that block their thread take as long together as one; on the loop they add up."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        time.sleep(0.2)
        await respond(send)

    began = time.monotonic()
    async with in_threads(app, max_size=20) as sandboxed:
        for connection in await together(sandboxed, 20):
            assert connection.status == 200
        assert sandboxed.statistics().peak_concurrency == 20
    assert time.monotonic() - began < 20 * 0.2 / 2
    # The control: the same requests on the loop.
    async with wrap(app, max_size=20, stall_after=None, lifespan="off") as sandboxed:
        began = time.monotonic()
        await together(sandboxed, 5)
        assert time.monotonic() - began >= 5 * 0.2


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("error", [Oops("x"), OSError(5), Worse(), KeyboardInterrupt()])
async def test_exceptions(error: BaseException, late: bool) -> None:
    """An exception of the app comes out as the very object, with the app's own frames."""

    async def deep_inside() -> None:
        raise error

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if late:
            await respond(send)
        await deep_inside()

    async with in_threads(app) as sandboxed:
        with pytest.raises(type(error)) as info:
            await get(sandboxed)
        assert info.value is error
        assert error.__cause__ is None
        assert error.__context__ is None
        assert "deep_inside" in [frame.name for frame in traceback.extract_tb(error.__traceback__)]
        assert sandboxed.statistics().concurrency == 0
        error.__traceback__ = None


async def test_return_value() -> None:
    """What the app returns is returned."""

    async def app(scope: Any, receive: Any, send: Any) -> str:
        await respond(send)
        return "this"

    async with in_threads(app) as sandboxed:
        assert (await get(sandboxed)).result == "this"


async def test_scope_is_the_servers() -> None:
    """The app gets the server's own scope, and what it leaves there is seen outside."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        scope["left"] = scope["extensions"]
        await respond(send)

    async with in_threads(app) as sandboxed:
        connection = await get(sandboxed, extensions={"http.response.trailers": {}})
        assert connection.scope["left"] == {"http.response.trailers": {}}


async def test_upload() -> None:
    """A body arrives whole and in order, message by message."""
    parts = [bytes([number]) * 1000 for number in range(100)]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        body = b""
        while True:
            message = await receive()
            body += message["body"]
            if not message["more_body"]:
                break
        await respond(send, body)

    async with in_threads(app) as sandboxed:
        for method in ("POST", "GET"):  # the one is read ahead, the other on demand
            assert (await get(sandboxed, method=method, body=parts)).body == b"".join(parts)


async def test_upload_waits_for_the_app() -> None:
    """An app that does not read lets the client wait: little is taken from the server ahead."""
    go_on = threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        go_on.wait(PATIENCE)
        size = 0
        while True:
            message = await receive()
            size += len(message["body"])
            if not message["more_body"]:
                break
        await respond(send, str(size).encode())

    async with in_threads(app) as sandboxed, anyio.create_task_group() as tasks:
        connection = Connection(sandboxed, method="POST", body=[bytes(16_384)] * 50)
        tasks.start_soon(connection.run)
        await until(lambda: connection.receives > 3)
        await settle()
        assert connection.unread > 40
        go_on.set()
        await until(connection.over.is_set)
        assert connection.text == str(50 * 16_384)


async def test_download_waits_for_the_client() -> None:
    """A client that does not read lets the app wait, with each part of the stream."""
    sent = 0
    read = anyio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal sent
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(50):
            await send({"type": "http.response.body", "body": bytes(16_384), "more_body": True})
            sent += 1
        await send({"type": "http.response.body", "body": b""})

    async with in_threads(app) as sandboxed:
        connection = Connection(sandboxed)

        async def slow_send(message: Any) -> None:
            if message["type"] == "http.response.body":
                await read.wait()
            await connection.send(message)

        async with anyio.create_task_group() as tasks:
            tasks.start_soon(sandboxed, connection.scope, connection.receive, slow_send)
            await until(lambda: connection.status)
            await settle()
            assert sent == 0
            read.set()
        assert len(connection.body) == 50 * 16_384


async def test_response_is_seen_while_the_app_blocks() -> None:
    """What the app has sent reaches the client although the app blocks right after it."""
    go_on = threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(send, b"early")
        go_on.wait(PATIENCE)

    async with in_threads(app) as sandboxed, anyio.create_task_group() as tasks:
        connection = Connection(sandboxed)
        tasks.start_soon(connection.run)
        await until(lambda: connection.text == "early")
        assert not connection.over.is_set()
        go_on.set()


async def test_disconnect() -> None:
    """The app learns that the client has gone, and is_disconnected() loses no message."""
    app = FastAPI()
    looked, asked = threading.Event(), threading.Event()

    @app.post("/")
    async def endpoint(request: Request) -> str:
        before = await request.is_disconnected()
        again = await request.is_disconnected()
        looked.set()
        body = await request.body()
        asked.set()
        while not await request.is_disconnected():
            await anyio.sleep(0.001)
        return f"{before} {again} {body.decode()}"

    async with in_threads(app) as sandboxed, anyio.create_task_group() as tasks:
        connection = Connection(sandboxed, method="POST", body=None)
        tasks.start_soon(connection.run)
        # Before: a message that is there already would be taken, and dropped, by Starlette.
        await wait_for(looked)
        connection.say({"type": "http.request", "body": b"all ", "more_body": True})
        connection.say({"type": "http.request", "body": b"of it", "more_body": False})
        await wait_for(asked)
        connection.hang_up()
        await until(connection.over.is_set)
        assert connection.json == "False False all of it"


async def test_gone_before_the_first_look() -> None:
    """A client that has gone already is seen by the first is_disconnected()."""
    app = FastAPI()

    @app.get("/")
    async def endpoint(request: Request) -> bool:
        return await request.is_disconnected()

    async with in_threads(app) as sandboxed:
        connection = Connection(sandboxed, body=None)
        connection.hang_up()
        with anyio.fail_after(PATIENCE):
            assert (await connection.run()).json is True


async def test_receive_fails() -> None:
    """What the server's receive() raises is raised by the app's."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        with pytest.raises(Oops, match="lost"):
            await receive()
        await respond(send)

    async with in_threads(app) as sandboxed:
        for method in ("GET", "POST"):
            connection = Connection(sandboxed, method=method, body=None)
            connection.fail(Oops("lost"))
            with anyio.fail_after(PATIENCE):
                assert (await connection.run()).status == 200


async def test_send_fails_in_a_stream() -> None:
    """What the server's send() raises is raised by one of the app's next ones."""
    seen: list[BaseException] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            while True:
                await send({"type": "http.response.body", "body": b"x", "more_body": True})
        except OSError as error:
            seen.append(error)
            raise

    async with in_threads(app) as sandboxed:
        connection = Connection(sandboxed)

        async def broken(message: Any) -> None:
            if message["type"] == "http.response.body":
                raise OSError("the client has gone")

        with anyio.fail_after(PATIENCE), pytest.raises(OSError, match="the client has gone"):
            await sandboxed(connection.scope, connection.receive, broken)
        assert len(seen) == 1


async def test_send_fails_at_the_end() -> None:
    """If the app has returned already, the call raises what the server's send() has raised."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "nonsense"})

    async with in_threads(app) as sandboxed:
        connection = Connection(sandboxed)

        async def strict(message: Any) -> None:
            raise RuntimeError(f"unexpected message {message['type']}")

        with pytest.raises(RuntimeError, match="unexpected message nonsense"):
            await sandboxed(connection.scope, connection.receive, strict)


async def test_websocket() -> None:
    """A websocket works in both directions, and is closed by the app or by the client."""
    app = FastAPI()
    left: list[int] = []

    @app.websocket("/")
    async def echo(websocket: WebSocket) -> None:
        await websocket.accept()
        try:
            while True:
                text = await websocket.receive_text()
                if text == "bye":
                    await websocket.close(1001)
                    return
                await websocket.send_text(text.upper())
        except WebSocketDisconnect as error:
            left.append(error.code)

    async with in_threads(app, max_size=2) as sandboxed, anyio.create_task_group() as tasks:
        first, second = (Connection(sandboxed, type="websocket") for _ in range(2))
        for connection in (first, second):
            tasks.start_soon(connection.run)
            for text in ("a", "b"):
                connection.say({"type": "websocket.receive", "text": text})
        first.say({"type": "websocket.receive", "text": "bye"})
        await until(first.over.is_set)
        assert [message.get("text") for message in first.sent[1:3]] == ["A", "B"]
        assert first.sent[-1]["code"] == 1001
        second.hang_up()
        await until(second.over.is_set)
        assert left == [1006]


async def test_websocket_send_fails() -> None:
    """On a websocket, the very send() that fails raises in the app."""
    app = FastAPI()
    seen: list[int] = []

    @app.websocket("/")
    async def push(websocket: WebSocket) -> None:
        await websocket.accept()
        try:
            await websocket.send_text("x")
            seen.append(0)
        except WebSocketDisconnect as error:
            seen.append(error.code)

    async with in_threads(app) as sandboxed:
        connection = Connection(sandboxed, type="websocket")

        async def gone(message: Any) -> None:
            if message["type"] == "websocket.send":
                raise OSError

        with anyio.fail_after(PATIENCE):
            await sandboxed(connection.scope, connection.receive, gone)
        assert seen == [1006]


async def test_late_use() -> None:
    """Code that outlives its request gets an error from send(), and the end from receive()."""
    late: list[object] = []
    over, done = threading.Event(), threading.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def stray() -> None:
            while not over.is_set():
                await anyio.sleep(0.001)
            try:
                await send({"type": "http.response.body", "body": b"late"})
            except LeaseEndedError as error:
                late.append(str(error))
            late.append(await receive())
            done.set()

        loop = current_sandbox().thread.loop  # type: ignore[attr-defined]
        late.append(loop.spawn(stray, "stray"))
        await respond(send)

    async with in_threads(app, reset="keep") as sandboxed:
        await get(sandboxed)
        over.set()
        await wait_for(done)
    assert late[1:] == [
        "'http.response.body' was sent for a request that is over: code that outlives its "
        "request cannot answer it any more.",
        {"type": "http.disconnect"},
    ]


async def test_context_variables() -> None:
    """What was set outside is seen in the thread, and what the app sets never gets out."""
    trace: ContextVar[str] = ContextVar("trace", default="none")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        found = trace.get()
        trace.set("set inside")
        await respond(send, found.encode())

    for isolate in (True, False):
        async with in_threads(app, isolate_context=isolate) as sandboxed:
            trace.set("set outside")
            assert (await get(sandboxed)).text == "set outside"
            assert trace.get() == "set outside"


async def test_lease_and_context() -> None:
    """The lease, its store and the sandbox are found by tasks, worker threads and `def` code."""
    app = FastAPI()

    @app.get("/")
    def endpoint(request: Request) -> list[object]:
        context.set("who", "ada")
        return [
            current_lease().path,
            context.get("who"),
            current_sandbox().app is request.app,  # type: ignore[attr-defined]
            threading.get_ident(),
        ]

    async with in_threads(app) as sandboxed:
        path, who, same, ident = (await get(sandboxed)).json
        assert (path, who, same) == ("/", "ada", True)
        assert ident != threading.get_ident()


@pytest.mark.parametrize("fails", [False, True])
async def test_deferred_callbacks_run_in_the_thread(fails: bool) -> None:
    """Deferred callbacks, sync and async, run where the app ran, with its context variables."""
    mine: ContextVar[str] = ContextVar("mine", default="none")
    ran: list[tuple[str, int, str]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        mine.set("the app's")
        ran.append(("app", threading.get_ident(), mine.get()))

        async def later() -> None:
            await anyio.lowlevel.checkpoint()
            ran.append(("later", threading.get_ident(), mine.get()))

        context.defer(lambda: ran.append(("plain", threading.get_ident(), mine.get())))
        context.defer(later)
        if fails:
            raise Oops
        await respond(send)

    async with in_threads(app) as sandboxed:
        if fails:
            with pytest.raises(Oops):
                await get(sandboxed)
        else:
            await get(sandboxed)
        here = threading.get_ident()
        assert [name for name, _, _ in ran] == ["app", "later", "plain"]
        assert {value for _, _, value in ran} == {"the app's"}
        assert len({ident for _, ident, _ in ran} | {here}) == 2


async def test_stream_of_blocking_code() -> None:
    """A stream that blocks between its parts sends each of them at once."""
    app = FastAPI()
    go_on = [threading.Event() for _ in range(3)]

    @app.get("/")
    async def endpoint() -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            for number, event in enumerate(go_on):
                yield str(number).encode()
                event.wait(PATIENCE)

        return StreamingResponse(parts())

    async with in_threads(app) as sandboxed, anyio.create_task_group() as tasks:
        connection = Connection(sandboxed)
        tasks.start_soon(connection.run)
        for number, event in enumerate(go_on):
            told = "".join(map(str, range(number + 1)))
            await until(lambda told=told: connection.text == told)  # type: ignore[misc]
            event.set()


async def test_short_request_crosses_twice() -> None:
    """A request that reads nothing wakes the other side once in each direction."""
    async with in_threads(respond_only, stats=None) as sandboxed:
        await get(sandboxed)
        assert sandboxed.pool is not None
        posts: list[str] = []
        (slot,) = sandboxed.pool.slots.idle
        sandbox: Any = slot.item
        thread_post, wake_all = sandbox.thread.post, sandbox.port.wake_all

        def post(function: Any) -> bool:
            posts.append("there")
            return bool(thread_post(function))

        def wake() -> None:
            posts.append("back")
            wake_all()

        sandbox.thread.post, sandbox.port.wake_all = post, wake
        await get(sandboxed)
        assert posts.count("there") == 1
        # Woken by the thread; the loop's own look every few milliseconds may come in between.
        assert 1 <= posts.count("back") <= 3


async def respond_only(scope: Any, receive: Any, send: Any) -> None:
    """A raw app that reads nothing."""
    await respond(send)
