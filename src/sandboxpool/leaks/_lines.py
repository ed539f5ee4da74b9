"""Find the lines that may have done something, in the compiled code of the app's own modules.

Only asked once something was left behind: the code that stores a name, or calls what changes a
container of that name, is looked up in the bytecode. Nothing is traced while requests run.
"""

from __future__ import annotations

import dis
import os
import re
import sys
from collections.abc import Iterator, Mapping
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any

_CODES_AT_MOST = 4000
_SHOWN_AT_MOST = 3
# Methods that change the containers they belong to.
_METHODS = (
    "add append appendleft clear delattr difference_update discard extend extendleft insert "
    "intersection_update move_to_end pop popitem popleft remove reverse rotate setattr "
    "setdefault sort subtract symmetric_difference_update update "
    "__delitem__ __setattr__ __setitem__"
)
_CHANGING = frozenset(_METHODS.split())
_STORES = frozenset({"STORE_GLOBAL", "STORE_ATTR", "STORE_DEREF", "DELETE_GLOBAL", "DELETE_ATTR"})
_ITEM_STORES = frozenset({"STORE_SUBSCR", "DELETE_SUBSCR", "STORE_SLICE"})
_LOADS = frozenset(
    {"LOAD_GLOBAL", "LOAD_NAME", "LOAD_ATTR", "LOAD_DEREF", "LOAD_METHOD", "LOAD_FAST"}
)
_CONSTRUCTORS = frozenset({"__init__", "__new__", "__post_init__", "__attrs_post_init__"})
_COMPONENT = re.compile(r"\.?([^\W\d]\w*)|\[(?:'([^']*)'|\"([^\"]*)\"|[^\]]*)\]")

# What changes process-wide state is called; by path, the names of what that may be.
_CALLS: Mapping[str, str] = {
    "os.getcwd()": "chdir fchdir",
    "os.umask()": "umask",
    "locale.setlocale": "setlocale",
    "time.tzname": "tzset",
    "warnings.": "catch_warnings filterwarnings resetwarnings simplefilter",
    "logging.": (
        "addFilter addHandler basicConfig captureWarnings dictConfig disable fileConfig propagate "
        "removeFilter removeHandler setLevel"
    ),
    "signal.": "add_signal_handler signal",
    "random.": "seed setstate",
    "numpy.random.": "seed set_state",
    "sys.getrecursionlimit()": "setrecursionlimit",
    "sys.getswitchinterval()": "setswitchinterval",
    "socket.getdefaulttimeout()": "setdefaulttimeout",
    "gc.isenabled()": "disable enable",
    "gc.get_threshold()": "set_threshold",
    "gc.get_debug()": "set_debug",
}


class Lines:
    """The lines of modules, by what they may change."""

    def __init__(self) -> None:
        self._modules: dict[str, ModuleType] = {}
        self._unread: list[tuple[str, ModuleType]] = []
        # By name, the lines that store it, those that change a container of that name, and
        # those that call it.
        self._stores: dict[str, dict[str, CodeType]] = {}
        self._changes: dict[str, dict[str, CodeType]] = {}
        self._names: dict[str, dict[str, CodeType]] = {}
        # By place, the texts that stand there.
        self._texts: dict[str, set[str]] = {}
        # All code by id, and what of it has been read: only what has a name that was asked for.
        self._codes: dict[int, CodeType] = {}
        self._read: set[int] = set()

    def add(self, modules: Mapping[str, ModuleType]) -> None:
        """Take in modules; those of a name that is known already are other copies of them."""
        for name, module in modules.items():
            if name not in self._modules:
                self._modules[name] = module
                self._unread.append((name, module))

    def of(self, path: str, endpoint: object = None) -> tuple[str, ...]:
        """Return the lines that may have changed what *path* names, three at most.

        Args:
            path: The path of a leak.
            endpoint: What has served the request: a line of it is likelier than any other.
        """
        while self._unread:
            name, module = self._unread.pop()
            for value in list(vars(module).values()):
                for function in _functions(value, name):
                    self._add(function.__code__)
        code = _code_of(endpoint)
        if code is not None:
            self._add(code)
        self._read_those_with(_words_in(path))
        found = self._candidates(path)
        likely = [place for place, own in found.items() if own is code]
        # A constructor gives the first value, and not the next one.
        likely = likely or [p for p, own in found.items() if own.co_name not in _CONSTRUCTORS]
        return tuple((likely or list(found))[:_SHOWN_AT_MOST])

    def _candidates(self, path: str) -> dict[str, CodeType]:
        for begin, called in _CALLS.items():
            if path.startswith(begin):
                found: dict[str, CodeType] = {}
                for name in called.split():
                    found.update(self._names.get(name, {}))
                return found
        names, key = _last_of(path)
        if not names:
            return {}
        changes = self._changes.get(names[-1], {})
        if not path.endswith("]"):
            stores = self._stores.get(names[-1], {})
            return stores or self._keyed(self._changes.get("setattr", {}), names[-1]) or changes
        return self._keyed(changes, key) or changes

    def _keyed(self, places: dict[str, CodeType], text: str) -> dict[str, CodeType]:
        """Return those places at which a text stands, the key that is written to."""
        return {place: own for place, own in places.items() if text in self._texts.get(place, ())}

    def _add(self, code: CodeType) -> None:
        rest = [code]
        while rest and len(self._codes) < _CODES_AT_MOST:
            code = rest.pop()
            if id(code) not in self._codes:
                self._codes[id(code)] = code
                rest.extend(inner for inner in code.co_consts if isinstance(inner, CodeType))

    def _read_those_with(self, words: frozenset[str]) -> None:
        for code in self._codes.values():
            if id(code) not in self._read and not words.isdisjoint(
                (*code.co_names, *code.co_freevars, *code.co_cellvars, *code.co_varnames)
            ):
                self._read.add(id(code))
                self._read_code(code)

    def _read_code(self, code: CodeType) -> None:
        name = getattr(code, "co_qualname", code.co_name)  # Python 3.11
        file = _short(code.co_filename)
        for line, instructions in _by_line(code):
            place = f"{file}:{line} in {name}"
            loads: set[str] = set()
            changes = False
            for instruction in instructions:
                word = instruction.argval
                if instruction.opname in _STORES and isinstance(word, str):
                    self._stores.setdefault(word, {})[place] = code
                    self._names.setdefault(word, {})[place] = code
                elif instruction.opname in _ITEM_STORES:
                    changes = True
                elif instruction.opname in _LOADS and isinstance(word, str):
                    loads.add(word)
                    changes = changes or word in _CHANGING
                    self._names.setdefault(word, {})[place] = code
                elif instruction.opname == "LOAD_CONST" and isinstance(word, str):
                    self._texts.setdefault(place, set()).add(word)
            if changes:
                for word in loads:
                    self._changes.setdefault(word, {})[place] = code


def _words_in(path: str) -> frozenset[str]:
    """Return the names, one of which any code has that can be meant."""
    for begin, called in _CALLS.items():
        if path.startswith(begin):
            return frozenset(called.split())
    return frozenset((*_last_of(path)[0][-1:], "setattr"))


def _code_of(endpoint: Any) -> CodeType | None:
    if type(endpoint) is MethodType:
        endpoint = endpoint.__func__
    seen = 0
    while type(endpoint) is FunctionType and "__wrapped__" in endpoint.__dict__ and seen < 100:
        endpoint, seen = endpoint.__dict__["__wrapped__"], seen + 1
    return endpoint.__code__ if type(endpoint) is FunctionType else None


def _last_of(path: str) -> tuple[list[str], str]:
    """Return the names in a path, and the key of its last item."""
    names, key = [], ""
    for match in _COMPONENT.finditer(path):
        if match[1]:
            names.append(match[1])
        key = match[2] or match[3] or ""
    return names, key


def _short(file: str) -> str:
    """Return a file as seen from the working directory, or from where modules are found."""
    for folder in (os.path.abspath(os.curdir), *sys.path):
        if folder and file.startswith(folder.rstrip(os.sep) + os.sep):
            return file[len(folder.rstrip(os.sep)) + 1 :]
    return file


def _by_line(code: CodeType) -> Iterator[tuple[int, list[dis.Instruction]]]:
    """Yield the instructions of each line; those of a line that comes twice come together."""
    lines: dict[int, list[dis.Instruction]] = {}
    ranges = [(start, end, line) for start, end, line in code.co_lines() if line is not None]
    at = 0
    for instruction in dis.get_instructions(code):
        while at < len(ranges) and ranges[at][1] <= instruction.offset:
            at += 1
        if at < len(ranges) and ranges[at][0] <= instruction.offset:
            lines.setdefault(ranges[at][2], []).append(instruction)
    yield from sorted(lines.items())


def _functions(value: Any, module: str) -> Iterator[FunctionType]:
    # Never `isinstance()` or `getattr()`: a module may have a proxy that stands for nothing yet.
    cls = type(value)
    if cls is FunctionType:
        if value.__module__ == module:
            yield value
            inner = value.__dict__.get("__wrapped__")
            if type(inner) is FunctionType:
                yield from _functions(inner, module)
    elif issubclass(cls, type) and value.__module__ == module:
        for item in list(vars(value).values()):
            parts: tuple[Any, ...] = (item,)
            if issubclass(type(item), (classmethod, staticmethod)):
                parts = (item.__func__,)
            elif issubclass(type(item), property):
                parts = (item.fget, item.fset, item.fdel)
            yield from (part for part in parts if type(part) is FunctionType)
