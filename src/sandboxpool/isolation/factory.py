"""Private apps as products of the user's own factory function."""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, Literal

import attrs

from sandboxpool._exceptions import AppTypeError
from sandboxpool._lifespan import Lifespan
from sandboxpool._load import is_wsgi
from sandboxpool._types import ASGIApp
from sandboxpool.adapters import adapter_for, adapters
from sandboxpool.adapters.asgi import is_wrapped

from . import _stand_in
from ._data import copy_plain
from ._graph import getattr_dict
from ._per_loop import Failures, PerLoop
from ._rules import Options, Reset
from ._sandbox import AppSandbox
from ._template import Template

__all__ = ("AppFactory",)


@attrs.define(eq=False)
class Product:
    """What one call of the factory function gave.

    Attributes:
        app: The app.
        make: The function that made it.
        lifespan: Its own lifespan, if that runs.
        modules: What it was executed from, if its modules are private.
    """

    app: Any
    make: Any
    lifespan: Lifespan | None = None
    modules: Any = None


@attrs.define(eq=False)
class Life:
    """What a factory has in one event loop.

    Attributes:
        products: The products in use, by sandbox.
        first: The product whose lifespan runs once.
        spare: The same, until it becomes a sandbox.
        state: What that lifespan put into `scope["state"]`.
        from_lifespan: What it put into the state of the app.
        globals: The apps of the factory's module, by id, that stand for the sandbox's.
        failures: What went wrong at the end of sandboxes.
    """

    owner: AppFactory
    products: dict[AppSandbox, Product] = attrs.field(factory=dict)
    first: Product | None = None
    spare: Product | None = None
    state: Mapping[str, Any] = attrs.field(factory=dict)
    from_lifespan: dict[str, Any] = attrs.field(factory=dict)
    globals: dict[int, Any] = attrs.field(factory=dict)
    failures: Failures = attrs.field(factory=Failures)

    def release(self) -> None:
        """Let all apps be themselves again, as far as this loop is concerned."""
        for app in self.globals.values():
            _stand_in.remove(app, self.owner)
        for sandbox in self.products:
            sandbox.template.release()


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
        self._options = Options(
            lifespan=lifespan, reset=reset, keep=keep, share=share, middleware=middleware or {}
        )
        self._mode = lifespan
        self._lives = PerLoop(lambda: Life(self), Life.release)
        self._checked = False

    def __repr__(self) -> str:
        return f"<AppFactory of {self.name}>"

    @property
    def lifespan_state(self) -> Mapping[str, Any]:
        """What the lifespan that runs once, in this event loop, put into `scope["state"]`."""
        life = self._lives.get()
        return {} if life is None else life.state

    async def start(self) -> None:
        """Start the first product, if the lifespan runs once.

        Raises:
            LifespanStartupError: The app did not start.
            AppTypeError: The factory function returned no app.
        """
        if self._mode != "once":
            return
        life = self._lives.here()
        product = await self._make()
        state = _state_dict(product.app)
        before = dict(state or {})
        lifespan = await self._start(product)
        life.state = lifespan.state
        life.from_lifespan = {
            key: value
            for key, value in (_state_dict(product.app) or {}).items()
            if key not in before or before[key] is not value
        }
        life.first = life.spare = product

    async def stop(self) -> None:
        """Stop the first product, and let the module's apps be themselves again.

        Raises:
            LifespanShutdownError: The app did not stop in order, or, where each product has a
                lifespan, some of the last ones did not.
        """
        life = self._lives.pop()
        if life is None:
            return
        life.release()
        if life.first is not None and life.first.lifespan is not None:
            try:
                await life.first.lifespan.shutdown()
            finally:
                self._discard(life.first)
        life.failures.raise_any(self.name)

    async def _start(self, product: Product) -> Lifespan:
        """Run the lifespan of a product."""
        product.lifespan = Lifespan(product.app, name=self.name)
        try:
            await product.lifespan.startup()
        except BaseException:
            self._discard(product)
            raise
        return product.lifespan

    def _discard(self, product: Product) -> None:
        """Give up what a product was made from, once it has ended or failed."""

    async def _make(self) -> Product:
        return await self._call(self.make)

    async def _call(self, make: Any) -> Product:
        """Return what a factory function makes, checked."""
        made: Any = make()
        if inspect.isawaitable(made):
            made = await made
        shown = getattr(make, "__qualname__", repr(make))
        if made is None or isinstance(made, type) or not callable(made):
            raise AppTypeError(
                f"the factory {shown} returned {made!r}, which is not an ASGI app: "
                "return a new app from every call."
            )
        if is_wsgi(made):
            raise AppTypeError(
                f"the factory {shown} returned {made!r}, which looks like a WSGI app: pass "
                "wsgi=True."
            )
        if is_wrapped(made):
            raise AppTypeError(
                f"the factory {shown} returned {made!r}, which is wrapped already: a second pool "
                "would only queue in front of the first. Return the app itself, and pass all "
                "options to the wrap() that takes the factory."
            )
        if any(product.app is made for product in self._in_use()):
            raise AppTypeError(
                f"the factory {shown} returned the same {type(made).__name__} twice: "
                "build a new app in every call, or wrap the app itself instead."
            )
        return Product(made, make)

    def _in_use(self) -> Iterator[Product]:
        for life in self._lives.all():
            yield from tuple(life.products.values())
            if life.first is not None:
                yield life.first

    async def create(self) -> AppSandbox:
        """Call the factory function, and return a sandbox of what it made.

        Raises:
            LifespanStartupError: The product did not start.
            AppTypeError: The factory function returned no app, or one that it returned before.
        """
        return await self.create_in(self._lives.here())

    def life(self) -> Life:
        """Return what `create_in()` needs to make sandboxes for this event loop in another one."""
        return self._lives.here()

    async def create_in(self, life: Life) -> AppSandbox:
        """Return a sandbox for the event loop of *life*, which may run in another thread.

        The factory function and a lifespan of the product run in the loop that runs here.
        """
        life.failures.clear()
        product, life.spare = life.spare, None
        if product is None:
            product = await self._make()
            if self._mode == "each":
                await self._start(product)
            elif life.from_lifespan:
                state = _state_dict(product.app)
                if state is not None:
                    state.update(copy_plain(dict(life.from_lifespan), {}))
        try:
            return self._wrap(product, life)
        except BaseException:
            if product is not life.first:
                try:
                    if product.lifespan is not None:
                        await product.lifespan.shutdown()
                finally:
                    self._discard(product)
            raise

    def _wrap(self, product: Product, life: Life) -> AppSandbox:
        template = Template(product.app, self, self._options.rules)
        recipe = template.compile()
        if not self._checked:
            self._options.check(product.app, recipe)
            self._checked = True
        sandbox = self._sandbox_of(product, template)
        found = self._globals_of(product, life)
        self._find_globals(product, recipe.apps, found)
        sandbox._globals = found
        for app in found.values():
            if app is not product.app:
                template.also_overrides(app)
        if self._mode == "each" and product.lifespan is not None:
            sandbox.lifespan_state = product.lifespan.state
        else:
            sandbox.lifespan_state = life.state
        self._options.tell(recipe, sandbox.lifespan_state, self.name)
        life.products[sandbox] = product
        return sandbox

    def _sandbox_of(self, product: Product, template: Template) -> FactorySandbox:
        return FactorySandbox(self, self._options.rules, template)

    def _globals_of(self, product: Product, life: Life) -> dict[int, Any]:
        """Return where the apps of the factory's module are noted that stand for this product."""
        return life.globals

    def _find_globals(
        self, product: Product, inside: Mapping[int, int], found: dict[int, Any]
    ) -> None:
        """Make the apps in the factory's module stand for the product of the request.

        `app = create_app()` at the end of a module is what other modules import. Only apps of
        the product's own class count, and none that is a part of the product.
        """
        app, make = product.app, product.make
        while isinstance(make, partial):
            make = make.func
        make = inspect.unwrap(getattr(make, "__func__", make))
        cls = _stand_in.original_class(type(app))
        for value in list(getattr(make, "__globals__", {}).values()):
            if (
                _stand_in.original_class(type(value)) is cls
                and any(adapter.is_app(value) for adapter in adapters())
                and (value is app or id(value) not in inside)
                and id(value) not in found
                and _stand_in.install(value, self)
            ):
                found[id(value)] = value

    def reset(self, sandbox: AppSandbox, /) -> Awaitable[None] | None:
        """Make a sandbox as it was after start-up."""
        return sandbox.reset()

    async def destroy(self, sandbox: AppSandbox, /) -> None:
        """End a sandbox and its product.

        Raises:
            LifespanShutdownError: Its own lifespan did not stop in order.
        """
        await self.destroy_in(self._lives.get(), sandbox)

    async def destroy_in(self, life: Life | None, sandbox: AppSandbox) -> None:
        """End a sandbox that `create_in()` has made."""
        product = None if life is None else life.products.pop(sandbox, None)
        await sandbox.aclose()
        if life is None or product is None:
            return
        try:
            if product.lifespan is not None and product is not life.first:
                await product.lifespan.shutdown()
        except BaseException as error:
            life.failures.note(error, self.name)
            raise
        finally:
            sandbox.template.release()
            adapter_for(product.app).forget(product.app)
            if product is not life.first:
                self._discard(product)


def _state_dict(app: Any) -> dict[str, Any] | None:
    state = (getattr_dict(app) or {}).get("state")
    adapter = adapter_for(state)
    return adapter.state_dict(state) if adapter.is_state(state) else None
