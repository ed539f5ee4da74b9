"""The options of `wrap()`, checked."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping
from typing import Any, Literal, TypedDict

import attrs

from ._exceptions import OptionError
from ._options import check_count, check_seconds
from .abc import Watchdog

ISOLATIONS = ("auto", "clone", "factory", "module")
LEAKS = ("ignore", "log", "retire", "raise")
LIFESPANS = ("auto", "once", "each", "off")
RESETS = ("restore", "fresh", "keep")
RUN_IN = ("loop", "thread", "cooperative")
THREAD_BACKENDS = ("auto", "asyncio", "uvloop", "trio")
SMALLEST_STACK = 64 * 1024


class WrapOptions(TypedDict, total=False):
    """The options of `wrap()` that do not depend on what is wrapped; see there."""

    run_in: Literal["loop", "thread", "cooperative"]
    lifespan: Literal["auto", "once", "each", "off"]
    reset: Literal["restore", "fresh", "keep"] | Callable[[Any], Awaitable[None] | None]
    keep: Iterable[str]
    share: Iterable[str]
    packages: Iterable[str]
    shared: Iterable[str]
    leaks: Literal["ignore", "log", "retire", "raise"]
    ignore: Iterable[str]
    verify: float
    hide_secrets: bool
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
    hooks: Iterable[str]
    thread_backend: Literal["auto", "asyncio", "uvloop", "trio"]
    thread_stack_size: int
    max_abandoned: int | None
    isolate_context: bool
    gc_freeze: bool
    stats: str | None
    resources: Iterable[Any]
    watchdog: Watchdog | None
    name: str | None


@attrs.frozen(kw_only=True)
class AppOptions:
    """What a `SandboxedApp` needs to know besides its app and its pool.

    Durations are seconds; what they mean is documented at `wrap()`. `abandoned` are the worker
    threads that calls of a WSGI app have left behind.
    """

    name: str
    isolation: str
    run_in: str
    pool: Mapping[str, Any]
    abandoned: Collection[object]
    execution_timeout: float | None
    slow_after: float | None
    stall_after: float | None
    drain_timeout: float | None
    stop_timeout: float | None
    defer_timeout: float | None
    isolate_context: bool
    gc_freeze: bool
    leaks: str
    ignore: tuple[str, ...]
    verify: float
    hide_secrets: bool
    stats: str | None
    resources: tuple[Any, ...]
    watchdog: Watchdog | None


def check_app_options(
    *,
    factory: object,
    isolation: object,
    run_in: object,
    wsgi: object,
    lifespan: object,
    reset: object,
    leaks: object,
    ignore: tuple[object, ...],
    verify: object,
    hide_secrets: object,
    hooks: tuple[str, ...],
    thread_backend: object,
    thread_stack_size: object,
    max_abandoned: object,
    min_size: object,
    max_size: object,
    stats: object,
    isolate_context: object,
    gc_freeze: object,
    watchdog: object,
    name: object,
    **seconds: object,
) -> None:
    """Refuse options of `wrap()` that cannot work.

    Raises:
        OptionError: A value cannot work; the message names the option, the value, the remedy.
    """
    _true_or_false("factory", factory)
    if isinstance(isolation, str):
        _one_of("isolation", isolation, ISOLATIONS)
    else:
        missing = _missing(isolation, "start", "stop", "create", "reset", "destroy")
        if missing:
            raise OptionError(
                f"isolation={isolation!r}: give one of {_listed(ISOLATIONS)}, or an object that "
                f"makes sandboxes (sandboxpool.abc.SandboxFactory); "
                f"this one lacks {missing}."
            )
    _one_of("run_in", run_in, RUN_IN)
    _true_or_false("wsgi", wsgi)
    if hooks and run_in != "cooperative":
        raise OptionError(
            f"hooks={hooks!r} make blocking calls cooperative, which takes "
            f"run_in='cooperative', but run_in={run_in!r}."
        )
    _one_of("thread_backend", thread_backend, THREAD_BACKENDS)
    if thread_backend != "auto" and run_in != "thread":
        raise OptionError(
            f"thread_backend={thread_backend!r} is for run_in='thread', but run_in={run_in!r}."
        )
    check_count("thread_stack_size", thread_stack_size, least=SMALLEST_STACK)
    check_count("max_abandoned", max_abandoned, least=1, optional=True)
    _one_of("lifespan", lifespan, LIFESPANS)
    if not callable(reset):
        _one_of("reset", reset, RESETS, or_else="a function that is called with the sandbox")
    _one_of("leaks", leaks, LEAKS)
    if isinstance(verify, bool) or not isinstance(verify, int | float) or not 0 <= verify <= 1:
        raise OptionError(f"verify={verify!r}: give the share of the requests, from 0.0 to 1.0.")
    for name_ in ignore:
        _check_leak_name(name_)
    _true_or_false("hide_secrets", hide_secrets)
    if stats is not None and not (isinstance(stats, str) and stats.startswith("/")):
        raise OptionError(f"stats={stats!r}: give a path like '/stats', or None.")
    _true_or_false("isolate_context", isolate_context)
    _true_or_false("gc_freeze", gc_freeze)
    if watchdog is not None:
        both = [o for o in ("execution_timeout", "slow_after") if seconds.get(o) is not None]
        if both:
            raise OptionError(
                f"{both[0]}={seconds[both[0]]!r} is for the built-in watchdog, but watchdog= "
                f"replaces it: leave out {both[0]}, or have your watchdog do it "
                "(lease.cancel() cuts a request off)."
            )
        missing = _missing(watchdog, "started", "ended", "changed", "stop")
        if missing:
            raise OptionError(
                f"watchdog={watchdog!r}: give an object that watches requests "
                f"(sandboxpool.abc.Watchdog), or None; this one lacks {missing}."
            )
    if name is not None and not isinstance(name, str):
        raise OptionError(f"name={name!r}: give a string, or None.")
    # Each by itself, before one of them is derived from the other.
    check_count("min_size", 0 if min_size is None else min_size, least=0)
    check_count("max_size", 1 if max_size is None else max_size, least=1)
    for option, value in seconds.items():
        check_seconds(option, value, zero=option == "drain_timeout")


_LEAK_NAME = re.compile(
    r"""
    (?: [\w*/] | \w\ (?=[\w*/\[]) )                        # a name; the word before it, `file /x`
    (?: [^\[\]'"{}] | \[ (?: '[^']*' | "[^"]*" | [^'"\[\]]+ ) \] | \{[^{}]+\} )*
    """,
    re.VERBOSE,
)


def _check_leak_name(name: object) -> None:
    if not isinstance(name, str):
        raise OptionError(f"ignore has {name!r}: give names of leaks, like 'shop.state.hits'.")
    if not _LEAK_NAME.fullmatch(name) or name.strip() != name or ".." in name:
        raise OptionError(
            f"ignore has {name!r}, which can be the name of no leak: give one as reports show it, "
            "like 'shop.state.hits' or \"os.environ['LANG']\", in which `*` stands for anything."
        )


def _missing(value: object, *hooks: str) -> str:
    return ", ".join(hook for hook in hooks if not callable(getattr(value, hook, None)))


def _true_or_false(name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise OptionError(f"{name}={value!r}: give True or False.")


def _one_of(name: str, value: object, choices: tuple[str, ...], or_else: str = "") -> None:
    if value not in choices:
        rest = f", or {or_else}" if or_else else ""
        raise OptionError(f"{name}={value!r}: give one of {_listed(choices)}{rest}.")


def _listed(choices: tuple[str, ...]) -> str:
    return ", ".join(map(repr, choices))
