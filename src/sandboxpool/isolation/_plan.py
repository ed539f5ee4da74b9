"""How a reset looks at the private objects of clones; decided once for a template."""

from __future__ import annotations

import sys
from collections import Counter, defaultdict, deque
from collections.abc import Iterable
from functools import lru_cache
from operator import is_
from types import CodeType, FunctionType
from typing import Any

import attrs

FRAMEWORKS = ("starlette.", "fastapi.")
_SEEN_THROUGH = frozenset({dict, list, set, deque, defaultdict, Counter})
_BOUNDARY = (object(),)
"""Stands between two containers, so that nothing moves from one to the other unseen."""


@attrs.define
class Plan:
    """Indexes of a clone's objects, by the way in which a reset looks at them.

    Attributes:
        whole: Objects of the framework with a `__dict__` of their own.
        bare: Objects of the framework without one.
        keyed: Dicts of the framework with strings for keys.
        others: Other containers of the framework.
        empty: All containers that start empty.
        lists: Lists that are written without a look.
        wild_nodes: Objects of any other class.
        wild_containers: All other containers.
        lasts: The last key of each of `whole` and `keyed`.
        getter: Picks the numbers among the references.
        numbers: These numbers.
        patched: Containers with something private in them.
        cyclic: Objects of the framework, which refer to each other in circles.
        references: How many references there are to a private app that nobody uses.
        places: Where the state of an object is among the references.
    """

    whole: list[int] = attrs.field(factory=list)
    bare: list[int] = attrs.field(factory=list)
    keyed: list[int] = attrs.field(factory=list)
    others: list[int] = attrs.field(factory=list)
    lists: list[int] = attrs.field(factory=list)
    wild_nodes: list[int] = attrs.field(factory=list)
    wild_containers: list[int] = attrs.field(factory=list)
    lasts: list[Any] = attrs.field(factory=list)
    getter: Any = None
    numbers: tuple[Any, ...] = ()
    cyclic: list[int] = attrs.field(factory=list)
    references: int = 0
    places: dict[int, int] = attrs.field(factory=dict)
    empty: list[int] = attrs.field(factory=list)
    patched: frozenset[int] = frozenset()
    _known: dict[int, Any] = attrs.field(factory=dict)
    _knowns: tuple[Any, ...] | None = None
    _olds: tuple[tuple[Any, ...], ...] | None = None

    @property
    def nodes(self) -> list[int]:
        """The objects whose attributes the recipe knows."""
        return self.whole + self.bare

    @property
    def full(self) -> list[int]:
        """The containers that have a known content."""
        return self.keyed + self.others

    @staticmethod
    def is_calm(cls: type, attributes: dict[str, Any] | None) -> bool:
        """Tell whether an object has only what the framework gave it."""
        return (
            attributes is not None
            and cls.__module__.startswith(FRAMEWORKS)
            and not has_slots(cls)
            and attributes.keys() <= own_names(cls)
        )

    def add_container(self, index: int, original: Any, *, calm: bool) -> None:
        """Decide about a container."""
        cls = type(original)
        if cls in _SEEN_THROUGH and not original:
            self.empty.append(index)
        elif cls in _SEEN_THROUGH and calm:
            text = isinstance(original, dict) and all(type(key) is str for key in original)
            (self.keyed if text else self.others).append(index)
        elif cls is list:
            self.lists.append(index)
        else:
            self.wild_containers.append(index)

    def fits(self, new: list[Any]) -> bool:
        """Tell whether the plan is right for these objects; not if the template has changed."""
        if sys.version_info < (3, 11):
            return False  # its dicts show too little of a change; each one is written back
        if any(self.empty_of(new)) or not all(new[index] for index in self.full):
            return False
        dicts = [vars(new[index]) for index in self.whole] + [new[index] for index in self.keyed]
        lasts = [next(reversed(values)) for values in dicts]
        if self.getter is None:
            self.lasts = lasts
        return lasts == self.lasts

    def empty_of(self, new: list[Any]) -> tuple[Any, ...]:
        """Return the containers that start empty."""
        return tuple([new[index] for index in self.empty])

    def known_of(self, new: list[Any]) -> tuple[Any, ...]:
        """Return copies of the framework's containers, the same ones for all clones if possible."""
        known = tuple([self._known_of(index, new[index]) for index in self.full])
        if self._knowns is None and self.patched.isdisjoint(self.full):
            self._knowns = known
        same = self._knowns is not None and all(map(is_, known, self._knowns))
        return self._knowns if same and self._knowns is not None else known

    def _known_of(self, index: int, container: Any) -> Any:
        if index in self.patched:
            return container.copy()
        known = self._known.get(index)
        try:
            if known is not None and known == container:
                return known
        except Exception:  # a foreign `__eq__`
            return container.copy()
        known = self._known[index] = container.copy()
        return known

    def olds_of(self, lists: Iterable[list[Any]]) -> tuple[tuple[Any, ...], ...]:
        """Return the content of lists, the same objects for all clones if possible."""
        olds = []
        for index, items in zip(self.lists, lists, strict=True):
            old = tuple(items)
            if index not in self.patched:
                known = self._known.setdefault(index, old)
                if len(known) == len(old) and all(map(is_, known, old)):
                    old = known
            olds.append(old)
        if not self.patched.isdisjoint(self.lists):
            return tuple(olds)
        same = self._olds is not None and all(map(is_, olds, self._olds))
        if self._olds is None or not same:
            self._olds = tuple(olds)
        return self._olds

    def targets_of(self, new: list[Any]) -> tuple[Any, ...]:
        """Return what `gc.get_referents()` is asked about."""
        return (
            *[vars(new[index]) for index in self.whole],
            *[new[index] for index in self.keyed],
            *[new[index] for index in self.bare],
            *self.separated(new),
        )

    def separated(self, new: list[Any]) -> Iterable[Any]:
        """Return those of the targets that have no keys, with boundaries between them."""
        yield _BOUNDARY
        for index in self.others:
            yield new[index]
            yield _BOUNDARY


def has_slots(cls: type) -> bool:
    """Tell whether instances keep anything outside of their `__dict__`."""
    return any(
        name not in ("__dict__", "__weakref__")
        for base in cls.__mro__
        for name in base.__dict__.get("__slots__", ())
    )


@lru_cache(maxsize=256)
def own_names(cls: type) -> frozenset[str]:
    """Return all names that the code of a framework's class mentions."""
    names: set[str] = set()
    for base in cls.__mro__:
        for value in vars(base).values():
            function = getattr(value, "fget", None) or getattr(value, "__func__", value)
            if isinstance(function, FunctionType):
                _collect(function.__code__, names)
    return frozenset(names)


def _collect(code: CodeType, names: set[str]) -> None:
    names.update(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            _collect(constant, names)
