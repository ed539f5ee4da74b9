"""What the pool needs from the running event loop, natively and nothing more.

A wake-up that is set at most once, a background task that belongs to nobody's scope, and a
timer. anyio's own primitives do all of this too; these are the ones on the hot path of a
hand-off, where an `anyio.Event` costs two to three times as much, and the ones that must work
where no task group can be open: in a pool that opened itself on the first request.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Coroutine, Generator
from contextlib import AbstractContextManager
from contextvars import Context
from typing import Any, Protocol


class Wakeup(Protocol):
    """Let one task wait until another one calls `wake()`. Awaited at most once."""

    def wake(self) -> None:
        """Wake the waiting task, or let it not wait at all. Later calls do nothing."""
        ...

    def __await__(self) -> Generator[Any, Any, None]: ...


class Background(Protocol):
    """A task that runs by itself."""

    def cancel(self) -> None:
        """Cancel the task."""
        ...

    async def wait(self) -> None:
        """Wait until the task is over, however it ended; cancelling this leaves it alone."""
        ...


class Timer(Protocol):
    """Call a function once, later. Arming again replaces the earlier time."""

    def arm(self, delay: float) -> None:
        """Call the function in *delay* seconds."""
        ...

    def close(self) -> None:
        """Disarm the timer for good."""
        ...


class Home(Protocol):
    """Tells where a loop runs; asyncio's own loop happens to be one.

    Comparing `threading.get_ident()` with this is exact, and the cheapest check there is:
    `asyncio.get_running_loop()` asks the kernel for the process id on each call before
    Python 3.12, and Trio's token takes as long as half a lease.
    """

    @property
    def _thread_id(self) -> int | None: ...


class Loop(Protocol):
    """The event loop that a pool was opened in."""

    backend: str

    home: Home
    """Its `_thread_id` is that of this thread while this loop runs in it, else another one."""

    def wakeup(self) -> Wakeup:
        """Return a wake-up."""
        ...

    def spawn(
        self, function: Callable[[], Awaitable[None]], name: str, context: Context | None = None
    ) -> Background:
        """Run *function* as a background task.

        It starts in a copy of *context*; by default in the context variables of the moment the
        pool was opened, not in those of the caller, which may be a request. It must not raise.
        """
        ...

    def run_in(
        self, context: Context, function: Callable[[], Coroutine[Any, Any, None]], name: str
    ) -> Background:
        """Run *function* as a task in *context*, or in a copy of it; it must not raise.

        The caller must hold what is returned until the task is over. That makes it cheaper than
        `spawn()`, which it is otherwise like.
        """
        ...

    def timer(self, function: Callable[[], None]) -> Timer:
        """Return a timer that calls *function*, which must neither block nor raise."""
        ...

    def soon(self, function: Callable[[], object]) -> None:
        """Call *function* after the step that runs now; in the loop itself. It must not raise."""
        ...

    def call_from_thread(self, function: Callable[[], object]) -> None:
        """Call *function* in the loop, soon; for other threads. It must not raise."""
        ...

    def runs(self) -> bool:
        """Tell whether the loop is being run, in whichever thread."""
        ...

    def closed(self) -> bool:
        """Tell whether the loop has ended for good."""
        ...

    interruption: Callable[[], Interruption]
    """Returns what can cancel the running task, from here on."""


class Interruption(Protocol):
    """Can cancel what the running task does from here until `ended()`, and nothing after it.

    Attributes:
        scope: Must be entered around it, if it is not `None`: Trio has no other way.
        task: The task, of the backend's own kind.
    """

    scope: AbstractContextManager[Any] | None
    task: Any

    def cancel(self) -> None:
        """Cancel, from any task of the loop. Calling it again repeats it."""
        ...

    def ended(self, error: BaseException | None) -> bool:
        """Take back what `cancel()` has left on the task; call it if `cancel()` was called.

        Args:
            error: What came out of the interrupted code.

        Returns:
            Whether that was the interruption and nothing else, so that *error* is to be dropped.
        """
        ...


def running_backend() -> str | None:
    """Return `"asyncio"` or `"trio"`, whichever runs in this thread, or `None`."""
    if "trio" in sys.modules:
        from ._loop_trio import in_trio_task

        if in_trio_task():
            return "trio"
    if "asyncio" in sys.modules:
        asyncio = sys.modules["asyncio"]
        if asyncio._get_running_loop() is not None:
            return "asyncio"
    return None


def running_loop() -> Loop:
    """Return the loop that runs in this thread.

    Raises:
        RuntimeError: No event loop runs here.
    """
    backend = running_backend()
    if backend == "trio":
        from ._loop_trio import TrioLoop

        return TrioLoop()
    if backend == "asyncio":
        from ._loop_asyncio import AsyncioLoop

        return AsyncioLoop()
    raise RuntimeError(
        "sandboxpool needs a running event loop (asyncio or Trio): call this from an async "
        "function, for example under asyncio.run(), trio.run() or anyio.run()."
    )
