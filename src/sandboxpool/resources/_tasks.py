"""Which task runs, and which tasks a suspended one waits for, as asyncio and Trio tell it."""

from __future__ import annotations

import asyncio
import inspect
import sys
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType
from typing import Any

from sandboxpool._context import RequestLease
from sandboxpool._loop import Loop

_GROUPS = ("asyncio.taskgroups", "anyio._backends._asyncio")
_DRIVERS = ("sandboxpool.run.loop",)  # they run a coroutine by hand, which no `await` shows
_DEEP = 200


def how_to_tell_the_task(loop: Loop) -> Callable[[], Any]:
    """Return a function that returns the running task of a loop."""
    if loop.backend == "trio":
        task: Callable[[], Any] = sys.modules["trio"].lowlevel.current_task
        return task
    # With the loop given, it does not ask the kernel for the process id.
    return partial(asyncio.current_task, getattr(loop, "native", None))


def main_task(lease: RequestLease) -> Any:
    """Return the task that serves a request, if it is known; children of it are others."""
    return getattr(lease.interruption, "task", None)


def awaited(task: Any) -> list[Any]:
    """Return the unfinished tasks that must all end before *task* goes on; none if unknown."""
    if not isinstance(task, asyncio.Task):
        return _awaited_on_trio(task)
    future = getattr(task, "_fut_waiter", None)
    if isinstance(future, asyncio.Task):
        return [future]
    children = getattr(future, "_children", None)  # of `gather()`
    if children is None:
        children = _group_tasks(task.get_coro())
    return [child for child in children if isinstance(child, asyncio.Task) and not child.done()]


def _awaited_on_trio(task: Any) -> list[Any]:
    nurseries = getattr(task, "child_nurseries", ())
    # Its own code inside of the nursery is over, so it waits for the others.
    if nurseries and not getattr(nurseries[-1], "_nested_child_running", True):
        return list(nurseries[-1].child_tasks)
    return []


def _group_tasks(steps: Any) -> list[Any]:
    """Return the tasks of the group at whose end a coroutine waits."""
    for frame in _frames(steps):
        if frame.f_globals.get("__name__") in _GROUPS and frame.f_code.co_name in (
            "__aexit__",
            "_aexit",
        ):
            return list(getattr(frame.f_locals.get("self"), "_tasks", ()))
    return []


def _frames(steps: Any) -> Iterator[FrameType]:
    for _ in range(_DEEP):
        if inspect.iscoroutine(steps):
            frame, following = steps.cr_frame, steps.cr_await
        elif inspect.isgenerator(steps):
            frame, following = steps.gi_frame, steps.gi_yieldfrom
        else:
            return
        if frame is None:
            return
        yield frame
        if following is None and frame.f_globals.get("__name__") in _DRIVERS:
            following = frame.f_locals.get("steps")
        steps = following
