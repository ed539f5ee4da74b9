"""Find what of an app each sandbox must have of its own, and write the recipe to build it.

The walk starts at the app and follows what carries requests: routers, route lists, mounts,
middleware, the functions that close over them. Leaf routes, endpoints and opaque objects are not
entered: they are shared. The result is a flat `Recipe`, compiled once for a template, so that a
clone is a loop without decisions and no constructor of the app is ever called again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Container, Iterable
from functools import partial
from types import CellType, FunctionType, MethodType, SimpleNamespace
from typing import Any

import attrs

from sandboxpool.adapters import adapter_for, adapters
from sandboxpool.adapters.asgi import is_asgi_function, is_asgi_instance, is_copyable

from ._data import CONTAINERS, MAPPINGS, SCALARS
from ._handlers import HandlerDict
from ._stand_in import original_class

Make = Callable[[list[Any]], Any]

_SMALL = 16
"""Objects with at most as many attributes are made without a dict, which is smaller."""

_FRAMEWORKS = ("starlette.", "fastapi.")
_FRAMEWORK_CONTAINERS = frozenset(
    {
        "_exception_handlers",
        "_low_priority_routes",
        "_status_handlers",
        "callbacks",
        "dependencies",
        "dependency_overrides",
        "exception_handlers",
        "extra",
        "on_shutdown",
        "on_startup",
        "responses",
        "servers",
        "tags",
        "user_middleware",
    }
)
"""Containers of framework objects: equal to the old content is as good as identical."""


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
            new[handlers] = new[app].__dict__["exception_handlers"] = following
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
        for target, pairs in grouped.items():
            into = self._large_patches if target in large else self._small_patches
            into.append((target, pairs))


def slot_names(cls: type) -> list[str]:
    """Return the names that instances of *cls* keep in slots."""
    names: list[str] = []
    for base in cls.__mro__:
        slots = base.__dict__.get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            if name not in ("__dict__", "__weakref__"):
                if name.startswith("__") and not name.endswith("__"):
                    name = f"_{base.__name__.lstrip('_')}{name}"
                names.append(name)
    return names


class Walk:
    """One walk over the graph of an app."""

    def __init__(
        self,
        policy: Callable[[type], str] = lambda cls: "copy",
        shared: frozenset[str] = frozenset(),
        kept: frozenset[str] = frozenset(),
        known: Iterable[Any] = (),
    ) -> None:
        self.recipe = Recipe()
        self.policy = policy
        self.shared = shared
        self.kept = kept
        self._calm = self._keeping = False
        self._foreign = list(known)
        self._memo: dict[int, int | None] = dict.fromkeys(map(id, self._foreign))
        self._root: Any = None

    def compile(self, root: Any) -> Recipe:
        """Return the recipe for *root*, which becomes object 0."""
        self._root = root
        recipe = self.recipe
        recipe.root = self._reference(root, "app")
        if recipe.root is not None:
            recipe.apps.setdefault(id(root), recipe.root)
        for index in list(recipe.apps.values()):
            app = recipe.originals[index]
            sinks = adapter_for(app).handler_sinks(app)
            handlers = self._memo.get(id((getattr_dict(app) or {}).get("exception_handlers")))
            if sinks is None or handlers is None:
                continue
            outer, inner = (self._memo.get(id(sink)) for sink in sinks)
            if outer is not None and inner is not None:
                recipe.handlers.append((index, handlers, outer, inner))
        recipe.group()
        return recipe

    # -- what becomes private --------------------------------------------------------------

    def _reference(self, value: Any, name: str = "") -> int | None:
        """Return the index of the private twin of *value*, `None` if it is shared."""
        cls = type(value)
        if cls in SCALARS:
            return None
        known = self._memo.get(id(value), -1)
        if known != -1:
            return known
        if cls in CONTAINERS:
            return self._container(value)
        if cls is MethodType:
            return self._method(value)
        if cls is FunctionType:
            return self._function(value) if is_asgi_function(value) else None
        if cls is partial:
            return self._partial(value)
        if self.is_private(value, name):
            return self._node(value, name)
        return None

    def is_private(self, value: Any, name: str) -> bool:
        """Tell whether *value* is an object that every sandbox has of its own."""
        adapter = adapter_for(value)
        if not (is_asgi_instance(value, name) if adapter.is_plain else adapter.is_node(value)):
            return False
        cls = original_class(type(value))
        self.recipe.seen.add(cls)
        if self.policy(cls) == "share":
            self._memo[id(value)] = None
            return False
        return is_copyable(cls)

    def _add(self, original: Any, make: Make | None = None) -> int:
        index = self._memo[id(original)] = self.recipe.add(original)
        if make is not None:
            self.recipe.make_by(index, make)
        return index

    def _node(self, value: Any, name: str) -> int:
        recipe, cls = self.recipe, original_class(type(value))
        adapter = adapter_for(value)
        adapter.prepare(value)
        values = getattr_dict(value)
        pristine = {}
        if values is not None:
            pristine.update(values)
        index = self._add(value)
        recipe.objects[index] = cls, None if values is None else pristine
        recipe.nodes.append(index)
        if adapter.is_app(value):
            recipe.apps[id(value)] = index
        ours = cls.__module__.startswith(_FRAMEWORKS)
        if ours and not adapter.is_app(value) and name != "router":
            recipe.calm.add(index)
        shared = adapter.shared_attributes(value)
        if value is self._root:
            shared |= self.shared
        for key, item in pristine.items():
            if key in shared:
                continue
            if is_state(item):
                owner = adapter_for(item)
                recipe.states.append((index, key, owner.state_dict(item)))
                recipe.make_state = owner.make_state
                continue
            before = self._calm, self._keeping
            self._calm = ours and key in _FRAMEWORK_CONTAINERS
            self._keeping = before[1] or (value is self._root and key in self.kept)
            source = self._reference(item, key)
            self._calm, self._keeping = before
            if source is not None:
                recipe.patches.append((index, key, source))
        for key in slot_names(cls):
            try:
                item = object.__getattribute__(value, key)
            except AttributeError:
                continue
            source = self._reference(item, key)
            if source is None:
                source = self._constant(item)
            recipe.slots.append((index, key, source))
        return index

    def _constant(self, value: Any) -> int:
        index = self.recipe.add(value)
        self.recipe.make_by(index, lambda new: value)
        return index

    def _container(self, value: Any) -> int | None:
        recipe, cls = self.recipe, type(value)
        if cls is tuple:
            return self._tuple(value)
        if cls is bytearray:
            index = self._add(value)
            recipe.copy_by(index, lambda: bytearray(value))
        elif cls is SimpleNamespace:
            pristine = dict(vars(value))
            index = self._add(value)
            recipe.copy_by(index, lambda: SimpleNamespace(**pristine))
        else:
            index = self._add(value)
            recipe.copy_by(index, value.copy)
        recipe.containers.append(index)
        if self._calm:
            recipe.calm.add(index)
        if self._keeping:
            recipe.kept.add(index)
        if cls in MAPPINGS or cls is SimpleNamespace:
            items = list(value.items() if cls in MAPPINGS else vars(value).items())
        elif cls is list or cls is deque:
            items = list(enumerate(value))
        else:
            items = []
        for key, item in items:
            source = self._reference(item, key if isinstance(key, str) else "")
            if source is not None:
                recipe.patches.append((index, key, source))
        return index

    def _tuple(self, value: tuple[Any, ...]) -> int | None:
        sources = [self._reference(item) for item in value]
        if all(source is None for source in sources):
            self._memo[id(value)] = None
            return None
        known = self._memo.get(id(value))
        if known is not None:
            return known
        pairs = list(zip(value, sources, strict=True))
        return self._add(
            value, lambda new: tuple([item if at is None else new[at] for item, at in pairs])
        )

    def _method(self, value: MethodType) -> int | None:
        owner = self._reference(value.__self__)
        if owner is None:
            return None
        function = value.__func__
        return self._add(value, lambda new: MethodType(function, new[owner]))

    def _partial(self, value: partial[Any]) -> int | None:
        function = self._reference(value.func)
        args = [self._reference(item, "app") for item in value.args]
        more = {key: self._reference(item, key) for key, item in value.keywords.items()}
        if function is None and not any(at is not None for at in (*args, *more.values())):
            return None

        def make(new: list[Any]) -> Any:
            def private(item: Any, at: int | None) -> Any:
                return item if at is None else new[at]

            return partial(
                private(value.func, function),
                *map(private, value.args, args),
                **{key: private(value.keywords[key], at) for key, at in more.items()},
            )

        return self._add(value, make)

    def _function(self, value: FunctionType) -> int | None:
        # Middleware written as a function closes over the next app. Only the cells that lead
        # back into the structure are replaced: all other closure variables stay shared.
        cells = value.__closure__ or ()
        sources: dict[int, int] = {}
        self._memo[id(value)] = None
        for position, cell in enumerate(cells):
            try:
                content = cell.cell_contents
            except ValueError:
                continue
            if type(content) in CONTAINERS:
                continue
            source = self._reference(content, "app")
            if source is not None:
                sources[position] = source
        if not sources:
            return None
        fresh: dict[int, int] = {}
        for position, source in sources.items():
            cell = cells[position]
            known = self._memo.get(id(cell))
            if known is None:
                known = self._add(cell, lambda new: CellType())
                self.recipe.cells.append((known, source))
            fresh[position] = known

        def make(new: list[Any]) -> FunctionType:
            closure = tuple(
                new[fresh[at]] if at in fresh else cell for at, cell in enumerate(cells)
            )
            made = FunctionType(
                value.__code__, value.__globals__, value.__name__, value.__defaults__, closure
            )
            made.__kwdefaults__ = value.__kwdefaults__
            made.__dict__.update(value.__dict__)
            made.__qualname__ = value.__qualname__
            return made

        return self._add(value, make)


def is_state(value: Any) -> bool:
    """Tell whether *value* is a state object of some framework."""
    return any(adapter.is_state(value) for adapter in adapters())


def getattr_dict(value: Any) -> dict[str, Any] | None:
    """Return the real `__dict__` of *value*, whatever its class makes of attribute access."""
    try:
        values: dict[str, Any] = object.__getattribute__(value, "__dict__")
    except AttributeError:
        return None
    return values
