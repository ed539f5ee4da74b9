"""Run one call of a sandbox on the server's own event loop, in the server's own task.

The app runs in a copy of the task's context variables, step by step: what was set outside
(tracing, correlation ids) is seen inside, and what the app sets never gets out. The server's
`receive` and `send` run in another copy, taken before the app began. Without that, a server
that registers a callback on their behalf leaves the app's context on the connection, and the
next request on it starts with the user of the last one (cpython#140947 for a paused reader;
pipelining is a second way).

A task of its own would do the same for five times the price, and would change how cancellation,
exceptions and the return value get through. So the coroutine is driven by hand: what it yields
to the event loop is yielded on as it is, and what comes back is sent or thrown in.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Generator
from contextvars import Context
from inspect import isawaitable
from types import CoroutineType, GeneratorType, coroutine
from typing import Any

from sandboxpool._context import RequestLease
from sandboxpool._types import Message, Receive, Send

ANSWERS = frozenset(
    {
        "http.response.start",
        "http.response.pathsend",
        "websocket.accept",
        "websocket.close",
        "websocket.http.response.start",
    }
)
"""The messages after which nobody else can answer any more."""
ACCEPTED = "websocket.accept"
GONE = "websocket.disconnect"


def steps_of(awaitable: Any) -> Any:
    """Return something with `send`, `throw` and `close` that runs *awaitable*."""
    if type(awaitable) is CoroutineType:
        return awaitable
    if not hasattr(awaitable, "__await__") and isawaitable(awaitable):
        return awaitable  # a generator that `types.coroutine` has marked
    steps = awaitable.__await__()
    if isinstance(steps, GeneratorType) or hasattr(steps, "send"):
        return steps
    return _delegate(steps)


def _delegate(steps: Any) -> Generator[Any, Any, Any]:
    return (yield from steps)


class In:
    """Await something in another context."""

    __slots__ = ("_run", "_steps")

    def __init__(self, context: Context, awaitable: Awaitable[Any]) -> None:
        self._run = context.run
        self._steps = steps_of(awaitable)

    def __await__(self) -> Generator[Any, Any, Any]:
        run, steps = self._run, self._steps
        try:
            yielded = run(steps.send, None)
        except StopIteration as end:
            return end.value
        return (yield from rest(run, steps, yielded))


def rest(run: Callable[..., Any], steps: Any, yielded: Any) -> Generator[Any, Any, Any]:
    """Go on with *steps*, which have just yielded, in the context that *run* belongs to."""
    send, throw = steps.send, steps.throw
    while True:
        try:
            sent = yield yielded
        except GeneratorExit:
            # The task is being dropped: let the app clean up, in its own context.
            run(steps.close)
            raise
        except BaseException as error:
            try:
                yielded = run(throw, error)
            except StopIteration as end:
                return end.value
        else:
            try:
                yielded = run(send, sent)
            except StopIteration as end:
                return end.value


class Running:
    """What runs on a loop right now.

    Attributes:
        lease: Whose step it is; read by the monitor from its thread.
        idle: The stacks that cooperative requests have left.
    """

    __slots__ = ("idle", "lease")

    def __init__(self) -> None:
        self.lease: Any = None
        self.idle: list[Any] = []


@coroutine
def drive(
    running: Running, lease: RequestLease, run: Callable[..., Any], steps: Any
) -> Generator[Any, Any, Any]:
    """Run the app, step by step, and note with each step that it is this request's.

    Args:
        running: Where to note it.
        lease: The lease of the request.
        run: `Context.run` of the app's context, or `call_plainly`.
        steps: What the app returned, as `steps_of` made it.

    Returns:
        What the app returned in the end.
    """
    outer = running.lease  # of a wrapped app that calls this one
    running.lease = lease
    try:
        yielded = run(steps.send, None)
    except StopIteration as end:
        return end.value
    finally:
        running.lease = outer
    send, throw = steps.send, steps.throw
    while True:
        try:
            sent = yield yielded
        except GeneratorExit:
            # The task is being dropped: let the app clean up, in its own context.
            run(steps.close)
            raise
        except BaseException as error:
            step, sent = throw, error
        else:
            step = send
        outer = running.lease
        running.lease = lease
        try:
            yielded = run(step, sent)
        except StopIteration as end:
            return end.value
        finally:
            running.lease = outer
            # An exception that was thrown in and comes out again has this frame in its traceback:
            # held here, too, it would keep the request alive until the garbage collector comes.
            sent = None


def call_plainly(function: Callable[..., Any], *args: Any) -> Any:
    """Call in the running context: `Context.run` for those who turn the isolation off."""
    try:
        return function(*args)
    finally:
        del args  # as in `drive()`: one of them may be the exception that has this frame


def outside(
    context: Context, lease: RequestLease, receive: Receive, send: Send
) -> tuple[Receive, Send]:
    """Return the server's `receive` and `send` such that they run in *context*."""
    run = context.run

    async def receive_outside() -> Message:
        # The call itself, too: not every server has coroutine functions here.
        steps: Any = run(receive)
        if type(steps) is not CoroutineType:
            steps = run(steps_of, steps)
        message: Message
        try:
            yielded = run(steps.send, None)
        except StopIteration as end:
            message = end.value
        else:
            message = await _Rest(run, steps, yielded)
        if message["type"] == GONE:
            lease.answered = GONE
        return message

    async def send_outside(message: Message) -> None:
        if lease.answered is None or lease.answered == ACCEPTED:
            note_answer(lease, message)
        steps: Any = run(send, message)
        if type(steps) is not CoroutineType:
            steps = run(steps_of, steps)
        try:
            yielded = run(steps.send, None)
        except StopIteration:
            return
        await _Rest(run, steps, yielded)

    return receive_outside, send_outside


class _Rest:
    __slots__ = ("_run", "_steps", "_yielded")

    def __init__(self, run: Callable[..., Any], steps: Any, yielded: Any) -> None:
        self._run = run
        self._steps = steps
        self._yielded = yielded

    def __await__(self) -> Generator[Any, Any, Any]:
        return rest(self._run, self._steps, self._yielded)


def note_answer(lease: RequestLease, message: Message) -> None:
    """Note that the app has begun its answer, or has closed a websocket."""
    kind = message["type"]
    if kind in ANSWERS:
        lease.answered = kind


def noting(lease: RequestLease, receive: Receive, send: Send) -> tuple[Receive, Send]:
    """Return the server's `receive` and `send` such that *lease* learns how far the answer is."""

    async def noting_receive() -> Message:
        message = await receive()
        if message["type"] == GONE:
            lease.answered = GONE
        return message

    async def noting_send(message: Message) -> None:
        if lease.answered is None or lease.answered == ACCEPTED:
            note_answer(lease, message)
        await send(message)

    return noting_receive, noting_send
