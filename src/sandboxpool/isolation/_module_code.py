"""What private modules are made from: specs and code objects, found and compiled once."""

from __future__ import annotations

import copy
import importlib
import sys
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, ModuleSpec
from importlib.util import module_from_spec
from types import CodeType, ModuleType
from typing import Any

import attrs

from sandboxpool._exceptions import OptionError

from ._importer import internal

# A second copy of these would not know the first one's classes, and nothing would fit together.
_NEVER_PRIVATE = frozenset(
    {"anyio", "attr", "attrs", "fastapi", "greenlet", "pydantic", "pydantic_core", "sandboxpool"}
    | {"sniffio", "starlette", "trio", "typing_extensions", "uvloop"}
)


@attrs.frozen
class ModuleCode:
    """What the copies of one module are made from.

    Attributes:
        spec: How the import system has found it.
        code: Its body; `None` if its loader has none to give, and executes it by itself.
        extension: Whether it is written in C, so that it cannot exist twice.
        key: Which module this is, in the whole process.
    """

    spec: ModuleSpec
    code: CodeType | None
    extension: bool
    key: tuple[str, str]

    def new_module(self) -> ModuleType:
        """Return a new module, whose body has not run yet."""
        spec = copy.copy(self.spec)
        if type(spec.submodule_search_locations) is list:
            # This list becomes the `__path__` of the module, which its body may change.
            spec.submodule_search_locations = list(spec.submodule_search_locations)
        return module_from_spec(spec)

    @internal
    def execute(self, module: ModuleType) -> None:
        """Execute the body of the module in *module*."""
        if self.code is not None:
            exec(self.code, module.__dict__)
        elif self.spec.loader is not None:
            self.spec.loader.exec_module(module)


def find_spec(name: str, path: Iterable[str] | None) -> ModuleSpec | None:
    """Return how the import system finds a module, without importing a package around it.

    Args:
        name: The full name of the module.
        path: The `__path__` of its package, `None` for a module outside of any.
    """
    for finder in tuple(sys.meta_path):
        find: Any = getattr(finder, "find_spec", None)
        if find is None or getattr(finder, "finds_stand_ins", False):
            continue
        spec: ModuleSpec | None = find(name, path, None)
        if spec is not None:
            return spec
    return None


def find_code(name: str, path: Iterable[str] | None) -> ModuleCode | None:
    """Return what a module is made from, compiled through its own loader; `None` if there is none.

    Raises:
        SyntaxError: Its source is not Python; as the import system raises it.
    """
    spec = find_spec(name, path)
    if spec is None:
        return None
    loader: Any = spec.loader
    extension = isinstance(loader, ExtensionFileLoader) or str(spec.origin).endswith(
        tuple(EXTENSION_SUFFIXES)
    )
    get_code = None if extension else getattr(loader, "get_code", None)
    code = None if get_code is None else get_code(name)
    # To ask for this has it computed, once for all copies of the spec.
    _ = spec.cached
    return ModuleCode(spec, code, extension, (name, str(spec.origin)))


def find_statically(name: str) -> ModuleSpec | None:
    """Return how a module is found from the top, by the files of the packages around it."""
    path: Iterable[str] | None = None
    spec: ModuleSpec | None = None
    parts = name.split(".")
    for depth in range(1, len(parts) + 1):
        spec = find_spec(".".join(parts[:depth]), path)
        if spec is None:
            return None
        path = spec.submodule_search_locations
        if path is None and depth < len(parts):
            return None
    return spec


def check_packages(app: str, packages: tuple[str, ...], shared: tuple[str, ...]) -> tuple[str, ...]:
    """Return the packages whose modules are private.

    Args:
        app: The name of the module that the app is in.
        packages: What was asked for; nothing means the top-level package of the app.
        shared: Names of modules that shall exist once.

    Raises:
        OptionError: A package cannot be private, or a module cannot be shared.
    """
    private = packages or (app.partition(".")[0],)
    for name in private:
        _check_package(name, "packages" if packages else "")
    if not is_in(app, private):
        raise OptionError(
            f"packages={packages!r} has not the module of the app, {app!r}, so that all sandboxes "
            f"would share it: add {app.partition('.')[0]!r}, or leave out packages=."
        )
    for name in shared:
        _check_shared(name, app, private)
    return private


def is_in(name: str, packages: Iterable[str]) -> bool:
    """Tell whether a module is one of *packages*, or in one."""
    return any(name == package or name.startswith(f"{package}.") for package in packages)


def _check_package(name: object, option: str) -> None:
    shown = f"{option}: {name!r}" if option else f"the app's own package {name!r}"
    if not isinstance(name, str) or not all(map(str.isidentifier, name.split("."))):
        raise OptionError(f"{shown} is no name of a package: give names like 'shop'.")
    top = name.partition(".")[0]
    if top == "__main__":
        raise OptionError(
            f"{shown} is the script that was started, which cannot be imported: put the app into "
            "a module, and name that one."
        )
    if top in sys.stdlib_module_names or top in _NEVER_PRIVATE:
        whose = "the standard library's" if top in sys.stdlib_module_names else "the framework's"
        raise OptionError(
            f"{shown} is {whose}, whose modules are shared by everything in the process: name "
            "packages of your own."
        )
    if option and find_statically(name) is None:
        raise OptionError(
            f"{shown} cannot be found. Is its folder on the import path? ({len(sys.path)} folders, "
            f"the first is {sys.path[0] or 'the current one'!r})"
        )


def _check_shared(name: object, app: str, private: tuple[str, ...]) -> None:
    if not isinstance(name, str) or not is_in(name, private):
        raise OptionError(
            f"shared: {name!r} is in none of the private packages, {', '.join(private)}: modules "
            "outside of them are shared anyway."
        )
    if is_in(app, (name,)):
        raise OptionError(
            f"shared: {name!r} has the app itself, {app!r}, so that nothing would be private: name "
            "modules that the app imports."
        )
    if find_statically(name) is None:
        siblings = _siblings(name)
        close = get_close_matches(name, siblings, 1)
        raise OptionError(
            f"shared: there is no module {name!r}"
            + (f", did you mean {close[0]!r}?" if close else ": give names like 'shop.db'.")
        )


def _siblings(name: str) -> list[str]:
    from pkgutil import iter_modules

    package = name.rpartition(".")[0]
    spec = find_statically(package) if package else None
    path = None if spec is None else spec.submodule_search_locations
    return [f"{package}.{found.name}" for found in iter_modules(path)] if path else []


class ModuleCodes:
    """The code of the private modules of one app; each is found and compiled once."""

    def __init__(self) -> None:
        self._found: dict[tuple[str, tuple[str, ...]], ModuleCode] = {}
        self._named: dict[str, ModuleCode] = {}

    def get(self, name: str, path: Iterable[str] | None) -> ModuleCode | None:
        """Return what a module is made from, `None` if there is no such module."""
        key = (name, () if path is None else tuple(path))
        found = self._found.get(key)
        if found is None:
            found = find_code(name, path)
            if found is None:
                return None
            self._named[name] = found
            # The path of a namespace package follows the folders that there are.
            if type(found.spec.submodule_search_locations) in (list, type(None)):
                self._found[key] = found
        return found

    def fresh(self, name: str, path: Iterable[str] | None) -> ModuleCode | None:
        """Return what a module is made from now, for it alone."""
        importlib.invalidate_caches()
        return find_code(name, path)

    def named(self, name: str) -> ModuleCode | None:
        """Return what a module was made from, or would be."""
        found = self._named.get(name)
        if found is None:
            spec = find_statically(name)
            path = None if spec is None else _path_of(spec)
            found = None if spec is None else self.get(name, path)
        return found


def _path_of(spec: ModuleSpec) -> Iterable[str] | None:
    """Return the path that a module was found on."""
    parent = spec.name.rpartition(".")[0]
    around = find_statically(parent) if parent else None
    return None if around is None else around.submodule_search_locations


def facts(spec: ModuleSpec) -> Mapping[str, Any]:
    """Return the attributes of a module that are known before its body runs."""
    known: dict[str, Any] = {
        "__name__": spec.name,
        "__doc__": None,
        "__package__": spec.parent,
        "__loader__": spec.loader,
        "__spec__": spec,
    }
    if spec.submodule_search_locations is not None:
        known["__path__"] = spec.submodule_search_locations
    if spec.has_location:
        known["__file__"] = spec.origin
    return known
