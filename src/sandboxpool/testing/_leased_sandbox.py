"""A sandbox that a test has leased: its private app, its modules, and how it is called."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextvars import copy_context
from types import MappingProxyType, ModuleType
from typing import TYPE_CHECKING, Any, TypeVar

import anyio

from sandboxpool._context import RequestLease, current
from sandboxpool._deferred import run_deferred
from sandboxpool._exceptions import LeaseEndedError, OptionError
from sandboxpool._loop import running_loop
from sandboxpool._types import Receive, Scope, Send
from sandboxpool.run._crossing import Crossing
from sandboxpool.run._errand import Port

if TYPE_CHECKING:
    from ._leaks_of_tests import SandboxState
    from ._sandbox_pool import AppInTests

Object = TypeVar("Object")

_NONE: Mapping[str, ModuleType] = MappingProxyType({})


class LeasedSandbox:
    """A private app of a test.

    It is an ASGI app itself: pass it to a `TestClient`, with or without `with`, or to
    `ASGITransport`. Its lifespan runs already, and goes on after the test.
    """

    def __init__(
        self, owner: AppInTests, sandbox: Any, watch: Callable[[Any], SandboxState] | None
    ) -> None:
        self._owner = owner
        self._sandbox = sandbox
        self._watch = None if watch is None else watch(sandbox)
        self._ended = False

    def __repr__(self) -> str:
        state = "ended" if self._ended else "open"
        return f"<LeasedSandbox of {self._owner.name} {state}>"

    @property
    def app(self) -> Any:
        """The private app, such as a FastAPI instance; for a sandbox of yours, the sandbox.

        Raises:
            LeaseEndedError: The lease is over.
        """
        self._check_open()
        return getattr(self._sandbox, "app", self._sandbox)

    @property
    def modules(self) -> Mapping[str, ModuleType]:
        """The private modules that exist so far, by name; empty if modules are shared.

        Raises:
            LeaseEndedError: The lease is over.
        """
        self._check_open()
        found: Mapping[str, ModuleType] = getattr(self._sandbox, "modules", _NONE)
        return found

    def import_module(self, name: str) -> ModuleType:
        """Return the sandbox's own copy of a module, the one to `monkeypatch`.

        Args:
            name: The name of the module, like `"shop.state"`.

        Raises:
            OptionError: Modules are shared, or this one is.
            LeaseEndedError: The lease is over.
        """
        self._check_open()
        importer = getattr(self._sandbox, "private_modules", None)
        if importer is None:
            raise OptionError(
                f"{self!r} has no module {name!r} of its own: its isolation is "
                f"{self._owner.isolation!r}, which shares modules. Use isolation='module', or "
                "import the module as usual."
            )
        if importer.owns(name):
            importer.load(name)
        if name not in self.modules:
            raise OptionError(
                f"{self!r} has no module {name!r} of its own: it has "
                f"{', '.join(sorted(self.modules))}. Import it as usual, or add it with packages=."
            )
        return self.modules[name]

    def own(self, original: Object) -> Object:
        """Return the sandbox's own copy of a function or class of the app's modules.

        With `isolation="module"` the private app depends on its own functions, so that is what
        `app.dependency_overrides` wants as a key. What has no private copy is returned as it is.

        Args:
            original: A function or class, as a test imports it.

        Raises:
            LeaseEndedError: The lease is over.
        """
        module = self.modules.get(getattr(original, "__module__", None) or "")
        found: Any = module
        for name in str(getattr(original, "__qualname__", "")).split("."):
            found = getattr(found, name, None)
        return original if module is None or found is None else found

    # --- serving ------------------------------------------------------------------------------

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> Any:
        """Serve one connection in the private app, wherever its event loop runs.

        Raises:
            LeaseEndedError: The lease is over.
        """
        self._check_open()
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
            return None
        thread = self._owner.thread
        if thread is None:
            return await self._serve(scope, receive, send)
        port = Port(running_loop())
        call = Crossing(thread, port, self._serve, scope, receive, send)
        try:
            return await call.run()
        finally:
            port.close()
            if call.blocks_thread:
                self._owner.leave_behind()

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Whatever a client believes: the app has started, and does not stop with this test.
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                if "state" in scope:
                    scope["state"].update(getattr(self._sandbox, "lifespan_state", {}))
                await send({"type": "lifespan.startup.complete"})
            else:
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> Any:
        """Serve one connection with a lease of its own, as `wrap()` does."""
        owner, sandbox = self._owner, self._sandbox
        lease = RequestLease(owner.lease_owner, sandbox, scope)
        scope["sandboxpool.lease"] = lease
        ask = getattr(sandbox, "request_state", None)
        state = None if ask is None else ask(scope.get("state"))
        if state is not None:
            scope["state"] = state
        token = current.set(lease)
        if self._watch is not None:
            self._watch.begin()
        try:
            # Not by the sandbox, which would take what the test has done to it for a mistake.
            return await self.app(scope, receive, send)
        finally:
            try:
                with anyio.CancelScope(shield=True):
                    await run_deferred(
                        running_loop(),
                        lease,
                        copy_context(),
                        owner.name,
                        owner.defer_timeout,
                        lease._deferred,
                    )
            finally:
                lease.seal()
                current.reset(token)
                if self._watch is not None:
                    self._watch.end()

    # --- its end ------------------------------------------------------------------------------

    def end(self) -> None:
        """End the lease."""
        self._ended = True

    def _check_open(self) -> None:
        if self._ended:
            raise LeaseEndedError(
                f"{self!r}: the test, or the fixture, that leased it is over. Lease another one."
            )
