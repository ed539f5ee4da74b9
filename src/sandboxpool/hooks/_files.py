"""Files on disks: a cooperative request has a worker thread open, read and write them.

The kernel cannot tell when a disk is ready, so there is no other way. It costs some 100 µs each
time that the buffer of a file is filled or emptied, which is why this is installed on request: it
pays where files are on a network, or a disk is slow.

A file that a request has opened is that request's. Others may use it as well, and block in it as
they did before, but not while the request itself is in the middle of reading or writing: then the
buffer refuses them.
"""

from __future__ import annotations

import builtins
import io
import os
import pathlib
import sys
from collections.abc import Callable, Iterator
from functools import wraps
from types import FrameType
from typing import Any

from sandboxpool._context import current
from sandboxpool.run.cooperative import await_, stepper

from ._patch import Patch
from ._worker_threads import run_sync

_open: Callable[..., Any] = builtins.open
_fsync = os.fsync

# Each crossing to a thread takes as long as copying this from the cache of the kernel.
_BUFFER_SIZE = 128 * 1024


class ThreadedFile(io.RawIOBase):
    """An open file without a buffer, which is read and written in a thread.

    Args:
        raw: The file itself.
        lease: Of the request that has opened it.
    """

    def __init__(self, raw: io.FileIO, lease: object) -> None:
        self._raw = raw
        self._lease = lease
        self.mode = raw.mode
        self.name = raw.name
        # These do not wait for the disk.
        for name in ("fileno", "isatty", "readable", "seek", "seekable", "tell", "writable"):
            setattr(self, name, getattr(raw, name))

    def readinto(self, buffer: Any) -> int | None:
        """Read into *buffer*."""
        # Not in the thread: if the request is cancelled the thread goes on, and *buffer* may be
        # memory of a buffer that is gone by then. The same goes for `write()`.
        data = self._in_thread(self._raw.read, len(buffer))
        buffer[: len(data)] = data
        return len(data)

    def readall(self) -> bytes:
        """Read the rest."""
        return self._in_thread(self._raw.readall)  # type: ignore[no-any-return]

    def write(self, data: Any) -> int | None:
        """Write *data*, or a part of it."""
        return self._in_thread(self._raw.write, bytes(data))  # type: ignore[no-any-return]

    def truncate(self, size: int | None = None) -> int:
        """Cut the file off."""
        return self._in_thread(self._raw.truncate, size)  # type: ignore[no-any-return]

    def close(self) -> None:
        """Close the file."""
        if not self.closed:
            super().close()
            self._in_thread(self._raw.close)

    def __del__(self) -> None:
        pass  # the file itself is closed when it goes, and warns

    def _dealloc_warn(self, source: object) -> None:
        self._raw._dealloc_warn(source)  # type: ignore[attr-defined] # a buffer asks for it

    def _in_thread(self, function: Callable[..., Any], *args: Any) -> Any:
        # A file that others use as well, such as one that is opened once and kept, has one buffer
        # for all of them. That stands no second one while the first one waits for a thread.
        if stepper() is None or current.get() is not self._lease:
            return function(*args)
        return await_(run_sync(function, *args))


@wraps(_open)
def open(
    file: Any,
    mode: str = "r",
    buffering: int = -1,
    encoding: str | None = None,
    errors: str | None = None,
    newline: str | None = None,
    closefd: bool = True,
    opener: Any = None,
) -> Any:
    """Open a file; a cooperative request lets others run while it is opened, read and written."""
    arguments = (file, mode, buffering, encoding, errors, newline, closefd, opener)
    if stepper() is None or isinstance(file, int) or _is_logging(sys._getframe(1)):
        return _open(*arguments)
    # The original checks the arguments and chooses the classes. All that is replaced is the file
    # at the bottom.
    opened = await_(run_sync(_open, *arguments))
    if isinstance(opened, io.FileIO):
        return ThreadedFile(opened, current.get())
    if not isinstance(opened, io.TextIOWrapper):
        return _rebuilt(opened, buffering)
    options = opened.encoding, opened.errors, newline, opened.line_buffering
    text = io.TextIOWrapper(_rebuilt(opened.detach(), buffering), *options)
    text.mode = mode  # type: ignore[misc]
    return text


def _rebuilt(buffer: Any, size: int) -> Any:
    raw = ThreadedFile(buffer.detach(), current.get())
    return type(buffer)(raw, size if size > 1 else _BUFFER_SIZE)


def _is_logging(frame: FrameType) -> bool:
    # A file that is opened again in the middle of a request, to rotate it, is everybody's.
    return str(frame.f_globals.get("__name__")).partition(".")[0] == "logging"


@wraps(_fsync)
def fsync(fd: Any) -> None:
    """Have a file written to its disk; a cooperative request lets others run meanwhile."""
    if stepper() is None:
        _fsync(fd)
    else:
        await_(run_sync(_fsync, fd))


def patches() -> Iterator[Patch]:
    """Yield what is replaced."""
    yield Patch(builtins, "open", open)
    yield Patch(io, "open", open)
    yield Patch(os, "fsync", fsync)
    accessor = getattr(pathlib, "_NormalAccessor", None)  # until Python 3.10
    if accessor is not None:
        yield Patch(accessor, "open", staticmethod(open))
