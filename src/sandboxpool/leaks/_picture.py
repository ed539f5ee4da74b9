"""A picture of modules at one moment, to tell what requests change in them.

It holds what the app's own code can write to: globals, class attributes, attributes of its
objects and functions, mutable defaults, closure variables, and the plain containers in all of
these. Objects of anybody else are opaque. It only reads, and puts nothing back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from operator import is_not
from types import CellType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any

from sandboxpool.isolation._data import CONTAINERS, MAPPINGS, SEQUENCES
from sandboxpool.isolation._graph import getattr_dict, slot_names

from ._compare import compare_value, key_text
from ._difference import ABSENT, Difference

_DEEPEST = 20
_ENTRIES_AT_MOST = 100_000
_LONGEST = 10_000  # items of a container that are looked into
_STALE_AT_MOST = 500
_MUTABLE = CONTAINERS - {tuple}
_NOTHING: Mapping[Any, Any] = {}
_SIZE = object()  # stands for the items of a container that has too many


class _Entry:
    """Something that can be written to.

    Attributes:
        path: What it is called.
        owner: The object.
        read: Returns what is in it, as a dict.
        name: Returns what to call an item of it.
        known: What was in it when it was looked at last.
        deep: How far it is from a module.
    """

    __slots__ = ("deep", "known", "name", "owner", "path", "read")

    def __init__(
        self,
        path: str,
        owner: Any,
        read: Callable[[Any], Mapping[Any, Any]],
        name: Callable[[str, Any], str],
        deep: int,
    ) -> None:
        self.path = path
        self.owner = owner
        self.read = read
        self.name = name
        self.deep = deep
        self.known: Mapping[Any, Any] = _NOTHING


class Picture:
    """What is in modules.

    Args:
        modules: The modules, by the names that paths begin with. Where the same object is in
            several, the one that comes first gives it its name.

    Attributes:
        modules: The same.
    """

    def __init__(self, modules: Mapping[str, ModuleType]) -> None:
        self.modules = modules
        self._entries: list[_Entry] = []
        self._known: dict[int, Any] = {}
        self._stale = 0
        self._take()

    def _take(self) -> None:
        self._entries, self._known, self._stale = [], {}, 0
        for name, module in self.modules.items():
            self._add(name, module, _variables, _dotted, 0)

    def compare(self) -> list[Difference]:
        """Return what has changed since the last look, which from now on is this one."""
        found: list[Difference] = []
        for entry in list(self._entries):
            try:
                now = entry.read(entry.owner)
            except RuntimeError:
                continue  # another thread changes it right now
            known = entry.known
            if (
                len(now) == len(known)
                and not any(map(is_not, now.values(), known.values()))
                and not any(map(is_not, now, known))
            ):
                continue
            entry.known = now
            if _SIZE in now or _SIZE in known:
                size = known.get(_SIZE, len(known)), now.get(_SIZE, len(now))
                found += compare_value(f"len({entry.path})", *size)
                continue
            for key in [*known, *(key for key in now if key not in known)]:
                before, after = known.get(key, ABSENT), now.get(key, ABSENT)
                if before is after:
                    continue
                path = entry.name(entry.path, key)
                found += compare_value(path, before, after)
                if type(before) in _MUTABLE:
                    self._stale += 1
                self._walk(path, after, entry.deep + 1)
        if self._stale > _STALE_AT_MOST:
            self._take()
        return found

    def _add(
        self,
        path: str,
        owner: Any,
        read: Callable[[Any], Mapping[Any, Any]],
        name: Callable[[str, Any], str],
        deep: int,
    ) -> None:
        if len(self._entries) >= _ENTRIES_AT_MOST:
            return
        entry = _Entry(path, owner, read, name, deep)
        self._entries.append(entry)
        entry.known = read(owner)
        if deep < _DEEPEST and len(entry.known) <= _LONGEST:
            for key, value in list(entry.known.items()):
                self._walk(name(path, key), value, deep + 1)

    def _walk(self, path: str, value: Any, deep: int) -> None:
        cls = type(value)
        if id(value) in self._known:
            return
        if cls in _MUTABLE or cls is tuple:
            if cls is not tuple:
                self._known[id(value)] = value
            if cls is SimpleNamespace:
                self._add(path, value, _attributes, _dotted, deep)
            else:
                self._add(path, value, _READERS.get(cls, _mapping), _NAMES.get(cls, _item), deep)
        elif cls is FunctionType:
            if value.__module__ in self.modules:
                self._known[id(value)] = value
                self._function(path, value, deep)
        elif cls is MethodType or issubclass(cls, (classmethod, staticmethod)):
            self._walk(path, value.__func__, deep)
        elif issubclass(cls, type):
            if value.__module__ in self.modules:
                self._known[id(value)] = value
                self._add(path, value, _variables, _dotted, deep)
        elif cls.__module__ in self.modules:
            self._known[id(value)] = value
            if getattr_dict(value) is not None or slot_names(cls):
                self._add(path, value, _attributes, _dotted, deep)
            if issubclass(cls, dict):
                self._add(path, value, _mapping, _item, deep)
            elif issubclass(cls, list):
                self._add(path, value, _list, _item, deep)

    def _function(self, path: str, function: FunctionType, deep: int) -> None:
        self._add(path, function, _function_attributes, _dotted, deep)
        if function.__defaults__ or function.__kwdefaults__:
            self._add(path, function, _defaults, _default, deep)
        for name, cell in zip(
            function.__code__.co_freevars, function.__closure__ or (), strict=True
        ):
            if id(cell) not in self._known:
                self._known[id(cell)] = cell
                self._add(f"{path}.<nonlocal>.{name}", cell, _content, _itself, deep)


# --- what is in what ------------------------------------------------------------------------


def _variables(owner: Any) -> Mapping[Any, Any]:
    return {
        name: value
        for name, value in list(vars(owner).items())
        if not (name.startswith("__") and name.endswith("__"))
    }


def _attributes(owner: Any) -> Mapping[Any, Any]:
    values = dict(getattr_dict(owner) or {})
    for name in slot_names(type(owner)):
        try:
            values[name] = object.__getattribute__(owner, name)
        except AttributeError:
            continue
    return values


def _function_attributes(owner: Any) -> Mapping[Any, Any]:
    return {name: value for name, value in owner.__dict__.items() if name != "__wrapped__"}


def _defaults(owner: Any) -> Mapping[Any, Any]:
    code = owner.__code__
    values = owner.__defaults__ or ()
    names = code.co_varnames[code.co_argcount - len(values) : code.co_argcount]
    return {**dict(zip(names, values, strict=True)), **(owner.__kwdefaults__ or {})}


def _content(owner: CellType) -> Mapping[Any, Any]:
    try:
        return {"": owner.cell_contents}
    except ValueError:
        return _NOTHING


def _mapping(owner: Any) -> Mapping[Any, Any]:
    size = dict.__len__(owner)
    return dict(dict.items(owner)) if size <= _LONGEST else {_SIZE: size}


def _sequence(owner: Any) -> Mapping[Any, Any]:
    size = len(owner)
    return dict(enumerate(list(owner))) if size <= _LONGEST else {_SIZE: size}


def _list(owner: Any) -> Mapping[Any, Any]:
    size = list.__len__(owner)
    return dict(enumerate(list.__iter__(owner))) if size <= _LONGEST else {_SIZE: size}


def _set(owner: Any) -> Mapping[Any, Any]:
    return {item: item for item in set(owner)} if len(owner) <= _LONGEST else {_SIZE: len(owner)}


def _bytes(owner: bytearray) -> Mapping[Any, Any]:
    return {"": bytes(owner)}


def _dotted(path: str, name: Any) -> str:
    return f"{path}.{name}"


def _default(path: str, name: Any) -> str:
    return f"{path}({name}=)"


def _itself(path: str, name: Any) -> str:
    return path


def _item(path: str, key: Any) -> str:
    return f"{path}[{key_text(key)}]"


def _member(path: str, key: Any) -> str:
    return f"{path}{{{key_text(key)}}}"


_READERS: dict[type, Callable[[Any], Mapping[Any, Any]]] = {
    **dict.fromkeys(MAPPINGS, _mapping),
    **dict.fromkeys((*SEQUENCES, tuple), _sequence),
    set: _set,
    bytearray: _bytes,
}
_NAMES: dict[type, Callable[[str, Any], str]] = {set: _member, bytearray: _itself}
