"""How often which leak was seen: for the statistics, and so that the log is not flooded."""

from __future__ import annotations

import threading
from collections import Counter

from ._names import family_of

_OF_ONE_FAMILY = 20
_FAMILIES = 500


class LeakCounts:
    """Counts leaks by path, in bounded memory.

    A path with an item in it, such as `app.state.carts["ada"]`, may come with another key each
    time: after twenty of them they are counted together, as `app.state.carts[*]`.

    Attributes:
        reports: Requests that left something behind.
        leaks: What they have left, altogether.
    """

    def __init__(self) -> None:
        self.reports = 0
        self.leaks = 0
        self._paths: Counter[str] = Counter()
        self._families: dict[str, set[str]] = {}
        self._lock = threading.Lock()

    def count(self, path: str) -> int:
        """Count a leak; return how often it was seen, this time included."""
        with self._lock:
            self.leaks += 1
            family = family_of(path)
            if family not in self._families and len(self._families) >= _FAMILIES:
                family = path = "(others)"
            members = self._families.setdefault(family, set())
            if path not in members:
                if len(members) >= _OF_ONE_FAMILY:
                    path = family
                else:
                    members.add(path)
            self._paths[path] += 1
            return self._paths[path]

    def most_frequent(self, number: int) -> tuple[tuple[str, int], ...]:
        """Return the paths that were seen most often, with how often."""
        with self._lock:
            return tuple(self._paths.most_common(number))


def is_told(times: int) -> bool:
    """Tell whether the log tells of a leak that was seen so often: the 1st, 10th, 100th time."""
    while times % 10 == 0 and times > 1:
        times //= 10
    return times == 1
