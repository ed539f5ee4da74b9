"""A factory made of plain functions."""

from __future__ import annotations

from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, Generic, TypeVar, cast, overload

T = TypeVar("T")

# Does nothing and returns `None`, in C: it runs at each release of an item without a reset.
nothing: Callable[[object], None] = deque[object](maxlen=0).append


class FunctionFactory(Generic[T]):
    """Make a factory for a `Pool` out of functions, sync or async.

    Args:
        create: Returns a new item.
        reset: Makes a used item as good as new; nothing to do by default. What it returns is
            awaited if it can be, and ignored otherwise.
        destroy: Ends an item; nothing to do by default.
        check: Tells whether an item that was idle for long still works, by returning `False`
            or raising if it does not; never asked by default.
    """

    # The awaitable one first: a coroutine would also do for the `T` of the other.
    @overload
    def __init__(
        self,
        create: Callable[[], Awaitable[T]],
        *,
        reset: Callable[[T], object] | None = None,
        destroy: Callable[[T], object] | None = None,
        check: Callable[[T], Awaitable[bool | None] | bool | None] | None = None,
    ) -> None: ...

    @overload
    def __init__(
        self,
        create: Callable[[], T],
        *,
        reset: Callable[[T], object] | None = None,
        destroy: Callable[[T], object] | None = None,
        check: Callable[[T], Awaitable[bool | None] | bool | None] | None = None,
    ) -> None: ...

    def __init__(
        self,
        create: Callable[[], Any],
        *,
        reset: Callable[[T], Any] | None = None,
        destroy: Callable[[T], Any] | None = None,
        check: Callable[[T], Awaitable[bool | None] | bool | None] | None = None,
    ) -> None:
        self._create = create
        self.reset: Callable[[T], Awaitable[None] | None] = reset or nothing
        self.destroy: Callable[[T], Awaitable[None] | None] = destroy or nothing
        # Not a method: a pool asks whether there is one, and without it never stops to check.
        self.check = check

    async def create(self) -> T:
        """Return a new item."""
        made = self._create()
        if isinstance(made, Awaitable):
            return cast("T", await made)
        return cast("T", made)
