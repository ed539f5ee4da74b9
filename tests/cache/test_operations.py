"""What each operation does; the same in memory and in Redis."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import pytest

from sandboxpool import Cache, CacheClosedError, CacheStatistics, CacheValueError, OptionError
from sandboxpool.cache import RedisStore

from .conftest import Clock

Make = Callable[..., Cache]


async def test_a_value_comes_back(cache: Cache) -> None:
    """What is set can be got, until it is deleted; what was never set is the default."""
    assert await cache.get("user") is None
    assert await cache.get("user", "nobody") == "nobody"
    await cache.set("user", {"name": "Ada", "tags": ["a", "b"]})
    assert await cache.get("user") == {"name": "Ada", "tags": ["a", "b"]}
    assert await cache.delete("user") is True
    assert await cache.delete("user") is False
    assert await cache.get("user", "nobody") == "nobody"


@pytest.mark.parametrize(
    "value",
    [
        None, True, False, 0, -7, 2**70, 1.5, float("inf"), "", "text", b"", b"\x00\xff",
        (), (1, [2]), [], [None, {}], {}, {"a": {1: {2}}}, {1, 2}, frozenset({3}), 1 + 2j,
    ],
    ids=repr,
)  # fmt: skip
async def test_values_keep_their_type(cache: Cache, value: Any) -> None:
    """A value comes back equal and of the same type, `None` and false ones included."""
    await cache.set("key", value)
    got = await cache.get("key", "nothing")
    assert got == value
    assert type(got) is type(value)
    resolved: Any = await cache.get_or_set("key", lambda: pytest.fail("there is a value"))
    assert resolved == value


@pytest.mark.parametrize(
    "key", ["a b", "ключ", "{", "}", "{a}b", "*", "[a]", "a:claim", "x" * 5000]
)
async def test_any_text_is_a_key(cache: Cache, key: str) -> None:
    """Keys are any text, and no key is taken for another one's bookkeeping."""
    await cache.set("a", "other")
    await cache.set(key, 1)
    assert await cache.incr(key) == 2
    assert await cache.get_or_set(key, lambda: 0) == 2
    assert await cache.get("a") == "other"
    assert await cache.delete(key)


async def test_ttl(make: Make, clock: Clock) -> None:
    """A value lives for its ttl, by default that of the cache, and with `None` for ever."""
    cache = make(ttl=10)
    await cache.set("default", 1)
    await cache.set("short", 2, 5)
    await cache.set("for ever", 3, None)
    clock.now += 4.9
    assert await cache.get("short") == 2
    clock.now += 0.2
    assert await cache.get("short") is None
    assert await cache.get("default") == 1
    clock.now += 5
    assert await cache.get("default") is None
    assert await cache.delete("default") is False
    clock.now += 1e6
    assert await cache.get("for ever") == 3


async def test_set_starts_anew(make: Make, clock: Clock) -> None:
    """A value that is set again has its own ttl, not what was left of the old one's."""
    cache = make()
    await cache.set("key", 1, 5)
    clock.now += 4
    await cache.set("key", 2, 5)
    clock.now += 4
    assert await cache.get("key") == 2
    await cache.set("key", 3, None)
    clock.now += 100
    assert await cache.get("key") == 3


async def test_jitter_shortens_by_chance(make: Make, clock: Clock) -> None:
    """With jitter, what was stored together ends apart, none of it late and none too early."""
    cache = make(ttl=100, jitter=0.5)
    for number in range(60):
        await cache.set(f"{number}", number)

    async def left() -> int:
        return sum([await cache.get(f"{number}") is not None for number in range(60)])

    clock.now += 49.9
    assert await left() == 60
    clock.now += 25
    assert 5 < await left() < 55
    clock.now += 25.2
    assert await left() == 0


async def test_incr(cache: Cache, clock: Clock) -> None:
    """A counter begins at 0, keeps the time it was given first, and begins anew after that."""
    assert await cache.incr("hits", ttl=10) == 1
    clock.now += 6
    assert await cache.incr("hits", 5, ttl=10) == 6
    assert await cache.get("hits") == 6
    assert await cache.incr("hits", -7) == -1
    clock.now += 6
    assert await cache.get("hits") is None
    assert await cache.incr("hits") == 1
    await cache.set("hits", 40)
    assert await cache.incr("hits", 2) == 42


@pytest.mark.parametrize("value", ["1", 1.0, None, True, [1]], ids=repr)
async def test_incr_needs_a_number(cache: Cache, value: Any) -> None:
    """What is no whole number is not counted up, and stays as it is."""
    await cache.set("key", value)
    with pytest.raises(CacheValueError, match=r"'key' cannot be counted up.*Use a key of its own"):
        await cache.incr("key")
    assert await cache.get("key") == value


async def test_incr_has_64_bits(cache: Cache) -> None:
    """A counter that would have more than 64 bits is refused, and stays as it is."""
    await cache.set("key", 2**63 - 2)
    assert await cache.incr("key") == 2**63 - 1
    with pytest.raises(CacheValueError, match=r"64 bits.*[Ss]et it to 0"):
        await cache.incr("key")
    with pytest.raises(CacheValueError, match="64 bits"):
        await cache.incr("new", 2**63)
    assert await cache.get("key") == 2**63 - 1
    assert await cache.get("new") is None


async def test_incr_is_atomic_for_tasks(cache: Cache) -> None:
    """A hundred tasks that count up at once lose no count, and none gets the same number."""
    seen: list[int] = []

    async def count() -> None:
        seen.append(await cache.incr("key"))

    async with anyio.create_task_group() as tasks:
        for _ in range(100):
            tasks.start_soon(count)
    assert sorted(seen) == list(range(1, 101))


def test_incr_is_atomic_for_threads(cache: Cache) -> None:
    """Threads that count up at once lose no count."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda _: cache.blocking.incr("key"), range(800)))
    finally:
        sys.setswitchinterval(before)
    assert cache.blocking.get("key") == 800


async def test_clear(make: Make) -> None:
    """`clear` removes everything of the cache, and nothing of another one."""
    cache, other = make(), make()
    for number in range(30):
        await cache.set(f"{number}*", number)
    await other.set("0*", "other")
    await cache.clear()
    assert [await cache.get(f"{number}*") for number in range(30)] == [None] * 30
    assert await other.get("0*") == "other"


def test_threads_have_the_same(cache: Cache) -> None:
    """Code that is not async has every operation, on the same entries."""
    view = cache.blocking
    view.set("key", [1])
    assert view.get("key") == [1]
    assert anyio.run(cache.get, "key") == [1]
    assert view.get("other", 7) == 7
    assert view.incr("n", 2) == 2
    assert view.get_or_set("made", lambda: "made") == "made"
    assert view.get_or_set("made", lambda: "again") == "made"
    assert view.delete("key") is True
    view.clear()
    assert view.get("made") is None


async def test_one_name_is_one_cache(make: Make, store: Any, clock: Clock) -> None:
    """Caches of one name are one, wherever they are made; with other options they are refused."""
    first = make(ttl=5)
    second = Cache(first.name, store=store, clock=clock, jitter=0, ttl=5)
    await first.set("key", 1)
    assert await second.get("key") == 1
    with pytest.raises(OptionError, match=r"a cache 'test-\d+'.* ttl=6 instead of 5: give it"):
        Cache(first.name, store=store, clock=clock, jitter=0, ttl=6)


async def test_closed(make: Make) -> None:
    """A closed cache refuses everything, and its name is free."""
    cache = make()
    assert repr(cache) == f"<Cache {cache.name!r}>"
    await cache.set("key", 1)
    cache.close()
    assert repr(cache) == f"<Cache {cache.name!r} closed>"
    with pytest.raises(CacheClosedError, match=r"was closed: make a new one, sandboxpool.Cache\("):
        await cache.get("key")
    with pytest.raises(CacheClosedError):
        cache.blocking.get_or_set("key", lambda: 1)
    again = Cache(cache.name)
    assert await again.get("key") is None
    again.close()


async def test_statistics(make: Make, clock: Clock) -> None:
    """The figures count what they say."""
    cache = make(ttl=10)
    await cache.get("key")
    await cache.get_or_set("key", lambda: 1)
    await cache.get("key")
    await cache.get_or_set("key", lambda: 1)

    def fail() -> None:
        raise LookupError

    with pytest.raises(LookupError):
        await cache.get_or_set("other", fail)
    found = cache.statistics()
    assert isinstance(found, CacheStatistics)
    assert (found.hits, found.misses, found.resolved, found.failed) == (2, 3, 2, 1)
    assert (found.stale, found.waited, found.evicted) == (0, 0, 0)


@pytest.mark.parametrize("key", [None, 1, b"key", "", ("a",)], ids=repr)
async def test_keys_are_text(cache: Cache, key: Any) -> None:
    """What is no text is refused as a key, by every operation."""
    for operation in (
        cache.get,
        cache.delete,
        cache.incr,
        lambda key: cache.set(key, 1),
        lambda key: cache.get_or_set(key, lambda: 1),
    ):
        with pytest.raises(TypeError, match="the keys of a cache are strings, and not empty"):
            await operation(key)
    with pytest.raises(TypeError, match="the keys of a cache are strings"):
        cache.blocking.get(key)


async def test_wrong_arguments(cache: Cache) -> None:
    """What cannot be meant is refused, with what to give instead."""
    with pytest.raises(OptionError, match=r"ttl=0: give a number of seconds, more than 0"):
        await cache.set("key", 1, 0)
    with pytest.raises(OptionError, match=r"ttl=-1"):
        await cache.get_or_set("key", lambda: 1, -1)
    with pytest.raises(OptionError, match=r"stale_for=None: give a number of seconds"):
        await cache.get_or_set("key", lambda: 1, stale_for=None)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match=r"by=1.5: give a whole number"):
        await cache.incr("key", 1.5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"by=True: give a whole number"):
        await cache.incr("key", True)

    async def resolve() -> int:
        return 1

    with pytest.raises(TypeError, match=r"give the function itself, without calling it"):
        await cache.get_or_set("key", resolve())  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="'key' is a coroutine function, which cannot be awaited"):
        _ = cache.blocking.get_or_set("key", resolve)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"name": "a b"}, r"name='a b': give up to 100 letters"),
        ({"name": ""}, r"name='': give up to 100 letters"),
        ({"ttl": 0}, r"ttl=0: give a number of seconds, more than 0, or None"),
        ({"jitter": 1}, r"jitter=1: give a share from 0 to less than 1"),
        ({"jitter": True}, r"jitter=True"),
        ({"stale_for": -1}, r"stale_for=-1: give a number of seconds, 0 or more"),
        ({"retry_after": None}, r"retry_after=None: give a number"),
        ({"resolver_timeout": 0}, r"resolver_timeout=0: give a number"),
        ({"max_entries": 0}, r"max_entries=0: give a whole number of at least 1, or None"),
        ({"max_bytes": 1.5}, r"max_bytes=1.5: give a whole number"),
        ({"values": "frosen"}, r"values='frosen': give one of 'copy', 'frozen', 'share'"),
        ({"clock": 7}, r"clock=7: give a function that returns seconds"),
        ({"store": "redis://localhost"}, r"give a sandboxpool.cache.RedisStore\(url\)"),
        (
            {"store": RedisStore("redis://localhost"), "max_bytes": 1},
            r"max_bytes=1 is for caches in memory.*maxmemory",
        ),
        (
            {"store": RedisStore("redis://localhost"), "values": "share"},
            r"values='share' is for caches in memory.*'copy' or 'frozen'",
        ),
    ],
    ids=str,
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    """An option that cannot work is refused, with the remedy."""
    with pytest.raises(OptionError, match=message):
        Cache(**{"name": "wrong", **options})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"url": "localhost"}, r"url='localhost': give one like 'redis://localhost:6379/0'"),
        ({"prefix": "{"}, r"prefix='\{': give a text without '\{'"),
        ({"takeover_after": 0}, r"takeover_after=0: give a number"),
        ({"timeout": None}, r"timeout=None: give a number"),
        ({"max_connections": 0}, r"max_connections=0: give a whole number"),
        ({"when_down": "ignore"}, r"when_down='ignore': give one of 'raise', 'resolve'"),
        ({"down_for": -1}, r"down_for=-1: give a number"),
    ],
    ids=str,
)
def test_wrong_options_of_redis(options: dict[str, Any], message: str) -> None:
    """An option of the store in Redis that cannot work is refused, with the remedy."""
    with pytest.raises(OptionError, match=message):
        RedisStore(**{"url": "redis://localhost", **options})


def test_password_is_not_shown() -> None:
    """The password in a URL stands in no error and no log."""
    assert "secret" not in repr(RedisStore("redis://user:secret@localhost:6379/0"))


def test_without_redis() -> None:
    """Without the client, the error names the extra; the cache in memory needs none."""
    code = (
        "import sys; sys.modules['redis'] = None\n"
        "import sandboxpool\n"
        "sandboxpool.Cache('shop').blocking.set('a', 1)\n"
        "sandboxpool.cache.RedisStore('redis://localhost')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert "ImportError: RedisStore needs redis" in done.stderr
    assert "pip install sandboxpool[redis]" in done.stderr


def test_a_dying_value_may_use_the_cache() -> None:
    """An object that is dropped by the cache may use the cache in its finalizer."""
    cache = Cache("dying", values="share", max_entries=1)
    said = threading.Event()

    class Dying:
        def __del__(self) -> None:
            cache.blocking.get("b")
            said.set()

    cache.blocking.set("a", Dying())
    cache.blocking.set("b", 1)
    assert said.wait(10)
    cache.close()
