"""The native wake-up, background task and timer of Trio.

Background tasks are Trio's system tasks: they live in no nursery of the user's, outlive the
request that caused them, and are cancelled by Trio when the main task ends. A system task that
raises would end the whole run, so nothing here lets an exception out.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import AbstractContextManager
from contextvars import Context, copy_context
from typing import Any

import trio

from ._loop import Background, Home, Interruption, Timer, Wakeup


def in_trio_task() -> bool:
    """Tell whether this code runs in a Trio task."""
    try:
        trio.lowlevel.current_task()
    except RuntimeError:
        return False
    return True


class TrioLoop:
    """See `Loop`."""

    backend = "trio"

    def __init__(self) -> None:
        self._context = copy_context()
        self.interruption: Callable[[], Interruption] = TrioInterruption
        self._token = trio.lowlevel.current_trio_token()
        self._home = _home_of_this_run()
        self.home: Home = self._home

    def wakeup(self) -> Wakeup:
        return _TrioWakeup()

    def spawn(
        self, function: Callable[[], Awaitable[None]], name: str, context: Context | None = None
    ) -> Background:
        background = _TrioBackground()

        async def run() -> None:
            try:
                with background.scope:
                    await function()
            finally:
                background.over.set()

        context = self._context if context is None else context
        trio.lowlevel.spawn_system_task(run, name=name, context=context.copy())
        return background

    def run_in(
        self, context: Context, function: Callable[[], Coroutine[Any, Any, None]], name: str
    ) -> Background:
        return self.spawn(function, name, context)

    def timer(self, function: Callable[[], None]) -> Timer:
        return _TrioTimer(self, function)

    def soon(self, function: Callable[[], object]) -> None:
        self._token.run_sync_soon(function)

    def call_from_thread(self, function: Callable[[], object]) -> None:
        self._token.run_sync_soon(function)

    def runs(self) -> bool:
        return not self.closed()

    def closed(self) -> bool:
        return self._home._thread_id is None


class TrioInterruption:
    """A cancel scope."""

    __slots__ = ("_cancel_scope", "scope", "task")

    def __init__(self) -> None:
        self.task = trio.lowlevel.current_task()
        self._cancel_scope = trio.CancelScope()
        self.scope: AbstractContextManager[Any] | None = self._cancel_scope

    def cancel(self) -> None:
        self._cancel_scope.cancel()

    def ended(self, error: BaseException | None) -> bool:
        return self._cancel_scope.cancelled_caught


class _TrioHome:
    """The thread of a `trio.run`, until a system task learns that it is ending."""

    __slots__ = ("_thread_id",)

    def __init__(self) -> None:
        self._thread_id: int | None = threading.get_ident()

    async def watch(self) -> None:
        try:
            await trio.sleep_forever()
        finally:
            # Later runs in the same thread must not be taken for this one.
            self._thread_id = None


_home: trio.lowlevel.RunVar[_TrioHome] = trio.lowlevel.RunVar("sandboxpool_home")


def _home_of_this_run() -> _TrioHome:
    try:
        return _home.get()
    except LookupError:
        home = _TrioHome()
        _home.set(home)
        trio.lowlevel.spawn_system_task(
            home.watch, name="sandboxpool watch for the end of the run", context=Context()
        )
        return home


class _TrioWakeup:
    __slots__ = ("_task", "_woken")

    def __init__(self) -> None:
        self._task: trio.lowlevel.Task | None = None
        self._woken = False

    def wake(self) -> None:
        self._woken = True
        task, self._task = self._task, None
        if task is not None:
            trio.lowlevel.reschedule(task)

    def __await__(self) -> Generator[Any, Any, None]:
        if not self._woken:
            self._task = trio.lowlevel.current_task()
            yield from trio.lowlevel.wait_task_rescheduled(  # noqa: ASYNC105
                self._abort
            ).__await__()

    def _abort(self, _raise_cancel: object) -> trio.lowlevel.Abort:
        self._task = None
        return trio.lowlevel.Abort.SUCCEEDED


class _TrioBackground:
    __slots__ = ("over", "scope")

    def __init__(self) -> None:
        self.scope = trio.CancelScope()
        self.over = trio.Event()

    def cancel(self) -> None:
        self.scope.cancel()

    async def wait(self) -> None:
        await self.over.wait()


class _TrioTimer:
    """One sleeping system task, whose deadline is moved."""

    __slots__ = ("_closed", "_function", "_loop", "_scope")

    def __init__(self, loop: TrioLoop, function: Callable[[], None]) -> None:
        self._loop = loop
        self._function = function
        self._scope = trio.CancelScope()
        self._closed = False
        loop.spawn(self._run, "sandboxpool timer")

    def arm(self, delay: float) -> None:
        if self._closed:
            return
        self._scope.deadline = trio.current_time() + max(delay, 0.0)

    def close(self) -> None:
        self._closed = True
        if not self._loop.closed():
            self._scope.cancel()

    async def _run(self) -> None:
        while not self._closed:
            with self._scope:
                await trio.sleep_forever()
            # Only the deadline, or `close()`, ends the sleep. A new scope, armed for never: the
            # function may arm it again.
            self._scope = trio.CancelScope(deadline=math.inf)
            if not self._closed:
                self._function()
