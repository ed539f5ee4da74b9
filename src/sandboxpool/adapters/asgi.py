"""What any ASGI callable has in common, and the questions an adapter answers."""

from __future__ import annotations

from collections.abc import Callable
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

_FUNCTIONS = (FunctionType, MethodType, BuiltinFunctionType)
_NEXT_APP = frozenset({"app", "_app", "asgi_app", "application", "_base_app", "inner", "next_app"})
"""Attribute names under which an object of unclear signature is still the next ASGI app."""

_WRAPPED = frozenset({("sandboxpool._sandboxed", "SandboxedApp")})
_STATS_PAGE = frozenset({("sandboxpool._stats", "StatsPage")})
_WSGI = frozenset({("sandboxpool.adapters.wsgi", "WSGIGateway")})


class Adapter:
    """Answers what a clone must know of one framework's objects.

    The answers of this class are right for a framework without any special objects.
    """

    is_plain = False
    """Whether this is the adapter of last resort."""

    def knows(self, value: Any) -> bool:
        """Tell whether *value* is an object of this framework."""
        return False

    def is_app(self, value: Any) -> bool:
        """Tell whether *value* is an app: what routes, closures and `scope["app"]` refer to."""
        return False

    def is_node(self, value: Any) -> bool:
        """Tell whether *value* belongs to the structure that each clone has of its own."""
        return False

    def is_state(self, value: Any) -> bool:
        """Tell whether *value* is a state object."""
        return False

    def state_dict(self, value: Any) -> dict[str, Any]:
        """Return the dict behind a state object."""
        raise NotImplementedError

    def make_state(self, values: dict[str, Any]) -> Any:
        """Return a state object over *values*."""
        raise NotImplementedError

    def prepare(self, app: Any) -> None:
        """Have a template build lazily what every clone needs."""

    def shared_attributes(self, value: Any) -> frozenset[str]:
        """Return the attributes of *value* that stay shared whatever they hold."""
        return frozenset()

    def blank(self, value: Any) -> dict[str, Any]:
        """Return attributes that a private twin starts with instead of those of *value*."""
        return {}

    def watched(self, app: Any) -> list[tuple[dict[str, Any], str]]:
        """Return dicts and keys that hold what may be added to on the template later."""
        return []

    def handler_sinks(self, app: Any) -> tuple[Any, Any] | None:
        """Return the two objects of the built stack that hold the app's exception handlers."""
        return None

    def user_middleware(self, app: Any) -> list[Any]:
        """Return the declarations of the app's middleware, the outermost first."""
        return []

    def answers(self, app: Any) -> dict[str, Callable[[Any, Any], Any]]:
        """Return attributes that a template answers for a private twin, by template and twin."""
        return {}

    def forget(self, app: Any) -> None:
        """Drop what the framework's own caches know about an app that is going away."""


class AsgiAdapter(Adapter):
    """The adapter of last resort: ASGI callables of unknown make."""

    is_plain = True

    def knows(self, value: Any) -> bool:
        """Know everything."""
        return True


def _call_arity(cls: type) -> int | None:
    """Return how many positional parameters `cls.__call__` takes, -1 for any number."""
    call: Any = getattr(cls, "__call__", None)  # noqa: B004 - the function itself is what counts
    while hasattr(call, "__wrapped__"):
        call = call.__wrapped__
    return _arity(call, bound=True)


def _arity(function: Any, *, bound: bool) -> int | None:
    if not isinstance(function, FunctionType):
        return None
    code = function.__code__
    count = code.co_argcount - bound
    if code.co_flags & 0x04:
        return -1
    if count < 3 or count - len(function.__defaults__ or ()) > 3:
        return None
    return 3 if count >= 3 else None


def is_asgi_instance(value: Any, name: str = "") -> bool:
    """Tell whether *value* is an object (no function, no class) that is called as an ASGI app.

    Args:
        value: Anything.
        name: The attribute that holds it; decides for objects that take any arguments.
    """
    cls = type(value)
    if issubclass(cls, type) or cls in _FUNCTIONS:
        return False
    arity = _call_arity(cls)
    if arity != 3 and not (arity == -1 and name in _NEXT_APP):
        return False
    # An app inside the app that has a pool of its own isolates its requests itself. A WSGI app
    # is opaque, and so is what calls it.
    return not is_wrapped(value) and not _is_any(cls, _STATS_PAGE | _WSGI)


def is_wrapped(value: Any) -> bool:
    """Tell whether *value* is an app that `wrap()` has returned."""
    return _is_any(type(value), _WRAPPED)


def _is_any(cls: type, names: frozenset[tuple[str, str]]) -> bool:
    # By name: whoever asks about apps need not have imported what serves them.
    return any((base.__module__, base.__qualname__) in names for base in cls.__mro__)


def is_asgi_function(value: Any) -> bool:
    """Tell whether *value* is a function that could be an ASGI app."""
    return _arity(value, bound=False) == 3


def is_copyable(cls: type) -> bool:
    """Tell whether a copy of an instance can be made without its constructor.

    What has a finalizer must not run it once per copy; what has a C layout of its own, such as
    a lock or a subclass of `dict`, has more than attributes.
    """
    if getattr(cls, "__del__", None) is not None:
        return False
    try:
        object.__new__(cls)
    except TypeError:
        return False
    return True
