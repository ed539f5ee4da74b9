"""The limits of a cache in memory are real, and it is known what has to go."""

from __future__ import annotations

import gc
import random
import tracemalloc
from typing import Any

import pytest

from sandboxpool import Cache, CacheValueError
from sandboxpool.cache._memory import OVERHEAD
from sandboxpool.cache._size import deep_size, flat_size

from .conftest import Clock


@pytest.fixture
def store() -> None:
    """Only about caches in memory."""


def keys(cache: Cache) -> set[str]:
    store: Any = cache._shared.store
    return set(store._entries)


def test_max_entries(make: Any) -> None:
    """As many entries as declared fit, and not one more; the least recently used goes."""
    cache = make(max_entries=100).blocking
    for number in range(100):
        cache.set(f"{number}", number)
    assert [cache.get(f"{number}") for number in range(100)] == list(range(100))
    cache.get("0")
    cache.get_or_set("1", lambda: None)
    cache.incr("2")
    for number in range(100, 103):
        cache.set(f"{number}", number)
    assert [cache.get(f"{number}") for number in (0, 1, 2)] == [0, 1, 3]
    assert [cache.get(f"{number}") for number in (3, 4, 5)] == [None] * 3
    statistics = cache._cache.statistics()
    assert (statistics.entries, statistics.evicted) == (100, 3)


def test_expired_ones_go_first(make: Any, clock: Clock) -> None:
    """Entries that are past their time make room before any that is still good."""
    cache = make(max_entries=3)
    view = cache.blocking
    view.set("good", 1)
    view.set("short", 2, 5)
    view.set("also good", 3, 60)
    clock.now += 6
    view.set("new", 4)
    assert keys(cache) == {"good", "also good", "new"}
    assert cache.statistics().evicted == 0
    assert cache.statistics().expired == 1
    view.set("newer", 5)
    assert keys(cache) == {"also good", "new", "newer"}
    assert cache.statistics().evicted == 1


def test_max_bytes(make: Any) -> None:
    """The bytes of all entries stay below the limit, and are what the entries say."""
    cache = make(max_bytes=100_000, max_entries=None)
    view = cache.blocking
    for number in range(1000):
        view.set(f"{number}", "x" * 1000)
        assert cache.statistics().bytes <= 100_000
    entries = cache.statistics().entries
    assert entries == 100_000 // (flat_size("x" * 1000) + flat_size("999") + OVERHEAD)
    assert view.get("999") == "x" * 1000
    view.set("large", "x" * 90_000)
    assert cache.statistics().bytes <= 100_000
    assert view.get("large") is not None
    view.clear()
    assert (cache.statistics().entries, cache.statistics().bytes) == (0, 0)


@pytest.mark.parametrize("values", ["copy", "frozen", "share"])
def test_larger_than_the_cache(make: Any, values: Any) -> None:
    """A value that is larger than the whole cache is refused; nothing else has to go for it."""
    cache = make(max_bytes=10_000, values=values)
    view = cache.blocking
    view.set("small", 1)
    refused = pytest.raises(CacheValueError, match=r"'large' takes \d+ bytes, more than max_bytes=")
    with refused:
        view.set("large", ["x" * 11_000])
    with refused:
        view.get_or_set("large", big)
    assert view.get("small") == 1
    assert view.get("large") is None


def big() -> list[str]:
    return ["x" * 11_000]


@pytest.mark.parametrize("values", ["copy", "frozen", "share"])
@pytest.mark.parametrize("kind", ["numbers", "texts", "records"])
def test_bytes_are_those_of_the_process(make: Any, values: Any, kind: str) -> None:
    """What the cache counts is what the process takes for it, within a fifth."""
    chance = random.Random(7)

    def value(number: int) -> Any:
        if kind == "numbers":
            return number + 1000
        if kind == "texts":
            return f"{number}" * chance.randrange(1, 200)
        return {"id": number, "tags": [f"tag {number} {n}" for n in range(chance.randrange(9))]}

    cache = make(max_bytes=1_000_000, max_entries=None, values=values)
    view = cache.blocking
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(6000):
            view.set(f"key {number}", value(number), chance.choice([None, 10, 1000]))
            if number % 3 == 0:
                view.set(f"key {number}", value(number), 20)  # what is replaced must be gone
        gc.collect()
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    counted = cache.statistics().bytes
    assert counted > 900_000
    assert taken < 1.2 * counted
    assert taken > 0.5 * counted


def test_bookkeeping_does_not_grow(make: Any, clock: Clock) -> None:
    """Setting few keys again and again leaves nothing behind."""
    cache = make()
    for number in range(5000):
        cache.blocking.set(f"{number % 3}", number, 100)
    store: Any = cache._shared.store
    assert len(store._deaths) < 100
    assert len(store._entries) == 3


def test_size_of_values() -> None:
    """The size of a value counts each object in it once, and nothing of the program."""
    text = "x" * 1000
    assert 1040 <= deep_size(text) <= 1050
    assert deep_size([text, text, text]) < 1300
    assert deep_size({"a": [text], "b": (text[:999],)}) > 2000
    assert deep_size(pytest) < 1
    loop: list[Any] = []
    loop.append(loop)
    assert deep_size(loop) < 200

    class Record:
        def __init__(self) -> None:
            self.text = "y" * 1000

    assert 1000 < deep_size(Record()) < 2500
