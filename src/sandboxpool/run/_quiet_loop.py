"""An asyncio event loop that holds no file descriptor until somebody registers one.

asyncio's own takes three (an epoll and a pair of sockets that wake it), and so do thousands of
loops that mostly wait for another thread. This one waits for a lock instead, which is also
faster to wake; with the first socket of the app it becomes what asyncio has.
"""

from __future__ import annotations

import asyncio
import errno
import selectors
import socket
from collections.abc import Mapping
from threading import TIMEOUT_MAX, Lock
from typing import Any

from sandboxpool._exceptions import ThreadLimitError

# What a loop takes with its first registered file: an epoll and a pair of sockets.
FILES_WHEN_USED = 3


class QuietSelector(selectors.BaseSelector):
    """Waits for `wake()` alone, and for files once there are any."""

    def __init__(self) -> None:
        self._files: selectors.BaseSelector | None = None
        self._waker: socket.socket | None = None
        self._wakened: socket.socket | None = None
        # Released by `wake()`, acquired by `select()`.
        self._wakes = Lock()
        self._wakes.acquire()

    def wake(self) -> None:
        """Let `select()` return, now or the next time; for any thread."""
        try:
            self._wakes.release()
        except RuntimeError:
            pass  # it is awake already
        # Looked at only now: `select()` sets it before it looks at the lock for the last time,
        # so one of the two sees the other.
        waker = self._waker
        if waker is not None:
            try:
                waker.send(b"\0")
            except OSError:
                pass  # full of wake-ups, or closed

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait for `wake()`, a registered file, or the end of *timeout* (seconds)."""
        files = self._files
        if files is None:
            if timeout is None:
                self._wakes.acquire()
            else:
                self._wakes.acquire(True, min(timeout, TIMEOUT_MAX)) if timeout > 0 else (
                    self._wakes.acquire(False)
                )
            return []
        if self._wakes.acquire(False):
            timeout = 0
        ready = files.select(timeout)
        mine = [key for key in ready if key[0].fileobj is self._wakened]
        if mine:
            ready.remove(mine[0])
            self._wakes.acquire(False)
            try:
                while self._wakened is not None and len(self._wakened.recv(4096)) == 4096:
                    pass
            except BlockingIOError:
                pass
        return ready

    def _open(self) -> selectors.BaseSelector:
        try:
            files = selectors.DefaultSelector()
            try:
                self._wakened, waker = socket.socketpair()
            except BaseException:
                files.close()
                raise
        except OSError as error:
            if error.errno not in (errno.EMFILE, errno.ENFILE):
                raise
            raise ThreadLimitError(
                "the event loop of a sandbox has no file descriptors left to wait for a socket: "
                f"it needs {FILES_WHEN_USED}, and the process has as many open as it may "
                "(`ulimit -n` shows the limit). Raise it, or lower max_size."
            ) from error
        self._wakened.setblocking(False)
        waker.setblocking(False)
        files.register(self._wakened, selectors.EVENT_READ)
        self._files = files
        self._waker = waker  # last: see `wake()`
        return files

    def register(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """Register a file; the first one takes file descriptors."""
        return (self._files or self._open()).register(fileobj, events, data)

    def unregister(self, fileobj: Any) -> selectors.SelectorKey:
        """Unregister a file."""
        if self._files is None:
            raise KeyError(f"{fileobj!r} is not registered")
        return self._files.unregister(fileobj)

    def modify(self, fileobj: Any, events: int, data: Any = None) -> selectors.SelectorKey:
        """Change what is waited for."""
        if self._files is None:
            raise KeyError(f"{fileobj!r} is not registered")
        return self._files.modify(fileobj, events, data)

    def get_key(self, fileobj: Any) -> selectors.SelectorKey:
        """Return the key of a registered file."""
        if self._files is None:
            raise KeyError(f"{fileobj!r} is not registered")
        return self._files.get_key(fileobj)

    def get_map(self) -> Mapping[Any, selectors.SelectorKey]:
        """Return the keys of all registered files."""
        return {} if self._files is None else self._files.get_map()

    def close(self) -> None:
        """Close what was opened."""
        if self._files is not None:
            self._files.close()
        for end in (self._waker, self._wakened):
            if end is not None:
                end.close()


class QuietLoop(asyncio.SelectorEventLoop):
    """asyncio's loop on a `QuietSelector`.

    The pair of sockets that asyncio wakes its loop with is made and used by three private
    methods, the same in all versions since 3.4; the tests run on each that is supported.
    """

    def __init__(self) -> None:
        self._quiet = QuietSelector()
        super().__init__(self._quiet)

    def _make_self_pipe(self) -> None:
        pass

    def _close_self_pipe(self) -> None:
        pass

    def _write_to_self(self) -> None:
        self._quiet.wake()
