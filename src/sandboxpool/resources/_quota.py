"""One limit for the pools of several event loops.

A connection is bound to the event loop that opened it, so threads with loops of their own have a
pool each. Together they have as many connections as were asked for: a pool takes one of the
quota's places for each connection that it opens. Where none is free the oldest one that waits gets
the next, and whoever has something idle in another loop closes it.
"""

from __future__ import annotations

import threading
from collections import deque
from typing import TYPE_CHECKING

from sandboxpool._loop import Wakeup, running_loop

if TYPE_CHECKING:
    from ._here import Here


class _Waiting:
    __slots__ = ("granted", "here", "wakeup")

    def __init__(self, here: Here, wakeup: Wakeup) -> None:
        self.here = here
        self.wakeup = wakeup
        self.granted = False


class Quota:
    """Places for connections, shared by the pools of all loops of a resource.

    Attributes:
        waiting: How many connects wait for a place; who gives a connection back looks at it.
    """

    def __init__(self, places: int) -> None:
        self._places = places
        self._lock = threading.Lock()
        self._taken: dict[Here, int] = {}
        self._queue: deque[_Waiting] = deque()
        self.waiting = 0

    @property
    def taken(self) -> int:
        """How many connections there are, in all loops."""
        return sum(self._taken.values())

    async def take(self, here: Here) -> None:
        """Take a place, in order of arrival. Cancelled meanwhile, it takes none."""
        self._drop_ended()
        with self._lock:
            if not self._queue and self.taken < self._places:
                self._taken[here] = self._taken.get(here, 0) + 1
                return
            entry = _Waiting(here, running_loop().wakeup())
            self._queue.append(entry)
            self.waiting += 1
            others = [other for other in self._taken if other is not here]
        for other in others:
            other.shed_soon()
        try:
            await entry.wakeup
        except BaseException:
            with self._lock:
                granted = entry.granted
                if not granted:
                    self._queue.remove(entry)
                    self.waiting -= 1
            if granted:  # and cancelled in the same instant: the next one gets it
                self.give(here)
            raise

    def is_wanted(self, here: Here) -> bool:
        """Tell whether the one that waits longest for a place does so in another loop."""
        with self._lock:
            return bool(self._queue) and self._queue[0].here is not here

    def give(self, here: Here) -> None:
        """Give a place back: to the one that waits longest, if somebody does."""
        with self._lock:
            left = self._taken.get(here, 0) - 1
            if left > 0:
                self._taken[here] = left
            else:
                self._taken.pop(here, None)
            woken = self._grant()
        for entry in woken:
            entry.here.call(entry.wakeup.wake)

    def _grant(self) -> list[_Waiting]:
        granted = []
        while self._queue and self.taken < self._places:
            entry = self._queue.popleft()
            self.waiting -= 1
            entry.granted = True
            self._taken[entry.here] = self._taken.get(entry.here, 0) + 1
            granted.append(entry)
        return granted

    def _drop_ended(self) -> None:
        """Forget the connections of loops that ended without closing them."""
        with self._lock:
            for here in [here for here in self._taken if here.loop.closed()]:
                del self._taken[here]
            for entry in [entry for entry in self._queue if entry.here.loop.closed()]:
                self._queue.remove(entry)
                self.waiting -= 1
            woken = self._grant()
        for entry in woken:
            entry.here.call(entry.wakeup.wake)
