"""What the sandboxes of an app have in common: the code of their modules, and shared modules.

Some modules must exist once, because they are written in C, because the user says so, or because
they register something that a library takes only once, such as a table of SQLModel. The first
copy of such a module serves all sandboxes, together with what it needs of other private modules.
"""

from __future__ import annotations

import logging
import threading
from types import ModuleType
from typing import TYPE_CHECKING, Any

from sandboxpool._exceptions import ModuleIsolationError

from . import _module_stand_in as stand_ins
from ._importer import of_module
from ._module_code import ModuleCode, ModuleCodes, is_in

if TYPE_CHECKING:
    from ._private_modules import PrivateModules

logger = logging.getLogger("sandboxpool.modules")

_Key = tuple[str, str]

# Whose objects and classes are entered into a registry of the process when a module defines them,
# which says nothing if the name is there, and goes on with the one or the other.
_REGISTRIES = ("celery.", "django.db.models.")

_once: dict[_Key, tuple[Any, tuple[str, ...]]] = {}
"""Modules that exist once in this process, with the names of all that is shared with them.

A library's registry knows them until the process ends, whichever app has imported them.
"""
_firsts: dict[_Key, Any] = {}
"""The first copy of each module, until another sandbox has executed it without an error."""
_passed: set[_Key] = set()
"""The modules that were executed twice without an error."""
_changing = threading.RLock()


class ModuleSpace:
    """What the sandboxes of one app have in common.

    Args:
        app: The module that the app is in.
        packages: The private packages.
        shared: Modules of them that exist once.
        name: What messages call the app.

    Attributes:
        shared: The shared modules so far, by name.
        needs: Which private modules a module has imported in its body.
        known: The modules whose needs are known, because their bodies have run.
        codes: What they are made from.
    """

    def __init__(
        self, app: str, packages: tuple[str, ...], shared: tuple[str, ...], name: str
    ) -> None:
        self.app = app
        self.packages = packages
        self.tops = frozenset(package.partition(".")[0] for package in packages)
        self.asked = shared
        self.name = name
        self.shared: dict[str, Any] = {}
        self.needs: dict[str, set[str]] = {}
        self.known: set[str] = set()
        self.codes = ModuleCodes()
        self._owned: dict[str, bool] = {}
        self._told: set[str] = set()

    def __repr__(self) -> str:
        return f"<ModuleSpace of {self.name}>"

    def owns(self, name: str) -> bool:
        """Tell whether a module is private, or would be if it were not shared."""
        owned = self._owned.get(name)
        if owned is None:
            owned = self._owned[name] = is_in(name, self.packages)
        return owned

    # --- sharing ------------------------------------------------------------------------------

    def adopt(self, code: ModuleCode) -> Any:
        """Return the module, if it exists once and has been executed."""
        name = code.spec.name
        with _changing:
            if name in self.shared:
                return self.shared[name]
            if code.key not in _once and (code.extension or is_in(name, self.asked)):
                plain = _plain(code)
                if plain is not None:
                    self._share(code, plain, {name, *_plain_needs(name, plain, self)}, None)
            if code.key not in _once:
                return None
            module, names = _once[code.key]
            for other in names:
                found = self.codes.named(other)
                if found is not None and found.key in _once:
                    self.shared.setdefault(other, _once[found.key][0])
            self.shared[name] = module
            self._tell(code, names, "")
        stand_ins.install(code.spec, self, None)
        return module

    def executed(self, code: ModuleCode, module: Any, modules: PrivateModules) -> None:
        """Take note of a module whose body has run; share it if it must exist once."""
        name = code.spec.name
        with _changing:
            if name in self.shared:
                return
            # The same body defines the same things: one look at them is enough.
            registry = "" if name in self.known else self._registry(name, module)
            self.known.add(name)
            if code.extension or registry or is_in(name, self.asked):
                names = self._closure(name)
                self._refuse_app(code, names, registry or "it is to exist once", None)
                for other in sorted(names):
                    found = self.codes.named(other)
                    member = modules.find(other)
                    if found is not None and member is not None:
                        self._enter(found, member, names, modules)
                self._tell(code, tuple(names), registry)
                _cut(self.shared, names, modules)
            elif code.key not in _passed:
                _firsts.setdefault(code.key, module)

    def passed(self, code: ModuleCode, modules: PrivateModules) -> None:
        """Take note that a sandbox was made with a module; if it is the second, it is no first."""
        with _changing:
            first = _firsts.get(code.key)
            if first is not None and first is not modules.modules.get(code.spec.name):
                _passed.add(code.key)
                del _firsts[code.key]

    def share_first(
        self, code: ModuleCode, error: Exception, modules: PrivateModules
    ) -> tuple[str, ...]:
        """Share the first copy of a module that cannot be executed again.

        Returns:
            The names of all that is shared with it; nothing if there is no other copy, or the
            module has been executed twice before, so that this is an error like any other.

        Raises:
            ModuleIsolationError: It cannot be shared.
        """
        name = code.spec.name
        with _changing:
            first = _firsts.get(code.key)
            if first is not None:
                names = self._closure(name)
            else:
                first = None if code.key in _passed else _plain(code)
                if first is None:
                    return ()
                names = {name, *_plain_needs(name, first, self)}
            self._refuse_app(code, names, f"{type(error).__name__}: {error}", error)
            self._share(code, first, names, error)
            self._tell(code, tuple(names), f"{type(error).__name__}: {error}")
            return tuple(names)

    def _share(
        self, code: ModuleCode, first: Any, names: set[str], error: Exception | None
    ) -> None:
        owner = of_module(first)
        members: list[tuple[ModuleCode, Any]] = []
        for name in sorted(names):
            found = code if name == code.spec.name else self.codes.named(name)
            if found is None:
                continue
            # Only what the module itself has imported fits it, no other copy.
            member = first if name == code.spec.name else self.shared.get(name)
            if member is None and owner is None:
                member = _plain(found)
            elif member is None and owner is not None:
                member = owner.modules.get(name)
                if member is None and of_module(_firsts.get(found.key)) is owner:
                    member = _firsts[found.key]
            if member is None:
                raise self.too_late(code.spec.name, [name]) from error
            members.append((found, member))
        for found, member in members:
            self._enter(found, member, names, owner)
        if owner is not None:
            _cut(self.shared, names, owner)

    def _enter(
        self, code: ModuleCode, module: Any, names: set[str], owner: PrivateModules | None
    ) -> None:
        name = code.spec.name
        self.shared[name] = module
        known = _once.get(code.key)
        together = names if known is None else {*names, *known[1]}
        _once[code.key] = module, tuple(sorted(together))
        _firsts.pop(code.key, None)
        if owner is not None:
            owner.adopted.add(name)
            owner.modules.pop(name, None)

    def _closure(self, name: str) -> set[str]:
        """Return a module and all private modules that it needs, directly or not."""
        found, todo = set[str](), [name]
        while todo:
            name = todo.pop()
            if name not in found:
                found.add(name)
                todo.extend(self.needs.get(name, ()))
        return found

    def _refuse_app(
        self, code: ModuleCode, names: set[str], why: str, error: Exception | None
    ) -> None:
        if self.app not in names:
            return
        name = code.spec.name
        needs = "is that" if name == self.app else "needs that"
        raise ModuleIsolationError(
            f"module {name!r} cannot be executed for each sandbox ({why}), and it {needs} of the "
            f"app, {self.app!r}, which all sandboxes would have to share then. Move what must "
            f"exist once into a module of its own that does not import {self.app!r}."
        ) from error

    def too_late(self, name: str, clashes: list[str]) -> ModuleIsolationError:
        """Return the error for what turns out to be shared when a sandbox is in use already."""
        shown = ", ".join(repr(clash) for clash in clashes)
        return ModuleIsolationError(
            f"module {name!r} cannot be executed for a second sandbox, and to share the first one "
            f"is too late: it needs {shown}, of which this sandbox has a copy of its own. Pass "
            f"shared=({name!r},), or import it at the top of a module, so that it is found out "
            "when a sandbox is made."
        )

    def _registry(self, name: str, module: Any) -> str:
        """Return whose registry knows what a module defines; nothing if there is none."""
        for value in list(getattr(module, "__dict__", {}).values()):
            of = getattr(type(value), "__module__", "")
            if of.startswith(_REGISTRIES) and not any(
                value is other
                for need in self.needs.get(name, ())
                for other in getattr(self.shared.get(need), "__dict__", {}).values()
            ):
                return f"{of.partition('.')[0]} knows what it defines in the whole process"
        return ""

    def _tell(self, code: ModuleCode, names: tuple[str, ...], why: str) -> None:
        name = code.spec.name
        unasked = sorted(n for n in names if not is_in(n, self.asked) and n not in self._told)
        self._told.update(names)
        if not unasked or (code.extension and unasked == [name]):
            return
        needed = [other for other in unasked if other != name]
        remedy = f"shared={tuple(unasked)!r} says that this is meant"
        if name in unasked:
            logger.warning(
                "module %r of %s cannot be executed for each sandbox%s: all sandboxes share the "
                "first one%s. Their globals are private to nobody. %s.",
                name,
                self.name,
                f" ({why})" if why else "",
                f", and what it imports: {', '.join(needed)}" if needed else "",
                remedy,
            )
        else:
            logger.warning(
                "module %r of %s is shared by all sandboxes and imports %s, so that they share "
                "that, too: its globals are private to nobody. %s; import it inside of the "
                "functions that need it, and they find that of the sandbox that calls them.",
                name,
                self.name,
                ", ".join(needed),
                remedy,
            )

    def holds_of(self, modules: PrivateModules) -> bool:
        """Tell whether some of these modules outlive them."""
        with _changing:
            kept = [*self.shared.values(), *_firsts.values()]
        return any(of_module(module) is modules for module in kept)


def _plain(code: ModuleCode) -> Any:
    """Return a module that was imported plainly, before or beside the sandboxes."""
    module = stand_ins.plain(code.spec.name)
    spec = getattr(module, "__spec__", None)
    if spec is None or spec.origin != code.spec.origin or getattr(spec, "_initializing", False):
        return None
    return module if of_module(module) is None else None


def _plain_needs(name: str, module: Any, space: ModuleSpace) -> set[str]:
    """Return the private modules that a module imported plainly has something of."""
    found: set[str] = set()
    todo = [module]
    while todo:
        for value in list(vars(todo.pop()).values()):
            is_module = isinstance(value, ModuleType)
            of = value.__name__ if is_module else getattr(value, "__module__", None)
            if not isinstance(of, str) or of in found or of == name or not space.owns(of):
                continue
            other = stand_ins.plain(of)
            # A package in its namespace is only the way to a module in it.
            if other is not None and not (is_module and hasattr(value, "__path__")):
                found.add(of)
                todo.append(other)
    return found


def _cut(shared: dict[str, Any], names: set[str], owner: PrivateModules) -> None:
    """Let shared modules hold no modules of the sandbox that they come from, but stand-ins."""
    for name in names:
        space = getattr(shared.get(name), "__dict__", {})
        for key, value in list(space.items()):
            if (
                isinstance(value, ModuleType)
                and of_module(value) is owner
                and value.__name__ not in shared
            ):
                stand_in = stand_ins.current(value.__name__)
                if stand_in is not None:
                    space[key] = stand_in
