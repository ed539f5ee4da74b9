"""Requests that wait for each other and for threads.

A request that waits is woken by whoever has something for it: another request, code of the event
loop, or a thread. Nobody hands anything over: the woken one tries again. So nothing is ever in
the hands of a request that does not run, was cancelled, or whose event loop has ended.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from contextvars import Context
from threading import get_ident
from time import monotonic
from typing import Any, TypeVar

import anyio
from greenlet import getcurrent, greenlet

from sandboxpool._loop import Loop, Wakeup, running_loop
from sandboxpool.run.cooperative import await_, stepper

T = TypeVar("T")

_EVENT_LOOPS = frozenset({"anyio", "asyncio", "greenlet", "sniffio", "trio", "uvloop"})


class Waiter:
    """A request that can be woken from any thread; made by the request itself.

    Attributes:
        woken: Whether somebody has, since it was last armed.
    """

    __slots__ = ("_loop", "_wakeup", "woken")

    def __init__(self) -> None:
        self._loop = loop = _loop_here()
        self._wakeup: Wakeup = loop.wakeup()
        self.woken = False

    def arm(self) -> None:
        """Make ready to wait another time."""
        # In this order: who comes in between takes it for woken still, and the request tries
        # again anyway before it waits.
        self._wakeup = self._loop.wakeup()
        self.woken = False

    def wake(self) -> None:
        """Let the request go on; does nothing if it has been told so already."""
        if self.woken:
            return
        self.woken = True
        wake = self._wakeup.wake
        if self._loop.home._thread_id == get_ident() and stepper() is not None:
            wake()
            return
        # Also for code of the same thread that is no request's: it may be a signal handler, or a
        # finalizer that runs in the middle of the event loop's own work.
        try:
            self._loop.call_from_thread(wake)
        except RuntimeError:
            pass  # the loop has ended, and the request with it

    release = wake
    """What `threading.Condition` calls to wake somebody."""

    def wait(self, timeout: float | None = None, *, shield: bool = False) -> None:
        """Suspend the request until it is woken.

        Args:
            timeout: For how many seconds at most, `None` for ever.
            shield: Whether cancel scopes are kept out.
        """
        if timeout is None and not shield:
            await_(self._wakeup)
        else:
            await_(_wait(self._wakeup, timeout, shield))


async def _wait(wakeup: Wakeup, timeout: float | None, shield: bool) -> None:
    with anyio.move_on_after(timeout, shield=shield):
        await wakeup


class Line(list[Waiter]):
    """Requests that wait for something to become free, the oldest first."""

    __slots__ = ()

    def wait(
        self, take: Callable[[], bool], timeout: float | None = None, *, shield: bool = False
    ) -> bool:
        """Suspend the request until it is the first in the line and *take* succeeds.

        Args:
            take: Takes what is waited for, if it is free. Must not block.
            timeout: For how many seconds at most, `None` for ever.
            shield: Whether cancel scopes are kept out.

        Returns:
            Whether it was taken; `False` if the time is up.
        """
        end = None if timeout is None else monotonic() + timeout
        waiter = Waiter()
        self.append(waiter)
        taken = False
        try:
            while True:
                # It stands in line already. Whoever frees the thing after this look finds it
                # there, whoever did before has made the look succeed.
                if self[0] is waiter and take():
                    taken = True
                    return True
                left = None if end is None else end - monotonic()
                if left is not None and left <= 0:
                    return False
                waiter.wait(left, shield=shield)
                waiter.arm()
        finally:
            self.remove(waiter)
            if not taken:
                # It may have been woken for something that the next one can have.
                self.wake()

    def wake(self) -> None:
        """Let the first one try again; from any thread."""
        try:
            first = self[0]
        except IndexError:
            return  # it has gone in this moment, and has looked after the next one itself
        first.wake()


class _Here(threading.local):
    """What was used last in this thread."""

    loop: Loop | None = None


_here = _Here()


def _loop_here() -> Loop:
    """Return the event loop of this thread."""
    loop = _here.loop
    if loop is None or loop.home._thread_id != get_ident():
        # In a context of its own: it would keep that of the request that is the first.
        loop = _here.loop = Context().run(running_loop)
    return loop


def made_by_event_loop(module: str | None) -> bool:
    """Tell whether a module belongs to what runs event loops; that gets locks and locals of C.

    It keeps in these what it knows of a thread, and would not stand a suspension in the middle of
    its own work. (Trio refuses to run with other locks.)
    """
    return module is not None and module.partition(".")[0] in _EVENT_LOOPS


def running_task() -> object:
    """Return the task that runs in this thread, `None` if there is none."""
    asyncio: Any = sys.modules.get("asyncio")
    loop = asyncio and asyncio._get_running_loop()
    task: object = None if loop is None else asyncio.current_task(loop)
    if task is None and "trio" in sys.modules:
        try:
            task = sys.modules["trio"].lowlevel.current_task()
        except RuntimeError:
            pass
    return task


def blocking(function: Callable[..., T], *args: Any) -> T:
    """Call a function of which no blocking call suspends the request: it really blocks.

    For what takes a moment only, but must not be interrupted by other requests.
    """
    here = getcurrent()
    top = here
    while top.parent is not None:
        top = top.parent

    def call() -> T:
        try:
            return function(*args)
        finally:
            # Where it ends, with its result or its exception.
            getcurrent().parent = here

    # Not below the stack of the request, so that the hooks do not find that.
    away = greenlet(call, top)
    away.gr_context = here.gr_context
    result: T = away.switch()
    return result
