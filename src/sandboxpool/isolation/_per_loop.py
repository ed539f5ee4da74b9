"""What an isolation has in one event loop, for there may be several.

A server has one loop. Tests often have one after another, and threads may each run one at the
same time, with one wrapped app in all of them: what one of them started must be stopped there,
and nowhere else.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from threading import get_ident
from typing import Generic, TypeVar

from sandboxpool._exceptions import LifespanShutdownError
from sandboxpool._loop import Loop, running_backend, running_loop

T = TypeVar("T")


class PerLoop(Generic[T]):
    """One value for each running event loop, and one for code that runs in none.

    Args:
        make: Returns the value of a loop that has none yet.
        gone: Called with the value of a loop that has ended without giving it back.
    """

    def __init__(self, make: Callable[[], T], gone: Callable[[T], object]) -> None:
        self._make = make
        self._gone = gone
        self._entries: list[tuple[Loop | None, T]] = []
        self._changing = threading.Lock()

    def get(self) -> T | None:
        """Return the value of the loop that runs here, if it has one."""
        entry = self._find()
        return None if entry is None else entry[1]

    def here(self) -> T:
        """Return the value of the loop that runs here, a new one if need be."""
        entry = self._find()
        if entry is None:
            self.sweep()
            entry = (running_loop() if running_backend() else None), self._make()
            with self._changing:
                self._entries.append(entry)
        return entry[1]

    def pop(self) -> T | None:
        """Return the value of the loop that runs here, which has none any more."""
        self.sweep()
        entry = self._find()
        if entry is None:
            return None
        with self._changing:
            self._entries.remove(entry)
        return entry[1]

    def all(self) -> list[T]:
        """Return the values of all loops."""
        return [value for _, value in self._entries]

    def sweep(self) -> None:
        """Drop the values of loops that have ended."""
        # Taken off the list first: two loops that start at once must not drop one value twice.
        with self._changing:
            ended = [entry for entry in self._entries if entry[0] and entry[0].closed()]
            self._entries = [entry for entry in self._entries if entry not in ended]
        for _, value in ended:
            self._gone(value)

    def _find(self) -> tuple[Loop | None, T] | None:
        backend, thread = running_backend(), get_ident()
        for entry in self._entries:
            loop = entry[0]
            if loop is None:
                if backend is None:
                    return entry
            # Both are asked, for a Trio run may be the guest of an asyncio loop in one thread.
            elif loop.backend == backend and loop.home._thread_id == thread:
                return entry
        return None


class Failures:
    """What went wrong at the end of sandboxes that have a lifespan of their own.

    The pool has logged it already. Those that end while it serves are no reason to call the
    shutdown of the app a failure: whoever creates a sandbox does not shut down.
    """

    __slots__ = ("_errors",)

    def __init__(self) -> None:
        self._errors: list[BaseException] = []

    def note(self, error: BaseException, name: str) -> None:
        """Remember that a sandbox did not stop in order."""
        if not isinstance(error, Exception):
            # A cancellation must not be raised again later, when nothing is being cancelled.
            error = LifespanShutdownError(f"{name} did not stop before it was cancelled.")
        self._errors.append(error)

    def clear(self) -> None:
        """Forget everything: the app goes on."""
        self._errors.clear()

    def raise_any(self, name: str) -> None:
        """Raise `LifespanShutdownError` if there was anything, with the first as its cause."""
        if not self._errors:
            return
        first, count = self._errors[0], len(self._errors)
        self._errors.clear()
        raise LifespanShutdownError(
            f"{count} {'sandbox' if count == 1 else 'sandboxes'} of {name} failed to stop: {first}"
        ) from first
