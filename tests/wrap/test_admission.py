"""How a request gets its sandbox, or learns that there is none."""

from __future__ import annotations

import asyncio
import logging
import sys
import threading
from typing import Any

import anyio
import anyio.to_thread
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from sandboxpool import SandboxedApp, wrap

from .client import Connection, Gated, get, respond, settle


class Sandboxes:
    """A sandbox factory whose sandboxes are one raw app, and whose hooks may fail."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.calls: list[str] = []
        self.fail_start = 0
        self.fail_create = 0
        self.start_gate: anyio.Event | None = None

    async def start(self) -> None:
        self.calls.append("start")
        if self.start_gate is not None:
            await self.start_gate.wait()
        if self.fail_start:
            self.fail_start -= 1
            raise RuntimeError("secret cause of start")

    async def stop(self) -> None:
        self.calls.append("stop")

    async def create(self) -> Any:
        self.calls.append("create")
        if self.fail_create:
            self.fail_create -= 1
            raise RuntimeError("secret cause of create")
        return Box(self.app)

    def reset(self, sandbox: Any, /) -> None: ...

    def destroy(self, sandbox: Any, /) -> None:
        self.calls.append("destroy")


class Box:
    """The simplest sandbox."""

    def __init__(self, app: Any) -> None:
        self.app = app

    def __call__(self, scope: Any, receive: Any, send: Any, /) -> Any:
        return self.app(scope, receive, send)

    def reset(self) -> None: ...

    async def aclose(self) -> None: ...


def one(gated: Gated, **options: Any) -> SandboxedApp:
    """Wrap a gated app with a single sandbox."""
    return wrap(gated.app(), max_size=1, stall_after=None, **options)


def waiting(sandboxed: SandboxedApp) -> int:
    """How many requests wait for a sandbox."""
    return sandboxed.statistics().pool.waiting


async def queue_up(sandboxed: SandboxedApp, number: int) -> None:
    """Wait until that many requests wait."""
    with anyio.fail_after(5):
        while waiting(sandboxed) < number:
            await anyio.lowlevel.checkpoint()
    await settle()


async def test_free_sandbox_without_await() -> None:
    """With a free sandbox the app runs before anything is awaited, and `receive` is left alone."""
    ran = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        ran.append(scope["type"])

    async with wrap(app, max_size=1, stall_after=None, lifespan="off") as sandboxed:
        connection = Connection(sandboxed)
        steps = connection.run()
        with pytest.raises(StopIteration):
            steps.send(None)
        assert ran == ["http"]
        assert connection.receives == 0


async def test_first_come_first_served() -> None:
    """Those who wait get the sandbox in the order in which they came, and nobody overtakes."""
    gated = Gated()
    async with one(gated) as sandboxed, anyio.create_task_group() as tasks:
        for number in range(6):
            tasks.start_soon(Connection(sandboxed, f"/{number}").run)
            if number:
                await queue_up(sandboxed, number)
            else:
                await gated.came(1)
        for number in range(6):
            await gated.came(number + 1)
            assert gated.entered == [f"/{done}" for done in range(number + 1)]
            gated.open(f"/{number}")
    assert sandboxed.statistics().peak_concurrency == 1


async def test_timeout(caplog: pytest.LogCaptureFixture) -> None:
    """Who waits for longer than `acquire_timeout` is told so, and when to try again."""
    gated = Gated()
    async with one(gated, acquire_timeout=0.02) as sandboxed, anyio.create_task_group() as tasks:
        tasks.start_soon(Connection(sandboxed, "/a").run)
        await gated.came(1)
        answer = await get(sandboxed, "/b", headers=[(b"cookie", b"secret")])
        assert answer.status == 503
        assert answer.text == ("Service unavailable: no sandbox became free within 0.02 s.\n")
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        assert answer.headers["content-length"] == str(len(answer.body))
        assert answer.headers["cache-control"] == "no-store"
        assert sandboxed.statistics().refused == 1
        gated.open("/a")
    assert gated.entered == ["/a"]
    (record,) = [r for r in caplog.records if r.levelno >= logging.WARNING]
    assert "GET /b: " in record.getMessage()
    assert "secret" not in record.getMessage()


async def test_head_is_refused_without_a_body() -> None:
    """A refused HEAD has the headers of the answer and no body."""
    gated = Gated()
    async with one(gated, max_waiting=0) as sandboxed, anyio.create_task_group() as tasks:
        tasks.start_soon(Connection(sandboxed, "/a").run)
        await gated.came(1)
        answer = await get(sandboxed, "/b", method="HEAD")
        assert (answer.status, answer.body) == (503, b"")
        assert int(answer.headers["content-length"]) > 0
        gated.open("/a")


async def test_full() -> None:
    """One more than `max_waiting` is refused at once; a place that comes free is a place."""
    gated = Gated()
    async with one(gated, max_waiting=1) as sandboxed, anyio.create_task_group() as tasks:
        tasks.start_soon(Connection(sandboxed, "/a").run)
        await gated.came(1)
        second = Connection(sandboxed, "/b")
        tasks.start_soon(second.run)
        await queue_up(sandboxed, 1)
        answer = await get(sandboxed, "/c")
        assert answer.status == 503
        assert "1 requests are waiting for one already" in answer.text
        assert "retry-after" in answer.headers
        second.hang_up()
        await second.over.wait()
        tasks.start_soon(Connection(sandboxed, "/d").run)
        await queue_up(sandboxed, 1)
        gated.open("/a")
        await gated.came(2)
        gated.open("/d")
    assert gated.entered == ["/a", "/d"]


async def test_failed_create(caplog: pytest.LogCaptureFixture) -> None:
    """A sandbox that cannot be made is a 503; the cause is in the log, and not in the body."""
    gated = Gated()
    boxes = Sandboxes(gated.app())
    async with (
        wrap(gated.app(), isolation=boxes, min_size=0, max_size=1, stall_after=None) as sandboxed,
    ):
        boxes.fail_create = 1
        answer = await get(sandboxed, "/a")
        assert answer.status == 503
        assert "a sandbox could not be made" in answer.text
        assert "secret" not in answer.text
        assert "retry-after" in answer.headers
        assert "secret cause of create" in caplog.text
        async with anyio.create_task_group() as tasks:
            again = Connection(sandboxed, "/b")
            tasks.start_soon(again.run)
            await gated.came(1)
            gated.open("/b")
        assert again.status == 200


async def test_closing() -> None:
    """Shutdown tells those who wait at once, and those who come later; who runs may finish."""
    gated = Gated()
    sandboxed = one(gated)
    async with anyio.create_task_group() as tasks:
        await sandboxed.open()
        running, waits = Connection(sandboxed, "/a"), Connection(sandboxed, "/b")
        tasks.start_soon(running.run)
        await gated.came(1)
        tasks.start_soon(waits.run)
        await queue_up(sandboxed, 1)
        tasks.start_soon(sandboxed.aclose)
        await waits.over.wait()
        assert waits.status == 503
        assert "the app is shutting down" in waits.text
        late = await get(sandboxed, "/c")
        assert (late.status, "shutting down" in late.text) == (503, True)
        assert not running.over.is_set()
        gated.open("/a")
    assert running.status == 200


@pytest.mark.parametrize("extensions", [None, {}, {"websocket.http.response": {}}])
@pytest.mark.parametrize("limit", ["full", "timeout"])
async def test_websocket_is_denied(extensions: Any, limit: str) -> None:
    """A websocket gets the same 503 where the server can send one, else it is closed with 1013."""
    gated = Gated()
    options = {"max_waiting": 0} if limit == "full" else {"acquire_timeout": 0.02}
    async with one(gated, **options) as sandboxed, anyio.create_task_group() as tasks:
        tasks.start_soon(Connection(sandboxed, "/a").run)
        await gated.came(1)
        connection = Connection(sandboxed, "/ws", type="websocket", extensions=extensions)
        await connection.run()
        if extensions:
            assert connection.types == [
                "websocket.http.response.start",
                "websocket.http.response.body",
            ]
            assert connection.status == 503
            assert "retry-after" in connection.headers
        else:
            (close,) = connection.sent
            assert (close["type"], close["code"]) == ("websocket.close", 1013)
            assert len(close["reason"].encode()) <= 123
        assert connection.unread == 0
        gated.open("/a")


@pytest.mark.parametrize("type", ["http", "websocket"])
async def test_hang_up_in_the_queue(type: str) -> None:
    """A client that hangs up while it waits frees its place at once, and no app is called."""
    gated = Gated()
    async with one(gated) as sandboxed, anyio.create_task_group() as tasks:
        tasks.start_soon(Connection(sandboxed, "/a").run)
        await gated.came(1)
        gone = Connection(sandboxed, "/gone", type=type)
        tasks.start_soon(gone.run)
        await queue_up(sandboxed, 1)
        behind = Connection(sandboxed, "/behind")
        tasks.start_soon(behind.run)
        await queue_up(sandboxed, 2)
        gone.hang_up()
        with anyio.fail_after(5):
            await gone.over.wait()
        assert gone.sent == []
        assert waiting(sandboxed) == 1
        assert sandboxed.statistics().hung_up == 1
        gated.open("/a")
        await gated.came(2)
        gated.open("/behind")
    assert gated.entered == ["/a", "/behind"]
    assert sandboxed.statistics().refused == 0


@pytest.mark.parametrize("size", [3, 100, 40_000])
@pytest.mark.parametrize("parts", [1, 2, 7])
async def test_body_sent_while_waiting(size: int, parts: int) -> None:
    """What the client sends while it waits reaches the app whole, in order, and nothing twice."""
    gated = Gated()
    inner = gated.app()
    received = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] != "/upload":
            await inner(scope, receive, send)
            return
        more = True
        while more:
            message = await receive()
            received.append(message)
            more = message["more_body"]
        received.append(await receive())
        await respond(send)

    body = [bytes([number]) * size for number in range(parts)]
    async with (
        wrap(app, max_size=1, stall_after=None) as sandboxed,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(Connection(sandboxed, "/a").run)
        await gated.came(1)
        upload = Connection(sandboxed, "/upload", body=body)
        tasks.start_soon(upload.run)
        await queue_up(sandboxed, 1)
        read = parts - upload.unread
        # Back-pressure: what is kept ends with the message that passes 64 KiB.
        assert (read - 1) * size < 64 * 1024
        assert upload.receives <= read + 1
        gated.open("/a")
        with anyio.fail_after(5):
            while len(received) < parts:
                await anyio.lowlevel.checkpoint()
        upload.hang_up()
    assert b"".join(message["body"] for message in received[:-1]) == b"".join(body)
    assert received[-1] == {"type": "http.disconnect"}
    assert upload.receives == parts + 1


async def test_empty_messages_are_bounded() -> None:
    """A client that sends empty parts for ever is not listened to for ever."""
    gated = Gated()
    async with one(gated) as sandboxed, anyio.create_task_group() as tasks:
        tasks.start_soon(Connection(sandboxed, "/a").run)
        await gated.came(1)
        upload = Connection(sandboxed, "/b", body=[b""] * 100_000)
        tasks.start_soon(upload.run)
        await queue_up(sandboxed, 1)
        for _ in range(20):
            await settle()
        assert upload.receives < 10_000
        gated.open("/a")
        await gated.came(2)
        gated.open("/b")


async def test_websocket_messages_are_bounded() -> None:
    """Nor is a websocket client, whose messages have a text instead of a body."""
    gated = Gated()
    async with one(gated) as sandboxed, anyio.create_task_group() as tasks:
        tasks.start_soon(Connection(sandboxed, "/a").run)
        await gated.came(1)
        talker = Connection(sandboxed, "/b", type="websocket")
        for _ in range(100):
            talker.say({"type": "websocket.receive", "text": "x" * 10_000})
        tasks.start_soon(talker.run)
        await queue_up(sandboxed, 1)
        for _ in range(20):
            await settle()
        assert talker.receives <= 10
        gated.open("/a")
        await gated.came(2)
        gated.open("/b")


async def test_receive_fails_while_waiting() -> None:
    """An error of the server's `receive` while the request waits is raised where the app calls."""
    gated = Gated()
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/a":
            await gated.app()(scope, receive, send)
            return
        seen.append((await receive())["body"])
        try:
            await receive()
        except OSError as error:
            seen.append(error)
        await respond(send)

    async with (
        wrap(app, max_size=1, stall_after=None, lifespan="off") as sandboxed,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(Connection(sandboxed, "/a").run)
        await gated.came(1)
        connection = Connection(sandboxed, "/b", body=[b"x", b"y"])
        connection._incoming.pop()
        error = OSError("connection lost")
        connection.fail(error)
        tasks.start_soon(connection.run)
        await queue_up(sandboxed, 1)
        gated.open("/a")
    assert seen == [b"x", error]


async def test_is_disconnected_loses_nothing() -> None:
    """`request.is_disconnected()`, which cancels its receive, loses neither body nor disconnect."""
    gated = Gated()
    seen: list[Any] = []

    async def endpoint(request: Request) -> PlainTextResponse:
        seen.append(await request.body())
        for _ in range(3):
            seen.append(await request.is_disconnected())
        connections[1].hang_up()
        await settle()
        while not await request.is_disconnected():
            await anyio.lowlevel.checkpoint()
        seen.append("gone")
        return PlainTextResponse("ok")

    async def first(request: Request) -> PlainTextResponse:
        gate = gated.gates["/a"] = anyio.Event()
        gated.entered.append("/a")
        gated._came.set()
        await gate.wait()
        return PlainTextResponse("a")

    app = Starlette(routes=[Route("/a", first), Route("/b", endpoint, methods=["POST"])])
    connections = []
    async with (
        wrap(app, max_size=1, stall_after=None) as sandboxed,
        anyio.create_task_group() as tasks,
    ):
        connections.append(Connection(sandboxed, "/a"))
        connections.append(Connection(sandboxed, "/b", method="POST", body=[b"abc"]))
        tasks.start_soon(connections[0].run)
        await gated.came(1)
        tasks.start_soon(connections[1].run)
        await queue_up(sandboxed, 1)
        gated.open("/a")
        with anyio.fail_after(5):
            await connections[1].over.wait()
    assert seen == [b"abc", False, False, False, "gone"]


async def test_cancelled_while_waiting() -> None:
    """A request that is cancelled while it waits leaves the queue; the next in line is served."""
    gated = Gated()
    async with one(gated) as sandboxed, anyio.create_task_group() as tasks:
        tasks.start_soon(Connection(sandboxed, "/a").run)
        await gated.came(1)
        cancelled = Connection(sandboxed, "/b")
        scope = anyio.CancelScope()

        async def run() -> None:
            with scope:
                await cancelled.run()

        tasks.start_soon(run)
        await queue_up(sandboxed, 1)
        tasks.start_soon(Connection(sandboxed, "/c").run)
        await queue_up(sandboxed, 2)
        scope.cancel()
        with anyio.fail_after(5):
            await cancelled.over.wait()
        assert waiting(sandboxed) == 1
        assert cancelled.sent == []
        gated.open("/a")
        await gated.came(2)
        gated.open("/c")
    assert gated.entered == ["/a", "/c"]


@pytest.mark.parametrize("passes", range(5))
async def test_cancelled_as_the_sandbox_comes_free(passes: int) -> None:
    """Cancelled in the instant in which its sandbox came, a request gives it back."""
    gated = Gated()
    async with one(gated) as sandboxed, anyio.create_task_group() as tasks:
        tasks.start_soon(Connection(sandboxed, "/a").run)
        await gated.came(1)
        scope = anyio.CancelScope()

        async def run() -> None:
            with scope:
                await Connection(sandboxed, "/b").run()

        tasks.start_soon(run)
        await queue_up(sandboxed, 1)
        gated.open("/a")
        for _ in range(passes):
            await anyio.lowlevel.checkpoint()
        scope.cancel()
        await settle()
        assert sandboxed.statistics().pool.in_use == 0
        assert sandboxed.statistics().concurrency == 0


# --- opening ----------------------------------------------------------------------------------


async def test_first_request_opens() -> None:
    """Without lifespan events the first request opens the app, and nothing of it is lost."""
    boxes: Sandboxes | None = None

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(send, (await receive())["body"])

    boxes = Sandboxes(app)
    sandboxed = wrap(app, isolation=boxes, max_size=2, min_size=2, stall_after=None)
    assert sandboxed.pool is None
    answer = await get(sandboxed, "/", body=[b"hello"])
    assert (answer.status, answer.body) == (200, b"hello")
    assert boxes.calls == ["start", "create", "create"]
    await sandboxed.aclose()
    assert boxes.calls[3:] == ["destroy", "destroy", "stop"]


async def test_first_requests_open_once() -> None:
    """A hundred first requests at the same moment open the app once, and all are served."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(send)

    boxes = Sandboxes(app)
    boxes.start_gate = anyio.Event()
    sandboxed = wrap(app, isolation=boxes, min_size=1, max_size=5, stall_after=None)
    connections = [Connection(sandboxed, f"/{number}") for number in range(100)]
    async with anyio.create_task_group() as tasks:
        for connection in connections:
            tasks.start_soon(connection.run)
        await settle()
        boxes.start_gate.set()
    assert {connection.status for connection in connections} == {200}
    assert boxes.calls.count("start") == 1
    await sandboxed.aclose()


async def test_first_request_is_cancelled() -> None:
    """Opening goes on for the others when the request that began it is cancelled."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(send)

    boxes = Sandboxes(app)
    boxes.start_gate = anyio.Event()
    sandboxed = wrap(app, isolation=boxes, max_size=1, stall_after=None)
    first, second = Connection(sandboxed), Connection(sandboxed)
    async with anyio.create_task_group() as tasks:
        scope = anyio.CancelScope()

        async def run() -> None:
            with scope:
                await first.run()

        tasks.start_soon(run)
        await settle()
        tasks.start_soon(second.run)
        await settle()
        scope.cancel()
        await first.over.wait()
        boxes.start_gate.set()
    assert (first.sent, second.status) == ([], 200)
    assert boxes.calls == ["start", "create"]
    await sandboxed.aclose()


@pytest.mark.parametrize("hook", ["fail_start", "fail_create"])
async def test_open_fails(hook: str, caplog: pytest.LogCaptureFixture) -> None:
    """A start that fails is a 503 without the cause; the next request tries again."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(send)

    boxes = Sandboxes(app)
    setattr(boxes, hook, 1)
    sandboxed = wrap(app, isolation=boxes, min_size=1, max_size=1, stall_after=None)
    answer = await get(sandboxed)
    assert answer.status == 503
    assert answer.text == "Service unavailable: the app did not start.\n"
    assert "secret cause" in caplog.text
    assert (await get(sandboxed)).status == 200
    await sandboxed.aclose()
    assert boxes.calls.count("start") == 2
    assert boxes.calls.count("stop") == (2 if hook == "fail_create" else 1)


# --- several loops ----------------------------------------------------------------------------


def hello_app() -> Starlette:
    """An app whose lifespan counts itself in its state."""

    def hello(request: Request) -> PlainTextResponse:
        return PlainTextResponse("hello")

    return Starlette(routes=[Route("/", hello)])


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
@pytest.mark.parametrize("close", [True, False])
@pytest.mark.parametrize("stall_after", [0.25, None])
@pytest.mark.parametrize("watchdog", [True, False])
def test_loops_one_after_another(
    backend: str, close: bool, stall_after: float | None, watchdog: bool
) -> None:
    """One wrapped app serves in several event loops in a row, closed in between or not."""

    class Idle:
        def started(self, lease: Any, /) -> None: ...
        def ended(self, lease: Any, /) -> None: ...
        def changed(self, lease: Any, /) -> None: ...
        def stop(self) -> None: ...

    sandboxed = wrap(
        hello_app(), max_size=2, stall_after=stall_after, watchdog=Idle() if watchdog else None
    )

    async def serve() -> int:
        answers = [await get(sandboxed), await get(sandboxed)]
        if close:
            await sandboxed.aclose()
        return sum(answer.status for answer in answers)

    for _ in range(3):
        assert anyio.run(serve, backend=backend) == 400


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_test_client_without_with(backend: Any) -> None:
    """Starlette's `TestClient` without `with` has a loop for each request: all are served."""
    sandboxed = wrap(hello_app(), max_size=2)
    client = TestClient(sandboxed, backend=backend)
    assert [client.get("/").text for _ in range(3)] == ["hello"] * 3


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_test_client_with(backend: Any) -> None:
    """With `with` it sends lifespan events, again and again."""
    sandboxed = wrap(hello_app(), max_size=2)
    for _ in range(2):
        with TestClient(sandboxed, backend=backend) as client:
            assert client.get("/").text == "hello"
            assert sandboxed.statistics().state == "open"
        assert sandboxed.statistics().state == "closed"


def test_loop_policies() -> None:
    """A loop that is closed without a goodbye leaves nothing that the next one stumbles over."""
    sandboxed = wrap(hello_app(), max_size=2, stall_after=None)
    for _ in range(2):
        loop = asyncio.new_event_loop()
        assert loop.run_until_complete(get(sandboxed)).status == 200
        tasks = asyncio.all_tasks(loop)
        for task in tasks:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
        loop.close()


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_loops_side_by_side(backend: str) -> None:
    """Two threads with a loop each serve the same app: each opens it once, whoever comes when."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(send)

    boxes = Sandboxes(app)
    sandboxed = wrap(app, isolation=boxes, min_size=1, max_size=2, stall_after=None)
    barrier = threading.Barrier(2)
    statuses: list[int] = []

    async def serve() -> None:
        for _ in range(5):
            await anyio.to_thread.run_sync(barrier.wait, 5)
            statuses.append((await get(sandboxed)).status)
        await sandboxed.aclose()

    threads = [
        threading.Thread(target=anyio.run, args=(serve,), kwargs={"backend": backend})
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert statuses == [200] * 10
    assert boxes.calls.count("start") == boxes.calls.count("stop") == 2
    assert boxes.calls.count("create") == boxes.calls.count("destroy") == 2


if sys.version_info >= (3, 12):

    @pytest.mark.parametrize("anyio_backend", [("asyncio", {})], indirect=True)
    async def test_eager_tasks() -> None:
        """Tasks that start eagerly, inside of a step of the app, disturb nothing."""
        loop = asyncio.get_running_loop()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await asyncio.gather(
                *(asyncio.create_task(asyncio.sleep(0)) for _ in range(3)),
                asyncio.create_task(
                    send({"type": "http.response.start", "status": 200, "headers": []})
                ),
            )
            await asyncio.create_task(send({"type": "http.response.body", "body": b"ok"}))

        loop.set_task_factory(asyncio.eager_task_factory)
        try:
            async with wrap(app, lifespan="off") as sandboxed:
                assert (await get(sandboxed)).text == "ok"
        finally:
            loop.set_task_factory(None)

    @pytest.mark.parametrize("anyio_backend", [("asyncio", {})], indirect=True)
    async def test_eager_tasks_in_the_queue() -> None:
        """A client that has gone before its request joins the queue leaves it there and then."""
        loop = asyncio.get_running_loop()
        gated = Gated()
        loop.set_task_factory(asyncio.eager_task_factory)
        try:
            async with one(gated) as sandboxed, anyio.create_task_group() as tasks:
                tasks.start_soon(Connection(sandboxed, "/a").run)
                await gated.came(1)
                gone = Connection(sandboxed, "/gone")
                gone.hang_up()
                with anyio.fail_after(5):
                    await gone.run()
                assert gone.sent == []
                assert waiting(sandboxed) == 0
                gated.open("/a")
        finally:
            loop.set_task_factory(None)
