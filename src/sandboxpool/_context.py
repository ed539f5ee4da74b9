"""The lease of a request, its context store, and how running code finds them.

One context variable names the lease that the running code belongs to. Tasks and threads inherit
the *reference*, never a copy of the data, so they see one store; and because the lease knows
when it has ended, a stray task that still holds the reference gets an error instead of writing
into somebody else's request.
"""

from __future__ import annotations

import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextvars import ContextVar
from itertools import count
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar, cast

from ._exceptions import LeaseEndedError, NoLeaseError
from ._options import check_seconds

if TYPE_CHECKING:
    from ._types import Scope
    from .abc import Sandbox

T = TypeVar("T")

lease_ids = count(1)
"""Numbers for leases of every kind, unique in this process."""

current: ContextVar[RequestLease | None] = ContextVar("sandboxpool_lease", default=None)
"""The lease that the running code belongs to, or `None`."""

_creating_locks = threading.Lock()


_NO_SCOPE: Scope = {}

Deferred: TypeAlias = list[tuple[Callable[..., object], tuple[Any, ...]]]
"""Callbacks and their arguments, in the order in which they were deferred."""


class RequestLease:
    """The lease of one request.

    Attributes:
        id: A number that no other lease of this process has.
        owner: The factory that made the sandbox; one request may hold leases of several.
        sandbox: The sandbox that serves the request.
        parent: The lease around this one, when a wrapped app calls another one.
        scope: The ASGI scope of the request.
        started_at: When the sandbox was leased, on the monotonic clock.
        deadline: When the watchdog ends the request, on the same clock; `inf` for never.
        slow_at: When the watchdog reports it as slow; `inf` for never.
        answered: The type of the message that began the app's answer, or `None`.
        interruption: Can cancel the call of the app.
        steps: The running call of the app; its stack shows where it is.
        blocked: The stack of a cooperative request that waits in the middle of a step, the last
            one if there are several.
        worker: The id of the thread that runs a WSGI app for it; 0 for none.
        serving: What serves the request; told when the deadline is moved.
        watched: Whether the watchdog knows of it.
        ended: Whether the lease is over.
        cut_off: The status to answer with, once it was told to stop; 0 until then.
        interrupted: Whether the call of the app did not come to an end of its own.
    """

    # What hardly any request changes is a default of the class: one store less on each lease.
    deadline = inf
    slow_at = inf
    ended = False
    cut_off = 0
    interrupted = False
    watched = False
    answered: str | None = None
    interruption: Any = None
    steps: Any = None
    blocked: Any = None
    worker = 0
    _values: dict[str, Any] | None = None
    _lock: threading.RLock | None = None
    _deferred: Deferred | None = None
    _path: str | None = None

    def __init__(
        self,
        owner: object,
        sandbox: Sandbox,
        scope: Scope,
        parent: RequestLease | None = None,
        serving: Any = None,
        started_at: float | None = None,
    ) -> None:
        self.id = next(lease_ids)
        self.owner = owner
        self.sandbox = sandbox
        self.parent = parent
        self.scope = scope
        self.serving = serving
        self.started_at = monotonic() if started_at is None else started_at

    def __repr__(self) -> str:
        state = "ended" if self.ended else f"open for {self.age:.3g} s"
        return f"<RequestLease {self.id} {self.path!r} {state}>"

    @property
    def path(self) -> str:
        """The path of the request, as the server decoded it."""
        return str(self.scope.get("path", "")) if self._path is None else self._path

    @property
    def age(self) -> float:
        """Seconds since the request got its sandbox."""
        return monotonic() - self.started_at

    @property
    def context(self) -> LeaseContext:
        """The key-value store of this lease."""
        return LeaseContext(self)

    def extend(self, seconds: float | None) -> None:
        """Set the execution deadline to *seconds* from now.

        Args:
            seconds: Seconds from now, or `None` for no deadline at all.

        Raises:
            LeaseEndedError: The lease is over.
            OptionError: That is no number of seconds.
        """
        self.check_open()
        check_seconds("seconds", seconds)
        self.deadline = float("inf") if seconds is None else monotonic() + seconds
        if self.serving is not None:
            self.serving.deadline_changed(self)

    def cancel(self) -> None:
        """Cut the request off, as the watchdog does at its deadline.

        The app is cancelled, the request is answered 504 if its response has not begun and its
        connection cut otherwise, and the sandbox is retired. It may be called from any thread.

        Raises:
            LeaseEndedError: The lease is over.
        """
        self.check_open()
        if self.serving is not None:
            self.serving.cancelled(self)

    def check_open(self) -> None:
        """Raise `LeaseEndedError` if the lease is over."""
        if self.ended:
            raise LeaseEndedError(
                f"lease {self.id} of {self.path!r} has ended: code that outlives its request "
                "cannot use the request's sandbox or context. Pass it the plain values that it "
                "needs, or await it before the request ends."
            )

    def seal(self) -> None:
        """End the lease: from now on whatever asks for it or its context gets an error."""
        self._path = self.scope.get("path", "")
        self.ended = True
        # The scope and the call lead back here. Cut, all of it is freed at once instead of by
        # the garbage collector, which costs more than the rest of a lease.
        self.scope = _NO_SCOPE
        self.steps = self.interruption = self.blocked = None
        if self._values is not None:
            self._values = None
        if self._deferred is not None:
            self._deferred = None


class LeaseContext:
    """The key-value store of one lease."""

    __slots__ = ("_lease",)

    def __init__(self, lease: RequestLease) -> None:
        self._lease = lease

    def __repr__(self) -> str:
        return f"<LeaseContext of {self._lease!r}>"

    def _open(self) -> dict[str, Any]:
        lease = self._lease
        lease.check_open()
        values = lease._values
        if values is None:
            # Two threads of one request may be the first at the same moment.
            with _creating_locks:
                values = lease._values
                if values is None:
                    values = lease._values = {}
        return values

    def _locked(self) -> threading.RLock:
        # Reentrant, because the `make` of `get_or_set` may use the context itself.
        lease = self._lease
        lease.check_open()
        lock = lease._lock
        if lock is None:
            with _creating_locks:
                lock = lease._lock
                if lock is None:
                    lock = lease._lock = threading.RLock()
        return lock

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of *key*, or *default*."""
        return self._open().get(key, default)

    def set(self, key: str, value: Any) -> None:
        """Store *value* under *key*."""
        with self._locked():
            self._open()[key] = value

    def has(self, key: str) -> bool:
        """Tell whether *key* has a value."""
        return key in self._open()

    def delete(self, key: str) -> bool:
        """Remove *key*; return whether it was there."""
        with self._locked():
            values = self._open()
            if key in values:
                del values[key]
                return True
            return False

    def get_or_set(self, key: str, make: Callable[[], T]) -> T:
        """Return the value of *key*; without one, store and return what *make* returns."""
        with self._locked():
            values = self._open()
            if key not in values:
                made = make()
                # `make` may have stored it, or ended the lease, itself.
                values = self._open()
                values.setdefault(key, made)
            return cast("T", values[key])

    def update(
        self, values: Mapping[str, Any] | Iterable[tuple[str, Any]] = (), /, **more: Any
    ) -> None:
        """Store several values."""
        with self._locked():
            self._open().update(values, **more)

    def copy(self) -> dict[str, Any]:
        """Return all keys and values as a new dict."""
        with self._locked():
            return dict(self._open())

    def defer(self, callback: Callable[..., object], /, *args: Any) -> None:
        """Call *callback* when the lease ends; the last deferred first."""
        if not callable(callback):
            raise TypeError(
                f"context.defer() takes a callable and its arguments, got {callback!r}: "
                "pass the function itself, not the result of calling it."
            )
        with self._locked():
            self._open()
            if self._lease._deferred is None:
                self._lease._deferred = []
            self._lease._deferred.append((callback, args))


class CurrentContext:
    """The store of whichever lease the running code belongs to."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<context of {current.get()!r}>"

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of *key* in the current lease, or *default*."""
        return current_lease().context.get(key, default)

    def set(self, key: str, value: Any) -> None:
        """Store *value* under *key* in the current lease."""
        current_lease().context.set(key, value)

    def has(self, key: str) -> bool:
        """Tell whether *key* has a value in the current lease."""
        return current_lease().context.has(key)

    def delete(self, key: str) -> bool:
        """Remove *key* from the current lease; return whether it was there."""
        return current_lease().context.delete(key)

    def get_or_set(self, key: str, make: Callable[[], T]) -> T:
        """Return the value of *key*; without one, store and return what *make* returns."""
        return current_lease().context.get_or_set(key, make)

    def update(
        self, values: Mapping[str, Any] | Iterable[tuple[str, Any]] = (), /, **more: Any
    ) -> None:
        """Store several values in the current lease."""
        current_lease().context.update(values, **more)

    def copy(self) -> dict[str, Any]:
        """Return all keys and values of the current lease as a new dict."""
        return current_lease().context.copy()

    def defer(self, callback: Callable[..., object], /, *args: Any) -> None:
        """Call *callback* when the current lease ends; the last deferred first."""
        current_lease().context.defer(callback, *args)


context = CurrentContext()


def current_lease() -> RequestLease:
    """Return the lease of the request that the running code belongs to.

    Works in endpoints, dependencies, sync endpoints in threads, child tasks, generators of
    streaming responses, background tasks, and in and under middleware inside of the wrapped app.

    Raises:
        NoLeaseError: The code runs outside of any request to a wrapped app.
        LeaseEndedError: The request that started this code is over.
    """
    lease = current.get()
    if lease is None:
        raise NoLeaseError(
            "there is no current lease: this code runs outside of a request to an app that "
            "sandboxpool.wrap() made (at import, in a lifespan, or in a thread that did not "
            "inherit the request's context variables)."
        )
    lease.check_open()
    return lease


def current_sandbox() -> Sandbox:
    """Return the sandbox of the request that the running code belongs to.

    Raises:
        NoLeaseError: The code runs outside of any request to a wrapped app.
        LeaseEndedError: The request that started this code is over.
    """
    return current_lease().sandbox


def sandbox_for(owner: object) -> Sandbox | None:
    """Return the sandbox that the running request holds of *owner*, or `None`.

    A request may hold several leases, one inside the other, when a wrapped app is mounted in or
    called by another one; each owner finds its own.

    Raises:
        LeaseEndedError: The request did hold one, and its lease has ended.
    """
    lease = current.get()
    while lease is not None:
        if lease.owner is owner:
            lease.check_open()
            return lease.sandbox
        lease = lease.parent
    return None


def call_deferred(
    deferred: Deferred | None, report: Callable[[BaseException], None]
) -> Awaitable[object] | None:
    """Call deferred callbacks, the last one first, until one must be awaited; return that.

    A callback may defer others: they come next. *report* gets what each of them raises.
    """
    while deferred:
        callback, args = deferred.pop()
        try:
            result = callback(*args)
        except Exception as error:
            report(error)
        else:
            if isinstance(result, Awaitable):
                return result
    return None
