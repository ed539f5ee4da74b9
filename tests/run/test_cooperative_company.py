"""Blocked requests beside others that look at stacks, or switch them."""

from __future__ import annotations

import asyncio
import faulthandler
import sys
import tempfile
import threading
import tracemalloc
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from greenlet import GreenletExit, getcurrent, greenlet
from sqlalchemy.util import await_only, greenlet_spawn

from sandboxpool.run.cooperative import Stepper, await_, stepper
from tests.wrap.client import respond

from .cooperative import Gate, ask, calling, cooperative
from .cooperative import sleep_hooked as sleep_hooked

pytestmark = pytest.mark.backend_with_uvloop


async def soon(value: Any) -> Any:
    """Return a value, later."""
    await anyio.lowlevel.checkpoint()
    return value


# --- other greenlets ----------------------------------------------------------------------------


async def test_sqlalchemy() -> None:
    """SQLAlchemy's greenlets work inside of a request, and code in them may block in both ways."""
    gate = Gate()

    def of_sqlalchemy(value: int) -> list[Any]:
        seen = [await_only(soon(value))]
        gate.pass_through()
        seen.append(await_(soon(value + 1)))
        seen.append(await_only(soon(value + 2)))
        return seen

    async def app(scope: Any, receive: Any, send: Any) -> Any:
        seen = await greenlet_spawn(of_sqlalchemy, 1)
        seen.append(await_(greenlet_spawn(of_sqlalchemy, 4)))
        await respond(send)
        return seen

    async def other(scope: Any, receive: Any, send: Any) -> None:
        await respond(send)

    results = []

    async def request(sandboxed: Any) -> None:
        results.append((await ask(sandboxed)).result)

    async with (
        cooperative(app, max_size=3) as sandboxed,
        cooperative(other) as others,
        anyio.create_task_group() as tasks,
    ):
        for _ in range(3):
            tasks.start_soon(request, sandboxed)
        await gate.reached.wait()
        assert (await ask(others)).status == 200
        gate.opened.set()
    assert results == [[1, 2, 3, [4, 5, 6]]] * 3


async def test_sqlalchemy_cancelled() -> None:
    """A request that is cancelled while it blocks in such a greenlet ends there."""
    seen = []
    gate = Gate()

    def of_sqlalchemy() -> None:
        try:
            gate.pass_through()
        finally:
            seen.append("cleaned")

    async def app(scope: Any, receive: Any, send: Any) -> None:
        try:
            await greenlet_spawn(of_sqlalchemy)
        finally:
            seen.append("ended")

    async with cooperative(app) as sandboxed, anyio.create_task_group() as tasks:
        tasks.start_soon(partial(ask, sandboxed))
        await gate.reached.wait()
        tasks.cancel_scope.cancel()
    assert seen == ["cleaned", "ended"]


async def test_greenlets_of_the_app() -> None:
    """Greenlets that the app switches between block by way of the stack that they run on."""

    def block() -> list[Any]:
        seen: list[Any] = []
        here = getcurrent()

        def first() -> None:
            seen.append(await_(soon("first")))
            there.switch()
            seen.append(await_(soon("third")))

        def second() -> None:
            seen.append(await_(soon("second")))
            here.switch()

        there = greenlet(second)
        other = greenlet(first)
        other.switch()
        other.switch()
        return seen

    async with cooperative(calling(block)) as sandboxed:
        assert (await ask(sandboxed)).result == ["first", "second", "third"]


async def test_greenlet_of_another_request() -> None:
    """One that was made in another request, which waits or is over, has no stack to leave."""
    gate = Gate()
    made: list[greenlet] = []
    seen: list[Any] = []

    def block() -> None:
        seen.append(stepper())
        getcurrent().parent.switch()  # type: ignore[union-attr]
        seen.append(stepper())

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/makes":
            made.append(greenlet(block))
            made[0].switch()
            gate.pass_through()
        else:
            # It goes on here, and ends; what it gives back goes to its parent, if it is there.
            made[0].parent = getcurrent()
            made[0].switch()
        await respond(send)

    async with cooperative(app, max_size=2) as sandboxed, anyio.create_task_group() as tasks:
        tasks.start_soon(partial(ask, sandboxed, "/makes"))
        await gate.reached.wait()
        await ask(sandboxed, "/uses")
        gate.opened.set()
    assert [type(each) for each in seen] == [Stepper, Stepper]
    assert seen[0] is not seen[1]


async def test_stack_that_is_elsewhere() -> None:
    """A greenlet whose parent is the stack of a request that waits must block, or it would mix."""
    gate = Gate()
    made: list[greenlet] = []
    seen: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        made.append(greenlet(lambda: seen.append(stepper())))
        gate.pass_through()
        await respond(send)

    async with cooperative(app) as sandboxed, anyio.create_task_group() as tasks:
        tasks.start_soon(partial(ask, sandboxed))
        await gate.reached.wait()
        # In the test's own task, so that nothing but the parent leads to a stack.
        helper = greenlet(lambda: seen.append(stepper()), made[0].parent)
        assert helper.parent is not None
        probe = _with_parent(helper.parent)
        seen.append(probe)
        gate.opened.set()
    assert seen == [None]


def _with_parent(parent: greenlet) -> Any:
    """Return what `stepper()` says in a greenlet with that parent; it comes back before its end."""
    here = getcurrent()
    found: list[Any] = []

    def run() -> None:
        found.append(stepper())
        here.switch()

    guest = greenlet(run, parent)
    guest.switch()
    guest.parent = here
    guest.throw()
    return found[0]


async def test_switch_to_the_parent() -> None:
    """Code that leaves its stack in another way than by `await_()` is told so."""

    def leave() -> None:
        getcurrent().parent.switch("anything")  # type: ignore[union-attr]

    async with cooperative(calling(leave)) as sandboxed:
        with pytest.raises(RuntimeError, match="switched to the parent of a cooperative request"):
            await ask(sandboxed)
        assert (await ask(cooperative(calling(lambda: await_(soon(5)))))).result == 5


async def test_greenlet_exit() -> None:
    """An app that raises `GreenletExit` through its whole stack gets an error, not an answer."""

    def leave() -> None:
        raise GreenletExit

    async with cooperative(calling(leave)) as sandboxed:
        with pytest.raises(RuntimeError, match="cooperative request"):
            await ask(sandboxed)


async def test_greenlets_of_other_threads() -> None:
    """Threads that use greenlets themselves are not taken for requests."""
    seen: list[Any] = []

    def elsewhere() -> None:
        greenlet(lambda: seen.append(stepper())).switch()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()
        await_(anyio.to_thread.run_sync(elsewhere))
        await respond(send)

    async with cooperative(app) as sandboxed:
        await ask(sandboxed)
    assert seen == [None, None]


@pytest.mark.parametrize(
    "anyio_backend", [("asyncio", {"use_uvloop": False}), ("trio", {})], indirect=True
)
async def test_greenback(anyio_backend: Any) -> None:
    """greenback works beside it: in a request, and in the task that the server runs it in."""
    greenback = pytest.importorskip("greenback")

    async def app(scope: Any, receive: Any, send: Any) -> list[Any]:
        seen = [await_(soon(1))]
        await greenback.ensure_portal()
        seen += [greenback.await_(soon(2)), await_(soon(3)), greenback.await_(soon(4))]
        seen.append(await soon(5))
        await respond(send)
        return seen

    async with cooperative(app) as sandboxed:
        assert (await ask(sandboxed)).result == [1, 2, 3, 4, 5]
        await greenback.ensure_portal()
        assert (await ask(sandboxed)).result == [1, 2, 3, 4, 5]


# --- who looks at stacks ------------------------------------------------------------------------


async def test_tracing() -> None:
    """A trace function, as debuggers set it, sees each line of the app, before and after."""
    lines: list[int] = []
    code: Any = None

    def block() -> int:
        one = 1
        await_(soon(1))
        two = 2
        return one + two

    code = block.__code__

    def trace(frame: Any, event: str, arg: Any) -> Any:
        if frame.f_code is code and event == "line":
            lines.append(frame.f_lineno - code.co_firstlineno)
        return trace

    before = sys.gettrace()
    async with cooperative(calling(block)) as sandboxed:
        sys.settrace(trace)
        try:
            assert (await ask(sandboxed)).result == 3
        finally:
            sys.settrace(before)
    assert lines == [1, 2, 3, 4]


async def test_debugger() -> None:
    """`pdb` stops in a request, and steps over a call that blocks."""
    import io
    import pdb

    output = io.StringIO()

    def block() -> int:
        debugger = pdb.Pdb(
            stdin=io.StringIO("next\nnext\nwhere\np one + 1\ncontinue\n"),
            stdout=output,
            nosigint=True,
            readrc=False,
        )
        debugger.set_trace()
        one = await_(soon(1))
        two = await_(soon(2))
        return int(one) + int(two)

    before = sys.gettrace()
    async with cooperative(calling(block)) as sandboxed:
        try:
            assert (await ask(sandboxed)).result == 3
        finally:
            sys.settrace(before)
    assert "two = await_(soon(2))" in output.getvalue()
    assert "result = function()" in output.getvalue()
    assert "\n(Pdb) 2\n" in output.getvalue()


async def test_faulthandler() -> None:
    """`faulthandler` writes the stack of the step that runs."""

    def dump() -> str:
        await_(soon(1))
        with tempfile.TemporaryFile("w+") as file:
            faulthandler.dump_traceback(file, all_threads=False)
            file.seek(0)
            return file.read()

    async with cooperative(calling(dump)) as sandboxed:
        assert "in dump" in (await ask(sandboxed)).result


async def test_tracemalloc() -> None:
    """Memory may be traced while requests block."""
    gate = Gate()
    tracemalloc.start(10)
    try:
        async with (
            cooperative(calling(gate.pass_through)) as sandboxed,
            anyio.create_task_group() as tasks,
        ):
            tasks.start_soon(partial(ask, sandboxed))
            await gate.reached.wait()
            assert tracemalloc.take_snapshot().traces
            gate.opened.set()
    finally:
        tracemalloc.stop()


# --- recursion ----------------------------------------------------------------------------------


def dive(depth: int, gate: Gate) -> int:
    """Block that many calls deep."""
    if depth == 0:
        gate.pass_through()
        return 0
    return 1 + dive(depth - 1, gate)


def too_deep(depth: int = 0) -> int:
    """Never return."""
    return too_deep(depth + 1)


async def test_recursion() -> None:
    """Each stack has a recursion depth of its own, deep ones may block, and the limit holds."""
    gate = Gate()
    depths = []

    async def app(scope: Any, receive: Any, send: Any) -> Any:
        if scope["path"] == "/deep":
            result = dive(sys.getrecursionlimit() // 2, gate)
        else:
            with pytest.raises(RecursionError):
                too_deep()
            result = await_(soon(0))
            with pytest.raises(RecursionError):
                too_deep()
        await respond(send)
        return result

    async def deep() -> None:
        depths.append((await ask(sandboxed, "/deep")).result)

    async with cooperative(app, max_size=5) as sandboxed, anyio.create_task_group() as tasks:
        for _ in range(4):  # together they are deeper than the limit
            tasks.start_soon(deep)
        await gate.reached.wait()
        for _ in range(2):
            await ask(sandboxed, "/too-deep")
        gate.opened.set()
    assert depths == [sys.getrecursionlimit() // 2] * 4


def test_deep_below() -> None:
    """A loop that is itself run from deep down leaves requests the depth that is left."""

    def deep(depth: int) -> Any:
        if depth:
            return deep(depth - 1)
        return asyncio.run(main())

    async def main() -> Any:
        gate = Gate()
        gate.opened.set()
        async with cooperative(calling(lambda: dive(50, gate))) as sandboxed:
            return (await ask(sandboxed)).result

    assert deep(sys.getrecursionlimit() // 3) == 50
    assert deep(0) == 50
