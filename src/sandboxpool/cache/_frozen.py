"""Values that nobody can change by accident, equal to those that they were made from."""

from __future__ import annotations

import datetime
import decimal
import enum
import fractions
import ipaddress
import pathlib
import re
import uuid
from dataclasses import fields
from typing import Any, NoReturn

from sandboxpool._exceptions import CacheValueError

_SCALARS = frozenset({type(None), bool, int, float, complex, str, bytes, range, type(Ellipsis)})
"""Exact types: an instance of a subclass may have attributes."""
_IMMUTABLE = (
    type, datetime.date, datetime.time, datetime.timedelta, datetime.tzinfo, decimal.Decimal,
    fractions.Fraction, enum.Enum, uuid.UUID, pathlib.PurePath, re.Pattern,
    ipaddress.IPv4Address, ipaddress.IPv6Address, ipaddress.IPv4Network, ipaddress.IPv6Network,
)  # fmt: skip


def _refuse(self: Any, *args: Any, **kwargs: Any) -> NoReturn:
    kind = type(self).__mro__[1].__name__
    raise TypeError(
        f"this {kind} is shared by all readers of a cache, and cannot be changed: "
        f"change a copy, {kind}(value)."
    )


class FrozenDict(dict[Any, Any]):
    """A dict that refuses to be changed; a copy of it is a plain dict."""

    __slots__ = ()

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> Any:
        return dict, (dict(self),)

    def copy(self) -> dict[Any, Any]:
        """Return a plain dict."""
        return dict(self)

    __copy__ = copy


class FrozenList(list[Any]):
    """A list that refuses to be changed; a copy of it is a plain list."""

    __slots__ = ()

    __setitem__ = __delitem__ = __iadd__ = __imul__ = _refuse
    append = clear = extend = insert = pop = remove = reverse = sort = _refuse

    def __reduce__(self) -> Any:
        return list, (list(self),)

    def copy(self) -> list[Any]:
        """Return a plain list."""
        return list(self)

    __copy__ = copy


def frozen(key: str, value: Any) -> Any:
    """Return a value that equals *value* and cannot be changed, all the way down.

    Dicts and lists become subclasses of theirs that refuse to be changed, sets become frozensets,
    bytearrays bytes. Instances of frozen dataclasses and attrs classes stay as they are, if what
    is in them is frozen.

    Raises:
        CacheValueError: There is something in it that cannot be frozen, or it contains itself.
    """
    return _frozen(key, value, "", ())


def _frozen(key: str, value: Any, path: str, above: tuple[int, ...]) -> Any:
    cls = type(value)
    if cls in _SCALARS or cls in (FrozenDict, FrozenList) or isinstance(value, _IMMUTABLE):
        return value
    if id(value) in above:
        raise CacheValueError(
            f"the value of {key!r} contains itself (at {path or 'the top'}), so it cannot be "
            "frozen: store something plainer, or make the cache with values='copy'."
        )
    inside = (*above, id(value))
    if cls is dict:
        return FrozenDict(
            {k: _frozen(key, item, f"{path}[{k!r}]", inside) for k, item in value.items()}
        )
    if cls is list:
        return FrozenList(
            [_frozen(key, item, f"{path}[{at}]", inside) for at, item in enumerate(value)]
        )
    if isinstance(value, tuple) and (cls is tuple or hasattr(cls, "_fields")):
        made = [_frozen(key, item, f"{path}[{at}]", inside) for at, item in enumerate(value)]
        if all(new is old for new, old in zip(made, value, strict=True)):
            return value
        return tuple(made) if cls is tuple else cls(*made)
    if cls is set or cls is frozenset:
        for item in value:  # what can be hashed has nothing that would have to be replaced
            _frozen(key, item, f"{path}{{...}}", inside)
        return frozenset(value)
    if cls is bytearray:
        return bytes(value)
    names = _fields_of_frozen(cls)
    if names is not None:
        for name in names:
            item = getattr(value, name, None)
            if _frozen(key, item, f"{path}.{name}", inside) is not item:
                raise CacheValueError(
                    f"the value of {key!r} has a {type(item).__qualname__} at {path}.{name}, "
                    "which can be changed although the object around it is frozen: use a tuple "
                    "or a frozenset there, or make the cache with values='copy'."
                )
        return value
    where = f" at {path}" if path else ""
    raise CacheValueError(
        f"the value of {key!r} has a {cls.__qualname__}{where}, which cannot be frozen: store "
        "plain data, instances of frozen dataclasses or of attrs.frozen classes, or make the "
        "cache with values='copy'."
    )


def _fields_of_frozen(cls: Any) -> list[str] | None:
    parameters = getattr(cls, "__dataclass_params__", None)
    if parameters is not None and parameters.frozen:
        return [field.name for field in fields(cls)]
    attributes = getattr(cls, "__attrs_attrs__", None)
    # `attrs.frozen` replaces it; there is no public way to ask (python-attrs/attrs).
    if attributes is not None and cls.__setattr__.__name__ == "_frozen_setattrs":
        return [attribute.name for attribute in attributes]
    return None
