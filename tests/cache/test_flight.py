"""Single flight: one resolver for all who miss, whoever is cancelled, in whichever thread."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from typing import Any

import anyio
import anyio.from_thread
import anyio.to_thread
import pytest
from starlette.exceptions import HTTPException

from sandboxpool import (
    Cache,
    CacheCycleError,
    CacheResolverError,
    CacheTimeoutError,
    CacheValueError,
)
from tests.wrap.client import settle

from .conftest import Clock

Make = Callable[..., Cache]
PATIENCE = 20


class Gate:
    """A resolver that waits until it is let go.

    Attributes:
        runs: How often it was begun.
        ended: How often it came to its end.
        value: What it returns, or raises.
    """

    def __init__(self, value: Any = "value") -> None:
        self.runs = 0
        self.ended = 0
        self.value = value
        self.open = anyio.Event()
        self.entered = anyio.Event()

    async def __call__(self) -> Any:
        self.runs += 1
        self.entered.set()
        await self.open.wait()
        self.ended += 1
        if isinstance(self.value, BaseException):
            raise self.value
        return self.value

    async def begun(self) -> None:
        """Wait until it runs."""
        with anyio.fail_after(PATIENCE):
            await self.entered.wait()


async def waiting(cache: Cache, number: int) -> None:
    """Wait until that many callers wait for a resolver."""
    with anyio.fail_after(PATIENCE):
        while cache.statistics().waited < number:
            await anyio.sleep(0.001)


async def test_a_thousand_misses_resolve_once(cache: Cache) -> None:
    """A thousand who miss a key at once run one resolver, and each gets a value of its own."""
    gate = Gate({"a": [1]})
    got: list[Any] = []

    async def ask() -> None:
        got.append(await cache.get_or_set("key", gate))

    async with anyio.create_task_group() as tasks:
        for _ in range(1000):
            tasks.start_soon(ask)
        await waiting(cache, 999)
        gate.open.set()
    assert gate.runs == 1
    assert got == [{"a": [1]}] * 1000
    assert len({id(value["a"]) for value in got}) == 1000
    found = cache.statistics()
    assert (found.resolved, found.waited, found.misses) == (1, 999, 1000)


async def test_failure_reaches_all(cache: Cache) -> None:
    """If the resolver fails, all who wait get that failure, and the next call tries again."""
    gate = Gate(LookupError("no such user", 7))
    caught: list[BaseException] = []

    async def ask() -> None:
        with pytest.raises(LookupError) as info:
            await cache.get_or_set("key", gate)
        caught.append(info.value)

    async with anyio.create_task_group() as tasks:
        for _ in range(50):
            tasks.start_soon(ask)
        await waiting(cache, 49)
        gate.open.set()
    assert gate.runs == 1
    assert {error.args for error in caught} == {("no such user", 7)}
    assert len({id(error) for error in caught}) == 50
    assert await cache.get_or_set("key", lambda: "now it works") == "now it works"


async def test_failures_are_copies(make: Make) -> None:
    """What a waiter gets has no frame of the one that ran the resolver in its traceback."""
    cache = make()
    gate = Gate()
    gate.value = HTTPException(status_code=404, detail="no such user")
    gate.value.secret = "kept"
    caught: list[Any] = []

    async def ask() -> None:
        mine = object()
        try:
            await cache.get_or_set("key", gate)
        except HTTPException as error:
            caught.append((id(mine), error))

    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(ask)
        await waiting(cache, 2)
        gate.open.set()
    for own, error in caught:
        assert (error.status_code, error.detail, error.secret) == (404, "no such user", "kept")
        frames = error.__traceback__
        mines = []
        while frames is not None:
            mines += [id(v) for k, v in frames.tb_frame.f_locals.items() if k == "mine"]
            frames = frames.tb_next
        assert mines == [own]


async def test_failure_that_cannot_be_copied(make: Make) -> None:
    """An exception that cannot be copied arrives as what it said."""
    cache = make()

    class Odd(Exception):
        def __reduce__(self) -> Any:
            raise TypeError("not me")

        def __new__(cls, *args: Any) -> Any:
            if args != ("from here",):
                raise TypeError("nor so")
            return super().__new__(cls, *args)

    odd = Odd("from here")
    odd.args = ("changed",)
    said: list[str] = []
    gate = Gate(odd)
    caught: list[type[BaseException]] = []

    async def ask() -> None:
        try:
            await cache.get_or_set("key", gate)
        except Exception as error:
            caught.append(type(error))
            said.append(str(error))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask)
        tasks.start_soon(ask)
        await waiting(cache, 1)
        gate.open.set()
    assert sorted(cls.__name__ for cls in caught) == ["CacheResolverError", "Odd"]
    assert CacheResolverError in caught
    assert all("changed" in text for text in said)


async def test_a_failure_leaves_nothing_behind(make: Make) -> None:
    """An error of a resolver goes without the garbage collector, and what its frames held too."""
    cache = make()

    class Mine:
        pass

    async def fail() -> None:
        raise LookupError

    async def ask() -> weakref.ref[Mine]:
        mine = Mine()
        try:
            await cache.get_or_set("key", fail)
        except LookupError:
            pass
        return weakref.ref(mine)

    gc.disable()
    try:
        assert (await ask())() is None
    finally:
        gc.enable()


@pytest.mark.backend_with_uvloop
async def test_a_waiter_that_is_cancelled(cache: Cache) -> None:
    """A waiter that is cancelled goes at once; the resolver and the others are not disturbed."""
    gate = Gate()
    got: list[Any] = []
    scopes: list[anyio.CancelScope] = []

    async def ask() -> None:
        with anyio.CancelScope() as scope:
            scopes.append(scope)
            got.append(await cache.get_or_set("key", gate))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask)
        await gate.begun()
        for _ in range(3):
            tasks.start_soon(ask)
        await waiting(cache, 3)
        scopes[1].cancel()
        scopes[3].cancel()
        await settle()
        gate.open.set()
    assert [scope.cancelled_caught for scope in scopes] == [False, True, False, True]
    assert (gate.runs, gate.ended, got) == (1, 1, ["value"] * 2)


@pytest.mark.backend_with_uvloop
async def test_the_leader_that_is_cancelled(cache: Cache) -> None:
    """If the one who runs the resolver is cancelled, the next one runs its own, for all."""
    gates = [Gate(number) for number in range(4)]
    got: list[Any] = []
    scopes: list[anyio.CancelScope] = []

    async def ask(number: int) -> None:
        with anyio.CancelScope() as scope:
            scopes.append(scope)
            got.append(await cache.get_or_set("key", gates[number]))

    async with anyio.create_task_group() as tasks:
        for number in range(4):
            tasks.start_soon(ask, number)
            if number == 0:
                await gates[0].begun()
            else:
                await waiting(cache, number)
        scopes[0].cancel()
        await gates[1].begun()
        scopes[2].cancel()
        scopes[1].cancel()
        await gates[3].begun()
        gates[3].open.set()
    assert [gate.runs for gate in gates] == [1, 1, 0, 1]
    assert got == [3]
    assert await cache.get("key") == 3


async def test_chosen_and_cancelled_at_once(cache: Cache) -> None:
    """The next one is cancelled in the moment in which it is chosen: the one after it goes on."""
    gates = [Gate(number) for number in range(3)]
    got: list[Any] = []
    scopes: list[anyio.CancelScope] = []

    async def ask(number: int) -> None:
        with anyio.CancelScope() as scope:
            scopes.append(scope)
            got.append(await cache.get_or_set("key", gates[number]))

    async with anyio.create_task_group() as tasks:
        for number in range(3):
            tasks.start_soon(ask, number)
            await (gates[0].begun() if number == 0 else waiting(cache, number))
        scopes[0].cancel()
        scopes[1].cancel()
        await gates[2].begun()
        gates[2].open.set()
    assert got == [2]


async def test_all_are_cancelled(cache: Cache) -> None:
    """When everybody is cancelled nothing is left running, and the next call begins anew."""
    gate = Gate()
    async with anyio.create_task_group() as tasks:
        for _ in range(3):
            tasks.start_soon(cache.get_or_set, "key", gate)
        await waiting(cache, 2)
        tasks.cancel_scope.cancel()
    assert gate.ended == 0
    with anyio.fail_after(PATIENCE):
        assert await cache.get_or_set("key", lambda: "again") == "again"


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_native_cancellation(cache: Cache) -> None:
    """`Task.cancel()` of leader and waiter does what cancelling a scope does."""
    gate, second = Gate(), Gate("second")
    leader = asyncio.create_task(cache.get_or_set("key", gate))
    await gate.begun()
    waiter = asyncio.create_task(cache.get_or_set("key", second))
    other = asyncio.create_task(cache.get_or_set("key", second))
    await waiting(cache, 2)
    leader.cancel()
    other.cancel()
    await second.begun()
    second.open.set()
    assert await waiter == "second"
    for task in (leader, other):
        with pytest.raises(asyncio.CancelledError):
            await task


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_a_dropped_leader(make: Make) -> None:
    """A coroutine that is closed half-way, as by a loop that ends, hands over as well."""
    cache = make(resolver_timeout=None)
    gate = Gate()
    dropped: Any = cache.get_or_set("key", gate)
    own = copy_context()
    own.run(dropped.send, None)
    got = asyncio.create_task(cache.get_or_set("key", lambda: "mine"))
    await settle()
    own.run(dropped.close)
    assert await got == "mine"


def test_threads_resolve_once(cache: Cache) -> None:
    """Threads that miss a key at once run one resolver."""
    runs: list[int] = []
    go_on = threading.Event()

    def resolve() -> list[int]:
        runs.append(1)
        assert go_on.wait(PATIENCE)
        return [7]

    with ThreadPoolExecutor(20) as pool:
        futures = [pool.submit(cache.blocking.get_or_set, "key", resolve) for _ in range(20)]
        while cache.statistics().waited < 19:
            threading.Event().wait(0.001)
        go_on.set()
        got = [future.result(PATIENCE) for future in futures]
    assert runs == [1]
    assert got == [[7]] * 20
    assert len({id(value) for value in got}) == 20


@pytest.mark.parametrize("leads", ["loop", "thread"])
def test_loops_and_threads_resolve_once(cache: Cache, leads: str) -> None:
    """Event loops of both kinds and threads wait for one resolver, wherever it runs."""
    runs: list[str] = []
    go_on = threading.Event()
    begun = threading.Event()

    async def resolve() -> str:
        runs.append("loop")
        begun.set()
        await anyio.to_thread.run_sync(go_on.wait, PATIENCE)
        return "value"

    def resolve_blocking() -> str:
        runs.append("thread")
        begun.set()
        assert go_on.wait(PATIENCE)
        return "value"

    async def ask() -> Any:
        return await cache.get_or_set("key", resolve)

    def in_loop(backend: str) -> Any:
        return anyio.run(ask, backend=backend)

    def in_thread(_: str) -> Any:
        return cache.blocking.get_or_set("key", resolve_blocking)

    with ThreadPoolExecutor(6) as pool:
        first = pool.submit(in_loop if leads == "loop" else in_thread, "asyncio")
        assert begun.wait(PATIENCE)
        rest = [pool.submit(in_loop, backend) for backend in ("asyncio", "trio", "trio")]
        rest += [pool.submit(in_thread, "") for _ in range(2)]
        while cache.statistics().waited < 5:
            threading.Event().wait(0.001)
        go_on.set()
        assert [future.result(PATIENCE) for future in (first, *rest)] == ["value"] * 6
    assert runs == [leads]


def test_a_loop_that_ends_hands_over(cache: Cache) -> None:
    """When the loop of the leader ends, a thread that waits goes on."""
    begun = threading.Event()
    ends = threading.Event()

    async def resolve() -> None:
        begun.set()
        await anyio.sleep_forever()

    async def ask() -> None:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(cache.get_or_set, "key", resolve)
            await anyio.to_thread.run_sync(ends.wait, PATIENCE)
            tasks.cancel_scope.cancel()

    with ThreadPoolExecutor(2) as pool:
        loop = pool.submit(anyio.run, ask)
        assert begun.wait(PATIENCE)
        thread = pool.submit(cache.blocking.get_or_set, "key", lambda: "mine")
        while cache.statistics().waited < 1:
            threading.Event().wait(0.001)
        ends.set()
        assert thread.result(PATIENCE) == "mine"
        loop.result(PATIENCE)


# --- the key is changed meanwhile ---------------------------------------------------------------


@pytest.mark.parametrize("change", ["set", "delete", "incr", "clear"])
async def test_a_change_wins_over_a_resolver(cache: Cache, change: str) -> None:
    """What a resolver computed before the key was changed is not stored after it."""
    gate = Gate("old")
    got: list[Any] = []

    async def ask() -> None:
        got.append(await cache.get_or_set("key", gate))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask)
        await gate.begun()
        tasks.start_soon(ask)
        await waiting(cache, 1)
        if change == "set":
            await cache.set("key", "new")
        elif change == "delete":
            await cache.delete("key")
        elif change == "incr":
            await cache.incr("key")
        else:
            await cache.clear()
        gate.open.set()
    assert got == ["old", "old"]
    new = {"set": "new", "incr": 1}.get(change)
    assert await cache.get("key") == new


async def test_nobody_gets_what_was_deleted(cache: Cache) -> None:
    """Who asks after a delete does not join a resolver that began before it."""
    gate = Gate("old")
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(cache.get_or_set, "key", gate)
        await gate.begun()
        await cache.delete("key")
        with anyio.fail_after(PATIENCE):
            assert await cache.get_or_set("key", lambda: "new") == "new"
        gate.open.set()
    assert await cache.get("key") == "new"


# --- old values ---------------------------------------------------------------------------------


async def test_stale_while_it_is_refreshed(make: Make, clock: Clock) -> None:
    """An old value is refreshed by the first who asks; the others get it at once, meanwhile."""
    cache = make(ttl=10, stale_for=100)
    await cache.get_or_set("key", lambda: "old")
    clock.now += 11
    assert await cache.get("key") is None
    gate = Gate("new")
    got: list[Any] = []

    async def ask() -> None:
        got.append(await cache.get_or_set("key", gate))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask)
        await gate.begun()
        for _ in range(5):
            with anyio.fail_after(PATIENCE):
                assert await cache.get_or_set("key", gate) == "old"
        gate.open.set()
    assert got == ["new"]
    assert gate.runs == 1
    assert await cache.get("key") == "new"
    assert cache.statistics().stale == 5


async def test_stale_while_it_fails(
    make: Make, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """If the refresh fails the old value stays, and the next try comes only after a rest."""
    cache = make(ttl=10, stale_for=100, retry_after=5)
    await cache.get_or_set("key", lambda: "old")
    runs: list[int] = []

    async def fail() -> str:
        runs.append(1)
        raise LookupError("the database is away")

    clock.now += 11
    for _ in range(3):
        assert await cache.get_or_set("key", fail) == "old"
    assert len(runs) == 1
    assert "'key' stays as it was: its refresh failed" in caplog.text
    assert "the database is away" in caplog.text
    clock.now += 5.1
    assert await cache.get_or_set("key", fail) == "old"
    assert len(runs) == 2
    clock.now += 5.1
    assert await cache.get_or_set("key", lambda: "new") == "new"


async def test_stale_up_to_a_bound(make: Make, clock: Clock) -> None:
    """Past its bound an old value is not returned any more: the failure is raised."""
    cache = make(ttl=10, stale_for=20)

    async def fail() -> str:
        raise LookupError

    await cache.get_or_set("key", lambda: "old")
    clock.now += 29.9
    assert await cache.get_or_set("key", fail) == "old"
    clock.now += 0.2
    with pytest.raises(LookupError):
        await cache.get_or_set("key", fail)


async def test_stale_is_asked_for(make: Make, clock: Clock) -> None:
    """Without `stale_for` an expired value is gone; a call may ask for more or less of it."""
    cache = make(ttl=10)

    async def fail() -> str:
        raise LookupError

    await cache.get_or_set("key", lambda: "old")
    await cache.get_or_set("kept", lambda: "old", 10, stale_for=50)
    clock.now += 11
    with pytest.raises(LookupError):
        await cache.get_or_set("key", fail)
    assert await cache.get_or_set("kept", fail) == "old"


async def test_a_refresh_that_is_cancelled(make: Make, clock: Clock) -> None:
    """The one who refreshes an old value is cancelled: the next who asks refreshes it."""
    cache = make(ttl=10, stale_for=100)
    await cache.get_or_set("key", lambda: "old")
    clock.now += 11
    gate = Gate()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(cache.get_or_set, "key", gate)
        await gate.begun()
        tasks.cancel_scope.cancel()
    with anyio.fail_after(PATIENCE):
        while await cache.get_or_set("key", lambda: "new") != "new":
            await anyio.sleep(0.01)  # Redis learns of it a moment later


# --- resolvers ----------------------------------------------------------------------------------


async def test_resolver_timeout(make: Make) -> None:
    """A resolver that takes too long is cancelled, and those who wait get that."""
    cache = make(resolver_timeout=0.05)
    ended: list[str] = []

    async def hang() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            ended.append("cancelled")

    async def ask() -> None:
        with pytest.raises(CacheTimeoutError, match=r"'key' was cancelled after 0.05 s.*raise"):
            await cache.get_or_set("key", hang)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask)
        tasks.start_soon(ask)
    assert ended == ["cancelled"]


async def test_its_own_timeout_error(make: Make) -> None:
    """A `TimeoutError` of the resolver itself is raised as it is."""
    cache = make(resolver_timeout=30)

    async def fail() -> None:
        raise TimeoutError("mine")

    with pytest.raises(TimeoutError, match="mine") as info:
        await cache.get_or_set("key", fail)
    assert type(info.value) is TimeoutError


async def test_a_resolver_that_asks_for_itself(cache: Cache) -> None:
    """A resolver that asks for its own key gets an error, not an endless wait."""

    async def resolve() -> Any:
        return await cache.get_or_set("key", resolve)

    with (
        anyio.fail_after(PATIENCE),
        pytest.raises(CacheCycleError, match="resolver of 'key' asks for 'key' itself"),
    ):
        await cache.get_or_set("key", resolve)


async def test_resolvers_that_wait_for_each_other(make: Make) -> None:
    """Two resolvers, of two caches, that wait for each other: one of them gets an error."""
    first, second = make(), make()
    both = anyio.Event()
    arrived: list[str] = []
    failed: list[str] = []

    async def meet(name: str) -> None:
        arrived.append(name)
        if len(arrived) == 2:
            both.set()
        await both.wait()

    async def a() -> Any:
        await meet("a")
        return await second.get_or_set("b", b)

    async def b() -> Any:
        await meet("b")
        return await first.get_or_set("a", a)

    async def ask(cache: Cache, key: str, resolver: Any) -> None:
        try:
            await cache.get_or_set(key, resolver)
        except CacheCycleError as error:
            failed.append(str(error))

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ask, first, "a", a)
            tasks.start_soon(ask, second, "b", b)
    # It reaches the other one, too, who waited for it.
    assert len(failed) == 2
    assert "which waits for it" in failed[0]


async def test_a_resolver_may_ask_for_another(cache: Cache) -> None:
    """Resolvers that need each other without a circle work, also at the same time."""

    async def leaf() -> int:
        await settle()
        return 1

    async def branch() -> int:
        return 1 + await cache.get_or_set("leaf", leaf)

    async def tree() -> int:
        left: int = await cache.get_or_set("left", branch)
        right: int = await cache.get_or_set("right", branch)
        return left + right

    got: list[int] = []

    async def ask(key: str, resolver: Any) -> None:
        got.append(await cache.get_or_set(key, resolver))

    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            for key, resolver in (("tree", tree), ("leaf", leaf), ("right", branch)) * 3:
                tasks.start_soon(ask, key, resolver)
    assert sorted(got) == [1, 1, 1, 2, 2, 2, 4, 4, 4]


async def test_blocking_in_the_loop_that_resolves(cache: Cache) -> None:
    """Code that blocks a loop for what a task of that loop resolves gets an error instead."""
    gate = Gate()
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(cache.get_or_set, "key", gate)
        await gate.begun()
        with pytest.raises(CacheCycleError, match=r"refreshed by this very thread.*await cache"):
            cache.blocking.get_or_set("key", lambda: 1)
        gate.open.set()


async def test_a_value_that_cannot_be_stored(make: Make) -> None:
    """A resolver whose value cannot be stored fails for all who wait."""
    cache = make()
    gate = Gate(n for n in "")
    caught: list[str] = []

    async def ask() -> None:
        with pytest.raises(CacheValueError, match="'key', a generator, cannot be copied") as info:
            await cache.get_or_set("key", gate)
        caught.append(str(info.value))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask)
        tasks.start_soon(ask)
        await waiting(cache, 1)
        gate.open.set()
    assert len(caught) == 2
