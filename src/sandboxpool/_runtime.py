"""What a wrapped app has in one event loop: the pool, the watchdog, the monitor, the requests.

A server has one loop, but tests often have one for each request, and an app may be mounted in
several. So whatever belongs to a loop is here, and `SandboxedApp` holds the one of the loop that
it was last called in.
"""

from __future__ import annotations

import gc
import logging
import os
from collections import Counter
from collections.abc import Callable
from functools import partial
from itertools import islice
from math import ceil
from threading import get_ident
from typing import TYPE_CHECKING, Any

import anyio

from ._app_options import AppOptions
from ._closers import Closers
from ._context import RequestLease
from ._exceptions import PoolClosedError
from ._load import import_string
from ._loop import Background, Home, Loop, Wakeup, running_loop
from ._monitor import LoopMonitor
from ._pool import Pool
from ._stats import LEAKS_SHOWN, OLDEST_SHOWN, AppStatistics, LeakStatistics, RequestInFlight
from ._ticks import Ticking
from ._watchdog import DeadlineWatchdog, NoWatchdog
from .abc import Sandbox, SandboxFactory, Watchdog
from .run.loop import Running, drive

if TYPE_CHECKING:
    from .leaks._watch import LeakWatch
    from .run.cooperative import CooperativeTasks

logger = logging.getLogger("sandboxpool")

# New objects after which the youngest generation is collected, once the rest is frozen.
_YOUNGEST = 10_000
# How long requests that were told to stop at the end of `drain_timeout` get to do so.
_LAST_GRACE = 1.0


class Counters:
    """What a wrapped app has counted, in all of its loops.

    Attributes:
        leaks: What watches for leaks; `None` until that is needed.
    """

    __slots__ = ("cut_off", "hung_up", "leaks", "peak", "refused", "requests", "stalls")

    def __init__(self) -> None:
        self.requests = 0
        self.peak = 0
        self.refused = 0
        self.cut_off = 0
        self.hung_up = 0
        self.stalls = 0
        self.leaks: LeakWatch | None = None


class Runtime:
    """A wrapped app in one event loop.

    Attributes:
        home: Tells in which thread the loop runs; for the check on each request.
        ready: Whether requests are served; before, and after, they are not.
        in_flight: The requests that hold a sandbox, by lease id, the oldest first.
    """

    def __init__(
        self, owner: Any, factory: SandboxFactory, options: AppOptions, counters: Counters
    ) -> None:
        self.loop: Loop = running_loop()
        self.home: Home = self.loop.home
        self.factory = factory
        # What made the private apps: whose requests a template stands for is told by that.
        self.isolation = getattr(factory, "lease_owner", factory)
        self.options = options
        self.counters = counters
        self.isolates_context = options.isolate_context
        self.drive: Callable[..., Any] = drive
        self.tasks: CooperativeTasks | None = None
        if options.run_in == "cooperative":
            from .run import cooperative

            self.drive = cooperative.drive
        self.ready = False
        self.closing = False
        self.closed = False
        self.in_flight: dict[int, RequestLease] = {}
        self.running = Running()
        self.ticking = Ticking(self)
        # How many children in sandboxes of their own a request waits for, by its lease.
        self.parents: Counter[int] = Counter()
        self.interruption = self.loop.interruption
        self.pool = self._new_pool()
        self.slots = self.pool.slots
        self.watchdog: Watchdog = NoWatchdog()
        # Whether it wants to know of each request, or only of those that ask for a deadline.
        self.watches = (
            options.watchdog is not None
            or options.execution_timeout is not None
            or options.slow_after is not None
        )
        self.monitor: LoopMonitor | None = None
        self.leaks = self._leak_watch()
        self.owner = owner
        self._opening: list[Wakeup] | None = None
        self._opener: Background | None = None
        self._open_error: Exception | None = None
        self._closers: list[Wakeup] = []
        self.closers = Closers()
        self._started = False
        self._last_ended: Wakeup | None = None

    @property
    def state(self) -> str:
        """`"closed"`, `"open"` or `"draining"`."""
        if self.closing:
            return "closed" if self.closed else "draining"
        return "open" if self.ready else "closed"

    def is_here(self) -> bool:
        """Tell whether this is the loop that runs here."""
        return self.home._thread_id == get_ident()

    def _new_pool(self) -> Pool[Sandbox]:
        pool: Pool[Sandbox] = Pool(self.factory, **self.options.pool)
        pool.hints = False  # its options are those of `wrap()`, which has not all of them
        return pool

    def _leak_watch(self) -> LeakWatch | None:
        """Return what watches for leaks, the same in all loops; without it nothing is imported."""
        options, counters = self.options, self.counters
        if options.leaks != "ignore" and counters.leaks is None:
            from .leaks._watch import LeakWatch

            counters.leaks = LeakWatch(
                name=options.name,
                mode=options.leaks,
                ignore=options.ignore,
                verify=options.verify,
                hides_secrets=options.hide_secrets,
            )
        return counters.leaks

    # --- life ---------------------------------------------------------------------------------

    async def open(self, *, asked: bool = True) -> None:
        """Start the app's template and open the pool; once, whoever asks at the same time.

        Args:
            asked: Whether the server, or the user, has said so; otherwise a request has come
                without that.

        Raises:
            LifespanStartupError: The app did not start.
            FactoryError: A sandbox could not be made.
        """
        if self.ready:
            return
        if self.closing:
            raise PoolClosedError(f"{self.options.name} is shutting down.")
        wakeup = self.loop.wakeup()
        if self._opening is not None:
            self._opening.append(wakeup)
        else:
            # In a task of its own: the request that happens to be the first may be cancelled.
            self._opening = [wakeup]
            self._open_error = None
            opener = self.loop.spawn(partial(self._open, asked), f"open {self.options.name}")
            if self._opening is not None:  # an eager task may be over already
                self._opener = opener
        await wakeup
        if self._open_error is not None:
            raise self._open_error

    async def _open(self, asked: bool) -> None:
        start = self.factory.start
        if not asked:
            start = getattr(self.factory, "start_unasked", start)
        try:
            for resource in self.options.resources:
                if isinstance(resource, str):
                    resource = import_string(resource)
                await resource.open_for(self)
            await start()
            self._started = True
            await self._fill()
        except BaseException as error:
            # Those who wait were not cancelled when this task was: they get an error of theirs.
            self._open_error = (
                error
                if isinstance(error, Exception) and not self.closing
                else PoolClosedError(f"{self.options.name} was closed while it started.")
            )
            try:
                with anyio.CancelScope(shield=True):
                    await self._stop_factory()
                    await self.closers.close_all(self.options.name)
            except Exception as stopping:
                logger.warning("%s: %s", self.options.name, stopping)
            if not isinstance(error, Exception):
                raise
            if not self.closing:
                # A pool is opened once; whoever tries again (the next request) gets a new one.
                self.pool = self._new_pool()
                self.slots = self.pool.slots
        else:
            self._begin_watching()
            self.ready = not self.closing
            if self.ready:
                for tick in self.owner._ticks:
                    self.ticking.start(tick)
        finally:
            self._opener = None
            waiting, self._opening = self._opening or [], None
            for wakeup in waiting:
                wakeup.wake()

    async def _fill(self) -> None:
        """Make the first sandboxes, and keep the garbage collector from looking at them for ever.

        Two thousand idle sandboxes are some hundred thousand objects, which every full
        collection would visit to find that they are all still in use.
        """
        if not self.options.gc_freeze:
            await self.pool.open()
            return
        enabled = gc.isenabled()
        gc.disable()  # nothing of this is garbage
        try:
            await self.pool.open()
            for slot in self.slots.idle:
                arm = getattr(slot.item, "arm", None)
                if arm is not None:
                    arm()
        finally:
            if enabled:
                gc.enable()
        gc.collect()
        gc.freeze()
        # A full collection waits until a quarter of what the last one left is new. What is frozen
        # does not count there, so they would come all the time.
        youngest, middle, oldest = gc.get_threshold()
        if 0 < youngest < _YOUNGEST:
            gc.set_threshold(_YOUNGEST, middle, oldest)

    def _begin_watching(self) -> None:
        options = self.options
        if options.run_in == "cooperative":
            from .run.cooperative import CooperativeTasks

            self.tasks = CooperativeTasks(self.loop.backend)
        if options.watchdog is not None:
            self.watchdog = options.watchdog
        else:
            self.watchdog = DeadlineWatchdog(
                self.loop, options.execution_timeout, options.slow_after, self.cut_off
            )
        if options.stall_after is not None:
            self.monitor = LoopMonitor(self.loop, options.stall_after, self.running)

    async def aclose(self, timeout: float | None) -> None:
        """Let requests in flight finish, then end everything.

        Cancelled meanwhile, it waits no longer for requests, and ends the rest all the same.
        A second call waits for the first.

        Args:
            timeout: Seconds for the requests, `None` for no limit; then they are cancelled.

        Raises:
            LifespanShutdownError: The app did not stop in order; everything else was closed.
        """
        if self.closing:
            await self._closed_by_another()
            return
        self.closing = True
        self.ready = False
        self.ticking.begin_close()
        self.pool.begin_close()  # those who wait for a sandbox are told now
        in_time = False
        failure: Exception | None = None
        try:
            await self._give_up_opening()
            with anyio.move_on_after(timeout):
                await self._drained()
            if self.in_flight:
                logger.warning(
                    "%s: %d requests were still running %s s after shutdown began; "
                    "they are cancelled",
                    self.options.name,
                    len(self.in_flight),
                    timeout,
                )
                for lease in tuple(self.in_flight.values()):
                    self.cut_off(lease, 503)
                with anyio.move_on_after(_LAST_GRACE):
                    await self._drained()
            in_time = True
        finally:
            self._stop_watching()
            if self.tasks is not None:
                self.tasks.close()
                self.tasks = None
            # Also when cancelled: what was started gets its chance to stop.
            with anyio.CancelScope(shield=True):
                try:
                    await self.ticking.aclose()
                    await self.pool.aclose(0)
                    await self._stop_factory()
                except Exception as error:
                    failure = error
                    if not in_time:  # it must not take the place of the cancellation
                        logger.error("%s did not stop in order: %s", self.options.name, error)
                finally:
                    # After the app, whose shutdown may still use them.
                    await self.closers.close_all(self.options.name)
                    self.closed = True
                    if self.leaks is not None:
                        self.leaks.close()
                    for wakeup in self._closers:
                        wakeup.wake()
        if failure is not None:
            raise failure

    def _stop_watching(self) -> None:
        if isinstance(self.watchdog, NoWatchdog):
            return
        watchdog, self.watchdog = self.watchdog, NoWatchdog()
        try:
            watchdog.stop()
        except Exception:
            logger.exception("%s: the watchdog's stop() raised", self.options.name)
        if self.monitor is not None:
            self.monitor.stop()
            self.counters.stalls += self.monitor.stalls
            self.monitor = None

    async def _give_up_opening(self) -> None:
        opener = self._opener
        if opener is not None:
            opener.cancel()
            with anyio.CancelScope(shield=True):
                await opener.wait()

    async def _closed_by_another(self) -> None:
        if not self.closed:
            wakeup = self.loop.wakeup()
            self._closers.append(wakeup)
            await wakeup

    async def _drained(self) -> None:
        while self.in_flight:
            self._last_ended = self.loop.wakeup()
            await self._last_ended

    def deadline_changed(self, lease: RequestLease) -> None:
        """Pass on that a request moved its deadline, from whichever thread it did that."""
        if self.home._thread_id != get_ident():
            self.loop.call_from_thread(partial(self._deadline_changed, lease))
        else:
            self._deadline_changed(lease)

    def _deadline_changed(self, lease: RequestLease) -> None:
        if lease.interruption is None:
            return  # the app has come to its end meanwhile
        lease.watched = True
        self.watchdog.changed(lease)

    def cancelled(self, lease: RequestLease) -> None:
        """Cut off a request that asks for it, from whichever thread."""
        if self.home._thread_id != get_ident():
            self.loop.call_from_thread(partial(self.cut_off, lease))
        else:
            self.cut_off(lease)

    def note_drained(self) -> None:
        """Note the end of the last request, if somebody waits for that."""
        if self._last_ended is not None and not self.in_flight:
            self._last_ended.wake()
            self._last_ended = None

    async def _stop_factory(self) -> None:
        if not self._started:
            return
        self._started = False
        with anyio.fail_after(self.options.stop_timeout):
            await self.factory.stop()

    def cut_off(self, lease: RequestLease, status: int = 504) -> None:
        """Cancel the call of a lease; it is answered with *status*, its sandbox retired."""
        if lease.ended or lease.interruption is None:
            return
        if not lease.cut_off:
            self.counters.cut_off += 1
            lease.cut_off = status
        lease.interruption.cancel()

    # --- looking ------------------------------------------------------------------------------

    def retry_after(self) -> int:
        """Return in how many seconds a sandbox should be free, from 1 to 60.

        The mean time that a request takes, times how many are ahead in the queue for each
        sandbox: Little's law, with the figures of this process.
        """
        slots = self.slots
        served = slots.leases - slots.in_use
        mean = slots.hold_time / served if served else 1.0
        return min(60, max(1, ceil(mean * (slots.waiting + 1) / max(1, slots.max_size))))

    def statistics(self) -> AppStatistics:
        """Return the figures of this moment."""
        return statistics_of(self.options, self.counters, self.pool, self)


def statistics_of(
    options: AppOptions, counters: Counters, pool: Pool[Sandbox], runtime: Runtime | None = None
) -> AppStatistics:
    """Return the figures of an app that runs, or does not run yet."""
    in_flight = {} if runtime is None else runtime.in_flight
    monitor = None if runtime is None else runtime.monitor
    oldest = tuple(
        RequestInFlight(
            lease_id=lease.id,
            type=lease.scope["type"],
            method=lease.scope.get("method"),
            path=lease.path,
            age=lease.age,
        )
        for lease in islice(in_flight.values(), OLDEST_SHOWN)
    )
    return AppStatistics(
        name=options.name,
        pid=os.getpid(),
        isolation=options.isolation,
        run_in=options.run_in,
        state="closed" if runtime is None else runtime.state,
        concurrency=len(in_flight),
        peak_concurrency=counters.peak,
        requests=counters.requests,
        refused=counters.refused,
        cut_off=counters.cut_off,
        hung_up=counters.hung_up,
        abandoned=getattr(pool.factory, "abandoned", 0) + len(options.abandoned),
        stalls=counters.stalls + (monitor.stalls if monitor else 0),
        leaks=_leak_statistics(counters),
        pool=pool.statistics(),
        oldest=oldest,
    )


def _leak_statistics(counters: Counters) -> LeakStatistics:
    if counters.leaks is None:
        return LeakStatistics()
    counts = counters.leaks.counts
    return LeakStatistics(counts.reports, counts.leaks, counts.most_frequent(LEAKS_SHOWN))
