"""What the app does with its server behaves as it would without a pool."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Generator
from typing import Any

import anyio
import pytest
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.endpoints import HTTPEndpoint
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket

from sandboxpool import NoLeaseError, SandboxedApp, current_lease, wrap

from .client import Connection, Gated, get, respond, settle


class Oops(Exception):
    """An error of the app's own."""


class Worse(BaseException):
    """One that nobody is supposed to catch."""


def plain(app: Any, **options: Any) -> SandboxedApp:
    """Wrap a raw app that has no lifespan."""
    return wrap(app, max_size=1, stall_after=None, lifespan="off", **options)


def retired(sandboxed: SandboxedApp) -> dict[str, int]:
    """Return the reasons for which sandboxes were retired."""
    return {reason: n for reason, n in sandboxed.statistics().pool.retired.items() if n}


pytestmark = pytest.mark.parametrize("isolate_context", [True, False], ids=["isolated", "plain"])


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("error", [Oops("x"), OSError(5), StopAsyncIteration()])
async def test_exceptions(error: Exception, late: bool, isolate_context: bool) -> None:
    """An exception of the app comes out as the very object that was raised, and nothing more."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if late:
            await respond(send)
        raise error

    async with plain(app, isolate_context=isolate_context) as sandboxed:
        with pytest.raises(type(error)) as info:
            await get(sandboxed)
        assert info.value is error
        assert error.__cause__ is None
        assert error.__context__ is None
        # The app came to an end of its own: its sandbox is good.
        assert retired(sandboxed) == {}
        assert sandboxed.statistics().concurrency == 0


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("kind", [KeyboardInterrupt, GeneratorExit, SystemExit, Worse])
async def test_base_exceptions(
    kind: type[BaseException], late: bool, isolate_context: bool
) -> None:
    """So does what is no `Exception`; the sandbox is retired, and the lease has ended."""
    error = kind()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if late:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        raise error

    async with plain(app, isolate_context=isolate_context) as sandboxed:
        caught = None
        try:
            await get(sandboxed)
        except BaseException as raised:
            caught = raised
        assert caught is error
        assert retired(sandboxed) == {"cancelled": 1}
        assert sandboxed.statistics().concurrency == 0


@pytest.mark.parametrize("value", [None, 0, "text", ["list"]])
async def test_return_value(value: Any, isolate_context: bool) -> None:
    """What the app returns is returned; servers look at it."""

    async def quick(scope: Any, receive: Any, send: Any) -> Any:
        return value

    async def slow(scope: Any, receive: Any, send: Any) -> Any:
        await anyio.lowlevel.checkpoint()
        return value

    for app in (quick, slow):
        async with plain(app, isolate_context=isolate_context) as sandboxed:
            assert (await get(sandboxed)).result is value


class Awaitable:
    """What is awaitable, and no coroutine."""

    def __init__(self, scope: Any, receive: Any, send: Any) -> None:
        self.send = send

    def __await__(self) -> Generator[Any, Any, str]:
        yield from respond(self.send).__await__()
        return "done"


class Iterator:
    """An iterator without `send`, as `__await__` may return one."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __iter__(self) -> Iterator:
        return self

    def __next__(self) -> Any:
        return next(self.inner)


class AwaitableIterator(Awaitable):
    """Awaits with an iterator that is no generator."""

    def __await__(self) -> Any:
        return Iterator(super().__await__())


async def test_awaitables(isolate_context: bool) -> None:
    """An app may return any awaitable, not just a coroutine."""

    def app(scope: Any, receive: Any, send: Any) -> Any:
        return Awaitable(scope, receive, send)

    async with plain(app, isolate_context=isolate_context) as sandboxed:
        connection = await get(sandboxed)
        assert connection.text == "ok"
        assert connection.result == "done"


@pytest.mark.parametrize("anyio_backend", [("asyncio", {})], indirect=True)
async def test_iterators(isolate_context: bool) -> None:
    """Even one that is awaited with a bare iterator (which Trio itself cannot drive)."""

    def app(scope: Any, receive: Any, send: Any) -> Any:
        return AwaitableIterator(scope, receive, send)

    async with plain(app, isolate_context=isolate_context) as sandboxed:
        assert (await get(sandboxed)).result == "done"


@pytest.mark.parametrize("anyio_backend", [("asyncio", {})], indirect=True)
async def test_future(isolate_context: bool) -> None:
    """A future is an awaitable, too."""

    def app(scope: Any, receive: Any, send: Any) -> Any:
        return asyncio.ensure_future(respond(send))

    async with plain(app, isolate_context=isolate_context) as sandboxed:
        assert (await get(sandboxed)).text == "ok"


async def test_endpoint_classes(isolate_context: bool) -> None:
    """Starlette's class-based endpoints, which are awaitables, serve."""

    class Hello(HTTPEndpoint):
        async def get(self, request: Request) -> PlainTextResponse:
            return PlainTextResponse("hello")

    app = Starlette(routes=[Route("/", Hello)])
    async with wrap(app, max_size=1, isolate_context=isolate_context) as sandboxed:
        assert (await get(sandboxed)).text == "hello"


async def test_send_and_receive_need_not_be_coroutine_functions(isolate_context: bool) -> None:
    """A server's `send` and `receive` may return any awaitable."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        message = await receive()
        await respond(send, message["body"])

    async with plain(app, isolate_context=isolate_context) as sandboxed:
        connection = Connection(sandboxed, body=[b"hi"])
        send, receive = connection.send, connection.receive

        class Later:
            def __init__(self, function: Any) -> None:
                self.function = function

            def __await__(self) -> Any:
                return self.function().__await__()

        await sandboxed(
            connection.scope,
            lambda: Later(receive),
            lambda message: Later(functools.partial(send, message)),
        )
        assert connection.text == "hi"


# --- cancellation -----------------------------------------------------------------------------


@pytest.mark.parametrize("begun", [False, True])
async def test_cancelled_by_scope(begun: bool, isolate_context: bool) -> None:
    """Cancelled from outside, the app is cancelled, the cancellation gets out, nothing is sent."""
    entered = anyio.Event()
    cleaned = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if begun:
            await send({"type": "http.response.start", "status": 200, "headers": []})
        entered.set()
        try:
            await anyio.sleep_forever()
        finally:
            cleaned.append(current_lease().id)

    async with plain(app, isolate_context=isolate_context) as sandboxed:
        connection = Connection(sandboxed)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(connection.run)
            await entered.wait()
            tasks.cancel_scope.cancel()
        assert len(cleaned) == 1
        assert len(connection.sent) == begun
        assert retired(sandboxed) == {"cancelled": 1}
        assert sandboxed.statistics().cut_off == 0
        await settle()
        # It was replaced.
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(Connection(sandboxed).run)
            await settle()
            assert sandboxed.statistics().concurrency == 1
            tasks.cancel_scope.cancel()


@pytest.mark.parametrize("anyio_backend", [("asyncio", {})], indirect=True)
async def test_cancelled_by_task(isolate_context: bool) -> None:
    """`Task.cancel()` with its message gets through, and is not counted twice."""
    entered = asyncio.Event()
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        entered.set()
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError as error:
            seen.append(error.args)
            raise

    async with plain(app, isolate_context=isolate_context) as sandboxed:
        task = asyncio.create_task(Connection(sandboxed).run())
        await entered.wait()
        task.cancel("shutdown")
        with pytest.raises(asyncio.CancelledError):
            await task
        assert task.cancelled()
        assert seen == [("shutdown",)]
        assert retired(sandboxed) == {"cancelled": 1}


@pytest.mark.parametrize("anyio_backend", [("asyncio", {})], indirect=True)
async def test_swallowed_cancellation(isolate_context: bool) -> None:
    """An app that swallows the cancellation of its task answers, as it would without us."""
    entered = asyncio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        entered.set()
        try:
            await asyncio.sleep(10)
        except asyncio.CancelledError:
            await respond(send, b"still here")

    async with plain(app, isolate_context=isolate_context) as sandboxed:
        connection = Connection(sandboxed)
        task = asyncio.create_task(connection.run())
        await entered.wait()
        task.cancel()
        await task
        assert connection.text == "still here"


async def test_timeouts_of_the_app(isolate_context: bool) -> None:
    """Scopes, timeouts and task groups inside of the app work as ever."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        with anyio.move_on_after(0.005) as limit:
            await anyio.sleep_forever()
        assert limit.cancelled_caught
        with pytest.raises(TimeoutError):
            with anyio.fail_after(0.005):
                await anyio.sleep_forever()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.sleep_forever)
            tasks.cancel_scope.cancel()
        await respond(send)

    async with plain(app, isolate_context=isolate_context) as sandboxed:
        assert (await get(sandboxed)).text == "ok"


# --- what is sent and received ------------------------------------------------------------


async def test_streaming(isolate_context: bool) -> None:
    """A stream arrives piece by piece, while its lease is held, and each piece when it is made."""
    gate = anyio.Event()

    async def pieces() -> AsyncIterator[bytes]:
        for number in range(3):
            assert current_lease().path == "/"
            yield b"data: %d\n\n" % number
        await gate.wait()
        yield b"data: end\n\n"

    async def endpoint(request: Request) -> Response:
        return StreamingResponse(pieces(), media_type="text/event-stream")

    app = Starlette(routes=[Route("/", endpoint)])
    async with (
        wrap(app, max_size=1, isolate_context=isolate_context) as sandboxed,
        anyio.create_task_group() as tasks,
    ):
        connection = Connection(sandboxed)
        tasks.start_soon(connection.run)
        with anyio.fail_after(5):
            while connection.body.count(b"data") < 3:
                await anyio.lowlevel.checkpoint()
        assert sandboxed.statistics().concurrency == 1
        gate.set()
        await connection.over.wait()
        assert connection.text == "data: 0\n\ndata: 1\n\ndata: 2\n\ndata: end\n\n"
        assert connection.headers["content-type"].startswith("text/event-stream")
        assert sandboxed.statistics().concurrency == 0


async def test_disconnect_while_streaming(isolate_context: bool) -> None:
    """A client that hangs up ends the stream of an app that listens for that."""
    closed: list[bool] = []

    class Pieces:
        sent = False

        def __aiter__(self) -> Pieces:
            return self

        async def __anext__(self) -> bytes:
            if not self.sent:
                self.sent = True
                return b"first"
            try:
                await anyio.sleep_forever()
            finally:
                closed.append(True)
            return b""

    async def endpoint(request: Request) -> Response:
        return StreamingResponse(Pieces())

    app = Starlette(routes=[Route("/", endpoint)])
    async with (
        wrap(app, max_size=1, isolate_context=isolate_context) as sandboxed,
        anyio.create_task_group() as tasks,
    ):
        connection = Connection(sandboxed, asgi={"version": "3.0", "spec_version": "2.1"})
        tasks.start_soon(connection.run)
        with anyio.fail_after(5):
            while connection.body != b"first":
                await anyio.lowlevel.checkpoint()
            await settle()
            connection.hang_up()
            await connection.over.wait()
        assert closed == [True]
        assert sandboxed.statistics().concurrency == 0
        assert retired(sandboxed) == {}


def test_websocket_echo(isolate_context: bool) -> None:
    """Websockets connect, talk both ways, and close with the code of either side."""

    async def echo(websocket: WebSocket) -> None:
        await websocket.accept(subprotocol="chat")
        async for text in websocket.iter_text():
            if text == "stop":
                await websocket.close(4001)
                return
            await websocket.send_text(f"{current_lease().path} {text}")

    app = Starlette(routes=[WebSocketRoute("/ws", echo)])
    sandboxed = wrap(app, max_size=1, isolate_context=isolate_context)
    with TestClient(sandboxed) as client:
        with client.websocket_connect("/ws", subprotocols=["chat"]) as session:
            assert str(session.accepted_subprotocol) == "chat"
            session.send_text("one")
            assert session.receive_text() == "/ws one"
            session.send_text("stop")
            assert session.receive()["code"] == 4001
        with client.websocket_connect("/ws") as session:
            session.send_text("two")
            assert session.receive_text() == "/ws two"
        assert sandboxed.statistics().concurrency == 0
        assert sandboxed.statistics().requests == 2


async def test_background_tasks(isolate_context: bool) -> None:
    """A background task runs inside of the lease: nobody else gets the sandbox meanwhile."""
    gate, ran = anyio.Event(), []

    async def later() -> None:
        await gate.wait()
        ran.append(current_lease().path)

    async def endpoint(request: Request) -> Response:
        return PlainTextResponse("ok", background=BackgroundTask(later))

    app = Starlette(routes=[Route("/{name}", endpoint)])
    async with (
        wrap(app, max_size=1, isolate_context=isolate_context) as sandboxed,
        anyio.create_task_group() as tasks,
    ):
        first, second = Connection(sandboxed, "/a"), Connection(sandboxed, "/b")
        tasks.start_soon(first.run)
        with anyio.fail_after(5):
            while len(first.sent) < 2:
                await anyio.lowlevel.checkpoint()
        tasks.start_soon(second.run)
        await settle()
        assert sandboxed.statistics().pool.waiting == 1
        gate.set()
        with anyio.fail_after(5):
            await second.over.wait()
    assert ran == ["/a", "/b"]


async def test_messages_pass_untouched(isolate_context: bool) -> None:
    """Every message passes as the very object it is, also of types that nobody knows."""
    incoming = {"type": "http.request", "body": b"x", "more_body": False, "odd": object()}
    outgoing: list[dict[str, Any]] = [
        {"type": "http.response.debug", "info": {"a": 1}},
        {"type": "http.response.early_hint", "links": []},
        {"type": "made.up", "object": object()},
        {"type": "http.response.start", "status": 200, "headers": iter([]), "trailers": True},
        {"type": "http.response.zerocopysend", "file": 3, "odd": object()},
        {"type": "http.response.trailers", "headers": []},
    ]
    received = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        received.append(await receive())
        for message in outgoing:
            await send(message)
        received.append(await receive())

    async with plain(app, isolate_context=isolate_context) as sandboxed:
        connection = Connection(sandboxed, body=None)
        connection.say(incoming)
        connection.hang_up()
        await connection.run()
    assert received[0] is incoming
    assert received[1] == {"type": "http.disconnect"}
    assert all(a is b for a, b in zip(connection.sent, outgoing, strict=True))


async def test_scope_is_untouched(isolate_context: bool) -> None:
    """The app finds in its scope what the server put there: same objects, same keys."""
    seen: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(dict(scope))
        await respond(send)

    given = {
        "root_path": "/mounted",
        "raw_path": b"/mounted/caf%C3%A9",
        "headers": iter([(b"x", b"y")]),
        "client": ["127.0.0.1", 5],
        "server": ("localhost", "8000"),
        "extensions": {"tls": {"a": 1}, "made.up": {}},
        "made.up": object(),
    }
    async with plain(app, isolate_context=isolate_context) as sandboxed:
        connection = await get(sandboxed, "/mounted/café", **given)
    for key, value in given.items():
        assert seen[0][key] is value
    ours = {key for key in seen[0] if key.startswith("sandboxpool")}
    assert set(seen[0]) - ours == {*given, *connection.scope} - ours


async def test_route_is_visible_outside(isolate_context: bool) -> None:
    """Instrumentation around the wrapped app finds the route and the endpoint in its scope."""

    async def endpoint(request: Request) -> Response:
        return PlainTextResponse("ok")

    app = Starlette(routes=[Mount("/shop", routes=[Route("/items/{id}", endpoint)])])
    seen = []
    async with wrap(app, max_size=1, isolate_context=isolate_context) as sandboxed:

        async def instrumented(scope: Any, receive: Any, send: Any) -> None:
            await sandboxed(scope, receive, send)
            seen.append((scope["endpoint"], scope["path_params"]))

        await get(instrumented, "/shop/items/5")
    assert seen == [(endpoint, {"id": "5"})]


async def test_send_from_child_tasks(isolate_context: bool) -> None:
    """Child tasks may send and receive."""
    received = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def hear() -> None:
            received.append((await receive())["type"])

        async def piece(body: bytes) -> None:
            await send({"type": "http.response.body", "body": body, "more_body": True})

        await send({"type": "http.response.start", "status": 200, "headers": []})
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(hear)
            for number in range(5):
                tasks.start_soon(piece, b"%d" % number)
        await send({"type": "http.response.body", "body": b""})

    async with plain(app, isolate_context=isolate_context) as sandboxed:
        connection = Connection(sandboxed, body=[b"a", b"b"])
        connection.hang_up()
        await connection.run()
        assert sorted(connection.text) == list("01234")
        assert sorted(received) == ["http.disconnect", "http.request", "http.request"]


async def test_receive_in_several_tasks_after_a_wait(isolate_context: bool) -> None:
    """Also when the request had to wait: each message is received once."""
    gated = Gated()
    received = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/a":
            await gated.app()(scope, receive, send)
            return

        async def hear() -> None:
            received.append(await receive())

        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(hear)
            await settle()
            for number in range(2, 4):
                connection.say({"type": "http.request", "body": b"%d" % number, "more_body": True})
                await settle()
        await respond(send)

    async with (
        plain(app, isolate_context=isolate_context) as sandboxed,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(Connection(sandboxed, "/a").run)
        await gated.came(1)
        connection = Connection(sandboxed, "/b", body=None)
        for number in range(2):
            connection.say({"type": "http.request", "body": b"%d" % number, "more_body": True})
        tasks.start_soon(connection.run)
        await settle()
        assert sandboxed.statistics().pool.waiting == 1
        gated.open("/a")
        with anyio.fail_after(5):
            await connection.over.wait()
    assert sorted(message["body"] for message in received) == [b"0", b"1", b"2", b"3"]


@pytest.mark.parametrize("anyio_backend", [("asyncio", {})], indirect=True)
async def test_send_from_create_task(isolate_context: bool) -> None:
    """So may tasks of asyncio's own, and callbacks that start them."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.create_task(
            send({"type": "http.response.start", "status": 200, "headers": []})
        )
        await asyncio.gather(
            *(
                send({"type": "http.response.body", "body": b"x", "more_body": True})
                for _ in range(5)
            )
        )
        await asyncio.wait_for(send({"type": "http.response.body", "body": b"end"}), 5)

    async with plain(app, isolate_context=isolate_context) as sandboxed:
        assert (await get(sandboxed)).text == "xxxxxend"


async def test_send_raises(isolate_context: bool) -> None:
    """What the server's `send` and `receive` raise reaches the app as the same object."""
    error = OSError("gone")
    seen: list[BaseException] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for call in (receive, functools.partial(send, {"type": "http.response.start"})):
            try:
                await call()
            except OSError as caught:
                seen.append(caught)

    async def fail(*args: Any) -> Any:
        raise error

    async def fail_later(*args: Any) -> Any:
        await anyio.lowlevel.checkpoint()
        raise error

    async with plain(app, isolate_context=isolate_context) as sandboxed:
        for failing in (fail, fail_later):
            await sandboxed(Connection(sandboxed).scope, failing, failing)
    assert seen == [error] * 4
    assert all(caught is error for caught in seen)


async def test_no_lease_outside(isolate_context: bool) -> None:
    """After a request the server's task has no lease."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        current_lease()
        await respond(send)

    async with plain(app, isolate_context=isolate_context) as sandboxed:
        await get(sandboxed)
        with pytest.raises(NoLeaseError):
            current_lease()


@pytest.mark.parametrize("deferred", [False, True])
def test_dropped(deferred: bool, isolate_context: bool, caplog: pytest.LogCaptureFixture) -> None:
    """A server's task that is dropped half-way lets the app clean up, and ends the lease."""
    cleaned: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if deferred:
            current_lease().context.defer(cleaned.append, "first deferred")
            current_lease().context.defer(anyio.sleep, 0)
            current_lease().context.defer(cleaned.append, "last deferred")
        try:
            await receive()
        finally:
            cleaned.append("app")

    async def main() -> None:
        async with plain(app, isolate_context=isolate_context) as sandboxed:
            steps = Connection(sandboxed, body=None).run()
            task_like: Any = steps
            task_like.send(None)
            assert sandboxed.statistics().concurrency == 1
            task_like.close()
            assert sandboxed.statistics().concurrency == 0
            assert retired(sandboxed) == {"cancelled": 1}

    asyncio.run(main())
    assert cleaned == ["app", *(["last deferred", "first deferred"] if deferred else [])]
    assert ("nothing can be awaited" in caplog.text) is deferred
