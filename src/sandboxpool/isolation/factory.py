"""Private apps as products of the user's own factory function."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable, Mapping
from functools import partial
from typing import Any, Literal

import attrs

from sandboxpool._exceptions import AppTypeError
from sandboxpool._lifespan import Lifespan
from sandboxpool._types import ASGIApp
from sandboxpool.adapters import adapter_for, adapters
from sandboxpool.adapters.asgi import is_wrapped

from . import _stand_in
from ._data import copy_plain
from ._graph import getattr_dict
from ._rules import Options, Reset
from ._sandbox import AppSandbox
from ._template import Template

__all__ = ("AppFactory",)


@attrs.define(eq=False)
class _Product:
    """What one call of the factory function gave."""

    app: Any
    lifespan: Lifespan | None = None


class FactorySandbox(AppSandbox):
    """A sandbox for which the apps in the factory's module stand, too."""

    __slots__ = ("_globals",)

    _globals: Mapping[int, Any]

    def twin(self, original: Any) -> Any:
        """Return the private twin of an app, this sandbox's app for one of the module."""
        found = self.apps.get(id(original))
        if found is None:
            return self.app if id(original) in self._globals else original
        return found


class AppFactory:
    """Makes each sandbox with a call of a function that returns an app.

    Everything that the function defines is private to a sandbox: closures, function attributes,
    middleware, engines. Requests run in a clone of the product, so that what one of them leaves
    in the app, its state or its middleware is gone for the next. What it leaves in closure
    variables stays until the sandbox is retired; `reset="fresh"` uses no sandbox twice.

    Args:
        make: A function without arguments, plain or `async`, that returns a new ASGI app.
        lifespan: `"each"` runs the lifespan of every product; `"once"` only that of the first,
            whose state reaches the others; `"off"` none.
        reset: As for `CloneFactory`.
        keep: As for `CloneFactory`.
        share: As for `CloneFactory`.
        middleware: As for `CloneFactory`.
        name: What errors call the app.

    Raises:
        OptionError: An option cannot mean anything.
        AppTypeError: *make* cannot be called without arguments.
    """

    def __init__(
        self,
        make: Callable[[], ASGIApp | Awaitable[ASGIApp]],
        *,
        lifespan: Literal["each", "once", "off"] = "each",
        reset: Reset = "restore",
        keep: Iterable[str] = (),
        share: Iterable[str] = (),
        middleware: Mapping[type | str, str] | None = None,
        name: str = "app",
    ) -> None:
        if not callable(make):
            raise AppTypeError(
                f"a factory is a function without arguments that returns an app, got {make!r}."
            )
        self.make = make
        self.name = name
        self.lifespan_state: Mapping[str, Any] = {}
        self._options = Options(
            lifespan=lifespan, reset=reset, keep=keep, share=share, middleware=middleware or {}
        )
        self._mode = lifespan
        self._products: dict[AppSandbox, _Product] = {}
        self._first: _Product | None = None
        self._spare: _Product | None = None
        self._from_lifespan: dict[str, Any] = {}
        self._globals: dict[int, Any] = {}
        self._checked = False

    def __repr__(self) -> str:
        return f"<AppFactory of {self.name}>"

    async def start(self) -> None:
        """Start the first product, if the lifespan runs once.

        Raises:
            LifespanStartupError: The app did not start.
            AppTypeError: The factory function returned no app.
        """
        if self._mode != "once":
            return
        product = await self._make()
        state = _state_dict(product.app)
        before = dict(state or {})
        product.lifespan = Lifespan(product.app, name=self.name)
        await product.lifespan.startup()
        self.lifespan_state = product.lifespan.state
        self._from_lifespan = {
            key: value
            for key, value in (_state_dict(product.app) or {}).items()
            if key not in before or before[key] is not value
        }
        self._first = self._spare = product

    async def stop(self) -> None:
        """Stop the first product, and let the module's apps be themselves again.

        Raises:
            LifespanShutdownError: The app did not stop in order.
        """
        for app in self._globals.values():
            _stand_in.remove(app, self)
        self._globals = {}
        first, self._first, self._spare = self._first, None, None
        if first is not None and first.lifespan is not None:
            await first.lifespan.shutdown()

    async def _make(self) -> _Product:
        made: Any = self.make()
        if inspect.isawaitable(made):
            made = await made
        shown = getattr(self.make, "__qualname__", repr(self.make))
        if made is None or isinstance(made, type) or not callable(made):
            raise AppTypeError(
                f"the factory {shown} returned {made!r}, which is not an ASGI app: "
                "return a new app from every call."
            )
        if is_wrapped(made):
            raise AppTypeError(
                f"the factory {shown} returned {made!r}, which is wrapped already: a second pool "
                "would only queue in front of the first. Return the app itself, and pass all "
                "options to the wrap() that takes the factory."
            )
        live = [*self._products.values(), self._first]
        if any(product is not None and product.app is made for product in live):
            raise AppTypeError(
                f"the factory {shown} returned the same {type(made).__name__} twice: "
                "build a new app in every call, or wrap the app itself instead."
            )
        return _Product(made)

    async def create(self) -> AppSandbox:
        """Call the factory function, and return a sandbox of what it made.

        Raises:
            LifespanStartupError: The product did not start.
            AppTypeError: The factory function returned no app, or one that it returned before.
        """
        product, self._spare = self._spare, None
        if product is None:
            product = await self._make()
            if self._mode == "each":
                product.lifespan = Lifespan(product.app, name=self.name)
                await product.lifespan.startup()
            elif self._from_lifespan:
                state = _state_dict(product.app)
                if state is not None:
                    state.update(copy_plain(dict(self._from_lifespan), {}))
        try:
            return self._wrap(product)
        except BaseException:
            if product.lifespan is not None and product is not self._first:
                await product.lifespan.shutdown()
            raise

    def _wrap(self, product: _Product) -> AppSandbox:
        template = Template(product.app, self, self._options.rules)
        recipe = template.compile()
        if not self._checked:
            self._options.check(product.app, recipe)
            self._checked = True
        sandbox = FactorySandbox(self, self._options.rules, template)
        self._find_globals(product.app, recipe.apps)
        sandbox._globals = self._globals
        for app in self._globals.values():
            if app is not product.app:
                template.also_overrides(app)
        if self._mode == "each" and product.lifespan is not None:
            sandbox.lifespan_state = product.lifespan.state
        else:
            sandbox.lifespan_state = self.lifespan_state
        self._products[sandbox] = product
        return sandbox

    def _find_globals(self, app: Any, inside: Mapping[int, int]) -> None:
        """Make the apps in the factory's module stand for the product of the request.

        `app = create_app()` at the end of a module is what other modules import. Only apps of
        the product's own class count, and none that is a part of the product.
        """
        make: Any = self.make
        while isinstance(make, partial):
            make = make.func
        make = inspect.unwrap(getattr(make, "__func__", make))
        cls = _stand_in.original_class(type(app))
        for value in list(getattr(make, "__globals__", {}).values()):
            if (
                _stand_in.original_class(type(value)) is cls
                and any(adapter.is_app(value) for adapter in adapters())
                and (value is app or id(value) not in inside)
                and id(value) not in self._globals
                and _stand_in.install(value, self)
            ):
                self._globals[id(value)] = value

    def reset(self, sandbox: AppSandbox, /) -> Awaitable[None] | None:
        """Make a sandbox as it was after start-up."""
        return sandbox.reset()

    async def destroy(self, sandbox: AppSandbox, /) -> None:
        """End a sandbox and its product.

        Raises:
            LifespanShutdownError: Its own lifespan did not stop in order.
        """
        product = self._products.pop(sandbox, None)
        await sandbox.aclose()
        if product is None:
            return
        try:
            if product.lifespan is not None and product is not self._first:
                await product.lifespan.shutdown()
        finally:
            sandbox.template.release()
            adapter_for(product.app).forget(product.app)


def _state_dict(app: Any) -> dict[str, Any] | None:
    state = (getattr_dict(app) or {}).get("state")
    adapter = adapter_for(state)
    return adapter.state_dict(state) if adapter.is_state(state) else None
