"""What differs between two values, one of which is a copy of the other or comes after it."""

from __future__ import annotations

from collections.abc import Iterator
from types import FunctionType, SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary

from sandboxpool.isolation._data import CONTAINERS, MAPPINGS, SEQUENCES

from ._difference import ABSENT, Difference

_BY_VALUE = frozenset({str, int, float, complex, bool, bytes, type(None)})
_COMPARED = CONTAINERS - {tuple}
_DEEPEST = 50
_LONGEST = 10_000  # items of a container that are looked at one by one


_computed: WeakKeyDictionary[type, frozenset[str]] = WeakKeyDictionary()


def computed_names(cls: type) -> frozenset[str]:
    """Return the attributes that objects of a class compute once, when they are asked for.

    Those of `functools.cached_property`, and of those who took the name from there.
    """
    names = _computed.get(cls)
    if names is None:
        names = _computed[cls] = frozenset(
            name
            for base in cls.__mro__
            for name, value in list(vars(base).items())
            if type(value).__name__ in ("cached_property", "lazyproperty", "reify")
        )
    return names


def compare_value(
    path: str, before: Any, after: Any, seen: frozenset[int] = frozenset()
) -> Iterator[Difference]:
    """Yield the differences between two values: of plain containers, those of their items."""
    if before is after:
        return
    if before is ABSENT:
        yield Difference(path, "added", ABSENT, after)
    elif after is ABSENT:
        yield Difference(path, "removed", before, ABSENT)
    elif type(before) is type(after) and type(before) in _COMPARED:
        yield from compare_containers(path, before, after, seen)
    elif type(before) is not type(after) or type(before) not in _BY_VALUE or before != after:
        yield Difference(path, "changed", before, after)


def compare_containers(
    path: str, before: Any, after: Any, seen: frozenset[int] = frozenset()
) -> Iterator[Difference]:
    """Yield the differences between two plain containers, one of which is a copy of the other."""
    cls = type(after)
    if id(after) in seen or len(seen) > _DEEPEST:
        return
    seen = seen | {id(after)}
    if cls is SimpleNamespace:
        before, after = vars(before), vars(after)
    size = 1 if cls in (set, bytearray) else max(len(before), len(after))
    if size > _LONGEST:
        if len(before) != len(after):
            yield Difference(f"len({path})", "changed", len(before), len(after))
    elif cls in MAPPINGS or cls is SimpleNamespace:
        for key in [*before, *(key for key in list(after) if key not in before)]:
            inner = f"{path}.{key}" if cls is SimpleNamespace else f"{path}[{key_text(key)}]"
            then, now = dict.get(before, key, ABSENT), dict.get(after, key, ABSENT)
            yield from compare_value(inner, then, now, seen)
    elif cls in SEQUENCES:
        yield from _compare_sequences(path, list(before), list(after), seen)
    elif cls is set:
        for item in before - after:
            yield Difference(f"{path}{{{key_text(item)}}}", "removed", item, ABSENT)
        for item in after - before:
            yield Difference(f"{path}{{{key_text(item)}}}", "added", ABSENT, item)
    elif before != after:
        yield Difference(path, "changed", before, after)


def _compare_sequences(
    path: str, before: list[Any], after: list[Any], seen: frozenset[int]
) -> Iterator[Difference]:
    """Yield what differs between two lists, without what has only moved to another place."""
    begin, end = 0, 0
    shorter = min(len(before), len(after))
    while begin < shorter and _is_same(before[begin], after[begin]):
        begin += 1
    while end < shorter - begin and _is_same(before[-1 - end], after[-1 - end]):
        end += 1
    old, new = before[begin : len(before) - end], after[begin : len(after) - end]
    for number in range(max(len(old), len(new))):
        then = old[number] if number < len(old) else ABSENT
        now = new[number] if number < len(new) else ABSENT
        yield from compare_value(f"{path}[{begin + number}]", then, now, seen)


def _is_same(before: Any, after: Any) -> bool:
    if before is after:
        return True
    return type(before) is type(after) and type(before) in _BY_VALUE and bool(before == after)


def key_text(key: Any) -> str:
    """Return a key as paths show it."""
    if type(key) is str and '"' not in key and "\\" not in key and key.isprintable():
        return f'"{key}"'
    if type(key) is FunctionType or issubclass(type(key), type):
        return f"{key.__module__}.{key.__qualname__}"
    return repr(key) if type(key) in _BY_VALUE else f"<{type(key).__qualname__}>"
