"""Put the hooks into the standard library, and take them out again."""

from __future__ import annotations

import importlib
import threading
from collections.abc import Iterator
from difflib import get_close_matches
from typing import Any, Literal, get_args

from sandboxpool._exceptions import OptionError

from ._patch import Patch

HookName = Literal[
    "sleep", "socket", "ssl", "dns", "select", "subprocess", "locks", "files", "threads"
]
"""What can be made cooperative; `"default"` and `"all"` stand for several."""

HOOKS: tuple[HookName, ...] = get_args(HookName)
"""All hooks, in the order in which they are installed."""

DEFAULT_HOOKS: tuple[HookName, ...] = tuple(
    name for name in HOOKS if name not in ("files", "threads")
)
"""The hooks that are installed unless others are asked for."""

_installed: dict[HookName, list[tuple[Patch, Any]]] = {}
_WITH_ANY = "worker_threads"
_with_any: list[tuple[Patch, Any]] = []
_changing = threading.Lock()


def install(*hooks: HookName | Literal["default", "all"]) -> None:
    """Make blocking calls of cooperative requests suspend only the request.

    Call it before the app is imported: a module that says `from time import sleep` keeps what it
    found there, and a lock that was made before stays what it is.

    Args:
        hooks: Which ones, `"default"` if none is named: all but `"files"` and `"threads"`.
            `"all"` is every one of them. What each covers is on the documentation's page about
            blocking code. Hooks that are installed already stay as they are.

    Raises:
        OptionError: There is no such hook.
        ImportError: greenlet is not installed.
    """
    wanted = resolve(hooks)
    try:
        import greenlet  # noqa: F401
    except ImportError as error:
        raise ImportError(
            "hooks switch stacks with greenlet, which is not installed: "
            "pip install sandboxpool[hooks]."
        ) from error
    with _changing:
        if wanted and not _with_any:
            _with_any.extend(_apply(_WITH_ANY))
        for name in wanted:
            if name not in _installed:
                _installed[name] = _apply(name)


def uninstall(*hooks: HookName | Literal["default", "all"]) -> None:
    """Put the originals back; calls that are suspended meanwhile go on to their end.

    Args:
        hooks: Which ones, all of them if none is named.

    Raises:
        OptionError: There is no such hook.
    """
    wanted = resolve(hooks or ("all",))
    with _changing:
        for name in reversed(HOOKS):
            if name in wanted:
                _undo(_installed.pop(name, []))
        if not _installed:
            _undo(_with_any)


def _apply(name: str) -> list[tuple[Patch, Any]]:
    module = importlib.import_module(f"{__package__}._{name}")
    return [(patch, patch.apply()) for patch in module.patches()]


def _undo(applied: list[tuple[Patch, Any]]) -> None:
    while applied:
        patch, original = applied.pop()
        patch.undo(original)


def installed() -> tuple[HookName, ...]:
    """Return the hooks that are installed now."""
    return tuple(name for name in HOOKS if name in _installed)


def resolve(hooks: tuple[Any, ...]) -> tuple[HookName, ...]:
    """Return the hooks that these names stand for, in order.

    Raises:
        OptionError: There is no such hook.
    """
    return tuple(name for name in HOOKS if name in set(_expand(hooks or ("default",))))


def _expand(hooks: tuple[Any, ...]) -> Iterator[HookName]:
    for name in hooks:
        if name == "all":
            yield from HOOKS
        elif name == "default":
            yield from DEFAULT_HOOKS
        elif name in HOOKS:
            yield name
        else:
            close = get_close_matches(str(name), HOOKS, 1)
            meant = f" Did you mean {close[0]!r}?" if close else ""
            raise OptionError(
                f"there is no hook {name!r}: give some of {', '.join(map(repr, HOOKS))}, "
                f"'default' or 'all'.{meant}"
            )
