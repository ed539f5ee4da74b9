"""Locks, and what is built on them: conditions, events, semaphores, barriers, queues, futures.

Only what really blocks is replaced: `Lock` and `RLock`, the wait of a `Condition`, the join of a
`Thread` (in `_joins`), the `SimpleQueue` (in `_queues`), and what belongs to a thread with them,
`threading.local` (in `_locals`). The standard library builds all the rest on these, in Python.

Locks that were made before are those of C, and stay so. As long as whoever holds one does not
block meanwhile, they do what they should. What waits for a condition that was made before is
cooperative, since that is a matter of its class.
"""

from __future__ import annotations

import _thread
import sys
import threading
from collections.abc import Callable, Iterator
from functools import wraps
from threading import TIMEOUT_MAX, get_ident
from typing import Any, NoReturn

import anyio
from greenlet import getcurrent

from sandboxpool._context import current
from sandboxpool.run.cooperative import stepper

from . import _joins, _locals, _queues
from ._patch import Patch
from ._waiting import Line, Waiter, made_by_event_loop, running_task

_CLock = _thread.LockType
_CRLock: Any = _thread.RLock
_allocate = _thread.allocate_lock
_acquire = _CRLock.acquire
_release = _CRLock.release
_wait = threading.Condition.wait

# What a request waits for a lock of a thread before it lets others run. Most are held for
# microseconds, and a turn of the event loop takes longer.
_A_MOMENT = 0.0002


class Lock:
    """A `threading.Lock` that requests wait for without blocking their event loop.

    Threads wait for the lock inside of it, as they always did. Requests wait in line, and the
    first one tries again when the lock is released. A thread may be faster than that; requests
    do not overtake each other.
    """

    __slots__ = ("__weakref__", "_holder", "_line", "_lock")

    def __new__(cls) -> Any:
        """Make one, for an event loop one of C."""
        if made_by_event_loop(sys._getframe(1).f_globals.get("__name__")):
            return _allocate()
        return super().__new__(cls)

    def __init__(self) -> None:
        self._lock = _allocate()
        self._line = Line()
        # The thread and the lease of the request that holds it; `None` if that is no request.
        self._holder: tuple[int, Any] | None = None

    def __repr__(self) -> str:
        state = "locked" if self._lock.locked() else "unlocked"
        return f"<{state} threading.Lock of the hook 'locks' at {id(self):#x}>"

    # So that it passes where somebody checks for the type of a lock.
    __class__: Any = property(lambda self: _CLock)

    def __reduce__(self) -> NoReturn:
        raise TypeError("cannot pickle 'threading.Lock' object")

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take the lock; see `threading.Lock`."""
        if timeout != -1 and not (blocking and 0 <= timeout <= TIMEOUT_MAX):
            return self._lock.acquire(blocking, timeout)  # which refuses that
        if not (blocking and self._line) and self._lock.acquire(False):
            self._holder = _request()
            return True
        return bool(blocking) and self._wait(timeout)

    def __enter__(self) -> bool:
        if not self._line and self._lock.acquire(False):
            self._holder = None if getcurrent().parent is None else _request()
            return True
        return self._wait(-1)

    def release(self) -> None:
        """Release the lock, from whichever thread; see `threading.Lock`."""
        self._holder = None
        self._lock.release()
        # Now, not before: who stands in line after this finds the lock free.
        if self._line:
            self._line.wake()

    def __exit__(self, *error: object) -> None:
        self.release()

    def locked(self) -> bool:
        """Tell whether somebody holds it."""
        return self._lock.locked()

    acquire_lock = acquire
    release_lock = release
    locked_lock = locked

    def _wait(self, timeout: float, shield: bool = False) -> bool:
        holder = self._holder
        if stepper() is None:
            if holder is not None and holder[0] == get_ident() and timeout < 0:
                _refuse(self, holder[1])
            return self._lock.acquire(True, timeout)
        moment = _A_MOMENT if timeout < 0 else min(timeout, _A_MOMENT)
        taken = holder is None and not self._line and self._lock.acquire(True, moment)
        if not taken:
            limit = None if timeout < 0 else timeout
            taken = self._line.wait(lambda: self._lock.acquire(False), limit, shield=shield)
        if taken:
            self._holder = _request()
        return taken

    # What `threading.Condition` asks for.

    def _is_owned(self) -> bool:
        return self._lock.locked()

    def _release_save(self) -> None:
        self.release()

    def _acquire_restore(self, _: None) -> None:
        if not self._lock.acquire(False):
            _persist(lambda: self._wait(-1, shield=True))
        else:
            self._holder = _request()

    def _at_fork_reinit(self) -> None:
        self._lock._at_fork_reinit()  # type: ignore[attr-defined]
        self._line.clear()
        self._holder = None


class RLock(_CRLock):  # type: ignore[misc]
    """A `threading.RLock` that belongs to a task where the request of a task takes it.

    For threads it is the lock that it inherits from, which belongs to a thread. All requests of
    an event loop are one thread, so that lets them in, and `_task` tells which of them has come
    first.
    """

    __slots__ = ("_depth", "_lease", "_line", "_task")

    def __new__(cls, *_: object, **__: object) -> Any:
        """Make one, for an event loop one of C."""
        if made_by_event_loop(sys._getframe(1).f_globals.get("__name__")):
            return _CRLock()
        return super().__new__(cls)

    def __init__(self, *_: object, **__: object) -> None:
        self._task: object = None
        self._depth = 0
        self._lease: Any = None
        self._line = Line()

    def acquire(self, blocking: bool = True, timeout: float = -1) -> bool:
        """Take the lock; see `threading.RLock`."""
        if stepper() is not None:
            if timeout != -1 and not (blocking and 0 <= timeout <= TIMEOUT_MAX):
                return bool(_acquire(self, blocking, timeout))  # which refuses that
            return self._acquire_in_request(bool(blocking), timeout)
        if not _acquire(self, blocking, timeout):
            return False
        return self._task is None or self._enter_besides(blocking and timeout < 0)

    def __enter__(self) -> bool:
        if getcurrent().parent is not None:
            return self.acquire()
        _acquire(self)
        return self._task is None or self._enter_besides(True)

    def release(self) -> None:
        """Release the lock; see `threading.RLock`."""
        task = self._task
        if task is None:
            _release(self)
        elif running_task() is task:
            self._depth -= 1
            if not self._depth:
                # First: a thread that gets the lock must find it nobody's.
                self._task = self._lease = None
            _release(self)
        elif stepper() is not None:
            raise RuntimeError("cannot release un-acquired lock")
        else:
            # Code of the event loop that let requests in, or a request whose task is being
            # dropped, for which no task runs any more.
            _release(self)
            if not _CRLock._is_owned(self):
                self._task = self._lease = None
        if self._line:
            self._line.wake()

    def __exit__(self, *error: object) -> None:
        self.release()

    def _enter_besides(self, must: bool) -> bool:
        """Decide about code of this thread that was let in although a request has the lock."""
        if running_task() is self._task:
            self._depth += 1  # it is that request, in code that must not be suspended
            return True
        _release(self)
        if must:
            _refuse(self, self._lease)
        return False  # and waiting for some time would not change that

    def _acquire_in_request(self, blocking: bool, timeout: float, shield: bool = False) -> bool:
        task = running_task() or stepper()
        if self._task is task:
            _acquire(self)
            self._depth += 1
            return True
        taken = not (self._line and blocking) and self._take()
        if not taken and blocking:
            if self._task is None and not self._line:
                moment = _A_MOMENT if timeout < 0 else min(timeout, _A_MOMENT)
                taken = _acquire(self, True, moment)
            if not taken:
                limit = None if timeout < 0 else timeout
                taken = self._line.wait(self._take, limit, shield=shield)
        if taken:
            self._task, self._depth, self._lease = task, 1, current.get()
        return taken

    def _take(self) -> bool:
        # Code of the event loop that holds it lets requests in, as it always did: that is one
        # thread. So does a request that is just taking it, and is interrupted by a signal or by a
        # finalizer on its own stack; it would wait for itself.
        return self._task is None and _acquire(self, False)

    # What `threading.Condition` asks for.

    def _is_owned(self) -> bool:
        task = self._task
        return bool(_CRLock._is_owned(self)) and (task is None or task is running_task())

    def _release_save(self) -> Any:
        depth = self._depth
        if self._task is None:
            state = _CRLock._release_save(self)
            if self._line:
                self._line.wake()
            return state
        for _ in range(depth):
            self.release()
        return depth

    def _acquire_restore(self, state: Any) -> None:
        if not isinstance(state, int):
            _CRLock._acquire_restore(self, state)
            return
        _persist(lambda: self._acquire_in_request(True, -1, shield=True))
        for _ in range(state - 1):
            self.acquire()

    def _at_fork_reinit(self) -> None:
        _CRLock._at_fork_reinit(self)
        self.__init__()  # type: ignore[misc]


def _request() -> tuple[int, Any] | None:
    """Return the thread and the lease of the request that runs here, `None` if none does."""
    return None if stepper() is None else (get_ident(), current.get())


def _refuse(lock: object, lease: object) -> NoReturn:
    raise RuntimeError(
        f"{lock!r} is held by {lease!r}, which is suspended, and this code runs in the same "
        "thread outside of a cooperative request: waiting would stop the event loop, which the "
        "holder needs to go on. Do not block while the lock is held, or take it here with a "
        "timeout, in another thread, or in a cooperative request."
    )


def _persist(take: Callable[[], object]) -> None:
    """Take a lock although the request is being cancelled, and raise what came meanwhile."""
    interruption: BaseException | None = None
    while True:
        try:
            take()
            break
        except GeneratorExit as error:  # the task is being dropped: from here on it blocks
            interruption = error
        except anyio.get_cancelled_exc_class() as error:
            interruption = error
    if interruption is not None:
        try:
            raise interruption
        finally:
            del interruption


@wraps(_wait)
def wait(self: threading.Condition, timeout: float | None = None) -> bool:
    """Wait until notified; a cooperative request lets the others run meanwhile."""
    if stepper() is None:
        return _wait(self, timeout)
    condition: Any = self
    if not condition._is_owned():
        raise RuntimeError("cannot wait on un-acquired lock")
    waiter = Waiter()
    condition._waiters.append(waiter)
    saved = condition._release_save()
    try:
        try:
            if timeout is None or timeout > 0:
                waiter.wait(timeout)
        finally:
            condition._acquire_restore(saved)
    except BaseException:
        if waiter.woken and condition._is_owned():
            # Notified and cancelled at once: another one must act on it, or an item that was put
            # into a queue would stay there, and those who wait for it would wait for ever.
            condition.notify()
        raise
    finally:
        if not waiter.woken:
            try:
                condition._waiters.remove(waiter)
            except ValueError:
                pass
    return waiter.woken


def patches() -> Iterator[Patch]:
    """Yield what is replaced."""
    yield Patch(threading, "Lock", Lock)
    yield Patch(threading, "RLock", RLock)
    yield Patch(threading.Condition, "wait", wait)
    yield from _joins.patches()
    yield from _queues.patches()
    yield from _locals.patches()
