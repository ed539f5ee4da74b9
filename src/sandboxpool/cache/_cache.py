"""`Cache`: one for all sandboxes of a worker, or of all workers; for coroutines and threads."""

from __future__ import annotations

import re
import sys
from collections.abc import Awaitable, Callable
from time import monotonic
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from sandboxpool._context import current_lease
from sandboxpool._exceptions import CacheValueError, OptionError
from sandboxpool._options import check_count, check_seconds

from ._core import DEFAULT, MAX_BYTES, MAX_ENTRIES, CacheOptions, Core, Default, core_for
from ._interval import Interval
from ._memory import MemoryStore
from ._stats import CacheStatistics
from ._steps import drive, drive_blocking
from ._store import Life

if TYPE_CHECKING:
    from ._redis import RedisStore

T = TypeVar("T")
D = TypeVar("D")

_NAME = re.compile(r"[\w.-]{1,100}")


class _Operations:
    """What one can do with a cache in coroutines."""

    __slots__ = ()

    def _core(self) -> Core:
        raise NotImplementedError

    async def get(self, key: str, default: D = None) -> Any | D:  # type: ignore[assignment]
        """Return the value of *key*, or *default*.

        A value that is past its `ttl` counts as none, unless `interval()` looks after it.

        Args:
            key: The key.
            default: What to return if there is no value.

        Raises:
            CacheUnavailableError: The server that holds the cache does not answer.
        """
        core = self._core()
        core.check(key)
        if key in core.intervals:
            return await core.intervals[key].read()
        store = core.store
        found = await store.call(lambda: store.read(key)) if store.blocks else store.read(key)
        return core.value(key, found, default)

    async def set(self, key: str, value: Any, ttl: float | Default | None = DEFAULT) -> None:
        """Store *value* under *key*.

        A resolver of `get_or_set()` that is running for the key cannot overwrite it any more.

        Args:
            key: The key.
            value: The value.
            ttl: Seconds that it lives, `None` for ever; by default the `ttl` of the cache.

        Raises:
            CacheValueError: The value cannot be stored as the cache stores them, or is too large.
            CacheUnavailableError: The server that holds the cache does not answer.
        """
        core = self._core()
        core.check(key)
        check_seconds("ttl", None if isinstance(ttl, Default) else ttl, zero=False)
        packed, size = core.packing.pack(key, value)
        life = core.life(ttl)
        if core.store.blocks:
            await core.store.call(lambda: core.set(key, packed, size, life))
        else:
            core.set(key, packed, size, life)

    async def delete(self, key: str) -> bool:
        """Remove the value of *key*; who asks from now on gets nothing that is older.

        Returns:
            Whether there was one.

        Raises:
            CacheUnavailableError: The server that holds the cache does not answer.
        """
        core = self._core()
        core.check(key)
        if core.store.blocks:
            return bool(await core.store.call(lambda: core.delete(key)))
        return core.delete(key)

    async def incr(self, key: str, by: int = 1, *, ttl: float | Default | None = DEFAULT) -> int:
        """Add *by* to the whole number under *key*, in one step, and return the sum.

        Without a value it begins at 0, and lives for *ttl*; a counter that exists keeps its time.

        Args:
            key: The key.
            by: What to add; may be negative.
            ttl: Seconds that a new counter lives, without jitter, `None` for ever; by default the
                `ttl` of the cache.

        Raises:
            CacheValueError: The value is no whole number, or the sum has more than 64 bits.
            CacheUnavailableError: The server that holds the cache does not answer.
        """
        core = self._core()
        life = _counter_life(core, key, by, ttl)
        if core.store.blocks:
            return int(await core.store.call(lambda: core.incr(key, by, life)))
        return core.incr(key, by, life)

    async def clear(self) -> None:
        """Remove every value."""
        core = self._core()
        core.check("all")
        if core.store.blocks:
            await core.store.call(core.clear)
        else:
            core.clear()

    @overload
    async def get_or_set(
        self,
        key: str,
        resolver: Callable[[], Awaitable[T]],
        ttl: float | Default | None = ...,
        *,
        stale_for: float | Default = ...,
    ) -> T: ...

    @overload
    async def get_or_set(
        self,
        key: str,
        resolver: Callable[[], T],
        ttl: float | Default | None = ...,
        *,
        stale_for: float | Default = ...,
    ) -> T: ...

    async def get_or_set(
        self,
        key: str,
        resolver: Callable[[], Any],
        ttl: float | Default | None = DEFAULT,
        *,
        stale_for: float | Default = DEFAULT,
    ) -> Any:
        """Return the value of *key*; without one, run *resolver* and store what it returns.

        However many miss the key at once, one of them runs its resolver, as part of its own
        request, and the others wait for what it returns or raises. If that one is cancelled, the
        next goes on. A value past its *ttl* by at most *stale_for* is refreshed by the first who
        asks; everybody else gets the old value meanwhile, and that one too if the resolver fails.

        Args:
            key: The key.
            resolver: Returns the value. A coroutine function is awaited; a plain function runs
                right here, so it must not block.
            ttl: Seconds that the value is fresh, `None` for ever; by default that of the cache.
            stale_for: Seconds after that in which the old value may stand in; by default that of
                the cache.

        Raises:
            CacheValueError: The value cannot be stored as the cache stores them, or is too large.
            CacheCycleError: The resolver of another key waits for this one, which waits for it.
            CacheTimeoutError: The resolver took longer than `resolver_timeout`.
            CacheUnavailableError: The server that holds the cache does not answer.
            Exception: Whatever the resolver raises; who waited gets a copy without traceback.
        """
        core = self._core()
        core.check(key)
        _check_resolver(resolver)
        _check_times(ttl, stale_for)
        store = core.store
        if not store.blocks:
            found = store.read(key)
            if found is not None and found.fresh:
                try:
                    value = core.packing.unpack(key, found.packed)
                except CacheValueError:
                    pass  # the steps below know what to do then
                else:
                    core.counts.hits += 1
                    return value
        steps = core.refreshing(key, core.life(ttl, stale_for), blocking=False).steps()
        call = store.call if store.blocks else None
        return await drive(steps, call, resolver, core.options.resolver_timeout)

    @property
    def blocking(self) -> BlockingCache:
        """The same cache for code that is not async, such as a `def` endpoint."""
        return BlockingCache(self)

    def statistics(self) -> CacheStatistics:
        """Return what the cache holds and what it has done in this process."""
        return self._core().statistics()


class BlockingCache:
    """A cache for code that is not async; see `Cache.blocking`.

    The methods are those of the cache. In a request that runs cooperatively they wait without
    blocking others, everywhere else they block the running thread.
    """

    __slots__ = ("_cache",)

    def __init__(self, cache: _Operations) -> None:
        self._cache = cache

    def __repr__(self) -> str:
        return f"<{self._cache!r} for code that blocks>"

    def get(self, key: str, default: D = None) -> Any | D:  # type: ignore[assignment]
        """Return the value of *key*, or *default*. See `Cache.get`."""
        core = self._cache._core()
        core.check(key)
        if core.store.blocks and _is_cooperative():
            return _await(self._cache.get(key, default))
        if key in core.intervals:
            return core.intervals[key].read_blocking()
        return core.value(key, core.store.read(key), default)

    def set(self, key: str, value: Any, ttl: float | Default | None = DEFAULT) -> None:
        """Store *value* under *key*. See `Cache.set`."""
        core = self._cache._core()
        if core.store.blocks and _is_cooperative():
            _await(self._cache.set(key, value, ttl))
            return
        core.check(key)
        check_seconds("ttl", None if isinstance(ttl, Default) else ttl, zero=False)
        packed, size = core.packing.pack(key, value)
        core.set(key, packed, size, core.life(ttl))

    def delete(self, key: str) -> bool:
        """Remove the value of *key*; return whether there was one. See `Cache.delete`."""
        core = self._cache._core()
        core.check(key)
        if core.store.blocks and _is_cooperative():
            return bool(_await(self._cache.delete(key)))
        return core.delete(key)

    def incr(self, key: str, by: int = 1, *, ttl: float | Default | None = DEFAULT) -> int:
        """Add *by* to the whole number under *key*, in one step. See `Cache.incr`."""
        core = self._cache._core()
        life = _counter_life(core, key, by, ttl)
        if core.store.blocks and _is_cooperative():
            return int(_await(self._cache.incr(key, by, ttl=ttl)))
        return core.incr(key, by, life)

    def clear(self) -> None:
        """Remove every value."""
        core = self._cache._core()
        core.check("all")
        if core.store.blocks and _is_cooperative():
            _await(self._cache.clear())
        else:
            core.clear()

    def get_or_set(
        self,
        key: str,
        resolver: Callable[[], T],
        ttl: float | Default | None = DEFAULT,
        *,
        stale_for: float | Default = DEFAULT,
    ) -> T:
        """Return the value of *key*; without one, run *resolver*. See `Cache.get_or_set`.

        The resolver is a plain function, and `resolver_timeout` cannot cut it off.

        Raises:
            CacheCycleError: A coroutine of this very thread runs the resolver of that key, which
                could never end while the thread waits for it.
            TypeError: The resolver is a coroutine function.
        """
        core = self._cache._core()
        if _is_cooperative():
            awaited: T = _await(self._cache.get_or_set(key, resolver, ttl, stale_for=stale_for))
            return awaited
        core.check(key)
        _check_resolver(resolver)
        _check_times(ttl, stale_for)
        steps = core.refreshing(key, core.life(ttl, stale_for), blocking=True).steps()
        value: T = drive_blocking(steps, resolver)
        return value


class RequestCache(_Operations):
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


class Cache(_Operations):
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
        _check_resolver(resolver)
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


def _check_resolver(resolver: object) -> None:
    if not callable(resolver):
        getattr(resolver, "close", bool)()
        raise TypeError(f"resolver={resolver!r}: give the function itself, without calling it.")


def _check_times(ttl: object, stale_for: object) -> None:
    if not isinstance(ttl, Default):
        check_seconds("ttl", ttl, zero=False)
    if not isinstance(stale_for, Default):
        check_seconds("stale_for", stale_for, optional=False)


def _counter_life(core: Core, key: str, by: object, ttl: float | Default | None) -> Life:
    core.check(key)
    _check_times(ttl, DEFAULT)
    if isinstance(by, bool) or not isinstance(by, int):
        raise TypeError(f"by={by!r}: give a whole number.")
    return Life(core.options.ttl if isinstance(ttl, Default) else ttl)


def _is_cooperative() -> bool:
    cooperative: Any = sys.modules.get("sandboxpool.run.cooperative")
    return cooperative is not None and cooperative.stepper() is not None


def _await(awaitable: Any) -> Any:
    from sandboxpool.run.cooperative import await_

    return await_(awaitable)
