"""A cache in sandboxes: shared by all of them, and a view that belongs to one request."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from starlette.applications import Starlette
from starlette.responses import JSONResponse
from starlette.routing import Route

from sandboxpool import Cache, LeaseEndedError, NoLeaseError, concurrently, current_lease, wrap
from tests.wrap.client import get


@pytest.fixture
def store() -> None:
    """Only about caches in memory."""


RUN_IN = pytest.mark.parametrize("run_in", ["loop", "thread", "cooperative"])


@RUN_IN
async def test_all_sandboxes_share_it(run_in: Any, cache: Cache) -> None:
    """What one sandbox stores the others find; what they write elsewhere in their app, not."""

    async def endpoint(request: Any) -> JSONResponse:
        state = request.app.state
        state.count = getattr(state, "count", 0) + 1
        return JSONResponse([state.count, await cache.incr("count")])

    async with wrap(Starlette(routes=[Route("/", endpoint)]), run_in=run_in, max_size=3) as app:
        seen = []

        async def ask() -> None:
            seen.append((await get(app)).json)

        async with anyio.create_task_group() as tasks:
            for _ in range(10):
                tasks.start_soon(ask)
    assert sorted(seen) == [[1, number] for number in range(1, 11)]


async def test_a_cache_in_the_state_is_shared(cache: Cache) -> None:
    """A cache on the app is not copied with it: each clone has the same one."""
    template = Starlette()
    template.state.cache = cache

    async def endpoint(request: Any) -> JSONResponse:
        return JSONResponse(await request.app.state.cache.incr("count"))

    template.routes.append(Route("/", endpoint))
    async with wrap(template, max_size=2) as app:
        assert [(await get(app)).json for _ in range(3)] == [1, 2, 3]


async def test_a_cache_of_a_factory_is_shared() -> None:
    """A factory that makes its cache for each sandbox still gets one, by its name."""

    def make() -> Starlette:
        own = Cache("made by a factory".replace(" ", "-"), ttl=60)

        async def endpoint(request: Any) -> JSONResponse:
            return JSONResponse(await own.incr("count"))

        return Starlette(routes=[Route("/", endpoint)])

    async with wrap(make, factory=True, min_size=3, max_size=3) as app, app:
        seen = []

        async def ask() -> None:
            seen.append((await get(app)).json)

        async with anyio.create_task_group() as tasks:
            for _ in range(9):
                tasks.start_soon(ask)
    Cache("made-by-a-factory", ttl=60).close()
    assert sorted(seen) == list(range(1, 10))


@RUN_IN
async def test_request_view(run_in: Any, cache: Cache) -> None:
    """Keys of the request view are seen by the whole request, by no other one, and die with it."""

    async def child() -> Any:
        return await cache.request.get("user")

    async def app(scope: Any, receive: Any, send: Any) -> Any:
        if scope["type"] != "http":
            return None
        view = cache.request
        before = await view.get("user", "nobody")
        await view.set("user", {"path": scope["path"]})
        runs: list[int] = []
        for _ in range(3):
            await view.get_or_set("once", lambda: runs.append(1))
        await view.incr("number", 2)
        return (
            before,
            await concurrently(child, child),
            view.blocking.get("user"),
            await view.incr("number"),
            len(runs),
            await cache.get("user"),
            await view.delete("user"),
            await view.get("user"),
        )

    async with wrap(app, run_in=run_in, max_size=1) as wrapped:
        for path in ("/a", "/b"):
            user = {"path": path}
            assert (await get(wrapped, path)).result == (
                "nobody", (user, user), user, 3, 1, None, True, None,
            )  # fmt: skip
    assert "user" not in str(cache._shared.store)


async def test_request_view_shares_objects(cache: Cache) -> None:
    """The request view keeps the objects themselves: they are the request's own anyway."""

    async def app(scope: Any, receive: Any, send: Any) -> Any:
        if scope["type"] != "http":
            return None
        mine = object()
        return await cache.request.get_or_set("mine", lambda: mine) is mine

    async with wrap(app) as wrapped:
        assert (await get(wrapped)).result is True


async def test_request_view_outside_of_a_request(cache: Cache) -> None:
    """Outside of a request, and after its end, there is no view of it."""
    late: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> Any:
        if scope["type"] == "http":
            await cache.request.set("key", 1)
            late.append(current_lease())

    async with wrap(app) as wrapped:
        await get(wrapped)
    with pytest.raises(NoLeaseError):
        await cache.request.get("key")
    with pytest.raises(LeaseEndedError):
        late[0].context.get("sandboxpool.cache " + cache.name)


async def test_stray_tasks_lose_the_view(cache: Cache) -> None:
    """A task that outlives its request gets an error from the view, not another one's values."""
    errors: list[type] = []
    over = anyio.Event()

    async with anyio.create_task_group() as tasks:

        async def stray() -> None:
            await over.wait()
            try:
                await cache.request.get("key")
            except LeaseEndedError as error:
                errors.append(type(error))

        async def app(scope: Any, receive: Any, send: Any) -> Any:
            if scope["type"] == "http":
                await cache.request.set("key", 1)
                tasks.start_soon(stray)
                await anyio.lowlevel.checkpoint()

        async with wrap(app, isolate_context=False) as wrapped:
            await get(wrapped)
            over.set()
    assert errors == [LeaseEndedError]


@RUN_IN
async def test_blocking_code_in_sandboxes(run_in: Any, cache: Cache) -> None:
    """A `def` endpoint has the cache, too; a thousand of them run one resolver."""
    runs: list[int] = []

    def resolve() -> str:
        runs.append(1)
        return "value"

    def endpoint(request: Any) -> JSONResponse:
        return JSONResponse(cache.blocking.get_or_set("key", resolve))

    app = Starlette(routes=[Route("/", endpoint)])
    async with wrap(app, run_in=run_in, max_size=5) as wrapped:
        seen = []

        async def ask() -> None:
            seen.append((await get(wrapped)).json)

        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(ask)
    assert seen == ["value"] * 20
    assert runs == [1]


@RUN_IN
async def test_resolvers_belong_to_their_request(run_in: Any, cache: Cache) -> None:
    """A resolver runs in the request that asked for it, and sees its lease."""

    async def resolve() -> str:
        return current_lease().path

    async def app(scope: Any, receive: Any, send: Any) -> Any:
        return await cache.get_or_set("key", resolve) if scope["type"] == "http" else None

    async with wrap(app, run_in=run_in, max_size=2) as wrapped:
        assert (await get(wrapped, "/first")).result == "/first"
        assert (await get(wrapped, "/second")).result == "/first"


async def test_a_leader_that_is_cut_off(cache: Cache) -> None:
    """When the watchdog ends the request that resolves, the next one resolves for itself."""
    paths: list[str] = []
    both = anyio.Event()

    async def resolve() -> str:
        path = current_lease().path
        paths.append(path)
        if path == "/slow":
            both.set()
            await anyio.sleep_forever()
        return path

    async def app(scope: Any, receive: Any, send: Any) -> Any:
        if scope["type"] == "http":
            current_lease().extend(0.1 if scope["path"] == "/slow" else None)
            return await cache.get_or_set("key", resolve)

    async with wrap(app) as wrapped, anyio.create_task_group() as tasks:
        tasks.start_soon(get, wrapped, "/slow")
        await both.wait()
        with anyio.fail_after(10):
            assert (await get(wrapped, "/other")).result == "/other"
    assert paths == ["/slow", "/other"]


def test_import_is_light(tmp_path: Path) -> None:
    """A cache in memory loads no Redis client."""
    import subprocess

    code = (
        "import sys, sandboxpool; sandboxpool.Cache('a').blocking.set('k', 1);"
        "print('redis' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "False"
