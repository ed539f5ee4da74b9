"""Private apps whose modules are private: executed for each sandbox."""

from __future__ import annotations

import typing
from collections.abc import Iterable, Mapping
from functools import partial
from itertools import count
from types import MappingProxyType, ModuleType
from typing import Any, Literal
from weakref import ref

import attrs

from sandboxpool._exceptions import AppImportError, AppTypeError, ModuleIsolationError
from sandboxpool._load import load

from . import _module_stand_in as stand_ins
from ._importer import here
from ._module_code import check_packages, find_statically
from ._per_loop import PerLoop
from ._private_modules import BootAgainError, PrivateModules
from ._rules import Reset
from ._sandbox import AppSandbox
from ._shared_modules import ModuleSpace
from ._template import Template
from .factory import AppFactory, FactorySandbox, Life, Product

__all__ = ("ModuleFactory",)

# Each time over, at least one more module is known to be shared.
_BOOTS_AT_MOST = 100


class ModuleSandbox(FactorySandbox):
    """A sandbox with modules of its own.

    Attributes:
        modules: Its private modules by name, also those that a request imports later.
        private_modules: What imports them.
    """

    __slots__ = ("modules", "private_modules")

    modules: Mapping[str, ModuleType]
    private_modules: PrivateModules


@attrs.define(eq=False)
class _ModuleLife(Life):
    """What a `ModuleFactory` has in one event loop."""

    space: Any = None
    opened: bool = False

    def close(self) -> None:
        """Let all apps, and `sys.modules`, be themselves again, as far as this loop goes."""
        self.release()
        if self.opened:
            self.opened = False
            stand_ins.close_space(self.space)


class ModuleFactory(AppFactory):
    """Makes each sandbox by executing the app's own modules for it.

    Whatever these modules define is private to a sandbox: globals, classes and their attributes,
    caches, closures, and the app itself. The standard library, installed packages and modules
    that must exist once are shared. As with a factory, requests run in a clone of the app.

    Args:
        app: An import string, such as `"shop.main:app"`.
        factory: Whether it names a function that makes the app.
        packages: The packages whose modules are private; by default the top-level package of
            the app.
        shared: Modules of these packages that exist once, and what is below them.
        lifespan: As for `AppFactory`.
        reset: As for `AppFactory`.
        keep: As for `AppFactory`.
        share: As for `AppFactory`.
        name: What errors call the app.

    Raises:
        OptionError: An option cannot mean anything.
        AppImportError: There is no such module.
    """

    def __init__(
        self,
        app: str,
        *,
        factory: bool = False,
        packages: Iterable[str] = (),
        shared: Iterable[str] = (),
        lifespan: Literal["each", "once", "off"] = "each",
        reset: Reset = "restore",
        keep: Iterable[str] = (),
        share: Iterable[str] = (),
        name: str = "app",
    ) -> None:
        super().__init__(_never, lifespan=lifespan, reset=reset, keep=keep, share=share, name=name)
        module, packages = app.partition(":")[0], tuple(packages)
        if ":" not in app or not module or module.startswith("."):
            raise AppImportError(
                f'import string {app!r} must be in the form "<module>:<attribute>", '
                'like "shop.main:app".'
            )
        private = check_packages(module, packages, tuple(shared))
        top = module.partition(".")[0]
        if find_statically(top) is None:
            load(app, factory=factory)  # it says what is wrong
        self.app = app
        self.space = ModuleSpace(module, private, tuple(shared), name)
        self._factory = factory
        self._rehearsed = False
        self._first: Any = _reference(None)
        self._numbers = count(1)
        self._lives = PerLoop[Life](self._new_life, _ModuleLife.close)  # type: ignore[arg-type] # its own

    def __repr__(self) -> str:
        return f"<ModuleFactory of {self.name}>"

    def _new_life(self) -> Life:
        life = _ModuleLife(self, space=self.space, opened=True)
        stand_ins.open_space(self.space)
        return life

    async def start(self) -> None:
        """Execute the modules for the first time, to find out which of them must be shared.

        From now on there are stand-ins for them in `sys.modules`.

        Raises:
            LifespanStartupError: The lifespan runs once, and the app did not start.
            ModuleIsolationError: A module can neither be private nor shared.
            BaseException: Whatever the body of a module raises.
        """
        self._lives.here()
        try:
            if not self._rehearsed:
                # Once more than there are sandboxes: what cannot be executed twice shall show
                # now, and not when a second sandbox is made for a request.
                modules, made = self._boot()
                modules.close()
                self._rehearsed, self._first = True, _reference(made)
                del modules, made
            await super().start()
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop the first product, and let `sys.modules` be as it was before.

        Raises:
            LifespanShutdownError: As for `AppFactory.stop()`.
        """
        life = self._lives.get()
        try:
            await super().stop()
        finally:
            if isinstance(life, _ModuleLife):
                life.close()

    async def create_in(self, life: Life) -> AppSandbox:
        """Execute the modules of the app for a new sandbox, in the thread that runs here."""
        before = here.get()
        try:
            return await super().create_in(life)
        finally:
            here.set(before)

    async def _make(self) -> Product:
        modules, made = self._boot()
        if made is self._first():
            modules.close()
            raise AppTypeError(
                f"{self.app!r} is the same {type(made).__name__} for every sandbox: it comes from "
                f"a module that is not private. Add its package to packages="
                f"{self.space.packages!r}, or wrap the app itself instead."
            )
        # The lifespan runs in a task that inherits this.
        here.set(ref(modules))
        try:
            product = await self._call(made if self._factory else partial(_given, made))
        except BaseException:
            modules.close()
            raise
        product.modules = modules
        return product

    def _boot(self) -> tuple[PrivateModules, Any]:
        """Execute the module of the app; return what its import string names."""
        for _ in range(_BOOTS_AT_MOST):
            modules = PrivateModules(self.space, next(self._numbers))
            try:
                made, _ = load(self.app, factory=self._factory, import_module=modules.boot)
            except BootAgainError:
                modules.close()
            except BaseException:
                modules.close()
                raise
            else:
                return modules, made
        raise ModuleIsolationError(
            f"{self.name}: with each try, another of its modules has to be shared."
        )

    def _sandbox_of(self, product: Product, template: Template) -> FactorySandbox:
        sandbox = ModuleSandbox(self, self._options.rules, template)
        sandbox.private_modules = product.modules
        sandbox.modules = MappingProxyType(product.modules.modules)
        return sandbox

    def _globals_of(self, product: Product, life: Life) -> dict[int, Any]:
        return {}

    def _discard(self, product: Product) -> None:
        if product.modules is not None:
            product.modules.close()
            # They keep the last types that they have seen, and with a class all of its module.
            for clear in getattr(typing, "_cleanups", ()):
                clear()


def _given(app: Any) -> Any:
    return app


def _reference(value: Any) -> Any:
    """Return a weak reference, or what looks like a dead one if there can be none."""
    try:
        return ref(value)
    except TypeError:
        return _nothing


def _nothing() -> None:
    return None


def _never() -> Any:
    raise AssertionError
