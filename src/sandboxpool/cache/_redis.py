"""Entries in Redis, for all workers: one cache, one refresh.

The client is redis-py's synchronous one, for coroutines in worker threads. So the same code serves
asyncio, Trio, threads and sandboxes with event loops of their own, which share its connections;
and an operation whose caller is cancelled is carried out all the same, so that no connection goes
back to the pool with half of a reply in it (redis/redis-py#2665).
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from functools import partial
from math import inf
from time import monotonic
from typing import Any, Literal, TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread
import attrs

from sandboxpool._exceptions import (
    CacheResolverError,
    CacheUnavailableError,
    CacheValueError,
    OptionError,
)
from sandboxpool._options import check_count, check_seconds

from . import _scripts
from ._claims import Claims
from ._flight import copied
from ._memory import LARGEST, not_a_number
from ._store import Found, Life, Start
from ._values import Pickled, pickled

T = TypeVar("T")

_limiters: anyio.lowlevel.RunVar[dict[int, anyio.CapacityLimiter]] = anyio.lowlevel.RunVar(
    "sandboxpool_cache_limiters"
)


@attrs.frozen(init=False)
class RedisStore:
    """Keeps the entries of a cache in Redis: `Cache("shop", store=RedisStore(url))`.

    All workers with the same *url*, *prefix* and name of the cache share it. Values are pickled:
    whoever can write to that Redis can run code in the workers, so it must be trusted as they are.

    Args:
        url: Of the server, such as `redis://localhost:6379/0`.
        prefix: What the keys begin with, before the name of the cache.
        takeover_after: Seconds after which another worker goes on when the one that was running a
            resolver has died.
        timeout: Seconds that the server may take for anything.
        max_connections: How many connections there may be in this process.
        when_down: What `get_or_set()` does if the server does not answer: `"raise"`, or
            `"resolve"`: run the resolver, once for all callers of this process at a time.
            Everything else raises `CacheUnavailableError`.
        down_for: Seconds after a failure in which the server is not asked again, so that not
            every request waits for it.

    Raises:
        ImportError: redis is not installed.
        OptionError: An option cannot work.
    """

    url: str
    prefix: str
    takeover_after: float
    timeout: float
    max_connections: int
    when_down: str
    down_for: float

    def __init__(
        self,
        url: str,
        *,
        prefix: str = "sandboxpool",
        takeover_after: float = 5.0,
        timeout: float = 2.0,
        max_connections: int = 16,
        when_down: Literal["raise", "resolve"] = "raise",
        down_for: float = 1.0,
    ) -> None:
        try:
            import redis  # noqa: F401
        except ImportError as error:
            raise ImportError(
                "RedisStore needs redis, which is not installed: pip install sandboxpool[redis]."
            ) from error
        _check(url, prefix, when_down)
        check_seconds("takeover_after", takeover_after, optional=False, zero=False)
        check_seconds("timeout", timeout, optional=False, zero=False)
        check_seconds("down_for", down_for, optional=False)
        check_count("max_connections", max_connections, least=1)
        self.__attrs_init__(
            url, prefix, takeover_after, timeout, max_connections, when_down, down_for
        )

    def __repr__(self) -> str:
        # Without the password that may be in the URL.
        return f"RedisStore({re.sub(r'//[^@/]*@', '//...@', self.url)!r})"

    def open(self, name: str, clock: Callable[[], float] | None) -> OpenStore:
        """Return what holds the entries of the cache *name*."""
        return OpenStore(self, name, clock)


class OpenStore:
    """The entries of one cache in Redis. See `Store`."""

    blocks = True

    def __init__(self, options: RedisStore, name: str, clock: Callable[[], float] | None) -> None:
        import redis
        from redis.backoff import NoBackoff
        from redis.retry import Retry

        self._options = options
        self._prefix = f"{options.prefix}:{name}:"
        self._clock = clock
        self._down_until = -inf
        self.resolves_when_down = options.when_down == "resolve"
        pool = redis.BlockingConnectionPool.from_url(
            options.url,
            max_connections=options.max_connections,
            timeout=options.timeout,
            socket_timeout=options.timeout,
            socket_connect_timeout=options.timeout,
            # `incr` must not be sent twice. A connection that the server has closed meanwhile is
            # noticed, and opened anew, when it is taken out of the pool.
            retry=Retry(NoBackoff(), 0),
            decode_responses=False,
        )
        self._client = redis.Redis(connection_pool=pool)
        self._errors = (redis.ConnectionError, redis.TimeoutError, redis.BusyLoadingError, OSError)
        self._response_error: type[Exception] = redis.ResponseError
        script = self._client.register_script
        self._read = script(_scripts.READ)
        self._write = script(_scripts.WRITE)
        self._delete = script(_scripts.DELETE)
        self._incr = script(_scripts.INCR)
        self._start = script(_scripts.START)
        self._finish = script(_scripts.FINISH)
        self._fail = script(_scripts.FAIL)
        self._claim = script(_scripts.CLAIM)
        self._claims = Claims(
            self._renew, options.takeover_after / 3, f"sandboxpool claims of cache {name}"
        )

    # --- entries --------------------------------------------------------------------------------

    async def call(self, function: Callable[[], T]) -> T:
        limiters = _limiters.get({})
        if not limiters:
            _limiters.set(limiters)
        limiter = limiters.get(id(self))
        if limiter is None:
            limiter = limiters[id(self)] = anyio.CapacityLimiter(self._options.max_connections)
        return await anyio.to_thread.run_sync(function, limiter=limiter)

    def read(self, key: str) -> Found | None:
        found = self._run(self._read, key)
        if found is None:
            return None
        kind, value, remaining, resting = found
        left = float(remaining) if remaining else inf
        return Found(_decoded(kind, value), left, bool(resting))

    def write(self, key: str, packed: Any, size: int, life: Life) -> None:
        self._run(self._write, key, *_encoded(key, packed), *_seconds(life))

    def delete(self, key: str) -> bool:
        return bool(self._run(self._delete, key))

    def incr(self, key: str, by: int, life: Life) -> int:
        if not -LARGEST - 1 <= by <= LARGEST:
            raise _too_large(key, by)
        try:
            return int(self._run(self._incr, key, by, _seconds(life)[0]))
        except self._response_error as error:
            if "NOTANUMBER" in str(error):
                raise not_a_number(key) from None
            if "overflow" in str(error):
                raise _too_large(key, by) from None
            raise

    def clear(self) -> None:
        pattern = re.sub(r"([\\\[\]*?])", r"\\\1", self._prefix) + "*"
        self._guarded(partial(self._clear, pattern))

    def _clear(self, pattern: str) -> None:
        batch: list[bytes] = []
        for key in self._client.scan_iter(pattern, count=1000):
            batch.append(key)
            if len(batch) == 1000:
                self._client.unlink(*batch)
                batch.clear()
        if batch:
            self._client.unlink(*batch)

    # --- refreshes ------------------------------------------------------------------------------

    def start(self, key: str, token: str, waited_for: str) -> Start:
        claim = int(self._options.takeover_after * 1000)
        verdict, *more = self._run(self._start, key, token, waited_for, claim)
        if verdict == b"found":
            return Start("found", packed=_decoded(*more))
        if verdict == b"wait":
            return Start("wait", token=more[0].decode())
        if verdict == b"failed":
            return Start("failed", error=_error_of(more[0]))
        return Start("lead")

    def hold(self, key: str, token: str, seconds: float | None) -> None:
        self._claims.hold(key, token, inf if seconds is None else seconds)

    def finish(self, key: str, token: str, packed: Any, size: int, life: Life) -> None:
        self._claims.end(key, token)
        self._run(self._finish, key, token, *_encoded(key, packed), *_seconds(life))

    def fail(self, key: str, token: str, error: Exception, rest: float) -> None:
        self._claims.end(key, token)
        self._run(self._fail, key, token, _bytes_of(error), repr(rest))

    def drop(self, key: str, token: str) -> None:
        self._claims.drop(key, token)

    def _renew(self, key: str, token: str, keep: bool) -> None:
        claim = int(self._options.takeover_after * 1000) if keep else 0
        keys = self._keys(key)[1:2]
        self._guarded(lambda: self._claim(keys=keys, args=[token, claim]))

    # --- the server -----------------------------------------------------------------------------

    def usage(self) -> tuple[None, None]:
        return None, None

    def close(self) -> None:
        self._claims.close()
        self._client.close()
        self._client.connection_pool.disconnect()

    def after_fork(self) -> None:
        """Start anew in a forked process; connections look after themselves."""
        self._claims.after_fork()

    def _keys(self, key: str) -> list[str]:
        # The braces have a cluster keep the three together.
        entry = f"{self._prefix}{{{key}}}"
        return [entry, f"{entry}:claim", f"{entry}:failure"]

    def _run(self, script: Any, key: str, *arguments: Any) -> Any:
        now = "" if self._clock is None else repr(self._clock())
        keys = self._keys(key)
        return self._guarded(lambda: script(keys=keys, args=[now, *arguments]))

    def _guarded(self, function: Callable[[], T]) -> T:
        if monotonic() < self._down_until:
            raise CacheUnavailableError(
                f"{self._options!r} did not answer a moment ago, and is not asked again yet: "
                "see that it runs and can be reached."
            )
        try:
            return function()
        except self._errors as error:
            self._down_until = monotonic() + self._options.down_for
            raise CacheUnavailableError(
                f"{self._options!r} does not answer ({error}): see that it runs and can be reached."
            ) from error


def _check(url: object, prefix: object, when_down: object) -> None:
    if not isinstance(url, str) or not re.match(r"(rediss?|unix)://", url):
        raise OptionError(f"url={url!r}: give one like 'redis://localhost:6379/0'.")
    if not isinstance(prefix, str) or not prefix or "{" in prefix:
        raise OptionError(f"prefix={prefix!r}: give a text without '{{'.")
    if when_down not in ("raise", "resolve"):
        raise OptionError(f"when_down={when_down!r}: give one of 'raise', 'resolve'.")


def _seconds(life: Life) -> tuple[str, str]:
    return "" if life.fresh is None else repr(life.fresh), repr(life.stale)


def _encoded(key: str, packed: Any) -> tuple[str, Any]:
    if type(packed) is int and -LARGEST <= packed <= LARGEST:
        return "i", packed
    return "p", packed.data if type(packed) is Pickled else pickled(key, packed)


def _decoded(kind: bytes, value: bytes) -> Any:
    return int(value) if kind == b"i" else Pickled(value)


def _bytes_of(error: Exception) -> bytes:
    try:
        data = pickle.dumps(copied(error))
        pickle.loads(data)  # some can be pickled, but not be made again
    except Exception:
        return pickle.dumps(
            CacheResolverError(
                f"the resolver failed in another process with {type(error).__qualname__}: {error}"
            )
        )
    return data


def _error_of(data: bytes) -> Exception:
    try:
        error = pickle.loads(data)
    except Exception as reason:
        return CacheResolverError(f"the resolver failed in another process ({reason}).")
    return error if isinstance(error, Exception) else CacheResolverError(repr(error))


def _too_large(key: str, by: int) -> CacheValueError:
    return CacheValueError(
        f"{key!r} would have more than 64 bits with {by} added: set it to 0, or let it expire."
    )
