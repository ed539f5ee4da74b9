"""Entries in this process: bounded in number and bytes, the least recently used go first."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from itertools import count
from math import inf
from typing import Any, TypeVar

import attrs

from sandboxpool._exceptions import CacheValueError

from ._size import flat_size
from ._store import Found, Life, Start

T = TypeVar("T")

# Bytes that an entry takes besides its key and its value: the record, its floats, its place in
# the ordered dict and in the heap. `tests/cache/test_size.py` holds it against `tracemalloc`.
OVERHEAD = 500
# The bounds of a counter; those of Redis, so that both stores can do the same.
LARGEST = 2**63 - 1
_COUNTER = flat_size(LARGEST)


@attrs.define(eq=False)
class _Entry:
    packed: Any
    size: int
    fresh_until: float
    dead_at: float
    number: int
    rests_until: float = -inf


class MemoryStore:
    """Holds entries in a dict. See `Store`.

    Args:
        max_entries: How many entries, `None` for no limit.
        max_bytes: How many bytes all of them may take, keys and bookkeeping included.
        clock: Returns seconds.
    """

    blocks = False
    resolves_when_down = False

    def __init__(
        self, max_entries: int | None, max_bytes: int | None, clock: Callable[[], float]
    ) -> None:
        # Reentrant: an object that is dropped under the lock may use the cache as it dies.
        self._lock = threading.RLock()
        self._max_entries = inf if max_entries is None else max_entries
        self._max_bytes = inf if max_bytes is None else max_bytes
        self._clock = clock
        self._entries: OrderedDict[str, _Entry] = OrderedDict()
        self._bytes = 0
        # When entries die, the earliest first: their numbers, not they themselves, or what was
        # replaced would still take memory.
        self._deaths: list[tuple[float, int, str]] = []
        self._numbers = count()
        self.evicted = 0
        self.expired = 0

    async def call(self, function: Callable[[], T]) -> T:
        return function()

    def read(self, key: str) -> Found | None:
        with self._lock:
            entry = self._live(key)
            if entry is None:
                return None
            self._entries.move_to_end(key)
            now = self._clock()
            return Found(entry.packed, entry.fresh_until - now, now < entry.rests_until)

    def write(self, key: str, packed: Any, size: int, life: Life) -> None:
        size += OVERHEAD + flat_size(key)
        if size > self._max_bytes:
            raise CacheValueError(
                f"the value of {key!r} takes {size} bytes, more than max_bytes={self._max_bytes} "
                "allows for the whole cache: store less under one key, or raise max_bytes."
            )
        now = self._clock()
        fresh_until = inf if life.fresh is None else now + life.fresh
        number = next(self._numbers)
        entry = _Entry(packed, size, fresh_until, fresh_until + life.stale, number)
        with self._lock:
            self._remove(key)
            self._make_room(size, now)
            self._entries[key] = entry
            self._bytes += size
            if entry.dead_at < inf:
                heappush(self._deaths, (entry.dead_at, number, key))
                self._sweep()

    def delete(self, key: str) -> bool:
        with self._lock:
            entry = self._live(key)
            self._remove(key)
            return entry is not None and self._clock() < entry.fresh_until

    def incr(self, key: str, by: int, life: Life) -> int:
        with self._lock:
            entry = self._live(key)
            if entry is None or self._clock() >= entry.fresh_until:
                self.write(key, checked(key, by), _COUNTER, life)
                return by
            number = entry.packed
            if type(number) is not int:
                raise not_a_number(key)
            number = checked(key, number + by)
            entry.packed = number
            self._entries.move_to_end(key)
            return number

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()
            self._deaths.clear()
            self._bytes = 0

    def start(self, key: str, token: str, waited_for: str) -> Start:
        found = self.read(key)
        if found is not None and found.fresh:
            return Start("found", found.packed)
        return Start("lead")

    def hold(self, key: str, token: str, seconds: float | None) -> None:
        """Do nothing, as in `drop()`."""

    def finish(self, key: str, token: str, packed: Any, size: int, life: Life) -> None:
        self.write(key, packed, size, life)

    def fail(self, key: str, token: str, error: Exception, rest: float) -> None:
        with self._lock:
            entry = self._live(key)
            if entry is not None:
                entry.rests_until = self._clock() + rest

    def drop(self, key: str, token: str) -> None:
        """Do nothing: who refreshes what is known to the flights of this process."""

    def usage(self) -> tuple[int, int]:
        with self._lock:
            return len(self._entries), self._bytes

    def close(self) -> None:
        self.clear()

    def after_fork(self) -> None:
        """Get a new lock: the thread that held the old one may not be in this process."""
        self._lock = threading.RLock()

    # --- with the lock held -------------------------------------------------------------------

    def _live(self, key: str) -> _Entry | None:
        entry = self._entries.get(key)
        if entry is not None and self._clock() >= entry.dead_at:
            self._remove(key)
            self.expired += 1
            return None
        return entry

    def _remove(self, key: str) -> None:
        entry = self._entries.pop(key, None)
        if entry is not None:
            self._bytes -= entry.size

    def _make_room(self, size: int, now: float) -> None:
        def is_full() -> bool:
            return len(self._entries) >= self._max_entries or self._bytes + size > self._max_bytes

        # What has expired goes before what is still good.
        while is_full() and self._deaths and self._deaths[0][0] <= now:
            death = heappop(self._deaths)
            if self._is_current(death):
                self._remove(death[2])
                self.expired += 1
        while is_full() and self._entries:
            self._remove(next(iter(self._entries)))
            self.evicted += 1

    def _sweep(self) -> None:
        """Throw what was replaced or removed out of the heap, once that is a third of it."""
        if len(self._deaths) > len(self._entries) * 3 // 2 + 64:
            self._deaths = [death for death in self._deaths if self._is_current(death)]
            heapify(self._deaths)

    def _is_current(self, death: tuple[float, int, str]) -> bool:
        entry = self._entries.get(death[2])
        return entry is not None and entry.number == death[1]


def not_a_number(key: str) -> CacheValueError:
    """Return the error for a value that cannot be counted up."""
    return CacheValueError(
        f"{key!r} cannot be counted up: its value is no whole number. Use a key of its own."
    )


def checked(key: str, number: int) -> int:
    """Return a counter's new value, refuse one that has more than 64 bits."""
    if not -LARGEST - 1 <= number <= LARGEST:
        raise CacheValueError(
            f"{key!r} would become {number}: a counter has 64 bits. Set it to 0, or let it expire."
        )
    return number
