"""What a wrapped app can be told from outside of Python: each option of `wrap()`, as text.

Names, types, defaults and help are those of `wrap()` itself, so that no option can be missing.
"""

from __future__ import annotations

import inspect
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping
from functools import cache
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import attrs

from sandboxpool._app_options import ISOLATIONS, WrapOptions
from sandboxpool._exceptions import OptionError
from sandboxpool._load import import_string
from sandboxpool._wrap import wrap

Kind = Literal["flag", "count", "seconds", "share", "text", "names", "policies", "choice", "object"]

PREFIX = "SANDBOXPOOL_"
HANDOVER = "_SANDBOXPOOL_SERVE"
"""The environment variable in which `serve` tells its worker processes what to wrap, and how."""


@attrs.frozen(kw_only=True)
class Setting:
    """An option of `wrap()` that can be given as text.

    Attributes:
        name: What `wrap()` calls it.
        kind: How its text is read.
        choices: The words that it may be.
        importable: Whether it may be an import string.
        optional: Whether it may be `None`, as text `none`.
        default: What `wrap()` takes without it.
        help: What it does, as the docstring of `wrap()` has it.
    """

    name: str
    kind: Kind
    choices: tuple[str, ...]
    importable: bool
    optional: bool
    default: Any
    help: str

    @property
    def envvar(self) -> str:
        """The environment variable that sets it."""
        return PREFIX + self.name.upper()

    @property
    def flag(self) -> str:
        """What it is called on the command line."""
        return "--" + self.name.replace("_", "-")

    @property
    def default_text(self) -> str:
        """Its default as one would write it."""
        if self.default is None:
            return "none"
        if self.kind == "flag":
            return "on" if self.default else "off"
        if self.kind in ("names", "policies"):
            return ",".join(self.default)
        return f"{self.default:g}" if isinstance(self.default, float) else str(self.default)

    def read(self, value: object) -> Any:
        """Return the value that a text, or a value of a TOML file, stands for.

        Import strings stay text: they are for the worker to resolve.

        Raises:
            OptionError: It stands for none.
        """
        if isinstance(value, str) and value.strip().lower() == "none" and self.optional:
            return None
        reader: Callable[[Setting, Any], Any] = _READERS[self.kind]
        return reader(self, value)

    def wrong(self, value: object, wanted: str) -> OptionError:
        """Return the error for a value that it cannot be."""
        none = ", or none" if self.optional else ""
        return OptionError(f"{self.name}={value!r}: give {wanted}{none}.")

    def resolve(self, value: Any) -> Any:
        """Return what `wrap()` takes for a value that was read, import strings resolved.

        A class is called, unless it is for `reset`, which is a function anyway.
        """
        if not self.importable or not isinstance(value, str) or value in self.choices:
            return value
        found = import_string(value)
        return found() if inspect.isclass(found) else found


# --- reading --------------------------------------------------------------------------------


def _flag(setting: Setting, value: object) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, str):
        text = value.strip().lower()
        if text in ("1", "true", "yes", "on"):
            return True
        if text in ("0", "false", "no", "off"):
            return False
    raise setting.wrong(value, "true or false")


def _count(setting: Setting, value: object) -> int:
    try:
        if isinstance(value, str | int) and not isinstance(value, bool):
            return int(value)
    except ValueError:
        pass
    raise setting.wrong(value, "a whole number")


def _seconds(setting: Setting, value: object) -> float:
    try:
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            return float(value)
    except ValueError:
        pass
    raise setting.wrong(value, "a number of seconds")


def _share(setting: Setting, value: object) -> float:
    try:
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            return float(value)
    except ValueError:
        pass
    raise setting.wrong(value, "a share from 0.0 to 1.0")


def _text(setting: Setting, value: object) -> str:
    if not isinstance(value, str):
        raise setting.wrong(value, "text")
    return value


def _names(setting: Setting, value: object) -> list[str]:
    texts = [value] if isinstance(value, str) else value
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise setting.wrong(value, "names, like state.cache")
    return [name.strip() for text in texts for name in text.split(",") if name.strip()]


def _policies(setting: Setting, value: object) -> dict[str, str]:
    pairs: list[tuple[str, Any]]
    if isinstance(value, Mapping):
        pairs = list(value.items())
    else:
        parts = [text.partition("=") for text in _names(setting, value)]
        pairs = [(name, policy) for name, _, policy in parts]
    for name, policy in pairs:
        if not name or policy not in setting.choices:
            raise setting.wrong(value, f"CLASS=POLICY, a policy of {', '.join(setting.choices)}")
    return dict(pairs)


def _choice(setting: Setting, value: object) -> str:
    if isinstance(value, str) and (
        value in setting.choices or (setting.importable and ":" in value)
    ):
        return value
    string = ", or an import string like shop.main:thing" if setting.importable else ""
    raise setting.wrong(value, f"one of {', '.join(setting.choices)}{string}")


def _object(setting: Setting, value: object) -> str:
    if isinstance(value, str) and ":" in value:
        return value
    raise setting.wrong(value, "an import string like shop.main:thing")


_READERS: dict[Kind, Callable[[Setting, Any], Any]] = {
    "flag": _flag,
    "count": _count,
    "seconds": _seconds,
    "share": _share,
    "text": _text,
    "names": _names,
    "policies": _policies,
    "choice": _choice,
    "object": _object,
}


# --- deriving -------------------------------------------------------------------------------


@cache
def settings() -> dict[str, Setting]:
    """Return every option of `wrap()` by name."""
    hints = {
        "factory": bool,
        "isolation": Literal[ISOLATIONS] | Callable[[], Any],
        "wsgi": bool,
        **get_type_hints(WrapOptions),
    }
    helps = _helps()
    found = {}
    for parameter in inspect.signature(wrap).parameters.values():
        if parameter.kind is parameter.KEYWORD_ONLY:
            found[parameter.name] = _setting(
                parameter.name,
                hints[parameter.name],
                parameter.default,
                helps.get(parameter.name, ""),
            )
    return found


def _setting(name: str, hint: Any, default: Any, text: str) -> Setting:
    parts = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    optional = NoneType in parts
    parts = tuple(part for part in parts if part is not NoneType)
    choices: tuple[str, ...] = ()
    others = []
    for part in parts:
        if get_origin(part) is Literal:
            choices += get_args(part)
        else:
            others.append(part)
    kind: Kind = "choice"
    importable = bool(choices and others)
    if not choices:
        (part,) = others
        origin = get_origin(part)
        simple: dict[Any, Kind] = {bool: "flag", int: "count", float: "seconds", str: "text"}
        if part in simple:
            kind = simple[part]
            if kind == "seconds" and not optional:
                kind = "share"  # durations can all be `None`, for no limit
        elif origin is Iterable:
            kind = "names"
        elif origin is Mapping:
            kind = "policies"
            choices = get_args(get_args(part)[1])
        else:
            kind = "object"
            importable = True
    if kind == "policies" and default is None:
        default, optional = {}, False
    return Setting(
        name=name,
        kind=kind,
        choices=choices,
        importable=importable,
        optional=optional,
        default=default,
        help=text,
    )


def _helps() -> dict[str, str]:
    """Return what the docstring of `wrap()` says of each option."""
    doc = inspect.getdoc(wrap) or ""  # none under `python -OO`
    found = {}
    for block in re.findall(r"^Args:\n((?:    .*\n|\n)+)", doc, re.MULTILINE):
        for name, text in re.findall(r"^    (\w+): (.+\n(?:     +.+\n)*)", block, re.MULTILINE):
            found[name] = " ".join(re.sub("[`*]", "", text).split())
    return found


# --- handing over ---------------------------------------------------------------------------


def hand_over(app: str, app_dir: str, options: Mapping[str, Any]) -> None:
    """Tell the worker processes, by way of the environment, what to wrap and how."""
    os.environ[HANDOVER] = json.dumps({"app": app, "app_dir": app_dir, "options": dict(options)})


def handed_over() -> tuple[str, str, dict[str, Any]]:
    """Return what `hand_over()` was given, with import strings still unresolved."""
    told = os.environ.get(HANDOVER)
    if told is None:
        raise OptionError(
            "sandboxpool.cli._worker is what `sandboxpool serve` shows to its servers: run "
            "`sandboxpool serve shop.main:app`, or wrap the app in code."
        )
    found = json.loads(told)
    return found["app"], found["app_dir"], found["options"]
