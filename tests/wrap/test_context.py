"""The lease of a request and its context, from wherever the request's code runs."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Mount, Route

from sandboxpool import (
    LeaseEndedError,
    NoLeaseError,
    SandboxedApp,
    context,
    current_lease,
    current_sandbox,
    wrap,
)

from .client import Connection, get, respond, settle
from .test_untouched import retired


def raw(app: Any, **options: Any) -> SandboxedApp:
    """Wrap a raw app that has no lifespan, in one sandbox."""
    return wrap(app, max_size=1, stall_after=None, lifespan="off", **options)


def note(place: str) -> None:
    """Note a place of a request in its context."""
    lease = current_lease()
    assert lease.sandbox is current_sandbox()
    context.update({place: lease.id})
    assert context.get("path") == lease.path


def places_app(seen: dict[str, Any]) -> FastAPI:
    """An app that notes every place in which user code runs; *seen* gets all in the end."""
    app = FastAPI()

    class Noting(BaseHTTPMiddleware):
        async def dispatch(self, request: Request, call_next: Any) -> Response:
            context.set("path", request.url.path)
            context.defer(lambda: seen.update(context.copy()))
            note("middleware before")
            response: Response = await call_next(request)
            note("middleware after")
            return response

    app.add_middleware(Noting)

    async def dependency() -> AsyncIterator[None]:
        note("dependency")
        yield
        note("dependency after")

    def sync_dependency() -> Iterator[None]:
        note("sync dependency")
        yield
        note("sync dependency after")

    async def background() -> None:
        note("background")

    @app.get("/async", dependencies=[Depends(dependency), Depends(sync_dependency)])
    async def endpoint(tasks: BackgroundTasks) -> str:
        note("endpoint")
        async with anyio.create_task_group() as children:
            children.start_soon(child)
        await anyio.to_thread.run_sync(note, "thread")
        tasks.add_task(sync_background)
        tasks.add_task(background)
        return "ok"

    async def child() -> None:
        await anyio.lowlevel.checkpoint()
        note("child")

    def sync_background() -> None:
        note("sync background")

    @app.get("/sync", dependencies=[Depends(dependency), Depends(sync_dependency)])
    def sync_endpoint(tasks: BackgroundTasks) -> str:
        note("endpoint")
        anyio.from_thread.run(child)
        tasks.add_task(background)
        return "ok"

    @app.get("/stream")
    async def stream(tasks: BackgroundTasks) -> Response:
        async def pieces() -> AsyncIterator[bytes]:
            note("generator")
            yield b"x"
            await anyio.lowlevel.checkpoint()
            note("generator again")
            yield b"y"

        tasks.add_task(background)
        return StreamingResponse(pieces(), background=tasks)

    return app


PLACES = {
    "/async": "middleware before, middleware after, dependency, dependency after, sync dependency, "
    "sync dependency after, endpoint, child, thread, background, sync background",
    "/sync": "middleware before, middleware after, dependency, dependency after, sync dependency, "
    "sync dependency after, endpoint, child, background",
    "/stream": "middleware before, middleware after, generator, generator again, background",
}


@pytest.mark.parametrize("path", PLACES)
@pytest.mark.parametrize("isolate_context", [True, False])
async def test_places(path: str, isolate_context: bool) -> None:
    """Lease, sandbox and context are found wherever the code of a request runs."""
    seen: dict[str, Any] = {}
    options = {"max_size": 1, "stall_after": None, "isolate_context": isolate_context}
    async with wrap(places_app(seen), **options) as sandboxed:  # type: ignore[call-overload]
        for _ in range(2):
            seen.clear()
            assert (await get(sandboxed, path)).status == 200
            assert seen.pop("path") == path
            assert set(PLACES[path].split(", ")) <= set(seen)
            assert len(set(seen.values())) == 1


def test_outside() -> None:
    """Outside of a request each of them raises an error that says so."""
    calls: list[Callable[[], object]] = [
        current_lease,
        current_sandbox,
        lambda: context.get("x"),
        lambda: context.set("x", 1),
        lambda: context.has("x"),
        lambda: context.delete("x"),
        lambda: context.get_or_set("x", list),
        lambda: context.update(x=1),
        lambda: context.copy(),
        lambda: context.defer(print),
    ]
    for call in calls:
        with pytest.raises(NoLeaseError, match="runs outside of a request to an app that sandbox"):
            call()
    assert issubclass(NoLeaseError, LookupError)
    assert repr(context) == "<context of None>"


async def test_lifespan_is_outside() -> None:
    """A lifespan belongs to no request, also when a request has started it."""
    seen = []

    @asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        with pytest.raises(NoLeaseError):
            current_lease()
        seen.append("lifespan")
        yield

    app = Starlette(lifespan=lifespan, routes=[Route("/", PlainTextResponse("hello"))])
    sandboxed = wrap(app, stall_after=None)
    assert (await get(sandboxed)).status == 200
    await sandboxed.aclose()
    assert seen == ["lifespan"]


async def test_store() -> None:
    """The context keeps keys and values for one request, and no longer."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert context.copy() == {}
        assert context.get("a") is None
        assert context.get("a", 5) == 5
        assert not context.has("a")
        context.set("a", None)
        assert context.has("a")
        assert context.get("a", 5) is None
        assert context.delete("a") is True
        assert context.delete("a") is False
        assert context.get_or_set("b", lambda: [1]) == [1]
        assert context.get_or_set("b", lambda: [2]) == [1]
        context.update({"c": 3}, d=4)
        context.update([("e", 5)])
        copy = context.copy()
        assert copy == {"b": [1], "c": 3, "d": 4, "e": 5}
        copy["f"] = 6
        assert not context.has("f")
        store = current_lease().context
        assert store.get("c") == 3
        store.set("c", 7)
        assert context.get("c") == 7
        for shown in (current_lease(), current_lease().context, context):
            assert f"RequestLease {current_lease().id} '/x' open for " in repr(shown)
        with pytest.raises(TypeError, match="pass the function itself, not the result of calling"):
            context.defer(None)  # type: ignore[arg-type]
        await respond(send)

    async with raw(app) as sandboxed:
        for _ in range(2):
            assert (await get(sandboxed, "/x")).status == 200


async def test_get_or_set_once() -> None:
    """Threads that ask for the same key at the same moment share one value, made once."""
    made = []
    barrier = threading.Barrier(8)

    def make() -> object:
        made.append(threading.get_ident())
        threading.Event().wait(0.01)
        return object()

    def ask() -> object:
        barrier.wait(5)
        return context.get_or_set("x", make)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        found = []

        async def one() -> None:
            found.append(await anyio.to_thread.run_sync(ask))

        async with anyio.create_task_group() as tasks:
            for _ in range(8):
                tasks.start_soon(one)
        assert len(set(map(id, found))) == 1
        await respond(send)

    async with raw(app) as sandboxed:
        assert (await get(sandboxed)).status == 200
    assert len(made) == 1


async def test_make_may_use_the_context() -> None:
    """What `get_or_set` calls may use the context itself, and may fail, which stores nothing."""

    def fail() -> None:
        raise KeyError("x")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        outer = context.get_or_set("a", lambda: [context.get_or_set("b", lambda: 1)])
        assert outer == [1]
        assert context.get("b") == 1
        with pytest.raises(KeyError):
            context.get_or_set("c", fail)
        assert not context.has("c")
        await respond(send)

    async with raw(app) as sandboxed:
        assert (await get(sandboxed)).status == 200


# --- after the end ------------------------------------------------------------------------


async def test_stray_task() -> None:
    """A task that outlives its request gets an error; its late write lands nowhere."""
    go_on, done = anyio.Event(), anyio.Event()
    outcomes: list[Any] = []

    async with anyio.create_task_group() as tasks:

        async def stray() -> None:
            lease, store = current_lease(), current_lease().context
            with anyio.CancelScope(shield=True):
                await go_on.wait()
            for call in (
                current_lease,
                current_sandbox,
                lambda: context.set("late", "from the first request"),
                lambda: store.set("late", "from the first request"),
                lambda: context.defer(outcomes.append, "deferred late"),
                lambda: lease.extend(5),
                lambda: store.get("x"),
            ):
                try:
                    outcomes.append(call())
                except LeaseEndedError as error:
                    outcomes.append(error)
            done.set()

        async def app(scope: Any, receive: Any, send: Any) -> None:
            if scope["path"] == "/first":
                tasks.start_soon(stray)
                await anyio.lowlevel.checkpoint()
                await settle()
            else:
                go_on.set()
                await done.wait()
                assert context.copy() == {}
            await respond(send)

        async with raw(app) as sandboxed:
            assert (await get(sandboxed, "/first")).status == 200
            assert (await get(sandboxed, "/second")).status == 200
    assert len(outcomes) == 7
    assert {type(outcome) for outcome in outcomes} == {LeaseEndedError}
    assert "of '/first' has ended: code that outlives its request cannot use" in str(outcomes[0])


async def test_stray_thread() -> None:
    """So does a thread."""
    go_on = threading.Event()
    outcomes: list[BaseException] = []

    def late() -> None:
        go_on.wait(5)
        try:
            context.set("late", 1)
        except LeaseEndedError as error:
            outcomes.append(error)

    async with anyio.create_task_group() as tasks:

        async def app(scope: Any, receive: Any, send: Any) -> None:
            tasks.start_soon(anyio.to_thread.run_sync, late)
            await settle()
            await respond(send)

        async with raw(app) as sandboxed:
            await get(sandboxed)
            go_on.set()
    assert len(outcomes) == 1


# --- deferred callbacks ---------------------------------------------------------------------


@pytest.mark.parametrize("isolate_context", [True, False])
async def test_defer(isolate_context: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Deferred callbacks run last first, sync and async, in the lease; errors stop none."""
    ran: list[Any] = []

    async def later(value: str) -> None:
        await anyio.lowlevel.checkpoint()
        ran.append((value, current_lease().path))

    def fail(error: Exception) -> None:
        raise error

    async def fail_later(error: Exception) -> None:
        await anyio.lowlevel.checkpoint()
        raise error

    async def app(scope: Any, receive: Any, send: Any) -> None:
        context.defer(ran.append, "first")
        context.defer(later, "second")
        context.defer(fail, KeyError("third"))
        context.defer(fail_later, KeyError("fourth"))
        context.defer(lambda: context.defer(ran.append, "nested"))
        context.defer(lambda: ran.append(context.get("x")))
        context.set("x", "value")
        await respond(send)
        assert ran == []

    async with raw(app, isolate_context=isolate_context) as sandboxed:
        await get(sandboxed, "/x")
        assert ran == ["value", "nested", ("second", "/x"), "first"]
        failures = [r for r in caplog.records if "a deferred callback of" in r.getMessage()]
        assert [str(r.exc_info[1]) for r in failures if r.exc_info] == ["'fourth'", "'third'"]
        assert retired(sandboxed) == {}


@pytest.mark.parametrize("how", ["error", "cancel"])
async def test_defer_whatever_the_outcome(how: str) -> None:
    """They run after an error and after a cancellation, and may await then."""
    ran: list[str] = []

    async def later(value: str) -> None:
        await settle()
        ran.append(value)

    entered = anyio.Event()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        context.defer(later, "deferred")
        entered.set()
        if how == "error":
            raise KeyError(5)
        await anyio.sleep_forever()

    async with raw(app) as sandboxed:
        if how == "error":
            with pytest.raises(KeyError):
                await get(sandboxed)
        else:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(get, sandboxed)
                await entered.wait()
                tasks.cancel_scope.cancel()
        assert ran == ["deferred"]
        assert sandboxed.statistics().concurrency == 0


@pytest.mark.parametrize("outer", ["task", "scope"])
async def test_cancelled_while_it_is_awaited(outer: str) -> None:
    """A cancellation that comes while they run waits for them; the lease ends in order."""
    ran: list[str] = []
    begun, gate = anyio.Event(), anyio.Event()

    async def later() -> None:
        begun.set()
        await gate.wait()
        ran.append("whole")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        context.defer(later)
        await respond(send)

    async with raw(app) as sandboxed:
        assert sandboxed._runtime is not None
        trio = sandboxed._runtime.loop.backend == "trio"
        connection = Connection(sandboxed)
        if outer == "task" and not trio:
            task = asyncio.create_task(connection.run())
            await begun.wait()
            for _ in range(3):
                task.cancel()
                await settle()
            assert not task.done()
            gate.set()
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(connection.run)
                await begun.wait()
                tasks.cancel_scope.cancel()
                with anyio.CancelScope(shield=True):
                    await settle()
                    assert not connection.over.is_set()
                    gate.set()
        assert ran == ["whole"]
        assert sandboxed.statistics().concurrency == 0
        await settle()
        assert sandboxed.statistics().pool.in_use == 0


async def test_defer_timeout(caplog: pytest.LogCaptureFixture) -> None:
    """Together they get `defer_timeout` seconds; then the lease ends without the rest."""
    ran: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        context.defer(ran.append, "never")
        context.defer(anyio.sleep_forever)
        await respond(send)

    async with raw(app, defer_timeout=0.01) as sandboxed:
        assert (await get(sandboxed)).status == 200
        assert sandboxed.statistics().concurrency == 0
    assert ran == []
    assert "did not end within 0.01 s" in caplog.text


async def test_drain_while_deferred() -> None:
    """The end of `drain_timeout` while they run cancels nobody by mistake."""
    begun, gate = anyio.Event(), anyio.Event()

    async def later() -> None:
        begun.set()
        await gate.wait()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        context.defer(later)
        await respond(send)

    sandboxed = raw(app, drain_timeout=0.01)
    await sandboxed.open()
    after = []

    async def serve() -> None:
        await Connection(sandboxed).run()
        await anyio.lowlevel.checkpoint()
        after.append("the server's task goes on")

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(serve)
        await begun.wait()
        await sandboxed.aclose()
        gate.set()
    assert after == ["the server's task goes on"]


# --- several leases -------------------------------------------------------------------------


async def test_nested() -> None:
    """A wrapped app that is mounted in a wrapped app has a lease of its own inside."""

    def show(request: Request) -> Response:
        lease = current_lease()
        context.set("where", "inner")
        parent = lease.parent
        assert parent is not None
        assert parent.context.get("where") == "outer"
        return JSONResponse([lease.id, parent.id])

    async def outer_endpoint(request: Request) -> Response:
        assert current_lease().parent is None
        return JSONResponse(current_lease().id)

    class Outer:
        def __init__(self, app: Any) -> None:
            self.app = app

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            if scope["type"] == "http":
                mine = current_lease()
                context.set("where", "outer")
                await self.app(scope, receive, send)
                assert current_lease() is mine
                assert context.get("where") == "outer"
                return
            await self.app(scope, receive, send)

    inner = wrap(Starlette(routes=[Route("/x", show)]), max_size=1, stall_after=None, name="inner")
    app = Starlette(
        routes=[Route("/", outer_endpoint), Mount("/inner", app=inner)],
        middleware=[Middleware(Outer)],
    )
    async with wrap(app, max_size=2, stall_after=None, name="outer") as outer:
        first = (await get(outer, "/inner/x")).json
        assert (await get(outer, "/")).status == 200
        second = (await get(outer, "/inner/x")).json
        assert first[0] != first[1]
        assert len({*first, *second}) == 4
        # One pool inside, not one for each sandbox outside.
        assert inner.statistics().requests == 2
        assert inner.statistics().concurrency == 0
    await inner.aclose()


async def test_dependency_is_of_the_lease() -> None:
    """Two requests at the same moment have two leases, two sandboxes and two contexts."""
    both = anyio.Event()
    found: dict[str, Any] = {}

    app = FastAPI()

    async def me(name: str) -> int:
        context.set("name", name)
        return current_lease().id

    @app.get("/{name}")
    async def endpoint(name: str, lease_id: int = Depends(me)) -> str:
        found[name] = (lease_id, id(current_sandbox()))
        if len(found) == 2:
            both.set()
        await both.wait()
        assert current_lease().id == lease_id
        return str(context.get("name"))

    async with wrap(app, max_size=2, stall_after=None) as sandboxed:
        connections = [Connection(sandboxed, "/ann"), Connection(sandboxed, "/bob")]
        async with anyio.create_task_group() as tasks:
            for connection in connections:
                tasks.start_soon(connection.run)
        assert [connection.json for connection in connections] == ["ann", "bob"]
    assert len({lease_id for lease_id, _ in found.values()}) == 2
    assert len({sandbox for _, sandbox in found.values()}) == 2


async def test_a_stray_task_writes_to_the_app() -> None:
    """Whoever holds the app of a request that is over writes to nobody else's app."""
    held: list[Any] = []

    async def begin(request: Request) -> Response:
        held.append(request.app)
        return Response()

    async def look(request: Request) -> JSONResponse:
        held[0].user = held[0].router.user = "alice"  # as a task of the first request would
        app = request.app
        return JSONResponse([getattr(app, "user", None), getattr(app.router, "user", None)])

    app = Starlette(routes=[Route("/begin", begin), Route("/look", look)])
    async with wrap(app, min_size=1, max_size=1, stall_after=None) as sandboxed:
        await get(sandboxed, "/begin")
        held[0].user = "alice"
        for _ in range(2):
            assert (await get(sandboxed, "/look")).json == [None, None]
