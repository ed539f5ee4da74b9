"""Worker threads of cooperative requests, and what runs on the loop instead of in them."""

from __future__ import annotations

import asyncio
import os
import threading
import time
import traceback
from collections.abc import Iterator
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Annotated, Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest
from fastapi import Depends, FastAPI
from starlette.concurrency import iterate_in_threadpool, run_in_threadpool
from starlette.responses import StreamingResponse

from sandboxpool import context, current_lease, hooks, wrap
from sandboxpool.hooks._worker_threads import thread_limiter
from tests.wrap.client import Connection

from .request import PATIENCE, alone, at_once, hooked, sandboxed

MANY = 200
T = 0.3

ON_THE_LOOP = ("sleep", "locks", "threads")
IN_THREADS = ("sleep",)

_originals = [
    (owner, name, vars(owner)[name])
    for owner, name in (
        (anyio.to_thread, "run_sync"),
        (anyio.from_thread, "run"),
        (anyio.from_thread, "run_sync"),
        (anyio.from_thread, "check_cancelled"),
        (asyncio, "to_thread"),
        (asyncio.threads, "to_thread"),
    )
]

state: ContextVar[str] = ContextVar("state", default="unset")


def before() -> str:
    """Block, as a dependency."""
    time.sleep(T)
    return "before"


def around() -> Iterator[str]:
    """Do something before and after, as a dependency."""
    with open(os.devnull):
        yield "around"


def app() -> FastAPI:
    """Return an app of `def` endpoints and dependencies, as people write them."""
    api = FastAPI()

    @api.get("/")
    def endpoint(
        one: Annotated[str, Depends(before)], two: Annotated[str, Depends(around)]
    ) -> list[str]:
        context.set("one", one)
        time.sleep(T)
        return [context.get("one"), two, threading.current_thread().name]

    @api.get("/stream")
    def stream() -> StreamingResponse:
        def parts() -> Iterator[str]:
            for number in range(3):
                time.sleep(0.001)
                yield str(number)

        return StreamingResponse(parts())

    @api.get("/fails")
    def fails() -> None:
        raise LookupError("no such thing")

    return api


@pytest.mark.parametrize("installed", [IN_THREADS, ON_THE_LOOP], ids=["threads", "loop"])
@pytest.mark.backend_with_uvloop
async def test_endpoints(installed: Any) -> None:
    """Two hundred `def` endpoints do not queue for 40 threads, in threads and on the loop."""
    with hooked(*installed):
        wrapped = wrap(app(), run_in="cooperative", hooks=installed, max_size=MANY)
        async with wrapped:
            answers = [Connection(wrapped) for _ in range(MANY)]
            await Connection(wrapped, "/stream").run()
            start = monotonic()
            async with anyio.create_task_group() as tasks:
                for answer in answers:
                    tasks.start_soon(answer.run)
            # 40 at a time would take five rounds of both waits.
            assert 2 * T * 0.9 <= monotonic() - start < 2 * T * 4
            main = threading.current_thread().name
            for answer in answers:
                assert answer.status == 200
                assert answer.json[:2] == ["before", "around"]
                assert (answer.json[2] == main) is (installed is ON_THE_LOOP)
            assert (await Connection(wrapped, "/stream").run()).text == "012"
            with pytest.raises(LookupError, match="no such thing") as caught:
                await Connection(wrapped, "/fails").run()
            assert traceback.extract_tb(caught.tb)[-1].name == "fails"


async def test_limit() -> None:
    """Worker threads of requests have a limit of their own, and leave the server's alone."""
    servers = anyio.to_thread.current_default_thread_limiter()
    before, servers.total_tokens = servers.total_tokens, 1
    together = threading.Barrier(3)
    try:
        async with servers:  # no thread of the server's is left
            await at_once(
                *[lambda: anyio.to_thread.run_sync(together.wait, PATIENCE)] * 3, hooks=IN_THREADS
            )
    finally:
        servers.total_tokens = before
    with hooked(*IN_THREADS):
        limiter = thread_limiter()
        assert limiter.total_tokens == float("inf")
        limiter.total_tokens = 1
        running: list[int] = []
        most: list[int] = []

        def count() -> None:
            running.append(1)
            most.append(len(running))
            time.sleep(0.01)
            running.pop()

        await at_once(*[lambda: anyio.to_thread.run_sync(count)] * 5, hooks=IN_THREADS)
        assert max(most) == 1
        assert thread_limiter() is limiter


async def test_given_limit() -> None:
    """A limiter that is given is honoured, in threads and on the loop."""
    for installed in (IN_THREADS, ON_THE_LOOP):
        limiter = anyio.CapacityLimiter(2)
        running: list[int] = []
        most: list[int] = []

        def count(running: list[int] = running, most: list[int] = most) -> None:
            running.append(1)
            most.append(len(running))
            time.sleep(0.01)
            running.pop()

        run = partial(anyio.to_thread.run_sync, count, limiter=limiter)
        await at_once(*[lambda run=run: run()] * 6, hooks=installed)
        assert max(most) == 2


async def test_outside_of_requests() -> None:
    """Code of the loop itself, and of requests that run in another way, has threads as before."""
    with hooked(*ON_THE_LOOP):
        main = threading.current_thread()
        assert await anyio.to_thread.run_sync(threading.current_thread) is not main
        assert await run_in_threadpool(threading.current_thread) is not main

        async def request() -> Any:
            return await anyio.to_thread.run_sync(threading.current_thread)

        assert (await at_once(request, run_in="loop"))[0] is not main
        assert (
            await anyio.to_thread.run_sync(partial(anyio.from_thread.run, anyio.sleep, 0)) is None
        )


async def test_semantics() -> None:
    """Arguments, results, exceptions and context variables are those of a worker thread."""

    def function(*args: int) -> tuple[str, tuple[int, ...], bool]:
        seen = state.get()
        state.set("of the function")
        time.sleep(0.001)
        assert state.get() == "of the function"
        return seen, args, threading.current_thread() is threading.main_thread()

    class Callable:
        def __call__(self, *args: int) -> Any:
            return function(*args)

        def method(self, *args: int) -> Any:
            return function(*args)

    def fail() -> None:
        time.sleep(0.001)
        raise LookupError("no such thing")

    main = threading.current_thread() is threading.main_thread()

    async def request() -> None:
        state.set("of the request")
        for call in (function, Callable(), Callable().method, partial(function)):
            result: Any = await anyio.to_thread.run_sync(call, 1, 2)
            assert result == ("of the request", (1, 2), main)
        assert state.get() == "of the request"
        lease = current_lease()
        assert await anyio.to_thread.run_sync(current_lease) is lease
        with pytest.raises(LookupError, match="no such thing") as caught:
            await anyio.to_thread.run_sync(fail, abandon_on_cancel=True)
        assert traceback.extract_tb(caught.tb)[-1].name == "fail"
        assert [part async for part in iterate_in_threadpool(iter("ab"))] == ["a", "b"]

    await alone(request, hooks=ON_THE_LOOP)


@pytest.mark.parametrize("installed", [IN_THREADS, ON_THE_LOOP], ids=["threads", "loop"])
async def test_from_thread(installed: Any) -> None:
    """A function can call back into the event loop, wherever it runs."""
    calls: list[Any] = []

    async def in_loop(number: int) -> str:
        calls.append(state.get())
        state.set("of the callback")
        await anyio.sleep(0.001)
        if number:
            raise LookupError(number)
        return "result"

    def function() -> list[Any]:
        state.set("of the function")
        anyio.from_thread.check_cancelled()
        results: list[Any] = [anyio.from_thread.run(in_loop, 0)]
        with pytest.raises(LookupError):
            anyio.from_thread.run(in_loop, 1)
        results.append(anyio.from_thread.run_sync(threading.current_thread))
        results.append(state.get())
        return results

    async def request() -> Any:
        return await anyio.to_thread.run_sync(function)

    main = threading.current_thread()
    results = await at_once(request, request, hooks=installed)
    assert results == [["result", main, "of the function"]] * 2
    if installed is ON_THE_LOOP:  # threads of Trio have those of the task that waits for them
        assert calls == ["of the function"] * 4


@pytest.mark.backend_with_uvloop
async def test_cut_short() -> None:
    """What runs on the loop is cut short where it blocks, and does not begin if it is too late."""
    ended: list[str] = []

    def function() -> None:
        try:
            time.sleep(60)
        finally:
            ended.append("function")

    async def request() -> None:
        await anyio.to_thread.run_sync(function)

    def check() -> None:
        while True:
            time.sleep(0.001)
            with anyio.CancelScope(shield=True):  # noqa: ASYNC100
                time.sleep(0.001)
            anyio.from_thread.check_cancelled()

    async def cancelled_before() -> None:
        with anyio.CancelScope() as scope:
            scope.cancel()
            await anyio.to_thread.run_sync(ended.append, "began")
            await anyio.to_thread.run_sync(lambda: ended.append("began"))

    async def checking() -> None:
        with anyio.move_on_after(0.05):
            await anyio.to_thread.run_sync(check)

    with anyio.fail_after(PATIENCE):
        async with sandboxed(request, hooks=ON_THE_LOOP, execution_timeout=0.05) as app:
            assert (await Connection(app, "/0").run()).status == 504
        async with sandboxed(request, cancelled_before, checking, hooks=ON_THE_LOOP) as app:
            with anyio.move_on_after(0.05) as scope:
                await Connection(app, "/0").run()
            assert scope.cancelled_caught
            await Connection(app, "/1").run()
            await Connection(app, "/2").run()
    assert ended == ["function"] * 2


async def test_keeps_its_thread(tmp_path: Path) -> None:
    """Functions of C, and those that work on files, go to a thread all the same."""
    path = anyio.Path(tmp_path / "file")
    seen: list[Any] = []

    class Noting(os.PathLike[str]):
        def __fspath__(self) -> str:
            seen.append(threading.current_thread())
            return str(path)

    async def request() -> None:
        assert await path.write_text("text") == 4
        assert await path.read_text() == "text"
        async with await path.open() as file:
            assert await file.read() == "text"
        await anyio.to_thread.run_sync(os.stat, Noting())
        await anyio.to_thread.run_sync(os.path.exists, Noting())
        await anyio.to_thread.run_sync(Path, Noting())

    await alone(request, hooks=ON_THE_LOOP)
    assert threading.current_thread() not in seen
    assert len(seen) >= 3


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_asyncio_to_thread() -> None:
    """`asyncio.to_thread()` runs on the loop, too, and other threads of asyncio stay threads."""

    def function(*, name: str) -> tuple[str, str, Any]:
        time.sleep(T)
        seen = state.get()
        state.set("of the function")
        return seen, name, threading.current_thread()

    async def request() -> Any:
        state.set("of the request")
        result = await asyncio.to_thread(function, name="name")
        assert state.get() == "of the request"
        assert await asyncio.to_thread(os.getpid) == os.getpid()
        loop = asyncio.get_running_loop()
        thread = await loop.run_in_executor(None, threading.current_thread)
        assert thread is not threading.current_thread()
        return result

    before = monotonic()
    results = await at_once(*[request] * 50, hooks=ON_THE_LOOP)
    assert results == [("of the request", "name", threading.current_thread())] * 50
    assert monotonic() - before < T * 50 / 4
    with hooked(*ON_THE_LOOP):
        assert await asyncio.to_thread(threading.current_thread) is not threading.current_thread()


def test_uninstalled() -> None:
    """What goes along with any hook goes with the last one."""
    hooks.install("sleep")
    assert anyio.to_thread.run_sync is not _originals[0][2]
    assert anyio.from_thread.run is _originals[1][2]
    hooks.install("threads", "locks")
    hooks.uninstall("sleep", "threads")
    assert anyio.to_thread.run_sync is not _originals[0][2]
    hooks.uninstall("locks")
    for owner, name, original in _originals:
        assert vars(owner)[name] is original
