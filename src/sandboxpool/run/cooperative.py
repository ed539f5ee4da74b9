"""Run calls of sandboxes on the server's loop such that code deep below them may block.

Each step of a call, from one suspension of its coroutine to the next, runs in a greenlet: a stack
of its own, which can be left in the middle. Code that would block says what it waits for with
`await_()`. The stack is put aside, the event loop sees the task wait for that as for anything
else, and when it has come the stack is taken up where it was left. The idea is that of greenback
and of SQLAlchemy's asyncio extension; what differs is that a greenlet belongs to a call only
while a step of it runs or blocks. A call that awaits needs none, so that the idle ones, of which
there are thousands, cost what they cost without this.

No event loop is patched: the loop sees ordinary tasks. Those that a request starts are run in the
same way, by `CooperativeTasks`.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Coroutine, Generator
from types import coroutine
from typing import Any, TypeVar

from greenlet import GreenletExit, getcurrent, greenlet

from sandboxpool._context import RequestLease, current

from .loop import Running, steps_of

T = TypeVar("T")

# Stacks that are kept for the next step, in each thread: a new one costs some microseconds, an
# idle one some 17 kB.
_KEPT_AT_MOST = 64


class Stepper(greenlet):
    """A stack on which steps run, one after the other.

    Its parent is whoever resumes it, which may be another stack each time.

    Attributes:
        blocked: The greenlet that waits in the middle of a step: this one, or one that the
            app's own code has made inside of it (SQLAlchemy does). `None` between steps.
    """

    blocked: greenlet | None = None

    def run(self, step: Callable[[Any], Any], value: Any) -> None:
        """Run steps until the stack is dropped."""
        while True:
            try:
                outcome = step(value)
            except GreenletExit:
                return
            except BaseException as error:
                outcome = _Raised(error)
            del step, value
            step, value = self.parent.switch(outcome)


class _Raised:
    """What came out of a step instead of a value to yield."""

    __slots__ = ("error",)

    def __init__(self, error: BaseException) -> None:
        self.error = error


class _Idle(threading.local):
    """The stacks of one thread that have nothing to do."""

    def __init__(self) -> None:
        self.steppers: list[Stepper] = []


_idle = _Idle()
_NOBODY = Running()


def stepper() -> Stepper | None:
    """Return the stack that the running code may leave, `None` where it must not block."""
    here: Any = getcurrent()
    if type(here) is Stepper:
        return here
    while (here := here.parent) is not None:
        if type(here) is Stepper:
            return here
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
        close = getattr(awaitable, "close", None)
        if close is not None:
            close()
        raise RuntimeError(
            "there is no cooperative request here to suspend: await_() works in code that runs "
            "in a sandbox with run_in='cooperative', in the thread of its event loop."
        )
    steps = steps_of(awaitable)
    resume, value = steps.send, None
    while True:
        try:
            yielded = resume(value)
        except StopIteration as end:
            result: T = end.value
            return result
        here.blocked = getcurrent()
        try:
            value = here.parent.switch(yielded)
        except BaseException as error:
            resume, value = steps.throw, error
        else:
            resume = steps.send


@coroutine
def drive(
    running: Running, lease: RequestLease | None, run: Callable[..., Any] | None, steps: Any
) -> Generator[Any, Any, Any]:
    """Run a coroutine step by step, each of them on a stack that it may leave.

    Args:
        running: Where to note whose step runs.
        lease: Whose it is, `None` for nobody's.
        run: `Context.run` of the context to run in; anything else means the running one.
        steps: What is to be run, as `steps_of` made it.

    Returns:
        What it returned in the end.
    """
    context = getattr(run, "__self__", None) or getcurrent().gr_context
    idle = _idle.steppers
    send, throw = steps.send, steps.throw  # each look makes a new method, equal but not the same
    step, value = send, None
    here: Stepper | None = None
    target: greenlet | None = None
    while True:
        outer = running.lease
        running.lease = lease
        try:
            if target is None:
                here = idle.pop() if idle else Stepper()
                here.gr_context = context
                here.parent = getcurrent()
                outcome = here.switch(step, value)
            else:
                assert here is not None
                here.blocked = None
                here.parent = getcurrent()
                # In the middle of a step: what came goes to whoever waits there.
                outcome = target.throw(value) if step is throw else target.switch(value)
        finally:
            running.lease = outer
        target = here.blocked
        if target is None:
            if len(idle) < _KEPT_AT_MOST:
                idle.append(here)
            here = None
            if type(outcome) is _Raised:
                error = outcome.error
                if type(error) is StopIteration:
                    return error.value
                try:
                    raise error
                finally:
                    del error, outcome
        if lease is not None:
            lease.blocked = target
        try:
            value = yield outcome
        except GeneratorExit:
            # The task is being dropped: let the app clean up, on its own stack.
            _drop(here, target, steps, context)
            raise
        except BaseException as error:
            step, value = throw, error
        else:
            step = send


def _drop(here: Stepper | None, target: greenlet | None, steps: Any, context: Any) -> None:
    if here is None or target is None:
        here = target = Stepper()
        here.gr_context = context
        here.parent = getcurrent()
        outcome = here.switch(lambda _: steps.close(), None)
    else:
        here.blocked = None
        here.parent = getcurrent()
        outcome = target.throw(GeneratorExit())
    if here.blocked is not None:
        raise RuntimeError("the request blocks again while its task is being dropped")
    if type(outcome) is _Raised and not isinstance(outcome.error, GeneratorExit | StopIteration):
        raise outcome.error


async def in_steps(steps: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine such that code below it may block; for tasks of a cooperative request."""
    result: T = await drive(_NOBODY, None, None, steps)
    return result


def _named_like(steps: Coroutine[Any, Any, T]) -> Coroutine[Any, Any, T]:
    wrapped: Any = in_steps(steps)
    wrapped.__name__ = getattr(steps, "__name__", wrapped.__name__)
    wrapped.__qualname__ = getattr(steps, "__qualname__", wrapped.__qualname__)
    return wrapped  # type: ignore[no-any-return]


class CooperativeTasks:
    """Has the tasks that cooperative requests start in one event loop run in the same way.

    On asyncio that is a task factory, on Trio an instrument; both are public interfaces. Tasks of
    everybody else are not touched. A task factory that was there before goes on to make all tasks.
    """

    def __init__(self, backend: str) -> None:
        self._make: Callable[..., Any] | None = None
        if backend == "trio":
            import trio

            trio.lowlevel.add_instrument(self)  # type: ignore[arg-type]
            self._undo: Callable[[], None] = lambda: trio.lowlevel.remove_instrument(
                self  # type: ignore[arg-type]
            )
        else:
            import asyncio

            loop = asyncio.get_running_loop()
            self._make = loop.get_task_factory()
            self._new = asyncio.Task
            loop.set_task_factory(self._new_task)
            self._undo = lambda: self._restore(loop)

    def close(self) -> None:
        """Leave the event loop as it was, in the loop itself."""
        self._undo()

    def _restore(self, loop: Any) -> None:
        # Somebody who has set another factory since then may call this one: it stays as it is.
        if loop.get_task_factory() == self._new_task:
            loop.set_task_factory(self._make)

    def _new_task(self, loop: Any, steps: Any, **options: Any) -> Any:
        context = options.get("context")
        lease = current.get() if context is None else context.get(current)
        if lease is not None and stepper() is not None:
            steps = _named_like(steps)
        if self._make is None:
            return self._new(steps, loop=loop, **options)
        return self._make(loop, steps, **options)

    def task_spawned(self, task: Any) -> None:
        """Take over a new task of Trio."""
        if task.context.get(current) is not None and stepper() is not None:
            task.coro = _named_like(task.coro)
