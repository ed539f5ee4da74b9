"""What tells one event loop which file descriptors are ready, itself one file descriptor.

Each descriptor is reported once, then it must be armed again. Events are those of `select.poll`,
which epoll shares.
"""

from __future__ import annotations

import select
import selectors
from collections.abc import Iterable
from typing import Any, Protocol

READABLE = 0x01
URGENT = 0x02
WRITABLE = 0x04
BROKEN = 0x08 | 0x10
"""An error or a hang-up, which are reported unasked."""

# The originals: the hook `select` replaces them.
_epoll: Any = getattr(select, "epoll", None)
_poll: Any = getattr(select, "poll", None)

_AT_A_TIME = 1024


def ready_now(fd: int, mask: int) -> bool:
    """Tell whether one of the events of *mask*, or an error, is there already."""
    poll = _poll()
    poll.register(fd, mask)
    return bool(poll.poll(0))


class Poller(Protocol):
    """Watches file descriptors."""

    def fileno(self) -> int:
        """Return a file descriptor that can be read when another one is ready."""
        ...

    def arm(self, fd: int, mask: int) -> None:
        """Report *fd* once; replaces what was to be reported of it.

        Raises:
            PermissionError: It is a file of a kind that is always ready.
            OSError: It is closed, or too many are watched.
        """
        ...

    def disarm(self, fd: int) -> None:
        """Do not report *fd*; from any thread."""
        ...

    def ready(self) -> Iterable[tuple[int, int]]:
        """Return what is ready, with its events."""
        ...


def poller() -> Poller:
    """Return the best one of this platform."""
    return EpollPoller() if _epoll is not None else SelectorPoller()


class EpollPoller:
    """See `Poller`; for Linux."""

    def __init__(self) -> None:
        self._epoll = _epoll()
        self.fileno = self._epoll.fileno

    def arm(self, fd: int, mask: int) -> None:
        try:
            self._epoll.modify(fd, mask | select.EPOLLONESHOT)
        except FileNotFoundError:
            self._epoll.register(fd, mask | select.EPOLLONESHOT)

    def disarm(self, fd: int) -> None:
        try:
            self._epoll.unregister(fd)
        except OSError:
            pass

    def ready(self) -> Iterable[tuple[int, int]]:
        events: list[tuple[int, int]] = self._epoll.poll(0, _AT_A_TIME)
        return events


class SelectorPoller:
    """See `Poller`; for other Unixes. Urgent data is not reported."""

    def __init__(self) -> None:
        self._selector: Any = selectors.DefaultSelector()
        self.fileno = self._selector.fileno

    def arm(self, fd: int, mask: int) -> None:
        events = 0
        if mask & READABLE:
            events |= selectors.EVENT_READ
        if mask & WRITABLE:
            events |= selectors.EVENT_WRITE
        # Anew each time: the number may mean another file by now.
        self.disarm(fd)
        if events:
            self._selector.register(fd, events)

    def disarm(self, fd: int) -> None:
        try:
            self._selector.unregister(fd)
        except KeyError:
            pass

    def ready(self) -> Iterable[tuple[int, int]]:
        for key, events in self._selector.select(0):
            self.disarm(key.fd)
            mask = READABLE if events & selectors.EVENT_READ else 0
            yield key.fd, mask | (WRITABLE if events & selectors.EVENT_WRITE else 0)
