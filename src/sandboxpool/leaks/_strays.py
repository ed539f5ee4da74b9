"""Tasks and threads that go on when their request is over."""

from __future__ import annotations

import gc
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextvars import Context
from types import FrameType
from typing import Any
from weakref import WeakSet

from sandboxpool._context import RequestLease, current

# Who starts threads that serve many requests: workers, pollers, monitors, event loops.
_SHARED_THREADS = frozenset({"anyio", "concurrent", "sandboxpool", "trio", "uvicorn", "granian"})
# What calls the function of a thread.
_THREADING = frozenset({"threading", "_pydev_bundle", "coverage", "debugpy"})
_THREADING_HOOK = "sandboxpool.hooks._joins"


# --- tasks ----------------------------------------------------------------------------------


_told: WeakSet[Any] = WeakSet()
"""Tasks that were reported."""


def stray_tasks(lease: RequestLease, tasks: Iterable[Any]) -> list[tuple[Any, RequestLease]]:
    """Return tasks that have outlived their request, with its lease.

    Args:
        lease: A request that ends now; those that have ended before count as well.
        tasks: The tasks of an event loop.
    """
    found = []
    for task in tasks:
        owner = _owner_of(task, lease)
        # Ours belong to no request, also if one has opened an app inside of its own.
        if owner is not None and not name_of_task(task).startswith("sandboxpool."):
            found.append((task, owner))
    return found


def note_told(task: Any) -> bool:
    """Note that a task is reported; return whether it was not before."""
    if task in _told:
        return False
    _told.add(task)
    return True


def _owner_of(task: Any, lease: RequestLease) -> RequestLease | None:
    context = _context_of(task)
    owner = None if context is None else context.get(current)
    while owner is not None:
        if owner is lease or (owner.ended and owner.serving is lease.serving):
            return owner
        owner = owner.parent
    return None


def tasks_here(backend: str) -> Iterator[Any]:
    """Yield the tasks of the running event loop, but for the running one."""
    if backend == "trio":
        trio = sys.modules["trio"]
        running = trio.lowlevel.current_task()
        return (t for t in _trio_tasks(trio.lowlevel.current_root_task()) if t is not running)
    asyncio = sys.modules["asyncio"]
    running = asyncio.current_task()
    return (task for task in asyncio.all_tasks() if task is not running)


def tasks_of_thread(root: Any, native: Any) -> Iterator[Any]:
    """Yield the tasks of an event loop that runs in another thread.

    Args:
        root: Trio's root task there, or `None`.
        native: asyncio's loop there, or `None`.
    """
    found: list[Any] = []
    if root is not None:
        found = list(_trio_tasks(root))
    elif native is not None:
        try:
            found = list(sys.modules["asyncio"].all_tasks(native))
        except RuntimeError:  # the other thread starts tasks all the time
            pass
    # The errands of sandboxes take a moment to end after they have said so.
    return (task for task in found if _code_name(_coroutine_of(task)) != "run_errand")


def name_of_task(task: Any) -> str:
    """Return what to call a task: the function that it runs."""
    coroutine = _coroutine_of(task)
    module = _module_of(coroutine)
    if module.startswith("anyio."):  # it has not begun: what anyio will run in it
        return str(task.get_name() if hasattr(task, "get_name") else task.name)
    name = getattr(coroutine, "__qualname__", None) or type(coroutine).__qualname__
    return f"{module}.{name}" if module else str(name)


def place_of_task(task: Any) -> str:
    """Return where a task is right now, empty if it has not begun or is over."""
    frame = getattr(_coroutine_of(task), "cr_frame", None)
    return "" if frame is None else place_of(frame)


def place_of(frame: FrameType) -> str:
    """Return a frame as `file:line in function`."""
    code = frame.f_code
    return f"{code.co_filename}:{frame.f_lineno} in {code.co_name}"


def _trio_tasks(root: Any) -> Iterator[Any]:
    rest = [root]
    while rest:
        task = rest.pop()
        yield task
        # Copied first: another thread may be the one that changes these sets.
        for nursery in list(task.child_nurseries):
            rest.extend(list(nursery.child_tasks))


def _coroutine_of(task: Any) -> Any:
    coroutine = task.coro if hasattr(task, "coro") else task.get_coro()
    # That of a cooperative request stands for the one that it runs.
    coroutine = getattr(coroutine, "_steps", coroutine)
    # A task group of anyio runs what it was given inside of a coroutine of its own.
    while _module_of(coroutine).startswith("anyio.") and coroutine.cr_await is not None:
        coroutine = coroutine.cr_await
    return coroutine


def _module_of(coroutine: Any) -> str:
    frame = getattr(coroutine, "cr_frame", None)
    return "" if frame is None else str(frame.f_globals.get("__name__", ""))


def _code_name(coroutine: Any) -> str:
    code = getattr(coroutine, "cr_code", None)
    return "" if code is None else code.co_name


def _context_of(task: Any) -> Context | None:
    context = getattr(task, "context", None)  # Trio
    if isinstance(context, Context):
        return context
    get_context: Callable[[], Context] | None = getattr(task, "get_context", None)
    if get_context is not None:  # Python 3.12
        return get_context()
    context = getattr(task, "_context", None)  # a task written in Python
    if isinstance(context, Context):
        return context
    # What a task written in C refers to, its own context before those of its callbacks.
    return next((found for found in gc.get_referents(task) if type(found) is Context), None)


# --- threads --------------------------------------------------------------------------------


def live_threads() -> frozenset[threading.Thread]:
    """Return the threads that run now, as far as `threading` knows of them."""
    return frozenset(threading.enumerate())


def stray_threads(
    before: frozenset[threading.Thread], now: frozenset[threading.Thread]
) -> list[threading.Thread]:
    """Return threads that were started by the app's own code, and run on.

    Workers, pollers and event loops are none: they serve whoever comes next.
    """
    new = [thread for thread in now - before if thread.is_alive()]
    if not new:
        return []
    frames = sys._current_frames()
    return [
        thread
        for thread in new
        if not isinstance(thread, threading._DummyThread)
        and not _is_shared(_function_of(frames.get(thread.ident or 0)))
    ]


def name_of_thread(thread: threading.Thread) -> str:
    """Return what to call a thread: the function that it runs."""
    frame = _function_of(sys._current_frames().get(thread.ident or 0))
    if frame is None:
        return thread.name
    code = frame.f_code
    name = getattr(code, "co_qualname", code.co_name)  # Python 3.11
    return f"{frame.f_globals.get('__name__', '')}.{name}"


def place_of_thread(thread: threading.Thread) -> str:
    """Return where the app's code is in a thread right now."""
    frame = sys._current_frames().get(thread.ident or 0)
    function = _function_of(frame)
    if frame is None or function is None:
        return ""
    # Up to where the app's own module called something else.
    module = function.f_globals.get("__name__")
    while frame is not None and frame.f_globals.get("__name__") != module:
        frame = frame.f_back
    return "" if frame is None else place_of(frame)


def _function_of(frame: FrameType | None) -> FrameType | None:
    """Return the frame of the function that a thread was started with."""
    found = None
    while frame is not None:
        module = str(frame.f_globals.get("__name__"))
        if module.partition(".")[0] not in _THREADING and module != _THREADING_HOOK:
            found = frame
        frame = frame.f_back
    return found


def _is_shared(frame: FrameType | None) -> bool:
    if frame is None:
        return False
    return str(frame.f_globals.get("__name__")).partition(".")[0] in _SHARED_THREADS
