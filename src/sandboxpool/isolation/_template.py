"""The app that sandboxes are made from, kept in step with what happens to it later."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from sandboxpool._context import current
from sandboxpool.adapters import adapter_for

from . import _stand_in
from ._data import copy_plain
from ._graph import Walk, getattr_dict
from ._recipe import Recipe

if TYPE_CHECKING:
    from ._sandbox import AppSandbox, Rules


class Template:
    """An app that private apps are made from.

    Routes, handlers and attributes that are added to it outside of any request reach every
    sandbox with its next lease, as do dependency overrides, which tests set just like that.

    Attributes:
        app: The app.
        owner: The factory it belongs to.
    """

    def __init__(self, app: Any, owner: object, rules: Rules) -> None:
        self.app = app
        self.owner = owner
        self._rules = rules
        self._stale = True
        self._version = 0
        self._recipe = Recipe()
        self._watched: list[tuple[dict[str, Any], str, Any, int]] = []
        self._overrides: list[tuple[dict[str, Any], int, Any, dict[Any, Any]]] = []
        self._unchanged: Callable[[], bool] = bool
        self._stand_ins: list[Any] = []
        # Sandboxes in threads of their own come to one template from all of them.
        self._changing = threading.RLock()

    def compile(self) -> Recipe:
        """Find what is private, once; again when the app was changed."""
        # Inside of a request the app would answer for the sandbox, and not for itself.
        token = current.set(None)
        try:
            with self._changing:
                return self._compile()
        finally:
            current.reset(token)

    def _compile(self) -> Recipe:
        rules = self._rules
        walk = Walk(rules.policy, rules.shared_attributes, rules.kept_attributes)
        recipe = self._recipe = walk.compile(self.app)
        _plan_fresh(recipe, rules.policy)
        keeps = bool(rules.kept_attributes) and recipe.root is not None
        recipe.make_plan({recipe.root} if keeps else ())
        self._version += 1
        self._watched = []
        self._overrides = []
        for index in recipe.nodes:
            original = recipe.originals[index]
            for values, key in adapter_for(original).watched(original):
                self._watched.append((values, key, values[key], len(values[key])))
            if index in recipe.apps.values():
                values = getattr_dict(original) or {}
                if "dependency_overrides" in values:
                    current = values["dependency_overrides"]
                    self._overrides.append((values, index, current, dict(current or {})))
        for index in recipe.apps.values():
            app = recipe.originals[index]
            if not any(app is known for known in self._stand_ins) and _stand_in.install(
                app, self.owner, self._changed
            ):
                self._stand_ins.append(app)
        self._unchanged = _checker(self._watched, self._overrides)
        self._stale = False
        return recipe

    def also_overrides(self, app: Any) -> None:
        """Honour the dependency overrides that are set on another app for the same sandbox."""
        values = getattr_dict(app) or {}
        if self._recipe.root is not None and "dependency_overrides" in values:
            self._overrides.append((values, self._recipe.root, values["dependency_overrides"], {}))
            self._unchanged = _checker(self._watched, self._overrides)

    def _changed(self, name: str) -> None:
        # Overrides are looked up at every lease anyway.
        if name != "dependency_overrides":
            self._stale = True

    def build(self) -> tuple[Recipe, list[Any]]:
        """Return new private objects, and the recipe that they were made by."""
        return self._build()[:2]

    def _build(self) -> tuple[Recipe, list[Any], int]:
        with self._changing:
            if self._stale:
                self.compile()
            recipe, version = self._recipe, self._version
        return recipe, recipe.build(), version

    def build_into(self, sandbox: AppSandbox) -> None:
        """Give *sandbox* a private app of its own."""
        recipe, new, version = self._build()
        sandbox.fill(recipe, new)
        sandbox.version = version

    def refresh(self, sandbox: AppSandbox) -> None:
        """Bring *sandbox* up to date at the start of a lease."""
        if not self._stale and sandbox.version == self._version and self._unchanged():
            return
        with self._changing:
            for values, key, known, size in self._watched:
                now = values.get(key)
                if now is not known or len(now) != size:
                    self._stale = True
                    break
        if self._stale or sandbox.version != self._version:
            self.build_into(sandbox)
            sandbox.arm()
        for values, index, known, content in self._overrides:
            now = values.get("dependency_overrides")
            if now is not known or now != content:
                sandbox.override(index, now)

    def release(self) -> None:
        """Let the app be itself again."""
        for app in self._stand_ins:
            _stand_in.remove(app, self.owner, self._changed)
        self._stand_ins = []
        self._stale = True


def _checker(watched: list[Any], overrides: list[Any]) -> Callable[[], bool]:
    """Return a function that tells whether a template looks as it did.

    Every request asks this, so the function is written out for this template, without a loop.
    """
    space: dict[str, Any] = {}
    terms = ["True"]
    for number, (values, key, known, size) in enumerate(watched):
        space.update({f"v{number}": values, f"k{number}": known})
        terms.append(f"v{number}[{key!r}] is k{number} and len(k{number}) == {size}")
    for number, (values, _, known, content) in enumerate(overrides):
        space.update({f"w{number}": values, f"o{number}": known, f"c{number}": content})
        terms.append(f"w{number}.get('dependency_overrides') is o{number}")
        if known is not None:
            terms.append(f"o{number} == c{number}" if content else f"not o{number}")
    names = ", ".join(f"{name}={name}" for name in space)
    exec(f"def unchanged({names}): return {' and '.join(terms)}", space)
    unchanged: Callable[[], bool] = space["unchanged"]
    return unchanged


def _plan_fresh(recipe: Recipe, policy: Callable[[type], str]) -> None:
    """Have the constructors of middleware with the policy `"fresh"` called for every clone."""
    by_node = {id(original): index for index, original in enumerate(recipe.originals)}
    for app_index in recipe.apps.values():
        app = recipe.originals[app_index]
        declared = list(adapter_for(app).user_middleware(app))
        layer = (getattr_dict(app) or {}).get("middleware_stack")
        while layer is not None and declared:
            index = by_node.get(id(layer))
            inner = getattr(layer, "app", None)
            for position, entry in enumerate(declared):
                if entry.cls is type(layer):
                    del declared[: position + 1]
                    at = by_node.get(id(inner))
                    if index is not None and at is not None and policy(type(layer)) == "fresh":
                        recipe.fresh.append((index, _remaker(entry, at)))
                    break
            layer = inner


def _remaker(entry: Any, inner: int) -> Callable[[list[Any]], Any]:
    def remake(new: list[Any]) -> Any:
        memo: dict[int, Any] = {}
        args = [copy_plain(value, memo) for value in entry.args]
        more: Mapping[str, Any] = {
            key: copy_plain(value, memo) for key, value in entry.kwargs.items()
        }
        return entry.cls(new[inner], *args, **more)

    return remake
