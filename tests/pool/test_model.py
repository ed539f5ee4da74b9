"""The rules and the pool against a small model, in random order."""

from __future__ import annotations

import random
from math import inf
from typing import Any

import anyio
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from sandboxpool import FactoryError, PoolClosedError, PoolFullError, PoolTimeoutError
from sandboxpool._pool import Pool
from sandboxpool._slots import Job, Limits
from tests.pool.model import Model
from tests.pool.rig import Caller, Item, Maker, all_acquirable, check, passes, run_in_virtual_time

LIMITS = st.builds(
    Limits,
    max_creating=st.integers(1, 4),
    max_waiting=st.none() | st.integers(0, 6),
    max_uses=st.none() | st.integers(1, 4),
    max_lifetime=st.none() | st.just(20.0),
    max_idle=st.none() | st.just(10.0),
    check_after=st.none() | st.sampled_from([0.0, 5.0]),
    prepares=st.booleans(),
    replaces=st.booleans(),
    create_backoff=st.just(0.5),
)
INDEX = st.integers(0, 1000)


class PoolMachine(RuleBasedStateMachine):
    """Every step that a pool can take, in any order that makes sense."""

    model: Model

    @initialize(limits=LIMITS, sizes=st.tuples(st.integers(0, 4), st.integers(1, 6)))
    def start(self, limits: Limits, sizes: tuple[int, int]) -> None:
        self.model = Model(min(sizes), max(sizes), limits)

    def some(self, index: int, places: list[Any]) -> int:
        return index % len(places)

    @rule(timeout=st.sampled_from([0.0, 1.0, 5.0, 30.0, inf]))
    def acquire(self, timeout: float) -> None:
        self.model.acquire(timeout)

    @precondition(lambda self: self.model.waiting)
    @rule(index=INDEX)
    def cancel(self, index: int) -> None:
        self.model.cancel(self.some(index, self.model.waiting))

    @precondition(lambda self: self.model.leased)
    @rule(index=INDEX)
    def cancel_granted(self, index: int) -> None:
        self.model.cancel_granted(self.some(index, self.model.leased))

    @precondition(lambda self: self.model.leased)
    @rule(index=INDEX, retire=st.sampled_from([False, False, False, True]))
    def release(self, index: int, retire: bool) -> None:
        self.model.release(self.some(index, self.model.leased), retire)

    @precondition(lambda self: self.model.resetting)
    @rule(index=INDEX, ok=st.sampled_from([True, True, True, False]))
    def end_reset(self, index: int, ok: bool) -> None:
        self.model.end_reset(self.some(index, self.model.resetting), ok)

    @precondition(lambda self: self.model.under_way[Job.CREATE])
    @rule(index=INDEX, ok=st.sampled_from([True, True, True, False]))
    def end_create(self, index: int, ok: bool) -> None:
        self.model.end_create(self.some(index, self.model.under_way[Job.CREATE]), ok)

    @precondition(lambda self: self.model.under_way[Job.PREPARE])
    @rule(index=INDEX, outcome=st.sampled_from(["ok", "ok", "ok", "unhealthy", "told"]))
    def end_prepare(self, index: int, outcome: str) -> None:
        self.model.end_prepare(self.some(index, self.model.under_way[Job.PREPARE]), outcome)

    @precondition(lambda self: self.model.under_way[Job.DESTROY])
    @rule(index=INDEX)
    def end_destroy(self, index: int) -> None:
        self.model.end_destroy(self.some(index, self.model.under_way[Job.DESTROY]))

    @rule(seconds=st.sampled_from([0.0, 0.1, 1.0, 6.0, 60.0]))
    def pass_time(self, seconds: float) -> None:
        self.model.pass_time(seconds)

    @precondition(lambda self: not self.model.slots.closed)
    @rule(sizes=st.tuples(st.integers(0, 4), st.integers(1, 6)))
    def resize(self, sizes: tuple[int, int]) -> None:
        self.model.resize(min(sizes), max(sizes))

    @precondition(lambda self: not self.model.slots.closed)
    @rule()
    def drain(self) -> None:
        self.model.drain()

    @precondition(lambda self: not self.model.slots.closed and self.model.now > 60)
    @rule()
    def close(self) -> None:
        self.model.close()

    @precondition(lambda self: self.model.slots.closed and self.model.leased)
    @rule()
    def cut_off(self) -> None:
        self.model.cut_off()

    def teardown(self) -> None:
        if hasattr(self, "model"):
            self.model.finish()


PoolMachine.TestCase.settings = settings(
    max_examples=80,
    stateful_step_count=50,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


TestRules = PoolMachine.TestCase


@pytest.mark.parametrize("seed", range(4))
def test_no_37_soak(seed: int) -> None:
    """A day in virtual time with random everything, compared with the model after each step."""
    rng = random.Random(seed)
    model = Model(
        1,
        8,
        Limits(
            max_creating=3,
            max_waiting=12,
            max_uses=rng.choice([None, 50]),
            max_lifetime=3600.0,
            max_idle=300.0,
            check_after=rng.choice([None, 60.0]),
            prepares=seed % 2 == 1,
            replaces=seed % 4 > 1,
        ),
    )
    while model.now < 86_400:
        roll = rng.random()
        jobs = [job for job in Job if model.under_way[job]]
        if roll < 0.35:
            model.acquire(rng.choice([1.0, 30.0, 30.0, inf]))
        elif roll < 0.40 and model.waiting:
            model.cancel(rng.randrange(len(model.waiting)))
        elif roll < 0.42 and model.leased:
            model.cancel_granted(rng.randrange(len(model.leased)))
        elif roll < 0.60 and model.leased:
            model.release(rng.randrange(len(model.leased)), rng.random() < 0.02)
        elif roll < 0.75 and model.resetting:
            model.end_reset(rng.randrange(len(model.resetting)), rng.random() > 0.02)
        elif roll < 0.95 and jobs:
            job = rng.choice(jobs)
            index = rng.randrange(len(model.under_way[job]))
            if job is Job.CREATE:
                model.end_create(index, rng.random() > 0.1)
            elif job is Job.PREPARE:
                model.end_prepare(index, rng.choice(["ok"] * 20 + ["unhealthy", "told"]))
            else:
                model.end_destroy(index)
        elif roll < 0.951:
            low = rng.randrange(3)
            model.resize(low, low + rng.randrange(1, 9))
        elif roll < 0.952:
            model.drain()
        else:
            busy = bool(model.leased or model.waiting)
            model.pass_time(rng.expovariate(1 / (90 if busy else 600)))
    model.resize(1, 8)
    model.finish()
    assert model.destroyed > 20
    assert model.leases > 300


@pytest.mark.parametrize("seed", range(12))
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_random_interleavings(backend: str, seed: int) -> None:
    """A real pool under random callers, hooks, resizes and drains, in virtual time."""
    rng = random.Random(seed)

    async def nap() -> None:
        if rng.random() < 0.5:
            await passes(rng.randrange(4))
        else:
            await anyio.sleep(rng.choice([0.01, 0.1, 1.0, 8.0]))

    async def hook(_: Item | None = None) -> bool:
        await nap()
        if rng.random() < 0.1:
            raise OSError("no")
        return rng.random() > 0.1

    async def main() -> None:
        maker = Maker(create=hook, reset=hook, destroy=hook, check=hook)  # type: ignore[arg-type]
        pool: Pool[Item] = Pool(
            maker,
            max_size=4,
            acquire_timeout=20.0,
            max_waiting=rng.choice([None, 8]),
            max_uses=rng.choice([None, 3]),
            max_lifetime=rng.choice([None, 30.0]),
            max_idle=rng.choice([None, 10.0]),
            check_after=rng.choice([None, 0.0, 5.0]),
            on_acquire=rng.choice([None, hook]),
            replace_worn=rng.random() < 0.5,
            clock=anyio.current_time,
        )
        await pool.open()
        async with anyio.create_task_group() as tg:
            callers = [Caller(pool, timeout=rng.choice([0.5, 20.0, None])) for _ in range(60)]
            for caller in callers:
                caller.body = lambda _: nap()
                tg.start_soon(caller)
                await nap()
                if rng.random() < 0.2:
                    victim = rng.choice(callers)
                    if victim.started.is_set() and not victim.over.is_set():
                        victim.cancel(rng.choice(["native", "scope"]))
                if rng.random() < 0.05:
                    await pool.resize(max_size=rng.randrange(1, 6))
                if rng.random() < 0.05:
                    await pool.drain(rng.choice([0, 5]))
                check(pool.slots)
        for caller in callers:
            assert caller.cancelled or isinstance(
                caller.error, type(None) | PoolTimeoutError | PoolFullError | FactoryError
            ), caller.error
        maker.on_create = maker.on_reset = maker.on_destroy = None
        pool._check = pool._on_acquire = None
        await anyio.sleep(60)
        await pool.resize(max_size=4)
        await all_acquirable(pool)
        await pool.aclose()
        assert maker.alive == 0
        with pytest.raises(PoolClosedError):
            await pool.lease().__aenter__()

    run_in_virtual_time(backend, main)
