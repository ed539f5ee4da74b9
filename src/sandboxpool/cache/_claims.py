"""Keeps the claims of this process on refreshes alive, as long as it lives itself.

A thread does that, not a task: an event loop that is blocked for a while is not dead, and plain
code that runs a resolver in a thread has no loop at all.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic

from sandboxpool._exceptions import CacheUnavailableError

# Seconds without a claim after which the thread ends; the next claim starts another one.
_IDLE = 10.0


class Claims:
    """The claims that this process holds.

    Args:
        renew: Renews the claim of a key and a token, or gives it up.
        every: Seconds between two renewals.
        name: What the thread is called.
    """

    def __init__(self, renew: Callable[[str, str, bool], object], every: float, name: str) -> None:
        self._renew = renew
        self._every = every
        self._name = name
        self.after_fork()

    def after_fork(self) -> None:
        """Forget everything: threads do not get through a fork, and claims are the parent's."""
        self._changed = threading.Condition()
        self._held: dict[tuple[str, str], float] = {}
        self._dropped: list[tuple[str, str]] = []
        self._thread: threading.Thread | None = None
        self._closed = False

    def hold(self, key: str, token: str, seconds: float) -> None:
        """Renew a claim from now on, for so many seconds."""
        with self._changed:
            self._held[key, token] = monotonic() + seconds
            self._go_on()

    def end(self, key: str, token: str) -> None:
        """Renew a claim no longer: it is settled, or will lapse."""
        with self._changed:
            self._held.pop((key, token), None)

    def drop(self, key: str, token: str) -> None:
        """Give a claim up, soon."""
        with self._changed:
            self._held.pop((key, token), None)
            self._dropped.append((key, token))
            self._go_on()
            self._changed.notify()

    def close(self) -> None:
        """End the thread, after what was dropped is given up."""
        with self._changed:
            self._held.clear()
            self._closed = True
            thread = self._thread
            self._changed.notify()
        if thread is not None and thread is not threading.current_thread():
            thread.join(self._every)

    def _go_on(self) -> None:
        if self._thread is None and not self._closed:
            self._thread = threading.Thread(target=self._run, name=self._name, daemon=True)
            self._thread.start()

    def _run(self) -> None:
        idle_since = monotonic()
        while True:
            with self._changed:
                if not self._dropped and not self._closed:
                    self._changed.wait(self._every)
                now = monotonic()
                for claim, until in tuple(self._held.items()):
                    if now >= until:  # its resolver takes too long: let others have a try
                        del self._held[claim]
                held, dropped, self._dropped = tuple(self._held), self._dropped, []
                if held or dropped:
                    idle_since = now
                elif self._closed or now - idle_since > _IDLE:
                    self._thread = None
                    return
            for claims, keep in ((dropped, False), (held, True)):
                for key, token in claims:
                    try:
                        self._renew(key, token, keep)
                    except CacheUnavailableError:
                        pass  # it lapses by itself, or is renewed the next time
