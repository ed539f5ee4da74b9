"""Processes: waiting for their end, and for their pipes.

To start one stays as it is. That waits until the new process runs its program, which takes about
a millisecond.
"""

from __future__ import annotations

import io
import os
import select
import selectors
import subprocess
from collections.abc import Callable, Iterator
from functools import wraps
from math import inf
from time import monotonic
from types import ModuleType
from typing import Any, TypeVar

import anyio
import anyio.lowlevel

from sandboxpool.run.cooperative import await_, stepper

from ._patch import Patch
from ._poller import READABLE, WRITABLE, ready_now
from ._readiness import closing, wait

T = TypeVar("T")

_Popen: Any = subprocess.Popen
_exit = _Popen.__exit__
_originals: Any = {name: getattr(os, name, None) for name in ("waitpid", "wait", "wait3", "wait4")}
_waitid: Any = getattr(os, "waitid", None)
_system = os.system
_pidfd_open: Any = getattr(os, "pidfd_open", None)

# How often to look where nothing tells of the end of a process.
_FIRST_LOOK = 0.0005
_LAST_LOOK = 0.05

# For how long a request that was cancelled may wait for a process, which it has most likely killed.
_GRACE = 0.5

_CHUNK = 64 * 1024
# What can be written to a pipe that is ready without waiting.
_PIPE_BUF: int = getattr(select, "PIPE_BUF", 512)


# --- the end of a process -----------------------------------------------------------------------


def _look_until(look: Callable[[], T | None], timeout: float | None = None) -> T | None:
    """Look again and again until something is found or the time is up."""
    end = None if timeout is None else monotonic() + timeout
    pause = _FIRST_LOOK
    while (found := look()) is None:
        left = inf if end is None else end - monotonic()
        if left <= 0:
            return None
        await_(anyio.sleep(min(pause, left)))
        pause = min(2 * pause, _LAST_LOOK)
    return found


def _ended(pid: int, timeout: float | None) -> bool | None:
    """Wait until a child has ended, and leave it to be collected.

    Returns:
        Whether it has; `None` if the platform cannot tell, for which there was no wait.
    """
    try:
        fd = _pidfd_open(pid)
    except ProcessLookupError:
        return True  # somebody has collected it
    except (TypeError, OSError):  # there is no such function, or the kernel has it not
        return None
    end = None if timeout is None else monotonic() + timeout
    try:
        while not ready_now(fd, READABLE):
            left = None if end is None else end - monotonic()
            if left is not None and left <= 0:
                return False
            wait({fd: READABLE}, left)
        return True
    finally:
        closing(fd)
        os.close(fd)


def _wait_for_child(self: Any, timeout: float | None) -> int:
    """Wait for the process as `Popen.wait()` does."""
    in_vain = timeout is not None and timeout <= 0
    if stepper() is None or self.returncode is not None or in_vain:
        return _wait(self, timeout)  # type: ignore[no-any-return]
    if anyio.current_effective_deadline() == -inf:
        # The request was cancelled, and wants to collect it.
        with anyio.CancelScope(shield=True):  # noqa: ASYNC100 (it suspends)
            _see_it_end(self, _GRACE if timeout is None else min(timeout, _GRACE))
        if self.poll() is None and (timeout is None or timeout > _GRACE):
            await_(anyio.lowlevel.checkpoint())
    else:
        _see_it_end(self, timeout)
    # At once by now, if it does not refuse because the time is up.
    return _wait(self, timeout if timeout is None else 0)  # type: ignore[no-any-return]


def _see_it_end(process: Any, timeout: float | None) -> None:
    if _ended(process.pid, timeout) is None:
        _look_until(process.poll, timeout)


def _leave(self: Any, kind: Any, error: Any, traceback: Any) -> None:
    """Leave the `with` statement of a `Popen`."""
    if stepper() is None or kind is None or not issubclass(kind, anyio.get_cancelled_exc_class()):
        _exit(self, kind, error, traceback)
        return
    # What was not written yet would have to wait until the process reads it.
    if self.stdin is not None:
        buffer = getattr(self.stdin, "buffer", self.stdin)
        getattr(buffer, "raw", buffer).close()
    # As the original does it when the user interrupts: that does not wait for long.
    self._sigint_wait_secs = _GRACE
    with anyio.CancelScope(shield=True):  # noqa: ASYNC100 (it suspends)
        _exit(self, KeyboardInterrupt, error, traceback)


def _waits(name: str) -> Callable[..., Any]:
    """Return the cooperative form of a function of `os` that waits for children."""
    original = _originals[name]
    # The number of its options among its arguments.
    position = {"wait": None, "wait3": 0}.get(name, 1)

    @wraps(original)
    def wait_for_children(*args: int, **options: int) -> Any:
        if stepper() is None or options:
            return original(*args, **options)
        if position is None:
            return _look_until(lambda: _found(_originals["waitpid"](-1, os.WNOHANG)))
        if len(args) != position + 1 or args[position] & os.WNOHANG:
            return original(*args)
        if position == 1 and args[0] > 0 and not args[1] and _ended(args[0], None):
            return original(*args)
        now = (*args[:position], args[position] | os.WNOHANG)
        return _look_until(lambda: _found(original(*now)))

    return wait_for_children


def _found(result: Any) -> Any:
    return result if result[0] else None


@wraps(_waitid)
def waitid(idtype: int, id: int, options: int, /) -> Any:
    """Wait for a child; a cooperative request lets the others run meanwhile."""
    if stepper() is None or options & os.WNOHANG:
        return _waitid(idtype, id, options)
    return _look_until(lambda: _waitid(idtype, id, options | os.WNOHANG))


@wraps(_system)
def system(command: Any) -> int:
    """Run a command in a shell; a cooperative request lets the others run meanwhile."""
    if stepper() is None:
        return _system(command)
    code = subprocess.call(command, shell=True, close_fds=False)
    return -code if code < 0 else code << 8


# --- its pipes ----------------------------------------------------------------------------------


class Pipe(io.FileIO):
    """Our end of a pipe to or from a process."""

    def readinto(self, buffer: Any) -> int:
        """Read what is there, at least something."""
        if self._suspends():
            self._wait(READABLE)
        return super().readinto(buffer)

    def read(self, size: int | None = -1) -> bytes:
        """Read what is there, at least something; without a size, all until the end."""
        if size is None or size < 0:
            return self.readall()
        if self._suspends():
            self._wait(READABLE)
        return super().read(size)

    def readall(self) -> bytes:
        """Read all until the end."""
        if not self._suspends():
            return super().readall()
        chunks = []
        while chunk := self.read(_CHUNK):
            chunks.append(chunk)
        return b"".join(chunks)

    def write(self, data: Any) -> int:
        """Write all."""
        if not self._suspends():
            return super().write(data)
        rest = memoryview(data).cast("B")
        size = len(rest)
        while rest:
            self._wait(WRITABLE)
            rest = rest[super().write(rest[:_PIPE_BUF]) :]
        return size

    def close(self) -> None:
        """Close it; whoever waits for it gets an error."""
        if not self.closed:
            closing(self.fileno())
        super().close()

    def _suspends(self) -> bool:
        # One that was told not to block is left to whoever did that, such as an event loop.
        return stepper() is not None and os.get_blocking(self.fileno())

    def _wait(self, mask: int) -> None:
        while not ready_now(self.fileno(), mask):
            wait({self.fileno(): mask}, None)


def open_pipe(fd: int, mode: str, buffering: int = -1) -> Any:
    """Open an end of a pipe as `io.open()` does for `Popen`."""
    raw = Pipe(fd, mode)
    if buffering == 0:
        return raw
    size = io.DEFAULT_BUFFER_SIZE if buffering < 2 else buffering
    return io.BufferedReader(raw, size) if mode == "rb" else io.BufferedWriter(raw, size)


# What `subprocess` takes for the module `io`.
_io = ModuleType("io")
_io.__dict__.update(vars(io), open=open_pipe)


class PipeSelector(getattr(selectors, "PollSelector", selectors.SelectSelector)):  # type: ignore[misc]
    """Waits for the pipes of a process, in `Popen.communicate()`."""

    def select(self, timeout: float | None = None) -> Any:
        """Return the files that are ready; may return none before the time is up."""
        if stepper() is None or (timeout is not None and timeout <= 0):
            return super().select(timeout)
        ready = super().select(0)
        if not ready:
            masks = {
                key.fd: READABLE if key.events & selectors.EVENT_READ else WRITABLE
                for key in self.get_map().values()
            }
            wait(masks, timeout)
            ready = super().select(0)
        return ready


def patches() -> Iterator[Patch]:
    """Yield what is replaced."""
    if os.name != "posix":
        return  # there is no way to wait for pipes and processes with the rest
    yield Patch(subprocess.Popen, "_wait", _wait_for_child)
    yield Patch(subprocess.Popen, "__exit__", _leave)
    yield Patch(subprocess, "_PopenSelector", PipeSelector)
    yield Patch(subprocess, "io", _io)
    yield Patch(os, "system", system)
    for name, original in _originals.items():
        if original is not None:
            yield Patch(os, name, _waits(name))
    if _waitid is not None:
        yield Patch(os, "waitid", waitid)


_wait = _Popen._wait
