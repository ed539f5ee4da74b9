"""What stands in `sys.modules` under the names of private modules.

Much of Python finds a module there by its name: `sys.modules[__name__]`, `pickle`, `copy`,
`typing.get_type_hints()`, the namespaces of dataclasses and pydantic models, `inspect`. There is
one entry for all sandboxes, so a stand-in is put there, whose attributes are those of the module
of the sandbox whose code asks. All of it is undone when the last app that needs it stops.
"""

from __future__ import annotations

import dis
import importlib
import sys
import threading
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import TYPE_CHECKING, Any

import attrs

from sandboxpool._exceptions import AppImportError, PrivateModuleError

from . import _import_effects as effects
from ._importer import asking, internal, live, of_module
from ._module_code import facts, find_spec

if TYPE_CHECKING:
    from ._shared_modules import ModuleSpace

_ABSENT: Any = object()
_IMPORT_FROM = dis.opmap["IMPORT_FROM"]


class ModuleStandIn(ModuleType):
    """Stands for the module of whichever sandbox asks.

    Outside of any sandbox it stands for the module that was imported plainly, if there is one.
    """

    def __getattribute__(self, name: str) -> Any:
        target = _target(self, name)
        if target is not None:
            return getattr(target, name)
        own = ModuleType.__getattribute__(self, "__dict__")
        if name == "__dict__":
            return own
        if name == "__class__":
            return ModuleType
        # What is known before the body of a module runs; many tools look at these of all modules.
        if name.startswith("__") and name in own:
            return own[name]
        inner = plain(f"{own['__name__']}.{name}")
        if inner is not None:
            return inner
        raise _missing(own["__name__"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        target = _target(self, name)
        if target is None:
            own = ModuleType.__getattribute__(self, "__name__")
            if name in ("__spec__", "__loader__") or value is sys.modules.get(f"{own}.{name}"):
                return  # the import system, on its way to import it, or a module of it
            raise _missing(own, name)
        if name == "__spec__" and isinstance(getattr(value, "loader", None), _StandInLoader):
            return
        if type(value) is ModuleStandIn:
            # The import system makes modules attributes of their packages.
            found = _target(value, "")
            value = value if found is None else found
        setattr(target, name, value)

    def __delattr__(self, name: str) -> None:
        target = _target(self, name)
        if target is None:
            raise _missing(ModuleType.__getattribute__(self, "__name__"), name)
        delattr(target, name)

    def __dir__(self) -> list[str]:
        target = _target(self, "__dir__")
        own = ModuleType.__getattribute__(self, "__dict__")
        return sorted(own if target is None else dir(target))

    def __repr__(self) -> str:
        target = _target(self, "__repr__")
        if target is not None:
            return repr(target)
        return f"<module {ModuleType.__getattribute__(self, '__name__')!r}, private to sandboxes>"


def _target(stand_in: ModuleStandIn, attribute: str) -> Any:
    """Return the module that a stand-in stands for here; `None` if there is none."""
    name: str = ModuleType.__getattribute__(stand_in, "__dict__")["__name__"]
    modules = asking(name)
    if modules is not None:
        found = modules.find(name)
        if found is None and attribute == "__spec__":
            # An import statement of other code looks at this first, and executes nothing itself.
            found = modules.load(name)
        return found
    entry = _entries.get(name)
    if entry is None:
        return None
    if entry.plain is not _ABSENT:
        return entry.plain
    for space in entry.spaces:
        if name in space.shared:
            return space.shared[name]
    return None


def _missing(name: str, attribute: str) -> Exception:
    modules = asking(name)
    if modules is not None:
        failure = modules.failures.get(name)
        return PrivateModuleError(
            f"module {name!r} has no attribute {attribute!r} here: the sandbox whose code asks for "
            + (
                f"it failed to import that module ({failure})."
                if failure
                else "it has not imported that module. Import it first."
            )
        )
    text = (
        f"module {name!r} is private: each sandbox has its own, and this code runs in none, so "
        f"that {attribute!r} could be that of any. Use it in code of the app, ask a sandbox "
        f"(sandbox.modules[{name!r}]), or import it before the app starts, to have one apart."
    )
    frame = sys._getframe(2)
    code = frame.f_code.co_code
    if 0 <= frame.f_lasti < len(code) and code[frame.f_lasti] == _IMPORT_FROM:
        # The statement makes a text of its own of an `AttributeError`.
        return AppImportError(text, name=name)
    return PrivateModuleError(text)


@attrs.define(eq=False)
class _Entry:
    """The stand-in under one name.

    Attributes:
        stand_in: The stand-in.
        plain: What was in `sys.modules` before.
        spaces: The apps that need it.
        package: The package around it that is not private, with an attribute to take back.
        attribute: What that was before.
    """

    stand_in: ModuleStandIn
    plain: Any
    spaces: list[ModuleSpace] = attrs.field(factory=list)
    package: Any = None
    attribute: Any = _ABSENT


_entries: dict[str, _Entry] = {}
_open: list[ModuleSpace] = []
"""The apps that are started, one as many times as it is, in several event loops."""
_changing = threading.RLock()


def install(spec: ModuleSpec, space: ModuleSpace, package: Any) -> ModuleStandIn:
    """Put a stand-in into `sys.modules`, if there is none.

    Args:
        spec: How the module was found.
        space: The app that needs it.
        package: The package around the module, if any.
    """
    name = spec.name
    with _changing:
        entry = _entries.get(name)
        if entry is None:
            stand_in = ModuleStandIn(name)
            ModuleType.__getattribute__(stand_in, "__dict__").update(facts(spec))
            entry = _entries[name] = _Entry(stand_in, sys.modules.get(name, _ABSENT))
        elif sys.modules.get(name) is not entry.stand_in and name in sys.modules:
            entry.plain = sys.modules[name]  # imported plainly since then
        if space not in entry.spaces:
            entry.spaces.append(space)
        sys.modules[name] = entry.stand_in
        if package is not None and entry.package is None and of_module(package) is None:
            child = name.rpartition(".")[2]
            entry.package, entry.attribute = package, vars(package).get(child, _ABSENT)
        return entry.stand_in


def give_up(name: str) -> None:
    """Take a stand-in away if no sandbox has the module, because it could not be imported."""
    with _changing:
        entry = _entries.get(name)
        if entry is not None and not any(
            modules.find(name) is not None for modules in live() if modules.owns(name)
        ):
            _take_away(name, entry)


def keep(name: str, stand_in: ModuleStandIn) -> Any:
    """Put a stand-in back that the body of a module has replaced; return by what, if it has."""
    with _changing:
        found = sys.modules.get(name)
        if found is stand_in:
            return None
        sys.modules[name] = stand_in
        return found


def current(name: str) -> ModuleStandIn | None:
    """Return the stand-in under a name, if there is one."""
    entry = _entries.get(name)
    return None if entry is None else entry.stand_in


def plain(name: str) -> Any:
    """Return the module that was imported plainly, `None` without one."""
    with _changing:
        entry = _entries.get(name)
        if entry is not None:
            return None if entry.plain is _ABSENT else entry.plain
        return sys.modules.get(name)


def open_space(space: ModuleSpace) -> None:
    """Begin to stand in for the modules of an app."""
    with _changing:
        if not _open:
            _install_all()
        _open.append(space)
        # Imported plainly before: other code of a sandbox that imports them finds its own, too.
        for name, module in list(sys.modules.items()):
            spec = getattr(module, "__spec__", None)
            if spec is not None and space.owns(name) and type(module) is not ModuleStandIn:
                install(spec, space, None)


def close_space(space: ModuleSpace) -> None:
    """Undo one `open_space()`; the last one of an app takes its stand-ins away."""
    with _changing:
        _open.remove(space)
        if space in _open:
            return
        for name, entry in list(_entries.items()):
            if space in entry.spaces:
                entry.spaces.remove(space)
                if not entry.spaces:
                    _take_away(name, entry)
        if not _open:
            _remove_all()


def _take_away(name: str, entry: _Entry) -> None:
    del _entries[name]
    if sys.modules.get(name) is entry.stand_in:
        if entry.plain is _ABSENT:
            del sys.modules[name]
        else:
            sys.modules[name] = entry.plain
    child = name.rpartition(".")[2]
    if entry.package is not None and vars(entry.package).get(child) is entry.stand_in:
        if entry.attribute is _ABSENT:
            delattr(entry.package, child)
        else:
            setattr(entry.package, child, entry.attribute)


class _StandInLoader:
    """Lets code outside of the private packages import a private module by its name."""

    def __init__(self, spec: ModuleSpec) -> None:
        self._spec = spec

    def __getattr__(self, name: str) -> Any:
        return getattr(self._spec.loader, name)

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        modules = asking(spec.name)
        return None if modules is None else install(self._spec, modules.space, None)

    @internal
    def exec_module(self, module: ModuleType) -> None:
        name: str = ModuleType.__getattribute__(module, "__name__")
        modules = asking(name)
        if modules is not None:
            modules.load(name)


class _PlainLoader:
    """Imports a module plainly, for code outside of all sandboxes, and has a stand-in follow it."""

    def __init__(self, spec: ModuleSpec) -> None:
        self._spec = spec

    def __getattr__(self, name: str) -> Any:
        return getattr(self._spec.loader, name)

    @internal
    def exec_module(self, module: ModuleType) -> None:
        spec, loader = self._spec, self._spec.loader
        assert loader is not None
        # The module itself is as if we had not been here.
        module.__spec__, module.__loader__ = spec, loader
        loader.exec_module(module)
        with _changing:
            for space in dict.fromkeys(_open):
                # A module that has put something else into its place is let be.
                if space.owns(spec.name) and sys.modules.get(spec.name) is module:
                    install(spec, space, None)


class _Finder:
    """Finds private modules for the import statements of other code."""

    finds_stand_ins = True

    @staticmethod
    @internal
    def find_spec(
        name: str, path: Sequence[str] | None = None, target: object = None
    ) -> ModuleSpec | None:
        if not any(space.owns(name) for space in _open):
            return None
        spec = find_spec(name, path)
        if spec is None or spec.loader is None:
            return spec
        loader: Any = _PlainLoader(spec) if asking(name) is None else _StandInLoader(spec)
        found = ModuleSpec(name, loader, origin=spec.origin, loader_state=spec.loader_state)
        found.submodule_search_locations = spec.submodule_search_locations
        found.has_location = spec.has_location
        found.cached = spec.cached
        return found


_import_module = importlib.import_module
_reload = importlib.reload


@internal
def _import_privately(name: str, package: str | None = None) -> Any:
    """Import a module, as `importlib.import_module()` does."""
    absolute = name
    if name.startswith(".") and package:
        absolute = f"{package}{name}" if name.strip(".") else package
        if name.startswith(".."):
            absolute = importlib.util.resolve_name(name, package)
    modules = asking(absolute) if any(space.owns(absolute) for space in _open) else None
    if modules is not None:
        return modules.import_module(name, package)
    module = _import_module(name, package)
    if type(module) is ModuleStandIn:
        module = plain(absolute) or module
    return module


@internal
def _reload_privately(module: Any) -> Any:
    """Execute a module again, as `importlib.reload()` does."""
    if type(module) is ModuleStandIn:
        module = _target(module, "__spec__")
    modules = of_module(module)
    if modules is not None:
        return modules.reload(module)
    entry = _entries.get(getattr(module, "__name__", ""))
    if entry is None or entry.plain is not module:
        return _reload(module)
    with _changing:
        sys.modules[module.__name__] = module
        try:
            result = _reload(module)
        finally:
            sys.modules[module.__name__] = entry.stand_in
        return module if result is entry.stand_in else result


for _ours, _theirs in ((_import_privately, _import_module), (_reload_privately, _reload)):
    _ours.__name__, _ours.__qualname__ = _theirs.__name__, _theirs.__qualname__
    _ours.__module__ = "importlib"


def _install_all() -> None:
    sys.meta_path.insert(0, _Finder)
    importlib.import_module = _import_privately
    importlib.reload = _reload_privately
    effects.install()


def _remove_all() -> None:
    if _Finder in sys.meta_path:
        sys.meta_path.remove(_Finder)
    if importlib.import_module is _import_privately:
        importlib.import_module = _import_module
    if importlib.reload is _reload_privately:
        importlib.reload = _reload
    effects.remove()
