"""Where WSGI apps run, if not on the loop: worker threads."""

from __future__ import annotations

import logging
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError
from math import inf
from typing import Any, TypeVar

import anyio
import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread

from sandboxpool._stacks import stack_of_thread
from sandboxpool._types import Receive, Send
from sandboxpool.run._loop_thread import CutOffError

from ._wsgi_call import WSGICall
from ._wsgi_client import LoopClient

logger = logging.getLogger("sandboxpool.wsgi")

T = TypeVar("T")

_limiters: anyio.lowlevel.RunVar[anyio.CapacityLimiter] = anyio.lowlevel.RunVar(
    "sandboxpool_wsgi_limiter"
)
_CUT_OFF: Any = object()


def unlimited() -> anyio.CapacityLimiter:
    """Return a limiter that limits nothing: how many run at once is for the pool to say."""
    try:
        return _limiters.get()
    except LookupError:
        limiter = anyio.CapacityLimiter(inf)
        _limiters.set(limiter)
        return limiter


class WorkerThreads:
    """Runs WSGI apps in the worker threads of the running loop.

    Args:
        name: What logs call the app.
        abandoned: The threads that were left behind and have not come to their end yet.
        max_abandoned: How many of those there may be, `None` for no limit.
        in_sandbox: Whether sandboxes have threads of their own, in which their apps run: then
            there are no others.
    """

    def __init__(
        self, name: str, abandoned: set[WorkerCall], max_abandoned: int | None, *, in_sandbox: bool
    ) -> None:
        self.abandoned = abandoned
        self._name = name
        self.in_sandbox = in_sandbox
        self._max_abandoned = max_abandoned

    @property
    def full(self) -> bool:
        """Whether so many threads were left behind that there must be no further one."""
        return self._max_abandoned is not None and len(self.abandoned) >= self._max_abandoned

    async def run(self, call: WSGICall, receive: Receive, send: Send) -> None:
        """Run a call of a WSGI app to its end."""
        worker = WorkerCall(call, receive, send, self.abandoned)
        try:
            await anyio.to_thread.run_sync(worker.run, abandon_on_cancel=True, limiter=unlimited())
        except CutOffError:
            # Cancelled by a scope, of which the thread was told before this task was.
            await anyio.lowlevel.checkpoint()
            raise
        except BaseException:
            if worker.cut_off():
                self._abandon(worker)
            raise
        finally:
            worker.client.close()

    def _abandon(self, worker: WorkerCall) -> None:
        self.abandoned.add(worker)
        if worker.ended:  # meanwhile, so that nobody will tell
            self.abandoned.discard(worker)
            return
        logger.error(
            "a call of %s does not stop; its thread is abandoned, and free again when what it is "
            "in returns (%d threads are abandoned). It is at:\n%s",
            self._name,
            len(self.abandoned),
            stack_of_thread(worker.thread_id)[0],
        )


class WorkerCall:
    """A call in a worker thread.

    Args:
        call: The call.
        receive: The server's.
        send: The server's.
        abandoned: Where it takes itself out at its end.

    Attributes:
        client: The client of the call.
        thread_id: The thread.
        ended: Whether it has come to its end.
    """

    def __init__(
        self, call: WSGICall, receive: Receive, send: Send, abandoned: set[WorkerCall]
    ) -> None:
        self.client = LoopClient(receive, send, self._await)
        self.thread_id = 0
        self.ended = False
        self._call = call
        self._abandoned = abandoned
        # Taken by the thread when it begins, or by the loop, so that it never does.
        self._turn = threading.Lock()
        self._over = False
        self._token = anyio.lowlevel.current_token()
        self._crossing: anyio.CancelScope | None = None

    # --- in the thread ------------------------------------------------------------------------

    def run(self) -> None:
        """Run the call."""
        if not self._turn.acquire(blocking=False):
            return
        self.thread_id = threading.get_ident()
        lease = self._call.lease
        if lease is not None:
            lease.worker = self.thread_id  # for those who ask where it is
        try:
            self._call.run(self.client)
        finally:
            self.ended = True
            self._abandoned.discard(self)
            if lease is not None:
                lease.worker = 0

    def _await(self, function: Callable[..., Awaitable[T]], /, *args: Any) -> T:
        # The thread itself needs none, and only without it Trio passes a cancellation on to it.
        # Others that the app has started may read and send as well.
        token = None if threading.get_ident() == self.thread_id else self._token
        try:
            result: T = anyio.from_thread.run(self._cross, function, args, token=token)
        except CancelledError:
            result = _CUT_OFF
        if result is _CUT_OFF:
            raise CutOffError("the request was cut off.")
        return result

    # --- in the loop --------------------------------------------------------------------------

    async def _cross(self, function: Callable[..., Awaitable[T]], args: tuple[Any, ...]) -> T:
        if not self._over:
            with anyio.CancelScope() as self._crossing:
                return await function(*args)
        cut_off: T = _CUT_OFF
        return cut_off

    def cut_off(self) -> bool:
        """Have the app stop when it reads or sends; return whether it is still running."""
        self._over = True
        if self._crossing is not None:
            self._crossing.cancel()
        return not self.ended and not self._turn.acquire(blocking=False)
