"""Single flight: one caller runs the resolver of a key, the others wait for what comes of it.

The first who misses a key *leads* the flight: it runs the resolver itself, in its own task or
thread and as part of its own request, so that nothing is left running when that request is over.
If it is cancelled, the one who has waited longest leads on. Callers may be in several threads and
event loops.

A flight whose key was written or deleted meanwhile is *detached*: who waits for it still gets its
result, but that is not stored, and later callers begin anew. So nobody who asks after a `delete()`
gets what was computed before it. (Memcached's leases do that; Nishtala and others, "Scaling
Memcache at Facebook", NSDI 2013, section 3.2.1.)
"""

from __future__ import annotations

import copy
import threading
from collections import deque
from collections.abc import Callable, Iterable
from contextvars import ContextVar
from threading import get_ident
from typing import Any, Protocol
from uuid import uuid4

import attrs

from sandboxpool._exceptions import CacheCycleError, CacheResolverError
from sandboxpool._loop import running_loop

# One for all flights: resolvers of one cache may ask another one, and cycles are looked for
# across them. It is taken on misses only.
lock = threading.RLock()

leading: ContextVar[tuple[Flight, ...]] = ContextVar("sandboxpool_cache_leading", default=())
"""The flights that the running code is the resolver of, the innermost last."""


class Wait(Protocol):
    """How a caller waits; made by whoever drives it, in a thread or in an event loop."""

    def wake(self) -> None:
        """End the wait, from any thread.

        Raises:
            RuntimeError: Nobody waits there any more: the event loop is closed.
        """
        ...


@attrs.define(eq=False)
class Waiter:
    """A caller that waits for a flight.

    Attributes:
        wait: Ends its wait.
        leads: Whether it has been chosen to lead on.
        over: Whether the flight has come to an end.
    """

    wait: Wait
    leads: bool = False
    over: bool = False


@attrs.define(eq=False)
class Flight:
    """One refresh of one key, for all who want it.

    Attributes:
        key: The key.
        token: Names it among those of other processes.
        waited_for: Who in another process has refreshed the key when last asked.
        thread: The thread of the one who leads it.
        detached: Whether the key was changed since it began.
        waiters: Who waits, in order of arrival.
        asks: The flights that its resolver waits for.
        packed: What came of it.
        error: What it has failed with.
    """

    key: str
    token: str = attrs.field(factory=lambda: uuid4().hex)
    waited_for: str = ""
    thread: int = attrs.field(factory=get_ident)
    detached: bool = False
    waiters: deque[Waiter] = attrs.field(factory=deque)
    asks: list[Flight] = attrs.field(factory=list)
    packed: Any = None
    error: Exception | None = None


class Flights:
    """The flights of one cache, by key."""

    def __init__(self) -> None:
        self._flights: dict[str, Flight] = {}

    def join(
        self, key: str, waiting: Callable[[], Wait] | None, blocking: bool
    ) -> tuple[Flight | None, Waiter | None]:
        """Lead a flight, or wait for the one that there is.

        Args:
            key: The key.
            waiting: Makes what to wait with; `None` to not wait at all.
            blocking: Whether waiting stops everything else in the thread.

        Returns:
            The flight, and what to wait with if somebody else leads it; no flight if there is one
            and *waiting* is `None`.

        Raises:
            CacheCycleError: Waiting would never end.
        """
        with lock:
            flight = self._flights.get(key)
            if flight is None:
                flight = self._flights[key] = Flight(key)
                return flight, None
            if waiting is None:
                return None, None
            chain = leading.get()
            if chain:
                _refuse_cycle(flight, chain)
            if blocking and flight.thread == get_ident():
                raise CacheCycleError(
                    f"{key!r} is being refreshed by this very thread, which would wait for itself "
                    "for ever: use `await cache.get_or_set(...)` where an event loop runs."
                )
            waiter = Waiter(waiting())
            flight.waiters.append(waiter)
            return flight, waiter

    def leave(self, flight: Flight, waiter: Waiter) -> bool:
        """Wait no longer.

        Returns:
            Whether the flight is left without anybody to lead it.
        """
        with lock:
            if waiter.leads:
                # It was chosen in the very moment in which it was cancelled.
                return not self.hand_over(flight)
            if waiter in flight.waiters:
                flight.waiters.remove(waiter)
            return False

    def hand_over(self, flight: Flight) -> bool:
        """Let the one who has waited longest lead on; return whether there is one."""
        with lock:
            while flight.waiters:
                waiter = flight.waiters.popleft()
                waiter.leads = True
                try:
                    waiter.wait.wake()
                except RuntimeError:
                    continue  # its event loop has ended, and so has it
                return True
            if self._flights.get(flight.key) is flight:
                del self._flights[flight.key]
            return False

    def land(self, flight: Flight, packed: Any, store: Callable[[], object] | None = None) -> None:
        """End a flight with a value; *store* puts it away, unless the flight is detached."""
        with lock:
            # In one step with the end of the flight: who comes next finds one or the other.
            if store is not None and not flight.detached:
                store()
            flight.packed = packed
            self._end(flight)

    def fail(self, flight: Flight, error: Exception) -> None:
        """End a flight with an error."""
        with lock:
            # A copy also because *error* has the frames in its traceback that hold the flight.
            flight.error = copied(error)
            self._end(flight)

    def _end(self, flight: Flight) -> None:
        if self._flights.get(flight.key) is flight:
            del self._flights[flight.key]
        for waiter in flight.waiters:
            waiter.over = True
            try:
                waiter.wait.wake()
            except RuntimeError:
                pass
        flight.waiters.clear()

    def detach(self, key: str) -> None:
        """Let what is under way for a key be neither stored nor waited for by later callers."""
        with lock:
            flight = self._flights.pop(key, None)
            if flight is not None:
                flight.detached = True

    def detach_all(self) -> None:
        """Detach every flight."""
        with lock:
            for key in tuple(self._flights):
                self.detach(key)

    def forget(self) -> None:
        """Forget every flight: this process is a fork, and those who lead them are not in it."""
        self._flights.clear()


class asking:
    """While a resolver waits for another flight, or leads it, the two are tied together."""

    __slots__ = ("_flight", "_outer")

    def __init__(self, flight: Flight) -> None:
        chain = leading.get()
        self._outer = chain[-1] if chain else None
        self._flight = flight

    def __enter__(self) -> None:
        if self._outer is not None:
            with lock:
                self._outer.asks.append(self._flight)

    def __exit__(self, *exc: object) -> None:
        if self._outer is not None:
            with lock:
                self._outer.asks.remove(self._flight)


def _refuse_cycle(flight: Flight, chain: Iterable[Flight]) -> None:
    """Raise if *flight*, or one that its resolver waits for, waits for one of *chain*."""
    ours = set(map(id, chain))
    path: dict[int, Flight | None] = {id(flight): None}
    todo = [flight]
    while todo:
        at = todo.pop()
        if id(at) in ours:
            keys = [at.key]
            before = path[id(at)]
            while before is not None:
                keys.append(before.key)
                before = path[id(before)]
            raise CacheCycleError(
                f"the resolver of {at.key!r} asks for {flight.key!r}"
                + (
                    " itself, and would wait for ever"
                    if at is flight
                    else f", which waits for it: {' <- '.join(map(repr, keys))}"
                )
                + ": resolve one of them without the other."
            )
        for asked in at.asks:
            if id(asked) not in path:
                path[id(asked)] = at
                todo.append(asked)


def copied(error: Exception) -> Exception:
    """Return an exception like *error* for another caller.

    Not the same object: its traceback holds the frames, and so the objects, of whoever ran the
    resolver, and each raise would add to it.
    """
    made: Any = None
    try:
        made = copy.copy(error)
    except Exception:
        try:  # its `__init__` takes something else than `args`
            made = type(error).__new__(type(error), *error.args)
            vars(made).update(vars(error))
        except Exception:
            made = None
    if type(made) is not type(error) or made is error:
        return CacheResolverError(
            f"the resolver failed with {type(error).__qualname__}: {error} (this caller waited "
            "for it, and the exception itself cannot be copied)."
        )
    copy_: Exception = made.with_traceback(None)
    return copy_


class ThreadWait:
    """Lets a thread wait."""

    __slots__ = ("_event",)

    def __init__(self) -> None:
        self._event = threading.Event()

    def wake(self) -> None:
        self._event.set()

    def wait(self) -> None:
        """Wait, once."""
        self._event.wait()


class LoopWait:
    """Lets a task wait."""

    __slots__ = ("_loop", "_thread", "wakeup")

    def __init__(self) -> None:
        self._loop = running_loop()
        self._thread = get_ident()
        self.wakeup = self._loop.wakeup()

    def wake(self) -> None:
        if self._thread == get_ident() and self._loop.home._thread_id == self._thread:
            self.wakeup.wake()
        else:
            self._loop.call_from_thread(self.wakeup.wake)
