"""An asyncio event loop that holds one file descriptor until somebody registers another one.

asyncio's own takes three (an epoll and a pair of sockets that wake it), and each of its rounds
asks the system for news. Thousands of loops that mostly wait for another thread need neither.
With the first socket of the app this one becomes what asyncio has.
"""

from __future__ import annotations

import asyncio
import errno
import os
import select
import selectors
from collections.abc import Mapping
from typing import Any

from sandboxpool._exceptions import ThreadLimitError

_LONGEST = 1_000_000.0  # seconds that a wait may last in one go


class _Signal:
    """A flag that one thread waits for and others set: one file descriptor (`eventfd`).

    A lock would do without any. But what waits for a lock is woken on another processor if one is
    idle, where all it can do is wait for the GIL; with an `eventfd` a request took a quarter less.
    """

    def __init__(self) -> None:
        try:
            self._file = os.eventfd(0, os.EFD_CLOEXEC)
        except OSError as error:
            raise no_files(error) from error
        self._closed = False

    def fileno(self) -> int:
        return self._file

    def set(self) -> None:
        if not self._closed:
            os.eventfd_write(self._file, 1)

    def clear(self) -> None:
        os.eventfd_read(self._file)

    def wait(self, timeout: float | None) -> None:
        """Wait until it is set, at most *timeout* seconds, and clear it."""
        if timeout is not None:
            waiting = select.poll()
            waiting.register(self._file, select.POLLIN)
            if not waiting.poll(min(timeout, _LONGEST) * 1000):
                return
        os.eventfd_read(self._file)

    def close(self) -> None:
        self._closed = True
        os.close(self._file)


def no_files(error: OSError) -> Exception:
    """Return what to raise when a file descriptor is not to be had."""
    if error.errno not in (errno.EMFILE, errno.ENFILE):
        return error
    return ThreadLimitError(
        "the event loop of a sandbox gets no further file descriptor: the process has as many "
        "open as it may (`ulimit -n` shows the limit). Raise it, or lower max_size."
    )


class QuietSelector(selectors.BaseSelector):
    """Waits for `wake()` alone, and for files once there are any."""

    def __init__(self) -> None:
        self._files: selectors.BaseSelector | None = None
        self._signal = _Signal()

    def wake(self) -> None:
        """Let `select()` return, now or the next time; for any thread."""
        self._signal.set()

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        """Wait for `wake()`, a registered file, or the end of *timeout* (seconds)."""
        files = self._files
        if files is None:
            # Not even a look when there is no time for one: each call of the system lets other
            # threads run, and a signal that is not taken is still there the next time.
            if timeout is None or timeout > 0:
                self._signal.wait(timeout)
            return []
        ready = files.select(timeout)
        mine = [key for key in ready if key[0].fileobj is self._signal]
        if mine:
            ready.remove(mine[0])
            self._signal.clear()
        return ready

    def _open(self) -> selectors.BaseSelector:
        try:
            files = selectors.DefaultSelector()
        except OSError as error:
            raise no_files(error) from error
        files.register(self._signal, selectors.EVENT_READ)
        self._files = files
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
        self._signal.close()


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
