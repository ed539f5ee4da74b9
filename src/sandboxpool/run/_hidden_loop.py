"""Hide the running event loop from code that blocks by design.

Whoever finds a running loop takes the code for async: Django's ORM, `asyncio.run()`, `anyio.run()`
and asgiref's `async_to_sync()` refuse to work. There are two places to look: asyncio's own, and
sniffio's, by which anyio and its users tell asyncio from Trio. (Trio itself knows its loop by the
thread, and so do we.)
"""

from __future__ import annotations

import sys
from types import TracebackType
from typing import Any


class HiddenLoop:
    """Hides the event loop that runs in this thread, for `with`."""

    __slots__ = ("_library", "_loop", "_token")

    def __enter__(self) -> None:
        asyncio: Any = sys.modules.get("asyncio")
        self._loop = asyncio and asyncio._get_running_loop()
        if self._loop is not None:
            asyncio._set_running_loop(None)
        sniffio: Any = sys.modules.get("sniffio")
        self._token: Any = None
        if sniffio is not None:
            self._library, sniffio.thread_local.name = sniffio.thread_local.name, None
            self._token = sniffio.current_async_library_cvar.set(None)

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if self._loop is not None:
            sys.modules["asyncio"]._set_running_loop(self._loop)
        if self._token is not None:
            sniffio = sys.modules["sniffio"]
            sniffio.thread_local.name = self._library
            sniffio.current_async_library_cvar.reset(self._token)
