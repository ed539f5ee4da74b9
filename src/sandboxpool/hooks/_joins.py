"""`threading.Thread.join()`, and its `start()`, which must not let other requests run."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import wraps
from time import monotonic
from typing import Any

import anyio

from sandboxpool.run.cooperative import await_, stepper

from ._patch import Patch
from ._waiting import Waiter, blocking

_Thread: Any = threading.Thread
_start = _Thread.start
_join = _Thread.join
_bootstrap_inner = _Thread._bootstrap_inner

# What a thread takes for its end after it has told of it.
_LAST_MOMENT = 0.001
# How often one is looked at that does not tell: it was started before this hook was installed.
_FIRST_LOOK = 0.001
_LAST_LOOK = 0.05

# Who waits for each running thread, by its id.
_joining: dict[int, list[Waiter]] = {}


@wraps(_start)
def start(self: threading.Thread) -> None:
    """Start the thread."""
    if stepper() is None:
        _start(self)
        return
    # This waits for the thread to be there, which takes microseconds. Those who call it hold
    # locks that the event loop itself may want meanwhile: that of a pool of threads, those that
    # were made before the hook was installed.
    blocking(_start, self)


@wraps(_bootstrap_inner)
def run_and_tell(self: threading.Thread) -> None:
    """Run the thread, and wake who waits for its end."""
    _joining[id(self)] = []
    try:
        _bootstrap_inner(self)
    finally:
        # Taken out first: who comes now finds that it has ended.
        for waiter in tuple(_joining.pop(id(self))):
            waiter.wake()


@wraps(_join)
def join(self: threading.Thread, timeout: float | None = None) -> None:
    """Wait for the end of the thread; a cooperative request lets the others run meanwhile."""
    if stepper() is None or self is threading.current_thread() or not self.is_alive():
        return _join(self, timeout)  # type: ignore[no-any-return]
    if timeout is not None and timeout <= 0:
        return _join(self, 0)  # type: ignore[no-any-return]
    end = None if timeout is None else monotonic() + timeout
    waiters = _joining.get(id(self))
    if waiters is not None:
        waiter = Waiter()
        waiters.append(waiter)
        try:
            # It is among them already: a thread that ends after this look wakes it.
            if id(self) in _joining:
                waiter.wait(timeout)
                if not waiter.woken:
                    return None
        finally:
            waiters.remove(waiter)
        _join(self, _LAST_MOMENT)
    pause = _FIRST_LOOK
    while self.is_alive():
        left = pause if end is None else end - monotonic()
        if left <= 0:
            return None
        await_(anyio.sleep(min(pause, left)))
        pause = min(2 * pause, _LAST_LOOK)
    return None


def patches() -> Iterator[Patch]:
    """Yield what is replaced."""
    yield Patch(threading.Thread, "start", start)
    yield Patch(threading.Thread, "_bootstrap_inner", run_and_tell)
    yield Patch(threading.Thread, "join", join)
