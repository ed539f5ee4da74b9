"""`concurrently()`: several functions at the same time, as children of the running request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from contextvars import copy_context
from inspect import isawaitable
from math import inf
from typing import Any, Literal, TypeVar, overload

import anyio

from ._context import RequestLease, current_lease
from ._exceptions import (
    ChildDeadlockError,
    ChildTimeoutError,
    OptionError,
    PoolClosedError,
)
from ._loop import Background, running_loop
from ._options import check_count, check_seconds
from ._pool import Pool
from ._runtime import Runtime
from ._slots import Slot
from ._visit import Visit
from .abc import Sandbox
from .run._errand import name_backend

T = TypeVar("T")
T1 = TypeVar("T1")
T2 = TypeVar("T2")
T3 = TypeVar("T3")
T4 = TypeVar("T4")
T5 = TypeVar("T5")
T6 = TypeVar("T6")


@overload
async def concurrently(
    f1: Callable[[], Awaitable[T1]],
    /,
    *,
    timeout: float | None = ...,
    limit: int | None = ...,
    sandboxes: Literal["same", "own"] = ...,
    errors: Literal["raise"] = ...,
) -> tuple[T1]: ...


@overload
async def concurrently(
    f1: Callable[[], Awaitable[T1]],
    f2: Callable[[], Awaitable[T2]],
    /,
    *,
    timeout: float | None = ...,
    limit: int | None = ...,
    sandboxes: Literal["same", "own"] = ...,
    errors: Literal["raise"] = ...,
) -> tuple[T1, T2]: ...


@overload
async def concurrently(
    f1: Callable[[], Awaitable[T1]],
    f2: Callable[[], Awaitable[T2]],
    f3: Callable[[], Awaitable[T3]],
    /,
    *,
    timeout: float | None = ...,
    limit: int | None = ...,
    sandboxes: Literal["same", "own"] = ...,
    errors: Literal["raise"] = ...,
) -> tuple[T1, T2, T3]: ...


@overload
async def concurrently(
    f1: Callable[[], Awaitable[T1]],
    f2: Callable[[], Awaitable[T2]],
    f3: Callable[[], Awaitable[T3]],
    f4: Callable[[], Awaitable[T4]],
    /,
    *,
    timeout: float | None = ...,
    limit: int | None = ...,
    sandboxes: Literal["same", "own"] = ...,
    errors: Literal["raise"] = ...,
) -> tuple[T1, T2, T3, T4]: ...


@overload
async def concurrently(
    f1: Callable[[], Awaitable[T1]],
    f2: Callable[[], Awaitable[T2]],
    f3: Callable[[], Awaitable[T3]],
    f4: Callable[[], Awaitable[T4]],
    f5: Callable[[], Awaitable[T5]],
    /,
    *,
    timeout: float | None = ...,
    limit: int | None = ...,
    sandboxes: Literal["same", "own"] = ...,
    errors: Literal["raise"] = ...,
) -> tuple[T1, T2, T3, T4, T5]: ...


@overload
async def concurrently(
    f1: Callable[[], Awaitable[T1]],
    f2: Callable[[], Awaitable[T2]],
    f3: Callable[[], Awaitable[T3]],
    f4: Callable[[], Awaitable[T4]],
    f5: Callable[[], Awaitable[T5]],
    f6: Callable[[], Awaitable[T6]],
    /,
    *,
    timeout: float | None = ...,
    limit: int | None = ...,
    sandboxes: Literal["same", "own"] = ...,
    errors: Literal["raise"] = ...,
) -> tuple[T1, T2, T3, T4, T5, T6]: ...


@overload
async def concurrently(
    *functions: Callable[[], Awaitable[T]],
    timeout: float | None = ...,
    limit: int | None = ...,
    sandboxes: Literal["same", "own"] = ...,
    errors: Literal["raise"] = ...,
) -> tuple[T, ...]: ...


@overload
async def concurrently(
    f1: Callable[[], Awaitable[T1]],
    /,
    *,
    timeout: float | None = ...,
    limit: int | None = ...,
    sandboxes: Literal["same", "own"] = ...,
    errors: Literal["collect"],
) -> tuple[T1 | Exception]: ...


@overload
async def concurrently(
    f1: Callable[[], Awaitable[T1]],
    f2: Callable[[], Awaitable[T2]],
    /,
    *,
    timeout: float | None = ...,
    limit: int | None = ...,
    sandboxes: Literal["same", "own"] = ...,
    errors: Literal["collect"],
) -> tuple[T1 | Exception, T2 | Exception]: ...


@overload
async def concurrently(
    f1: Callable[[], Awaitable[T1]],
    f2: Callable[[], Awaitable[T2]],
    f3: Callable[[], Awaitable[T3]],
    /,
    *,
    timeout: float | None = ...,
    limit: int | None = ...,
    sandboxes: Literal["same", "own"] = ...,
    errors: Literal["collect"],
) -> tuple[T1 | Exception, T2 | Exception, T3 | Exception]: ...


@overload
async def concurrently(
    f1: Callable[[], Awaitable[T1]],
    f2: Callable[[], Awaitable[T2]],
    f3: Callable[[], Awaitable[T3]],
    f4: Callable[[], Awaitable[T4]],
    /,
    *,
    timeout: float | None = ...,
    limit: int | None = ...,
    sandboxes: Literal["same", "own"] = ...,
    errors: Literal["collect"],
) -> tuple[T1 | Exception, T2 | Exception, T3 | Exception, T4 | Exception]: ...


@overload
async def concurrently(
    f1: Callable[[], Awaitable[T1]],
    f2: Callable[[], Awaitable[T2]],
    f3: Callable[[], Awaitable[T3]],
    f4: Callable[[], Awaitable[T4]],
    f5: Callable[[], Awaitable[T5]],
    /,
    *,
    timeout: float | None = ...,
    limit: int | None = ...,
    sandboxes: Literal["same", "own"] = ...,
    errors: Literal["collect"],
) -> tuple[T1 | Exception, T2 | Exception, T3 | Exception, T4 | Exception, T5 | Exception]: ...


@overload
async def concurrently(
    f1: Callable[[], Awaitable[T1]],
    f2: Callable[[], Awaitable[T2]],
    f3: Callable[[], Awaitable[T3]],
    f4: Callable[[], Awaitable[T4]],
    f5: Callable[[], Awaitable[T5]],
    f6: Callable[[], Awaitable[T6]],
    /,
    *,
    timeout: float | None = ...,
    limit: int | None = ...,
    sandboxes: Literal["same", "own"] = ...,
    errors: Literal["collect"],
) -> tuple[
    T1 | Exception, T2 | Exception, T3 | Exception, T4 | Exception, T5 | Exception, T6 | Exception
]: ...


@overload
async def concurrently(
    *functions: Callable[[], Awaitable[T]],
    timeout: float | None = ...,
    limit: int | None = ...,
    sandboxes: Literal["same", "own"] = ...,
    errors: Literal["collect"],
) -> tuple[T | Exception, ...]: ...


async def concurrently(
    *functions: Callable[[], Awaitable[Any]],
    timeout: float | None = None,
    limit: int | None = None,
    sandboxes: Literal["same", "own"] = "same",
    errors: Literal["raise", "collect"] = "raise",
) -> tuple[Any, ...]:
    """Run functions at the same time, and return what they return, in their order.

    No child outlives the call: when one fails, when the time is up, or when the caller is
    cancelled, those that still run are cancelled, and waited for.

    Args:
        functions: Coroutine functions without arguments, or `functools.partial`s of others.
        timeout: Seconds for all of them together, `None` for no limit.
        limit: How many run at once, `None` for all. With `sandboxes="own"` one less than there
            are sandboxes, at most, so that the children leave one for their parent's.
        sandboxes: `"same"`: the children run in the request's own sandbox, and share its lease,
            its context and its app. (Outside of a request they just run.) `"own"`: each child
            runs in a sandbox of its own, which it leases from the same pool: `current_lease()`,
            `context` and the app are the child's.
        errors: `"raise"`: the first failure cancels the rest, and all failures are raised as one
            `ExceptionGroup`. `"collect"`: everybody runs to the end, and failures stand among
            the results.

    Returns:
        The results, a tuple in the order of the functions.

    Raises:
        ExceptionGroup: What the children raised, with `errors="raise"`; also if it is one only.
        ChildTimeoutError: Not all were done in time. With `errors="collect"` it stands in the
            place of each child that was not done instead.
        NoLeaseError: `sandboxes="own"` outside of a request.
        ChildDeadlockError: In the group: all sandboxes are held by requests that wait for
            sandboxes for their children, so this child would wait for ever.
        PoolExhaustedError: In the group: no sandbox came free for a child in time.
        OptionError: An option cannot work.
        TypeError: Something is no function.
    """
    _check(functions, timeout, limit, sandboxes, errors)
    if not functions:
        return ()
    parent = current_lease() if sandboxes == "own" else None
    if parent is not None:
        most = max(1, parent.serving.slots.max_size - 1)
        limit = most if limit is None else min(limit, most)
    results: list[Any] = [_UNFINISHED] * len(functions)
    turns = None if limit is None or limit >= len(functions) else anyio.Semaphore(limit)

    async def child(number: int, function: Callable[[], Awaitable[Any]]) -> None:
        try:
            if parent is None:
                results[number] = await _call(function)
            else:
                results[number] = await _in_own_sandbox(parent, number, function)
        except Exception as error:
            if errors == "raise":
                raise
            results[number] = error
        finally:
            if turns is not None:
                turns.release()

    scope = anyio.CancelScope(deadline=anyio.current_time() + (inf if timeout is None else timeout))
    with scope:
        async with anyio.create_task_group() as tasks:
            for number, function in enumerate(functions):
                if turns is not None:
                    # Here, not in the child: tasks begin in any order, turns come in this one.
                    await turns.acquire()
                tasks.start_soon(child, number, function)
    unfinished = [at for at, result in enumerate(results) if result is _UNFINISHED]
    if unfinished:
        which = ", ".join(_name(functions[at], at) for at in unfinished)
        late = ChildTimeoutError(
            f"{which} took longer than timeout={timeout} and was stopped: raise it, or make "
            "it faster.",
            unfinished,
        )
        if errors == "raise":
            raise late
        for at in unfinished:
            results[at] = late
    outcome = tuple(results)
    # The frames in the tracebacks of collected errors have this list: without it no cycle.
    results.clear()
    return outcome


class _Unfinished:
    """Stands for the result of a child that has none."""


_UNFINISHED = _Unfinished()


def _name(function: Callable[..., object], number: int) -> str:
    return f"{getattr(function, '__name__', type(function).__name__)}() (number {number})"


def _check(
    functions: tuple[object, ...], timeout: object, limit: object, sandboxes: object, errors: object
) -> None:
    for number, function in enumerate(functions):
        if not callable(function):
            for other in functions:
                getattr(other, "close", bool)()  # or each would warn that nobody awaited it
            raise TypeError(
                f"concurrently() takes functions without arguments, got {function!r} as number "
                f"{number}: pass the function itself, without calling it, or "
                "functools.partial(function, argument)."
            )
    check_seconds("timeout", timeout)
    check_count("limit", limit, least=1, optional=True)
    if sandboxes not in ("same", "own"):
        raise OptionError(f"sandboxes={sandboxes!r}: give one of 'same', 'own'.")
    if errors not in ("raise", "collect"):
        raise OptionError(f"errors={errors!r}: give one of 'raise', 'collect'.")


async def _call(function: Callable[[], Any]) -> Any:
    result = function()
    if not isawaitable(result):
        raise TypeError(
            f"{function!r} is no coroutine function: it has run to its end before the others "
            "could begin. For blocking code, pass functools.partial(anyio.to_thread.run_sync, "
            "function)."
        )
    return await result


# --- in sandboxes of their own ------------------------------------------------------------------


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


async def _in_own_sandbox(
    parent: RequestLease, number: int, function: Callable[[], Awaitable[Any]]
) -> Any:
    runtime: Runtime = parent.serving
    name = f"child {_name(function, number)} of {parent.path}"
    visit = _Child(name, lambda app: _call(function), parent)
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
