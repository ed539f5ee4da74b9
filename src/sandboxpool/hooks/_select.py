"""Waiting for several file descriptors: `select.select`, `poll`, `epoll`, and `selectors`."""

from __future__ import annotations

import select as _select
import selectors
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
from greenlet import getcurrent

from sandboxpool.run.cooperative import await_, stepper

from ._deadline import Deadline
from ._patch import Patch
from ._poller import READABLE, URGENT, WRITABLE
from ._readiness import wait

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T", bound="Iterable[Any]")

# How long to rest after something has happened that the caller does not see, such as a hang-up of
# what is watched for urgent data only: it would happen again at once, for ever.
_REST = 0.01


def _look_until(
    look: Callable[[], T], masks: Callable[[], Mapping[int, int]], timeout: float | None
) -> T:
    """Call *look*, which does not wait, until it finds something or the time is up.

    Args:
        look: Returns what there is.
        masks: Returns what to wait for before looking again.
        timeout: In seconds, `None` for ever.
    """
    deadline = Deadline(timeout)
    found = look()
    while not any(found) and (left := deadline.left()) != 0:
        happened = wait(masks(), left)
        found = look()
        if happened and not any(found):
            left = deadline.left()
            await_(anyio.sleep(_REST if left is None else min(_REST, left)))
    return found


# --- select.select ------------------------------------------------------------------------------


@wraps(_select.select)
def select(
    rlist: Iterable[Any],
    wlist: Iterable[Any],
    xlist: Iterable[Any],
    timeout: float | None = None,
    /,
) -> tuple[list[Any], list[Any], list[Any]]:
    if stepper() is None or (timeout is not None and timeout <= 0):
        return _select_select(rlist, wlist, xlist, timeout)
    # Iterators could be looked at only once.
    lists = (rlist, wlist, xlist)
    r, w, x = (some if isinstance(some, list) else tuple(some) for some in lists)

    def masks() -> dict[int, int]:
        masks: dict[int, int] = {}
        for some, mask in zip((r, w, x), (READABLE, WRITABLE, URGENT), strict=True):
            for file in some:
                fd = _number(file)
                masks[fd] = masks.get(fd, 0) | mask
        return masks

    return _look_until(lambda: _select_select(r, w, x, 0), masks, timeout)


_select_select = _select.select

# --- poll and epoll -----------------------------------------------------------------------------

_poll: Any = getattr(_select, "poll", None)
_epoll: Any = getattr(_select, "epoll", None)
_EVERYTHING = READABLE | URGENT | WRITABLE


class poll:
    """`select.poll`, which a cooperative request may wait with."""

    def __init__(self) -> None:
        self._poll = _poll()
        self._masks: dict[int, int] = {}

    def register(self, fd: Any, eventmask: int = _EVERYTHING, /) -> None:
        """Watch a file, or watch it for other events."""
        self._poll.register(fd, eventmask)
        self._masks[_number(fd)] = eventmask & _EVERYTHING

    def modify(self, fd: Any, eventmask: int, /) -> None:
        """Watch a file for other events."""
        self._poll.modify(fd, eventmask)
        self._masks[_number(fd)] = eventmask & _EVERYTHING

    def unregister(self, fd: Any, /) -> None:
        """Watch a file no more."""
        self._poll.unregister(fd)
        del self._masks[_number(fd)]

    def poll(self, timeout: float | None = None, /) -> list[tuple[int, int]]:
        """Wait for *timeout* milliseconds; `None`, or a number below 0, is for ever."""
        if stepper() is None or timeout == 0:
            return self._poll.poll(timeout)  # type: ignore[no-any-return]
        seconds = None if timeout is None or timeout < 0 else timeout / 1000
        return _look_until(lambda: self._poll.poll(0), lambda: self._masks, seconds)


class epoll:
    """`select.epoll`, which a cooperative request may wait with."""

    def __init__(self, *args: Any, **options: Any) -> None:
        self._use(_epoll(*args, **options))

    @classmethod
    def fromfd(cls, fd: int, /) -> Self:
        """Use an epoll that there is already."""
        self = cls.__new__(cls)
        self._use(_epoll.fromfd(fd))
        return self

    def _use(self, epoll: Any) -> None:
        self._epoll = epoll
        self.fileno = epoll.fileno
        self.register = epoll.register
        self.modify = epoll.modify
        self.unregister = epoll.unregister
        self.close = epoll.close

    @property
    def closed(self) -> bool:
        """Whether it is closed."""
        return self._epoll.closed  # type: ignore[no-any-return]

    def __enter__(self) -> Self:
        self._epoll.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def poll(self, timeout: float | None = None, maxevents: int = -1) -> list[tuple[int, int]]:
        """Wait for *timeout* seconds; `None`, or a number below 0, is for ever."""
        if stepper() is None or timeout == 0:
            return self._epoll.poll(timeout, maxevents)  # type: ignore[no-any-return]
        if timeout is not None and timeout < 0:
            timeout = None
        # An epoll is itself a file that can be read when there is something to report.
        look: Callable[[], list[tuple[int, int]]] = lambda: self._epoll.poll(0, maxevents)  # noqa: E731
        return _look_until(look, lambda: {self.fileno(): READABLE}, timeout)


def _number(file: Any) -> int:
    fd: int = file if isinstance(file, int) else file.fileno()
    return fd


# --- selectors ----------------------------------------------------------------------------------


def _cooperative(original: Callable[..., Any]) -> Callable[..., Any]:
    """Return the `select()` of a class of selectors such that it suspends only the request."""

    @wraps(original)
    def select(self: Any, timeout: float | None = None) -> list[Any]:
        # On the stack that a thread has from its start: event loops come here each time around.
        if (
            getcurrent().parent is None
            or stepper() is None
            or (timeout is not None and timeout <= 0)
            or _drives_the_running_loop(self)
        ):
            return original(self, timeout)  # type: ignore[no-any-return]
        return _look_until(lambda: original(self, 0), lambda: _masks_of(self), timeout)

    return select


def _drives_the_running_loop(selector: Any) -> bool:
    # Somebody runs an event loop inside of the blocking code of a request (on Trio, one of
    # asyncio; with nest_asyncio, the server's own). It cannot be left in the middle: all other
    # requests would take it for theirs.
    asyncio = sys.modules.get("asyncio")
    loop = None if asyncio is None else asyncio._get_running_loop()
    return loop is not None and getattr(loop, "_selector", None) is selector


def _masks_of(selector: Any) -> dict[int, int]:
    if hasattr(selector, "fileno"):
        return {selector.fileno(): READABLE}
    masks = {}
    for key in selector.get_map().values():
        mask = READABLE if key.events & selectors.EVENT_READ else 0
        masks[key.fd] = mask | (WRITABLE if key.events & selectors.EVENT_WRITE else 0)
    return masks


_SELECTORS = (
    "SelectSelector",
    "PollSelector",
    "EpollSelector",
    "DevpollSelector",
    "KqueueSelector",
)
_replacements = {
    kind: _cooperative(kind.select)
    for kind in (getattr(selectors, name, None) for name in _SELECTORS)
    if kind is not None
}


def patches() -> Iterator[Patch]:
    """Yield what is replaced."""
    yield Patch(_select, "select", select)
    if _poll is not None:
        yield Patch(_select, "poll", poll)
    if _epoll is not None:
        yield Patch(_select, "epoll", epoll)
    for kind, replacement in _replacements.items():
        yield Patch(kind, "select", replacement)
