"""Requests whose code blocks: what comes of the call, whatever it is made of."""

from __future__ import annotations

import gc
import sys
import traceback
import weakref
from collections.abc import Generator, Iterator
from contextvars import ContextVar, copy_context
from functools import partial
from types import coroutine
from typing import Any

import anyio
import anyio.lowlevel
import pytest
from fastapi import FastAPI

from sandboxpool import SandboxedApp, context, current_lease, wrap
from sandboxpool.run.cooperative import await_, stepper
from tests.wrap.client import Connection, respond, settle

from .cooperative import PATIENCE, Gate, ask, calling, cooperative
from .cooperative import sleep_hooked as sleep_hooked

pytestmark = pytest.mark.backend_with_uvloop


class Oops(Exception):
    """An error of the app's own."""


async def soon(value: Any) -> Any:
    """Return a value, later."""
    await anyio.lowlevel.checkpoint()
    return value


async def fail() -> None:
    """Raise an exception, later."""
    await anyio.lowlevel.checkpoint()
    raise Oops


# --- waiting ------------------------------------------------------------------------------------


async def test_others_run_meanwhile() -> None:
    """While a request blocks, others come and go; then it goes on where it was."""
    gate = Gate()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/blocked":
            gate.pass_through()
        await respond(send, scope["path"].encode())

    async with cooperative(app, max_size=2) as sandboxed, anyio.create_task_group() as tasks:
        blocked = Connection(sandboxed, "/blocked")
        tasks.start_soon(blocked.run)
        await gate.reached.wait()
        for _ in range(3):
            assert (await ask(sandboxed, "/other")).text == "/other"
        assert not blocked.sent
        gate.opened.set()
    assert blocked.text == "/blocked"


async def test_many_at_once() -> None:
    """Hundreds block at the same time, each on a stack of its own; most stacks are freed after."""
    many, gate, stacks = 300, Gate(), []

    def block() -> None:
        local = object()
        stacks.append(weakref.ref(stepper()))
        gate.pass_through()
        assert local is not None

    async with (
        cooperative(calling(block), max_size=many) as sandboxed,
        anyio.create_task_group() as tasks,
    ):
        for _ in range(many):
            tasks.start_soon(partial(ask, sandboxed))
        with anyio.fail_after(PATIENCE):
            while len(stacks) < many:
                await anyio.lowlevel.checkpoint()
        assert len({id(stack()) for stack in stacks}) == many
        gate.opened.set()
    assert sum(stack() is not None for stack in stacks) <= 64


class Slow:
    """Something that can be awaited, and is no coroutine."""

    def __await__(self) -> Generator[Any, Any, str]:
        yield from anyio.lowlevel.checkpoint().__await__()
        return "slow"


class Iterating:
    """Something that can be awaited, by an iterator that knows no `send()`."""

    def __await__(self) -> Iterator[Any]:
        return iter(())


@coroutine
def generating() -> Generator[Any, Any, str]:
    """Be a coroutine of the old kind."""
    yield from anyio.lowlevel.checkpoint().__await__()
    return "generated"


@pytest.mark.parametrize(
    ("make", "result"),
    [
        (lambda: soon(1), 1),
        (Slow, "slow"),
        (Iterating, None),
        (lambda: generating(), "generated"),
        (lambda: soon(None), None),
        (lambda: nested(), (1, 2)),
    ],
    ids=["coroutine", "awaitable", "iterator", "generator", "none", "nested"],
)
async def test_results(make: Any, result: Any) -> None:
    """`await_()` returns what awaiting returns, of anything that can be awaited."""
    async with cooperative(calling(lambda: await_(make()))) as sandboxed:
        assert (await ask(sandboxed)).result == result


async def nested() -> Any:
    """Wait in code that awaits, called by code that cannot."""
    return await_(soon(1)), await soon(2)


async def test_steps_that_await_and_block() -> None:
    """A call that awaits and blocks in turns keeps what it has, step after step."""

    async def app(scope: Any, receive: Any, send: Any) -> list[int]:
        seen = []
        for number in range(10):
            seen.append(await_(soon(number)))
            seen.append(await soon(number))
        await respond(send)
        return seen

    async with cooperative(app) as sandboxed:
        assert (await ask(sandboxed)).result == [n // 2 for n in range(20)]


def test_outside() -> None:
    """Outside of a cooperative request `await_()` refuses, and starts nothing."""
    started = []

    async def start() -> None:
        started.append(True)

    with pytest.raises(RuntimeError, match="no cooperative request here to suspend: await_") as e:
        await_(start())
    assert "run_in='cooperative'" in str(e.value)
    with pytest.raises(RuntimeError, match="no cooperative request here to suspend"):
        await_(Slow())
    assert started == []


async def test_run_in_loop() -> None:
    """A request that runs in another way cannot be suspended."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        assert stepper() is None
        await_(soon(1))

    async with wrap(app, run_in="loop", lifespan="off", stall_after=None) as sandboxed:
        with pytest.raises(RuntimeError, match="no cooperative request"):
            await ask(sandboxed)


# --- exceptions ---------------------------------------------------------------------------------


async def test_exception_of_what_is_awaited() -> None:
    """What the awaited code raises is raised by the blocking call, and can be caught there."""

    def block() -> str:
        with pytest.raises(Oops) as caught:
            await_(fail())
        names = [frame.name for frame in traceback.extract_tb(caught.value.__traceback__)]
        assert names == ["block", "await_", "fail"]
        return "caught"

    async with cooperative(calling(block)) as sandboxed:
        assert (await ask(sandboxed)).result == "caught"


@pytest.mark.parametrize("kind", [Oops, OSError, StopAsyncIteration, KeyboardInterrupt])
@pytest.mark.parametrize("blocks", [True, False])
async def test_exception_of_the_app(kind: type[BaseException], blocks: bool) -> None:
    """What the app raises comes out as the very object, with its context and its traceback."""
    error, reason = kind(), KeyError("the reason")

    def raise_it() -> None:
        if blocks:
            await_(soon(1))
        try:
            raise reason
        except KeyError:
            raise error  # noqa: B904 # the raising line

    async with cooperative(calling(raise_it)) as sandboxed:
        try:
            # Whoever calls the app may be busy with an exception already.
            raise ValueError("of the server")
        except ValueError:
            with pytest.raises(kind) as caught:
                await Connection(sandboxed).run()
    assert caught.value is error
    assert error.__context__ is reason
    assert error.__cause__ is None
    frames = traceback.extract_tb(error.__traceback__)
    assert frames[-1].name == "raise_it"
    assert "# the raising line" in (frames[-1].line or "")
    assert [frame.name for frame in frames].count("app") == 1


async def test_stop_iteration() -> None:
    """A `StopIteration` of the app is the error that it always is in a coroutine."""

    def stop() -> None:
        await_(soon(1))
        next(iter(()))

    async with cooperative(calling(stop)) as sandboxed:
        with pytest.raises(RuntimeError, match="coroutine raised StopIteration"):
            await ask(sandboxed)


async def test_handled_exceptions_stay_apart() -> None:
    """Each blocked request has its own exception that it is handling."""
    gates = [Gate(), Gate()]
    seen = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        number = int(scope["path"][1:])
        try:
            raise Oops(number)
        except Oops:
            gates[number].pass_through()
            seen.append((number, sys.exc_info()[1].args))  # type: ignore[union-attr]
        assert sys.exc_info()[1] is None
        await respond(send)

    async with cooperative(app, max_size=2) as sandboxed, anyio.create_task_group() as tasks:
        for number in range(2):
            tasks.start_soon(partial(ask, sandboxed, f"/{number}"))
            await gates[number].reached.wait()
        assert sys.exc_info()[1] is None
        for gate in gates:
            gate.opened.set()
    assert sorted(seen) == [(0, (0,)), (1, (1,))]


# --- what is left of a call ---------------------------------------------------------------------


class Traced:
    """Something that a request uses."""


def raise_through(traced: Traced) -> None:
    """Raise an exception that has blocked on its way."""
    held = traced
    await_(fail())
    del held


def catch(traced: Traced) -> None:
    """Handle one."""
    try:
        raise_through(traced)
    except Oops:
        pass


def time_out(traced: Traced) -> None:
    """Block for too long."""
    held = traced
    with anyio.move_on_after(0.001):  # noqa: ASYNC100 # it awaits all the same
        await_(anyio.Event().wait())
    del held


def block(traced: Traced) -> None:
    """Block."""
    await_(soon(traced))


async def be_cancelled(traced: Traced) -> None:
    """Await until the request is cancelled."""
    held = traced
    await anyio.Event().wait()
    del held


@pytest.mark.parametrize("isolate_context", [True, False])
@pytest.mark.parametrize("function", [block, catch, time_out, raise_through, be_cancelled])
async def test_nothing_is_held(function: Any, isolate_context: bool) -> None:
    """After its end nothing holds what a request has used, without the garbage collector."""
    traces = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        traced = Traced()
        variable.set(traced)
        traces.append(weakref.ref(traced))
        result = function(traced)
        if result is not None:
            await result
        await respond(send)

    async def request() -> None:
        # Of the backend's own scopes some hold on to what they have cancelled.
        steps: Any = Connection(sandboxed).run()
        try:
            await (interrupted(steps) if function is be_cancelled else steps)
        except Oops:
            pass

    async with cooperative(app, isolate_context=isolate_context) as sandboxed:
        gc.collect()
        gc.disable()
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(request)
            await settle()  # until timers of the backend are gone, too
            assert [trace() for trace in traces] == [None]
        finally:
            gc.enable()


@coroutine
def interrupted(steps: Any) -> Generator[Any, Any, None]:
    """Run steps until they wait for something, and raise `Oops` there."""
    waits = steps.send(None)
    while waits is None:
        yield
        waits = steps.send(None)
    try:
        steps.throw(Oops())
    except Oops:
        pass


variable: ContextVar[Any] = ContextVar("variable", default=None)


@pytest.mark.skipif(sys.version_info < (3, 11), reason="there it is made anew in any case")
async def test_sandbox_is_not_made_anew() -> None:
    """The private app is held by nobody at the end of a request, so it can be used again."""
    app = FastAPI()
    apps = []

    @app.get("/{way}")
    async def endpoint(way: str, request: Any = None) -> None:
        await_(soon(1))
        if way == "caught":
            catch(Traced())

    async with cooperative(app) as sandboxed:
        assert sandboxed.pool is not None
        sandbox: Any = sandboxed.pool.slots.idle[0].item
        for way in ("blocks", "caught", "blocks"):
            assert (await ask(sandboxed, f"/{way}")).status == 200
            assert sandbox._held() <= sandbox._references
            apps.append(weakref.ref(sandbox.app))
        assert [app() is sandbox.app for app in apps] == [True] * 3


# --- context variables --------------------------------------------------------------------------


@pytest.mark.parametrize("isolate_context", [True, False])
async def test_context_variables(isolate_context: bool) -> None:
    """What is set before, in and after a blocking call is seen from then on, and by nobody else."""
    gate = Gate()

    async def set_inside() -> None:
        variable.set("inside")
        await anyio.lowlevel.checkpoint()

    async def app(scope: Any, receive: Any, send: Any) -> Any:
        token = variable.set(scope["path"])
        gate.pass_through()
        assert variable.get() == scope["path"]
        await_(set_inside())
        assert variable.get() == "inside"
        await soon(1)
        assert variable.get() == "inside"
        assert context.get("mine") is None
        context.set("mine", scope["path"])
        variable.reset(token)
        await_(soon(1))
        await respond(send)
        assert current_lease().path == scope["path"]
        return variable.get()

    async def request(path: str) -> None:
        with anyio.fail_after(PATIENCE):
            assert (await Connection(sandboxed, path).run()).result == "outside"

    variable.set("outside")
    async with cooperative(app, max_size=2, isolate_context=isolate_context) as sandboxed:
        async with anyio.create_task_group() as tasks:
            for path in ("/a", "/b"):
                tasks.start_soon(request, path)
            await gate.reached.wait()
            gate.opened.set()
        assert variable.get() == "outside"


async def test_context_of_the_app() -> None:
    """Code may block inside of `Context.run()`, in several requests at once."""
    gate = Gate()

    def inside(name: str) -> str:
        variable.set(name)
        gate.pass_through()
        return str(variable.get())

    async def app(scope: Any, receive: Any, send: Any) -> Any:
        variable.set("outside")
        own = copy_context()
        seen = own.run(inside, scope["path"])
        await respond(send)
        return seen, variable.get(), own[variable]

    async def request(path: str) -> None:
        assert (await ask(sandboxed, path)).result == (path, "outside", path)

    async with cooperative(app, max_size=2) as sandboxed, anyio.create_task_group() as tasks:
        for path in ("/a", "/b"):
            tasks.start_soon(request, path)
        await gate.reached.wait()
        await settle()
        gate.opened.set()


async def test_context_is_isolated() -> None:
    """What blocking code has set does not get out of the request."""

    def block() -> None:
        await_(soon(1))
        variable.set("leaked")
        await_(soon(1))

    variable.set("outside")
    async with cooperative(calling(block)) as sandboxed:
        await ask(sandboxed)
        assert variable.get() == "outside"


# --- what requests are made of ------------------------------------------------------------------


@pytest.mark.parametrize("outer", ["cooperative", "loop"])
@pytest.mark.parametrize("inner", ["cooperative", "loop"])
async def test_wrapped_in_wrapped(outer: Any, inner: Any) -> None:
    """An app in an app: code blocks cooperatively if one of them is cooperative."""
    gate = Gate()
    options: dict[str, Any] = {"lifespan": "off", "stall_after": None, "max_size": 2}

    async def innermost(scope: Any, receive: Any, send: Any) -> None:
        if outer == inner == "loop":
            assert stepper() is None
            gate.reached.set()
        elif scope["path"] == "/blocked":
            gate.pass_through()
        await respond(send, scope["path"].encode())

    def wrapped(app: Any, run_in: Any) -> SandboxedApp:
        hooks = ("sleep",) if run_in == "cooperative" else ()
        return wrap(app, run_in=run_in, hooks=hooks, **options)

    async with wrapped(innermost, inner) as below:

        async def middle(scope: Any, receive: Any, send: Any) -> None:
            await below(scope, receive, send)
            if outer == "cooperative":
                await_(soon(1))

        async with wrapped(middle, outer) as sandboxed, anyio.create_task_group() as tasks:
            blocked = Connection(sandboxed, "/blocked")
            tasks.start_soon(blocked.run)
            await gate.reached.wait()
            assert (await ask(sandboxed, "/other")).text == "/other"
            gate.opened.set()
        assert blocked.text == "/blocked"


@pytest.mark.parametrize("kind", ["called", "awaited"])
async def test_deferred_callbacks(kind: str) -> None:
    """What is deferred to the end of a request may block, too, whether it is awaited or not."""
    gate = Gate()

    async def awaited() -> None:
        await anyio.lowlevel.checkpoint()
        gate.pass_through()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/blocked":
            context.defer(gate.pass_through if kind == "called" else awaited)
        await respond(send)

    async with cooperative(app, max_size=2) as sandboxed, anyio.create_task_group() as tasks:
        tasks.start_soon(partial(ask, sandboxed, "/blocked"))
        await gate.reached.wait()
        assert (await ask(sandboxed)).status == 200
        gate.opened.set()
