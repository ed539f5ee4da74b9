"""The exception handlers of a private app."""

from __future__ import annotations

from typing import Any


class HandlerDict(dict[Any, Any]):
    """Exception handlers that the built middleware stack follows.

    Starlette copies the handlers into two middlewares when it builds the stack, so a handler
    that is added later is not seen. Here it is: in the sandbox of the request that adds it.
    """

    __slots__ = ("_inner", "_outer")

    def __init__(self, content: dict[Any, Any], outer: Any, inner: Any) -> None:
        dict.update(self, content)
        self._outer = outer
        self._inner = inner

    def __setitem__(self, key: Any, handler: Any) -> None:
        super().__setitem__(key, handler)
        if key in (500, Exception):
            self._outer.handler = handler
        else:
            self._inner.add_exception_handler(key, handler)

    def __delitem__(self, key: Any) -> None:
        super().__delitem__(key)
        if key in (500, Exception):
            self._outer.handler = None
        else:
            self._inner._status_handlers.pop(key, None)
            self._inner._exception_handlers.pop(key, None)

    def pop(self, key: Any, *default: Any) -> Any:
        """Remove a handler and return it."""
        if key not in self:
            return super().pop(key, *default)
        handler = self[key]
        del self[key]
        return handler

    def popitem(self) -> tuple[Any, Any]:
        """Remove and return the handler that was added last."""
        for key in reversed(self):
            return key, self.pop(key)
        return super().popitem()

    def clear(self) -> None:
        """Remove all handlers."""
        for key in list(self):
            del self[key]

    def setdefault(self, key: Any, default: Any = None) -> Any:
        """Return the handler of *key*; without one, add *default*."""
        if key not in self:
            self[key] = default
        return self[key]

    def update(self, *args: Any, **more: Any) -> None:
        """Add several handlers."""
        for key, handler in dict(*args, **more).items():
            self[key] = handler

    def __ior__(self, other: Any) -> HandlerDict:  # type: ignore[misc]
        self.update(other)
        return self
