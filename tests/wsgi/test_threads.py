"""WSGI apps in sandboxes with threads of their own: each of them runs right in its thread."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import Iterator
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from flask import Flask

from sandboxpool import context
from sandboxpool.adapters.wsgi import WorkerThreads, WSGIGateway
from sandboxpool.run._loop_thread import CutOffError
from tests.wrap.client import Connection, get

from .served import Blocks, StartResponse, ask, opened
from .test_life import Endless, become

both = pytest.mark.parametrize("run_in", ["loop", "thread"])


@pytest.mark.backend_with_uvloop
async def test_one_thread_a_sandbox() -> None:
    """40 requests that block at once take 40 threads, and one that starts those."""
    everybody = threading.Barrier(40)
    seen = []

    def app(environ: dict[str, Any], start_response: StartResponse) -> list[bytes]:
        body = environ["wsgi.input"].read()
        everybody.wait(timeout=20)
        seen.append(set(threading.enumerate()))
        start_response("200 OK", [])
        return [body]

    before = set(threading.enumerate())
    async with opened(app, "thread", max_size=40) as sandboxed, anyio.create_task_group() as tasks:
        for _ in range(40):
            tasks.start_soon(Connection(sandboxed, body=[b"a", b"b"]).run)
    new = {thread.name for thread in max(seen, key=len) - before}
    new.discard("sandboxpool thread starter")
    # Trio runs as a guest in these tests, which takes it a thread.
    new = {name for name in new if not name.startswith("Trio thread")}
    assert len(new) == 40
    assert all(" sandbox " in name for name in new)


async def test_a_connection_of_the_thread() -> None:
    """What belongs to one thread only is made, used and closed in that, by a deferred call, too."""

    def app(environ: dict[str, Any], start_response: StartResponse) -> Iterator[bytes]:
        connection = sqlite3.connect(":memory:")  # it refuses to work in any other thread
        context.defer(close, connection)
        start_response("200 OK", [])
        for (number,) in connection.execute("values (1), (2)"):
            yield str(number).encode()

    closed = []

    def close(connection: sqlite3.Connection) -> None:
        connection.close()
        closed.append(True)

    assert (await ask(app, "thread")).body == b"12"
    assert closed == [True]


@both
@pytest.mark.backend_with_uvloop
async def test_no_loop_in_sight(run_in: str) -> None:
    """A view may run an event loop of its own: none is running, as far as it can see."""

    async def answer() -> bytes:
        await asyncio.sleep(0)
        await anyio.lowlevel.checkpoint()  # finds out by itself what runs here
        return b"from a loop"

    def app(environ: dict[str, Any], start_response: StartResponse) -> Iterator[bytes]:
        with pytest.raises(RuntimeError, match="no running event loop"):
            asyncio.get_running_loop()
        start_response("200 OK", [("Content-Length", "22")])
        yield asyncio.run(answer())
        yield anyio.run(answer)

    assert (await ask(app, run_in)).body == b"from a loop" * 2


@both
@pytest.mark.backend_with_uvloop
async def test_async_views_of_flask(run_in: str) -> None:
    """An async view of Flask runs in a loop that Flask makes for it."""
    app = Flask("shop")

    @app.get("/")
    async def index() -> str:
        await asyncio.sleep(0.001)
        return "async"

    async with opened(app, run_in, max_size=1) as sandboxed:
        for _ in range(3):
            assert (await get(sandboxed)).text == "async"


@pytest.mark.backend_with_uvloop
async def test_a_slow_client_is_waited_for_without_a_loop() -> None:
    """An app is never ahead of a slow client by more than the block that is being sent."""
    answer = Endless()

    def app(environ: dict[str, Any], start_response: StartResponse) -> Any:
        start_response("200 OK", [])
        return answer

    async with opened(app, "thread") as sandboxed:
        connection = Connection(sandboxed)
        go_on = anyio.Event()
        taken: list[int] = []

        async def send(message: Any) -> None:
            await Connection.send(connection, message)
            if message["type"] == "http.response.body":
                taken.append(answer.given)
            if len(taken) == 5:
                await go_on.wait()

        connection.send = send  # type: ignore[method-assign]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(connection.run)
            await become(lambda: len(taken) == 5)
            assert taken == [1, 2, 3, 4, 5]
            await anyio.sleep(0.05)  # long enough for many
            assert answer.given == 5
            connection.hang_up()
            go_on.set()
    assert answer.closed == 1


@pytest.mark.backend_with_uvloop
async def test_cut_off_while_the_client_is_slow() -> None:
    """An app that waits until its client takes a block is cut off at once, and cleanly."""
    errors: list[BaseException] = []

    def app(environ: dict[str, Any], start_response: StartResponse) -> list[bytes]:
        write = start_response("200 OK", [])
        for block in (b"first", b"second"):  # whoever goes on all the same is told again
            try:
                write(block)
            except BaseException as error:
                errors.append(error)
        return []

    async with opened(app, "thread", max_size=1) as sandboxed:
        connection = Connection(sandboxed)

        async def send(message: Any) -> None:
            await Connection.send(connection, message)
            if message.get("body"):
                await anyio.sleep_forever()

        connection.send = send  # type: ignore[method-assign]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(connection.run)
            await become(lambda: connection.body == b"first")
            tasks.cancel_scope.cancel()
        assert [type(error) for error in errors] == [CutOffError] * 2
        assert str(errors[0]) == "the request was cut off."
        assert sandboxed.statistics().abandoned == 0
        assert sandboxed.statistics().pool.retired == {"cancelled": 1}
        assert connection.body == b"first"


async def test_a_long_clean_up_is_left_behind() -> None:
    """An app that is told to stop and then blocks is left behind like any that blocks."""
    release = threading.Event()
    ended = threading.Event()

    def app(environ: dict[str, Any], start_response: StartResponse) -> list[bytes]:
        try:
            environ["wsgi.input"].read()
        finally:
            try:
                release.wait()  # and then it is told once more
            finally:
                ended.set()
        return []

    async with opened(app, "thread", execution_timeout=0.05, drain_timeout=0.1) as sandboxed:
        try:
            connection = Connection(sandboxed, body=None, method="POST")
            with anyio.fail_after(8):
                await connection.run()
            assert connection.status == 504
            assert sandboxed.statistics().abandoned == 1
        finally:
            release.set()
        await become(lambda: ended.is_set() and sandboxed.statistics().abandoned == 0)


async def test_writing_in_another_thread() -> None:
    """Threads of the app's own may send, too: their turn comes like everybody's."""

    def app(environ: dict[str, Any], start_response: StartResponse) -> list[bytes]:
        write = start_response("200 OK", [("Content-Length", "12")])
        for block in (b"one ", b"two ", b"done"):
            thread = threading.Thread(target=write, args=(block,))
            thread.start()
            thread.join()
        return []

    assert (await ask(app, "thread")).body == b"one two done"


async def test_a_thread_that_outlives_the_request() -> None:
    """A thread that still waits for the body when the request ends is told that there is none."""
    errors: list[BaseException] = []
    reading = threading.Event()

    def read(body: Any) -> None:
        reading.set()
        try:
            body.read()
        except OSError as error:
            errors.append(error)

    def app(environ: dict[str, Any], start_response: StartResponse) -> list[bytes]:
        threading.Thread(target=read, args=(environ["wsgi.input"],)).start()
        reading.wait()
        start_response("200 OK", [])
        return [b"bye"]

    async with opened(app, "thread") as sandboxed:
        connection = Connection(sandboxed, body=None, method="POST")
        with anyio.fail_after(8):
            await connection.run()
        assert connection.body == b"bye"
        await become(lambda: len(errors) == 1)
    assert isinstance(errors[0], ConnectionResetError)


async def test_the_end_is_sent_before_close() -> None:
    """A response has reached the client while its close() still blocks."""
    release = threading.Event()

    class Answer(Blocks):
        def close(self) -> None:
            release.wait()

    def app(environ: dict[str, Any], start_response: StartResponse) -> Any:
        start_response("200 OK", [])
        return Answer(b"all of it")

    async with opened(app, "thread") as sandboxed:
        connection = Connection(sandboxed)
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(connection.run)
                await become(lambda: len(connection.sent) == 3)
                assert not connection.over.is_set()
                release.set()
        finally:
            release.set()
    assert connection.body == b"all of it"


async def test_without_a_sandbox() -> None:
    """A gateway that is called outside of a sandbox's thread takes a worker thread."""
    threads = []

    def app(environ: dict[str, Any], start_response: StartResponse) -> list[bytes]:
        threads.append(threading.get_ident())
        start_response("200 OK", [])
        return [b"hello"]

    gateway = WSGIGateway(app, "shop", WorkerThreads("shop", set(), None, in_sandbox=True))
    assert (await get(gateway)).body == b"hello"
    assert threads != [threading.get_ident()]
