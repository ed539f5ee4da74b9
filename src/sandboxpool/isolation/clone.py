"""Private apps as clones of one app."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Mapping
from typing import Any, Literal

import attrs

from sandboxpool._exceptions import LifespanStartupError
from sandboxpool._lifespan import Lifespan
from sandboxpool._types import ASGIApp

from ._data import copy_plain
from ._per_loop import Failures, PerLoop
from ._rules import Options, Reset
from ._sandbox import AppSandbox
from ._stand_in import original_class
from ._template import Template

__all__ = ("CloneFactory",)

_LAYERS_AT_MOST = 50


@attrs.define(eq=False)
class _Life:
    """What a factory has in one event loop.

    The lifespan that runs once is there only if it has started. Its own template, for what has
    changed since a clone was made is counted there, and threads must not count in each other's.
    """

    template: Template
    asked: bool = True
    lifespan: Lifespan | None = None
    state: Mapping[str, Any] = attrs.field(factory=dict)
    each: dict[AppSandbox, tuple[Lifespan, Template]] = attrs.field(factory=dict)
    failures: Failures = attrs.field(factory=Failures)

    def release(self) -> None:
        """Let the template be an ordinary app again, as far as this loop is concerned."""
        self.template.release()
        for _, template in self.each.values():
            template.release()


class CloneFactory:
    """Makes each sandbox a copy of one app, the template.

    A clone has everything of its own that carries requests: the app, its routers, mounts and
    mounted apps, its middleware objects, its state. Leaf routes, endpoints and opaque objects
    are shared. No constructor is called again.

    Args:
        app: The template.
        lifespan: `"once"` runs the lifespan on the template, and its state reaches every
            request as a copy; `"each"` runs it for every clone; `"off"` does not run it.
        reset: What happens between two requests: `"restore"` makes the clone as it was after
            start-up, `"keep"` leaves everything, a callable is called with the sandbox. With
            `"fresh"` the pool is told to use no sandbox twice, and nothing is reset.
        keep: What survives a restore: `"state.cache"`, or an attribute of the app.
        share: What stays common to all clones although it is plain data.
        middleware: By class or name: `"copy"`, `"share"`, or `"fresh"` (construct it again).
        name: What errors call the app.

    Raises:
        OptionError: An option cannot mean anything.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        lifespan: Literal["once", "each", "off"] = "once",
        reset: Reset = "restore",
        keep: Iterable[str] = (),
        share: Iterable[str] = (),
        middleware: Mapping[type | str, str] | None = None,
        name: str = "app",
    ) -> None:
        self.app = app
        self.name = name
        self._options = Options(
            lifespan=lifespan, reset=reset, keep=keep, share=share, middleware=middleware or {}
        )
        self._mode = lifespan
        self._lives = PerLoop(self._new_life, _Life.release)

    def __repr__(self) -> str:
        return f"<CloneFactory of {self.name}>"

    def _new_life(self) -> _Life:
        return _Life(Template(self.app, self, self._options.rules))

    @property
    def lifespan_state(self) -> Mapping[str, Any]:
        """What the lifespan that runs once, in this event loop, put into `scope["state"]`."""
        life = self._lives.get()
        return {} if life is None else life.state

    async def start(self) -> None:
        """Start the template, and find out what a clone consists of.

        Raises:
            LifespanStartupError: The app did not start.
            OptionError: A name in the options matches nothing in the app.
        """
        await self._start(asked=True)

    async def start_unasked(self) -> None:
        """Start the template although the server sends no lifespan events.

        An app of Starlette's family relies on its lifespan, so it is run all the same. Whether
        any other app takes part is not known, and it may do anything with a scope that it does
        not expect, so it is left alone, as it would be without us.

        Raises:
            LifespanStartupError: The app did not start.
            OptionError: A name in the options matches nothing in the app.
        """
        await self._start(asked=False)

    async def _start(self, *, asked: bool) -> None:
        life = self._lives.here()
        life.asked = asked
        relies = _has_lifespan(self.app)
        try:
            if self._mode == "once" and (asked or relies):
                lifespan = Lifespan(self.app, name=self.name)
                await lifespan.startup()
                if asked and relies and lifespan.refusal is not None:
                    raise self._refused(lifespan.refusal) from lifespan.refusal
                life.lifespan = lifespan
                life.state = lifespan.state
            recipe = life.template.compile()
            self._options.check(self.app, recipe)
            if self._mode != "each":
                self._options.tell(recipe, life.state, self.name)
        except BaseException:
            await self.stop()
            raise

    def _refused(self, refusal: BaseException) -> LifespanStartupError:
        return LifespanStartupError(f"{self.name} failed to start: {refusal!r}")

    async def stop(self) -> None:
        """Stop the template; with the last event loop that used it, it is an ordinary app again.

        Raises:
            LifespanShutdownError: The app did not stop in order, or, where each clone has a
                lifespan, some of the last ones did not.
        """
        life = self._lives.pop()
        if life is None:
            return
        life.release()
        if life.lifespan is not None:
            await life.lifespan.shutdown()
        life.failures.raise_any(self.name)

    def life(self) -> _Life:
        """Return what `create_in()` needs to make clones for this event loop in another one."""
        return self._lives.here()

    async def create(self) -> AppSandbox:
        """Return a new clone."""
        return await self.create_in(self._lives.here())

    async def create_in(self, life: _Life) -> AppSandbox:
        """Return a new clone for the event loop of *life*, which may run in another thread.

        A lifespan of its own runs in the loop that runs here.
        """
        if (
            self._mode == "each"
            and (life.asked or _has_lifespan(self.app))
            and _runs_in_lifespan(self.app)
        ):
            return await self._create_with_lifespan(life)
        sandbox = AppSandbox(self, self._options.rules, life.template)
        sandbox.lifespan_state = life.state
        return sandbox

    async def _create_with_lifespan(self, life: _Life) -> AppSandbox:
        life.failures.clear()
        # Two steps: what the lifespan starts with is a clone, and so is what requests run in.
        recipe, new = life.template.build()
        for index, key, source in recipe.states:
            new[index].__dict__[key] = recipe.make_state(copy_plain(dict(source), {}))
        app = new[recipe.root] if recipe.root is not None else self.app
        lifespan = Lifespan(app, name=self.name)
        await lifespan.startup()
        if life.asked and _has_lifespan(app) and lifespan.refusal is not None:
            raise self._refused(lifespan.refusal) from lifespan.refusal
        template = Template(app, self, self._options.rules)
        self._options.tell(template.compile(), lifespan.state, self.name)
        sandbox = AppSandbox(self, self._options.rules, template)
        sandbox.lifespan_state = lifespan.state
        # What holds the original template reaches the clone as well.
        sandbox.aliases = {original: id(new[index]) for original, index in recipe.apps.items()}
        life.each[sandbox] = lifespan, template
        return sandbox

    def reset(self, sandbox: AppSandbox, /) -> Awaitable[None] | None:
        """Make a clone as it was after start-up."""
        return sandbox.reset()

    async def destroy(self, sandbox: AppSandbox, /) -> None:
        """End a clone.

        Raises:
            LifespanShutdownError: Its own lifespan did not stop in order.
        """
        await self.destroy_in(self._lives.get(), sandbox)

    async def destroy_in(self, life: _Life | None, sandbox: AppSandbox) -> None:
        """End a clone that `create_in()` has made."""
        await sandbox.aclose()
        lifespan, template = (None, None) if life is None else life.each.pop(sandbox, (None, None))
        if life is not None and lifespan is not None and template is not None:
            template.release()
            try:
                await lifespan.shutdown()
            except BaseException as error:
                life.failures.note(error, self.name)
                raise


def _has_lifespan(app: Any) -> bool:
    """Tell whether there is an app of Starlette's family, perhaps behind middleware objects."""
    for _ in range(_LAYERS_AT_MOST):
        if hasattr(getattr(app, "router", app), "lifespan_context"):
            return True
        app = getattr(app, "app", None)
        if app is None:
            break
    return False


def _runs_in_lifespan(app: Any) -> bool:
    """Tell whether a lifespan of the app would do anything; in doubt it would.

    Only a plain app of Starlette or FastAPI, with no lifespan, handlers or middleware, shows that
    it would not. To skip its lifespan makes a clone in microseconds rather than milliseconds.
    """
    router: Any = getattr(app, "router", None)
    plain = (
        original_class(type(app)).__module__ in ("starlette.applications", "fastapi.applications")
        and type(router).__module__ in ("starlette.routing", "fastapi.routing")
        and not app.user_middleware
    )
    return not plain or not _is_default(router.lifespan_context)


def _is_default(context: Any) -> bool:
    """Tell whether a lifespan context is the one of an app, or routers, that were given none."""
    if type(context).__name__ == "_DefaultLifespan":
        router = context._router
        return not getattr(router, "on_startup", None) and not getattr(router, "on_shutdown", None)
    # FastAPI joins the contexts of an app and of the routers that it includes.
    inner: Any = getattr(context, "__wrapped__", None)
    if getattr(inner, "__qualname__", "").startswith("_merge_lifespan_context."):
        return all(_is_default(cell.cell_contents) for cell in inner.__closure__ or ())
    return False
