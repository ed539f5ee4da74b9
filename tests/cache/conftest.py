"""Caches for tests: in memory and in a real Redis, with a clock that tests set forward."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import attrs
import pytest

from sandboxpool import Cache
from sandboxpool.cache import RedisStore
from tests.hooks.servers import HOST, fleet  # noqa: F401 - a fixture

_numbers = count()


@attrs.define
class Clock:
    """A clock that stands still until a test sets it forward."""

    now: float = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    """Return a clock that stands still."""
    return Clock()


@pytest.fixture(
    params=["memory", pytest.param("redis", marks=pytest.mark.server)],
)
def store(request: pytest.FixtureRequest) -> Any:
    """Return what `Cache(store=...)` takes, for each backend."""
    if request.param == "memory":
        return None
    return redis_store(request.getfixturevalue("fleet")("redis"))


@pytest.fixture
def make(store: Any, clock: Clock) -> Iterator[Callable[..., Cache]]:
    """Make caches that are closed in the end, and have names of their own."""
    made: list[Cache] = []

    def make_cache(**options: Any) -> Cache:
        options = {"store": store, "clock": clock, "jitter": 0, **options}
        cache = Cache(f"test-{next(_numbers)}", **options)
        made.append(cache)
        return cache

    yield make_cache
    for cache in made:
        if not cache._shared.closed:
            if store is not None:
                cache.blocking.clear()
            cache.close()


@pytest.fixture
def cache(make: Callable[..., Cache]) -> Cache:
    """Return a cache."""
    return make()


def redis_store(port: int, **options: Any) -> RedisStore:
    """Return a store in the server at a port."""
    return RedisStore(f"redis://{HOST}:{port}/0", **options)
