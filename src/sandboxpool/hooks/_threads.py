"""What goes to a worker thread because it blocks, such as `def` endpoints: run on the loop instead.

Each of them runs in the thread of the event loop, on the stack of its request. Where it blocks in
a way that hooks reach, the request is suspended. Where it does not, everybody waits, so this is
installed on request only. Functions that are written in C cannot be suspended, and those that work
on files are not, unless another hook is there: these keep their thread.
"""

from __future__ import annotations

import asyncio
import asyncio.threads
from collections.abc import Callable, Iterator
from contextvars import copy_context
from functools import partial, wraps
from inspect import getattr_static
from types import FunctionType, MethodType
from typing import Any

import anyio.from_thread
import anyio.lowlevel
import anyio.to_thread

from sandboxpool.run.cooperative import await_, stepper
from sandboxpool.run.loop import In

from ._patch import Patch
from ._worker_threads import run_sync as in_worker_thread

_to_thread: Callable[..., Any] = asyncio.to_thread
_run: Callable[..., Any] = anyio.from_thread.run
_run_sync: Callable[..., Any] = anyio.from_thread.run_sync
_check_cancelled = anyio.from_thread.check_cancelled

# Whose functions block in what no hook reaches: reading, writing and looking for files.
_OF_FILES = frozenset(
    {"anyio", "genericpath", "glob", "os", "pathlib", "posixpath", "shutil", "tempfile", "zipfile"}
)


@wraps(anyio.to_thread.run_sync)
async def run_sync(func: Any, *args: Any, limiter: Any = None, **options: Any) -> Any:
    """Call a function that may block."""
    if stepper() is None or _keeps_its_thread(func):
        return await in_worker_thread(func, *args, limiter=limiter, **options)
    # As with a thread, one that is cancelled already does not begin. What has begun is cut short
    # where it blocks, whatever `abandon_on_cancel` says: there is nothing that could go on alone.
    await anyio.lowlevel.checkpoint_if_cancelled()
    if limiter is None:
        return copy_context().run(func, *args)
    async with limiter:
        return copy_context().run(func, *args)


@wraps(_to_thread)
async def to_thread(func: Any, /, *args: Any, **kwargs: Any) -> Any:
    """Call a function that may block."""
    if stepper() is None or _keeps_its_thread(func):
        return await _to_thread(func, *args, **kwargs)
    return copy_context().run(func, *args, **kwargs)


def _keeps_its_thread(function: Any) -> bool:
    while isinstance(function, partial | MethodType):
        function = function.func if isinstance(function, partial) else function.__func__
    if not isinstance(function, FunctionType):
        function = getattr_static(type(function), "__call__", None)
        if not isinstance(function, FunctionType):
            return True
    return str(function.__module__).partition(".")[0] in _OF_FILES


@wraps(_run)
def run(func: Any, *args: Any, **options: Any) -> Any:
    """Call a coroutine function of the event loop from a function that was to be in a thread."""
    if stepper() is None or options:
        return _run(func, *args, **options)
    context = copy_context()
    return await_(In(context, context.run(func, *args)))


@wraps(_run_sync)
def run_in_loop(func: Any, *args: Any, **options: Any) -> Any:
    """Call a function of the event loop from a function that was to be in a thread."""
    if stepper() is None or options:
        return _run_sync(func, *args, **options)
    return copy_context().run(func, *args)


@wraps(_check_cancelled)
def check_cancelled() -> None:
    """Raise a cancellation if the task that waits for this function was cancelled."""
    if stepper() is None:
        _check_cancelled()
    else:
        await_(anyio.lowlevel.checkpoint_if_cancelled())


def patches() -> Iterator[Patch]:
    """Yield what is replaced."""
    yield Patch(anyio.to_thread, "run_sync", run_sync)
    yield Patch(asyncio, "to_thread", to_thread)
    yield Patch(asyncio.threads, "to_thread", to_thread)
    yield Patch(anyio.from_thread, "run", run)
    yield Patch(anyio.from_thread, "run_sync", run_in_loop)
    yield Patch(anyio.from_thread, "check_cancelled", check_cancelled)
