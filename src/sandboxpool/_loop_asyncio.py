"""The native wake-up, background task and timer of asyncio."""

from __future__ import annotations

import asyncio
import sys
from asyncio import _get_running_loop, current_task
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import AbstractContextManager
from contextvars import Context, copy_context
from functools import partial
from threading import get_ident
from typing import Any, cast

from ._loop import Background, Home, Interruption, Timer, Wakeup

_COUNTS_CANCELS = _TAKES_CONTEXT = sys.version_info >= (3, 11)


class AsyncioLoop:
    """See `Loop`."""

    backend = "asyncio"

    def __init__(self) -> None:
        self._loop = self.native = asyncio.get_running_loop()
        self._context = copy_context()
        self.interruption: Callable[[], Interruption] = partial(AsyncioInterruption, self._loop)
        self._tasks: set[asyncio.Task[None]] = set()
        # asyncio's loops set and clear this attribute around each run; others (uvloop) do not
        # show it.
        self.home: Home = (
            cast("Home", self._loop)
            if getattr(self._loop, "_thread_id", None) == get_ident()
            else _AsyncioHome(self._loop)
        )

    def wakeup(self) -> Wakeup:
        return _AsyncioWakeup(self._loop)

    def spawn(
        self, function: Callable[[], Awaitable[None]], name: str, context: Context | None = None
    ) -> Background:
        async def run() -> None:
            await function()

        # A copy: the context itself may be the one that is running right now. (`create_task`
        # takes a context only since Python 3.11, and then does the same.)
        context = (self._context if context is None else context).copy()
        task = context.run(lambda: self._loop.create_task(run(), name=name))
        # asyncio itself holds its tasks weakly: one that waits for what nothing else holds would
        # be collected half-way.
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return _AsyncioBackground(task)

    def run_in(
        self, context: Context, function: Callable[[], Coroutine[Any, Any, None]], name: str
    ) -> Background:
        if _TAKES_CONTEXT:
            task = self._loop.create_task(function(), context=context)
        else:
            task = context.run(self._loop.create_task, function())
        return _AsyncioBackground(task)

    def timer(self, function: Callable[[], None]) -> Timer:
        return _AsyncioTimer(self._loop, function, self._context)

    def soon(self, function: Callable[[], object]) -> None:
        self._loop.call_soon(function)

    def call_from_thread(self, function: Callable[[], object]) -> None:
        self._loop.call_soon_threadsafe(function, context=self._context.copy())

    def runs(self) -> bool:
        return self._loop.is_running()

    def closed(self) -> bool:
        return self._loop.is_closed()


class AsyncioInterruption:
    """Cancels by `Task.cancel()`, as `asyncio.timeout()` does.

    The counting of `Task.uncancel()` tells, since Python 3.11, whether somebody else cancelled
    the task as well; on 3.10 a second cancellation in the same instant is taken for ours.
    """

    __slots__ = ("_before", "_requested", "task")

    scope: AbstractContextManager[Any] | None = None

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        # With the loop given, it does not ask the kernel for the process id.
        self.task = task = current_task(loop)
        self._requested = 0
        # Now, not when `cancel()` comes: by then others may have cancelled the task as well.
        self._before = task.cancelling() if _COUNTS_CANCELS and task is not None else 0

    def cancel(self) -> None:
        task = self.task
        assert task is not None
        self._requested += 1
        task.cancel()

    def ended(self, error: BaseException | None) -> bool:
        task = self.task
        assert task is not None
        others = False
        if _COUNTS_CANCELS:
            # Each of ours is taken back, also if the app swallowed it, or it would count as a
            # pending cancellation of whatever the task does next.
            for _ in range(self._requested):
                others = task.uncancel() > self._before
        return isinstance(error, asyncio.CancelledError) and not others


class _AsyncioHome:
    __slots__ = ("_loop",)

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop

    @property
    def _thread_id(self) -> int | None:
        return get_ident() if _get_running_loop() is self._loop else None


class _AsyncioWakeup:
    __slots__ = ("_future",)

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._future: asyncio.Future[None] = loop.create_future()

    def wake(self) -> None:
        # A waiter that was cancelled in this very tick has a future that is done already.
        if not self._future.done():
            self._future.set_result(None)

    def __await__(self) -> Generator[Any, Any, None]:
        return self._future.__await__()


class _AsyncioBackground:
    __slots__ = ("_task",)

    def __init__(self, task: asyncio.Task[None]) -> None:
        self._task = task

    def cancel(self) -> None:
        self._task.cancel()

    async def wait(self) -> None:
        await asyncio.wait((self._task,))


class _AsyncioTimer:
    __slots__ = ("_context", "_function", "_handle", "_loop")

    def __init__(
        self, loop: asyncio.AbstractEventLoop, function: Callable[[], None], context: Any
    ) -> None:
        self._loop = loop
        self._function = function
        self._context = context
        self._handle: asyncio.TimerHandle | None = None

    def arm(self, delay: float) -> None:
        if self._handle is not None:
            self._handle.cancel()
        self._handle = self._loop.call_later(
            max(delay, 0.0), self._function, context=self._context.copy()
        )

    def close(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None
