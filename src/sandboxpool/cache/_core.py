"""What the caches of one name have in common, and the table of all of them in this process."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from random import uniform
from time import monotonic
from typing import TYPE_CHECKING, Any

import attrs

from sandboxpool._exceptions import CacheClosedError, OptionError

from . import _flight
from ._flight import Flights
from ._memory import MemoryStore
from ._stats import CacheStatistics, Counts
from ._steps import Refreshing
from ._store import Found, Life, Store
from ._values import Packing, packing

if TYPE_CHECKING:
    from ._interval import Interval
    from ._redis import RedisStore

MAX_ENTRIES = 10_000
MAX_BYTES = 64 * 1024 * 1024


class Default:
    """What the cache was made with, as opposed to `None` for no limit."""

    def __repr__(self) -> str:
        return "the cache's"


DEFAULT = Default()


@attrs.frozen
class CacheOptions:
    """The options of a cache; see `Cache`."""

    ttl: float | None
    jitter: float
    stale_for: float
    retry_after: float
    resolver_timeout: float | None
    max_entries: int | None
    max_bytes: int | None
    values: str
    clock: Callable[[], float] | None
    store: RedisStore | None


class Core:
    """One cache, whichever objects stand for it.

    Attributes:
        name: Its name.
        options: Its options.
        store: Holds the entries.
        flights: The refreshes under way.
        counts: What was counted.
        intervals: The values that are kept fresh, by key.
        closed: Whether it was closed.
    """

    def __init__(self, name: str, options: CacheOptions, store: Store) -> None:
        self.name = name
        self.options = options
        self.store = store
        self.flights = Flights()
        self.counts = Counts()
        self.intervals: dict[str, Interval] = {}
        self.packing: Packing = packing(options.values)
        self.closed = False

    def check(self, key: str) -> None:
        """Refuse what is no key, and everything once the cache is closed."""
        if type(key) is not str or not key:
            raise TypeError(f"key={key!r}: the keys of a cache are strings, and not empty.")
        if self.closed:
            raise CacheClosedError(
                f"the cache {self.name!r} was closed: make a new one, sandboxpool.Cache("
                f"{self.name!r}), or close it later."
            )

    def life(self, ttl: float | Default | None, stale_for: float | Default = DEFAULT) -> Life:
        """Return how long an entry lives, its share of chance included."""
        seconds = self.options.ttl if isinstance(ttl, Default) else ttl
        stale = self.options.stale_for if isinstance(stale_for, Default) else stale_for
        if seconds is None:
            return Life(None)
        # Never longer than was asked for: entries that were stored together end apart.
        return Life(seconds * uniform(1 - self.options.jitter, 1), stale)

    def refreshing(self, key: str, life: Life, blocking: bool) -> Refreshing:
        """Return what one `get_or_set()` works with."""
        return Refreshing(
            key,
            life,
            self.store,
            self.flights,
            self.packing,
            self.counts,
            self.options.retry_after,
            self.options.resolver_timeout,
            blocking,
        )

    # --- what an operation does in the store; called where it may block -------------------------

    def value(self, key: str, found: Found | None, default: Any) -> Any:
        """Return the value of a fresh entry, or *default*."""
        if found is None or not found.fresh:
            self.counts.misses += 1
            return default
        self.counts.hits += 1
        return self.packing.unpack(key, found.packed)

    def set(self, key: str, packed: Any, size: int, life: Life) -> None:
        """Store a value."""
        with _flight.lock if not self.store.blocks else _NOTHING:
            self.flights.detach(key)
            self.store.write(key, packed, size, life)

    def delete(self, key: str) -> bool:
        """Remove a value."""
        with _flight.lock if not self.store.blocks else _NOTHING:
            self.flights.detach(key)
            return self.store.delete(key)

    def incr(self, key: str, by: int, life: Life) -> int:
        """Add to a number."""
        with _flight.lock if not self.store.blocks else _NOTHING:
            self.flights.detach(key)
            return self.store.incr(key, by, life)

    def clear(self) -> None:
        """Remove everything."""
        with _flight.lock if not self.store.blocks else _NOTHING:
            self.flights.detach_all()
            self.store.clear()

    def statistics(self) -> CacheStatistics:
        """Return the figures of this moment."""
        counts, store = self.counts, self.store
        entries, size = store.usage()
        return CacheStatistics(
            self.name,
            entries,
            size,
            counts.hits,
            counts.misses,
            counts.stale,
            counts.waited,
            counts.resolved,
            counts.failed,
            getattr(store, "evicted", 0),
            getattr(store, "expired", 0),
        )

    def close(self) -> None:
        """Drop everything, and free the name."""
        with _cores_lock:
            if _cores.get(self.name) is self:
                del _cores[self.name]
        self.closed = True
        self.flights.detach_all()
        for interval in tuple(self.intervals.values()):
            interval.stop()
        self.store.close()


class _Nothing:
    def __enter__(self) -> None: ...

    def __exit__(self, *exc: object) -> None: ...


# A store in memory is changed in one step with the flights. One that blocks is not, for that
# would be waiting for the network with a lock held; its own claims do the same.
_NOTHING = _Nothing()

_cores: dict[str, Core] = {}
_cores_lock = threading.Lock()


def core_for(name: str, options: CacheOptions) -> Core:
    """Return the cache of that name in this process; a new one if there is none.

    Raises:
        OptionError: There is one, with other options.
    """
    with _cores_lock:
        core = _cores.get(name)
        if core is None:
            store: Store
            if options.store is not None:
                store = options.store.open(name, options.clock)
            else:
                store = MemoryStore(
                    options.max_entries, options.max_bytes, options.clock or monotonic
                )
            core = _cores[name] = Core(name, options, store)
        elif core.options != options:
            changed = [
                f"{field.name}={getattr(options, field.name)!r} instead of "
                f"{getattr(core.options, field.name)!r}"
                for field in attrs.fields(CacheOptions)
                if getattr(options, field.name) != getattr(core.options, field.name)
            ]
            raise OptionError(
                f"there is a cache {name!r} in this process already, and this one is to have "
                f"{', '.join(changed)}: give it the same options or another name, or close the "
                "first one."
            )
        return core


def _after_fork() -> None:
    # Whoever held a lock or led a flight in the parent is not here to end it.
    global _cores_lock
    _cores_lock = threading.Lock()
    _flight.lock = threading.RLock()
    for core in _cores.values():
        core.flights.forget()
        core.store.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
