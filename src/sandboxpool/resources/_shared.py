"""What all handles of one resource have in common, in all event loops of the process."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from threading import get_ident
from typing import Any
from weakref import WeakSet, WeakValueDictionary

from sandboxpool._context import RequestLease
from sandboxpool._pool import Pool

from ._figures import Durations, Histogram, ResourceStatistics
from ._here import Here
from ._member import Driver
from ._quota import Quota

_registry: WeakValueDictionary[object, Shared] = WeakValueDictionary()
_registering = threading.Lock()

all_shared: WeakSet[Shared] = WeakSet()
"""Every resource that is in use somewhere in this process."""


class Shared:
    """The pools of a resource, one for each event loop, and their common limit and figures.

    Attributes:
        last: The pool that was used last.
        wait_counts: Buckets of `wait_time`; the first one also counts who did not wait.
    """

    def __init__(
        self,
        driver: Driver[Any],
        name: str,
        min_size: int,
        idle_warning: float | None,
        pool_options: Mapping[str, Any],
    ) -> None:
        self.driver = driver
        self.name = name
        self.min_size = min_size
        self.max_size: int = pool_options["max_size"]
        self.acquire_timeout: float | None = pool_options["acquire_timeout"]
        self.idle_warning = idle_warning
        self.pool_options = dict(pool_options)
        self.quota = Quota(self.max_size)
        self.last: Here | None = None
        self._heres: dict[int, Here] = {}
        self._changing = threading.Lock()
        self._begin_counting()
        Pool(_NoFactory(), name=name, **pool_options)  # so that a wrong option is refused here
        all_shared.add(self)

    def _begin_counting(self) -> None:
        self.create_time, self.wait_time, self.use_time = Durations(), Durations(), Durations()
        self.wait_counts = self.wait_time.counts
        self.timeouts = self.held_idle = self.deadlocks = 0
        # Of pools that were closed: what they have counted is not lost with them.
        self._past = {"uses": 0, "opened": 0, "open_failures": 0}
        self._past_retired: dict[str, int] = {}

    @classmethod
    def declared(cls, key: object, make: Callable[[], Shared]) -> Shared:
        """Return what was declared under *key* and is still in use, or a new one."""
        with _registering:
            shared = _registry.get(key)
            if shared is None:
                shared = _registry[key] = make()
            return shared

    @property
    def heres(self) -> list[Here]:
        """The pools of all loops that have not ended."""
        with self._changing:
            for thread, here in tuple(self._heres.items()):
                if here.closed or here.loop.closed():
                    self._forget(thread, here)
            return list(self._heres.values())

    def _forget(self, thread: int, here: Here) -> None:
        del self._heres[thread]
        if self.last is here:
            self.last = None
        figures = here.pool.statistics()
        self._past["uses"] += figures.leases
        self._past["opened"] += figures.created
        self._past["open_failures"] += figures.create_failures
        for reason, count in figures.retired.items():
            self._past_retired[reason] = self._past_retired.get(reason, 0) + count

    def here(self) -> Here | None:
        """Return the pool of the loop that runs here, if it has one that is open."""
        here = self._heres.get(get_ident())
        return here if here is not None and here.is_here() and not here.closed else None

    async def enter(self) -> Here:
        """Return the pool of the running loop, opened."""
        here = self.here()
        if here is None:
            others = self.heres
            with self._changing:
                if not others:
                    self._begin_counting()  # the app starts anew
                old = self._heres.get(get_ident())
                if old is not None:
                    self._forget(get_ident(), old)
                here = self._heres[get_ident()] = Here(self)
        await here.open()
        await here.fill(self.min_size)
        self.last = here
        return here

    def adopt(self, here: Here, lease: RequestLease) -> None:
        """Have the app of a request close the pool when the app ends."""
        serving = lease.serving
        owner = serving
        if serving is None or not serving.is_here():
            # It runs in a thread with a loop of its own, which ends before the app does.
            owner = getattr(lease.sandbox, "thread", None)
        self.own(here, owner)

    def own(self, here: Here, owner: Any) -> None:
        """Have *owner* close the pool in the end, unless others still use it."""
        closers = getattr(owner, "closers", None)
        if closers is None or owner in here.owners:
            return
        here.owners.add(owner)

        async def disown() -> None:
            here.owners.discard(owner)
            if not here.owners and not here.closed:
                await here.aclose()

        closers.add(here, disown)

    async def aclose(self, timeout: float | None) -> None:
        """Close the pool of the running loop."""
        here = self.here()
        if here is None:
            return
        for owner in tuple(here.owners):
            getattr(owner, "closers").discard(here)  # noqa: B009 - it is no attribute of `object`
        here.owners.clear()
        await here.aclose(timeout)

    def statistics(self) -> ResourceStatistics:
        """Return the figures of this moment, all loops together."""
        pools = [here.pool.statistics() for here in self.heres]
        retired = dict(self._past_retired)
        for pool in pools:
            for reason, count in pool.retired.items():
                retired[reason] = retired.get(reason, 0) + count
        return ResourceStatistics(
            name=self.name,
            min_size=self.min_size,
            max_size=self.max_size,
            idle=sum(pool.idle for pool in pools),
            used=sum(pool.in_use for pool in pools),
            opening=sum(pool.creating for pool in pools),
            closing=sum(pool.resetting + pool.closing for pool in pools),
            pending_requests=sum(pool.waiting for pool in pools),
            timeouts=self.timeouts,
            uses=self._past["uses"] + sum(pool.leases for pool in pools),
            opened=self._past["opened"] + sum(pool.created for pool in pools),
            open_failures=self._past["open_failures"] + sum(pool.create_failures for pool in pools),
            retired=retired,
            held_idle=self.held_idle,
            deadlocks=self.deadlocks,
            loops=len(pools),
            create_time=Histogram.of(self.create_time),
            wait_time=Histogram.of(self.wait_time),
            use_time=Histogram.of(self.use_time),
        )


class _NoFactory:
    async def create(self) -> object: ...

    def reset(self, item: object) -> None: ...

    def destroy(self, item: object) -> None: ...
