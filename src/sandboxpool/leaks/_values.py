"""Values as a report shows them: short, in bounded time, without secrets.

No code of anybody else runs here: a `__repr__` may raise, block, or load half a database. Built-in
values are written out up to a limit, and of an object what its `__dict__` has.
"""

from __future__ import annotations

import enum
import math
import re
from collections import Counter
from collections.abc import Iterator
from itertools import pairwise
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

HIDDEN = "<hidden>"
LENGTH = 120
"""Characters at most of a value that is shown."""

_ITEMS = 6  # of a container, or attributes of an object
_DEPTH = 3
_LONGEST_TEXT = 60
_LOOKED_AT = 2048  # characters of a text that are searched for secrets

_SECRET_NAME = re.compile(
    r"passw|passphrase|pwd\b|secret|token|authori[sz]ation|cookie|session|credential|csrf|xsrf"
    r"|signature|bearer|jwt"
    r"|(?:api|access|private|encryption|signing|ssh|aws|master|account|license)[-_ ]?key"
    r"|(?<![a-z])(?:auth|otp|totp|pin|cvv|cvc|ssn|salt|dsn|sid)(?![a-z])",
    re.IGNORECASE,
)
_URL_PASSWORD = re.compile(r"([a-z][a-z0-9+.-]*://[^\s:/@'\"]*):([^\s/@'\"]+)@", re.IGNORECASE)
_JWT = re.compile(r"\beyJ[\w-]{5,}\.[\w-]{5,}\.[\w-]*")
_SCHEME = re.compile(r"\b(bearer|basic|digest)\s+[\w+/=.~-]{6,}", re.IGNORECASE)
_KNOWN = re.compile(r"\b(?:sk|pk|rk|gh[opsur]|xox[abprs]|AKIA|ASIA|glpat|pypi)[-_]?\w[\w-]{14,}")
_WORD = re.compile(r"[\w+/=~-]{20,}")
_HEX = re.compile(r"[0-9a-fA-F-]{20,}")
# The standard library's own values, whose `repr()` is short, quick and raises nothing.
_FUNCTIONS = (FunctionType, BuiltinFunctionType, MethodType)
_PLAIN_MODULES = frozenset({"datetime", "decimal", "fractions", "ipaddress", "pathlib", "uuid"})


def is_secret_name(name: str) -> bool:
    """Tell whether a variable, key or header of that name usually holds a secret."""
    return _SECRET_NAME.search(name) is not None


def without_secrets(text: str) -> str:
    """Return a text with what looks like a secret hidden: JWTs, passwords in URLs, random text."""
    text = _URL_PASSWORD.sub(rf"\1:{HIDDEN}@", text)
    text = _JWT.sub(HIDDEN, text)
    text = _SCHEME.sub(rf"\1 {HIDDEN}", text)
    text = _KNOWN.sub(HIDDEN, text)
    return _WORD.sub(lambda found: HIDDEN if _is_random(found[0]) else found[0], text)


def _is_random(word: str) -> bool:
    """Tell whether a long word has no structure, as only generated ones have none."""
    if _HEX.fullmatch(word):
        return any(c.isdigit() for c in word) and len(word.replace("-", "")) >= 20
    # Words of people are letters with a few digits at an end, in snake or camel case; paths have
    # short parts. Random text changes its kind of character all the time.
    parts = [part for part in re.split(r"[/_=~-]", word) if part]
    if max(map(len, parts), default=0) < 16:
        return False
    kinds = [
        "d" if c.isdigit() else "u" if c.isupper() else "l" if c.islower() else "o" for c in word
    ]
    if len({*kinds} - {"o"}) < 2 or not ("d" in kinds or "u" in kinds):
        return False
    changes = sum(a != b and a + b != "ul" for a, b in pairwise(kinds))
    count = Counter(word)
    entropy = -sum(n / len(word) * math.log2(n / len(word)) for n in count.values())
    return entropy > 3.3 and changes * 4 >= len(word)


class Shown:
    """Writes values out.

    Args:
        hides_secrets: Whether secrets are left out.
    """

    def __init__(self, *, hides_secrets: bool = True) -> None:
        self._hides = hides_secrets

    def text(self, text: str) -> str:
        """Return a text, such as a path, as it may be shown."""
        return without_secrets(text) if self._hides else text

    def value(self, value: object, name: str = "") -> str:
        """Return a value as it may be shown, `LENGTH` characters at most.

        Args:
            value: Anything.
            name: The path at which it was found: what it is called there may say that it is secret.
        """
        if self._hides and is_secret_name(name):
            return HIDDEN
        try:
            shown = "".join(self._parts(value, 0, set()))
        except Exception:  # a class that lies about itself, or a thread that changes it right now
            shown = f"<{_name_of(type(value))}, which cannot be shown>"
        return shown if len(shown) <= LENGTH else shown[: LENGTH - 3] + "..."

    def _parts(self, value: Any, depth: int, inside: set[int]) -> Iterator[str]:
        # Never `isinstance()`, which asks the object itself for its class.
        cls = type(value)
        if issubclass(cls, str):
            yield self._quoted(str.__str__(value))
        elif cls is bool or value is None or cls is float or cls is complex:
            yield repr(value)
        elif cls is int:
            # Writing a large number out takes time that grows with the square of its length.
            yield repr(value) if value.bit_length() < 200 else f"<int of {value.bit_length()} bits>"
        elif cls in (bytes, bytearray):
            text = bytes(value[:_LOOKED_AT]).decode("latin-1")
            yield "b" + self._quoted(text, more=len(value) > _LOOKED_AT)
        elif issubclass(cls, type):
            yield f"<class {_name_of(value)}>"
        elif issubclass(cls, enum.Enum):
            yield f"{cls.__qualname__}.{object.__getattribute__(value, '_name_')}"
        elif cls.__module__.partition(".")[0] in _PLAIN_MODULES:
            yield self.text(repr(value))
        elif id(value) in inside or depth >= _DEPTH:
            yield "..."
        else:
            inside.add(id(value))
            yield from self._compound(value, cls, depth, inside)
            inside.discard(id(value))

    def _quoted(self, text: str, *, more: bool = False) -> str:
        more = more or len(text) > _LOOKED_AT
        text = self.text(text[:_LOOKED_AT])
        if more or len(text) > _LONGEST_TEXT:
            text = text[: _LONGEST_TEXT - 3] + "..."
        return repr(text)

    def _compound(self, value: Any, cls: type, depth: int, inside: set[int]) -> Iterator[str]:
        if issubclass(cls, dict):
            yield f"{_type_prefix(cls, dict)}{{"
            yield from self._items(dict.items(value), dict.__len__(value), depth, inside, ": ")
            yield "}"
        elif issubclass(cls, (list, tuple, set, frozenset)):
            for known, begin, end in _BRACKETS:
                if issubclass(cls, known):
                    yield f"{_type_prefix(cls, known)}{begin}"
                    yield from self._sequence(known, value, depth, inside)
                    yield end
                    break
        elif issubclass(cls, BaseException):
            yield f"{cls.__qualname__}("
            args: Any = BaseException.__dict__["args"].__get__(value)
            yield from self._sequence(tuple, args, depth, inside)
            yield ")"
        else:
            yield from self._object(value, cls, depth, inside)

    def _sequence(self, known: Any, value: Any, depth: int, inside: set[int]) -> Iterator[str]:
        # `("password", "x")`, and headers: the first says what the second is.
        secret = (
            self._hides
            and known is tuple
            and tuple.__len__(value) == 2
            and is_secret_name(_as_text(tuple.__getitem__(value, 0)))
        )
        number = 0
        for number, item in enumerate(known.__iter__(value)):
            if number == _ITEMS:
                yield ", ..."
                return
            if number:
                yield ", "
            if secret and number == 1:
                yield HIDDEN
            else:
                yield from self._parts(item, depth + 1, inside)
        if known is tuple and number == 0 and tuple.__len__(value):
            yield ","

    def _items(
        self, items: Any, length: int, depth: int, inside: set[int], joint: str
    ) -> Iterator[str]:
        for number, (key, item) in enumerate(items):
            if number == _ITEMS:
                yield f", ... {length - number} more"
                return
            if number:
                yield ", "
            if joint == "=":
                yield str(key)
            else:
                yield from self._parts(key, depth + 1, inside)
            yield joint
            if self._hides and is_secret_name(_as_text(key)):
                yield HIDDEN
            else:
                yield from self._parts(item, depth + 1, inside)

    def _object(self, value: Any, cls: type, depth: int, inside: set[int]) -> Iterator[str]:
        yield f"<{_name_of(cls)}"
        try:
            attributes = object.__getattribute__(value, "__dict__")
        except AttributeError:
            attributes = None
        if issubclass(cls, _FUNCTIONS):
            yield f" {value.__qualname__}"
        elif issubclass(cls, ModuleType):
            yield f" {ModuleType.__getattribute__(value, '__name__')}"
        elif type(attributes) is dict and cls.__module__ != "builtins" and attributes:
            yield " "
            yield from self._items(list(attributes.items()), len(attributes), depth, inside, "=")
        yield ">"


_BRACKETS: tuple[tuple[type, str, str], ...] = (
    (list, "[", "]"),
    (tuple, "(", ")"),
    (set, "{", "}"),
    (frozenset, "{", "}"),
)


def _as_text(key: object) -> str:
    if isinstance(key, bytes):
        return key[:64].decode("latin-1")
    return str.__str__(key)[:64] if isinstance(key, str) else ""


def _type_prefix(cls: type, plain: type) -> str:
    return "" if cls is plain else f"{cls.__qualname__} "


def _name_of(cls: type) -> str:
    module = cls.__module__
    return cls.__qualname__ if module == "builtins" else f"{module}.{cls.__qualname__}"
