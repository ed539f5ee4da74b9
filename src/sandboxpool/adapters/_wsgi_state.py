"""What a WSGI app keeps in itself, put back between two requests."""

from __future__ import annotations

from collections import OrderedDict
from functools import partial
from inspect import getattr_static
from types import CellType, FunctionType, MethodType, SimpleNamespace
from typing import Any

from sandboxpool.isolation._data import CONTAINERS, SCALARS
from sandboxpool.isolation._restore import Wild

# Under these names middleware of Django holds what comes after it, which is no WSGI app.
_NEXT = frozenset({"get_response", "_middleware_chain"})


class AppState:
    """The attributes of a WSGI app, and of the WSGI apps that it wraps, as they are now.

    With them the plain containers among them and the dicts of a class of their own, such as the
    config of Flask, whatever is in these. Everything else is opaque.
    """

    def __init__(self, app: Any) -> None:
        self._wild = Wild()
        self._namespaces: list[tuple[type, dict[str, Any]]] = []
        self._mappings: list[tuple[dict[Any, Any], dict[Any, Any]]] = []
        # The objects themselves, so that no other one gets the id.
        self._seen: dict[int, Any] = {}
        self._watch(app, is_app=True)

    def restore(self) -> None:
        """Put everything back."""
        for cls, values in self._namespaces:
            snapshot = self._wild.snapshots[id(values)]
            for name in values.keys() - snapshot.keys():
                # What is computed on demand, and once, is no more than a cache.
                if _is_cached(cls, name):
                    snapshot[name] = values[name]
        self._wild.restore()
        for mapping, content in self._mappings:
            dict.clear(mapping)
            dict.update(mapping, content)

    def _watch(self, value: Any, *, is_app: bool = False) -> None:
        if type(value) in SCALARS or id(value) in self._seen:
            return
        if type(value) in CONTAINERS or isinstance(value, dict):
            self._watch_container(value)
        elif type(value) is MethodType:
            if _takes_two(value.__func__, bound=True):
                self._watch(value.__self__, is_app=True)
        elif type(value) is partial:
            for item in (value.func, *value.args, *value.keywords.values()):
                self._watch(item)
        elif type(value) is FunctionType:
            if is_app or _takes_two(value):
                self._watch_attributes(value)
                self._watch_closure(value)
        elif not isinstance(value, type) and (
            is_app or _takes_two(getattr_static(type(value), "__call__", None), bound=True)
        ):
            self._watch_attributes(value)

    def _watch_closure(self, function: FunctionType) -> None:
        # Middleware closes over the next app. What else it closes over, it keeps.
        cells = function.__closure__ or ()
        for name, cell in zip(function.__code__.co_freevars, cells, strict=True):
            content = _content(cell)
            if type(content) not in CONTAINERS and not isinstance(content, dict):
                self._watch(content, is_app=name in _NEXT)

    def _watch_attributes(self, value: Any) -> None:
        self._seen[id(value)] = value
        try:
            values: dict[str, Any] = object.__getattribute__(value, "__dict__")
        except AttributeError:
            return
        self._wild.watch_dict(values)
        self._wild.watch_owner(value, values)
        self._namespaces.append((type(value), values))
        for name, item in list(values.items()):
            self._watch(item, is_app=name in _NEXT)

    def _watch_container(self, value: Any) -> None:
        self._seen[id(value)] = value
        if type(value) in CONTAINERS:
            if type(value) is not tuple:
                self._wild.watch_container(value)
        elif not isinstance(value, OrderedDict):
            self._mappings.append((value, dict(dict.items(value))))
        if type(value) is SimpleNamespace:
            value = vars(value)
        for item in list(dict.values(value) if isinstance(value, dict) else value):
            self._watch(item)


def _takes_two(function: Any, *, bound: bool = False) -> bool:
    """Tell whether *function* is called with two arguments, no more and no less."""
    if type(function) is not FunctionType or function.__defaults__:
        return False
    code = function.__code__
    return code.co_argcount == 2 + bound and not code.co_flags & 0x04


def _content(cell: CellType) -> Any:
    try:
        return cell.cell_contents
    except ValueError:
        return None  # not set yet


def _is_cached(cls: type, name: str) -> bool:
    kind = type(getattr_static(cls, name, None))
    return any(base.__name__ == "cached_property" for base in kind.__mro__)
