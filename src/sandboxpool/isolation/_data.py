"""Plain data, and private copies of it.

Plain data is what a literal could have written: the exact built-in containers and a few from
`collections`, with whatever else inside. Everything that is not plain data (an engine, a client,
a lock, an instance of your own class) is opaque, and opaque objects are shared on purpose.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

SCALARS = frozenset(
    {type(None), bool, int, float, complex, str, bytes, type, type(Ellipsis), range, frozenset}
)
"""Types that cannot hold anything private; looked up first because most values are these."""

MAPPINGS = frozenset({dict, OrderedDict, defaultdict, Counter})
SEQUENCES = frozenset({list, deque})
CONTAINERS = MAPPINGS | SEQUENCES | {set, bytearray, SimpleNamespace, tuple}
"""The exact types of plain containers. A subclass is an object of its own and opaque."""


def copy_plain(value: Any, memo: dict[int, Any]) -> Any:
    """Return a private copy of plain data, sharing every opaque object in it.

    Args:
        value: Anything; what is not a plain container is returned as it is.
        memo: Copies made so far by the id of their original. One memo for all that is copied
            together preserves aliases and cycles; an original mapped to itself stays shared.
            The caller keeps the originals alive while it uses the memo.
    """
    copier = _COPIERS.get(type(value))
    if copier is None:
        return value
    known = memo.get(id(value))
    if known is not None:
        return known
    return copier(value, memo)


def _copy_mapping(value: Any, memo: dict[int, Any]) -> Any:
    # `copy()` keeps the order, the default factory and the type; only then are values replaced.
    copied = memo[id(value)] = value.copy()
    for key, item in value.items():
        if type(item) in _COPIERS:
            copied[key] = copy_plain(item, memo)
    return copied


def _copy_sequence(value: Any, memo: dict[int, Any]) -> Any:
    copied = memo[id(value)] = value.copy()
    for index, item in enumerate(value):
        if type(item) in _COPIERS:
            copied[index] = copy_plain(item, memo)
    return copied


def _copy_flat(value: Any, memo: dict[int, Any]) -> Any:
    copied = memo[id(value)] = value.copy()
    return copied


def _copy_namespace(value: SimpleNamespace, memo: dict[int, Any]) -> SimpleNamespace:
    copied = memo[id(value)] = SimpleNamespace()
    for key, item in vars(value).items():
        setattr(copied, key, copy_plain(item, memo))
    return copied


def _copy_tuple(value: tuple[Any, ...], memo: dict[int, Any]) -> tuple[Any, ...]:
    copied = tuple([copy_plain(item, memo) for item in value])
    # A cycle through a list inside may have copied this very tuple meanwhile.
    known: tuple[Any, ...] | None = memo.get(id(value))
    if known is not None:
        return known
    if all(new is old for new, old in zip(copied, value, strict=True)):
        copied = value
    memo[id(value)] = copied
    return copied


_COPIERS: dict[type, Callable[[Any, dict[int, Any]], Any]] = {
    dict: _copy_mapping,
    OrderedDict: _copy_mapping,
    defaultdict: _copy_mapping,
    Counter: _copy_mapping,
    list: _copy_sequence,
    deque: _copy_sequence,
    set: _copy_flat,
    bytearray: _copy_flat,
    SimpleNamespace: _copy_namespace,
    tuple: _copy_tuple,
}
