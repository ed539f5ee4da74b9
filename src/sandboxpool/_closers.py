"""What must be closed in an event loop before the app that used it there ends.

Resources are opened by the first request that needs them. Whoever runs the app in that loop, the
server's runtime or the thread of a sandbox, has one of these and calls it at the end.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable

logger = logging.getLogger("sandboxpool")


class Closers:
    """Async functions to call at the end, the last one first."""

    __slots__ = ("_closers",)

    def __init__(self) -> None:
        self._closers: dict[object, Callable[[], Awaitable[object]]] = {}

    def add(self, key: object, closer: Callable[[], Awaitable[object]]) -> None:
        """Have *closer* called at the end, once for each *key*."""
        self._closers.setdefault(key, closer)

    def discard(self, key: object) -> None:
        """Forget what was added under *key*."""
        self._closers.pop(key, None)

    async def close_all(self, name: str) -> None:
        """Call them; what one of them raises is logged and stops no other.

        Args:
            name: What the log calls the app.
        """
        while self._closers:
            _, closer = self._closers.popitem()
            try:
                await closer()
            except Exception:
                logger.exception("%s: a resource was not closed in order", name)
