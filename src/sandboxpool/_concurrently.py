"""`concurrently()`: several functions at the same time, as children of the running request."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from math import inf
from typing import Any, Literal, TypeVar, overload

import anyio

from ._children import call, in_own_sandbox, name_of
from ._context import current_lease
from ._exceptions import ChildTimeoutError, OptionError
from ._options import check_count, check_seconds

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
                results[number] = await call(function)
            else:
                results[number] = await in_own_sandbox(parent, number, function)
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
        which = ", ".join(name_of(functions[at], at) for at in unfinished)
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
