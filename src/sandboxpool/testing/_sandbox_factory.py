"""The checks of an isolation: a factory of sandboxes, its life, and what requests leave behind."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio

from sandboxpool._context import current_lease
from sandboxpool._exceptions import (
    FactoryError,
    LifespanShutdownError,
    LifespanStartupError,
)
from sandboxpool._sandboxed import SandboxedApp
from sandboxpool._types import ASGIApp, Receive, Scope, Send
from sandboxpool._wrap import wrap
from sandboxpool.abc import SandboxFactory

from ._conformance import check, expect, leave_out
from ._factory import FactoryConformance
from ._probe_app import Act, Lifespans, ProbeApp, leased, new_call
from ._sandbox import SandboxConformance


class _Failed(Exception):
    """Raised by the app of a check."""


class SandboxFactoryConformance(FactoryConformance, SandboxConformance):
    """The checks of `sandboxpool.abc.SandboxFactory`, and of the sandboxes that it makes.

    Write `make_sandbox_factory()`. Where a sandbox keeps something else private than the
    attributes of its app, write `remember()` and `recall()`, too.
    """

    def make_sandbox_factory(self, make_app: Callable[[], ASGIApp]) -> SandboxFactory:
        """Return a factory of sandboxes of an app of the kit.

        Args:
            make_app: Returns a new app: call it once and isolate that app, or have it called for
                each sandbox.
        """
        raise NotImplementedError(f"{type(self).__name__}.make_sandbox_factory() returns yours")

    # --- what the checks of factories and of sandboxes need -----------------------------------

    def make_factory(self) -> SandboxFactory:
        """Return a factory of sandboxes of a new app of the kit."""
        return self.make_sandbox_factory(ProbeApp)

    @asynccontextmanager
    async def factory(self) -> AsyncIterator[Any]:
        """Hold a factory that was started."""
        self._owner: Any = self.make_factory()
        await self._owner.start()
        try:
            yield self._owner
        finally:
            with anyio.CancelScope(shield=True):
                await self._owner.stop()

    @asynccontextmanager
    async def sandboxes(self, number: int = 1) -> AsyncIterator[list[Any]]:
        """Hold some sandboxes of one factory."""
        async with self.factory() as factory:
            made = [await factory.create() for _ in range(number)]
            try:
                yield made
            finally:
                await self._destroy(factory, *made)

    def app(self, sandbox: Any) -> ASGIApp:
        """Return what is called to have a sandbox serve a call."""
        return leased(sandbox, getattr(self._owner, "lease_owner", self._owner))

    async def use(self, item: Any, value: str) -> None:
        """Leave a value in a sandbox."""
        await self._remember(item, value)

    async def look(self, item: Any) -> object:
        """Return what there is to be found in a sandbox."""
        return await self._recall(item)

    # --- its life -----------------------------------------------------------------------------

    @check
    async def test_starts_again(self) -> None:
        """A factory that was stopped can be started again.

        Contract: "Prepare, before the first `create`."
        """
        factory = self._owner = self.make_factory()
        for _ in range(2):
            await factory.start()
            sandbox = await factory.create()
            await self._recall(sandbox)
            await self._destroy(factory, sandbox)
            await factory.stop()

    @check
    async def test_stop_without_sandboxes(self) -> None:
        """A factory that has made nothing can be stopped.

        Contract: "Clean up, after the last `destroy`."
        """
        factory = self.make_factory()
        await factory.start()
        await factory.stop()

    @check
    async def test_start_unasked(self) -> None:
        """A factory that can start without lifespan events makes sandboxes as ever.

        Contract: "it is called instead of `start()` when the server sends no lifespan events and
        the first request opens the app."
        """
        factory: Any = self.make_factory()
        if not hasattr(factory, "start_unasked"):
            leave_out("the factory has no start_unasked()")
        self._owner = factory
        await factory.start_unasked()
        sandbox = await factory.create()
        await self._recall(sandbox)
        await self._destroy(factory, sandbox)
        await factory.stop()

    @check
    async def test_lifespans_end(self) -> None:
        """Each lifespan of the app that was begun has ended when the factory has stopped.

        Contract: "Clean up, after the last `destroy`."
        """
        lifespans = Lifespans()
        factory = self.make_sandbox_factory(lambda: ProbeApp(lifespans))
        await factory.start()
        made = [await factory.create() for _ in range(2)]
        await self._destroy(factory, *made)
        await factory.stop()
        expect(
            lifespans.started == lifespans.stopped,
            f"{lifespans.started} were started, {lifespans.stopped} were stopped",
        )

    @check
    async def test_app_that_does_not_start(self) -> None:
        """An app whose lifespan fails to start is reported as that, if its lifespan is run.

        Contract: "LifespanStartupError: The app did not start."
        """
        lifespans = Lifespans()
        lifespans.failing = "startup"
        factory = self.make_sandbox_factory(lambda: ProbeApp(lifespans))
        error = None
        try:
            await factory.start()
            await self._destroy(factory, await factory.create())
        except Exception as raised:
            error = raised
        lifespans.failing = None
        if not isinstance(error, LifespanStartupError) or lifespans.started:
            await factory.stop()
        expect(
            error is None or isinstance(error, LifespanStartupError), f"it is reported as {error!r}"
        )

    @check
    async def test_app_that_does_not_stop(self) -> None:
        """An app whose lifespan fails to stop is reported as that, if its lifespan is run.

        Contract: "LifespanShutdownError: The app did not stop in order."
        """
        lifespans = Lifespans()
        lifespans.failing = "shutdown"
        factory = self.make_sandbox_factory(lambda: ProbeApp(lifespans))
        await factory.start()
        sandbox = await factory.create()
        errors: list[Exception] = []
        ends: list[Callable[[], Awaitable[None]]] = [
            lambda: self._destroy(factory, sandbox),
            factory.stop,
        ]
        for end in ends:
            try:
                await end()
            except Exception as error:
                errors.append(error)
        wrong = [error for error in errors if not isinstance(error, LifespanShutdownError)]
        expect(not wrong, f"it is reported as {wrong}")
        expect(errors or not lifespans.started, "nobody is told")

    # --- under wrap() -------------------------------------------------------------------------

    def _wrapped(self, size: int) -> SandboxedApp:
        factory = self.make_factory()
        return wrap(ProbeApp(), isolation=factory, max_size=size, min_size=1, stall_after=None)

    @check
    async def test_requests_at_the_same_time(self) -> None:
        """Requests to a wrapped app that run at the same time each find what they left.

        Contract: "One isolated app: serves one call at a time, and can be made as good as new."
        """
        number, here = 3, 0
        found: dict[str, tuple[object, object]] = {}

        async def ask(name: str) -> None:
            async def act(app: ProbeApp, scope: Scope, receive: Receive, send: Send) -> None:
                nonlocal here
                self.remember(app, name)
                before = self.recall(app)
                here += 1
                while here < number:  # noqa: ASYNC110 - they may be in threads of their own
                    await anyio.sleep(0.001)
                found[name] = before, self.recall(app)
                await _answer(send)

            await new_call().run(app, act)

        async with self._wrapped(number) as app, anyio.create_task_group() as tasks:
            for name in map(str, range(number)):
                tasks.start_soon(ask, name)
        for name, (before, after) in found.items():
            expect(before == after, f"{name} left {before}, and found {after} a moment later")

    @check
    async def test_nothing_is_left_behind(self) -> None:
        """A request to a wrapped app finds nothing of one that returned, raised, or hung up.

        Contract: "Make a sandbox as it was after start-up."
        """
        await self._leaves_nothing(_returns, _raises, _hangs_up)

    @check
    async def test_nothing_is_left_behind_by_force(self) -> None:
        """Nor of one that was cancelled, or cut off by the watchdog.

        Contract: "Make a sandbox as it was after start-up."
        """
        await self._leaves_nothing(_is_cancelled, _is_cut_off)

    async def _leaves_nothing(self, *ends: Act) -> None:
        async with self._wrapped(1) as app:
            new = await self._find(app)
            for end in ends:

                async def leaves(
                    probe: ProbeApp, scope: Scope, receive: Receive, send: Send, end: Act = end
                ) -> None:
                    self.remember(probe, end.__name__)
                    await end(probe, scope, receive, send)

                call = new_call(
                    incoming=[
                        {"type": "http.request", "body": b"", "more_body": False},
                        {"type": "http.disconnect"},
                    ]
                )
                try:
                    with anyio.CancelScope() as call.scope["kit.scope"]:
                        await call.run(app, leaves)
                except (_Failed, FactoryError):
                    pass
                how = end.__name__.strip("_").replace("_", " ")
                for _ in range(2):
                    found = await self._find(app)
                    expect(found == new, f"one that {how} left {found}; there was {new} before it")

    async def _find(self, app: ASGIApp) -> object:
        async def act(probe: ProbeApp, scope: Scope, receive: Receive, send: Send) -> None:
            found.append(self.recall(probe))
            await _answer(send)

        found: list[object] = []
        call = new_call()
        await call.run(app, act)
        expect(found, f"a request was not served: {call.sent}")
        return found[0]


async def _answer(send: Send) -> None:
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def _returns(app: ProbeApp, scope: Scope, receive: Receive, send: Send) -> None:
    await _answer(send)


async def _raises(app: ProbeApp, scope: Scope, receive: Receive, send: Send) -> None:
    raise _Failed("of the app")


async def _hangs_up(app: ProbeApp, scope: Scope, receive: Receive, send: Send) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _is_cancelled(app: ProbeApp, scope: Scope, receive: Receive, send: Send) -> None:
    scope["kit.scope"].cancel()
    await anyio.sleep_forever()


async def _is_cut_off(app: ProbeApp, scope: Scope, receive: Receive, send: Send) -> None:
    current_lease().cancel()
    await anyio.sleep_forever()
