"""The way of one `get_or_set()`, written once for coroutines and for threads.

It is a generator of what has to be done next. One driver awaits that, the other one blocks; an
exception that comes of a step, a cancellation included, is thrown in.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Generator
from inspect import isawaitable
from random import uniform
from threading import get_ident
from time import sleep
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import anyio
import attrs

from sandboxpool._exceptions import CacheTimeoutError, CacheUnavailableError, CacheValueError

from ._flight import Flight, Flights, LoopWait, ThreadWait, Wait, Waiter, asking, copied, leading
from ._store import Found, Life, Start, Store
from ._values import Packing

if TYPE_CHECKING:
    from ._stats import Counts

T = TypeVar("T")

logger = logging.getLogger("sandboxpool.cache")

# Seconds between two looks after a refresh that another process does: from the first to the last.
_FIRST_LOOK, _LAST_LOOK = 0.01, 0.1


@attrs.frozen
class Do(Generic[T]):
    """Call the store."""

    call: Callable[[], T]


@attrs.frozen
class Resolve:
    """Run the resolver, as the leader of a flight."""

    flight: Flight


@attrs.frozen
class Pause:
    """Let time pass."""

    seconds: float


@attrs.frozen
class Await:
    """Wait for what a flight comes to."""

    waiter: Waiter


Step = Do[Any] | Resolve | Pause | Await


@attrs.define(eq=False)
class Refreshing:
    """What one `get_or_set()` works with.

    Attributes:
        key: The key.
        life: Of the new value.
        store: Holds the entries.
        flights: Of the cache.
        packing: How values are stored.
        counts: Of the cache.
        rest: Seconds after a failed refresh before the next one.
        limit: Seconds that a resolver may take.
        blocking: Whether the driver blocks the thread.
    """

    key: str
    life: Life
    store: Store
    flights: Flights
    packing: Packing
    counts: Counts
    rest: float
    limit: float | None
    blocking: bool

    def steps(self) -> Generator[Step, Any, Any]:
        """Yield what is to be done; return the value."""
        unreadable = False
        while True:
            found = yield from self._read()
            try:
                if found is not None and (found.fresh or found.resting):
                    return self._hit(found)
                stale = found is not None
                flight, waiter = self.flights.join(
                    self.key, None if stale else self._new_wait, self.blocking
                )
                if flight is None:
                    assert found is not None
                    return self._hit(found)
            except CacheValueError:
                # Stored by another version of the code. Once: the new value may be no better.
                if unreadable:
                    raise
                unreadable = True
                self.flights.detach(self.key)
                yield Do(lambda: self.store.delete(self.key))
                continue
            if found is None:
                self.counts.misses += 1
            if waiter is not None:
                self.counts.waited += 1
                with asking(flight):
                    yield from self._wait(flight, waiter)
                if not waiter.leads:
                    if flight.error is not None:
                        raise copied(flight.error)
                    return self.packing.unpack(self.key, flight.packed)
            flight.thread = get_ident()
            with asking(flight):
                return (yield from self._lead(flight, found))

    def _read(self) -> Generator[Step, Any, Found | None]:
        try:
            found: Found | None = yield Do(lambda: self.store.read(self.key))
        except CacheUnavailableError:
            if not self.store.resolves_when_down:
                raise
            return None
        return found

    def _new_wait(self) -> Wait:
        return ThreadWait() if self.blocking else LoopWait()

    def _hit(self, found: Found) -> Any:
        value = self.packing.unpack(self.key, found.packed)
        if found.fresh:
            self.counts.hits += 1
        else:
            self.counts.stale += 1
        return value

    def _wait(self, flight: Flight, waiter: Waiter) -> Generator[Step, Any, None]:
        try:
            yield Await(waiter)
        except BaseException:
            if self.flights.leave(flight, waiter):
                self.store.drop(self.key, flight.token)
            raise

    def _lead(self, flight: Flight, old: Found | None) -> Generator[Step, Any, Any]:
        try:
            start = yield from self._start(flight, old)
            if start.verdict == "found":
                self.flights.land(flight, start.packed)
                return self.packing.unpack(self.key, start.packed)
            if start.verdict == "failed":
                assert start.error is not None
                raise copied(start.error)
            packed = yield from self._resolve(flight)
        except Exception as error:
            self.flights.fail(flight, error)
            if old is None:
                raise
            logger.warning("%r stays as it was: its refresh failed", self.key, exc_info=error)
            self.counts.stale += 1
            return self.packing.unpack(self.key, old.packed)
        except BaseException:
            # Cancelled, or dropped: somebody who still waits goes on.
            if not self.flights.hand_over(flight):
                self.store.drop(self.key, flight.token)
            raise
        return self.packing.unpack(self.key, packed)

    def _start(self, flight: Flight, old: Found | None) -> Generator[Step, Any, Start]:
        """Wait until no other process refreshes the key, or it has done so."""
        look = _FIRST_LOOK
        while True:
            try:
                start: Start = yield Do(
                    lambda: self.store.start(self.key, flight.token, flight.waited_for)
                )
            except CacheUnavailableError:
                if not self.store.resolves_when_down:
                    raise
                return Start("lead")
            if start.verdict != "wait":
                return start
            if old is not None:
                return Start("found", old.packed)
            flight.waited_for = start.token
            yield Pause(uniform(look / 2, look))
            look = min(look * 2, _LAST_LOOK)

    def _resolve(self, flight: Flight) -> Generator[Step, Any, Any]:
        """Run the resolver, store what it returns, and end the flight."""
        self.counts.resolved += 1
        try:
            self.store.hold(self.key, flight.token, self.limit)
            value = yield Resolve(flight)
            packed, size = self.packing.pack(self.key, value)
        except Exception as error:
            self.counts.failed += 1
            # A copy: the traceback of *error* has this very frame, which must not hold it.
            failure = copied(error)
            yield Do(lambda: self._quietly(flight, failure))
            raise
        if self.store.blocks:
            try:
                yield Do(lambda: self._finish(flight, packed, size))
            except CacheUnavailableError as error:
                logger.warning("%r was resolved, but cannot be stored: %s", self.key, error)
            self.flights.land(flight, packed)
        else:
            self.flights.land(flight, packed, lambda: self._finish(flight, packed, size))
        return packed

    def _finish(self, flight: Flight, packed: Any, size: int) -> None:
        if not flight.detached:
            self.store.finish(self.key, flight.token, packed, size, self.life)

    def _quietly(self, flight: Flight, error: Exception) -> None:
        try:
            self.store.fail(self.key, flight.token, error, self.rest)
        except CacheUnavailableError as unavailable:
            # The resolver's own error is what matters; others find out when its claim runs out.
            logger.warning("%r: %s", self.key, unavailable)


Call = Callable[[Callable[[], Any]], Awaitable[Any]]


async def drive(
    steps: Generator[Step, Any, T],
    call: Call | None,
    resolver: Callable[[], Any],
    limit: float | None,
) -> T:
    """Do what *steps* ask for in the running task.

    Args:
        steps: Of a `Refreshing`.
        call: Calls a store that blocks; `None` for one that does not.
        resolver: Returns the value, or something that can be awaited for it.
        limit: Seconds that it may take, `None` for no limit.
    """
    resume: Callable[[Any], Step] = steps.send
    came: Any = None
    try:
        while True:
            try:
                step = resume(came)
            except StopIteration as end:
                value: T = end.value
                return value
            finally:
                came = None
            resume = steps.send
            try:
                if isinstance(step, Do):
                    came = step.call() if call is None else await call(step.call)
                elif isinstance(step, Resolve):
                    came = await _resolve(step.flight, resolver, limit)
                elif isinstance(step, Await):
                    assert isinstance(step.waiter.wait, LoopWait)
                    await step.waiter.wait.wakeup
                else:
                    await anyio.sleep(step.seconds)
            except BaseException as error:
                resume, came = steps.throw, error
    finally:
        steps.close()


async def _resolve(flight: Flight, resolver: Callable[[], Any], limit: float | None) -> Any:
    # A scope only where there is a limit: it costs more than the rest of a miss.
    scope = None if limit is None else anyio.CancelScope(deadline=anyio.current_time() + limit)
    token = leading.set((*leading.get(), flight))
    try:
        if scope is None:
            return await _value_of(resolver)
        with scope:
            return await _value_of(resolver)
    finally:
        leading.reset(token)
    raise CacheTimeoutError(
        f"the resolver of {flight.key!r} was cancelled after {limit} s: make it faster, or raise "
        "resolver_timeout."
    )


async def _value_of(resolver: Callable[[], Any]) -> Any:
    value = resolver()
    return await value if isawaitable(value) else value


def drive_blocking(steps: Generator[Step, Any, T], resolver: Callable[[], Any]) -> T:
    """Do what *steps* ask for, and block the running thread meanwhile."""
    resume: Callable[[Any], Step] = steps.send
    came: Any = None
    try:
        while True:
            try:
                step = resume(came)
            except StopIteration as end:
                value: T = end.value
                return value
            finally:
                came = None
            resume = steps.send
            try:
                if isinstance(step, Do):
                    came = step.call()
                elif isinstance(step, Resolve):
                    came = _resolve_blocking(step.flight, resolver)
                elif isinstance(step, Await):
                    assert isinstance(step.waiter.wait, ThreadWait)
                    step.waiter.wait.wait()
                else:
                    sleep(step.seconds)
            except BaseException as error:
                resume, came = steps.throw, error
    finally:
        steps.close()


def _resolve_blocking(flight: Flight, resolver: Callable[[], Any]) -> Any:
    token = leading.set((*leading.get(), flight))
    try:
        value = resolver()
    finally:
        leading.reset(token)
    if isawaitable(value):
        getattr(value, "close", bool)()
        raise TypeError(
            f"the resolver of {flight.key!r} is a coroutine function, which cannot be awaited "
            "here: use `await cache.get_or_set(...)`, or give a plain function."
        )
    return value
