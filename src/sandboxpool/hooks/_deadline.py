"""How long one blocking call may still wait."""

from __future__ import annotations

from time import monotonic

from ._readiness import wait


class Deadline:
    """The timeout of a call, counted from its start.

    Args:
        timeout: In seconds, `None` for none.
        message: What the `TimeoutError` says.
    """

    __slots__ = ("_end", "_message")

    def __init__(self, timeout: float | None, message: str = "timed out") -> None:
        self._end = None if timeout is None else monotonic() + timeout
        self._message = message

    def left(self) -> float | None:
        """Return the seconds that are left, `None` for any number; not below zero."""
        return None if self._end is None else max(self._end - monotonic(), 0.0)

    def wait(self, fd: int, mask: int) -> None:
        """Suspend the request until something may have happened to a file descriptor.

        Raises:
            TimeoutError: The time is up.
        """
        left = self.left()
        if left == 0 or not wait({fd: mask}, left):
            raise TimeoutError(self._message)
