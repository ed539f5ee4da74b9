"""What a cache has counted."""

from __future__ import annotations

import attrs


@attrs.define(eq=False)
class Counts:
    """The running figures of a cache; good enough without a lock."""

    hits: int = 0
    misses: int = 0
    stale: int = 0
    waited: int = 0
    resolved: int = 0
    failed: int = 0


@attrs.frozen
class CacheStatistics:
    """What a cache holds, and what it has done in this process.

    Attributes:
        name: Its name.
        entries: How many entries there are, expired ones included that nobody has met yet;
            `None` where that is not known (Redis).
        bytes: What they take, keys and bookkeeping included; `None` where that is not known.
        hits: Reads that found a fresh value.
        misses: Reads that found none.
        stale: Reads that got an old value, while a new one was on its way or had failed.
        waited: Callers that waited for a resolver that somebody else ran.
        resolved: Resolvers that were run.
        failed: Those of them that failed.
        evicted: Entries that had to go because there was no room.
        expired: Entries that were found to be too old.
    """

    name: str
    entries: int | None
    bytes: int | None
    hits: int
    misses: int
    stale: int
    waited: int
    resolved: int
    failed: int
    evicted: int
    expired: int
