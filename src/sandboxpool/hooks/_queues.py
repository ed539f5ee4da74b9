"""`queue.SimpleQueue`, the only queue that is written in C.

`Queue`, `LifoQueue` and `PriorityQueue` wait for conditions, which the hook `locks` reaches.
"""

from __future__ import annotations

import _queue
import queue
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sandboxpool.run.cooperative import stepper

from ._patch import Patch
from ._waiting import Line

if TYPE_CHECKING:
    from typing_extensions import Self

_put = _queue.SimpleQueue.put
_get = _queue.SimpleQueue.get


class SimpleQueue(_queue.SimpleQueue[Any]):
    """A `queue.SimpleQueue` that requests wait for without blocking their event loop.

    Threads wait for an item as they always did. Requests wait in line. An item goes to whoever is
    the first to look, after those who wait already if that is a request.
    """

    __slots__ = ("_line",)

    _line: Line

    def __new__(cls, *_: Any, **__: Any) -> Self:
        """Make one; not all subclasses call an initializer that did not exist before."""
        self = super().__new__(cls)
        self._line = Line()
        return self

    def put(self, item: Any, block: bool = True, timeout: float | None = None) -> None:
        """Put an item; never blocks, and may be called from a finalizer."""
        _put(self, item)
        if self._line:
            self._line.wake()

    def put_nowait(self, item: Any) -> None:
        """Put an item."""
        self.put(item)

    def get(self, block: bool = True, timeout: float | None = None) -> Any:
        """Remove and return an item; see `queue.SimpleQueue`."""
        if not block or stepper() is None or (timeout is not None and timeout < 0):
            return _get(self, block, timeout)
        found: list[Any] = []

        def take() -> bool:
            try:
                found.append(_get(self, False))
            except queue.Empty:
                return False
            return True

        if self._line or not take():
            if not self._line.wait(take, timeout):
                raise queue.Empty
            if not self.empty():
                # What was put meanwhile has woken this request, which was the first then.
                self._line.wake()
        return found.pop()


def patches() -> Iterator[Patch]:
    """Yield what is replaced."""
    yield Patch(queue, "SimpleQueue", SimpleQueue)
