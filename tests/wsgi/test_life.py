"""The life of a WSGI request: its context, its client's hang-up, its end before its time."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

import anyio
import pytest

from sandboxpool import ExecutionTimeoutError, context, current_lease, current_sandbox
from sandboxpool.adapters.wsgi import WSGIGateway
from sandboxpool.run._loop_thread import CutOffError
from tests.wrap.client import Connection, Lifespan, get

from .served import Blocks, StartResponse, ask, each_way, opened

user: ContextVar[str] = ContextVar("user", default="nobody")


def until(condition: Callable[[], bool]) -> None:
    """Wait in a thread that something becomes true."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.001)


async def become(condition: Callable[[], bool]) -> None:
    """Wait on the loop that something becomes true."""
    with anyio.fail_after(10):
        while not condition():
            await anyio.sleep(0.001)


# --- context ----------------------------------------------------------------------------------


@each_way
async def test_lease_and_context(run_in: str) -> None:
    """The lease, its context and its sandbox are there in the call and in the blocks."""
    ended: list[str] = []

    def app(environ: dict[str, Any], start_response: StartResponse) -> Iterator[bytes]:
        context.set("number", 7)
        context.defer(ended.append, current_lease().path)
        start_response("200 OK", [])
        yield str(context.get("number")).encode()
        yield str(current_sandbox() is current_lease().sandbox).encode()

    got = await ask(app, run_in, "/here")
    assert got.body == b"7True"
    assert ended == ["/here"]


@each_way
async def test_context_variables(run_in: str) -> None:
    """What was set outside is seen, what the app sets lasts for the call and does not get out."""

    def app(environ: dict[str, Any], start_response: StartResponse) -> Iterator[bytes]:
        before = user.get()
        user.set("the app's")
        start_response("200 OK", [])
        yield f"{before} ".encode()
        yield user.get().encode()

    async with opened(app, run_in, max_size=1) as sandboxed:
        user.set("ada")
        for _ in range(2):
            assert (await get(sandboxed)).body == b"ada the app's"
        assert user.get() == "ada"


@each_way
async def test_one_thread_for_all_of_a_call(run_in: str) -> None:
    """The call, its blocks and their close happen in one thread; on the loop, in the loop's."""
    threads = []

    class Answer(Blocks):
        def __next__(self) -> Any:
            threads.append(threading.get_ident())
            return super().__next__()

        def close(self) -> None:
            threads.append(threading.get_ident())

    def app(environ: dict[str, Any], start_response: StartResponse) -> Any:
        threads.append(threading.get_ident())
        start_response("200 OK", [])
        return Answer(b"a", b"b")

    await ask(app, run_in)
    assert len(threads) == 5
    assert len(set(threads)) == 1
    assert (threads[0] == threading.get_ident()) == (run_in == "cooperative")


@pytest.mark.backend_with_uvloop
async def test_a_thread_for_each_sandbox() -> None:
    """With run_in="thread" a sandbox's app is made in the thread that runs all of its requests."""
    threads = []

    def create_app() -> Any:
        threads.append(threading.get_ident())

        def app(environ: dict[str, Any], start_response: StartResponse) -> list[bytes]:
            threads.append(threading.get_ident())
            start_response("200 OK", [])
            return []

        return app

    async with opened(create_app, "thread", factory=True, max_size=1) as sandboxed:
        for _ in range(3):
            await get(sandboxed)
    assert len(threads) == 4
    assert len(set(threads)) == 1


@each_way
async def test_nothing_after_the_end(run_in: str) -> None:
    """What the app has kept of a request is of no use after it, and says so."""
    kept: list[Callable[[], object]] = []

    def app(environ: dict[str, Any], start_response: StartResponse) -> list[bytes]:
        write = start_response("200 OK", [])
        kept.append(lambda: write(b"late"))
        kept.append(environ["wsgi.input"].read)
        write(b"in time")
        return []

    got = await ask(app, run_in)
    assert got.body == b"in time"
    for late in kept:
        with pytest.raises(RuntimeError, match="the request is over: nothing can be read or sent"):
            late()
    assert got.body == b"in time"


# --- hang-up ----------------------------------------------------------------------------------


class Endless(Blocks):
    """Blocks without an end."""

    def __next__(self) -> Any:
        self.given += 1
        return b"tick"


@each_way
@pytest.mark.backend_with_uvloop
async def test_hang_up_ends_a_stream(run_in: str) -> None:
    """A client that goes in the middle of an endless response ends it, and it is closed once."""
    answer = Endless()

    def app(environ: dict[str, Any], start_response: StartResponse) -> Any:
        start_response("200 OK", [])
        return answer

    async with opened(app, run_in, max_size=1) as sandboxed:
        connection = Connection(sandboxed)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(connection.run)
            await become(lambda: answer.given >= 10)
            assert not answer.closed
            connection.hang_up()
            with anyio.fail_after(10):
                await connection.over.wait()
        assert answer.closed == 1
        assert sandboxed.statistics().pool.retired == {}


@each_way
async def test_hang_up_is_an_error_of_write(run_in: str) -> None:
    """write() raises when the client has gone, however often the app tries."""
    errors: list[BaseException] = []

    def app(environ: dict[str, Any], start_response: StartResponse) -> list[bytes]:
        write = start_response("200 OK", [])
        while len(errors) < 2:
            try:
                write(b"tick")
            except OSError as error:
                errors.append(error)
        return [b"and more"]

    async with opened(app, run_in) as sandboxed:
        connection = Connection(sandboxed)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(connection.run)
            await connection.started.wait()
            connection.hang_up()
    assert [str(error) for error in errors] == ["the client has hung up."] * 2
    assert b"and more" not in connection.body


@each_way
async def test_hang_up_before_the_answer(run_in: str) -> None:
    """A client that goes while the app works does not stop it, as with any WSGI server."""
    finished: list[str] = []

    def app(environ: dict[str, Any], start_response: StartResponse) -> list[bytes]:
        started.set()
        time.sleep(0.05)
        finished.append(environ["PATH_INFO"])
        start_response("200 OK", [])
        return [b"to nobody"]

    started = threading.Event()
    async with opened(app, run_in) as sandboxed:
        connection = Connection(sandboxed, "/work")
        connection.hang_up()
        await connection.run()
    assert finished == ["/work"]


# --- cut off ----------------------------------------------------------------------------------


async def test_a_blocking_call_is_cut_short() -> None:
    """In a cooperative request the deadline ends a blocking call, and the app cleans up."""
    cleaned = []

    def app(environ: dict[str, Any], start_response: StartResponse) -> Iterator[bytes]:
        try:
            time.sleep(60)
            yield b""
        finally:
            cleaned.append("call")

    async with opened(app, "cooperative", execution_timeout=0.05) as sandboxed:
        got = await get(sandboxed)
        assert got.status == 504
        assert cleaned == ["call"]
        assert sandboxed.statistics().pool.retired == {"expired": 1}
    assert sandboxed.statistics().abandoned == 0


@pytest.mark.parametrize("run_in", ["loop", "thread"])
async def test_a_blocked_thread_is_left_behind(
    run_in: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A call that blocks its thread is answered 504 in time, and its place in the log named."""
    release = threading.Event()
    over = threading.Event()

    def app(environ: dict[str, Any], start_response: StartResponse) -> list[bytes]:
        if environ["PATH_INFO"] == "/slow":
            try:
                release.wait()  # the culprit
            finally:
                over.set()
        start_response("200 OK", [])
        return [b"quick"]

    async with opened(app, run_in, execution_timeout=0.05, drain_timeout=0.1) as sandboxed:
        try:
            with anyio.fail_after(8):
                got = await get(sandboxed, "/slow")
            assert got.status == 504
            assert (await get(sandboxed, "/quick")).body == b"quick"
            for text in ("is cut off after 0.", "does not stop; "):
                (told,) = [r for r in caplog.records if text in r.getMessage()]
                assert "# the culprit" in told.getMessage()
            assert sandboxed.statistics().abandoned == 1
        finally:
            release.set()
        await become(over.is_set)
        await become(lambda: sandboxed.statistics().abandoned == 0)
    assert got.types == ["http.response.start", "http.response.body"]  # nothing came after it


async def test_too_many_are_left_behind(caplog: pytest.LogCaptureFixture) -> None:
    """As long as max_abandoned threads do not stop, requests are refused, and then no more."""
    release = threading.Event()

    def app(environ: dict[str, Any], start_response: StartResponse) -> list[bytes]:
        if environ["PATH_INFO"] == "/slow":
            release.wait()
        start_response("200 OK", [])
        return [b"quick"]

    async with opened(app, "loop", execution_timeout=0.05, max_abandoned=2) as sandboxed:
        try:
            for _ in range(2):
                assert (await get(sandboxed, "/slow")).status == 504
            refused = await get(sandboxed, "/quick")
            assert (refused.status, refused.headers["retry-after"]) == (503, "1")
            assert refused.text.startswith("Service unavailable: too many calls")
            assert "GET /quick is refused: 2 threads are still in calls of" in caplog.text
            assert sandboxed.statistics().abandoned == 2
        finally:
            release.set()
        await become(lambda: sandboxed.statistics().abandoned == 0)
        assert (await get(sandboxed, "/quick")).body == b"quick"


@pytest.mark.parametrize("run_in", ["loop", "thread"])
@pytest.mark.parametrize("what", ["send", "read"])
async def test_an_app_that_is_cut_off_stops_when_it_sends(run_in: str, what: str) -> None:
    """The next time that it sends or reads, an app in a thread is told, and closed; once."""
    errors: list[BaseException] = []
    go_on = threading.Event()

    class Answer(Blocks):
        def __next__(self) -> Any:
            try:
                go_on.wait()
                if what == "read":
                    environs[0]["wsgi.input"].read()
            except BaseException as error:
                errors.append(error)
                raise
            return b"too late"

    answer = Answer()
    environs = []

    def app(environ: dict[str, Any], start_response: StartResponse) -> Any:
        environs.append(environ)
        start_response("200 OK", [])
        return answer

    async with opened(app, run_in, execution_timeout=0.05) as sandboxed:
        connection = Connection(sandboxed, body=None)
        with anyio.fail_after(8):
            await connection.run()
        assert connection.status == 504
        go_on.set()
        await become(lambda: answer.closed > 0)
        assert answer.closed == 1
        assert b"too late" not in connection.body
    if what == "read" and run_in == "loop":
        assert [type(error) for error in errors] == [CutOffError]


@each_way
@pytest.mark.backend_with_uvloop
async def test_cut_off_while_reading(run_in: str) -> None:
    """An app that waits for its client is cut off at once, and its thread is free again."""
    errors: list[BaseException] = []

    def app(environ: dict[str, Any], start_response: StartResponse) -> list[bytes]:
        try:
            environ["wsgi.input"].read()
        except BaseException as error:
            errors.append(error)
            raise
        return []

    async with opened(app, run_in, execution_timeout=0.05) as sandboxed:
        connection = Connection(sandboxed, body=None, method="POST")
        with anyio.fail_after(8):
            await connection.run()
        assert connection.status == 504
        await become(lambda: len(errors) == 1)
        assert not isinstance(errors[0], Exception)
        assert sandboxed.statistics().abandoned == 0


@each_way
async def test_cut_off_in_a_stream(run_in: str) -> None:
    """A response that has begun is cut off by its deadline, and closed."""
    answer = Endless()

    def app(environ: dict[str, Any], start_response: StartResponse) -> Any:
        start_response("200 OK", [])
        return answer

    async with opened(app, run_in, execution_timeout=0.05) as sandboxed:
        connection = Connection(sandboxed)
        with pytest.raises(ExecutionTimeoutError), anyio.fail_after(8):
            await connection.run()
        await become(lambda: answer.closed > 0)
        assert answer.closed == 1


@each_way
async def test_cancelled_from_outside(run_in: str) -> None:
    """A server that cancels its task gets its cancellation, and the app comes to its end."""
    answer = Endless()

    def app(environ: dict[str, Any], start_response: StartResponse) -> Any:
        start_response("200 OK", [])
        return answer

    async with opened(app, run_in) as sandboxed:
        connection = Connection(sandboxed)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(connection.run)
            await become(lambda: answer.given >= 3)
            tasks.cancel_scope.cancel()
        await become(lambda: answer.closed > 0)
        assert answer.closed == 1
        assert sandboxed.statistics().pool.retired == {"cancelled": 1}


@each_way
async def test_cancelled_before_it_began(run_in: str) -> None:
    """A request that is cancelled before its thread has begun never calls the app."""
    calls = []

    def app(environ: dict[str, Any], start_response: StartResponse) -> list[bytes]:
        calls.append(environ["PATH_INFO"])
        start_response("200 OK", [])
        return []

    async with opened(app, run_in) as sandboxed:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await Connection(sandboxed, "/first").run()
        await get(sandboxed, "/second")
    # On the loop the app comes before the cancellation, which the next await delivers, and in a
    # sandbox with a thread of its own it may.
    first = {"loop": ["/second"], "cooperative": ["/first", "/second"]}
    assert calls == first.get(run_in, calls)
    assert calls[-1] == "/second"


# --- what WSGI has not ------------------------------------------------------------------------


@each_way
@pytest.mark.parametrize("extensions", [{}, {"websocket.http.response": {}}])
async def test_websockets_are_refused(
    run_in: str, extensions: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    """A websocket is denied with 501, or closed where that cannot be done; the log says why."""
    app = Blocks
    async with opened(app, run_in) as sandboxed:
        connection = Connection(sandboxed, "/chat", type="websocket", extensions=extensions)
        await connection.run()
    if extensions:
        assert (connection.status, connection.text) == (
            501,
            "Not implemented: no websockets here.\n",
        )
    else:
        assert connection.types == ["websocket.close"]
    (record,) = [r for r in caplog.records if r.levelno == logging.WARNING]
    assert record.getMessage() == (
        "the websocket /chat is refused: tests.wsgi.served.Blocks is a WSGI app, and WSGI has none"
    )


@each_way
async def test_lifespan(run_in: str) -> None:
    """A server's lifespan opens and closes the pool; the WSGI app is not bothered."""

    def app(environ: dict[str, Any], start_response: StartResponse) -> list[bytes]:
        start_response("200 OK", [])
        return [environ["PATH_INFO"].encode()]

    from .served import wrapped

    sandboxed = wrapped(app, run_in)
    lifespan = Lifespan(sandboxed)
    async with anyio.create_task_group() as tasks:
        await lifespan.start(tasks)
        assert (await get(sandboxed, "/x")).body == b"/x"
        await lifespan.stop()
    assert lifespan.types == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


async def test_gateway_by_itself() -> None:
    """The gateway answers a lifespan at once, and refuses what it does not know."""
    gateway = WSGIGateway(Blocks, "shop", None)
    lifespan = Lifespan(gateway)
    async with anyio.create_task_group() as tasks:
        await lifespan.start(tasks)
        await lifespan.stop()
    assert lifespan.types == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    with pytest.raises(ValueError, match=r"<WSGIGateway of shop> serves http, .* not 'mqtt'"):
        await gateway({"type": "mqtt"}, connection_less, connection_less)


async def connection_less(*args: Any) -> Any:
    raise AssertionError("there is no client")
