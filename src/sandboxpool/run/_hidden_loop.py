"""Hide the running event loop from code that blocks by design.

Whoever finds a running loop takes the code for async: Django's ORM, `asyncio.run()` and asgiref's
`async_to_sync()` refuse to work. Only asyncio's loop is found by such code, so only that is hidden.
"""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any


class HiddenLoop:
    """Hides the loop that runs in this thread, for `with`."""

    __slots__ = ("_loop",)

    def __enter__(self) -> None:
        self._loop = replace_loop(None)

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        replace_loop(self._loop)


def replace_loop(loop: Any) -> Any:
    """Have another loop of asyncio, or none, seem to run in this thread; return the one before."""
    asyncio: Any = sys.modules.get("asyncio")
    if asyncio is None:
        return None
    before = asyncio._get_running_loop()
    if before is not loop:
        asyncio._set_running_loop(loop)
    return before
