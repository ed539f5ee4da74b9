"""A picture of modules at one moment, to tell what requests change in them.

It holds what the app's own code can write to: globals, class attributes, attributes of its
objects and functions, mutable defaults, closure variables, and the plain containers in all of
these. Objects of anybody else are opaque. It only reads, and puts nothing back.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from gc import get_referents
from operator import is_not
from types import CellType, FunctionType, MappingProxyType, MethodType, ModuleType, SimpleNamespace
from typing import Any, TypeAlias

from sandboxpool.isolation._data import CONTAINERS, MAPPINGS, SCALARS, SEQUENCES
from sandboxpool.isolation._graph import getattr_dict, slot_names

from ._compare import compare_value, computed_names, key_text
from ._difference import ABSENT, Difference

_DEEPEST = 20
_ENTRIES_AT_MOST = 100_000
_LONGEST = 10_000  # items of a container that are looked into
_STALE_AT_MOST = 500
_MUTABLE = CONTAINERS - {tuple}
_NOTHING: Mapping[Any, Any] = {}
Read: TypeAlias = Callable[[Any], Mapping[Any, Any]]
Name: TypeAlias = Callable[[str, Any], str]
_SIZED = MAPPINGS | SEQUENCES | {set}
_PLAIN = SCALARS - {type}
_EMBEDS = sys.version_info >= (3, 13)
_SIZE = object()  # stands for the items of a container that has too many


class _Entry:
    """Something that can be written to.

    Attributes:
        path: What it is called.
        owner: The object.
        target: What refers to all that is in it, for `gc.get_referents()`.
        read: Returns what is in it, as a dict.
        name: Returns what to call an item of it.
        known: What was in it when it was looked at last.
        referents: What *target* referred to then.
        deep: How far it is from a module.
    """

    __slots__ = ("deep", "known", "name", "owner", "path", "read", "referents", "target")

    def __init__(self, path: str, owner: Any, target: Any, read: Read, name: Name, deep: int):
        self.path = path
        self.owner = owner
        self.target = target
        self.read = read
        self.name = name
        self.deep = deep
        self.known = read(owner)
        self.referents = self.now()

    @property
    def hidden(self) -> bool:
        """Whether `gc.get_referents()` does not show what the target refers to."""
        # Since Python 3.13 the values of attributes may be kept in the object, beside its dict.
        return _EMBEDS and self.read is _attributes

    def now(self) -> list[Any]:
        """Return what is in it, as cheaply as possible."""
        target = self.target
        if self.hidden:
            return list(target.values())
        cls = type(target)
        if cls is bytearray or (cls in _SIZED and len(target) > _LONGEST):
            return [bytes(target) if cls is bytearray else len(target)]
        # Of dicts with text for keys, only the values are shown.
        return get_referents(target) if cls not in MAPPINGS else [*target, *get_referents(target)]

    def changed(self) -> bool:
        """Tell whether anything in it differs."""
        now, then = self.now(), self.referents
        if len(now) == len(then) and not any(map(is_not, now, then)):
            return False
        self.referents = now
        return True


class Picture:
    """What is in modules.

    The usual case is that nothing has changed, which one comparison of one flat list proves, as
    it does for the reset of a clone.

    Args:
        modules: The modules, by the names that paths begin with. Where the same object is in
            several, the one that comes first gives it its name.
        functions: Functions that no module has, by what they are called.

    Attributes:
        modules: The same.
    """

    def __init__(
        self,
        modules: Mapping[str, ModuleType],
        functions: Mapping[str, FunctionType] = MappingProxyType({}),
    ) -> None:
        self.modules = modules
        self._functions = functions
        self._entries: list[_Entry] = []
        self._known: dict[int, Any] = {}
        self._stale = 0
        self._targets: list[Any] = []
        self._then: list[Any] = []
        self._keyed: list[Any] = []
        self._keys: list[tuple[Any, ...]] = []
        self._others: list[_Entry] = []
        self._take()

    def _take(self) -> None:
        self._entries, self._known, self._stale = [], {}, 0
        for name, module in self.modules.items():
            self._add(name, module, vars(module), _variables, _dotted, 0)
        for name, function in self._functions.items():
            if id(function) not in self._known:
                self._known[id(function)] = function
                self._function(name, function, 0)
        self._flatten()

    def _flatten(self) -> None:
        plain: list[_Entry] = []
        self._others = []
        for entry in self._entries:
            target = entry.target
            large = type(target) in _SIZED and len(target) > _LONGEST
            other = large or type(target) is bytearray or entry.hidden
            (self._others if other else plain).append(entry)
        self._targets = [entry.target for entry in plain]
        self._then = get_referents(*self._targets)
        # Text is not shown among them where it is a key. What is in modules, classes and objects
        # has names, one of which hardly takes the place of another with the very same value.
        self._keyed = [entry.target for entry in plain if entry.read is _mapping]
        self._keys = list(map(tuple, self._keyed))

    def changed(self) -> bool:
        """Tell whether anything has changed since the last look."""
        try:
            # Equality begins with identity. What is equal without being identical is no change.
            if get_referents(*self._targets) != self._then:
                return True
            if list(map(tuple, self._keyed)) != self._keys:
                return True
        except Exception:
            return True  # the `__eq__` of a value that was not there before
        return any(entry.now() != entry.referents for entry in self._others)

    def compare(self) -> list[Difference]:
        """Return what has changed since the last look, which from now on is this one."""
        if not self.changed():
            return []
        found: list[Difference] = []
        for entry in list(self._entries):
            try:
                if not entry.changed():
                    continue
                known, now = entry.known, entry.read(entry.owner)
            except RuntimeError:
                continue  # another thread changes it right now
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
        else:
            self._flatten()
        return found

    # --- what there is ------------------------------------------------------------------------

    def _add(self, path: str, owner: Any, target: Any, read: Read, name: Name, deep: int) -> None:
        if len(self._entries) >= _ENTRIES_AT_MOST:
            return
        entry = _Entry(path, owner, target, read, name, deep)
        self._entries.append(entry)
        if deep < _DEEPEST and len(entry.known) <= _LONGEST:
            for key, value in list(entry.known.items()):
                self._walk(name(path, key), value, deep + 1)

    def _walk(self, path: str, value: Any, deep: int) -> None:
        cls = type(value)
        if cls in _PLAIN or id(value) in self._known:
            return
        if cls is tuple:
            if deep < _DEEPEST and len(value) <= _LONGEST:
                for number, item in enumerate(value):
                    self._walk(f"{path}[{number}]", item, deep + 1)
        elif cls in _MUTABLE:
            self._known[id(value)] = value
            if cls is SimpleNamespace:
                self._add(path, value, vars(value), _attributes, _dotted, deep)
            else:
                read, name = _READERS.get(cls, _mapping), _NAMES.get(cls, _item)
                self._add(path, value, value, read, name, deep)
        elif cls is FunctionType:
            if value.__module__ in self.modules:
                self._known[id(value)] = value
                self._function(_own_path(value, path), value, deep)
        elif cls is MethodType or issubclass(cls, (classmethod, staticmethod)):
            self._walk(path, value.__func__, deep)
        elif issubclass(cls, type):
            if value.__module__ in self.modules:
                self._known[id(value)] = value
                (variables,) = get_referents(vars(value))  # what the proxy stands for
                self._add(_own_path(value, path), value, variables, _variables, _dotted, deep)
        elif cls.__module__ in self.modules:
            self._known[id(value)] = value
            self._object(path, value, cls, deep)

    def _object(self, path: str, value: Any, cls: type, deep: int) -> None:
        attributes = getattr_dict(value)
        if attributes is not None:
            self._add(path, value, attributes, _attributes, _dotted, deep)
        if slot_names(cls):
            self._add(path, value, value, _slots, _dotted, deep)
        if issubclass(cls, dict):
            self._add(path, value, value, _mapping, _item, deep)
        elif issubclass(cls, list):
            self._add(path, value, value, _list, _item, deep)

    def _function(self, path: str, function: FunctionType, deep: int) -> None:
        attributes = function.__dict__
        self._add(path, function, attributes, _function_attributes, _dotted, deep)
        for name, value in _defaults(function).items():
            self._walk(f"{path}({name}=)", value, deep + 1)
        cells = function.__closure__ or ()
        for name, cell in zip(function.__code__.co_freevars, cells, strict=True):
            if id(cell) not in self._known:
                self._known[id(cell)] = cell
                self._add(f"{path}.<nonlocal>.{name}", cell, cell, _content, _itself, deep)


def _own_path(value: Any, path: str) -> str:
    """Return what a class or a function calls itself, unless it was made in another function."""
    name = value.__qualname__
    return path if "<" in name else f"{value.__module__}.{name}"


# --- what is in what ------------------------------------------------------------------------


def _variables(owner: Any) -> Mapping[Any, Any]:
    return {
        name: value
        for name, value in list(vars(owner).items())
        if not (name.startswith("__") and name.endswith("__"))
    }


def _attributes(owner: Any) -> Mapping[Any, Any]:
    values = dict(getattr_dict(owner) or {})
    for name in computed_names(type(owner)):
        values.pop(name, None)
    return values


def _slots(owner: Any) -> Mapping[Any, Any]:
    values = {}
    for name in slot_names(type(owner)):
        try:
            values[name] = object.__getattribute__(owner, name)
        except AttributeError:
            continue
    return values


def _function_attributes(owner: Any) -> Mapping[Any, Any]:
    return {name: value for name, value in owner.__dict__.items() if name != "__wrapped__"}


def _defaults(function: FunctionType) -> Mapping[str, Any]:
    code, values = function.__code__, function.__defaults__ or ()
    names = code.co_varnames[code.co_argcount - len(values) : code.co_argcount]
    return {**dict(zip(names, values, strict=True)), **(function.__kwdefaults__ or {})}


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
