"""Name the request that blocks the loop, for how long, and where.

A blocked loop cannot report anything, so this is a thread. The loop beats a few times per
threshold; when a beat stays out, the thread looks at what the loop's thread is doing. On the
path of a request that costs one attribute store per step.
"""

from __future__ import annotations

import logging
import threading
from time import monotonic
from types import FrameType
from typing import Any

import attrs

from ._context import RequestLease
from ._loop import Loop
from ._stacks import is_waiting, stack_of_thread

logger = logging.getLogger("sandboxpool.monitor")

_BEATS = 4  # per threshold
_LOOKS = 3  # that must meet the same request, or none
_LONGEST_PAUSE = 60.0  # a thread cannot wait for ever in one go
_NOT_HOOKED = (
    "\nThe request is cooperative: no installed hook reaches this call, or it only computes."
)


@attrs.frozen
class Stall:
    """A time in which the loop was blocked.

    Attributes:
        seconds: For how long.
        path: The path of the request that blocked it, `None` if it was no request.
        lease_id: The id of its lease.
        stack: Where its thread was when the stall was noticed, outermost first.
    """

    seconds: float
    path: str | None
    lease_id: int | None
    stack: str


class LoopMonitor:
    """Watch one loop from a thread.

    Args:
        loop: The loop; this must be made in it.
        stall_after: Seconds without a beat that count as a stall.
        running: Has an attribute `lease`, the request whose code runs right now.

    Attributes:
        stalls: How many there were.
        last: The last one that is over.
    """

    def __init__(self, loop: Loop, stall_after: float, running: Any) -> None:
        self.stalls = 0
        self.last: Stall | None = None
        self._loop = loop
        self._stall_after = stall_after
        self._pause = min(stall_after / _BEATS, _LONGEST_PAUSE)
        self._running = running
        self._loop_thread = threading.get_ident()
        self._stopped = threading.Event()
        self._beat_at = monotonic()
        self._timer = loop.timer(self._beat)
        self._timer.arm(self._pause)
        self._thread = threading.Thread(
            target=self._watch, name="sandboxpool loop monitor", daemon=True
        )
        self._thread.start()

    def stop(self) -> None:
        """Stop watching; the thread ends by itself."""
        self._stopped.set()
        self._timer.close()

    def _beat(self) -> None:
        self._beat_at = monotonic()
        if not self._stopped.is_set():
            self._timer.arm(self._pause)

    def _watch(self) -> None:
        asleep_at = 0.0  # when the loop was last seen not to run, as between two tests
        before: RequestLease | None = None
        looks = 0
        while not self._stopped.wait(self._pause):
            if self._loop.closed():
                return
            # When many thousand requests are due in one moment, the beat is late as well, but
            # each look meets another one of them.
            now: RequestLease | None = self._running.lease
            looks = looks + 1 if now is before else 1
            before = now
            if not self._loop.runs():
                asleep_at = monotonic()
                continue
            beat_at = self._beat_at
            late = monotonic() - max(beat_at, asleep_at) > self._stall_after
            if late and looks >= _LOOKS:
                self._stalled(beat_at)

    def _stalled(self, beat_at: float) -> None:
        lease = self._running.lease
        if lease is not None and (lease.ended or _is_left(lease)):
            lease = None
        stack, frames = stack_of_thread(self._loop_thread)
        if lease is None:
            # Not a step of a request itself; perhaps of a task that one has started.
            lease = _lease_in(frames)
        if self._beat_at != beat_at or not frames or is_waiting(frames[-1]):
            # It was late, not blocked: a busy machine, or a loop that is not being run.
            return
        self.stalls += 1
        # Now: when the loop is free again, the request may be over, and its scope gone.
        blocker = "code outside of any request" if lease is None else describe(lease)
        logger.warning(
            "the event loop has been blocked for %.3g s by %s; it is at:\n%s%s",
            monotonic() - beat_at,
            blocker,
            stack,
            _NOT_HOOKED if lease is not None and _is_cooperative(lease) else "",
        )
        while self._beat_at == beat_at and not self._loop.closed():
            if self._stopped.wait(self._pause):
                return
        seconds = self._beat_at - beat_at
        self.last = Stall(seconds, lease and lease.path, lease and lease.id, stack)
        if self._beat_at != beat_at:
            logger.warning(
                "the event loop is free again; %s blocked it for %.3g s", blocker, seconds
            )


def describe(lease: RequestLease) -> str:
    """Name a request in a log."""
    scope = lease.scope  # empty if the request ends in this very moment: this may be a thread
    method = scope.get("method") or scope.get("type", "-")
    return f"request {method} {lease.path} (lease {lease.id})"


def _is_cooperative(lease: RequestLease) -> bool:
    owner: RequestLease | None = lease
    while owner is not None:
        if owner.serving is not None and owner.serving.options.run_in == "cooperative":
            return True
        owner = owner.parent
    return False


def _is_left(lease: RequestLease) -> bool:
    """Tell whether a cooperative request, around this one, waits in the middle of a step."""
    around = lease.parent
    while around is not None:
        if around.blocked is not None:
            return True
        around = around.parent
    return False


def _lease_in(frames: list[FrameType]) -> RequestLease | None:
    """Find the lease that a running stack belongs to, by the ASGI scope it carries."""
    for frame in reversed(frames):
        scope = frame.f_locals.get("scope")
        if isinstance(scope, dict):
            lease = scope.get("sandboxpool.lease")
            if isinstance(lease, RequestLease) and not lease.ended:
                return lease
    return None
