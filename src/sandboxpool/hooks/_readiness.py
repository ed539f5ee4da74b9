"""Wait for file descriptors in code that blocks, without blocking its event loop.

Each event loop gets one `Readiness`, which has a poller of its own. The loop itself sees one more
file descriptor, that of the poller, however many requests wait. `anyio.wait_readable()` would be
less code, but it refuses a second waiter of the same descriptor, replaces a reader that the app
has given to the loop, cannot wait for several descriptors at once, is refused the descriptors of
transports by uvloop, and costs three to five times as much on asyncio.
"""

from __future__ import annotations

import errno
import threading
import weakref
from collections.abc import Mapping
from contextvars import Context
from threading import get_ident

import anyio
import anyio.lowlevel

from sandboxpool._loop import Loop, Wakeup, running_loop
from sandboxpool.run.cooperative import await_

from ._poller import BROKEN, READABLE, WRITABLE, poller

# So many calls in a row may find at once what they want before another request gets its turn.
_UNWAITED_AT_MOST = 64


def wait(masks: Mapping[int, int], timeout: float | None) -> bool:
    """Suspend the request until something happens to one of several file descriptors.

    That is a hint, as ever: who waits looks again, and waits again if it must.

    Args:
        masks: The events to wait for, by file descriptor. Errors always count.
        timeout: For how many seconds at most, `None` for ever.

    Returns:
        Whether something may have happened; `False` if the time is up.
    """
    here = _here.readiness
    if here is None or here.loop.home._thread_id != get_ident():
        # In a context of its own: it would keep that of the request that is the first.
        here = _here.readiness = Context().run(lambda: Readiness(running_loop()))
    _here.unwaited = 0
    return here.wait(masks, timeout)


def let_others_run() -> None:
    """Suspend the request for an instant, if many calls in a row had nothing to wait for.

    The other side may be faster than this one, for gigabytes. Called before a call rather than
    after it, so that a cancellation loses nothing.
    """
    _here.unwaited += 1
    if _here.unwaited >= _UNWAITED_AT_MOST:
        _here.unwaited = 0
        await_(anyio.lowlevel.checkpoint())


def closing(fd: int) -> None:
    """Wake everybody who waits for a file descriptor, in all loops, before it is closed.

    They try again what they waited for, and get the error of a closed file. Otherwise they would
    wait for ever, or for whoever is given the same number next.
    """
    for reference in _all:
        here = reference()
        if here is not None and fd in here.waits:
            here.closing(fd)


class Readiness:
    """Waits for file descriptors in one event loop, the running one.

    Attributes:
        loop: The event loop.
        waits: Who waits, by file descriptor.
    """

    def __init__(self, loop: Loop) -> None:
        global _all
        self.loop = loop
        self.waits: dict[int, list[_Wait]] = {}
        self._poller = poller()
        if loop.backend == "asyncio":
            import asyncio

            asyncio.get_running_loop().add_reader(self._poller.fileno(), self._look)
        else:
            # A context of its own: it is no task of the request that happens to be the first.
            loop.spawn(self._watch, "sandboxpool file descriptors", Context())
        with _adding:
            _all = (*(known for known in _all if known() is not None), weakref.ref(self))

    def wait(self, masks: Mapping[int, int], timeout: float | None) -> bool:
        """Wait as `wait()` does, in this loop."""
        waiting = _Wait(masks, self.loop.wakeup())
        try:
            for fd, mask in masks.items():
                self.waits.setdefault(fd, []).append(waiting)
                try:
                    self._arm(fd)
                except PermissionError:
                    # A regular file, which is always ready, but never has urgent data.
                    if mask & (READABLE | WRITABLE):
                        return True
                except OSError as error:
                    if error.errno != errno.EBADF:
                        raise
                    return True  # closed already: trying again tells
            if timeout is None:
                await_(waiting.wakeup)
                return True
            return await_(_in_time(waiting.wakeup, timeout))
        finally:
            self._forget(waiting)

    def closing(self, fd: int) -> None:
        """Wake who waits for *fd*; from any thread."""
        # Now, while the number still means this file: an epoll goes on to report a file that is
        # open elsewhere, too, and could not be told to stop.
        self._poller.disarm(fd)
        for waiting in tuple(self.waits.get(fd, ())):
            if self.loop.home._thread_id == get_ident():
                waiting.wakeup.wake()
                continue
            try:
                self.loop.call_from_thread(waiting.wakeup.wake)
            except RuntimeError:
                pass  # the loop has ended, nobody waits in it any more

    def _arm(self, fd: int) -> None:
        mask = 0
        for waiting in self.waits[fd]:
            mask |= waiting.masks[fd]
        self._poller.arm(fd, mask)

    def _forget(self, waiting: _Wait) -> None:
        for fd in waiting.masks:
            others = self.waits.get(fd)
            if others is not None and waiting in others:
                others.remove(waiting)
                if not others:
                    del self.waits[fd]

    def _look(self) -> None:
        for fd, events in self._poller.ready():
            for waiting in tuple(self.waits.get(fd, ())):
                if events & (waiting.masks[fd] | BROKEN):
                    # At once: until it runs, further events must not wake it again and again.
                    self._forget(waiting)
                    waiting.wakeup.wake()
            if fd in self.waits:
                # One waits to read and another one to write: it was reported for one of them.
                try:
                    self._arm(fd)
                except OSError:  # closed by its number, behind our back
                    for waiting in tuple(self.waits[fd]):
                        waiting.wakeup.wake()

    async def _watch(self) -> None:
        while True:
            await anyio.wait_readable(self._poller.fileno())
            self._look()


class _Wait:
    """Somebody who waits."""

    __slots__ = ("masks", "wakeup")

    def __init__(self, masks: Mapping[int, int], wakeup: Wakeup) -> None:
        self.masks = masks
        self.wakeup = wakeup


async def _in_time(wakeup: Wakeup, timeout: float) -> bool:
    with anyio.move_on_after(timeout):
        await wakeup
        return True
    return False


class _Here(threading.local):
    """What was used last in this thread."""

    readiness: Readiness | None = None
    unwaited: int = 0


_here = _Here()
_all: tuple[weakref.ref[Readiness], ...] = ()
_adding = threading.Lock()
