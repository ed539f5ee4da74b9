"""Private apps as clones of one app."""

from __future__ import annotations

from collections.abc import Awaitable, Iterable, Mapping
from typing import Any, Literal

from sandboxpool._lifespan import Lifespan
from sandboxpool._types import ASGIApp

from ._data import copy_plain
from ._rules import Options, Reset
from ._sandbox import AppSandbox
from ._template import Template

__all__ = ("CloneFactory",)


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
        self.lifespan_state: Mapping[str, Any] = {}
        self._options = Options(
            lifespan=lifespan, reset=reset, keep=keep, share=share, middleware=middleware or {}
        )
        self._mode = lifespan
        self._template = Template(app, self, self._options.rules)
        self._lifespan: Lifespan | None = None
        self._each: dict[AppSandbox, tuple[Lifespan, Template]] = {}

    def __repr__(self) -> str:
        return f"<CloneFactory of {self.name}>"

    async def start(self) -> None:
        """Start the template, and find out what a clone consists of.

        Raises:
            LifespanStartupError: The app did not start.
            OptionError: A name in the options matches nothing in the app.
        """
        if self._mode == "once":
            lifespan = Lifespan(self.app, name=self.name)
            await lifespan.startup()
            self._lifespan = lifespan
            self.lifespan_state = lifespan.state
        try:
            self._options.check(self.app, self._template.compile())
        except BaseException:
            await self.stop()
            raise

    async def stop(self) -> None:
        """Stop the template; it is an ordinary app again.

        Raises:
            LifespanShutdownError: The app did not stop in order.
        """
        self._template.release()
        lifespan, self._lifespan = self._lifespan, None
        if lifespan is not None:
            await lifespan.shutdown()

    async def create(self) -> AppSandbox:
        """Return a new clone."""
        if self._mode == "each":
            return await self._create_with_lifespan()
        return self.build()

    def build(self) -> AppSandbox:
        """Return a new clone of the template."""
        sandbox = AppSandbox(self, self._options.rules, self._template)
        sandbox.lifespan_state = self.lifespan_state
        return sandbox

    async def _create_with_lifespan(self) -> AppSandbox:
        # Two steps: what the lifespan starts with is a clone, and so is what requests run in.
        recipe, new = self._template.build()
        for index, key, source in recipe.states:
            new[index].__dict__[key] = recipe.make_state(copy_plain(dict(source), {}))
        app = new[recipe.root] if recipe.root is not None else self.app
        lifespan = Lifespan(app, name=self.name)
        await lifespan.startup()
        template = Template(app, self, self._options.rules)
        sandbox = AppSandbox(self, self._options.rules, template)
        sandbox.lifespan_state = lifespan.state
        # What holds the original template reaches the clone as well.
        for original, index in recipe.apps.items():
            twin = sandbox.apps.get(id(new[index]))
            if twin is not None:
                sandbox.apps[original] = twin
        self._each[sandbox] = lifespan, template
        return sandbox

    def reset(self, sandbox: AppSandbox, /) -> Awaitable[None] | None:
        """Make a clone as it was after start-up."""
        return sandbox.reset()

    async def destroy(self, sandbox: AppSandbox, /) -> None:
        """End a clone.

        Raises:
            LifespanShutdownError: Its own lifespan did not stop in order.
        """
        await sandbox.aclose()
        lifespan, template = self._each.pop(sandbox, (None, None))
        if lifespan is not None and template is not None:
            template.release()
            await lifespan.shutdown()
