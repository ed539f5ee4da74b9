"""What the whole process has in common, and a request may change for everybody."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found] # typeshed has no stub for it
import gc
import locale
import logging
import os
import random
import signal
import socket
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextvars import copy_context
from typing import Any

import attrs

from ._difference import ABSENT, Difference

_SIGNALS = {
    f"signal.getsignal({name})": int(getattr(signal, name))
    for name in (
        "SIGABRT", "SIGALRM", "SIGBREAK", "SIGCHLD", "SIGHUP", "SIGINT", "SIGIO", "SIGPIPE",
        "SIGQUIT", "SIGTERM", "SIGTSTP", "SIGUSR1", "SIGUSR2", "SIGVTALRM", "SIGWINCH",
    )
    if hasattr(signal, name)
}  # fmt: skip
"""By path; asked for in C, because `signal.getsignal()` makes an enumeration of each answer."""
# Blocks of 624 numbers that a request may draw before its use is taken for a new seed; to prove
# that it was use takes a few microseconds for each.
_BLOCKS = 1000
_WORDS = 624  # of the state of the Mersenne Twister


@attrs.frozen(eq=False)
class ProcessState:
    """How everything was at one moment.

    Attributes:
        values: What is compared by `==` or identity, by path.
        environ: The environment variables.
        loggers: Of each logger that has anything, its settings.
        modules: `sys.modules`.
        random: The state of `random`.
        numpy: The state of `numpy.random`, if that is loaded.
    """

    values: Mapping[str, Any]
    environ: Mapping[Any, Any]
    loggers: Mapping[str, tuple[Any, ...]]
    modules: Mapping[str, Any]
    random: tuple[Any, ...]
    numpy: Any

    @classmethod
    def now(cls) -> ProcessState:
        """Look at everything; nothing is changed by that."""
        values: dict[str, Any] = {
            "os.getcwd()": _tried(os.getcwd),
            "os.umask()": _umask(),
            "locale.setlocale(locale.LC_ALL)": _tried(locale.setlocale, locale.LC_ALL),
            "time.tzname": time.tzname,
            "warnings.filters": tuple(warnings.filters),
            "warnings.showwarning": warnings.showwarning,
            "logging.disable()": logging.root.manager.disable,
            "sys.path": tuple(sys.path),
            "sys.stdout": sys.stdout,
            "sys.stderr": sys.stderr,
            "sys.excepthook": sys.excepthook,
            "sys.getrecursionlimit()": sys.getrecursionlimit(),
            "sys.getswitchinterval()": sys.getswitchinterval(),
            "socket.getdefaulttimeout()": socket.getdefaulttimeout(),
            "gc.isenabled()": gc.isenabled(),
            "gc.get_threshold()": gc.get_threshold(),
            "gc.get_debug()": gc.get_debug(),
            **_default_decimal(),
        }
        for name, number in _SIGNALS.items():
            values[name] = _signal.getsignal(number)
        return cls(
            values=values,
            # The dict of encoded variables: the mapping decodes each anew.
            environ=dict(getattr(os.environ, "_data", os.environ)),
            loggers=dict(_loggers()),
            modules=dict(sys.modules),
            random=random.getstate(),
            numpy=_numpy_state(),
        )

    def compare(self, now: ProcessState) -> list[Difference]:
        """Return what is different now."""
        found = [
            Difference(path, "changed", before, now.values[path])
            for path, before in self.values.items()
            if path in now.values and not _same(before, now.values[path])
        ]
        if self.environ != now.environ:
            found += _compared("os.environ[{!r}]", _decoded(self.environ), _decoded(now.environ))
        found += _compare_loggers(self.loggers, now.loggers)
        if not _same_items(self.modules, now.modules):
            # What was added was imported, lazily perhaps: only what took a place is a patch.
            found += [
                difference
                for difference in _compared("sys.modules[{!r}]", self.modules, now.modules)
                if difference.kind != "added"
            ]
        if _was_seeded(self.random, now.random):
            found.append(Difference("random.seed()", "changed", ABSENT, ABSENT))
        if _numpy_was_seeded(self.numpy, now.numpy):
            found.append(Difference("numpy.random.seed()", "changed", ABSENT, ABSENT))
        return found


def decimal_context() -> Mapping[str, Any]:
    """Return the decimal context that the running code has inherited.

    To be asked for in a copy of the context: to look at one makes one, if there is none.
    """
    decimal = sys.modules.get("decimal")
    if decimal is None:
        return {}
    return _settings("decimal.getcontext()", copy_context().run(decimal.getcontext))


def _default_decimal() -> Mapping[str, Any]:
    decimal = sys.modules.get("decimal")
    return {} if decimal is None else _settings("decimal.DefaultContext", decimal.DefaultContext)


def _settings(name: str, context: Any) -> Mapping[str, Any]:
    # Not the flags, which every calculation sets.
    traps = tuple(sorted(cls.__name__ for cls, on in context.traps.items() if on))
    return {
        f"{name}.prec": context.prec,
        f"{name}.rounding": context.rounding,
        f"{name}.Emin": context.Emin,
        f"{name}.Emax": context.Emax,
        f"{name}.traps": traps,
    }


def _tried(function: Callable[..., Any], *args: Any) -> Any:
    try:
        return function(*args)
    except OSError as error:  # the folder is gone
        return type(error)


def _umask() -> int | None:
    """Return the umask, where it can be read without setting it, which other threads would see."""
    try:
        with open("/proc/self/status", "rb") as file:
            for line in file:
                if line.startswith(b"Umask:"):
                    return int(line[6:], 8)
    except (OSError, ValueError):
        pass
    return None


def _same(before: Any, after: Any) -> bool:
    if before is after:
        return True
    if type(before) is tuple and type(after) is tuple:
        return len(before) == len(after) and all(map(_same, before, after))
    return type(before) is type(after) and type(before) in _BY_VALUE and bool(before == after)


_BY_VALUE = frozenset({str, int, float, bool, bytes, type(None), type(signal.SIG_DFL)})


def _same_items(before: Mapping[str, Any], after: Mapping[str, Any]) -> bool:
    try:
        if before == after:  # which begins with identity; modules are equal to none but themselves
            return True
    except Exception:
        pass  # something that only looks like a module
    return len(before) == len(after) and all(
        after.get(name, ABSENT) is value for name, value in before.items()
    )


def _compared(
    path: str, before: Mapping[str, Any], after: Mapping[str, Any]
) -> Iterator[Difference]:
    for name, value in before.items():
        now = after.get(name, ABSENT)
        if now is ABSENT:
            yield Difference(path.format(name), "removed", value, ABSENT)
        elif not _same(value, now):
            yield Difference(path.format(name), "changed", value, now)
    for name, value in after.items():
        if name not in before:
            yield Difference(path.format(name), "added", ABSENT, value)


def _decoded(environ: Mapping[Any, Any]) -> dict[str, str]:
    decode: Callable[[Any], str] = os.fsdecode if os.name == "posix" else str
    return {decode(name): decode(value) for name, value in environ.items()}


# --- logging --------------------------------------------------------------------------------


def _loggers() -> Iterator[tuple[str, tuple[Any, ...]]]:
    yield "", _logger(logging.root)
    for name, logger in list(logging.root.manager.loggerDict.items()):
        if isinstance(logger, logging.Logger):
            yield name, _logger(logger)


_NO_HANDLERS: tuple[Any, ...] = ()


def _logger(logger: logging.Logger) -> tuple[Any, ...]:
    handlers = tuple(logger.handlers) if logger.handlers else _NO_HANDLERS
    filters = tuple(logger.filters) if logger.filters else _NO_HANDLERS
    return logger.level, logger.disabled, logger.propagate, handlers, filters


_LOGGER = ("level", "disabled", "propagate", "handlers", "filters")


def _compare_loggers(
    before: Mapping[str, tuple[Any, ...]], after: Mapping[str, tuple[Any, ...]]
) -> Iterator[Difference]:
    for name, now in after.items():
        then = before.get(name)
        if then is None or then is now:
            continue  # a new one comes with a lazy import; `growing()` sees those that go on
        for what, old, new in zip(_LOGGER, then, now, strict=True):
            if not _same(old, new):
                path = f"logging.getLogger({name!r}).{what}" if name else f"logging.root.{what}"
                yield Difference(path, "changed", old, new)


# --- random numbers -------------------------------------------------------------------------


def _was_seeded(before: tuple[Any, ...], after: tuple[Any, ...]) -> bool:
    """Tell whether one state of `random` does not follow from the other by mere use.

    The Mersenne Twister computes the next 624 words from the last ones alone (Matsumoto and
    Nishimura, 1998), so whether a state is a later one of the same sequence can be tried out.
    """
    then, now = before[1][:_WORDS], after[1][:_WORDS]
    if then == now:
        return False
    twister = random.Random()
    # At the end of a block: whatever is drawn next makes the next one.
    twister.setstate((before[0], (*then, _WORDS), None))
    for _ in range(_BLOCKS):
        twister.getrandbits(32 * _WORDS)
        if twister.getstate()[1][:_WORDS] == now:
            return False
    return True


def _numpy_state() -> Any:
    numpy = sys.modules.get("numpy.random")
    if numpy is None:
        return None
    try:
        state = numpy.get_state(legacy=False)
        return bytes(state["state"]["key"]) if state["bit_generator"] == "MT19937" else None
    except Exception:  # it is still being imported, or somebody has put in another generator
        return None


def _numpy_was_seeded(before: Any, after: Any) -> bool:
    if before is None or after is None:
        return False

    def state(key: bytes) -> tuple[Any, ...]:
        words = memoryview(key).cast("I").tolist()
        return 3, (*words, _WORDS), None

    return _was_seeded(state(before), state(after))
