"""The options of `wrap()`, checked."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Literal, TypedDict

import attrs

from ._exceptions import OptionError
from ._options import check_seconds
from .abc import Watchdog

ISOLATIONS = ("auto", "clone", "factory")
LIFESPANS = ("auto", "once", "each", "off")
RESETS = ("restore", "fresh", "keep")


class WrapOptions(TypedDict, total=False):
    """The options of `wrap()` that do not depend on what is wrapped; see there."""

    lifespan: Literal["auto", "once", "each", "off"]
    reset: Literal["restore", "fresh", "keep"] | Callable[[Any], Awaitable[None] | None]
    keep: Iterable[str]
    share: Iterable[str]
    middleware: Mapping[Any, Literal["copy", "share", "fresh"]] | None
    min_size: int | None
    max_size: int | None
    acquire_timeout: float | None
    max_waiting: int | None
    execution_timeout: float | None
    slow_after: float | None
    stall_after: float | None
    drain_timeout: float | None
    max_uses: int | None
    max_lifetime: float | None
    max_idle: float | None
    max_creating: int
    create_timeout: float | None
    reset_timeout: float | None
    destroy_timeout: float | None
    defer_timeout: float | None
    isolate_context: bool
    stats: str | None
    watchdog: Watchdog | None
    name: str | None


@attrs.frozen(kw_only=True)
class AppOptions:
    """What a `SandboxedApp` needs to know besides its app and its pool.

    Durations are seconds; what they mean is documented at `wrap()`.
    """

    name: str
    isolation: str
    pool: Mapping[str, Any]
    execution_timeout: float | None
    slow_after: float | None
    stall_after: float | None
    drain_timeout: float | None
    stop_timeout: float | None
    defer_timeout: float | None
    isolate_context: bool
    stats: str | None
    watchdog: Watchdog | None


def check_app_options(
    *,
    isolation: object,
    lifespan: object,
    reset: object,
    stats: object,
    isolate_context: object,
    **seconds: object,
) -> None:
    """Refuse options of `wrap()` that cannot work.

    Raises:
        OptionError: A value cannot work; the message names the option, the value, the remedy.
    """
    if isinstance(isolation, str):
        _one_of("isolation", isolation, ISOLATIONS)
    else:
        missing = [
            hook
            for hook in ("start", "stop", "create", "reset", "destroy")
            if not callable(getattr(isolation, hook, None))
        ]
        if missing:
            raise OptionError(
                f"isolation={isolation!r}: give one of {_listed(ISOLATIONS)}, or an object that "
                f"makes sandboxes (sandboxpool.abc.SandboxFactory); "
                f"this one lacks {', '.join(missing)}."
            )
    _one_of("lifespan", lifespan, LIFESPANS)
    if not callable(reset):
        _one_of("reset", reset, RESETS, or_else="a function that is called with the sandbox")
    if stats is not None and not (isinstance(stats, str) and stats.startswith("/")):
        raise OptionError(f"stats={stats!r}: give a path like '/stats', or None.")
    if not isinstance(isolate_context, bool):
        raise OptionError(f"isolate_context={isolate_context!r}: give True or False.")
    for name, value in seconds.items():
        check_seconds(name, value, zero=name == "drain_timeout")


def _one_of(name: str, value: object, choices: tuple[str, ...], or_else: str = "") -> None:
    if value not in choices:
        rest = f", or {or_else}" if or_else else ""
        raise OptionError(f"{name}={value!r}: give one of {_listed(choices)}{rest}.")


def _listed(choices: tuple[str, ...]) -> str:
    return ", ".join(map(repr, choices))
