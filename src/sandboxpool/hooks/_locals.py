"""`threading.local`: what belongs to a thread belongs to a request, where requests share a thread.

Connections, sessions and transactions are kept in these by code that expects one request in a
thread at a time. While one of them waits in the middle of such code, others run in its thread.
"""

from __future__ import annotations

import sys
import threading
from _thread import _local
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

from sandboxpool._context import RequestLease, current
from sandboxpool.run.cooperative import stepper

from ._patch import Patch
from ._waiting import made_by_event_loop

_get = _local.__getattribute__
_set = _local.__setattr__
_delete = _local.__delattr__

_NOTHING: Any = object()


class local(_local):
    """A `threading.local` whose attributes are those of the request, in a cooperative request.

    They begin empty with each request, as in a new thread, are shared by all that runs for it on
    the event loop, and go away with it. In other code they are those of the thread.
    """

    __slots__ = ("_sandboxpool_arguments", "_sandboxpool_requests")

    def __new__(cls, /, *args: Any, **kwargs: Any) -> Any:
        """Keep what each thread, and each request, is initialized with."""
        self = _local.__new__(cls, *args, **kwargs)
        maker = cls.__module__ if cls is not local else sys._getframe(1).f_globals.get("__name__")
        of_threads = made_by_event_loop(maker) or str(maker).startswith("sandboxpool.")
        _requests.__set__(self, None if of_threads else WeakKeyDictionary())
        _arguments.__set__(self, (args, kwargs))
        return self

    def __getattribute__(self, name: str) -> Any:
        values = _values(self)
        if values is None:
            return _get(self, name)
        if name == "__dict__":
            return values
        # What a class defines and a dict holds, in the order of `object.__getattribute__()`.
        found = _in_class(type(self), name)
        kind = type(found)
        get = getattr(kind, "__get__", None)
        if get is not None and (hasattr(kind, "__set__") or hasattr(kind, "__delete__")):
            return get(found, self, type(self))
        if name in values:
            return values[name]
        if found is _NOTHING:
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}")
        return found if get is None else get(found, self, type(self))

    def __setattr__(self, name: str, value: Any) -> None:
        values = _values(self)
        if values is None or name == "__dict__":
            return _set(self, name, value)
        found = _in_class(type(self), name)
        if hasattr(type(found), "__set__"):
            return type(found).__set__(found, self, value)  # type: ignore[no-any-return]
        values[name] = value
        return None

    def __delattr__(self, name: str) -> None:
        values = _values(self)
        if values is None or name == "__dict__":
            return _delete(self, name)
        found = _in_class(type(self), name)
        if hasattr(type(found), "__delete__"):
            return type(found).__delete__(found, self)  # type: ignore[no-any-return]
        try:
            del values[name]
        except KeyError:
            message = f"{type(self).__name__!r} object has no attribute {name!r}"
            raise AttributeError(message) from None
        return None


# Past `_local`, which would initialize the attributes of the thread when it is asked for these: in
# a request the initializer would set those of the request.
_requests: Any = vars(local)["_sandboxpool_requests"]
_arguments: Any = vars(local)["_sandboxpool_arguments"]


def _values(of: local) -> dict[str, Any] | None:
    """Return the attributes of the request that runs here; `None` where those of a thread count."""
    if stepper() is None:
        return None
    lease = current.get()
    requests: WeakKeyDictionary[RequestLease, dict[str, Any]] | None = _requests.__get__(of)
    if lease is None or requests is None:
        return None
    values = requests.get(lease)
    if values is None:
        values = requests[lease] = {}
        args, kwargs = _arguments.__get__(of)
        try:
            type(of).__init__(of, *args, **kwargs)
        except BaseException:
            requests.pop(lease, None)
            raise
    return values


def _in_class(cls: type, name: str) -> Any:
    for base in cls.__mro__:
        if name in base.__dict__:
            return base.__dict__[name]
    return _NOTHING


def patches() -> Iterator[Patch]:
    """Yield what is replaced."""
    yield Patch(threading, "local", local)
