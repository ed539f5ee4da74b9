"""Random operations against a model that a dict and a clock make, in memory and in Redis."""

from __future__ import annotations

from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine

from sandboxpool import Cache, CacheValueError

from .conftest import Clock

KEYS = st.sampled_from(["a", "b", "c"])
TTLS = st.sampled_from([None, 5, 10, 30])
VALUES = st.one_of(
    st.integers(-5, 5), st.none(), st.booleans(), st.text(max_size=3), st.lists(st.integers(0, 3))
)
MISSING = "missing"
STALE = 20.0

_numbers = count()


class CacheMachine(RuleBasedStateMachine):
    """A cache, and what it should hold: by key the value, until when it is fresh, and usable."""

    store: Any = None

    def __init__(self) -> None:
        super().__init__()
        self.clock = Clock()
        self.cache = Cache(
            f"model-{next(_numbers)}", store=self.store, clock=self.clock, jitter=0, retry_after=3
        )
        self.view = self.cache.blocking
        self.model: dict[str, tuple[Any, float, float]] = {}
        self.resting: dict[str, float] = {}

    def teardown(self) -> None:
        if self.store is not None:
            self.view.clear()
        self.cache.close()

    def fresh(self, key: str) -> Any:
        value, until, _ = self.model.get(key, (MISSING, 0, 0))
        return value if self.clock.now < until else MISSING

    def usable(self, key: str) -> Any:
        value, _, until = self.model.get(key, (MISSING, 0, 0))
        return value if self.clock.now < until else MISSING

    def keep(self, key: str, value: Any, ttl: float | None, stale: float = 0) -> None:
        until = float("inf") if ttl is None else self.clock.now + ttl
        self.model[key] = value, until, until + stale
        self.resting.pop(key, None)

    @initialize()
    def begin(self) -> None:
        assert self.view.get("a", MISSING) == MISSING

    @rule(seconds=st.sampled_from([1, 4, 6, 25]))
    def wait(self, seconds: int) -> None:
        self.clock.now += seconds

    @rule(key=KEYS, value=VALUES, ttl=TTLS)
    def set(self, key: str, value: Any, ttl: float | None) -> None:
        self.view.set(key, value, ttl)
        self.keep(key, value, ttl)

    @rule(key=KEYS)
    def get(self, key: str) -> None:
        got, expected = self.view.get(key, MISSING), self.fresh(key)
        assert got == expected
        assert type(got) is type(expected)

    @rule(key=KEYS)
    def delete(self, key: str) -> None:
        assert self.view.delete(key) is (self.fresh(key) != MISSING)
        self.model.pop(key, None)
        self.resting.pop(key, None)

    @rule(key=KEYS, by=st.integers(-3, 3), ttl=TTLS)
    def incr(self, key: str, by: int, ttl: float | None) -> None:
        before = self.fresh(key)
        if before == MISSING:
            assert self.view.incr(key, by, ttl=ttl) == by
            self.keep(key, by, ttl)
        elif type(before) is int:
            assert self.view.incr(key, by, ttl=ttl) == before + by
            _, fresh, usable = self.model[key]
            self.model[key] = before + by, fresh, usable
        else:
            with pytest.raises(CacheValueError):
                self.view.incr(key, by)

    @rule(key=KEYS, value=VALUES, ttl=TTLS, stale=st.sampled_from([0.0, STALE]))
    def resolve(self, key: str, value: Any, ttl: float | None, stale: float) -> None:
        runs: list[int] = []

        def resolver() -> Any:
            runs.append(1)
            return value

        got = self.view.get_or_set(key, resolver, ttl, stale_for=stale)
        expected = self.fresh(key)
        if expected == MISSING and self.clock.now < self.resting.get(key, 0):
            expected = self.usable(key)
        if expected == MISSING:
            assert runs == [1]
            self.keep(key, value, ttl, 0 if ttl is None else stale)
            expected = value
        else:
            assert runs == []
        assert got == expected

    @rule(key=KEYS)
    def resolve_in_vain(self, key: str) -> None:
        def resolver() -> Any:
            raise LookupError(key)

        expected = self.usable(key)
        if expected == MISSING:
            with pytest.raises(LookupError):
                self.view.get_or_set(key, resolver)
        else:
            if self.fresh(key) == MISSING and self.clock.now >= self.resting.get(key, 0):
                self.resting[key] = self.clock.now + 3
            assert self.view.get_or_set(key, resolver) == expected

    @rule()
    def clear(self) -> None:
        self.view.clear()
        self.model.clear()
        self.resting.clear()

    @invariant()
    def counts_are_right(self) -> None:
        size = self.cache.statistics().entries
        usable = sum(self.clock.now < until for _, _, until in self.model.values())
        assert size is None or usable <= size <= 3


def test_model_with_a_cache(store: Any) -> None:
    """Whatever is done in whatever order, the cache holds what the model says."""

    class Machine(CacheMachine):
        pass

    Machine.store = store
    run_machine(
        Machine,
        settings=settings(
            max_examples=60 if store is None else 25,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )


def test_model_finds_a_mistake() -> None:
    """A cache that forgets to end values does not pass."""

    class Broken(CacheMachine):
        def __init__(self) -> None:
            super().__init__()
            store: Any = self.cache._shared.store
            store._clock = lambda: 1000.0

    with pytest.raises((AssertionError, CacheValueError, pytest.fail.Exception)):
        run_machine(
            Broken,
            settings=settings(
                deadline=None,
                database=None,
                derandomize=True,
                phases=[Phase.generate],
                report_multiple_bugs=False,
            ),
        )
