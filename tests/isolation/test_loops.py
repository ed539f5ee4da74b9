"""Several event loops: one after another, and in several threads at once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import pytest
import trio
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Mount, Route

from sandboxpool import wrap
from sandboxpool._loop import running_backend
from sandboxpool.isolation._per_loop import PerLoop
from sandboxpool.isolation.clone import CloneFactory
from sandboxpool.isolation.factory import AppFactory

from .driver import Driver, call

KINDS = ["clone", "clone each", "factory", "factory once"]


class Shop:
    """Makes apps that note in which loop their lifespan starts and stops."""

    def __init__(self) -> None:
        self.apps: list[Starlette] = []
        self.started: list[int] = []
        self.stopped: list[int] = []

    def make(self) -> Starlette:
        async def visit(request: Request) -> JSONResponse:
            visits = getattr(app.state, "visits", 0) + 1
            app.state.visits = visits
            return JSONResponse([visits, request.state.loop == _here()])

        @asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Any]]:
            self.started.append(_here())
            yield {"loop": _here()}
            self.stopped.append(_here())

        app = Starlette(routes=[Route("/", visit)], lifespan=lifespan)
        self.apps.append(app)
        return app

    def wrapped(self, kind: str) -> Any:
        options: Any = {"min_size": 2, "max_size": 2, "stall_after": None}
        if kind == "clone":
            return wrap(self.make(), **options)
        if kind == "clone each":
            return wrap(self.make(), lifespan="each", **options)
        if kind == "factory once":
            return wrap(self.make, factory=True, lifespan="once", **options)
        return wrap(self.make, factory=True, **options)


def _here() -> int:
    if running_backend() == "trio":
        return id(trio.lowlevel.current_trio_token())
    return id(asyncio.get_running_loop())


async def _serve_twice(wrapped: Any) -> None:
    async with wrapped:
        for _ in range(2):
            assert (await call(wrapped, "/")).data == [1, True]


def _is_quiet(shop: Shop) -> bool:
    return all(type(app) is Starlette and not app.state._state for app in shop.apps)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "runs",
    [[asyncio.run] * 3, [asyncio.run, trio.run], [trio.run, asyncio.run, trio.run]],
    ids=["asyncio", "asyncio then trio", "to and fro"],
)
def test_loops_one_after_another(kind: str, runs: list[Any]) -> None:
    """Each loop starts and stops what it needs, and leaves the app as it was."""
    shop = Shop()
    wrapped = shop.wrapped(kind)
    for run in runs:
        if run is trio.run:
            trio.run(_serve_twice, wrapped)
        else:
            run(_serve_twice(wrapped))
        assert _is_quiet(shop)
    lifespans = 2 if kind in ("clone each", "factory") else 1
    assert len(shop.started) == lifespans * len(runs)
    assert shop.stopped == shop.started


@pytest.mark.parametrize("kind", KINDS)
def test_loops_that_were_left_in_the_middle(kind: str) -> None:
    """What a loop that has ended has left is dropped by the next one."""
    shop = Shop()
    wrapped = shop.wrapped(kind)

    async def leave() -> None:
        await wrapped.open()
        assert (await call(wrapped, "/")).data == [1, True]

    asyncio.run(leave())
    for _ in range(2):
        asyncio.run(_serve_twice(wrapped))
        assert _is_quiet(shop)
    assert len(wrapped._factory._lives.all()) == 0


class Threads:
    """Runs coroutine functions in a thread and a loop each, and hands on what they raise."""

    def __init__(self) -> None:
        self.errors: list[BaseException] = []
        self.threads: list[threading.Thread] = []

    def start(self, run: Callable[[], Any]) -> None:
        def guarded() -> None:
            try:
                run()
            except BaseException as error:
                self.errors.append(error)

        self.threads.append(threading.Thread(target=guarded))
        self.threads[-1].start()

    def join(self) -> None:
        for thread in self.threads:
            thread.join(20)
        if self.errors:
            raise self.errors[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("second", ["asyncio", "trio"])
def test_two_threads_with_a_loop_each(kind: str, second: str) -> None:
    """Both serve at once; the end of one neither stops nor unmasks what the other one uses."""
    shop = Shop()
    wrapped = shop.wrapped(kind)
    both_serve = threading.Barrier(2, timeout=10)
    first_is_closed = threading.Event()
    threads = Threads()

    async def first() -> None:
        async with wrapped:
            both_serve.wait()
            assert (await call(wrapped, "/")).data == [1, True]
            both_serve.wait()
        assert set(shop.stopped) == {_here()}
        first_is_closed.set()

    async def second_one() -> None:
        async with wrapped:
            both_serve.wait()
            assert (await call(wrapped, "/")).data == [1, True]
            both_serve.wait()
            assert first_is_closed.wait(10)
            assert _here() not in shop.stopped
            for _ in range(4):
                assert (await call(wrapped, "/")).data == [1, True]

    threads.start(lambda: asyncio.run(first()))
    threads.start(lambda: anyio.run(second_one, backend=second))
    threads.join()
    assert sorted(shop.stopped) == sorted(shop.started)
    assert _is_quiet(shop)


def test_a_value_for_each_loop() -> None:
    """There is one value for each loop, one for no loop, and none for a loop that has ended."""
    gone: list[object] = []
    values = PerLoop(object, gone.append)
    outside = values.here()
    assert values.get() is outside

    async def inside() -> object:
        assert values.get() is None
        value = values.here()
        assert value is not outside
        assert values.here() is values.get() is value
        return value

    left = asyncio.run(inside())
    assert values.all() == [outside, left]
    other = trio.run(inside)
    assert gone == [left]
    values.sweep()
    assert gone == [left, other]
    assert values.pop() is outside
    assert values.pop() is None
    assert values.all() == []


def test_a_guest_run_in_the_thread_of_another_loop() -> None:
    """A Trio run that is the guest of an asyncio loop has a value of its own."""
    values = PerLoop(object, lambda value: None)

    async def guest() -> object:
        return values.here()

    async def host() -> tuple[object, object, object]:
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        before = values.here()
        trio.lowlevel.start_guest_run(
            guest,
            run_sync_soon_threadsafe=asyncio.get_running_loop().call_soon_threadsafe,
            done_callback=done.set_result,
        )
        return before, (await done).unwrap(), values.get()

    before, inside, after = asyncio.run(host())
    assert before is after
    assert inside is not before


async def test_an_app_that_several_products_mount() -> None:
    """A module's app that every product mounts is private until the last product is gone."""

    async def read(request: Request) -> JSONResponse:
        before = getattr(sub.state, "user", None)
        sub.state.user = "alice"
        return JSONResponse(before)

    sub = Starlette(routes=[Route("/", read)])

    def make() -> Starlette:
        return Starlette(routes=[Mount("/sub", sub)])

    async with Driver(AppFactory(make), 2) as driver:
        await driver.factory.destroy(driver.sandboxes.pop(0))
        for _ in range(2):
            assert (await driver.get(0, "/sub/")).data is None
    assert type(sub) is Starlette
    assert not sub.state._state


async def test_the_control_of_that() -> None:
    """Without a sandbox the second request finds what the first has left."""

    async def read(request: Request) -> JSONResponse:
        before = getattr(request.app.state, "user", None)
        request.app.state.user = "alice"
        return JSONResponse(before)

    app = Starlette(routes=[Route("/", read)])
    assert (await call(app, "/")).data is None
    assert (await call(app, "/")).data == "alice"
    async with Driver(CloneFactory(Starlette(routes=[Route("/", read)])), 1) as driver:
        assert (await driver.get(0, "/")).data is None
        assert (await driver.get(0, "/")).data is None
