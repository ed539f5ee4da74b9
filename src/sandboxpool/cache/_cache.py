"""`Cache`: one for all sandboxes of a worker, or of all workers; for coroutines and threads."""

from __future__ import annotations

import re
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal

from sandboxpool._context import current_lease
from sandboxpool._exceptions import OptionError
from sandboxpool._options import check_count, check_seconds

from ._core import DEFAULT, MAX_BYTES, MAX_ENTRIES, CacheOptions, Core, Default, core_for
from ._interval import Interval
from ._memory import MemoryStore
from ._operations import Operations, check_resolver

if TYPE_CHECKING:
    from ._redis import RedisStore

_NAME = re.compile(r"[\w.-]{1,100}")


class RequestCache(Operations):
    """The view of a cache whose keys live and die with the request; see `Cache.request`."""

    __slots__ = ("_cache",)

    def __init__(self, cache: Cache) -> None:
        self._cache = cache

    def __repr__(self) -> str:
        return f"<{self._cache!r} for this request>"

    def _core(self) -> Core:
        outer = self._cache._shared
        context = current_lease().context
        key = f"sandboxpool.cache {outer.name}"
        core = context.get(key)
        if core is None:
            core = context.get_or_set(key, lambda: _core_of_request(outer))
        found: Core = core
        return found


class Cache(Operations):
    """A cache that all sandboxes of this process share, or, over Redis, those of all processes.

    Caches of the same name are the same cache, wherever in this process they are made: also in a
    module that each sandbox has of its own (`isolation="module"`), or in a factory that each
    sandbox calls. They must have the same options. It may be used from any number of threads and
    event loops.

    Args:
        name: Its name: letters, digits, `_`, `-` and `.`.
        store: Where entries are; by default in memory. `sandboxpool.cache.RedisStore(url)` keeps
            them in Redis.
        ttl: Seconds that a value is fresh unless told otherwise, `None` for ever.
        jitter: The share of `ttl` that is left off by chance, from 0 to less than 1, so that
            what was stored together does not end together.
        stale_for: Seconds after `ttl` in which `get_or_set()` may return the old value, while a
            new one is on its way or cannot be had.
        retry_after: Seconds after a refresh that failed in which the old value is returned without
            another try.
        resolver_timeout: Seconds that a resolver may take, `None` for no limit.
        max_entries: How many values there may be in memory, `None` for no limit.
        max_bytes: How many bytes they may take, keys and bookkeeping included, `None` for no
            limit. When there is no room, expired values go first, then those whose last use is
            the longest ago (LRU).
        values: `"copy"`: each reader gets a copy of its own (made with pickle). `"frozen"`: all
            readers get one value that refuses to be changed. `"share"`: all readers get the very
            object, and must not change it.
        clock: Returns seconds; for tests. By default the monotonic clock, and Redis' own there.

    Raises:
        OptionError: An option cannot work, or there is a cache of that name with other options.
    """

    __slots__ = ("__weakref__", "_shared")

    def __init__(
        self,
        name: str = "default",
        *,
        store: RedisStore | None = None,
        ttl: float | None = None,
        jitter: float = 0.1,
        stale_for: float = 0.0,
        retry_after: float = 1.0,
        resolver_timeout: float | None = 30.0,
        max_entries: int | Default | None = DEFAULT,
        max_bytes: int | Default | None = DEFAULT,
        values: Literal["copy", "frozen", "share"] = "copy",
        clock: Callable[[], float] | None = None,
    ) -> None:
        _check_plain(name, jitter, clock)
        check_seconds("ttl", ttl, zero=False)
        check_seconds("stale_for", stale_for, optional=False)
        check_seconds("retry_after", retry_after, optional=False)
        check_seconds("resolver_timeout", resolver_timeout, zero=False)
        if store is not None:
            _check_store(store, values, max_entries, max_bytes)
        entries = MAX_ENTRIES if isinstance(max_entries, Default) else max_entries
        size = MAX_BYTES if isinstance(max_bytes, Default) else max_bytes
        check_count("max_entries", entries, least=1, optional=True)
        check_count("max_bytes", size, least=1, optional=True)
        options = CacheOptions(
            ttl, jitter, stale_for, retry_after, resolver_timeout, entries, size, values, clock,
            store,
        )  # fmt: skip
        self._shared = core_for(name, options)

    def __repr__(self) -> str:
        return f"<Cache {self.name!r}{' closed' if self._shared.closed else ''}>"

    def _core(self) -> Core:
        return self._shared

    @property
    def name(self) -> str:
        """Its name."""
        return self._shared.name

    @property
    def request(self) -> RequestCache:
        """A cache of the running request alone, in memory: its keys die with the lease.

        It has the same methods. What is stored there is neither copied nor frozen, because it is
        the request's own; of the limits, `max_entries` holds.

        Raises:
            NoLeaseError: Its methods, outside of a request.
            LeaseEndedError: Its methods, when the request is over.
        """
        return RequestCache(self)

    def interval(
        self,
        key: str,
        seconds: float,
        resolver: Callable[[], Any],
        *,
        stale_for: float | None = None,
    ) -> None:
        """Keep the value of *key* fresh: run *resolver* every so many seconds, for all.

        From then on `get(key)` returns the value, and waits only if there is none yet. The first
        `get()` in an event loop starts a task there which refreshes the value outside of any
        request, as long as the loop runs. If the resolver fails, the old value stays for
        *stale_for*, and the next try comes after `retry_after`. Over Redis one worker refreshes
        the value for all, and another one goes on if it dies.

        Declare it where the cache is made, not in a request.

        Args:
            key: The key.
            seconds: How long a value is fresh.
            resolver: Returns the value: a coroutine function, or a plain one that does not block.
            stale_for: Seconds after that in which the old value may stand in; by default ten
                times *seconds*.

        Raises:
            OptionError: A number cannot work.
        """
        core = self._shared
        core.check(key)
        check_seconds("seconds", seconds, optional=False, zero=False)
        check_seconds("stale_for", stale_for)
        check_resolver(resolver)
        stale = 10 * seconds if stale_for is None else stale_for
        Interval.declare(core, key, seconds, stale, resolver)

    def close(self) -> None:
        """Drop everything that is in memory, stop intervals, close connections, free the name.

        What is in Redis stays there. Resolvers that are running go on, for those who wait.
        """
        self._shared.close()


def _core_of_request(outer: Core) -> Core:
    options = outer.options
    clock = options.clock or monotonic
    own = CacheOptions(
        None, 0.0, 0.0, options.retry_after, options.resolver_timeout, options.max_entries, None,
        "share", clock, None,
    )  # fmt: skip
    return Core(f"{outer.name} of a request", own, MemoryStore(options.max_entries, None, clock))


def _check_plain(name: object, jitter: object, clock: object) -> None:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise OptionError(f"name={name!r}: give up to 100 letters, digits, '_', '-' or '.'.")
    if isinstance(jitter, bool) or not isinstance(jitter, int | float) or not 0 <= jitter < 1:
        raise OptionError(f"jitter={jitter!r}: give a share from 0 to less than 1.")
    if clock is not None and not callable(clock):
        raise OptionError(
            f"clock={clock!r}: give a function that returns seconds, like time.monotonic."
        )


def _check_store(store: Any, values: str, max_entries: object, max_bytes: object) -> None:
    if not callable(getattr(store, "open", None)):
        raise OptionError(
            f"store={store!r}: give a sandboxpool.cache.RedisStore(url), or None for memory."
        )
    for name, limit in (("max_entries", max_entries), ("max_bytes", max_bytes)):
        if not isinstance(limit, Default):
            raise OptionError(
                f"{name}={limit!r} is for caches in memory: the size of one in Redis is bounded "
                "there, by maxmemory and maxmemory-policy."
            )
    if values == "share":
        raise OptionError(
            "values='share' is for caches in memory: what is in Redis can only be copied. "
            "Give values='copy' or 'frozen'."
        )
