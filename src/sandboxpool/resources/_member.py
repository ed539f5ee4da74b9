"""A pooled connection and what is known about it; what a driver must be able to do."""

from __future__ import annotations

from collections.abc import Awaitable
from time import monotonic
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from sandboxpool._context import RequestLease, current
from sandboxpool._exceptions import LeaseEndedError

if TYPE_CHECKING:
    from ._borrow import Borrow

T = TypeVar("T")


class Service:
    """Stands in for a borrow while the pool itself uses a connection: to open or to reset it."""

    lease: RequestLease | None = None


SERVICE = Service()
UNUSED = Service()
"""After a borrow in which nothing was done, so that there is nothing to reset."""


class Member:
    """A pooled connection.

    Attributes:
        connection: What the driver has opened.
        borrow: Who has it; `None` while it is idle.
        running: Operations that run on it now.
        suspect: Whether an operation was cut off on it, so that its state is not known.
        effect: What the statements on it leave behind at most, see `_sql.Effect`.
        used_at: When the last operation ended, on the monotonic clock.
        extra: What the driver wants to remember.
    """

    __slots__ = ("borrow", "connection", "effect", "extra", "name", "running", "suspect", "used_at")

    def __init__(self, name: str) -> None:
        self.name = name
        self.connection: Any = None
        self.borrow: Borrow[Any] | Service | None = SERVICE
        self.running = 0
        self.suspect = False
        self.effect = 0
        self.used_at = 0.0
        self.extra: Any = None

    def begin(self) -> None:
        """Note that an operation begins.

        Raises:
            LeaseEndedError: Who starts it does not have the connection, or not any more.
        """
        borrow = self.borrow
        if borrow is None or (borrow.lease is not current.get() and not self._in_family()):
            raise LeaseEndedError(
                f"this connection of {self.name!r} was given back, and may be another request's "
                "by now: use it inside of `async with ....connection()`, or before the request "
                "that called `current()` ends."
            )
        self.running += 1

    def end(self, error: BaseException | None = None) -> None:
        """Note that an operation is over, and how."""
        self.running -= 1
        self.used_at = monotonic()
        if error is not None and not isinstance(error, Exception):
            self.suspect = True

    def _in_family(self) -> bool:
        """Tell whether it was acquired by the request around this one, or outside of any."""
        assert self.borrow is not None
        if self.borrow.lease is None:
            return True
        lease = current.get()
        while lease is not None:
            if lease is self.borrow.lease:
                return True
            lease = lease.parent
        return False


class Driver(Generic[T]):
    """What the pools need from a kind of connection.

    Attributes:
        system: The name of the system, as OpenTelemetry's `db.system.name` has it.
        tracks: Whether it tells with `Member.begin()` and `end()` what runs, and so refuses who
            does not have the connection any more.
    """

    system = "other"
    tracks = True

    def key(self) -> object:
        """Return what makes two declarations in the same place the same; hashable."""
        raise NotImplementedError

    async def open(self, member: Member) -> None:
        """Set `member.connection` to a new connection."""
        raise NotImplementedError

    async def close(self, member: Member) -> None:
        """End the connection, in whatever state it is."""
        raise NotImplementedError

    async def check(self, member: Member) -> bool:
        """Tell whether a connection that was idle for long still works."""
        return True

    def alive(self, member: Member) -> bool:
        """Tell, without asking the server, whether the connection can still be used."""
        return True

    def lost(self, member: Member) -> bool:
        """Tell whether a connection that is in use is known not to work any more.

        Unlike on an idle one, something may be waiting to be read on it.
        """
        return not self.alive(member)

    def lend(self, member: Member) -> T:
        """Return what the borrower gets."""
        connection: T = member.connection
        return connection

    def busy(self, member: Member) -> bool:
        """Tell whether an operation runs."""
        return bool(member.running)

    def pinned(self, member: Member) -> bool:
        """Tell whether a transaction is open."""
        return False

    def clean(self, member: Member) -> bool:
        """Tell that the connection is as good as new, if that is to be seen at once.

        That is the fast path; otherwise `worn()` and `reset()` decide.
        """
        return False

    def worn(self, member: Member) -> str | None:
        """Return why the connection must be closed instead of reset after a use, if it must."""
        if member.suspect or member.running:
            return "cancelled"
        return None if self.alive(member) else "unhealthy"

    def reset(self, member: Member) -> Awaitable[None] | None:
        """Make the connection as it was after `open`; return what must be awaited for that."""
        return None
