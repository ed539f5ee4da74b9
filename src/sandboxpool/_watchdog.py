"""What acts on a request that runs too long: by lease, never by worker.

One timer for all requests of a loop. Most of them end long before their deadline, so nothing is
sorted: the timer comes when the earliest deadline of those in flight could be due, looks at all
of them, and is set anew. With equal time limits that is about once per limit, however many
requests come and go in between.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from math import inf
from time import monotonic
from typing import Any

from ._context import RequestLease
from ._loop import Loop
from ._stacks import stack_of

logger = logging.getLogger("sandboxpool.watchdog")

# How long after a cut-off the next one follows, if the request has swallowed the first.
_INSIST = 1.0


class DeadlineWatchdog:
    """Report a request that is slow, and cut off one that is too late.

    Args:
        loop: The loop of the requests.
        execution_timeout: Seconds from the start of a lease to its cut-off, `None` for never.
        slow_after: Seconds from the start of a lease to the report, `None` for never.
        cut_off: Cancels the call of a lease.
    """

    def __init__(
        self,
        loop: Loop,
        execution_timeout: float | None,
        slow_after: float | None,
        cut_off: Callable[[RequestLease], None],
    ) -> None:
        self._timeout = inf if execution_timeout is None else execution_timeout
        self._slow_after = inf if slow_after is None else slow_after
        self._soonest = min(self._timeout, self._slow_after)
        self._cut_off = cut_off
        self._leases: dict[RequestLease, None] = {}
        self._timer = loop.timer(self._look)
        self._due = inf

    def started(self, lease: RequestLease, /) -> None:
        """Set the deadlines of a lease, and watch it."""
        if self._soonest == inf:
            return
        now = lease.started_at
        lease.deadline = now + self._timeout
        lease.slow_at = now + self._slow_after
        self._leases[lease] = None
        if self._due == inf:
            self._arm(now + self._soonest, now)

    def ended(self, lease: RequestLease, /) -> None:
        """Forget a lease."""
        self._leases.pop(lease, None)

    def changed(self, lease: RequestLease, /) -> None:
        """Look again at a lease whose deadline was moved."""
        self._leases[lease] = None
        if lease.deadline < self._due:
            self._arm(lease.deadline, monotonic())

    def stop(self) -> None:
        """Stop watching."""
        self._timer.close()
        self._leases.clear()

    def _arm(self, due: float, now: float) -> None:
        self._due = due
        self._timer.arm(due - now)

    def _look(self) -> None:
        now = monotonic()
        # A lease that starts after this look is due no earlier than that.
        due = now + self._soonest if self._leases else inf
        for lease in tuple(self._leases):
            if lease.slow_at <= now:
                lease.slow_at = inf
                self._report(lease)
            if lease.deadline <= now:
                lease.deadline = now + _INSIST
                self._end(lease)
            due = min(due, lease.slow_at, lease.deadline)
        self._due = inf
        if due < inf:
            self._arm(due, now)

    def _report(self, lease: RequestLease) -> None:
        logger.warning(
            "request %s %s (lease %d) has been running for %.3g s; it is at:\n%s",
            lease.scope.get("method", lease.scope["type"]),
            lease.path,
            lease.id,
            lease.age,
            stack_of(lease),
        )

    def _end(self, lease: RequestLease) -> None:
        first = not lease.cut_off
        logger.error(
            "request %s %s (lease %d) %s after %.3g s; it was at:\n%s",
            lease.scope.get("method", lease.scope["type"]),
            lease.path,
            lease.id,
            "is cut off" if first else "has not stopped and is cancelled again",
            lease.age,
            stack_of(lease),
        )
        self._cut_off(lease)


class NoWatchdog:
    """Watches nothing."""

    def started(self, lease: Any, /) -> None:
        """Do nothing."""

    def ended(self, lease: Any, /) -> None:
        """Do nothing."""

    def changed(self, lease: Any, /) -> None:
        """Do nothing."""

    def stop(self) -> None:
        """Do nothing."""
