"""Start and end: of the app, of its sandboxes, and of the requests in flight."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from sandboxpool import ExecutionTimeoutError, LifespanShutdownError, SandboxedApp, wrap

from .client import Connection, Gated, Lifespan, get, respond, settle
from .test_admission import Sandboxes, queue_up


def app_with(lifespan: Any, *routes: Route) -> Starlette:
    return Starlette(lifespan=lifespan, routes=routes)


async def test_order() -> None:
    """The app starts before it serves, and stops after the last request; once."""
    calls = []

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        calls.append("start")
        yield
        calls.append("stop")

    def endpoint(request: Request) -> JSONResponse:
        calls.append("serve")
        return JSONResponse({})

    sandboxed = wrap(app_with(lifespan, Route("/", endpoint)), max_size=3, stall_after=None)
    server = Lifespan(sandboxed)
    async with anyio.create_task_group() as tasks:
        await server.start(tasks)
        assert server.types == ["lifespan.startup.complete"]
        assert sandboxed.statistics().state == "open"
        await get(sandboxed)
        await get(sandboxed)
        await server.stop()
    assert server.types[1:] == ["lifespan.shutdown.complete"]
    assert calls == ["start", "serve", "serve", "stop"]
    assert sandboxed.statistics().state == "closed"


@pytest.mark.parametrize("factory", [False, True])
async def test_startup_fails(factory: bool, caplog: pytest.LogCaptureFixture) -> None:
    """A start that fails is `lifespan.startup.failed`, with the exception of the app."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        if app.routes == []:
            raise RuntimeError("no database today")
        yield

    sandboxed = (
        wrap(lambda: app_with(lifespan), factory=True) if factory else wrap(app_with(lifespan))
    )
    server = Lifespan(sandboxed)
    async with anyio.create_task_group() as tasks:
        await server.start(tasks)
    assert isinstance(server.error, RuntimeError)  # as it would come out of the app itself
    assert str(server.error) == "no database today"
    assert server.types == ["lifespan.startup.failed"]
    assert "no database today" in server.sent[0]["message"]
    assert "no database today" in caplog.text
    assert sandboxed.statistics().pool.size == 0


async def test_startup_taken_by_middleware() -> None:
    """Middleware that receives without a look at the scope's type does not starve the app."""
    seen: list[str] = []

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        seen.append("start")
        yield
        seen.append("stop")

    inner = app_with(lifespan)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await inner(scope, receive, send)

    server = Lifespan(wrap(app, stall_after=None))
    async with anyio.create_task_group() as tasks:
        await server.start(tasks)
        await server.stop()
    assert seen == ["start", "stop"]


async def test_an_app_that_sends_anything_in_a_lifespan() -> None:
    """An app that looks at no scope type, and sends for ever, takes no part in the lifespan."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while scope["type"] == "lifespan":
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
        await send({"type": "http.response.body", "body": b"served"})

    async with wrap(app, stall_after=None) as sandboxed:
        assert (await get(sandboxed)).body == b"served"


async def test_startup_failed_message() -> None:
    """So is a raw app's own `startup.failed`; its message is handed on."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "the tank is empty"})

    server = Lifespan(wrap(app, stall_after=None))
    async with anyio.create_task_group() as tasks:
        await server.start(tasks)
    assert server.error is None
    assert server.types == ["lifespan.startup.failed"]
    assert "the tank is empty" in server.sent[0]["message"]


async def test_shutdown_fails() -> None:
    """A stop that fails is `lifespan.shutdown.failed`; everything else is closed all the same."""
    stopped = []

    def make() -> Starlette:
        @asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncIterator[None]:
            yield
            stopped.append(app)
            if len(stopped) == 1:
                raise RuntimeError("cannot let go")

        return app_with(lifespan)

    @asynccontextmanager
    async def template_lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        raise RuntimeError("cannot let go")

    sandboxed = wrap(app_with(template_lifespan), max_size=2, stall_after=None)
    server = Lifespan(sandboxed)
    async with anyio.create_task_group() as tasks:
        await server.start(tasks)
        await server.stop()
    assert server.types[1] == "lifespan.shutdown.failed"
    assert "cannot let go" in server.sent[1]["message"]
    assert sandboxed.statistics().pool.size == 0

    many = wrap(make, factory=True, min_size=3, max_size=3, stall_after=None)
    await many.open()
    with pytest.raises(
        LifespanShutdownError, match=r"1 sandbox of .* failed to stop: .*cannot let"
    ):
        await many.aclose()
    assert len(stopped) == 3
    assert many.statistics().pool.size == 0


@pytest.mark.parametrize("factory", [False, True])
async def test_each_lifespan_failure_is_told(
    factory: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """With a lifespan for each sandbox, all of them are stopped, and the server hears of it."""
    stopped = []

    def make() -> Starlette:
        @asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncIterator[None]:
            yield
            stopped.append(app)
            if len(stopped) != 2:
                raise RuntimeError(f"cannot let go of {len(stopped)}")

        return app_with(lifespan)

    options: Any = {"min_size": 3, "max_size": 3, "stall_after": None, "name": "shop"}
    sandboxed: SandboxedApp
    if factory:
        sandboxed = wrap(make, factory=True, **options)
    else:
        sandboxed = wrap(make(), lifespan="each", **options)
    server = Lifespan(sandboxed)
    async with anyio.create_task_group() as tasks:
        await server.start(tasks)
        await server.stop()
    assert server.types == ["lifespan.startup.complete", "lifespan.shutdown.failed"]
    told = server.sent[1]["message"]
    assert "LifespanShutdownError: 2 sandboxes of shop failed to stop: shop failed" in told
    assert "RuntimeError: cannot let go of " in told  # the cause, with its traceback
    failures = [r for r in caplog.records if "failed to stop: RuntimeErr" in r.getMessage()]
    assert len(failures) >= 2  # each one also by itself
    assert len(stopped) == 3
    assert sandboxed.statistics().pool.size == 0


async def test_each_lifespan_failure_while_serving(caplog: pytest.LogCaptureFixture) -> None:
    """A sandbox that fails to stop while the app serves is logged, and forgotten at its end."""
    made: list[int] = []

    def make() -> Starlette:
        made.append(number := len(made))

        @asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncIterator[None]:
            yield
            if number == 0:
                raise RuntimeError("cannot let go")

        return app_with(lifespan, Route("/", lambda request: JSONResponse({})))

    sandboxed = wrap(make, factory=True, max_uses=1, min_size=1, max_size=1, stall_after=None)
    async with sandboxed:
        for _ in range(4):
            assert (await get(sandboxed)).status == 200
    assert len(made) >= 4
    assert "cannot let go" in caplog.text


async def test_each_lifespan_that_hangs(caplog: pytest.LogCaptureFixture) -> None:
    """A sandbox that does not stop in time is a failure, too, and does not keep the app open."""

    def make() -> Starlette:
        @asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncIterator[None]:
            yield
            await anyio.sleep_forever()

        return app_with(lifespan)

    sandboxed = wrap(
        make, factory=True, min_size=1, max_size=1, destroy_timeout=0.02, stall_after=None
    )
    await sandboxed.open()
    with pytest.raises(LifespanShutdownError, match=r"1 sandbox of .* did not stop before it was"):
        await sandboxed.aclose()
    assert sandboxed.statistics().pool.size == 0


async def test_aclose_raises() -> None:
    """Without a server the failure comes out of `aclose()`, with everything closed."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        raise RuntimeError("cannot let go")

    sandboxed = wrap(app_with(lifespan), max_size=2, stall_after=None)
    await sandboxed.open()
    with pytest.raises(LifespanShutdownError, match=r"failed to stop: .*cannot let go"):
        await sandboxed.aclose()
    assert sandboxed.statistics().state == "closed"
    await sandboxed.aclose()


async def test_no_lifespan_support() -> None:
    """An app that raises on a lifespan scope, or returns, is served without one."""

    async def raises(scope: Any, receive: Any, send: Any) -> None:
        assert scope["type"] == "http"
        await respond(send)

    async def returns(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await respond(send)

    for app in (raises, returns):
        sandboxed = wrap(app, stall_after=None)
        server = Lifespan(sandboxed)
        async with anyio.create_task_group() as tasks:
            await server.start(tasks)
            assert (await get(sandboxed)).status == 200
            await server.stop()
        assert server.types == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


async def test_lifespan_off() -> None:
    """`lifespan="off"` never shows the app a lifespan scope."""
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])
        await respond(send)

    async with wrap(app, lifespan="off", stall_after=None) as sandboxed:
        await get(sandboxed)
    assert seen == ["http"]


@pytest.mark.parametrize("factory", [False, True])
async def test_state(factory: bool) -> None:
    """What the lifespan yields reaches every request as a copy, beside what the server has put."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Any]]:
        yield {"seen": [], "number": 1}

    def endpoint(request: Request) -> JSONResponse:
        request.state.seen.append(request.query_params["user"])
        request.state.number += 1
        outer = getattr(request.state, "outer", None)
        return JSONResponse([request.state.seen, request.state.number, outer])

    def make() -> Starlette:
        return app_with(lifespan, Route("/", endpoint))

    sandboxed = (
        wrap(make, factory=True, max_size=1, stall_after=None)
        if factory
        else wrap(make(), max_size=1, stall_after=None)
    )
    server = Lifespan(sandboxed)
    async with anyio.create_task_group() as tasks:
        await server.start(tasks)
        for user in ("ann", "bob"):
            state = {**server.state, "outer": 5}
            answer = await get(sandboxed, "/", query_string=f"user={user}".encode(), state=state)
            assert answer.json == [[user], 2, 5]
            # daphne has no state at all.
            answer = await get(sandboxed, "/", query_string=f"user={user}".encode())
            assert answer.json == [[user], 2, None]
        await server.stop()
    if not factory:
        assert server.state == {"seen": [], "number": 1}


# --- draining ---------------------------------------------------------------------------------


async def test_drain() -> None:
    """Requests in flight finish before the app is stopped; those that wait get 503."""
    gated = Gated()
    boxes = Sandboxes(gated.app())
    sandboxed = wrap(gated.app(), isolation=boxes, max_size=1, stall_after=None)
    server = Lifespan(sandboxed)
    async with anyio.create_task_group() as tasks:
        await server.start(tasks)
        running, waits = Connection(sandboxed, "/a"), Connection(sandboxed, "/b")
        tasks.start_soon(running.run)
        await gated.came(1)
        tasks.start_soon(waits.run)
        await queue_up(sandboxed, 1)
        server.ask_to_stop()
        await waits.over.wait()
        await settle()
        assert sandboxed.statistics().state == "draining"
        assert "stop" not in boxes.calls
        gated.open("/a")
        await server.stop()
    assert (running.status, waits.status) == (200, 503)
    assert boxes.calls == ["start", "create", "destroy", "stop"]


@pytest.mark.parametrize("kind", ["quiet", "begun", "websocket", "stubborn"])
async def test_drain_timeout(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    """Who still runs after `drain_timeout` is cancelled: 503 if nothing was sent, else cut."""
    entered = anyio.Event()
    cancelled = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if kind == "begun":
            await send({"type": "http.response.start", "status": 200, "headers": []})
        if kind == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
        entered.set()
        try:
            await anyio.sleep_forever()
        except BaseException as error:
            cancelled.append(error)
            if kind == "stubborn":
                with anyio.CancelScope(shield=True):
                    await anyio.sleep(0.02)
            raise

    sandboxed = wrap(app, max_size=1, drain_timeout=0.02, stall_after=None, lifespan="off")
    connection = Connection(sandboxed, type="websocket" if kind == "websocket" else "http")
    failed: list[BaseException] = []

    async def run() -> None:
        try:
            await connection.run()
        except Exception as error:
            failed.append(error)

    async with anyio.create_task_group() as tasks:
        await sandboxed.open()
        tasks.start_soon(run)
        await entered.wait()
        with anyio.fail_after(5):
            await sandboxed.aclose()
            await connection.over.wait()
    assert len(cancelled) == 1
    if kind == "begun":
        assert isinstance(failed[0], ExecutionTimeoutError)
        assert connection.types == ["http.response.start"]
    elif kind == "websocket":
        assert connection.types == ["websocket.accept", "websocket.close"]
        assert connection.sent[-1]["code"] in (1001, 1011, 1012)
    else:
        assert connection.status == 503
        assert "the app is shutting down" in connection.text
    assert "were still running 0.02 s after shutdown began" in caplog.text
    assert sandboxed.statistics().pool.size == 0
    assert sandboxed.statistics().concurrency == 0


async def test_swallowed_drain() -> None:
    """A request that swallows the cancellation does not keep the app from closing."""
    entered, free = anyio.Event(), anyio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        entered.set()
        with anyio.CancelScope(shield=True):
            await free.wait()
        await respond(send)

    boxes = Sandboxes(app)
    sandboxed = wrap(app, isolation=boxes, max_size=1, drain_timeout=0.01, stall_after=None)
    connection = Connection(sandboxed)
    async with anyio.create_task_group() as tasks:
        await sandboxed.open()

        async def run() -> None:
            try:
                await connection.run()
            except ExecutionTimeoutError:
                pass  # on Trio the cancellation lasts: it meets the response half-way

        tasks.start_soon(run)
        await entered.wait()
        with anyio.fail_after(5):
            await sandboxed.aclose()
        assert boxes.calls[-1] == "stop"
        free.set()
    assert sandboxed.statistics().concurrency == 0


async def test_second_close_waits() -> None:
    """Two that close at the same time both return when the app is closed."""
    gated = Gated()
    boxes = Sandboxes(gated.app())
    sandboxed = wrap(gated.app(), isolation=boxes, max_size=1, stall_after=None)
    closed = []

    async def close() -> None:
        await sandboxed.aclose()
        closed.append(list(boxes.calls))

    async with anyio.create_task_group() as tasks:
        await sandboxed.open()
        tasks.start_soon(Connection(sandboxed, "/a").run)
        await gated.came(1)
        tasks.start_soon(close)
        await settle()
        tasks.start_soon(close)
        await settle()
        assert closed == []
        gated.open("/a")
    assert [calls[-1] for calls in closed] == ["stop", "stop"]
    assert boxes.calls.count("stop") == 1


async def test_closed_by_hand_then_by_the_server() -> None:
    """A shutdown event after `aclose()` is answered, and stops nothing twice."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(send)

    boxes = Sandboxes(app)
    sandboxed = wrap(app, isolation=boxes, max_size=1, stall_after=None)
    server = Lifespan(sandboxed)
    async with anyio.create_task_group() as tasks:
        await server.start(tasks)
        await sandboxed.aclose()
        await server.stop()
    assert server.types[1:] == ["lifespan.shutdown.complete"]
    assert boxes.calls.count("stop") == 1


async def test_reopened() -> None:
    """A closed app may be opened again, in the same loop; a late request does not do that."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(send)

    sandboxed = wrap(app, max_size=1, stall_after=None, lifespan="off")
    for _ in range(2):
        async with sandboxed:
            assert (await get(sandboxed)).status == 200
        assert (await get(sandboxed)).status == 503


# --- cancellation -----------------------------------------------------------------------------


async def test_server_gives_up() -> None:
    """When the lifespan task is cancelled, requests are cut, and the app is stopped."""
    gated = Gated()
    boxes = Sandboxes(gated.app())
    sandboxed = wrap(gated.app(), isolation=boxes, max_size=1, stall_after=None)
    server = Lifespan(sandboxed)
    connection = Connection(sandboxed, "/a")
    async with anyio.create_task_group() as tasks:
        scope = anyio.CancelScope()

        async def serve() -> None:
            with scope:
                await server.run()

        tasks.start_soon(serve)
        await server.said.wait()
        tasks.start_soon(connection.run)
        await gated.came(1)
        scope.cancel()
        with anyio.fail_after(5):
            await server.over.wait()
    assert scope.cancelled_caught
    assert connection.status == 503
    assert boxes.calls[-2:] == ["destroy", "stop"]


async def test_server_gives_up_and_the_app_fails(caplog: pytest.LogCaptureFixture) -> None:
    """The failure to stop is logged; what comes out is the cancellation."""

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        yield
        raise RuntimeError("cannot let go")

    server = Lifespan(wrap(app_with(lifespan), stall_after=None))
    async with anyio.create_task_group() as tasks:
        scope = anyio.CancelScope()

        async def serve() -> None:
            with scope:
                await server.run()

        tasks.start_soon(serve)
        await server.said.wait()
        scope.cancel()
        with anyio.fail_after(5):
            await server.over.wait()
    assert scope.cancelled_caught
    assert server.error is None
    assert "cannot let go" in caplog.text


async def test_drain_is_cancelled() -> None:
    """When the shutdown itself is cancelled, what was started is stopped all the same."""
    gated = Gated()
    boxes = Sandboxes(gated.app())
    sandboxed = wrap(gated.app(), isolation=boxes, max_size=1, stall_after=None)
    async with anyio.create_task_group() as tasks:
        await sandboxed.open()
        tasks.start_soon(Connection(sandboxed, "/a").run)
        await gated.came(1)
        with anyio.CancelScope() as scope:
            scope.cancel()
            await sandboxed.aclose()
        assert boxes.calls[-1] == "stop"
        gated.open("/a")


async def test_startup_is_cancelled() -> None:
    """When the server gives up during the start, the app does not start behind its back."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(send)

    boxes = Sandboxes(app)
    boxes.start_gate = anyio.Event()
    sandboxed = wrap(app, isolation=boxes, max_size=1, stall_after=None)
    server = Lifespan(sandboxed)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(server.run)
        await settle()
        tasks.cancel_scope.cancel()
    boxes.start_gate.set()
    await settle()
    assert sandboxed.statistics().state == "closed"
    assert sandboxed.statistics().pool.size == 0
    assert boxes.calls.count("create") == boxes.calls.count("destroy")
    boxes.start_gate = None
    async with sandboxed:
        assert (await get(sandboxed)).status == 200


@pytest.mark.parametrize("at", ["start", "create"])
async def test_closed_while_it_opens(at: str) -> None:
    """Closed while it opens, it ends what was begun; those who wait get 503; it can be reopened."""
    gate = anyio.Event()
    calls = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(send)

    class Slow(Sandboxes):
        async def start(self) -> None:
            calls.append("start")
            if at == "start":
                await gate.wait()
            calls.append("started")

        async def create(self) -> Any:
            if at == "create":
                await gate.wait()
            return await super().create()

        async def stop(self) -> None:
            calls.append("stop")

    sandboxed = wrap(app, isolation=Slow(app), min_size=1, max_size=1, stall_after=None)
    connection = Connection(sandboxed)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(connection.run)
        await settle()
        tasks.start_soon(sandboxed.aclose)
        await settle()
        gate.set()
    assert connection.status == 503
    assert calls.count("started") == calls.count("stop")
    assert sandboxed.statistics().state == "closed"
    assert (await get(sandboxed)).status == 503
    async with sandboxed:
        assert (await get(sandboxed)).status == 200


@pytest.mark.parametrize("isolation", ["clone", "factory"])
@pytest.mark.parametrize("held", ["task group", "scope"])
async def test_one_task(isolation: str, held: str) -> None:
    """A lifespan may hold a task group or a cancel scope open: it starts and ends in one task."""
    ended = []

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        if held == "scope":
            with anyio.CancelScope():
                yield
        else:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(anyio.sleep_forever)
                yield
                tasks.cancel_scope.cancel()
        ended.append(app)

    def make() -> Starlette:
        return app_with(lifespan, Route("/", lambda request: JSONResponse({})))

    sandboxed: SandboxedApp
    if isolation == "factory":
        sandboxed = wrap(make, factory=True, min_size=2, max_size=2, stall_after=None)
    else:
        sandboxed = wrap(make(), max_size=2, stall_after=None)
    await sandboxed.open()
    assert (await get(sandboxed)).status == 200
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(sandboxed.aclose)
    assert len(ended) == (2 if isolation == "factory" else 1)


async def test_unknown_scope() -> None:
    """A scope of another type is refused, as ASGI wants it."""

    async def app(scope: Any, receive: Any, send: Any) -> None: ...

    sandboxed = wrap(app, stall_after=None)
    with pytest.raises(ValueError, match="serves http, websocket and lifespan, not 'webtransport'"):
        await sandboxed({"type": "webtransport"}, None, None)  # type: ignore[arg-type]


async def test_nothing_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """A life without trouble logs no warning."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(send)

    async with wrap(app) as sandboxed:
        await get(sandboxed)
    assert [r for r in caplog.records if r.levelno >= logging.WARNING] == []


async def test_opened_by_a_request() -> None:
    """Without lifespan events an app of Starlette's family is started, any other left alone."""
    started: list[str] = []

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        started.append("start")
        yield
        started.append("stop")

    class Layer:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await self.app(scope, receive, send)

    sandboxed = wrap(Layer(app_with(lifespan)), stall_after=None)
    await get(sandboxed)
    await sandboxed.aclose()
    assert started == ["start", "stop"]

    seen: list[str] = []

    async def raw(scope: Any, receive: Any, send: Any) -> None:
        seen.append(scope["type"])
        await respond(send)

    sandboxed = wrap(raw, stall_after=None)
    await get(sandboxed)
    await sandboxed.aclose()
    assert seen == ["http"]


async def test_middleware_that_fails_in_the_lifespan() -> None:
    """Starlette takes part in the lifespan; its middleware that raises there fails the start."""

    class Broken:
        def __init__(self, app: Any) -> None:
            pass

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            raise ZeroDivisionError

    app = Starlette(middleware=[Middleware(Broken)])
    server = Lifespan(wrap(app, stall_after=None))
    async with anyio.create_task_group() as tasks:
        await server.start(tasks)
    assert isinstance(server.error, ZeroDivisionError)
    assert server.types == ["lifespan.startup.failed"]
