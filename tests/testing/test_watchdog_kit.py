"""The kit for watchdogs: it passes what is right, and notices what is broken."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, ClassVar

import anyio
import pytest

from sandboxpool._loop import running_loop
from sandboxpool._watchdog import DeadlineWatchdog
from sandboxpool.testing import WatchdogConformance

from .kits import impatient, noticed
from .small_pool import spawn


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    logging.getLogger("sandboxpool.watchdog").disabled = True
    yield
    logging.getLogger("sandboxpool.watchdog").disabled = False


class TestOurWatchdog(WatchdogConformance):
    """The library's own watchdog."""

    def make_watchdog(self, limit: float) -> DeadlineWatchdog:
        return DeadlineWatchdog(running_loop(), limit, None, lambda lease: lease.cancel())


class Onlooker:
    """Only notes how long the longest request was."""

    def __init__(self) -> None:
        self.longest = 0.0

    def started(self, lease: Any) -> None:
        pass

    def ended(self, lease: Any) -> None:
        self.longest = max(self.longest, lease.age)

    def changed(self, lease: Any) -> None:
        pass

    def stop(self) -> None:
        pass


class TestOnlooker(WatchdogConformance):
    """A watchdog that cuts nobody off."""

    cuts_off = False

    def make_watchdog(self, limit: float) -> Onlooker:
        return Onlooker()


class SmallWatchdog:
    """A task for each request that sleeps until its deadline; a test breaks one method."""

    def __init__(self, limit: float) -> None:
        self.limit = limit
        self.deadlines: dict[int, float] = {}
        self.stopped = False

    def started(self, lease: Any) -> None:
        self.deadlines[lease.id] = lease.started_at + self.limit
        self.watch(lease)

    def watch(self, lease: Any) -> None:
        async def run() -> None:
            while (left := self.left(lease)) is not None and left > 0:  # noqa: ASYNC110
                await anyio.sleep(min(left, 0.02))
            if left is not None and not self.stopped:
                del self.deadlines[lease.id]
                self.hit(lease)

        spawn(run)

    def left(self, lease: Any) -> float | None:
        if self.stopped or lease.id not in self.deadlines:
            return None
        return float(self.deadlines[lease.id] - lease.started_at - lease.age)

    def hit(self, lease: Any) -> None:
        lease.cancel()

    def ended(self, lease: Any) -> None:
        self.deadlines.pop(lease.id, None)

    def changed(self, lease: Any) -> None:
        if lease.id in self.deadlines:
            self.deadlines[lease.id] = lease.deadline

    def stop(self) -> None:
        self.stopped = True
        self.deadlines.clear()


class SmallKit(WatchdogConformance):
    """The kit on a watchdog that shares no code with the library's."""

    watchdog_class: ClassVar[type[SmallWatchdog]] = SmallWatchdog

    def make_watchdog(self, limit: float) -> SmallWatchdog:
        return self.watchdog_class(limit)


class TestSmallWatchdog(SmallKit):
    """A watchdog of somebody else."""


# --- watchdogs that are broken, each in one way -----------------------------------------------


class IsAsync(SmallWatchdog):
    async def changed(self, lease: Any) -> None:  # type: ignore[override]
        super().changed(lease)


class KnowsOnlyRequests(SmallWatchdog):
    def started(self, lease: Any) -> None:
        lease.scope["method"].lower()
        super().started(lease)


class StopsNothing(SmallWatchdog):
    def stop(self) -> None:
        pass


class KeepsOrder(SmallWatchdog):
    """Expects a few requests to end in the order in which they began."""

    def ended(self, lease: Any) -> None:
        if self.limit == 10.0:
            assert lease.id == min(self.deadlines)
        super().ended(lease)


class Lazy(SmallWatchdog):
    def hit(self, lease: Any) -> None:
        if lease.path != "/" or lease.age > 0.15:
            super().hit(lease)


class HitsEverybody(SmallWatchdog):
    leases: list[Any]

    def started(self, lease: Any) -> None:
        self.leases = [*getattr(self, "leases", []), lease]
        super().started(lease)

    def hit(self, lease: Any) -> None:
        for each in self.leases:
            if each.path == "/" and not each.ended:
                each.cancel()
        if lease.path != "/":
            lease.cancel()


class ForgetsNobody(SmallWatchdog):
    def ended(self, lease: Any) -> None:
        pass

    def hit(self, lease: Any) -> None:
        if not lease.ended:
            lease.cancel()


class IgnoresLonger(SmallWatchdog):
    def changed(self, lease: Any) -> None:
        if lease.id in self.deadlines:
            self.deadlines[lease.id] = min(lease.deadline, self.deadlines[lease.id])


class IgnoresShorter(SmallWatchdog):
    def changed(self, lease: Any) -> None:
        if lease.id in self.deadlines:
            self.deadlines[lease.id] = max(lease.deadline, self.deadlines[lease.id])


class CutsByItself(SmallWatchdog):
    """Stops a late request without saying so to the lease."""

    def hit(self, lease: Any) -> None:
        if lease.path == "/":
            lease.cancel()
        else:
            lease.interruption.cancel()


MUTANTS: list[tuple[type[SmallWatchdog], set[str]]] = [
    (IsAsync, {"test_methods_return_at_once", "test_longer_deadline", "test_shorter_deadline"}),
    (KnowsOnlyRequests, {"test_methods_return_at_once"}),
    (StopsNothing, {"test_stop_with_requests"}),
    (KeepsOrder, {"test_many_at_once"}),
    (Lazy, {"test_late_request_is_cut_off", "test_shorter_deadline"}),
    (HitsEverybody, {"test_only_the_late_one"}),
    (ForgetsNobody, {"test_ended_request_is_left_alone"}),
    (IgnoresLonger, {"test_longer_deadline"}),
    (IgnoresShorter, {"test_shorter_deadline"}),
    (CutsByItself, {"test_with_an_app"}),
]


@pytest.mark.filterwarnings("ignore:coroutine .*changed' was never awaited")
@pytest.mark.parametrize(
    ("broken", "checks"), [pytest.param(*row, id=row[0].__name__) for row in MUTANTS]
)
async def test_broken_watchdog_is_noticed(broken: type[SmallWatchdog], checks: set[str]) -> None:
    """A watchdog that breaks one rule is noticed by the check of that rule."""
    assert await noticed(impatient(SmallKit, watchdog_class=broken), checks) == checks


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:coroutine .*changed' was never awaited")
@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
@pytest.mark.parametrize(
    ("broken", "checks"), [pytest.param(*row, id=row[0].__name__) for row in MUTANTS]
)
async def test_nothing_else_notices_a_broken_watchdog(
    broken: type[SmallWatchdog], checks: set[str]
) -> None:
    """The checks of the other rules pass with it: each is about its own."""
    others = [name for name in SmallKit.names() if name not in checks]
    assert await noticed(impatient(SmallKit, watchdog_class=broken), others) == set()


def test_every_check_of_watchdogs_has_a_broken_watchdog() -> None:
    """No check of the kit could be left out without a broken watchdog that slips through."""
    caught = {check for _, checks in MUTANTS for check in checks}
    assert caught == set(WatchdogConformance.names())


def test_kit_without_a_watchdog() -> None:
    """A kit that makes no watchdog says which method is missing."""
    with pytest.raises(NotImplementedError, match=r"make_watchdog\(\) returns one of yours"):
        WatchdogConformance().make_watchdog(1.0)
