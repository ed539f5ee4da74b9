"""Run calls of sandboxes on the server's loop such that code deep below them may block.

Each step of a call, from one suspension of its coroutine to the next, runs in a greenlet: a stack
of its own, which can be left in the middle. Code that would block says what it waits for with
`await_()`. The stack is put aside, the event loop sees the task wait for that as for anything
else, and when it has come the stack is taken up where it was left. The idea is that of greenback
and of SQLAlchemy's asyncio extension; what differs is that a greenlet belongs to a call only
while a step of it runs or blocks (or while the app's own greenlets need it for a parent). A call
that awaits needs none, so that the idle ones, of which there are thousands, cost what they cost
without this.

No event loop is patched: the loop sees ordinary tasks. Those that a request starts are run in the
same way, see `CooperativeTasks`.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Coroutine, Generator
from functools import partial
from sys import getrefcount
from types import coroutine
from typing import Any, NoReturn, TypeVar

from greenlet import getcurrent, greenlet

from sandboxpool._context import RequestLease

from .loop import Running, call_plainly, steps_of

T = TypeVar("T")

# Stacks that an app keeps for the next step: a new one costs some microseconds, an idle one some
# kilobytes.
_KEPT_AT_MOST = 64

_CAN_BE_EAGER = sys.version_info >= (3, 12)


class Step:
    """What a stack is to do, and what came of it: all that it shares with who drives it.

    It is passed through here and not as arguments of `switch()`: those would be held by a stack
    that waits for its next step, and with them what they belong to. It is no part of the stack
    itself, because no frame of a stack that is left may hold the stack: no garbage collector sees
    into it, so it would never be freed.

    Attributes:
        call: What to call; `None` once it has returned.
        run: What to call it by, `Context.run` of the context to run in; `None` for the stack's.
        value: What to call it with, later what it returned: what to yield to the event loop, or
            what the whole call has returned. While a step blocks, what to yield for it, and then
            what came back.
        returned: Whether the whole call has returned.
        waiting: The greenlet that waits in the middle of the step: the stack, or one that the
            app's own code has made on it (SQLAlchemy does).
        raises: Whether what came back is to be raised there.
        caller: The greenlet that goes on when the stack is left.
    """

    __slots__ = ("call", "caller", "raises", "returned", "run", "value", "waiting")

    def __init__(self) -> None:
        self.call: Callable[[Any], Any] | None = None
        self.run: Callable[..., Any] | None = None
        self.value: Any = None
        self.returned = False
        self.waiting: greenlet | None = None
        self.raises = False
        self.caller: Any = None


class Stepper(greenlet):
    """A stack on which steps run, one after the other; its parent is whoever drives them.

    Attributes:
        step: What it does.
    """

    __slots__ = ("step",)

    def __init__(self) -> None:
        self.step: Any = Step()
        super().__init__(partial(_run_steps, self.step))


def _run_steps(step: Any) -> None:
    """Run steps on the running stack until one raises; who has switched to it gets that."""
    while True:
        try:
            if step.run is None:
                step.value = step.call(step.value)
            else:
                step.value = step.run(step.call, step.value)
        except StopIteration as end:
            step.value = end.value
            step.returned = True
        step.call = None
        step.caller.switch()


class DroppedStepper(Stepper):
    """The stack of a task that is being dropped: nobody would go on with it if it were left."""

    __slots__ = ()


def _references_to_a_local() -> int:
    local = object()
    return getrefcount(local)


# How many references there are to a stack that nobody else holds.
_ALONE = _references_to_a_local()


def stepper() -> Stepper | None:
    """Return the stack that the running code may leave, `None` where it must not block."""
    here: Any = getcurrent()
    if type(here) is Stepper:
        return here
    while (here := here.parent) is not None:
        if type(here) is Stepper:
            # A greenlet that the app has made in another request may still have the stack of
            # that one for a parent, which waits, or has nothing to do, or serves somebody else.
            step = here.step
            return here if step.call is not None and step.waiting is None else None
    return None


def await_(awaitable: Awaitable[T]) -> T:
    """Wait for *awaitable* from code that cannot await; other tasks run meanwhile.

    Args:
        awaitable: A coroutine, or anything else that can be awaited, in the running backend.

    Returns:
        What awaiting it returns.

    Raises:
        RuntimeError: This is not the code of a cooperative request. (The awaitable is not
            started.)
        BaseException: Whatever awaiting it raises, a cancellation of the request included.
    """
    here = stepper()
    if here is None:
        _refuse(
            awaitable,
            "there is no cooperative request here to suspend: await_() works in code that runs "
            "in a sandbox with run_in='cooperative', in the thread of its event loop.",
        )
    if _CAN_BE_EAGER and _in_eager_task():
        _refuse(
            awaitable,
            "an eager task that this request has started cannot be suspended: the task factory "
            "of the event loop was replaced after the app was opened. Set it before, then the "
            "tasks of cooperative requests are taken care of.",
        )
    step, here = here.step, None
    steps = steps_of(awaitable)
    resume, value = steps.send, None
    while True:
        try:
            step.value = resume(value)
        except StopIteration as end:
            result: T = end.value
            return result
        finally:
            # An exception must not be held by a frame that is in its own traceback: such a
            # cycle keeps everything alive, the private app included.
            value = None
        step.waiting = getcurrent()
        step.caller.switch()
        resume = steps.throw if step.raises else steps.send
        value, step.value = step.value, None


def _refuse(awaitable: Any, message: str) -> NoReturn:
    close = getattr(awaitable, "close", None)
    if close is not None:
        close()  # or it would warn that nobody awaited it
    raise RuntimeError(message)


def _in_eager_task() -> bool:
    """Tell whether the running task was begun on this very stack, in the middle of a step."""
    asyncio: Any = sys.modules.get("asyncio")
    loop = asyncio and asyncio._get_running_loop()
    if loop is None or hasattr(loop.get_task_factory(), "sandboxpool_use"):
        return False
    task = asyncio.current_task(loop)
    begun = None if task is None else getattr(task.get_coro(), "cr_frame", None)
    frame: Any = sys._getframe() if begun is not None else None
    while frame is not None and frame is not begun:
        frame = frame.f_back
    return frame is not None


@coroutine
def drive(
    running: Running, lease: RequestLease, run: Callable[..., Any], steps: Any
) -> Generator[Any, Any, Any]:
    """Run a coroutine step by step, each of them on a stack that it may leave.

    Args:
        running: Where to note whose step runs.
        lease: Whose it is.
        run: `Context.run` of the context to run in, `call_plainly` for the running one.
        steps: What is to be run, as `steps_of` made it.

    Returns:
        What it returned in the end.
    """
    isolated = run is not call_plainly
    idle = running.idle
    call = send = steps.send
    value: Any = None
    here: Stepper | None = None
    while True:
        if here is None:
            here = idle.pop() if idle else Stepper()
        step = here.step
        caller = getcurrent()
        if step.caller is not caller:
            here.parent = step.caller = caller
        if isolated:
            step.run = run
        else:
            here.gr_context = caller.gr_context
        step.call, step.value, value = call, value, None
        outer = running.lease  # of a wrapped app that calls this one
        running.lease = lease
        try:
            here.switch()
        except BaseException:
            step.value = None  # no cycle, as in `await_()`
            raise
        finally:
            running.lease = outer
        if step.call is not None:
            yield from _finish(running, lease, here)
        value, step.value, step.run = step.value, None, None
        returned, step.returned = step.returned, False
        if not isolated:
            here.gr_context = None
        # A greenlet that the app has made on this stack goes on to switch to it in later steps
        # (SQLAlchemy's do): then the stack stays with the call.
        if getrefcount(here) <= _ALONE:
            if len(idle) < _KEPT_AT_MOST:
                idle.append(here)
            here = None
        if returned:
            return value
        try:
            value = yield value
        except GeneratorExit:
            # The task is being dropped: let the app clean up. What blocks there, blocks.
            run(steps.close)
            raise
        except BaseException as error:
            call, value = steps.throw, error
        else:
            call = send


def _set_caller(here: Stepper, step: Step) -> None:
    caller = getcurrent()
    if step.caller is not caller:
        here.parent = step.caller = caller


def _finish(running: Running, lease: RequestLease, here: Stepper) -> Generator[Any, Any, None]:
    """Have the event loop wait for what a blocked step waits for, until the step is over."""
    step = here.step
    while step.call is not None:
        waiting = step.waiting
        if waiting is None:
            here.throw(
                RuntimeError(
                    "a greenlet has switched to the parent of a cooperative request, which only "
                    "await_() can do."
                )
            )
            continue
        lease.blocked = here
        try:
            step.value = yield step.value
            step.raises = False
        except GeneratorExit:
            _drop(here, step)
            raise
        except BaseException as error:
            step.value = error
            step.raises = True
        finally:
            if lease.blocked is here:
                lease.blocked = None
        step.waiting = None
        _set_caller(here, step)
        outer = running.lease
        running.lease = lease
        try:
            waiting.switch()
        finally:
            running.lease = outer


def _drop(here: Stepper, step: Step) -> None:
    """Let a blocked step clean up and end."""
    here.__class__ = DroppedStepper
    waiting, step.waiting = step.waiting, None
    try:
        _set_caller(here, step)
    except ValueError:
        return  # this is another thread: once nothing holds it, greenlet ends it in its own
    step.value, step.raises = GeneratorExit(), True
    assert waiting is not None
    waiting.switch()


class CooperativeSteps(Coroutine[Any, Any, T]):
    """The coroutine of a task that a cooperative request has started.

    Asked for its name, its frame or its state, it answers for the coroutine that it runs.
    """

    __slots__ = ("__weakref__", "_driver", "_lease", "_steps")

    def __init__(self, steps: Coroutine[Any, Any, T], lease: RequestLease) -> None:
        self._steps = steps
        self._lease = lease
        self._driver: Any = None

    def __await__(self) -> Generator[Any, Any, T]:
        result: T = yield from self._begin()
        return result

    def _begin(self) -> Any:
        self._driver = drive(self._lease.serving.running, self._lease, call_plainly, self._steps)
        return self._driver

    def send(self, value: Any) -> Any:
        """Run the next step."""
        return (self._driver or self._begin()).send(value)

    def throw(self, *error: Any) -> Any:
        """Raise an exception in the next step; before the first one nothing is run."""
        return (self._driver or self._steps).throw(*error)

    def close(self) -> None:
        """Drop it."""
        (self._driver or self._steps).close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._steps, name)


def made_cooperative(steps: Any, lease: RequestLease) -> Any:
    """Return the coroutine for a new task whose context variables name *lease*."""
    owner: RequestLease | None = lease
    while owner is not None:
        # That of a wrapped app that called this one counts as well. But a request may also have
        # passed its context to another thread, in which another event loop runs.
        serving = owner.serving
        if serving is not None and serving.drive is drive and serving.is_here():
            return CooperativeSteps(steps, lease)
        owner = owner.parent
    return steps


class CooperativeTasks:
    """Has the tasks that cooperative requests start in one event loop run in the same way.

    On asyncio that is a task factory, on Trio an instrument; both are public interfaces. Tasks of
    everybody else are made as before. Several apps in one loop share it.

    Args:
        backend: Which event loop runs here.
    """

    def __init__(self, backend: str) -> None:
        if backend == "trio":
            from ._tasks_trio import take_over
        else:
            from ._tasks_asyncio import take_over
        self._leave: Callable[[], None] = take_over()

    def close(self) -> None:
        """Leave the event loop as it was, in the loop itself, if no other app needs this."""
        self._leave()
