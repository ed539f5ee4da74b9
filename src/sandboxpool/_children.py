"""The children of `concurrently()`, and the sandboxes of their own that they may have."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextvars import copy_context
from inspect import isawaitable
from typing import Any

import anyio

from ._context import RequestLease
from ._exceptions import ChildDeadlockError, PoolClosedError
from ._loop import Background, running_loop
from ._pool import Pool
from ._runtime import Runtime
from ._slots import Slot
from ._visit import Visit
from .abc import Sandbox
from .run._errand import name_backend


def name_of(function: Callable[..., object], number: int) -> str:
    """Return what errors call a child."""
    return f"{getattr(function, '__name__', type(function).__name__)}() (number {number})"


async def call(function: Callable[[], Any]) -> Any:
    """Run a child, here."""
    result = function()
    if not isawaitable(result):
        raise TypeError(
            f"{function!r} is no coroutine function: it has run to its end before the others "
            "could begin. For blocking code, pass functools.partial(anyio.to_thread.run_sync, "
            "function)."
        )
    return await result


class _Child(Visit):
    """A child in a sandbox of its own."""

    __slots__ = ("_parent",)

    def __init__(self, name: str, function: Callable[[Any], Any], parent: RequestLease) -> None:
        super().__init__(name, function)
        self._parent = parent

    async def make(self, sandboxed: Any) -> Any:
        """Have the function run, and note for as long that its parent waits for it."""
        parents = self._parent.serving.parents
        parents[self._parent.id] += 1
        try:
            return await super().make(sandboxed)
        finally:
            parents[self._parent.id] -= 1
            if not parents[self._parent.id]:
                del parents[self._parent.id]

    async def admit(self, pool: Pool[Sandbox]) -> Slot[Sandbox] | None:
        """Wait for a sandbox, unless that would be for ever.

        A request that waits for its children holds a sandbox meanwhile. When all sandboxes are
        held by such requests none of them comes free: so the one that would close this circle is
        told, and with it ends one of them. (A child that runs is no such request, unless it has
        children itself.)
        """
        runtime: Runtime = self._parent.serving
        slots, parents = runtime.slots, runtime.parents
        if slots.in_use >= slots.max_size and all(lease in parents for lease in runtime.in_flight):
            raise ChildDeadlockError(
                f"{self['path']} needs a sandbox, but all {slots.max_size} are held by requests "
                "that wait for sandboxes for their own children: raise max_size, let fewer "
                "requests do this at once, or use sandboxes='same'."
            )
        return await pool.wait()


async def in_own_sandbox(
    parent: RequestLease, number: int, function: Callable[[], Awaitable[Any]]
) -> Any:
    """Run a child of the request that *parent* is the lease of, in a sandbox of its own."""
    runtime: Runtime = parent.serving
    name = f"child {name_of(function, number)} of {parent.path}"
    visit = _Child(name, lambda app: call(function), parent)
    if runtime.is_here():
        return await visit.make(runtime.owner)
    return await _elsewhere(runtime, visit)


async def _elsewhere(runtime: Runtime, visit: Visit) -> Any:
    """Make a visit from a sandbox that runs in a thread of its own: the pool is in another loop."""
    here, over = running_loop(), anyio.Event()
    context = copy_context()
    name_backend(context, runtime.loop.backend)
    outcome: list[Any] = []
    tasks: list[Background] = []
    left = False

    def tell() -> None:
        try:
            here.call_from_thread(over.set)
        except RuntimeError:
            pass  # the thread has ended meanwhile, and who waited with it

    async def make() -> None:
        try:
            outcome.extend((True, await visit.make(runtime.owner)))
        except Exception as error:
            outcome.extend((False, error))
        finally:
            tell()

    def start() -> None:
        if left:
            tell()
        else:
            tasks.append(runtime.loop.spawn(make, str(visit["path"]), context))

    def cancel() -> None:
        for task in tasks:
            task.cancel()

    runtime.loop.call_from_thread(start)
    try:
        await over.wait()
    except BaseException:
        left = True
        runtime.loop.call_from_thread(cancel)
        with anyio.CancelScope(shield=True):
            await over.wait()
        raise
    if not outcome:
        raise PoolClosedError(f"{visit['path']} was cancelled: the app is shutting down.")
    worked, result = outcome
    outcome.clear()
    if worked:
        return result
    try:
        raise result
    finally:
        del result  # it has this frame in its traceback
