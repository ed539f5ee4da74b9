"""Every error of a pool in use: its class, and a text that names object, state and remedy."""

from __future__ import annotations

import re

import anyio
import pytest

from sandboxpool import (
    FactoryError,
    LeaseEndedError,
    NestedAcquireError,
    PoolClosedError,
    PoolError,
    PoolFullError,
    PoolNotOpenError,
    PoolTimeoutError,
    WrongLoopError,
)
from sandboxpool._loop import running_loop
from sandboxpool._pool import Pool
from tests.pool.rig import Caller, Clock, Item, Maker, all_acquirable, check, settle, start


async def fail() -> None:
    raise OSError("no database")


async def test_before_open() -> None:
    """Everything but `aclose` and `statistics` says that the pool is not open yet."""
    pool = Pool(Maker(), name="db")
    for call in (pool.lease().__aenter__, pool.resize, pool.drain):
        with pytest.raises(PoolNotOpenError) as caught:
            await call()
        assert str(caught.value) == (
            "pool 'db' is not open yet: use `async with pool:`, or `await pool.open()` first."
        )
    assert pool.statistics().size == 0
    assert repr(pool) == "<Pool 'db' not open size=0 idle=0 in_use=0 waiting=0>"
    await pool.aclose()
    await pool.aclose()
    with pytest.raises(PoolClosedError):
        await pool.lease().__aenter__()
    with pytest.raises(PoolError) as error:
        await pool.open()
    assert str(error.value) == (
        "pool 'db' is closed already; a pool is opened once. Make a new Pool to start again."
    )


async def test_after_close() -> None:
    """A closed pool says so, to those who come and to those who wait."""
    pool = Pool(Maker(), name="db", max_size=1)
    async with pool, anyio.create_task_group() as tg:
        assert repr(pool) == "<Pool 'db' open size=0 idle=0 in_use=0 waiting=0>"
        with pytest.raises(PoolError, match="pool 'db' is open already; a pool is opened once"):
            await pool.open()
        holder = await start(tg, Caller(pool))
        waiter = await start(tg, Caller(pool))
        pool.begin_close()
        await waiter.over.wait()
        assert isinstance(waiter.error, PoolClosedError)
        assert str(waiter.error) == "pool 'db' was closed while this caller waited."
        holder.leave.set()
    for call in (pool.lease().__aenter__, pool.resize, pool.drain):
        with pytest.raises(PoolClosedError) as caught:
            await call()
        assert str(caught.value) == "pool 'db' is closed: nothing can be leased any more."
    assert repr(pool) == "<Pool 'db' closed size=0 idle=0 in_use=0 waiting=0>"


async def test_exhausted() -> None:
    """A timeout tells the limit, what each item does, who holds them longest, and what to do."""
    clock = Clock()
    async with Pool(Maker(), name="db", max_size=2, clock=clock, max_waiting=1) as pool:
        async with anyio.create_task_group() as tg:
            first = await start(tg, Caller(pool))
            clock.now += 3
            second = await start(tg, Caller(pool))
            clock.now += 1
            waiter = await start(tg, Caller(pool, timeout=5.0))
            told = (
                "2 of max_size=2 in use, 0 being created, 0 being made ready, 0 being destroyed. "
                "Held longest: lease {} for {:.3g} s, lease {} for {:.3g} s. "
                "record_holders=True shows where they were acquired. "
                "Hold leases for less time, or raise max_size."
            )
            with pytest.raises(PoolFullError) as full:
                await pool.lease().__aenter__()
            assert str(full.value) == (
                "pool 'db' is exhausted: 1 callers wait already (max_waiting=1). "
                + told.format(first.lease.id, 4, second.lease.id, 1)
            )
            assert [holder.held for holder in full.value.holders] == [4, 1]
            clock.now += 5
            pool._on_timer()
            await waiter.over.wait()
            assert isinstance(waiter.error, PoolTimeoutError)
            assert isinstance(waiter.error, TimeoutError)
            assert str(waiter.error) == (
                "pool 'db' is exhausted: nothing became free within acquire_timeout=5.0 s. "
                + told.format(first.lease.id, 9, second.lease.id, 6)
            )
            assert [holder.lease_id for holder in waiter.error.holders] == [
                first.lease.id,
                second.lease.id,
            ]
            first.leave.set()
            second.leave.set()
        await all_acquirable_without_limit(pool)


async def all_acquirable_without_limit(pool: Pool[Item]) -> None:
    await settle()
    assert len(pool.slots.idle) == pool.slots.max_size
    await all_acquirable(pool)


async def test_exhausted_because_creates_fail(caplog: pytest.LogCaptureFixture) -> None:
    """A timeout in the pause after a failed create names that failure, also as its cause."""
    maker = Maker(create=fail)
    async with Pool(maker, name="db", create_backoff=60, max_create_backoff=60) as pool:
        with pytest.raises(FactoryError) as told:
            await pool.lease().__aenter__()
        assert str(told.value) == "pool 'db' could not create an item: OSError: no database"
        assert told.value.phase == "create"
        assert isinstance(told.value.__cause__, OSError)
        with pytest.raises(PoolTimeoutError) as caught:
            await pool.lease(timeout=0.01).__aenter__()
        assert str(caught.value) == (
            "pool 'db' is exhausted: nothing became free within acquire_timeout=0.01 s. "
            "0 of max_size=10 in use, 0 being created, 0 being made ready, 0 being destroyed. "
            "The last create failed: OSError: no database. Mend what `create` needs."
        )
        assert isinstance(caught.value.__cause__, OSError)
        check(pool.slots)
    assert "pool 'db': create failed: OSError: no database" in caplog.text


async def test_open_fails_beside_a_success() -> None:
    """A create that fails while the pool opens is reported, though another succeeds after it."""
    both, failed = anyio.Event(), anyio.Event()
    begun = 0

    async def create() -> None:
        nonlocal begun
        turn, begun = begun, begun + 1
        if turn == 0:
            await both.wait()
            # The other one ends in the same instant, before whoever opens the pool is woken.
            failed.set()
            raise OSError("no database")
        both.set()
        await failed.wait()

    pool = Pool(Maker(create=create), name="db", min_size=2)
    with pytest.raises(FactoryError) as caught:
        await pool.open()
    assert isinstance(caught.value.__cause__, OSError)


async def test_open_fails(caplog: pytest.LogCaptureFixture) -> None:
    """A first item that cannot be made: `open` says why, and the pool is closed."""
    hang = False

    async def create() -> None:
        if maker.creates > 1:
            await anyio.sleep_forever()
        await fail()

    maker = Maker(create=create)
    for min_size in (1, 3):  # with 3, two creates hang while the first one fails
        hang = not hang
        maker.creates = 0
        pool = Pool(maker, name="db", min_size=min_size, create_timeout=60)
        with anyio.fail_after(5), pytest.raises(FactoryError) as caught:
            await pool.open()
        assert str(caught.value) == "pool 'db' could not create an item: OSError: no database"
        assert pool.slots.size == 0
        with pytest.raises(PoolError, match="is closed already"):
            await pool.open()
        check(pool.slots)
    caplog.clear()


async def test_on_acquire_fails(caplog: pytest.LogCaptureFixture) -> None:
    """The caller is told which hook failed; the item is retired."""

    def refuse(_: Item) -> None:
        raise OSError("no tenant")

    maker = Maker()
    async with Pool(maker, name="db", on_acquire=refuse) as pool:
        with pytest.raises(FactoryError) as caught:
            await pool.lease().__aenter__()
        assert str(caught.value) == "pool 'db': on_acquire failed: OSError: no tenant"
        assert caught.value.phase == "on_acquire"
        assert isinstance(caught.value.__cause__, OSError)
        await settle()
        assert pool.statistics().retired == {"unhealthy": 1}
        check(pool.slots)
    assert "pool 'db': on_acquire failed" in caplog.text


async def test_ended_leases() -> None:
    """Each wrong use of a lease names the lease, its state and the right use."""
    async with Pool(Maker(), name="db", max_size=1) as pool:
        lease = pool.lease()
        assert repr(lease) == "<PoolLease 0 of 'db' not entered>"
        holds_nothing = "holds nothing: use the item inside of `async with pool.lease() as item:`."
        with pytest.raises(LeaseEndedError) as caught:
            _ = lease.item
        assert str(caught.value) == f"<PoolLease 0 of 'db' not entered> {holds_nothing}"
        with pytest.raises(LeaseEndedError) as caught:
            await lease.__aexit__(None, None, None)
        assert str(caught.value) == (
            "<PoolLease 0 of 'db' not entered> cannot be released: it holds nothing."
        )
        async with lease:
            assert repr(lease) == f"<PoolLease {lease.id} of 'db' open>"
            with pytest.raises(LeaseEndedError, match="entered before: a lease is one use"):
                await lease.__aenter__()
        ended = f"<PoolLease {lease.id} of 'db' ended>"
        with pytest.raises(LeaseEndedError, match=re.escape(f"{ended} {holds_nothing}")):
            lease.retire()
        with pytest.raises(LeaseEndedError) as caught:
            await lease.__aenter__()
        assert str(caught.value) == (
            f"{ended} was entered before: a lease is one use. Call pool.lease() again."
        )
        await all_acquirable(pool)


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_wrong_loop(backend: str) -> None:
    """In a second run of the same thread each call says where the pool belongs."""
    pool = Pool(Maker(), name="db", min_size=1, acquire_timeout=None)
    lease = pool.lease()
    anyio.run(pool.open, backend=backend)

    async def second() -> None:
        for call in (lease.__aenter__, pool.drain, pool.resize):
            with pytest.raises(WrongLoopError) as caught:
                await call()
            assert str(caught.value) == (
                "pool 'db' was opened in another event loop or thread: "
                "use it only there, and make one pool for each loop."
            )

    anyio.run(second, backend=backend)
    assert pool.slots.in_use == 0


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_release_in_the_wrong_loop(backend: str) -> None:
    """A lease that is left in a later run is refused, and is still what it was."""
    pool = Pool(Maker(), name="db", min_size=1)
    leases = [pool.lease()]

    async def first() -> None:
        await pool.open()
        await leases[0].__aenter__()

    async def second() -> str:
        try:
            await leases[0].__aexit__(None, None, None)
        except WrongLoopError as error:
            return str(error)
        return ""

    anyio.run(first, backend=backend)
    assert anyio.run(second, backend=backend) == (
        f"<PoolLease {leases[0].id} of 'db' open> was released in another event loop or thread "
        "than the pool's: nothing has changed, release it where it was acquired."
    )
    assert pool.slots.in_use == 1
    with pytest.warns(ResourceWarning, match="was dropped without being released"):
        leases.clear()


def test_no_loop() -> None:
    """Opened outside of any event loop: told to run one."""
    pool = Pool(Maker())
    opening = pool.open()
    with pytest.raises(RuntimeError, match="needs a running event loop"):
        opening.send(None)
    with pytest.raises(RuntimeError, match=r"asyncio\.run\(\), trio\.run\(\) or anyio\.run\(\)"):
        running_loop()


async def test_nested_acquire(caplog: pytest.LogCaptureFixture) -> None:
    """A hook that acquires from its own pool is told what to do instead."""

    async def create() -> None:
        await pool.lease().__aenter__()

    maker = Maker(create=create)
    pool = Pool(maker, name="db")
    async with pool:
        with pytest.raises(FactoryError) as caught:
            await pool.lease().__aenter__()
        assert isinstance(caught.value.__cause__, NestedAcquireError)
        assert str(caught.value.__cause__) == (
            "a hook of the factory of pool 'db' acquires from that same pool, "
            "which waits for the hook: give the hook a resource of its own."
        )
    caplog.clear()


async def test_close_that_cuts_off_says_so(caplog: pytest.LogCaptureFixture) -> None:
    """A close that ran out of patience is logged with the number of leases."""
    pool = Pool(Maker(), name="db")
    await pool.open()
    lease = pool.lease()
    await lease.__aenter__()
    await pool.aclose(0)
    assert "still has 1 leases 0 s after it began to close; they are cut off" in caplog.text
    assert pool.statistics().retired == {"closed": 1}
