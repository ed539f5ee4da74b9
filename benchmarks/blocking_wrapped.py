"""The apps of `benchmarks.blocking`, wrapped: factories for `uvicorn --factory`.

All sandboxes exist before the first request, in memory that the garbage collector skips. Apps are
named by import strings, so that hooks are in place before one of them is imported.
"""

from __future__ import annotations

import os
from typing import Any

import sandboxpool

from .blocking_probe import Probe

_APP = "benchmarks.blocking_apps:app"
_BARE = "benchmarks.blocking_bare:app"
_FLASK = "benchmarks.blocking_wsgi:make_flask"


def loop() -> Any:
    return sandboxpool.wrap(_APP, run_in="loop", stats="/stats", **_sizes())


def thread() -> Any:
    return sandboxpool.wrap(_APP, run_in="thread", stats="/stats", **_sizes())


def thread_asyncio() -> Any:
    """Loops of asyncio in the threads, whatever the server's is: uvloop's take 250 kB each."""
    return sandboxpool.wrap(
        _APP, run_in="thread", thread_backend="asyncio", stats="/stats", **_sizes()
    )


def cooperative() -> Any:
    return sandboxpool.wrap(_APP, run_in="cooperative", stats="/stats", **_sizes())


def cooperative_bare() -> Any:
    return sandboxpool.wrap(_BARE, run_in="cooperative", stats="/stats", **_sizes())


def wsgi_loop() -> Any:
    return sandboxpool.wrap(_FLASK, factory=True, wsgi=True, run_in="loop", **_sizes())


def wsgi_thread() -> Any:
    return sandboxpool.wrap(
        _FLASK, factory=True, wsgi=True, run_in="thread", thread_backend="asyncio", **_sizes()
    )


def wsgi_cooperative() -> Any:
    return sandboxpool.wrap(_FLASK, factory=True, wsgi=True, run_in="cooperative", **_sizes())


def probed_plain() -> Any:
    from .blocking_apps import app

    return Probe(app)


def probed_thread() -> Any:
    return Probe(thread_asyncio())


def probed_cooperative() -> Any:
    return Probe(cooperative())


def _sizes() -> dict[str, Any]:
    """Return the options for so many requests at once, none of them without the variable."""
    at_once = os.environ.get("BLOCKING_AT_ONCE")
    if at_once is None:
        return {}
    return {"min_size": int(at_once), "max_size": int(at_once), "gc_freeze": True}
