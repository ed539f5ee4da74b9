"""The contracts: what a pool, a factory, a sandbox, a context and a watchdog owe each other.

Everything here is a `typing.Protocol`. The implementations of this library inherit nothing from
them, and neither needs yours: fit the shape and it works. Durations are `float` seconds.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from typing import Any, Protocol, TypeVar, runtime_checkable

import attrs

from ._types import ASGIApp, Message, Receive, Scope, Send

__all__ = (
    "ASGIApp",
    "ContextStore",
    "Factory",
    "Holder",
    "Lease",
    "Message",
    "Pool",
    "PoolStatistics",
    "Receive",
    "RequestLease",
    "Sandbox",
    "SandboxFactory",
    "Scope",
    "Send",
    "Watchdog",
)

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


# --- records ------------------------------------------------------------------------------


@attrs.frozen
class Holder:
    """Who holds an item of an exhausted pool.

    Attributes:
        lease_id: The id of the lease.
        held: For how long, in seconds.
        where: File and line of the acquire, if the pool records it (`record_holders=True`).
    """

    lease_id: int
    held: float
    where: str | None = None

    def __str__(self) -> str:
        place = f" (acquired at {self.where})" if self.where else ""
        return f"lease {self.lease_id} for {self.held:.3g} s{place}"


@attrs.frozen
class PoolStatistics:
    """What a pool holds and has done, at one moment.

    `idle + in_use + creating + resetting + closing == size` holds in every snapshot.

    Attributes:
        name: The name of the pool.
        min_size: Items the pool keeps even when idle.
        max_size: Items the pool never exceeds.
        size: Items that exist or are about to.
        idle: Items that can be leased at once.
        in_use: Items on lease.
        creating: Items whose `create` is running.
        resetting: Items being made ready: in `reset`, `check` or `on_acquire`.
        closing: Items whose `destroy` is running; they still count against `max_size`.
        waiting: Callers in the queue, the live ones only.
        peak_in_use: The highest `in_use` ever.
        leases: Leases granted.
        waits: Leases that had to wait.
        wait_time: Sum of all waits, in seconds, those that ended in an error included.
        hold_time: Sum of how long items were held, in seconds, ended leases only.
        timeouts: Callers that ran out of `acquire_timeout`.
        refusals: Callers refused at once because of `max_waiting`.
        created: Items created.
        create_failures: Calls of `create` that failed.
        resets: Resets that succeeded.
        reset_failures: Resets that failed; their items were retired.
        retired: Items taken out for good, by reason.
    """

    name: str
    min_size: int
    max_size: int
    size: int
    idle: int
    in_use: int
    creating: int
    resetting: int
    closing: int
    waiting: int
    peak_in_use: int
    leases: int
    waits: int
    wait_time: float
    hold_time: float
    timeouts: int
    refusals: int
    created: int
    create_failures: int
    resets: int
    reset_failures: int
    retired: Mapping[str, int]


# --- the pool and what it pools -----------------------------------------------------------


class Factory(Protocol[T]):
    """Make, restore and end what a pool holds.

    The pool calls these in background tasks of its own, never in the task of a caller (but for
    a `reset` or `destroy` that is a plain function), each within its time limit. So none of
    them sees the caller's context variables, nor its cancellation. A hook must not acquire
    from its own pool (`NestedAcquireError`).

    A factory may also have `async def check(self, item) -> bool | None`. The pool calls it
    before it lends an item that was idle for longer than `check_after`; `False` or an exception
    retires the item as `unhealthy` and the caller, who keeps its place, gets another.
    """

    async def create(self) -> T:
        """Return a new item.

        Raises:
            Exception: Anything; it reaches the waiting callers as the cause of a `FactoryError`:
                the one that waits longest, or all of them if the pool has nothing else left.
        """
        ...

    def reset(self, item: T, /) -> Awaitable[None] | None:
        """Make an item that was used as good as new.

        Only an awaitable that it returns means that there is more to do; any other value is
        ignored. Write it as a plain function if it has nothing to await: it then runs at
        release, and the item is free at once. An `async def` runs in a task of the pool; it may
        be cancelled after `reset_timeout`.

        Raises:
            Exception: Anything; the item is retired as `reset_failed` and never lent again.
        """
        ...

    def destroy(self, item: T, /) -> Awaitable[None] | None:
        """End an item: called exactly once for each item that `create` returned.

        Raises:
            Exception: Anything; it is logged, and the item is gone all the same.
        """
        ...


class Lease(Protocol[T_co]):
    """One use of a pooled item, from acquire to release."""

    @property
    def id(self) -> int:
        """A number that no other lease of this process has."""
        ...

    @property
    def item(self) -> T_co:
        """The item.

        Raises:
            LeaseEndedError: The lease has not begun, or has ended.
        """
        ...

    def retire(self, reason: str = "unhealthy") -> None:
        """Have the item destroyed instead of reset when this lease ends.

        Raises:
            LeaseEndedError: The lease has not begun, or has ended.
        """
        ...

    async def __aenter__(self) -> T_co: ...

    async def __aexit__(self, *exc_info: object) -> bool | None: ...


class Pool(Protocol[T_co]):
    """Lend items to one caller at a time, fairly, and keep them in order."""

    def lease(self, *, timeout: float | None = ...) -> AbstractAsyncContextManager[T_co]:
        """Return a context manager that holds an item while it is entered.

        Entering takes an idle item at once, or waits in order of arrival. Cancelled while it
        waits, it leaves the queue, nothing is lost, and the cancellation is raised. Leaving
        never waits and cannot be cancelled.

        Args:
            timeout: Seconds to wait at most, `None` for no limit. Without it, the pool's own.

        Raises:
            PoolTimeoutError: Nothing became free in time.
            PoolFullError: Too many were waiting already.
            PoolClosedError: The pool is closed, or was closed during the wait.
            FactoryError: The item this caller waited for could not be created.
        """
        ...

    def statistics(self) -> PoolStatistics:
        """Return the figures of this moment; the cost does not depend on the pool's size."""
        ...

    async def resize(self, *, min_size: int | None = None, max_size: int | None = None) -> None:
        """Change the bounds live; what is too many is retired when it comes back."""
        ...

    async def drain(self, timeout: float | None = None) -> bool:
        """Replace every item: the idle ones now, the others as their leases end.

        Returns:
            Whether all the old items were gone within `timeout` seconds.
        """
        ...

    async def aclose(self, timeout: float | None = None) -> None:
        """Refuse new leases, wake every waiter, let leases end, destroy everything.

        Args:
            timeout: Seconds to wait for leases to end; afterwards their items are destroyed
                all the same. A second call waits for the first.
        """
        ...


# --- sandboxes ----------------------------------------------------------------------------


@runtime_checkable
class Sandbox(Protocol):
    """One isolated app: serves one call at a time, and can be made as good as new."""

    def __call__(self, scope: Scope, receive: Receive, send: Send, /) -> Awaitable[Any]:
        """Serve one `http` or `websocket` connection; whatever comes out is handed on."""
        ...

    def reset(self) -> Awaitable[None] | None:
        """Forget the last call. If that fails the sandbox is retired."""
        ...

    async def aclose(self) -> None:
        """End the sandbox. Called once, and never while it serves a call."""
        ...


class SandboxFactory(Protocol):
    """Make the sandboxes of one wrapped app: an isolation.

    A `Factory[Sandbox]` with a life of its own. Pass one as `wrap(app, isolation=...)`.
    A sandbox may also have `request_state(state)`: given the server's `scope["state"]` (or
    `None`), it returns the dict the request shall see, or `None` to leave the scope as it is.
    A factory may also have `async start_unasked()`: it is called instead of `start()` when the
    server sends no lifespan events and the first request opens the app.
    """

    async def start(self) -> None:
        """Prepare, before the first `create`.

        Raises:
            LifespanStartupError: The app did not start.
        """
        ...

    async def stop(self) -> None:
        """Clean up, after the last `destroy`.

        Raises:
            LifespanShutdownError: The app did not stop in order.
        """
        ...

    async def create(self) -> Sandbox:
        """Return a new sandbox."""
        ...

    def reset(self, sandbox: Any, /) -> Awaitable[None] | None:
        """Make a sandbox as it was after start-up."""
        ...

    def destroy(self, sandbox: Any, /) -> Awaitable[None] | None:
        """End a sandbox."""
        ...


# --- requests -----------------------------------------------------------------------------


class ContextStore(Protocol):
    """The key-value store of one lease.

    Every task and thread that the request started sees the same one. It is sealed when the
    lease ends: from then on each method raises `LeaseEndedError`, so that a late write fails
    where it happens instead of leaking into another request. Outside of a request each method
    raises `NoLeaseError`.
    """

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of *key*, or *default*."""
        ...

    def set(self, key: str, value: Any) -> None:
        """Store *value* under *key*."""
        ...

    def has(self, key: str) -> bool:
        """Tell whether *key* has a value."""
        ...

    def delete(self, key: str) -> bool:
        """Remove *key*; return whether it was there."""
        ...

    def get_or_set(self, key: str, make: Callable[[], T]) -> T:
        """Return the value of *key*; if there is none, store and return what *make* returns.

        *make* runs once, also when several threads of the request ask at the same moment.
        """
        ...

    def update(
        self, values: Mapping[str, Any] | Iterable[tuple[str, Any]] = (), /, **more: Any
    ) -> None:
        """Store several values."""
        ...

    def copy(self) -> dict[str, Any]:
        """Return all keys and values as a new dict, to carry over into another lease."""
        ...

    def defer(self, callback: Callable[..., object], /, *args: Any) -> None:
        """Call *callback* when the lease ends, whatever its outcome; the last deferred first.

        An awaitable that it returns is awaited, shielded from cancellation and within
        `defer_timeout`. An error is logged and stops neither the others nor the release.
        """
        ...


class RequestLease(Protocol):
    """The lease of one request: who it is, and what it may ask for."""

    @property
    def id(self) -> int:
        """A number that no other lease of this process has."""
        ...

    @property
    def sandbox(self) -> Sandbox:
        """The sandbox that serves the request."""
        ...

    @property
    def path(self) -> str:
        """The path of the request."""
        ...

    @property
    def age(self) -> float:
        """Seconds since the request got its sandbox."""
        ...

    @property
    def ended(self) -> bool:
        """Whether the lease is over."""
        ...

    @property
    def context(self) -> ContextStore:
        """The store of this lease."""
        ...

    def extend(self, seconds: float | None) -> None:
        """Set the execution deadline to *seconds* from now, `None` for no deadline."""
        ...

    def cancel(self) -> None:
        """Cut the request off, as the watchdog does at its deadline."""
        ...


class Watchdog(Protocol):
    """Decide what happens to a request that takes too long.

    `wrap` calls these in the event loop, without awaiting; none of them may block or raise.
    """

    def started(self, lease: Any, /) -> None:
        """Note that a request got its sandbox."""
        ...

    def ended(self, lease: Any, /) -> None:
        """Note that it is over."""
        ...

    def changed(self, lease: Any, /) -> None:
        """Note that the lease's deadline was moved by `extend()`."""
        ...

    def stop(self) -> None:
        """Stop watching; called once, when the app is closed."""
        ...
