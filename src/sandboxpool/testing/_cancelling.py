"""Cancel an operation at its first, second, third ... await, natively and by a scope."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Generator, Iterator
from typing import Any, Literal

import anyio
import attrs

from sandboxpool._loop import running_backend

How = Literal["scope", "task"]

# An operation that awaits more often than this waits for something that will never come.
_AWAITS_AT_MOST = 200


@attrs.define
class Moment:
    """One await of an operation, at which it is cancelled.

    Attributes:
        at: Which await it is, the first is 0.
        how: By a cancel scope, or by `Task.cancel()` of asyncio.
        hit: Whether the operation came to that await at all.
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

    async def cancel(self, operation: Callable[[], Awaitable[Any]]) -> None:
        """Run an operation, and cancel it at this moment."""
        if self.how == "task":
            asyncio = sys.modules["asyncio"]
            # A task of its own, for its cancellation must not reach the check's.
            await asyncio.wait([asyncio.ensure_future(self._run(operation))])
        else:
            await self._run(operation)

    async def _run(self, operation: Callable[[], Awaitable[Any]]) -> None:
        scope = anyio.CancelScope()

        def cancel() -> None:
            self.hit = True
            if self.how == "task":
                sys.modules["asyncio"].current_task().cancel()
            else:
                scope.cancel()

        try:
            with scope:
                try:
                    self.value = await _Steps(operation(), self.at, cancel)
                except anyio.get_cancelled_exc_class():
                    self.raised = True
                    raise
        except Exception as error:
            self.error = error


def every_moment() -> Iterator[Moment]:
    """Yield one moment after the other, to cancel the same operation at each of its awaits.

    Ends after the first one that the operation did not come to.
    """
    for how in ways():
        for at in range(_AWAITS_AT_MOST):
            moment = Moment(at, how)
            yield moment
            if not moment.hit:
                break


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
