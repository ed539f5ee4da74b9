"""A sandbox's thread: its event loop, its lifespan, its end, and what is refused."""

from __future__ import annotations

import asyncio
import errno
import os
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from anyio import to_thread
from fastapi import FastAPI, Request

from sandboxpool import FactoryError, LifespanStartupError, OptionError, ThreadLimitError, wrap
from sandboxpool.run._open_files import check_files
from tests.wrap.client import get, respond

from .threads import PATIENCE, in_threads, sandbox_threads, together, until


def backend_of_this_loop() -> str:
    """Return the backend that runs here."""
    from sandboxpool.run.thread import _backend_here

    return _backend_here()


async def where(scope: Any, receive: Any, send: Any) -> None:
    """A raw app that says in which event loop it runs."""
    await respond(send, backend_of_this_loop().encode())


# --- the event loop -----------------------------------------------------------------------------


@pytest.mark.backend_with_uvloop
async def test_backend_is_the_servers() -> None:
    """By default a thread runs the same event loop as the server."""
    async with in_threads(where) as sandboxed:
        assert (await get(sandboxed)).text == backend_of_this_loop()


@pytest.mark.parametrize("backend", ["asyncio", "uvloop", "trio"])
async def test_backend_on_request(backend: Any) -> None:
    """Each event loop can be had in the threads, whichever one the server has."""
    async with in_threads(where, thread_backend=backend) as sandboxed:
        assert (await get(sandboxed)).text == backend


@pytest.mark.parametrize("anyio_backend", ["trio"], indirect=True)
async def test_cancelled_in_its_own_loop() -> None:
    """An app that is cancelled by its own event loop, of another kind, fails with an error."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        raise asyncio.CancelledError

    async with in_threads(app, thread_backend="asyncio") as sandboxed:
        with pytest.raises(RuntimeError, match="request / was cancelled in its own event loop"):
            await get(sandboxed)


async def test_loop_with_sockets_and_processes() -> None:
    """The quiet loop of a thread becomes a full one when the app uses sockets or processes."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def answer(reader: Any, writer: Any) -> None:
            writer.write((await reader.readline()).upper())
            await writer.drain()
            writer.close()

        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"hello\n")
            told = await reader.readline()
            writer.close()
            await writer.wait_closed()
        process = await asyncio.create_subprocess_exec("echo", "there", stdout=-1)
        out, _ = await process.communicate()
        await asyncio.sleep(0.001)
        await respond(send, told + out + await asyncio.to_thread(bytes, b"!"))

    async with in_threads(app, thread_backend="asyncio") as sandboxed:
        for _ in range(2):
            assert (await get(sandboxed)).text == "HELLO\nthere\n!"


async def test_idle_threads_hold_few_files() -> None:
    """A sandbox with asyncio holds one file descriptor, and gives it back in the end."""

    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = open_files()
    async with in_threads(where, thread_backend="asyncio", min_size=30, max_size=30):
        assert open_files() - before <= 30 + 5
    await until(lambda: open_files() <= before + 1)


async def test_def_endpoints_use_threads_of_the_sandbox() -> None:
    """`def` endpoints take none of the server's 40 threads, so more than 40 run at once."""
    app = FastAPI()
    barrier = threading.Barrier(50)

    @app.get("/")
    def endpoint() -> None:
        barrier.wait(PATIENCE)

    limiter = to_thread.current_default_thread_limiter()
    async with in_threads(app, max_size=50) as sandboxed:
        for connection in await together(sandboxed, 50):
            assert connection.status == 200
        assert limiter.borrowed_tokens == 0


async def test_deep_recursion_fits_the_stack() -> None:
    """Code that recurses through C up to the limit raises RecursionError, as it does elsewhere."""
    code = """
    import anyio, sandboxpool

    def deeper(number):
        return sorted([number], key=lambda _: deeper(number + 1))

    async def app(scope, receive, send):
        try:
            deeper(0)
        except RecursionError:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body"})

    async def main():
        sent = []
        async def send(message): sent.append(message)
        async with sandboxpool.wrap(app, run_in="thread", lifespan="off") as sandboxed:
            await sandboxed({"type": "http", "path": "/"}, None, send)
        assert sent[0]["status"] == 200

    anyio.run(main)
    """
    await anyio.run_process([sys.executable, "-c", textwrap.dedent(code)], check=True)


# --- lifespan, isolation ------------------------------------------------------------------------


def make_app(log: list[tuple[str, int]]) -> FastAPI:
    """Return an app whose lifespan opens a connection that only its own thread may use."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[dict[str, Any]]:
        log.append(("start", threading.get_ident()))
        connection = sqlite3.connect(":memory:")
        app.state.connection = connection
        yield {"also": connection}
        connection.close()
        log.append(("stop", threading.get_ident()))

    app = FastAPI(lifespan=lifespan)

    @app.get("/")
    async def endpoint(request: Request) -> list[int]:
        (one,) = request.app.state.connection.execute("select 1").fetchone()
        (two,) = request.state.also.execute("select 2").fetchone()
        return [one, two, threading.get_ident()]

    return app


@pytest.mark.parametrize("factory", [False, True])
async def test_lifespan_in_the_thread(factory: bool) -> None:
    """Each sandbox's lifespan runs in its thread, so that what is bound to a thread works."""
    log: list[tuple[str, int]] = []

    def make() -> FastAPI:
        return make_app(log)

    options: dict[str, Any] = {"run_in": "thread", "min_size": 3, "max_size": 3}
    sandboxed = wrap(make, factory=True, **options) if factory else wrap(make(), **options)
    async with sandboxed:
        answers = [(await get(sandboxed)).json for _ in range(6)]
        assert {(one, two) for one, two, _ in answers} == {(1, 2)}
    started = [ident for what, ident in log if what == "start"]
    assert len(set(started)) == 3
    assert threading.get_ident() not in started
    assert sorted(ident for what, ident in log if what == "stop") == sorted(started)
    assert {ident for _, _, ident in answers} <= set(started)


async def test_lifespan_once() -> None:
    """With lifespan="once" it runs in the server's loop, and its state reaches the threads."""
    ran: list[int] = []

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        ran.append(threading.get_ident())
        app.state.ready = "yes"
        yield

    app = FastAPI(lifespan=lifespan)

    @app.get("/")
    async def endpoint(request: Request) -> str:
        return str(request.app.state.ready)

    async with in_threads(app, lifespan="once", min_size=2, max_size=2) as sandboxed:
        assert (await get(sandboxed)).json == "yes"
    assert ran == [threading.get_ident()]


async def test_failed_start() -> None:
    """A lifespan that fails in a thread fails the start, with the app's own exception inside."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        if app.title:
            raise ZeroDivisionError("no database")
        yield

    with pytest.raises(FactoryError) as info:
        await wrap(FastAPI(lifespan=lifespan), run_in="thread").open()
    assert isinstance(info.value.__cause__, LifespanStartupError)
    assert isinstance(info.value.__cause__.__cause__, ZeroDivisionError)
    await until(lambda: not sandbox_threads())


async def test_state_is_private() -> None:
    """Concurrent requests in threads keep their state apart; unwrapped they mix it up."""
    app = FastAPI()
    barrier = threading.Barrier(2)

    @app.get("/{user}")
    def endpoint(user: str) -> str:
        app.state.user = user
        barrier.wait(PATIENCE)
        found = str(app.state.user)
        barrier.wait(PATIENCE)
        return found

    async def ask(served: Any) -> list[str]:
        from tests.wrap.client import Connection

        connections = [Connection(served, f"/{user}") for user in ("ada", "bob")]
        async with anyio.create_task_group() as tasks:
            for connection in connections:
                tasks.start_soon(connection.run)
        return [connection.json for connection in connections]

    assert len(set(await ask(app))) == 1  # the control
    del app.state.user
    async with in_threads(app, max_size=2) as sandboxed:
        for _ in range(3):
            assert await ask(sandboxed) == ["ada", "bob"]
        assert not hasattr(app.state, "user")
        # Nobody holds on to a private app after its request: each was restored, none made anew.
        assert sandboxed.statistics().pool.created == 2


async def test_reset_in_the_thread() -> None:
    """A function that resets a sandbox runs in the sandbox's thread."""
    reset_in: list[int] = []
    ran_in: list[int] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        ran_in.append(threading.get_ident())
        await respond(send)

    async def reset(sandbox: Any) -> None:
        await anyio.lowlevel.checkpoint()
        reset_in.append(threading.get_ident())

    async with in_threads(app, reset=reset) as sandboxed:
        await get(sandboxed)
        await get(sandboxed)
    assert ran_in == reset_in
    assert threading.get_ident() not in reset_in


class Noting:
    """A factory of the user's own that notes what is called in which thread."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, int]] = []

    def note(self, what: str) -> None:
        self.calls.append((what, threading.get_ident()))

    async def start(self) -> None:
        self.note("start")

    async def stop(self) -> None:
        self.note("stop")

    async def create(self) -> Any:
        self.note("create")
        return where

    def reset(self, sandbox: Any) -> None:
        self.note("reset")

    def destroy(self, sandbox: Any) -> None:
        self.note("destroy")


async def test_custom_isolation() -> None:
    """A factory of one's own makes, resets and ends its sandboxes in their threads."""
    factory = Noting()
    options: dict[str, Any] = {"lifespan": "auto", "isolation": factory}
    async with in_threads(where, **options) as sandboxed:
        await get(sandboxed)
    here = threading.get_ident()
    assert [what for what, _ in factory.calls] == ["start", "create", "reset", "destroy", "stop"]
    assert [ident == here for _, ident in factory.calls] == [True, False, False, False, True]


# --- the end ------------------------------------------------------------------------------------


async def test_threads_end_with_the_app() -> None:
    """After the app is closed its threads are gone, those of `def` endpoints included."""
    app = FastAPI()

    @app.get("/")
    def endpoint() -> None: ...

    async with in_threads(app, min_size=5, max_size=5) as sandboxed:
        await together(sandboxed, 5)
        assert len(sandbox_threads()) == 5
    await until(lambda: not sandbox_threads())
    await until(lambda: not [t for t in threading.enumerate() if t.name.startswith("AnyIO")])


@pytest.mark.slow
async def test_shutdown_does_not_wait_for_a_blocked_thread() -> None:
    """A process with a thread that never returns ends soon after its drain timeout."""
    code = """
    import anyio, time, sandboxpool

    async def app(scope, receive, send):
        time.sleep(100)

    async def main():
        async with anyio.create_task_group() as tasks:
            sandboxed = sandboxpool.wrap(app, run_in="thread", lifespan="off", drain_timeout=0.2)
            await sandboxed.open()
            async def send(message): print(message.get("status"), flush=True)
            async def receive(): await anyio.sleep_forever()
            tasks.start_soon(sandboxed, {"type": "http", "path": "/"}, receive, send)
            await anyio.sleep(0.2)
            began = time.monotonic()
            await sandboxed.aclose()
            assert time.monotonic() - began < 5

    anyio.run(main)
    """
    began = time.monotonic()
    done = await anyio.run_process([sys.executable, "-c", textwrap.dedent(code)], check=True)
    assert time.monotonic() - began < 30
    assert done.stdout.decode().split()[0] == "503"


async def test_create_that_blocks() -> None:
    """A factory that blocks runs out of time, and its thread is left behind until it returns."""
    go_on = threading.Event()

    def make() -> FastAPI:
        go_on.wait(PATIENCE)
        return FastAPI()

    sandboxed = wrap(make, factory=True, run_in="thread", create_timeout=0.1)
    with pytest.raises(FactoryError):
        await sandboxed.open()
    assert len(sandbox_threads()) == 1
    go_on.set()
    await until(lambda: not sandbox_threads())


# --- limits -------------------------------------------------------------------------------------


async def test_no_further_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """If the system starts no further thread, the error says so, and how to go on."""
    start = threading.Thread.start

    def refuse(self: threading.Thread) -> None:
        if " sandbox " in self.name:
            raise RuntimeError("can't start new thread")
        start(self)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(FactoryError) as info:
        await in_threads(where).open()
    text = str(info.value.__cause__)
    assert isinstance(info.value.__cause__, ThreadLimitError)
    assert text.startswith(
        "the system starts no further thread for a sandbox (can't start new thread): there are "
    )
    assert text.endswith(
        "in this process. Raise the limit (`ulimit -u`, the cgroup's pids.max), or lower max_size."
    )


@pytest.mark.parametrize("backend", ["uvloop", "trio", "asyncio"])
async def test_no_further_file(backend: str) -> None:
    """File descriptors are counted before they run out: the error has the limit and a remedy."""
    code = f"""
    import resource, anyio, sandboxpool

    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))

    async def app(scope, receive, send): ...

    async def main():
        try:
            await sandboxpool.wrap(
                app, run_in="thread", lifespan="off", min_size=100, thread_backend="{backend}",
            ).open()
        except sandboxpool.FactoryError as error:
            print(error.__cause__)

    anyio.run(main)
    """
    done = await anyio.run_process([sys.executable, "-c", textwrap.dedent(code)], check=True)
    text = done.stdout.decode()
    assert f"a sandbox with an event loop of {backend} needs" in text
    assert "of the 64 that this process may have are taken." in text
    assert "Raise the limit (`ulimit -n 65536`), lower max_size, or choose" in text


async def test_files_run_out_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where others took the last file descriptors while a thread started, the error is the same."""

    def no_loop(backend: str) -> dict[str, Any]:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("sandboxpool.run._loop_thread._how", no_loop)
    with pytest.raises(FactoryError) as info:
        await in_threads(where, thread_backend="asyncio").open()
    error = info.value.__cause__
    assert isinstance(error, ThreadLimitError)
    assert "file descriptors, and all that this process may have are taken. Raise" in str(error)


async def test_promised_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that threads were allowed to take and have not taken yet are counted, too."""
    monkeypatch.setattr("sandboxpool.run._open_files.limit_of_files", lambda: 10_000)
    check_files(3, "it", promised=5_000)
    with pytest.raises(ThreadLimitError, match="it needs 3 file descriptors, and 10000 of the"):
        check_files(3, "it", promised=9_999)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"run_in": "space"}, "run_in='space': give one of 'loop', 'thread', 'cooperative'"),
        ({"thread_backend": "curio", "run_in": "thread"}, "thread_backend='curio': give one of"),
        ({"thread_backend": "trio"}, "is for run_in='thread', but run_in='loop'"),
        ({"thread_stack_size": 1}, "thread_stack_size=1: give a whole number of at least 65536"),
        ({"max_abandoned": 0}, "max_abandoned=0: give a whole number of at least 1, or None"),
        ({"hooks": ("sleep",)}, "hooks=('sleep',) make blocking calls cooperative, which takes"),
        ({"hooks": "sleep"}, "hooks='sleep': give several names, as in hooks=('sleep',)"),
        ({"wsgi": 1}, "wsgi=1: give True or False"),
    ],
)
def test_options(options: dict[str, Any], text: str) -> None:
    """An option of threads that cannot work is refused, with the remedy."""
    with pytest.raises(OptionError) as info:
        wrap(where, **options)
    assert text in str(info.value)


def test_missing_backend() -> None:
    """A backend that is not installed is refused with the extra to install."""
    code = """
    import sys
    sys.modules["uvloop"] = None
    import sandboxpool

    async def app(scope, receive, send): ...

    try:
        sandboxpool.wrap(app, run_in="thread", thread_backend="uvloop")
    except ImportError as error:
        print(error)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], check=True, capture_output=True, text=True
    )
    assert "uvloop, which is not installed: pip install uvloop" in done.stdout
