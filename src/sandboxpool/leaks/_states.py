"""What a request has changed in the private app of a sandbox: its states, objects, containers.

A sandbox knows how its app was after start-up, because its reset puts that back. This compares
with what the reset goes by, right before it does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any
from weakref import ref

from sandboxpool.isolation._graph import getattr_dict
from sandboxpool.isolation._plan import FRAMEWORKS
from sandboxpool.isolation._recipe import Recipe
from sandboxpool.isolation._sandbox import AppSandbox

from ._compare import compare_containers, compare_value, computed_names
from ._difference import ABSENT, Difference

# What frameworks build when it is asked for, besides what they keep under private names.
_LAZY = frozenset({"middleware_stack", "openapi_schema"})

_RECIPES_AT_MOST = 1000
_paths_by_recipe: dict[int, tuple[ref[Recipe], dict[int, str]]] = {}


def changed_in_app(sandbox: AppSandbox) -> Iterator[Difference]:
    """Yield what differs from how the private app was after start-up."""
    if not sandbox._armed:
        return
    paths = _known_paths(sandbox)
    kept = sandbox._rules.kept_states
    for entry in sandbox._states:
        if not entry.private.idle:
            path = f"{paths.get(entry.index, 'app')}.{entry.key}"
            yield from _state(path, entry.source, entry.private, kept)
    yield from _attributes(sandbox, paths)
    containers = list(zip(sandbox._lists, sandbox._olds, strict=False))
    if sandbox._wild is not None:
        containers += sandbox._wild._written
    calm = sandbox._calm
    if calm is not None:
        containers += [(container, type(container)()) for container in calm._empty if container]
        full = [sandbox._new[index] for index in sandbox._recipe.plan.full]
        containers += zip(full, calm._known, strict=True)
    names = {id(sandbox._new[index]): path for index, path in paths.items()}
    for container, before in containers:
        path = names.get(id(container), f"a {type(container).__qualname__} of the app")
        yield from compare_containers(path, before, container)


def _state(
    path: str, source: Mapping[str, Any], private: Any, kept: tuple[str, ...]
) -> Iterator[Difference]:
    # Not by its own methods: they are for the code of the request.
    names = list(dict.keys(private))
    for name in names:
        read, now = private.peek(name)
        if not read or name in kept:
            continue
        before = source.get(name, ABSENT)
        yield from compare_value(f"{path}.{name}", before, now)
    for name, before in source.items():
        if name not in names:
            yield Difference(f"{path}.{name}", "removed", before, ABSENT)


def _attributes(sandbox: AppSandbox, paths: Mapping[int, str]) -> Iterator[Difference]:
    recipe, new = sandbox._recipe, sandbox._new
    snapshots = {} if sandbox._wild is None else sandbox._wild.snapshots
    kept = sandbox._rules.kept_attributes
    calm = sandbox._calm is not None and not sandbox._calm.changed()
    for index in recipe.plan.wild_nodes if calm else recipe.nodes:
        values = getattr_dict(new[index])
        if values is None or index not in paths:
            continue
        before = snapshots.get(id(values))
        if before is None:
            before = sandbox._expected(index)
        ours = new[index] is sandbox.app
        cls = recipe.objects[index][0]
        framework = cls.__module__.startswith(FRAMEWORKS)
        computed = computed_names(cls)
        for name in [*before, *(name for name in values if name not in before)]:
            then, now = before.get(name, ABSENT), values.get(name, ABSENT)
            if name in computed or (framework and (name.startswith("_") or name in _LAZY)):
                continue
            if name == "dependency_overrides":
                # A lease begins with those that the template has right now.
                then = getattr_dict(recipe.originals[index])[name]  # type: ignore[index]
            if then is not now and not (ours and name in kept):
                yield from compare_value(f"{paths[index]}.{name}", then, now)


def _known_paths(sandbox: AppSandbox) -> dict[int, str]:
    recipe = sandbox._recipe
    known = _paths_by_recipe.get(id(recipe))
    if known is None or known[0]() is not recipe:
        if len(_paths_by_recipe) >= _RECIPES_AT_MOST:
            _paths_by_recipe.clear()
        known = _paths_by_recipe[id(recipe)] = ref(recipe), _paths(sandbox)
    return known[1]


def _paths(sandbox: AppSandbox) -> dict[int, str]:
    """Return what to call each private object and container, by its index.

    Framework objects are named by the way from the app to them, those of the app's own classes by
    their class, `shop.main.Audit()`: middleware lies deep in a stack that nobody knows by heart.
    """
    recipe = sandbox._recipe
    if recipe.root is None:
        return {}
    below: dict[int, list[tuple[Any, int]]] = {}
    for target, key, source in recipe.patches:
        below.setdefault(target, []).append((key, source))
    for target, key, source in recipe.slots:
        if source >= 0:
            below.setdefault(target, []).append((key, source))
    found = {recipe.root: "app"}
    rest = [recipe.root]
    for index in rest:
        for key, source in below.get(index, ()):
            if source in found:
                continue
            cls = recipe.objects.get(source, (None,))[0]
            if cls is not None and not cls.__module__.startswith(FRAMEWORKS):
                found[source] = f"{cls.__module__}.{cls.__qualname__}()"
            elif isinstance(key, str) and key.isidentifier():
                found[source] = f"{found[index]}.{key}"
            else:
                found[source] = f"{found[index]}[{key!r}]"
            rest.append(source)
    return found
