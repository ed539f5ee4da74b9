"""Check the options of an isolation, by name, before anything runs."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from difflib import get_close_matches
from typing import Any

from sandboxpool._exceptions import OptionError

from ._graph import getattr_dict
from ._recipe import Recipe
from ._sandbox import Rules
from ._state import SharedNames

logger = logging.getLogger("sandboxpool")

RESETS = ("restore", "fresh", "keep")
LIFESPANS = ("once", "each", "off")
POLICIES = ("copy", "share", "fresh")

Reset = str | Callable[[Any], Awaitable[None] | None]


class Options:
    """The options `reset`, `keep`, `share` and `middleware`, checked as far as possible.

    Raises:
        OptionError: One of them cannot mean anything.
    """

    def __init__(
        self,
        *,
        lifespan: str,
        reset: Any,
        keep: Iterable[str],
        share: Iterable[str],
        middleware: Mapping[type | str, str],
    ) -> None:
        _one_of("lifespan", lifespan, LIFESPANS)
        if not callable(reset):
            _one_of("reset", reset, RESETS, " or a callable that takes the sandbox")
        self.keep = _names("keep", keep)
        self.share = _names("share", share)
        if self.keep and reset != "restore":
            raise OptionError(
                f"keep={self.keep!r} says what survives a restore, but reset={reset!r} restores "
                "nothing: leave out one of them."
            )
        self.middleware = dict(middleware)
        self._told = not any(name.startswith("state.") for name in (*self.keep, *self.share))
        for key, policy in self.middleware.items():
            if not isinstance(key, (type, str)):
                raise OptionError(f"middleware={{{key!r}: ...}}: name a class, or give the class.")
            _one_of(f"middleware[{key!r}]", policy, POLICIES)
        self.rules = Rules(
            reset=reset,
            kept_states=tuple(_below_state("keep", self.keep)),
            kept_attributes=frozenset(n for n in self.keep if not n.startswith("state.")),
            shared_names=SharedNames(
                tuple(tuple(n.split(".")[1:]) for n in self.share if n.startswith("state."))
            ),
            shared_attributes=frozenset(n for n in self.share if not n.startswith("state.")),
            policy=self.policy if self.middleware else lambda cls: "copy",
        )

    def policy(self, cls: type) -> str:
        """Return what is done with middleware of a class."""
        for key in (cls, f"{cls.__module__}.{cls.__qualname__}", cls.__qualname__, cls.__name__):
            if key in self.middleware:
                return self.middleware[key]
        return "copy"

    def check(self, app: Any, recipe: Recipe) -> None:
        """Refuse names that match nothing in *app*.

        Raises:
            OptionError: A name is neither an attribute of the app nor a class in its stack.
        """
        attributes = getattr_dict(app) or {}
        for option, names in (("keep", self.keep), ("share", self.share)):
            for name in names:
                if option == "keep" and name == "state":
                    raise OptionError(
                        "keep='state': name what shall survive below it, such as 'state.cache'; "
                        "reset='keep' leaves everything."
                    )
                if not name.startswith("state.") and name not in attributes:
                    raise OptionError(
                        f"{option}={name!r}: {type(app).__name__} has no such attribute"
                        f"{_hint(name, attributes)}. Names are attributes of the app, "
                        'such as "cache", or start with "state.", such as "state.cache".'
                    )
        for key in self.middleware:
            classes = recipe.seen
            known = {cls.__name__: cls for cls in classes}
            if not any(self._matches(key, cls) for cls in classes):
                shown = key if isinstance(key, str) else key.__qualname__
                raise OptionError(
                    f"middleware={{{shown!r}: ...}}: the app has no middleware of that class"
                    f"{_hint(shown, known)}."
                )

    def tell(self, recipe: Recipe, lifespan_state: Mapping[str, Any], name: str) -> None:
        """Warn once of names below `state.` that match nothing after the lifespan has started.

        They are no errors, for such an entry may come later.
        """
        if self._told:
            return
        self._told = True
        states: list[Mapping[str, Any]] = [source for _, _, source in recipe.states]
        for option, names, searched in (
            ("keep", self.keep, states),
            ("share", self.share, [*states, lifespan_state]),
        ):
            for path in names:
                keys = path.split(".")[1:]
                missing = [_missing(state, keys) for state in searched]
                if path.startswith("state.") and None not in missing:
                    hints = [_hint(*found) for found in missing if found is not None]
                    logger.warning(
                        "%s: %s=%r matches nothing in the state after start-up%s; it has an "
                        "effect only if %s adds such an entry later",
                        name,
                        option,
                        path,
                        next(filter(None, hints), ""),
                        # What a request adds is private: it can be kept, but not shared.
                        "a request" if option == "keep" else "something outside of requests",
                    )

    @staticmethod
    def _matches(key: type | str, cls: type) -> bool:
        return key in (cls, f"{cls.__module__}.{cls.__qualname__}", cls.__qualname__, cls.__name__)


def _names(option: str, names: Iterable[Any]) -> tuple[str, ...]:
    if isinstance(names, str):
        raise OptionError(f"{option}={names!r} is one string: write {option}=({names!r},).")
    found = tuple(names)
    for name in found:
        if not isinstance(name, str) or not all(part.isidentifier() for part in name.split(".")):
            raise OptionError(
                f'{option}={name!r}: names are dotted identifiers, such as "state.cache".'
            )
        if "." in name and not name.startswith("state."):
            raise OptionError(
                f"{option}={name!r}: dotted names start with the state, such as "
                f'"state.{name.rpartition(".")[2]}"; middleware has an option of its own.'
            )
    return found


def _below_state(option: str, names: Iterable[str]) -> Iterable[str]:
    for name in names:
        head, _, rest = name.partition(".")
        if head == "state" and rest:
            if "." in rest:
                raise OptionError(
                    f"{option}={name!r}: only whole entries of the state can be kept, "
                    f'such as "state.{rest.partition(".")[0]}".'
                )
            yield rest


def _missing(state: Any, keys: Iterable[str]) -> tuple[str, list[str]] | None:
    """Return the first of *keys* that is not there, and the names that are; `None` if all are."""
    for key in keys:
        values = state if isinstance(state, Mapping) else getattr_dict(state) or {}
        if key in values:
            state = values[key]
        elif not isinstance(state, Mapping) and hasattr(state, key):
            state = getattr(state, key)
        else:
            return key, [str(known) for known in values]
    return None


def _one_of(option: str, value: object, choices: tuple[str, ...], more: str = "") -> None:
    if value not in choices:
        shown = ", ".join(map(repr, choices))
        hint = _hint(value, choices) if isinstance(value, str) else ""
        raise OptionError(f"{option}={value!r} is none of {shown}{more}{hint}.")


def _hint(name: str, known: Iterable[str]) -> str:
    matches = get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f" (did you mean {', '.join(map(repr, matches))}?)" if matches else ""
