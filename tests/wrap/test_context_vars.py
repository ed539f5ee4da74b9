"""Context variables: what is set outside is seen inside, and what the app sets stays inside.

Each test has a control: the same on the bare app, where the variable does get out.
"""

from __future__ import annotations

import contextvars
from collections.abc import AsyncIterator, Awaitable, Callable
from contextvars import ContextVar
from typing import Any

import anyio
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket

from sandboxpool import wrap

from .client import Connection, Gated, get, respond, settle

user: ContextVar[str] = ContextVar("user", default="nobody")
trace: ContextVar[str] = ContextVar("trace", default="none")


async def login(scope: Any, receive: Any, send: Any) -> None:
    """A raw app that sets a variable, whatever it serves."""
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        user.set("alice")
        await send({"type": "websocket.close"})
    else:
        user.set("alice")
        await respond(send, f"{user.get()} {trace.get()}".encode())


@pytest.mark.parametrize("type", ["http", "websocket"])
async def test_what_the_app_sets_stays_inside(type: str) -> None:
    """After the request, the server's task is what it was; without us it is not."""
    async with wrap(login, lifespan="off", stall_after=None) as sandboxed:
        await Connection(sandboxed, type=type).run()
        assert user.get() == "nobody"
    await Connection(login, type=type).run()
    assert user.get() == "alice"


async def test_error_and_cancellation() -> None:
    """Nor does anything get out with an error or a cancellation."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        user.set("alice")
        if scope["path"] == "/error":
            raise KeyError(5)
        await anyio.sleep_forever()

    async with wrap(app, lifespan="off", stall_after=None) as sandboxed:
        with pytest.raises(KeyError):
            await get(sandboxed, "/error")
        assert user.get() == "nobody"
        with anyio.move_on_after(0.01):
            await get(sandboxed, "/forever")
        assert user.get() == "nobody"


async def test_what_is_set_outside_is_seen() -> None:
    """What middleware around us has set is seen in the app, also under a wait in the queue."""
    gated = Gated()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/a":
            await gated.app()(scope, receive, send)
        else:
            await login(scope, receive, send)

    async with (
        wrap(app, lifespan="off", max_size=1, stall_after=None) as sandboxed,
        anyio.create_task_group() as tasks,
    ):
        trace.set("t1")
        assert (await get(sandboxed, "/b")).text == "alice t1"
        tasks.start_soon(Connection(sandboxed, "/a").run)
        await gated.came(1)
        trace.set("t2")
        waits = Connection(sandboxed, "/b")
        tasks.start_soon(waits.run)
        trace.set("t3")
        await settle()
        gated.open("/a")
        await waits.over.wait()
        assert waits.text == "alice t2"


async def test_first_request_does_not_mark_the_others() -> None:
    """What the request had set that happened to open the app is not seen by the next one."""
    sandboxed = wrap(login, stall_after=None)
    async with anyio.create_task_group() as tasks:
        trace.set("first")
        tasks.start_soon(get, sandboxed)
    trace.set("none")
    assert (await get(sandboxed)).text == "alice none"
    await sandboxed.aclose()


class Recording:
    """A server that notes which user is set where its `receive` and `send` run.

    That is where it would register a reader with the loop, or create a task, which keep the
    context of that moment.
    """

    def __init__(self, how: str) -> None:
        self.how = how
        self.seen: list[str] = []
        self.connection: Any = None

    def note(self) -> None:
        self.seen.append(contextvars.copy_context().get(user, "nobody"))

    def make(self, function: Callable[..., Awaitable[Any]]) -> Any:
        async def coroutine(*args: Any) -> Any:
            self.note()
            await anyio.lowlevel.checkpoint()
            self.note()
            result = await function(*args)
            self.note()
            return result

        class Later:
            def __init__(self, *args: Any) -> None:
                self.args = args

            def __await__(later) -> Any:
                self.note()
                return coroutine(*later.args).__await__()

        def plain(*args: Any) -> Any:
            self.note()
            return Later(*args)

        return coroutine if self.how == "coroutine" else plain

    async def serve(self, app: Any, **scope: Any) -> list[str]:
        connection = Connection(app, **scope)
        await app(connection.scope, self.make(connection.receive), self.make(connection.send))
        return self.seen


async def talkative(scope: Any, receive: Any, send: Any) -> None:
    """Sets a variable, and then receives and sends, also in child tasks."""
    user.set("alice")
    await receive()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(receive)
        tasks.start_soon(send, {"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


@pytest.mark.parametrize("how", ["coroutine", "awaitable"])
async def test_the_server_never_runs_in_the_apps_context(how: str) -> None:
    """`receive` and `send` run in a context that the app never touched, from call to end."""
    body = [b"x", b"y"]
    async with wrap(talkative, lifespan="off", stall_after=None) as sandboxed:
        seen = await Recording(how).serve(sandboxed, body=body)
        assert set(seen) == {"nobody"}
        assert len(seen) >= 12
    if how == "coroutine":
        seen = await Recording(how).serve(talkative, body=body)
        assert "alice" in seen


async def test_isolate_context_off() -> None:
    """`isolate_context=False` leaves everything as it is without us."""
    async with wrap(talkative, lifespan="off", stall_after=None, isolate_context=False) as app:
        seen = await Recording("coroutine").serve(app, body=[b"x", b"y"])
        assert "alice" in seen
        assert user.get() == "alice"


def tagged_app() -> Starlette:
    """An app whose middleware and endpoints set and read a variable."""

    async def dispatch(request: Request, call_next: Any) -> Response:
        user.set("middleware")
        response: Response = await call_next(request)
        response.headers["x-after"] = user.get()
        return response

    async def pieces() -> AsyncIterator[str]:
        yield user.get()
        user.set("generator")
        await anyio.lowlevel.checkpoint()
        yield user.get()

    async def stream(request: Request) -> Response:
        user.set("endpoint")
        return StreamingResponse(pieces())

    async def endpoint(request: Request) -> Response:
        found = user.get()
        user.set("endpoint")
        return PlainTextResponse(found)

    def in_thread(request: Request) -> Response:
        return PlainTextResponse(f"{user.get()} {trace.get()}")

    async def websocket(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(user.get())
        user.set("websocket")
        await websocket.close()

    return Starlette(
        routes=[
            Route("/", endpoint),
            Route("/stream", stream),
            Route("/thread", in_thread),
            WebSocketRoute("/ws", websocket),
        ],
        middleware=[Middleware(BaseHTTPMiddleware, dispatch=dispatch)],
    )


@pytest.mark.parametrize("path", ["/", "/stream", "/thread"])
async def test_under_base_http_middleware(path: str) -> None:
    """Under `BaseHTTPMiddleware` the app sees what it would see bare, and nothing gets out."""
    answers = []
    async with wrap(tagged_app(), max_size=1, stall_after=None) as sandboxed:
        trace.set("t1")
        for _ in range(2):
            answer = await get(sandboxed, path)
            answers.append((answer.text, answer.headers["x-after"]))
            assert user.get() == "nobody"
    bare = await get(tagged_app(), path)
    assert answers == [(bare.text, bare.headers["x-after"])] * 2
    assert user.get() == "middleware"


async def test_websocket_sees_nobody() -> None:
    """The next connection of the same task starts clean."""
    async with wrap(tagged_app(), max_size=1, stall_after=None) as sandboxed:
        for _ in range(2):
            connection = await Connection(sandboxed, "/ws", type="websocket").run()
            assert connection.sent[1]["text"] == "nobody"
    app = tagged_app()
    await Connection(app, "/ws", type="websocket").run()
    again = await Connection(app, "/ws", type="websocket").run()
    assert again.sent[1]["text"] == "websocket"


@pytest.mark.parametrize("wrapped", [True, False])
async def test_reader_registered_while_sending(wrapped: bool) -> None:
    """
    A callback that `send` leaves with the loop starts the next request with a clean slate.

    As with uvicorn on asyncio: whoever resumes a paused transport leaves its context there.
    """
    kept: list[contextvars.Context] = []

    async def pausing(scope: Any, receive: Any, send: Any) -> None:
        user.set("alice")
        await receive()
        await respond(send)

    async def serve(app: Any) -> str:
        connection = Connection(app)

        async def receive() -> Any:
            kept.append(contextvars.copy_context())
            return await connection.receive()

        await app(connection.scope, receive, connection.send)
        return kept.pop().run(user.get)

    if wrapped:
        async with wrap(pausing, lifespan="off", stall_after=None) as sandboxed:
            assert await serve(sandboxed) == "nobody"
    else:
        assert await serve(pausing) == "alice"


async def test_pipelining() -> None:
    """A next request that is started inside of the finishing one starts clean as well."""
    started: list[str] = []

    async def serve(app: Any) -> None:
        second = Connection(app, "/second")
        first = Connection(app, "/first")

        async def send(message: Any) -> None:
            await first.send(message)
            if message["type"] == "http.response.body" and not message.get("more_body"):
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(second.run)

        await app(first.scope, first.receive, send)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        started.append(user.get())
        user.set("alice")
        await respond(send)

    async with wrap(app, lifespan="off", stall_after=None) as sandboxed:
        await serve(sandboxed)
    assert started == ["nobody", "nobody"]
    started.clear()
    await serve(app)
    assert started == ["nobody", "alice"]
