"""A thread with an event loop of its own, started and ended without blocking anybody else's."""

from __future__ import annotations

import ctypes
import logging
import os
import queue
import sys
import threading
from collections.abc import Callable
from functools import partial
from types import FrameType
from typing import Any

import anyio

from sandboxpool._closers import Closers
from sandboxpool._exceptions import ThreadLimitError
from sandboxpool._loop import Loop, Wakeup, running_loop
from sandboxpool._stacks import is_waiting

logger = logging.getLogger("sandboxpool.threads")


class AbandonedError(BaseException):
    """Raised in code that was cut off while it blocked a thread, as soon as it runs again."""


class CutOffError(AbandonedError):
    """Raised in code whose request was cut off, when it reads or sends, or waits for that."""


class LoopThread:
    """A thread with an event loop.

    Args:
        name: What the thread is called.
        backend: `"asyncio"`, `"uvloop"` or `"trio"`.
        stack_size: Bytes of address space for its stack.
        ended: Called in the thread when it is about to end, however that came.

    Attributes:
        loop: Its event loop, once it runs.
        closers: What to close in it before it ends.
        thread: The thread.
        over: Whether the thread has come to its end, but for the last few lines.
    """

    def __init__(
        self, name: str, backend: str, stack_size: int, ended: Callable[[LoopThread], None]
    ) -> None:
        self.loop: Loop | None = None
        self.closers = Closers()
        self.thread = threading.Thread(target=self._run, name=name, daemon=True)
        self.stack_size = stack_size
        self._backend = backend
        self._ended = ended
        self._first: Callable[[], object] | None = None
        self._failed: Callable[[BaseException], object] | None = None
        self._stop: Wakeup | None = None
        self._stopped = self.over = False
        self._waiting: list[Callable[[], object]] = []

    # --- from outside -------------------------------------------------------------------------

    def start(self, first: Callable[[], object], failed: Callable[[BaseException], object]) -> None:
        """Start the thread.

        Args:
            first: Called in the thread as soon as its event loop runs.
            failed: Called instead, from whichever thread, if it comes to none: with a
                `ThreadLimitError` if the system gives no further thread.
        """
        self._first, self._failed = first, failed
        _starter.start(self)

    def post(self, function: Callable[[], object]) -> bool:
        """Call *function* in the thread, soon; return whether its loop still runs."""
        loop = self.loop
        return loop is not None and _call_in(loop, function)

    def stop(self) -> None:
        """End the loop, and the thread with it, once the running step is over."""
        self._stopped = True
        self.post(self._wake_stop)

    async def wait(self) -> None:
        """Wait until the thread is about to end; cancelling this leaves it alone."""
        here = running_loop()
        wakeup = here.wakeup()
        self._waiting.append(partial(_call_in, here, wakeup.wake))
        # Looked at only now: the thread sets it before it looks at the list.
        if not self.over:
            await wakeup

    def interrupt(self) -> None:
        """Raise `AbandonedError` in busy workers, and in a task of an errand that runs right now.

        Who blocks gets it when it runs Python code again. It is never raised in the event loop's
        own code, which would not stand it.
        """
        for thread in (*self.busy_workers(), *((self.thread,) if self.runs_errand() else ())):
            if thread.ident is not None:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(thread.ident), ctypes.py_object(AbandonedError)
                )

    def position(self) -> tuple[FrameType, int] | None:
        """Return where the thread is; twice the same means that it waits for something in C."""
        frame = sys._current_frames().get(self.thread.ident or 0)
        return None if frame is None or is_waiting(frame) else (frame, frame.f_lasti)

    def runs_errand(self) -> bool:
        """Tell whether the thread is in the code of an errand, rather than in its event loop's."""
        frame = sys._current_frames().get(self.thread.ident or 0)
        while frame is not None:
            if frame.f_code.co_name == "run_errand":
                return True
            frame = frame.f_back
        return False

    def workers(self) -> list[threading.Thread]:
        """Return the worker threads that the loop has started, as far as that is to be seen."""
        native = getattr(self.loop, "native", None)
        if native is None:
            # Trio names them after the task that calls, and our tasks after the thread.
            mine = f" from {self.thread.name}"
            return [thread for thread in threading.enumerate() if thread.name.endswith(mine)]
        pool: Any = getattr(native, "_default_executor", None)  # of asyncio.to_thread()
        found: set[threading.Thread] = set(getattr(pool, "_threads", ()))
        # anyio's worker threads say whose they are.
        found.update(t for t in threading.enumerate() if getattr(t, "loop", None) is native)
        return list(found)

    def busy_workers(self) -> list[threading.Thread]:
        """Return those worker threads that do not just wait for work."""
        frames = sys._current_frames()
        return [
            worker
            for worker in self.workers()
            if worker.ident in frames and not _waits_for_work(frames[worker.ident])
        ]

    def start_failed(self, error: BaseException) -> None:
        """Note that the system has given no thread."""
        self.over = True
        if self._failed is not None:
            self._failed(
                ThreadLimitError(
                    f"the system starts no further thread for a sandbox ({error}): there are "
                    f"{threading.active_count()} in this process. Raise the limit (`ulimit -u`, "
                    "the cgroup's pids.max), or lower max_size."
                )
            )

    # --- in the thread ------------------------------------------------------------------------

    def _run(self) -> None:
        try:
            anyio.run(self._main, **_how(self._backend))
        except AbandonedError:
            pass
        except BaseException as error:
            if self.loop is None and self._failed is not None:
                self._failed(error)
            else:
                logger.exception("the event loop of %s has failed", self.thread.name)
        finally:
            self.over = True
            self._ended(self)
            for tell in self._waiting:
                tell()

    async def _main(self) -> None:
        loop = running_loop()
        self._stop = loop.wakeup()
        self.loop = loop
        _name_root_task(loop)
        # Whoever stops it from now on wakes it; who did before is seen here.
        if not self._stopped:
            if self._first is not None:
                self._first()
            await self._stop

    def _wake_stop(self) -> None:
        if self._stop is not None:
            self._stop.wake()


def _waits_for_work(frame: FrameType | None) -> bool:
    """Tell whether the innermost frame of a worker thread is its own wait for the next call."""
    # Those of anyio wait for a condition in `Queue.get()`, those of concurrent.futures in C, or
    # in what the hooks have put there.
    while frame is not None and frame.f_code.co_name in ("wait", "acquire", "_wait"):
        frame = frame.f_back
    if frame is not None and frame.f_code.co_name == "get":
        frame = frame.f_back
    return frame is not None and (
        frame.f_code.co_name == "_worker"
        or (frame.f_code.co_name == "run" and type(frame.f_locals.get("self")) in _workers())
    )


def _workers() -> tuple[type, ...]:
    asyncio_backend = sys.modules.get("anyio._backends._asyncio")
    worker = getattr(asyncio_backend, "WorkerThread", None)
    return () if worker is None else (worker,)


def _how(backend: str) -> dict[str, Any]:
    if backend == "trio":
        return {"backend": "trio"}
    if backend == "uvloop":
        return {"backend": "asyncio", "backend_options": {"use_uvloop": True}}
    if not hasattr(os, "eventfd"):  # only Linux has it
        return {"backend": "asyncio"}
    from ._quiet_loop import QuietLoop

    return {"backend": "asyncio", "backend_options": {"loop_factory": QuietLoop}}


def _name_root_task(loop: Loop) -> None:
    """Tell anyio which task its worker threads shall end with.

    Without that it looks for it among the tasks of all event loops, for each first worker.
    """
    if loop.backend == "asyncio":
        import asyncio

        from anyio._backends import _asyncio

        root = getattr(_asyncio, "_root_task", None)
        if root is not None:
            root.set(asyncio.current_task())


def _call_in(loop: Loop, function: Callable[[], object]) -> bool:
    try:
        loop.call_from_thread(function)
    except RuntimeError:  # the loop has ended meanwhile; Trio's error inherits from this one, too
        return False
    return True


class _Starter:
    """Starts threads on behalf of an event loop.

    `Thread.start()` waits until the new thread runs, which takes as long as all the others that
    want to run let it. So it is called in a thread, one for the whole process.
    """

    def __init__(self) -> None:
        self._wanted: queue.SimpleQueue[LoopThread] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._pid = 0
        self._thread: threading.Thread | None = None

    def start(self, wanted: LoopThread) -> None:
        self._wanted.put(wanted)
        if self._thread is None or not self._thread.is_alive():
            with self._lock:
                # After a fork the thread is gone, and so it may be when its own start failed.
                if self._thread is None or not self._thread.is_alive():
                    thread = threading.Thread(
                        target=self._run, name="sandboxpool thread starter", daemon=True
                    )
                    try:
                        thread.start()
                    except RuntimeError as error:
                        self._wanted.get().start_failed(error)
                    else:
                        self._thread = thread

    def _run(self) -> None:
        while True:
            self._start(self._wanted.get())

    def _start(self, wanted: LoopThread) -> None:
        # The size is a setting of the whole process: set for as short as possible. A thread that
        # somebody else starts in this very moment gets it, too.
        before = threading.stack_size(wanted.stack_size)
        try:
            wanted.thread.start()
        except (RuntimeError, MemoryError) as error:
            wanted.start_failed(error)
        finally:
            threading.stack_size(before)


_starter = _Starter()
