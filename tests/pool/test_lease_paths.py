"""The plain case of a lease is written twice, inlined and as rules: both must do the same."""

from __future__ import annotations

import random
from typing import Any

import attrs
import pytest

from sandboxpool import LeaseEndedError
from sandboxpool._lease import PoolLease
from sandboxpool._pool import Pool
from tests.pool.rig import Clock, Item, Maker, all_acquirable, check, settle

SLOT = ("state", "since", "uses", "expires_at", "retire", "lease")


def state_of(pool: Pool[Item]) -> dict[str, Any]:
    """Return all that the rules know, in a form that two pools can be compared by."""
    slots = pool.slots
    return {
        "statistics": attrs.asdict(pool.statistics()),
        "idle": [slot.item.number for slot in slots.idle],
        "slots": sorted(
            (slot.item.number, *(str(getattr(slot, name)) for name in SLOT)) for slot in slots.all
        ),
    }


@pytest.mark.parametrize("seed", range(25))
async def test_both_paths_do_the_same(seed: int, caplog: pytest.LogCaptureFixture) -> None:
    """A random sequence of uses leaves the same slots, order of idle items and figures."""
    rng = random.Random(seed)
    options: dict[str, Any] = {
        "max_size": rng.randrange(1, 5),
        "max_uses": rng.choice([None, 3]),
        "max_lifetime": rng.choice([None, 40.0]),
        "check_after": rng.choice([None, 0.0, 10.0]),
        "on_acquire": rng.choice([None, None, lambda _: None]),
        "jitter": 0.0,
    }
    resets = rng.choice(["sync", "async", "fails", "sync"])
    steps = [(rng.random(), rng.random(), rng.choice([0.0, 1.0, 15.0])) for _ in range(80)]

    async def play(pool: Pool[Item], clock: Clock) -> list[dict[str, Any]]:
        seen = []
        open_leases: list[PoolLease[Item]] = []
        for roll, which, seconds in steps:
            clock.now += seconds
            if roll < 0.5 and len(open_leases) < pool.slots.max_size:
                lease = pool.lease(timeout=5)
                await lease.__aenter__()
                open_leases.append(lease)
            elif open_leases:
                lease = open_leases.pop(int(which * len(open_leases)))
                if roll > 0.95:
                    lease.retire("worn")
                error = ValueError() if roll > 0.8 else None
                await lease.__aexit__(type(error) if error else None, error, None)
            await settle()
            check(pool.slots)
            seen.append(state_of(pool))
        for lease in open_leases:
            await lease.__aexit__(None, None, None)
            await settle()
        seen.append(state_of(pool))
        return seen

    def reset(item: Item) -> Any:
        if resets == "async":
            return nothing()
        if resets == "fails" and item.number % 3 == 1:
            raise OSError("no")
        return None

    async def look(item: Item) -> bool:
        return item.number % 4 != 2

    played = []
    for slow in (False, True):
        clock = Clock()
        async with Pool(
            Maker(reset=reset, check=look), clock=clock, record_holders=slow, **options
        ) as pool:
            played.append(await play(pool, clock))
            await all_acquirable(pool)
    for number, (fast, slow_) in enumerate(zip(*played, strict=True)):
        assert fast == slow_, f"after step {number}"
    caplog.clear()


async def nothing() -> None:
    """Reset nothing, asynchronously."""


async def test_the_plain_case_takes_the_inlined_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the methods that state the rules a plain lease still works: it does not use them."""
    async with Pool(Maker(), min_size=1, max_size=1) as pool:
        with monkeypatch.context() as patch:
            for name in ("take", "give_back", "wait"):
                patch.delattr(Pool, name)
            async with pool.lease() as item:
                assert item.number == 0
        await all_acquirable(pool)


@pytest.mark.parametrize("slow", [False, True], ids=["inlined", "rules"])
async def test_a_reset_that_uses_the_pool(slow: bool) -> None:
    """A synchronous reset that closes the pool: the item is destroyed, not left idle."""
    maker = Maker()
    pool = Pool(maker, max_size=1, record_holders=slow)
    maker.on_reset = lambda _: pool.begin_close()
    await pool.open()
    lease = pool.lease()
    async with lease:
        pass
    with pytest.raises(LeaseEndedError):
        _ = lease.item
    check(pool.slots)
    await pool.aclose()
    assert maker.alive == 0
    assert pool.statistics().retired == {"closed": 1}
