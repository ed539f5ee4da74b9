"""Cancel an operation at its first, second, third ... await, natively and by a scope."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from typing import Any, Literal

import anyio
import attrs

from sandboxpool._loop import running_backend

How = Literal["scope", "task"]

# An operation that awaits more often than this waits for something that will never come.
_AWAITS_AT_MOST = 200


@attrs.define
class Cancelled:
    """What became of an operation that was cancelled at one of its awaits.

    Attributes:
        at: Which await it was, the first is 0.
        how: By a cancel scope, or by `Task.cancel()` of asyncio.
        hit: Whether it came to that await at all.
        raised: Whether the cancellation came out again.
        error: What came out instead.
        value: What it returned.
    """

    at: int
    how: How
    hit: bool = False
    raised: bool = False
    error: Exception | None = None
    value: Any = None

    def __str__(self) -> str:
        return (
            f"cancelled at await {self.at} ({'Task.cancel()' if self.how == 'task' else 'scope'})"
        )


class _Steps:
    """Runs a coroutine, and calls a function right before one of its awaits."""

    def __init__(self, awaited: Awaitable[Any], at: int, cancel: Callable[[], object]) -> None:
        self._awaited = awaited
        self._at = at
        self._cancel = cancel

    def __await__(self) -> Generator[Any, Any, Any]:
        steps = self._awaited.__await__()
        taken = 0
        step: Callable[[], Any] = steps.__next__
        while True:
            try:
                awaits = step()
            except StopIteration as end:
                return end.value
            if taken == self._at:
                self._cancel()
            taken += 1
            # What the loop answers goes on to the operation, be it a value or an exception.
            try:
                given = yield awaits
            except BaseException as error:
                step = _thrower(steps, error)
            else:
                step = _sender(steps, given)


def _thrower(steps: Any, error: BaseException) -> Callable[[], Any]:
    return lambda: steps.throw(error)


def _sender(steps: Any, value: Any) -> Callable[[], Any]:
    # An iterator that is no generator has no `send()`, and is given nothing.
    return steps.__next__ if value is None else lambda: steps.send(value)


def ways() -> tuple[How, ...]:
    """Return the ways in which a task can be cancelled on the running backend."""
    return ("scope", "task") if running_backend() == "asyncio" else ("scope",)


async def cancelled_at(at: int, how: How, operation: Callable[[], Awaitable[Any]]) -> Cancelled:
    """Run an operation, and cancel it at its await number *at*."""
    outcome = Cancelled(at, how)
    scope = anyio.CancelScope()

    def cancel() -> None:
        outcome.hit = True
        if how == "task":
            task = asyncio.current_task()
            assert task is not None
            task.cancel()
        else:
            scope.cancel()

    async def run() -> None:
        try:
            with scope:
                try:
                    outcome.value = await _Steps(operation(), at, cancel)
                except anyio.get_cancelled_exc_class():
                    outcome.raised = True
                    raise
        except Exception as error:
            outcome.error = error

    if how == "task":
        # A task of its own, for its cancellation must not reach the check's.
        await asyncio.wait([asyncio.ensure_future(run())])
    else:
        await run()
    return outcome


async def every_cancellation(
    operation: Callable[[], Awaitable[Any]],
) -> AsyncIterator[Cancelled]:
    """Run an operation again and again, cancelled one await later each time.

    Ends after the first run that came to its end before it was cancelled.
    """
    for how in ways():
        for at in range(_AWAITS_AT_MOST):
            outcome = await cancelled_at(at, how, operation)
            yield outcome
            if not outcome.hit:
                break
