"""The tasks that cooperative requests start, and what the event loop is left with."""

from __future__ import annotations

import asyncio
import gc
import inspect
import sys
import threading
import warnings
from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any

import anyio
import anyio.abc
import anyio.lowlevel
import pytest
import trio

from sandboxpool import current_lease, wrap
from sandboxpool.run.cooperative import CooperativeTasks, Stepper, await_, stepper
from tests.wrap.client import Connection, respond

from .cooperative import PATIENCE, Gate, ask, cooperative
from .cooperative import sleep_hooked as sleep_hooked

ASYNCIO = pytest.mark.parametrize(
    "anyio_backend",
    [("asyncio", {"use_uvloop": False}), ("asyncio", {"use_uvloop": True})],
    ids=["asyncio", "asyncio+uvloop"],
    indirect=True,
)
TRIO = pytest.mark.parametrize("anyio_backend", ["trio"], indirect=True)
Child = Callable[[], Coroutine[Any, Any, None]]
Start = Callable[[Child], Awaitable[None]]


async def with_anyio(child: Child) -> None:
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(child)


async def with_anyio_start(child: Child) -> None:
    async def start(*, task_status: anyio.abc.TaskStatus[None]) -> None:
        await anyio.lowlevel.checkpoint()
        task_status.started()
        await child()

    async with anyio.create_task_group() as tasks:
        await tasks.start(start)


async def with_trio(child: Child) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(child)


async def with_trio_start(child: Child) -> None:
    async def start(*, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        task_status.started()
        await child()

    async with trio.open_nursery() as nursery:
        await nursery.start(start)


async def with_create_task(child: Child) -> None:
    async def run() -> None:
        await child()

    await asyncio.create_task(run())


async def with_gather(child: Child) -> None:
    async def run() -> None:
        await child()

    await asyncio.gather(run(), asyncio.sleep(0))


async def with_wait_for(child: Child) -> None:
    await asyncio.wait_for(child(), PATIENCE)  # a task of its own before Python 3.12


async def with_task_group(child: Child) -> None:
    async def run() -> None:
        await child()

    group: Any = getattr(asyncio, "TaskGroup", None)
    if group is None:
        await run()
        return
    async with group() as tasks:
        tasks.create_task(run())


async def with_callback(child: Child) -> None:
    async def run() -> None:
        await child()

    loop = asyncio.get_running_loop()
    done = loop.create_future()
    loop.call_soon(lambda: loop.create_task(run()).add_done_callback(done.set_result))
    (await done).result()


async def with_grandchild(child: Child) -> None:
    await with_anyio(partial(with_anyio, child))


ANYWHERE = [with_anyio, with_anyio_start, with_grandchild]
ON_ASYNCIO = [with_create_task, with_gather, with_wait_for, with_task_group, with_callback]


async def blocks_in(start: Start) -> None:
    """Have a request block in a child task while another one comes and goes."""
    gate = Gate()
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def child() -> None:
            gate.pass_through()
            await anyio.lowlevel.checkpoint()
            gate.pass_through()
            seen.append(current_lease().path)

        if scope["path"] == "/blocked":
            await start(child)
        await respond(send)

    async with cooperative(app, max_size=2) as sandboxed, anyio.create_task_group() as tasks:
        tasks.start_soon(partial(ask, sandboxed, "/blocked"))
        await gate.reached.wait()
        assert (await ask(sandboxed)).status == 200
        gate.opened.set()
    assert seen == ["/blocked"]


@pytest.mark.backend_with_uvloop
@pytest.mark.parametrize("start", ANYWHERE)
async def test_children(start: Start) -> None:
    """The children of a request may block as the request itself may."""
    await blocks_in(start)


@ASYNCIO
@pytest.mark.parametrize("start", ON_ASYNCIO)
async def test_children_on_asyncio(start: Start, anyio_backend: Any) -> None:
    """So may its tasks of asyncio, however they are started."""
    await blocks_in(start)


@TRIO
@pytest.mark.parametrize("start", [with_trio, with_trio_start])
async def test_children_on_trio(start: Start, anyio_backend: Any) -> None:
    """So may those of Trio's nurseries."""
    await blocks_in(start)


@pytest.mark.backend_with_uvloop
async def test_siblings_block_at_once() -> None:
    """Children of one request block at the same time."""
    gates = [Gate() for _ in range(3)]

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def child(gate: Gate) -> None:
            gate.pass_through()

        async with anyio.create_task_group() as children:
            for gate in gates:
                children.start_soon(child, gate)
        await respond(send)

    async with cooperative(app) as sandboxed, anyio.create_task_group() as tasks:
        tasks.start_soon(partial(ask, sandboxed))
        for gate in gates:
            await gate.reached.wait()
        for gate in reversed(gates):
            gate.opened.set()


@pytest.mark.backend_with_uvloop
async def test_failing_child_cancels_siblings() -> None:
    """A child that raises cuts its blocked siblings short; the group raises as ever."""
    gate = Gate()
    seen = []

    async def blocked() -> None:
        try:
            gate.pass_through()
        finally:
            seen.append("cut short")

    async def failing() -> None:
        await gate.reached.wait()
        raise OSError("child")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async with anyio.create_task_group() as children:
            children.start_soon(blocked)
            children.start_soon(failing)

    async with cooperative(app) as sandboxed:
        with pytest.raises(BaseException) as caught:  # noqa: PT011 # 3.10 has no groups to match
            await ask(sandboxed)
    assert [str(error) for error in getattr(caught.value, "exceptions", ())] == ["child"]
    assert seen == ["cut short"]


@ASYNCIO
async def test_other_tasks(anyio_backend: Any) -> None:
    """Tasks that belong to no cooperative request are made as ever."""

    async def child() -> None:
        assert stepper() is None

    async def app(scope: Any, receive: Any, send: Any) -> None:
        task = asyncio.create_task(child())
        assert inspect.iscoroutine(task.get_coro())
        await task
        await respond(send)

    async def nothing(scope: Any, receive: Any, send: Any) -> None:
        """Do nothing."""

    loop_app = wrap(app, run_in="loop", lifespan="off", stall_after=None)
    async with cooperative(nothing), loop_app:
        await ask(loop_app)
        task = asyncio.create_task(child())
        assert inspect.iscoroutine(task.get_coro())
        await task


@ASYNCIO
async def test_task_looks_the_same(anyio_backend: Any) -> None:
    """A task tells the name and the state of the coroutine that it was made with."""

    async def child() -> int:
        await asyncio.sleep(0)
        return 5

    async def app(scope: Any, receive: Any, send: Any) -> None:
        task = asyncio.create_task(child(), name="the child")
        coro: Any = task.get_coro()
        assert task.get_name() == "the child"
        assert coro.__qualname__.endswith("test_task_looks_the_same.<locals>.child")
        assert "child() running at" in repr(task)
        assert inspect.getcoroutinestate(coro) == inspect.CORO_CREATED
        await asyncio.sleep(0)
        assert inspect.getcoroutinestate(coro) == inspect.CORO_SUSPENDED
        assert [frame.f_code.co_name for frame in task.get_stack()] == ["child"]
        assert await task == 5
        assert inspect.getcoroutinestate(coro) == inspect.CORO_CLOSED
        await respond(send)

    async with cooperative(app) as sandboxed:
        await ask(sandboxed)


@ASYNCIO
async def test_cancelled_before_its_first_step(anyio_backend: Any) -> None:
    """A task that is cancelled before it has begun runs nothing, and nobody is warned."""
    ran = []

    async def child() -> None:
        ran.append(True)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        task = asyncio.create_task(child())
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await respond(send)

    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        async with cooperative(app) as sandboxed:
            await ask(sandboxed)
        gc.collect()
    assert ran == [] == warned


@pytest.mark.backend_with_uvloop
async def test_children_of_an_app_inside() -> None:
    """So may the children of an app that is not cooperative itself, in one that is."""

    async def inside(scope: Any, receive: Any, send: Any) -> None:
        async def child() -> None:
            await_(anyio.lowlevel.checkpoint())
            seen.append(type(stepper()))

        await with_anyio(child)
        await respond(send)

    seen: list[Any] = []
    async with wrap(inside, lifespan="off", stall_after=None) as mounted:

        async def around(scope: Any, receive: Any, send: Any) -> None:
            await mounted(scope, receive, send)

        async with cooperative(around) as sandboxed:
            await ask(sandboxed)
    assert seen == [Stepper]


# --- task factories -----------------------------------------------------------------------------


class Noting:
    """A task factory of somebody else, which wraps those coroutines that are ours."""

    def __call__(self, loop: Any, coro: Any, **options: Any) -> asyncio.Task[Any]:
        async def run() -> Any:
            return await coro

        steps = coro if inspect.iscoroutine(coro) else run()
        return asyncio.Task(steps, loop=loop, **options)


@ASYNCIO
async def test_factory_before(anyio_backend: Any) -> None:
    """A task factory that was there before makes all tasks, and is there afterwards."""
    loop = asyncio.get_running_loop()
    before = loop.get_task_factory()
    noting: Any = Noting()
    loop.set_task_factory(noting)
    try:
        await blocks_in(with_create_task)
        assert loop.get_task_factory() is noting
    finally:
        loop.set_task_factory(before)


@ASYNCIO
async def test_factory_after(anyio_backend: Any) -> None:
    """One that somebody has set since then stays; the tasks that it makes block, as plain ones."""
    loop = asyncio.get_running_loop()
    before = loop.get_task_factory()
    noting: Any = Noting()

    async def child() -> None:
        assert stepper() is None

    async def app(scope: Any, receive: Any, send: Any) -> None:
        loop.set_task_factory(noting)
        await asyncio.create_task(child())
        await respond(send)

    try:
        async with cooperative(app) as sandboxed:
            assert loop.get_task_factory() is not before
            await ask(sandboxed)
        assert loop.get_task_factory() is noting
    finally:
        loop.set_task_factory(before)


@ASYNCIO
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 0, 2), (0, 2, 1)])
async def test_apps_that_close_in_any_order(order: tuple[int, ...], anyio_backend: Any) -> None:
    """The loop is left as it was when the last of several apps is closed, in whatever order."""
    loop = asyncio.get_running_loop()
    before = loop.get_task_factory()
    taken = [CooperativeTasks("asyncio") for _ in order]
    factory = loop.get_task_factory()
    assert factory is not before
    for place, number in enumerate(order, 1):
        assert loop.get_task_factory() is factory
        taken[number].close()
        assert (loop.get_task_factory() is before) == (place == len(order))


@TRIO
@pytest.mark.parametrize("order", [(0, 1), (1, 0)])
async def test_apps_that_close_in_any_order_on_trio(
    order: tuple[int, ...], anyio_backend: Any
) -> None:
    """On Trio the instrument is there as long as one app needs it."""
    for _ in range(2):
        taken = [CooperativeTasks("trio") for _ in order]
        for number in order:
            assert sum(map(_is_ours, _instruments())) == 1
            taken[number].close()
        assert sum(map(_is_ours, _instruments())) == 0


def _instruments() -> Any:
    from trio._core._run import GLOBAL_RUN_CONTEXT

    return GLOBAL_RUN_CONTEXT.runner.instruments["_all"]


def _is_ours(instrument: Any) -> bool:
    return type(instrument).__module__ == "sandboxpool.run._tasks_trio"


async def test_one_closed_app_leaves_the_others_tasks() -> None:
    """When one app is closed, the tasks of another one's requests still may block."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        async def child() -> None:
            assert stepper() is not None
            await_(anyio.lowlevel.checkpoint())

        await with_anyio(child)
        await respond(send)

    first, second = cooperative(app), cooperative(app)
    await first.open()
    await second.open()
    await first.aclose()
    await ask(second)
    await second.aclose()


# --- eager tasks --------------------------------------------------------------------------------

eager_only = pytest.mark.skipif(sys.version_info < (3, 12), reason="no eager tasks yet")
# Not with uvloop, which on Python 3.13 calls asyncio's own factory in a wrong way.
WITHOUT_UVLOOP = pytest.mark.parametrize(
    "anyio_backend", [("asyncio", {"use_uvloop": False})], ids=["asyncio"], indirect=True
)


@eager_only
@WITHOUT_UVLOOP
@pytest.mark.parametrize("start", [*ON_ASYNCIO, *ANYWHERE])
async def test_eager(start: Start, anyio_backend: Any) -> None:
    """Eager tasks, whose first step runs inside of the one that starts them, may block."""
    loop = asyncio.get_running_loop()
    before = loop.get_task_factory()
    loop.set_task_factory(getattr(asyncio, "eager_task_factory", None))
    try:
        await blocks_in(start)
    finally:
        loop.set_task_factory(before)


@eager_only
@WITHOUT_UVLOOP
async def test_eager_factory_after(anyio_backend: Any) -> None:
    """Set too late, eager tasks cannot be suspended: the error says so, and nothing breaks."""
    loop = asyncio.get_running_loop()
    before = loop.get_task_factory()

    async def child() -> None:
        with pytest.raises(RuntimeError, match="eager task that this request has started") as e:
            await_(asyncio.sleep(0))
        assert "Set it before" in str(e.value)
        await asyncio.sleep(0)
        # From its second step on it is a task as any other, which just is not cooperative.
        assert stepper() is None

    async def app(scope: Any, receive: Any, send: Any) -> None:
        loop.set_task_factory(getattr(asyncio, "eager_task_factory", None))
        await_(asyncio.sleep(0))
        task = asyncio.create_task(child())
        await_(asyncio.sleep(0))
        await task
        await respond(send)

    try:
        async with cooperative(app) as sandboxed:
            assert (await ask(sandboxed)).status == 200
    finally:
        loop.set_task_factory(before)


# --- several loops ------------------------------------------------------------------------------


def test_loops_in_threads() -> None:
    """One app in two loops at the same time, in two threads: neither knows of the other."""
    both = threading.Barrier(2, timeout=PATIENCE)
    failures = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        for _ in range(20):
            await_(asyncio.sleep(0))
            await asyncio.sleep(0)
        await respond(send)

    sandboxed = cooperative(app, max_size=5)

    async def serve() -> None:
        async with sandboxed:
            both.wait()
            await asyncio.gather(*[ask(sandboxed) for _ in range(20)])
            both.wait()

    def run(backend: str) -> None:
        try:
            anyio.run(serve, backend=backend)
        except BaseException as error:
            failures.append(error)
            raise

    threads = [threading.Thread(target=run, args=("asyncio",)) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


@pytest.mark.parametrize("backends", [("asyncio", "asyncio"), ("asyncio", "trio", "asyncio")])
def test_loops_one_after_the_other(backends: tuple[str, ...]) -> None:
    """One app in several loops of one thread, one after the other."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await_(anyio.lowlevel.checkpoint())
        await with_anyio(partial(blocking))
        await respond(send)

    async def blocking() -> None:
        await_(anyio.lowlevel.checkpoint())

    sandboxed = cooperative(app)

    async def serve() -> None:
        async with sandboxed:
            for _ in range(3):
                assert (await Connection(sandboxed).run()).status == 200

    for backend in backends:
        anyio.run(serve, backend=backend)


@ASYNCIO
async def test_loop_in_a_worker_thread(anyio_backend: Any) -> None:
    """A request may run an event loop in a worker thread, as ever; there nothing is cooperative."""
    seen: list[Any] = []

    async def elsewhere() -> None:
        seen.append(stepper())
        await asyncio.create_task(asyncio.sleep(0))
        seen.append(current_lease().path)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.to_thread(lambda: asyncio.run(elsewhere()))
        await_(asyncio.to_thread(lambda: asyncio.run(elsewhere())))
        await respond(send)

    async with cooperative(app) as sandboxed:
        await ask(sandboxed, "/x")
    assert seen == [None, "/x"] * 2


@ASYNCIO
async def test_app_in_a_worker_thread(anyio_backend: Any) -> None:
    """A request may call another cooperative app in the event loop of a worker thread."""
    seen: list[Any] = []

    async def other(scope: Any, receive: Any, send: Any) -> None:
        await with_create_task(blocking)
        await respond(send)

    async def blocking() -> None:
        seen.append(type(stepper()))
        await_(asyncio.sleep(0))

    async def plain() -> None:
        seen.append(stepper())

    async def elsewhere() -> None:
        async with cooperative(other) as inside:
            # The lease in this task's context is that of a request in another thread.
            await asyncio.create_task(plain())
            await ask(inside)

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.to_thread(lambda: asyncio.run(elsewhere()))
        await respond(send)

    async with cooperative(app) as sandboxed:
        await ask(sandboxed)
    assert seen == [None, Stepper]
