"""The recipe of a clone: flat lists, compiled once, so that a clone is a loop without decisions."""

from __future__ import annotations

from collections.abc import Callable, Container
from types import SimpleNamespace
from typing import Any

import attrs

from ._handlers import HandlerDict
from ._plan import FRAMEWORKS, Plan

Make = Callable[[list[Any]], Any]

_SMALL = 28
"""
Objects with at most as many attributes are made without a dict: that is smaller, and all of a
class then share their keys, so that one sandbox finds the inline caches as another left them.
CPython shares 30 of them.
"""


@attrs.define
class Recipe:
    """How to build the private part of an app.

    `new` below is the list of private objects, in the order of `makes`.

    Attributes:
        patches: `(target, key, source)`: item or attribute `key` of target becomes `new[source]`.
        cells: `(cell, source)`: closure cells to fill.
        slots: `(target, name, source)`: attributes without a dict; source -1 copies nothing.
        nodes: Indexes of objects with attributes, with their originals.
        containers: Indexes of mutable containers.
        states: `(target index, attribute, original dict)` of state objects.
        apps: Index of each app by the id of its original.
        originals: The originals, by index; keeps them alive, for ids are in use.
        fresh: `(index, remake)` of nodes whose constructor is called again.
        calm: Indexes of objects that hardly anybody but the framework changes.
        kept: Indexes of containers that a reset leaves alone.
        root: Index of the app itself; `None` if nothing of it is private.
        seen: The classes that were asked about.
        handlers: Indexes of each app, its exception handlers, and the outermost and innermost
            middleware, which hold copies of them.
        make_state: Makes a state object of the framework over a dict.
        objects: Class and attributes of each object, by index.
        item_patches: The patches of containers.
        plan: What a reset must look at; made when all of the above is known.
    """

    objects: dict[int, tuple[type, dict[str, Any] | None]] = attrs.field(factory=dict)
    patches: list[tuple[int, Any, int]] = attrs.field(factory=list)
    item_patches: list[tuple[int, Any, int]] = attrs.field(factory=list)
    cells: list[tuple[int, int]] = attrs.field(factory=list)
    slots: list[tuple[int, str, int]] = attrs.field(factory=list)
    nodes: list[int] = attrs.field(factory=list)
    containers: list[int] = attrs.field(factory=list)
    states: list[tuple[int, str, dict[str, Any]]] = attrs.field(factory=list)
    apps: dict[int, int] = attrs.field(factory=dict)
    originals: list[Any] = attrs.field(factory=list)
    fresh: list[tuple[int, Any]] = attrs.field(factory=list)
    calm: set[int] = attrs.field(factory=set)
    kept: set[int] = attrs.field(factory=set)
    root: int | None = None
    seen: set[type] = attrs.field(factory=set)
    handlers: list[tuple[int, int, int, int]] = attrs.field(factory=list)
    make_state: Callable[[dict[str, Any]], Any] = dict
    plan: Plan = attrs.field(factory=Plan)
    _grouped: dict[int, list[tuple[Any, int]]] = attrs.field(factory=dict)
    _blank: list[Any] = attrs.field(factory=list)
    _small: list[tuple[int, type, list[tuple[str, Any]]]] = attrs.field(factory=list)
    _large: list[tuple[int, type, dict[str, Any]]] = attrs.field(factory=list)
    _copies: list[tuple[int, Callable[[], Any]]] = attrs.field(factory=list)
    _late: list[tuple[int, Make]] = attrs.field(factory=list)
    _small_patches: list[tuple[int, list[tuple[Any, int]]]] = attrs.field(factory=list)
    _large_patches: list[tuple[int, list[tuple[Any, int]]]] = attrs.field(factory=list)

    def add(self, original: Any) -> int:
        """Return a new index for the private twin of *original*."""
        self.originals.append(original)
        return len(self.originals) - 1

    def copy_by(self, index: int, copy: Callable[[], Any]) -> None:
        """Have object *index* made by a call without arguments."""
        self._copies.append((index, copy))

    def make_by(self, index: int, make: Make) -> None:
        """Have object *index* made from those that are made before it."""
        self._late.append((index, make))

    def build(self) -> list[Any]:
        """Return new private objects."""
        new = self._blank.copy()
        create: Callable[[type], Any] = object.__new__
        write = object.__setattr__
        for index, cls, names in self._small:
            made = new[index] = create(cls)
            for key, value in names:
                # One by one, so that no dict is made: the class knows the names.
                write(made, key, value)
        for index, cls, pristine in self._large:
            made = new[index] = create(cls)
            made.__dict__ = pristine.copy()
        for index, copy in self._copies:
            new[index] = copy()
        for index, make in self._late:
            new[index] = make(new)
        self.connect(new)
        for app, handlers, outer, inner in self.handlers:
            following = HandlerDict(new[handlers], new[outer], new[inner])
            new[handlers] = following
            write(new[app], "exception_handlers", following)
        if self.fresh:
            again = {index for index, _ in self.fresh}
            for index, remake in self.fresh:
                new[index] = remake(new)
            # What the constructor has set stays; only what led to the copy leads to it now.
            self.connect(new, skip=again)
        return new

    def connect(self, new: list[Any], skip: Container[int] = ()) -> None:
        """Make private objects refer to each other instead of to the originals."""
        write = object.__setattr__
        for target, pairs in self._small_patches:
            if target not in skip:
                made = new[target]
                for key, source in pairs:
                    write(made, key, new[source])
        for target, pairs in self._large_patches:
            if target not in skip:
                values = new[target].__dict__
                for key, source in pairs:
                    values[key] = new[source]
        for target, key, source in self.item_patches:
            new[target][key] = new[source]
        for target, source in self.cells:
            new[target].cell_contents = new[source]
        for target, name, source in self.slots:
            if target not in skip:
                object.__setattr__(new[target], name, new[source])

    def group(self) -> None:
        """Sort the patches by how they are applied; called once, after the walk."""
        grouped: dict[int, list[tuple[Any, int]]] = {}
        for target, key, source in self.patches:
            original = self.originals[target]
            if target in self.objects or type(original) is SimpleNamespace:
                grouped.setdefault(target, []).append((key, source))
            else:
                self.item_patches.append((target, key, source))
        self._blank = [None] * len(self.originals)
        for index, (cls, pristine) in self.objects.items():
            if pristine is None or len(pristine) <= _SMALL:
                patched = {key for key, _ in grouped.get(index, ())}
                kept = [item for item in (pristine or {}).items() if item[0] not in patched]
                self._small.append((index, cls, kept))
            else:
                compact: dict[str, Any] = {}
                compact.update(pristine)
                self._large.append((index, cls, compact))
        large = {index for index, _, _ in self._large}
        self._grouped = grouped
        for target, pairs in grouped.items():
            into = self._large_patches if target in large else self._small_patches
            into.append((target, pairs))

    def attributes(self, index: int, new: list[Any]) -> dict[str, Any]:
        """Return the attributes that object *index* among *new* was made with."""
        values = dict(self.objects[index][1] or {})
        for key, source in self._grouped.get(index, ()):
            values[key] = new[source]
        return values

    def make_plan(self, special: Container[int | None] = ()) -> None:
        """Decide how a reset looks at each object.

        Args:
            special: Indexes of objects of which some attributes survive a reset.
        """
        again = {index for index, _ in self.fresh}
        plan = self.plan = Plan(patched=frozenset(target for target, _, _ in self.item_patches))
        for index in self.nodes:
            cls, pristine = self.objects[index]
            if pristine is not None and cls.__module__.startswith(FRAMEWORKS):
                plan.cyclic.append(index)
            if index in again or index in special or not plan.is_calm(cls, pristine):
                plan.wild_nodes.append(index)
            elif len(pristine or ()) > _SMALL:
                plan.whole.append(index)
            else:
                plan.bare.append(index)
        for index in self.containers:
            if index not in self.kept:
                plan.add_container(index, self.originals[index], calm=index in self.calm)
