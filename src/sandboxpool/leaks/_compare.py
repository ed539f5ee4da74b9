"""What differs between two values, one of which is a copy of the other or comes after it."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from sandboxpool.isolation._data import CONTAINERS, MAPPINGS, SEQUENCES

from ._difference import ABSENT, Difference

_BY_VALUE = frozenset({str, int, float, complex, bool, bytes, type(None)})
_COMPARED = CONTAINERS - {tuple}
_DEEPEST = 50
_LONGEST = 10_000  # items of a container that are looked at one by one


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
        for number in range(size):
            then = before[number] if number < len(before) else ABSENT
            now = after[number] if number < len(after) else ABSENT
            yield from compare_value(f"{path}[{number}]", then, now, seen)
    elif cls is set:
        for item in before - after:
            yield Difference(f"{path}{{{key_text(item)}}}", "removed", item, ABSENT)
        for item in after - before:
            yield Difference(f"{path}{{{key_text(item)}}}", "added", ABSENT, item)
    elif before != after:
        yield Difference(path, "changed", before, after)


def key_text(key: Any) -> str:
    """Return a key as paths show it."""
    if type(key) is str and '"' not in key and "\\" not in key and key.isprintable():
        return f'"{key}"'
    return repr(key) if type(key) in _BY_VALUE else f"<{type(key).__qualname__}>"
