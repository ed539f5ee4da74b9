"""Find what of an app each sandbox must have of its own, and write the recipe to build it.

The walk starts at the app and follows what carries requests: routers, route lists, mounts,
middleware, the functions that close over them. Leaf routes, endpoints and opaque objects are not
entered: they are shared. The result is a flat `Recipe`, compiled once for a template, so that a
clone is a loop without decisions and no constructor of the app is ever called again.
"""

from __future__ import annotations

import dis
from collections import deque
from collections.abc import Callable, Iterable
from functools import lru_cache, partial
from types import CellType, CodeType, FunctionType, MethodType, SimpleNamespace
from typing import Any

from sandboxpool.adapters import adapter_for, adapters
from sandboxpool.adapters.asgi import is_asgi_function, is_asgi_instance, is_copyable

from ._data import CONTAINERS, MAPPINGS, SCALARS
from ._layers import shared_layer
from ._plan import FRAMEWORKS
from ._recipe import Make, Recipe
from ._stand_in import original_class

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
        if self.policy(cls) != "share":
            return is_copyable(cls)
        if not adapter.is_app(value) and value is not self._root:
            return True
        self._memo[id(value)] = None
        return False

    def _add(self, original: Any, make: Make | None = None) -> int:
        index = self._memo[id(original)] = self.recipe.add(original)
        if make is not None:
            self.recipe.make_by(index, make)
        return index

    def _node(self, value: Any, name: str) -> int:
        recipe, cls = self.recipe, original_class(type(value))
        if self.policy(cls) == "share":
            return self._shared_layer(value, cls)
        adapter = adapter_for(value)
        adapter.prepare(value)
        values = getattr_dict(value)
        pristine = {}
        if values is not None:
            pristine.update(values)
            pristine.update(adapter.blank(value))
        index = self._add(value)
        recipe.objects[index] = cls, None if values is None else pristine
        recipe.nodes.append(index)
        if adapter.is_app(value):
            recipe.apps[id(value)] = index
        ours = cls.__module__.startswith(FRAMEWORKS)
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

    def _shared_layer(self, value: Any, cls: type) -> int:
        # Made before what refers to it, by a function that is known only after the walk.
        make: list[Make] = []
        index = self._add(value, lambda new: make[0](new))
        names = []
        for key, item in list((getattr_dict(value) or {}).items()):
            if type(item) in CONTAINERS or is_state(item):
                continue
            source = self._reference(item, key)
            if source is not None:
                names.append(key)
                self.recipe.slots.append((index, key, source))
        for key in slot_names(cls):
            item = getattr(value, key, None)
            if type(item) not in CONTAINERS and self._reference(item, key) is not None:
                names.append(key)
        # Without anything private below it, the object itself is as good.
        make.append(shared_layer(value, cls, names) if names else lambda new: value)
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
        if ignores_its_object(function):
            return None
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


def ignores_its_object(function: Any) -> bool:
    """Tell whether a method of the framework never looks at `self`, so that one is enough."""
    if not isinstance(function, FunctionType) or not function.__module__.startswith(FRAMEWORKS):
        return False
    return _ignores_its_object(function.__code__)


@lru_cache(maxsize=1024)  # the framework's own methods, which are not many
def _ignores_its_object(code: CodeType) -> bool:
    name = code.co_varnames[0]
    if name in code.co_cellvars or "__class__" in code.co_freevars:
        return False
    used = [item.argval for item in dis.get_instructions(code)]
    return not any(name == value or (type(value) is tuple and name in value) for value in used)


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
