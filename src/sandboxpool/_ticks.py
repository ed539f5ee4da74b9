"""Periodic work in leased sandboxes: `@sandboxed.every(seconds)`."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextvars import Context
from functools import partial
from random import uniform
from typing import TYPE_CHECKING, Any

import anyio
import attrs

from ._exceptions import OptionError, PoolClosedError, PoolExhaustedError
from ._loop import Background
from ._options import check_seconds
from ._visit import Visit

if TYPE_CHECKING:
    from ._runtime import Runtime

logger = logging.getLogger("sandboxpool.ticks")


@attrs.frozen
class TickStatistics:
    """What a piece of periodic work has done in this process.

    Attributes:
        name: Its name.
        seconds: The interval.
        running: Whether it runs now.
        runs: How often it has come to its end.
        failures: How often that was an error, being cut off included.
        refused: How often it found no sandbox in time.
        missed: How many times were left out because it, or the wait for a sandbox, took longer
            than the interval.
        last_seconds: How long the last run took; `None` before the first one.
        last_error: What the last failure said; `None` without one.
    """

    name: str
    seconds: float
    running: bool
    runs: int
    failures: int
    refused: int
    missed: int
    last_seconds: float | None
    last_error: str | None


@attrs.define(eq=False)
class Tick:
    """A piece of periodic work, and its figures; see `TickStatistics`."""

    function: Callable[[Any], Any]
    name: str
    seconds: float
    jitter: float
    immediate: bool
    running: int = 0
    runs: int = 0
    failures: int = 0
    refused: int = 0
    missed: int = 0
    last_seconds: float | None = None
    last_error: str | None = None

    def pause(self) -> float:
        """Return the seconds until the next run, the share of chance included."""
        return self.seconds * uniform(1 - self.jitter, 1 + self.jitter)

    def statistics(self) -> TickStatistics:
        """Return the figures of this moment."""
        return TickStatistics(
            self.name,
            self.seconds,
            self.running > 0,
            self.runs,
            self.failures,
            self.refused,
            self.missed,
            self.last_seconds,
            self.last_error,
        )


def check_tick(seconds: object, jitter: object, immediate: object, name: object) -> None:
    """Refuse options of `every()` that cannot work.

    Raises:
        OptionError: A value cannot work.
    """
    check_seconds("seconds", seconds, optional=False, zero=False)
    if isinstance(jitter, bool) or not isinstance(jitter, int | float) or not 0 <= jitter <= 1:
        raise OptionError(f"jitter={jitter!r}: give a share from 0.0 to 1.0.")
    if not isinstance(immediate, bool):
        raise OptionError(f"immediate={immediate!r}: give True or False.")
    if name is not None and not isinstance(name, str):
        raise OptionError(f"name={name!r}: give a string, or None for the function's own.")


def made_tick(
    function: Any, seconds: float, jitter: float, immediate: bool, name: str | None
) -> Tick:
    """Return the periodic work of a function.

    Raises:
        TypeError: That is no function.
    """
    if not callable(function):
        raise TypeError(
            f"every({seconds!r}) takes a function of one argument, the sandbox's app, got "
            f"{function!r}: write `@sandboxed.every({seconds!r})` above it."
        )
    own: str = getattr(function, "__name__", type(function).__name__)
    return Tick(function, name or own, seconds, jitter, immediate)


class Ticking:
    """The periodic work of an app in one event loop: a task each, so that none overlaps itself.

    Args:
        runtime: The app in that loop.
    """

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._tasks: set[Background] = set()
        self._closing: anyio.Event | None = None

    def start(self, tick: Tick) -> None:
        """Begin to run something periodically, in the loop."""
        if self._closing is None:
            self._closing = anyio.Event()
        # In a context of its own: the app may have been opened by somebody's request.
        self._tasks.add(
            self._runtime.loop.spawn(partial(self._run, tick), f"tick {tick.name}", Context())
        )

    def begin_close(self) -> None:
        """Begin no further run; what runs goes on, and counts as a request in flight."""
        if self._closing is not None:
            self._closing.set()

    async def aclose(self) -> None:
        """End the tasks; of those that run something, the app has waited for the end of it."""
        self.begin_close()
        for task in self._tasks:
            task.cancel()
            await task.wait()
        self._tasks.clear()

    async def _run(self, tick: Tick) -> None:
        closing = self._closing
        assert closing is not None
        due = anyio.current_time() + (0 if tick.immediate else tick.pause())
        while True:
            with anyio.move_on_after(due - anyio.current_time()):
                await closing.wait()
            if closing.is_set():
                return
            await self._once(tick)
            due += tick.pause()
            now = anyio.current_time()
            while due <= now:
                # Not caught up: work that is too slow for its interval must not get ever later.
                tick.missed += 1
                due += tick.seconds

    async def _once(self, tick: Tick) -> None:
        runtime = self._runtime
        # Where sandboxes run on the server's loop, plain functions would block that.
        offload = runtime.options.run_in == "loop"
        began = anyio.current_time()
        tick.running += 1
        try:
            await Visit(f"tick {tick.name}", tick.function, offload=offload).make(runtime.owner)
        except PoolClosedError as error:
            if not runtime.closing:
                self._note_failure(tick, error)
        except PoolExhaustedError as error:
            tick.refused += 1
            logger.warning("tick %s of %s: %s", tick.name, runtime.options.name, error)
            return
        except Exception as error:
            self._note_failure(tick, error)
        finally:
            tick.running -= 1
        tick.runs += 1
        tick.last_seconds = anyio.current_time() - began

    def _note_failure(self, tick: Tick, error: Exception) -> None:
        tick.failures += 1
        tick.last_error = f"{type(error).__name__}: {error}"
        logger.error("tick %s of %s failed", tick.name, self._runtime.options.name, exc_info=error)
