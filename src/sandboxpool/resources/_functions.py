"""A driver made of functions, for `Resource` itself."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from inspect import isawaitable
from typing import Any

from ._member import Driver, Member
from ._resource import code_of


class FunctionDriver(Driver[Any]):
    """Whatever functions open, close, check and reset; what runs on it is not seen."""

    system = "resource"
    tracks = False

    def __init__(
        self,
        open: Callable[[], Any],
        close: Callable[[Any], object] | None,
        check: Callable[[Any], object] | None,
        reset: Callable[[Any], object] | None,
    ) -> None:
        self._functions = open, close, check, reset
        self._open = open
        self._close = close
        self._check = check
        self._reset = reset

    def key(self) -> object:
        return tuple(map(code_of, self._functions))

    async def open(self, member: Member) -> None:
        made = self._open()
        member.connection = await made if isinstance(made, Awaitable) else made

    async def close(self, member: Member) -> None:
        if self._close is not None:
            pending = self._close(member.connection)
            if isawaitable(pending):
                await pending

    async def check(self, member: Member) -> bool:
        if self._check is None:
            return True
        result = self._check(member.connection)
        if isawaitable(result):
            result = await result
        return result is None or bool(result)

    def reset(self, member: Member) -> Awaitable[None] | None:
        if self._reset is None:
            return None
        pending = self._reset(member.connection)
        return pending if isawaitable(pending) else None
