"""`concurrently()`: children of a request, in its own sandbox or in sandboxes of their own."""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from collections.abc import Callable
from functools import partial
from typing import Any

import anyio
import pytest
from starlette.applications import Starlette
from starlette.routing import Route

import sandboxpool
from sandboxpool import (
    ChildDeadlockError,
    ChildTimeoutError,
    NoLeaseError,
    OptionError,
    PoolClosedError,
    PoolTimeoutError,
    SandboxedApp,
    concurrently,
    context,
    current_lease,
    current_sandbox,
    wrap,
)

from .client import Connection, Lifespan, get, respond, settle

if sys.version_info < (3, 11):
    from exceptiongroup import ExceptionGroup

PATIENCE = 20


async def value(of: Any) -> Any:
    await settle()
    return of


async def fail(error: Exception) -> Any:
    await settle()
    raise error


class Rendezvous:
    """Lets children go on only when so many of them are there: proof that they run at once."""

    def __init__(self, number: int) -> None:
        self.number = number
        self.here = 0
        self.most = 0
        self._all = anyio.Event()

    async def __call__(self) -> int:
        self.here += 1
        self.most = max(self.most, self.here)
        if self.here == self.number:
            self._all.set()
        with anyio.fail_after(PATIENCE):
            await self._all.wait()
        return self.here


def requests(function: Callable[[], Any], **options: Any) -> SandboxedApp:
    """Wrap an app whose requests call a function; what it returns is the request's result."""

    async def app(scope: Any, receive: Any, send: Any) -> Any:
        return await function() if scope["type"] == "http" else None

    return wrap(app, **options)


# --- results ------------------------------------------------------------------------------------


async def test_results_in_order() -> None:
    """Results come in the order of the functions, whichever is done first."""
    events = [anyio.Event() for _ in range(3)]

    async def after(number: int) -> int:
        if number < 2:
            await events[number + 1].wait()
        events[number].set()
        return number

    with anyio.fail_after(PATIENCE):
        assert await concurrently(*[partial(after, n) for n in range(3)]) == (0, 1, 2)


async def test_they_run_at_once() -> None:
    """All children run at the same time."""
    assert await concurrently(*[Rendezvous(1)] * 1) == (1,)
    assert await concurrently(*[Rendezvous(5)] * 5) == (5,) * 5


async def test_nothing_to_do() -> None:
    """Without functions there is nothing to wait for."""
    with anyio.fail_after(PATIENCE):
        assert await concurrently() == ()
        assert await concurrently(timeout=0, sandboxes="own") == ()


async def test_limit() -> None:
    """No more children than `limit` run at once, and they begin in order."""
    running = most = 0
    began: list[int] = []

    async def child(number: int) -> int:
        nonlocal running, most
        began.append(number)
        running += 1
        most = max(most, running)
        await settle()
        running -= 1
        return number

    got = await concurrently(*[partial(child, n) for n in range(10)], limit=3)
    assert got == tuple(range(10))
    assert most == 3
    assert began == list(range(10))


# --- errors -------------------------------------------------------------------------------------


async def test_the_first_failure_stops_the_rest() -> None:
    """A failure cancels the others, waits for their clean-up, and is raised as a group."""
    cleaned: list[str] = []

    async def hang() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await settle()
            cleaned.append("up")

    with anyio.fail_after(PATIENCE), pytest.raises(ExceptionGroup) as info:
        await concurrently(hang, partial(fail, LookupError("one")), hang)
    assert [repr(error) for error in info.value.exceptions] == ["LookupError('one')"]
    assert cleaned == ["up", "up"]


async def test_all_failures_are_in_the_group() -> None:
    """Children that fail in the same moment, or as they are cancelled, are all in the group."""

    async def fail_at_once(error: Exception) -> None:
        raise error

    async def fail_in_the_end() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            raise ValueError("clean-up")

    with pytest.raises(ExceptionGroup) as info:
        await concurrently(
            partial(fail_at_once, LookupError("one")),
            partial(fail_at_once, KeyError("two")),
            fail_in_the_end,
        )
    kinds = {type(error).__name__ for error in info.value.exceptions}
    assert kinds >= {"LookupError", "KeyError"}


async def test_collect() -> None:
    """With `errors="collect"` everybody runs to the end, and failures stand in their place."""
    got = await concurrently(
        partial(value, 1), partial(fail, LookupError("two")), partial(value, 3), errors="collect"
    )
    assert (got[0], repr(got[1]), got[2]) == (1, "LookupError('two')", 3)


async def test_collected_errors_go_without_the_garbage_collector() -> None:
    """What the frames of collected errors held is free as soon as the errors are."""

    class Mine:
        pass

    kept: list[weakref.ref[Mine]] = []

    async def child() -> None:
        mine = Mine()
        kept.append(weakref.ref(mine))
        raise LookupError

    gc.disable()
    try:
        got: Any = await concurrently(child, partial(value, 1), errors="collect")
        assert kept[0]() is not None
        del got
        await settle()
        assert kept[0]() is None
    finally:
        gc.enable()


async def test_cancelled_from_outside() -> None:
    """When the caller is cancelled the children are stopped, and no error takes its place."""
    stopped: list[int] = []

    async def hang(number: int) -> None:
        try:
            await anyio.sleep_forever()
        finally:
            stopped.append(number)

    with anyio.CancelScope() as scope:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(partial(concurrently, partial(hang, 1), partial(hang, 2)))
            await settle()
            scope.cancel()
    assert scope.cancelled_caught
    assert sorted(stopped) == [1, 2]


async def test_timeout() -> None:
    """When the time is up the children that still run are stopped, and named."""
    stopped: list[str] = []

    async def hang() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            stopped.append("stopped")

    with pytest.raises(
        ChildTimeoutError, match=r"hang\(\) \(number 1\) took longer than timeout=0.05"
    ) as info:
        await concurrently(partial(value, 1), hang, timeout=0.05)
    assert info.value.unfinished == (1,)
    assert isinstance(info.value, TimeoutError)
    assert stopped == ["stopped"]


async def test_timeout_with_collected_errors() -> None:
    """What was done in time is returned, what was not says so; nothing is left out silently."""
    got = await concurrently(
        partial(value, 1),
        anyio.sleep_forever,
        partial(fail, LookupError()),
        anyio.sleep_forever,
        timeout=0.1,
        limit=2,
        errors="collect",
    )
    assert got[0] == 1
    assert isinstance(got[1], ChildTimeoutError)
    assert isinstance(got[2], LookupError)
    assert got[3] is got[1]
    assert got[1].unfinished == (1, 3)


async def test_wrong_arguments() -> None:
    """What cannot be meant is refused before anything runs, and coroutines do not warn."""
    began: list[int] = []

    async def child() -> None:
        began.append(1)

    with pytest.raises(TypeError, match=r"as number 1: pass the function itself, without calling"):
        await concurrently(child, child())  # type: ignore[call-overload]
    with pytest.raises(OptionError, match=r"limit=0: give a whole number of at least 1, or None"):
        await concurrently(child, limit=0)
    with pytest.raises(OptionError, match=r"timeout=-1: give a number of seconds"):
        await concurrently(child, timeout=-1)
    with pytest.raises(OptionError, match=r"sandboxes='other': give one of 'same', 'own'"):
        await concurrently(child, sandboxes="other")  # type: ignore[call-overload]
    with pytest.raises(OptionError, match=r"errors='ignore': give one of 'raise', 'collect'"):
        await concurrently(child, errors="ignore")  # type: ignore[call-overload]
    assert began == []
    with pytest.raises(ExceptionGroup) as info:
        await concurrently(lambda: 1)  # type: ignore[arg-type, return-value]
    assert "is no coroutine function" in str(info.value.exceptions[0])


# --- in a request -------------------------------------------------------------------------------


@pytest.mark.parametrize("run_in", ["loop", "thread", "cooperative"])
async def test_children_share_the_request(run_in: Any) -> None:
    """By default children run in the sandbox of their request, with its lease and context."""

    async def child() -> Any:
        context.set("seen", context.get("seen", 0) + 1)
        await settle()
        return current_lease(), current_sandbox()

    async def request() -> Any:
        mine = current_lease(), current_sandbox()
        got = await concurrently(child, child, child)
        return [pair == mine for pair in got], context.get("seen")

    async with requests(request, run_in=run_in, max_size=2) as app:
        assert (await get(app)).result == ([True] * 3, 3)
        pool = app.pool
        assert pool is not None
        assert pool.statistics().leases == 1


async def test_outside_of_a_request() -> None:
    """Outside of a request children just run; sandboxes of their own need one."""
    assert await concurrently(partial(value, 1)) == (1,)
    with pytest.raises(NoLeaseError):
        await concurrently(partial(value, 1), sandboxes="own")


def state_app() -> Starlette:
    """Return an app whose children write to its state, and look at what they find there."""
    app = Starlette()
    app.state.user = "nobody"

    async def child(name: str, all_here: Rendezvous) -> Any:
        found = wrapped.state.user
        wrapped.state.user = name
        context.set("name", name)
        await all_here()
        return found, wrapped.state.user, context.get("name"), current_lease().id

    async def endpoint(request: Any) -> Any:
        from starlette.responses import JSONResponse

        request.app.state.user = "parent"
        sandboxes = request.path_params["sandboxes"]
        all_here = Rendezvous(3)
        got = await concurrently(
            *[partial(child, name, all_here) for name in "abc"], sandboxes=sandboxes
        )
        return JSONResponse([*got, [wrapped.state.user, current_lease().id]])

    app.routes.append(Route("/{sandboxes}", endpoint))
    wrapped: Any = wrap(app, max_size=5)
    return wrapped  # type: ignore[no-any-return]


async def test_sandboxes_of_their_own() -> None:
    """With `sandboxes="own"` what children write to the app is theirs; otherwise it is shared."""
    app: Any = state_app()
    async with app:
        shared = (await get(app, "/same")).json
        # The control: in one sandbox, the last one who writes wins, for all.
        assert len({line[1] for line in shared[:3]}) == 1
        assert shared[3][0] == shared[0][1]
        own = (await get(app, "/own")).json
        assert [line[0] for line in own[:3]] == ["nobody"] * 3
        assert [line[1] for line in own[:3]] == ["a", "b", "c"]
        assert [line[2] for line in own[:3]] == ["a", "b", "c"]
        assert own[3][0] == "parent"
        assert len({line[-1] for line in own}) == 4
        statistics = app.pool.statistics()
        assert (statistics.in_use, statistics.leases) == (0, 5)


@pytest.mark.parametrize("run_in", ["thread", "cooperative"])
async def test_own_sandboxes_elsewhere(run_in: Any) -> None:
    """Children get sandboxes of their own in threads and cooperatively, too, each in its place."""

    barrier = threading.Barrier(2, timeout=PATIENCE)

    async def child(number: int) -> Any:
        await settle()
        if number == 2:
            raise LookupError(number)
        if run_in == "thread":
            barrier.wait()  # it may block its thread, and the other one has another
        return threading.get_ident(), current_lease().id

    async def request() -> Any:
        got = await concurrently(
            *[partial(child, n) for n in range(3)], sandboxes="own", errors="collect"
        )
        return threading.get_ident(), got

    async with requests(request, run_in=run_in, max_size=4) as app:
        mine, (one, two, three) = (await get(app)).result
    assert isinstance(three, LookupError)
    assert one[1] != two[1]
    if run_in == "thread":
        assert len({mine, one[0], two[0]}) == 3


@pytest.mark.parametrize("run_in", ["loop", "thread"])
async def test_own_children_are_stopped(run_in: Any) -> None:
    """Children in sandboxes of their own are stopped with the call, and their sandboxes freed."""
    stopped: list[str] = []

    async def hang() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            stopped.append("stopped")

    async def request() -> Any:
        got = await concurrently(hang, hang, sandboxes="own", timeout=0.1, errors="collect")
        return [type(error).__name__ for error in got], list(stopped)

    async with requests(request, run_in=run_in, max_size=3) as app:
        names, seen = (await get(app)).result
        assert names == ["ChildTimeoutError"] * 2
        assert seen == ["stopped"] * 2
        pool = app.pool
        assert pool is not None
        with anyio.fail_after(PATIENCE):
            while pool.statistics().in_use:
                await anyio.sleep(0.001)


@pytest.mark.parametrize("run_in", ["loop", "thread"])
async def test_more_children_than_sandboxes(run_in: Any) -> None:
    """Any number of children takes turns in the sandboxes that there are besides the parent's."""
    running = most = 0
    lock = threading.Lock()

    async def child(number: int) -> int:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        await settle()
        with lock:
            running -= 1
        return number

    async def request() -> Any:
        return await concurrently(*[partial(child, n) for n in range(12)], sandboxes="own")

    async with requests(request, run_in=run_in, max_size=3, acquire_timeout=5) as app:
        with anyio.fail_after(PATIENCE):
            assert (await get(app)).result == tuple(range(12))
    assert 1 <= most <= 2


async def test_no_sandbox_is_left_for_a_child() -> None:
    """In a pool of one, the child is told at once that its parent has the only sandbox."""
    caught: list[str] = []

    async def request() -> Any:
        try:
            await concurrently(partial(value, 1), sandboxes="own")
        except ExceptionGroup as group:
            error = group.exceptions[0]
            caught.append(f"{type(error).__name__}: {error}")

    async with requests(request, max_size=1, acquire_timeout=None) as app:
        with anyio.fail_after(PATIENCE):
            await Connection(app, "/page").run()
    assert caught[0].startswith("ChildDeadlockError: child ")
    assert "of /page needs a sandbox, but all 1 are held by requests that wait" in caught[0]
    assert "use sandboxes='same'" in caught[0]


async def test_parents_that_hold_all_sandboxes() -> None:
    """Parents with all sandboxes between them: the last one is told, and the others go on."""
    all_here = Rendezvous(3)
    outcomes: list[str] = []
    told: list[type] = []

    async def request() -> None:
        await all_here()
        try:
            await concurrently(partial(value, 1), partial(value, 2), sandboxes="own")
        except ExceptionGroup as group:
            told.extend(type(error) for error in group.exceptions)
            outcomes.append("told")
        else:
            outcomes.append("done")

    async with requests(request, max_size=3, acquire_timeout=None) as app:
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(Connection(app).run)
        assert app.pool is not None
        assert app.pool.statistics().in_use == 0
    assert set(told) == {ChildDeadlockError}
    assert outcomes.count("done") == 2
    assert outcomes[0] == "told"


async def test_children_with_children() -> None:
    """A child that has children itself cannot end before them: that is seen, too."""

    async def child() -> Any:
        return await concurrently(partial(value, 1), sandboxes="own", errors="collect")

    async def request() -> Any:
        return await concurrently(child, sandboxes="own")

    for size, kind in ((2, ChildDeadlockError), (3, int)):
        async with requests(request, max_size=size, acquire_timeout=None) as app:
            with anyio.fail_after(PATIENCE):
                (result,) = (await Connection(app).run()).result[0]
            assert type(result) is kind


async def test_a_child_waits_its_turn() -> None:
    """While a request that will end holds a sandbox a child waits for it, as long as it may."""
    go_on = anyio.Event()
    both = Rendezvous(2)
    outcomes: list[Any] = []

    async def other() -> None:
        await both()
        await go_on.wait()

    async def parent() -> None:
        await both()
        outcomes.append(await concurrently(partial(value, 1), sandboxes="own"))

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await (other if scope["path"] == "/other" else parent)()

    async with wrap(app, max_size=2) as wrapped, anyio.create_task_group() as tasks:
        tasks.start_soon(Connection(wrapped, "/other").run)
        tasks.start_soon(Connection(wrapped, "/parent").run)
        pool = wrapped.pool
        assert pool is not None
        with anyio.fail_after(PATIENCE):
            while pool.statistics().waiting < 1:
                await anyio.sleep(0.001)
            assert outcomes == []
            go_on.set()
    assert outcomes == [(1,)]


async def test_a_child_waits_for_its_acquire_timeout() -> None:
    """A child that finds no sandbox in time gets the pool's error, in the group."""
    caught: list[type] = []
    over = anyio.Event()

    async def other() -> None:
        await over.wait()

    async def parent() -> None:
        try:
            await concurrently(partial(value, 1), sandboxes="own")
        except ExceptionGroup as group:
            caught.extend(type(error) for error in group.exceptions)
        over.set()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await (other if scope["path"] == "/other" else parent)()

    async with (
        wrap(app, max_size=2, acquire_timeout=0.05) as wrapped,
        anyio.create_task_group() as tasks,
    ):
        tasks.start_soon(Connection(wrapped, "/other").run)
        await settle()
        tasks.start_soon(Connection(wrapped, "/parent").run)
    assert caught == [PoolTimeoutError]


async def test_the_watchdog_watches_children() -> None:
    """A child in a sandbox of its own that runs too long is cut off, and its parent is told."""

    async def request() -> Any:
        current_lease().extend(None)
        return await concurrently(anyio.sleep_forever, sandboxes="own", errors="collect")

    async with requests(request, max_size=2, execution_timeout=0.1) as app:
        with anyio.fail_after(PATIENCE):
            (error,) = (await Connection(app, "/page").run()).result
        assert type(error).__name__ == "ExecutionTimeoutError"
        assert "child sleep_forever() (number 0) of /page took longer" in str(error)
        assert app.statistics().cut_off == 1
        assert app.pool is not None
        assert app.pool.statistics().retired["expired"] == 1


@pytest.mark.parametrize("run_in", ["loop", "thread"])
async def test_shutdown_reaches_children(run_in: Any) -> None:
    """A shutdown that cannot wait ends children in sandboxes of their own, too."""
    began = threading.Event()
    ended: list[str] = []

    async def hang() -> None:
        began.set()
        try:
            await anyio.sleep_forever()
        finally:
            ended.append("stopped")

    async def request() -> Any:
        try:
            await concurrently(hang, sandboxes="own")
        except ExceptionGroup as group:
            errors.extend(type(error) for error in group.exceptions)
            raise

    errors: list[type] = []
    app = requests(request, run_in=run_in, max_size=2, drain_timeout=0)
    server = Lifespan(app)
    async with anyio.create_task_group() as tasks:
        await server.start(tasks)
        connection = Connection(app)

        async def serve() -> None:
            try:
                await connection.run()
            except ExceptionGroup:
                pass

        tasks.start_soon(serve)
        with anyio.fail_after(PATIENCE):
            while not began.is_set():
                await anyio.sleep(0.001)
        await server.stop()
    assert ended == ["stopped"]
    assert set(errors) <= {PoolClosedError}


async def test_a_sandbox_that_runs_nothing_else() -> None:
    """A sandbox of one's own that knows no visits makes that an error, not a silent nothing."""

    class Sandbox:
        async def __call__(self, scope: Any, receive: Any, send: Any) -> Any:
            if scope["type"] == "http":
                return await concurrently(partial(value, 1), sandboxes="own", errors="collect")
            return None

        def reset(self) -> None: ...

        async def aclose(self) -> None: ...

    class Factory:
        async def start(self) -> None: ...

        async def stop(self) -> None: ...

        async def create(self) -> Any:
            return Sandbox()

        def reset(self, sandbox: Any) -> None: ...

        def destroy(self, sandbox: Any) -> None: ...

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await respond(send)

    async with wrap(app, isolation=Factory(), max_size=2) as wrapped:
        (error,) = (await get(wrapped)).result
        assert isinstance(error, TypeError)
        assert "run nothing but the app" in str(error)


def test_visits_come_from_nobody_else() -> None:
    """A server that sends a scope of that type is refused like any unknown type."""

    async def app(scope: Any, receive: Any, send: Any) -> None: ...

    async def call() -> None:
        wrapped = sandboxpool.wrap(app)
        with pytest.raises(ValueError, match=r"serves http, websocket and lifespan, not"):
            await wrapped({"type": "sandboxpool.visit"}, app, app)  # type: ignore[arg-type]

    anyio.run(call)
