"""What a cache hands out: private copies, frozen values, or, where asked for, the value itself.

A cache that returned what it was given would undo what sandboxes are for: two requests would hold
one mutable object. So a value is *packed* when it is stored and *unpacked* for each reader.
"""

from __future__ import annotations

import pickle
from typing import Any, Protocol

import attrs

from sandboxpool._exceptions import CacheValueError, OptionError

from ._frozen import frozen
from ._size import deep_size, flat_size

VALUES = ("copy", "frozen", "share")

_IMMUTABLE = frozenset({type(None), bool, int, float, complex, str, bytes})
# Pickle's default protocol of Python 3.8 to 3.13: what one worker writes, each can read.
_PROTOCOL = 4


@attrs.frozen
class Pickled:
    """A value as bytes."""

    data: bytes


class Packing(Protocol):
    """How values are stored; *packed* is what a store holds."""

    name: str

    def pack(self, key: str, value: Any) -> tuple[Any, int]:
        """Return what to store for a value, and how many bytes that takes.

        Raises:
            CacheValueError: The value cannot be stored like that.
        """
        ...

    def unpack(self, key: str, packed: Any) -> Any:
        """Return what a reader gets.

        Raises:
            CacheValueError: What is stored cannot be read any more.
        """
        ...


class Copying:
    """Store a value as its pickle; each reader gets a copy of its own."""

    name = "copy"

    def pack(self, key: str, value: Any) -> tuple[Any, int]:
        if type(value) in _IMMUTABLE:
            return value, flat_size(value)
        data = pickled(key, value)
        return Pickled(data), flat_size(data) + _PICKLED

    def unpack(self, key: str, packed: Any) -> Any:
        return unpickled(key, packed.data) if type(packed) is Pickled else packed


class Freezing:
    """Store a value such that nobody can change it; all readers get the same one."""

    name = "frozen"

    def pack(self, key: str, value: Any) -> tuple[Any, int]:
        made = frozen(key, value)
        return made, deep_size(made)

    def unpack(self, key: str, packed: Any) -> Any:
        return frozen(key, unpickled(key, packed.data)) if type(packed) is Pickled else packed


class Sharing:
    """Store the object itself; all readers get it, and must agree on who changes it when."""

    name = "share"

    def pack(self, key: str, value: Any) -> tuple[Any, int]:
        return value, deep_size(value)

    def unpack(self, key: str, packed: Any) -> Any:
        return packed


_PACKINGS: dict[str, type[Packing]] = {"copy": Copying, "frozen": Freezing, "share": Sharing}


def packing(values: str) -> Packing:
    """Return the packing that `values=` names.

    Raises:
        OptionError: There is none of that name.
    """
    if values not in VALUES:
        raise OptionError(f"values={values!r}: give one of {', '.join(map(repr, VALUES))}.")
    return _PACKINGS[values]()


def pickled(key: str, value: Any) -> bytes:
    """Return the pickle of a value."""
    try:
        return pickle.dumps(value, _PROTOCOL)
    except Exception as error:  # pickling calls the value's own code
        raise CacheValueError(
            f"the value of {key!r}, a {type(value).__qualname__}, cannot be copied with pickle "
            f"({error}): store plain data, or make the cache with values='share'."
        ) from error


def unpickled(key: str, data: bytes) -> Any:
    """Return the value of a pickle."""
    try:
        return pickle.loads(data)
    except Exception as error:
        raise CacheValueError(
            f"what is stored for {key!r} cannot be read any more ({type(error).__name__}: "
            f"{error}): it was written by another version of the code. Delete it."
        ) from error


_PICKLED = flat_size(Pickled(b""))
