"""What options may be: each check names the option, what was given, and the remedy."""

from __future__ import annotations

import inspect
from math import isnan
from typing import Any

from ._exceptions import OptionError

_HOOKS = ("create", "reset", "destroy")


def check_count(name: str, value: object, *, least: int, optional: bool = False) -> None:
    """Refuse what is not a whole number of at least *least* (or `None`, if *optional*)."""
    if value is None and optional:
        return
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        none = ", or None for no limit" if optional else ""
        raise OptionError(f"{name}={value!r}: give a whole number of at least {least}{none}.")


def check_seconds(name: str, value: object, *, optional: bool = True, zero: bool = True) -> None:
    """Refuse what is not a duration in seconds (or `None`, if *optional*)."""
    if value is None and optional:
        return
    none = ", or None for no limit" if optional else ""
    least = "0 or more" if zero else "more than 0"
    wanted = f"give a number of seconds, {least}{none}."
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise OptionError(f"{name}={value!r}: {wanted}")
    if isnan(value) or value < 0 or (value == 0 and not zero):
        raise OptionError(f"{name}={value!r}: {wanted}")


def check_sizes(min_size: object, max_size: object) -> None:
    """Refuse bounds of a pool that cannot work."""
    check_count("min_size", min_size, least=0)
    check_count("max_size", max_size, least=1)
    assert isinstance(min_size, int)
    assert isinstance(max_size, int)
    if min_size > max_size:
        raise OptionError(
            f"min_size={min_size} is more than max_size={max_size}: "
            "raise max_size, or lower min_size."
        )


def check_pool_options(factory: Any, **options: Any) -> None:
    """Refuse options of a `Pool` that cannot work.

    Raises:
        OptionError: A value is out of range.
        TypeError: The factory lacks a hook.
    """
    name = options["name"]
    if not isinstance(name, str) or not name:
        raise OptionError(f"name={name!r}: give a text that errors and logs can call the pool.")
    missing = [hook for hook in _HOOKS if not callable(getattr(factory, hook, None))]
    if missing or inspect.isclass(factory):
        what = f"the class {factory.__name__}" if inspect.isclass(factory) else repr(factory)
        lacks = f" (it lacks {', '.join(missing)})" if missing else ""
        raise TypeError(
            f"a Pool takes a factory with create, reset and destroy, got {what}{lacks}: pass an "
            "object of such a class, or sandboxpool.FunctionFactory(create=...)."
        )
    check_sizes(options["min_size"], options["max_size"])
    check_count("max_waiting", options["max_waiting"], least=0, optional=True)
    check_count("max_uses", options["max_uses"], least=1, optional=True)
    check_count("max_creating", options["max_creating"], least=1)
    for name in ("acquire_timeout", "check_after"):
        check_seconds(name, options[name])
    for name in (
        "max_lifetime",
        "max_idle",
        "create_timeout",
        "check_timeout",
        "reset_timeout",
        "destroy_timeout",
    ):
        check_seconds(name, options[name], zero=False)
    for name in ("create_backoff", "max_create_backoff"):
        check_seconds(name, options[name], optional=False, zero=False)
    first, last = options["create_backoff"], options["max_create_backoff"]
    if first > last:
        raise OptionError(
            f"create_backoff={first!r} is more than max_create_backoff={last!r}: "
            "raise max_create_backoff, or lower create_backoff."
        )
    if options["on_acquire"] is not None and not callable(options["on_acquire"]):
        raise OptionError(
            f"on_acquire={options['on_acquire']!r}: give a function of one item, or None."
        )
    if not callable(options["clock"]):
        raise OptionError(
            f"clock={options['clock']!r}: give a function that returns seconds, "
            "like time.monotonic."
        )
    jitter = options["jitter"]
    if isinstance(jitter, bool) or not isinstance(jitter, int | float) or not 0 <= jitter < 1:
        raise OptionError(f"jitter={jitter!r}: give a share from 0 to less than 1.")
