"""How many bytes a value takes, found by walking over it."""

from __future__ import annotations

import gc
from sys import getsizeof
from types import BuiltinFunctionType, CodeType, FunctionType, ModuleType
from typing import Any

# What belongs to the program rather than to a value that refers to it.
_OF_THE_PROGRAM = (type, ModuleType, FunctionType, BuiltinFunctionType, CodeType)
_INTERNED = (type(None), bool, type(Ellipsis), type(NotImplemented))

flat_size = getsizeof
"""The bytes of one object, without what it refers to."""


def deep_size(value: Any) -> int:
    """Return the bytes of a value and of all that it refers to, each object counted once.

    Classes, modules and functions are not counted, nor is what they refer to: they exist anyway.
    What C extensions allocate outside of Python's objects is counted only if their `__sizeof__`
    says so, as that of NumPy arrays does.
    """
    total = 0
    seen: set[int] = set()
    todo = [value]
    while todo:
        item = todo.pop()
        if id(item) in seen or isinstance(item, (*_OF_THE_PROGRAM, *_INTERNED)):
            continue
        seen.add(id(item))
        total += getsizeof(item)
        todo.extend(gc.get_referents(item))
    return total
