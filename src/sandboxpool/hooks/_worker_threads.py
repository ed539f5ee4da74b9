"""Worker threads of cooperative requests, which do not queue for those of the server.

`def` endpoints and dependencies run in threads by `anyio.to_thread.run_sync()`, of which an event
loop has 40. That limit was made for a server that has no other. Sandboxes are limited already.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import wraps
from math import inf
from typing import Any

import anyio
import anyio.to_thread
from anyio.lowlevel import RunVar

from sandboxpool.run.cooperative import stepper

from ._patch import Patch

_run_sync: Callable[..., Any] = anyio.to_thread.run_sync
_limiter: RunVar[anyio.CapacityLimiter] = RunVar("sandboxpool_worker_threads")


def thread_limiter() -> anyio.CapacityLimiter:
    """Return what limits the worker threads of cooperative requests in the running event loop.

    By default there is no limit but that of the sandboxes, which start one at a time each unless
    they start several tasks. Set its `total_tokens` for another one.
    """
    try:
        return _limiter.get()
    except LookupError:
        limiter = anyio.CapacityLimiter(inf)
        _limiter.set(limiter)
        return limiter


@wraps(_run_sync)
async def run_sync(func: Any, *args: Any, limiter: Any = None, **options: Any) -> Any:
    """Call a function in a worker thread."""
    if limiter is None and stepper() is not None:
        limiter = thread_limiter()
    return await _run_sync(func, *args, limiter=limiter, **options)


def patches() -> Iterator[Patch]:
    """Yield what is replaced."""
    yield Patch(anyio.to_thread, "run_sync", run_sync)
