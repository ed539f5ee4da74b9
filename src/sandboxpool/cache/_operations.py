"""What one can do with a cache, in coroutines and in code that is not async."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar, overload

from sandboxpool._exceptions import CacheValueError
from sandboxpool._options import check_seconds

from ._core import DEFAULT, Core, Default
from ._stats import CacheStatistics
from ._steps import drive, drive_blocking
from ._store import Life

T = TypeVar("T")
D = TypeVar("D")


class Operations:
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
        check_resolver(resolver)
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

    def __init__(self, cache: Operations) -> None:
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
        check_resolver(resolver)
        _check_times(ttl, stale_for)
        steps = core.refreshing(key, core.life(ttl, stale_for), blocking=True).steps()
        value: T = drive_blocking(steps, resolver)
        return value


def check_resolver(resolver: object) -> None:
    """Refuse what is no function."""
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
