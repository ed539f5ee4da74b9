"""The modules of one sandbox: what is executed for it alone, and how names find it."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterable
from importlib import _bootstrap
from importlib.util import resolve_name
from threading import get_ident
from types import ModuleType
from typing import Any, cast

from . import _import_effects as effects
from . import _module_stand_in as stand_ins
from ._importer import (
    drop_builtins,
    follow_builtins,
    internal,
    new_builtins,
    without_internals,
)
from ._module_code import ModuleCode
from ._shared_modules import ModuleSpace

# Those of importlib itself, because they know of deadlocks; Python has no public ones.
_ModuleLock: Any = _bootstrap._ModuleLock  # type: ignore[attr-defined] # as said
_DeadlockError: Any = _bootstrap._DeadlockError  # type: ignore[attr-defined] # as said

_locks: dict[str, Any] = {}
"""Held while the body of a module runs, whichever sandbox it is for.

So a body that puts another object into `sys.modules` cannot be taken for one of another sandbox,
and a thread that imports what another one is importing waits. Where that would be a deadlock, it
goes on with what is there, as the import system does.
"""


class BootAgainError(BaseException):
    """Which modules must be shared was learned while a sandbox was made: it has to start over."""


class PrivateModules:
    """The modules of one sandbox.

    Args:
        space: What all sandboxes of the app have in common.
        number: Which sandbox of the app it is, counted from 1.

    Attributes:
        space: The same.
        number: The same.
        modules: The private modules by name, also those whose bodies still run.
        adopted: The names of the shared modules that were imported here.
        loading: The modules whose bodies run now, with the threads that they run in.
        builtins: What they all have for `__builtins__`.
        booting: Whether the sandbox is being made, so that it can still start over.
    """

    def __init__(self, space: ModuleSpace, number: int) -> None:
        self.space = space
        self.tops = space.tops
        self.shared = space.shared
        self.owns = space.owns
        self.modules: dict[str, ModuleType] = {}
        self.adopted: set[str] = set()
        self.loading: dict[str, int] = {}
        self.failures: dict[str, str] = {}
        self.booting = False
        self.closed = False
        self.number = number
        self.effects = effects.ImportEffects()
        self.builtins = new_builtins(self)
        self._blamed: BaseException | None = None
        self._executed: list[ModuleCode] = []

    def __repr__(self) -> str:
        state = "closed" if self.closed else f"{len(self.modules)} modules"
        return f"<PrivateModules of {self.space.name}, {state}>"

    # --- finding ------------------------------------------------------------------------------

    def find(self, name: str) -> Any:
        """Return a module of this sandbox, or one that is shared; `None` if it has none so far."""
        module = self.modules.get(name)
        return self.shared.get(name) if module is None else module

    def _own(self, name: str) -> Any:
        """Return a module that this sandbox has imported."""
        module = self.modules.get(name)
        return self.shared[name] if module is None and name in self.adopted else module

    @internal
    def load(self, name: str) -> ModuleType:
        """Return a module, after importing it and the packages around it if need be.

        Raises:
            ModuleNotFoundError: There is no such module.
            BaseException: Whatever the body of a module raises.
        """
        if name in self.loading:
            self._look_again(name)
        module = self._own(name)
        # While its body runs, only what runs in that thread gets it, by a detour.
        if module is not None and self.loading.get(name, get_ident()) == get_ident():
            return cast("ModuleType", module)
        parent = name.rpartition(".")[0]
        package = None
        if parent:
            package = self.load_any(parent)
        lock: Any = _locks.setdefault(name, _ModuleLock(name))
        try:
            lock.acquire()
        except _DeadlockError:
            lock = None
        try:
            # The package, or another thread, may have imported it meanwhile.
            module = self._own(name)
            return cast("ModuleType", self._execute(name, package) if module is None else module)
        finally:
            if lock is not None:
                lock.release()
            if not self.loading:
                self._settle()

    def _look_again(self, name: str) -> None:
        """Take what the body of a module, which still runs, has put into its own place."""
        entry, module = sys.modules.get(name), self.modules.get(name)
        if (
            self.loading.get(name) == get_ident()
            and entry is not None
            and module is not None
            and entry is not stand_ins.current(name)
        ):
            self.modules[name] = entry
            parent, _, child = name.rpartition(".")
            package = self.find(parent)
            if getattr(package, child, None) is module:
                setattr(package, child, entry)

    def load_any(self, name: str) -> ModuleType:
        """Return a module that may be private: a private package may be in one that is not."""
        return self.load(name) if self.owns(name) else importlib.import_module(name)

    @internal
    def load_named(self, name: str, package: ModuleType, names: Iterable[str]) -> None:
        """Import those modules of a package that an import statement takes out of it by name."""
        for wanted in names:
            if wanted == "*":
                self.load_named(name, package, getattr(package, "__all__", ()))
            elif f"{name}.{wanted}" in self.loading:
                self._look_again(f"{name}.{wanted}")
            elif not hasattr(package, wanted):
                full = f"{name}.{wanted}"
                try:
                    self.load(full)
                except ModuleNotFoundError as error:
                    # The name may be anything; the statement itself complains if it is nothing.
                    if error.name != full or full in self.modules:
                        raise

    def note_import(
        self, importer: object, name: str, module: ModuleType, names: Iterable[str]
    ) -> None:
        """Remember what a module needs of others when it is imported."""
        if importer not in self.loading or importer in self.space.known:
            return
        needs = self.space.needs.setdefault(str(importer), set())
        whole = True
        for wanted in names:
            if self.find(f"{name}.{wanted}") is not None:
                needs.add(f"{name}.{wanted}")
            else:
                whole = False
        if not names or not whole:
            needs.add(name)

    # --- executing ----------------------------------------------------------------------------

    @internal
    def _execute(self, name: str, package: Any) -> Any:
        code = self._code(name, package)
        shared = self.space.adopt(code)
        if shared is not None:
            if self._overlap():
                self._start_over(name, self._overlap())
            self.adopted.add(name)
            self._bind(package, name, shared)
            return shared
        module = code.new_module()
        module.__dict__["__builtins__"] = self.builtins
        stand_in = stand_ins.install(code.spec, self.space, package)
        self.modules[name] = module
        self.loading[name] = get_ident()
        spec = module.__spec__ or code.spec
        spec._initializing = True  # type: ignore[attr-defined] # "partially initialized module"
        # Early, so that `from . import b` finds a module that is not ready, without the entry of
        # `sys.modules` that it would look at next.
        child = name.rpartition(".")[2]
        early = package is not None and child not in getattr(package, "__dict__", {})
        if early:
            self._bind(package, name, module)
        path_before = sys.path.copy()
        try:
            code.execute(module)
        except BaseException as error:
            error.__traceback__ = without_internals(error.__traceback__)
            # What its body has imported for the first time, and nobody else here holds yet.
            inner = list(self.modules)
            inner = inner[inner.index(name) + 1 :] if name in self.modules else []
            partial = self.modules.pop(name, None)
            if early and getattr(package, child, None) is partial:
                delattr(package, child)
            stand_ins.keep(name, stand_in)
            promoted = self._failed(code, error, inner)
            if promoted is None:
                stand_ins.give_up(name)
                raise
            self._bind(package, name, promoted)
            return promoted
        finally:
            self.loading.pop(name, None)
            spec._initializing = False  # type: ignore[attr-defined]
            effects.without_doubles(path_before)
            follow_builtins(self)
        replaced = stand_ins.keep(name, stand_in)
        if replaced is not None:
            # The body has put another object into `sys.modules`: that is the module now.
            module = self.modules[name] = replaced
        self._bind(package, name, module)
        self.failures.pop(name, None)
        self._executed.append(code)
        self.space.executed(code, module, self)
        return self.find(name)

    def _code(self, name: str, package: Any) -> ModuleCode:
        path = None
        if package is not None:
            try:
                path = package.__path__
            except AttributeError:
                raise ModuleNotFoundError(
                    f"No module named {name!r}; {name.rpartition('.')[0]!r} is not a package",
                    name=name,
                ) from None
        code = self.space.codes.get(name, path)
        if code is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return code

    def _bind(self, package: Any, name: str, module: Any) -> None:
        """Make a module an attribute of the package around it."""
        if package is None:
            return
        parent, _, child = name.rpartition(".")
        # A package that is not private has one attribute for all sandboxes.
        value = module if self.owns(parent) else sys.modules[name]
        setattr(package, child, value)

    def _failed(self, code: ModuleCode, error: BaseException, inner: list[str]) -> Any:
        """Return the shared module that stands in for one that cannot be executed again.

        Raises:
            BootAgainError: It and others are shared from now on; start over.
            ModuleIsolationError: It would have to be shared and cannot be.
        """
        if isinstance(error, Exception):
            self.failures[code.spec.name] = f"{type(error).__name__}: {error}"
        if error is self._blamed or isinstance(error, ImportError):
            return None
        self._blamed = error
        if not isinstance(error, Exception):
            return None
        names = self.space.share_first(code, error, self)
        if not names:
            return None
        for name in [name for name in inner if name in self.shared]:
            del self.modules[name]
            self.adopted.add(name)
            self._bind(self.find(name.rpartition(".")[0]), name, self.shared[name])
        if self._overlap():
            self._start_over(code.spec.name, self._overlap(), error)
        self.adopted.add(code.spec.name)
        return self.shared[code.spec.name]

    def _start_over(self, name: str, clashes: list[str], error: Exception | None = None) -> None:
        """Give up on modules that were executed here and turn out to be shared."""
        if self.booting:
            raise BootAgainError from None
        raise self.space.too_late(name, clashes) from error

    def _settle(self) -> None:
        """Note that what was executed can be executed again, once it all has come to its end."""
        executed, self._executed = self._executed, []
        self._blamed = None
        for code in executed:
            self.space.passed(code, self)

    @internal
    def boot(self, name: str) -> ModuleType:
        """Import the module that the app is in.

        Raises:
            BootAgainError: A module must be shared that this sandbox has executed for itself.
            BaseException: Whatever the body of a module raises, without frames of ours.
        """
        self.booting = True
        try:
            module = self.load(name)
            if self._overlap():
                # Another thread's sandbox has found out meanwhile.
                raise BootAgainError
            return module
        except BaseException as error:
            error.__traceback__ = without_internals(error.__traceback__)
            raise error
        finally:
            self.booting = False

    def _overlap(self) -> list[str]:
        return sorted(name for name in self.shared if name in self.modules)

    # --- by hand ------------------------------------------------------------------------------

    def import_module(self, name: str, package: str | None) -> Any:
        """Do what `importlib.import_module()` does; private code gets the private module."""
        absolute = name
        if name.startswith("."):
            absolute = resolve_name(name, package or "")
        return self.load(absolute)

    def reload(self, module: Any) -> Any:
        """Execute a module again in the same namespace, as `importlib.reload()` does."""
        name = module.__spec__.name
        parent = name.rpartition(".")[0]
        package = self.load(parent) if parent and self.owns(parent) else None
        # Its source may have changed, for nobody else: the code is compiled for this once.
        code = self.space.codes.fresh(name, getattr(package, "__path__", None))
        if code is None:
            raise ModuleNotFoundError(f"spec not found for the module {name!r}", name=name)
        self.loading[name] = get_ident()
        try:
            code.execute(module)
        finally:
            self.loading.pop(name, None)
        return self.find(name)

    # --- the end ------------------------------------------------------------------------------

    def close(self) -> None:
        """Give up the modules: call what they registered for the exit, and let them go.

        Whatever still runs keeps what it holds.
        """
        if self.closed:
            return
        self.closed = True
        effects.end(self)
        drop_builtins(self)
        if self.space.holds_of(self):
            # What is shared from here must not keep everything else.
            self.modules.clear()
