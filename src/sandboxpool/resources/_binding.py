"""What one request has of one resource: its own connection, and those of its blocks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sandboxpool._context import RequestLease
from sandboxpool._exceptions import LeaseEndedError
from sandboxpool._loop import Wakeup

if TYPE_CHECKING:
    from ._borrow import Borrow
    from ._here import Here


class Binding:
    """The borrows of a request; whatever it still has when its lease ends is given back then.

    Attributes:
        own: The connection that `current()` returns, once it was asked for.
        borrows: All that the request has, the own one included.
    """

    __slots__ = ("_acquiring", "_failed", "_here", "_lease", "borrows", "ended", "own")

    def __init__(self, here: Here, lease: RequestLease) -> None:
        self._here = here
        self._lease = lease
        self.own: Borrow[Any] | None = None
        self.borrows: dict[Borrow[Any], None] = {}
        self.ended = False
        self._acquiring: list[Wakeup] | None = None
        self._failed: Exception | None = None

    @classmethod
    def of(cls, here: Here, lease: RequestLease) -> Binding:
        """Return what a request has of a pool."""
        binding = here.bindings.get(lease)
        if binding is None:
            here.shared.adopt(here, lease)
            binding = cls(here, lease)
            lease.context.defer(binding.end)
            here.bindings[lease] = binding
        return binding

    def end(self) -> None:
        """Give everything back; never waits."""
        self.ended = True
        self._here.bindings.pop(self._lease, None)
        interrupted = self._lease.interrupted or self._lease.cut_off
        for borrow in tuple(self.borrows):
            reason = None
            if not self._here.driver.tracks and (interrupted or not borrow.own):
                # Nobody knows whether something was cut off on it, or still runs.
                reason = "cancelled"
            borrow.release(reason)

    async def acquire_own(self, new: Borrow[Any]) -> Borrow[Any]:
        """Return the request's own borrow: that which it has, or *new*, acquired.

        Those who ask at the same time wait for the first of them. If that one is cancelled, the
        next one takes over; if it fails, all of them do.
        """
        while True:
            own = self.own
            if own is not None:
                assert own.member is not None
                if not self._here.driver.lost(own.member):
                    return own
                own.release("unhealthy")  # the server has closed it, and its transaction
            if self._acquiring is None:
                break
            wakeup = self._here.loop.wakeup()
            waiting = self._acquiring
            waiting.append(wakeup)
            await wakeup
            if self._failed is not None and self.own is None and self._acquiring is None:
                raise self._failed
            if self.ended:
                raise self._over()
        self._acquiring = []
        self._failed = None
        try:
            await new.acquire()
        except Exception as error:
            self._failed = error
            raise
        else:
            if self.ended:
                new.release(None)
                raise self._over()
            self.own = new
        finally:
            woken, self._acquiring = self._acquiring, None
            for wakeup in woken:
                wakeup.wake()
        return new

    def _over(self) -> LeaseEndedError:
        return LeaseEndedError(
            f"{self._lease!r} ended while a task of it waited for its connection of "
            f"{self._here.name!r}: await such tasks before the request ends."
        )
