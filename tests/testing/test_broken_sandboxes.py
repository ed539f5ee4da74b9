"""The kits for sandboxes and isolations notice each way of being broken."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

import anyio
import anyio.lowlevel
import pytest

from sandboxpool import LifespanShutdownError, LifespanStartupError
from sandboxpool.abc import ASGIApp, Message, Receive, Sandbox, Scope, Send
from sandboxpool.testing import (
    FactoryConformance,
    ProbeApp,
    SandboxConformance,
    SandboxFactoryConformance,
)

from .kits import impatient, noticed


class SmallSandbox:
    """Puts the attributes of its app back; a test breaks one of its methods at a time."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.before = self.snapshot()

    def snapshot(self) -> dict[str, Any]:
        return {
            name: list(value) if isinstance(value, list) else value
            for name, value in vars(self.app).items()
        }

    def __call__(self, scope: Scope, receive: Receive, send: Send) -> Awaitable[Any]:
        return self.serve(scope, receive, send)

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> Any:
        return await self.app(scope, receive, send)

    def request_state(self, state: dict[str, Any] | None) -> dict[str, Any] | None:
        return None if state is None else dict(state)

    def reset(self) -> None:
        vars(self.app).clear()
        vars(self.app).update(self.before)
        self.before = self.snapshot()

    async def aclose(self) -> None:
        self.app = None


class SmallKit(SandboxConformance):
    """The kit on a sandbox that shares no code with the library's."""

    sandbox_class: ClassVar[type[SmallSandbox]] = SmallSandbox

    async def make_sandbox(self, app: ASGIApp) -> Sandbox:
        return self.sandbox_class(app)


class TestSmallSandbox(SmallKit):
    """A sandbox of somebody else."""


# --- sandboxes that are broken, each in one way -----------------------------------------------


class ReturnsNothing(SmallSandbox):
    async def serve(self, scope: Scope, receive: Receive, send: Send) -> Any:
        result = await super().serve(scope, receive, send)
        return result if result == "done" else None


class WrapsErrors(SmallSandbox):
    async def serve(self, scope: Scope, receive: Receive, send: Send) -> Any:
        try:
            return await super().serve(scope, receive, send)
        except ValueError as error:
            raise type(error)(*error.args) from error


class TrimsTheScope(SmallSandbox):
    async def serve(self, scope: Scope, receive: Receive, send: Send) -> Any:
        return await super().serve(
            {**scope, "headers": dict(scope["headers"]).items()}, receive, send
        )


class Buffers(SmallSandbox):
    """Sends parts of a response together, at its end."""

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> Any:
        parts: list[Message] = []

        async def keep(message: Message) -> None:
            if message.get("body") == b"part":
                parts.append(message)
                return
            while parts:
                await send(parts.pop(0))
            await send(message)

        return await super().serve(scope, receive, keep)


class KnowsItsMessages(SmallSandbox):
    async def serve(self, scope: Scope, receive: Receive, send: Send) -> Any:
        async def known(message: Message) -> None:
            if message["type"] != "http.response.early_hint":
                await send(message)

        return await super().serve(scope, receive, known)


class JoinsTheBody(SmallSandbox):
    async def serve(self, scope: Scope, receive: Receive, send: Send) -> Any:
        async def whole() -> Message:
            message = await receive()
            while message.get("more_body"):
                message = {**message, **await receive()}
            return message

        return await super().serve(scope, whole, send)


class LosesTheReason(SmallSandbox):
    async def serve(self, scope: Scope, receive: Receive, send: Send) -> Any:
        async def short() -> Message:
            message = await receive()
            return {key: value for key, value in message.items() if key != "reason"}

        return await super().serve(scope, short, send)


class SendsInVain(SmallSandbox):
    async def serve(self, scope: Scope, receive: Receive, send: Send) -> Any:
        async def patient(message: Message) -> None:
            try:
                await send(message)
            except OSError:
                pass

        return await super().serve(scope, receive, patient)


class HidesCancellation(SmallSandbox):
    async def serve(self, scope: Scope, receive: Receive, send: Send) -> Any:
        try:
            return await super().serve(scope, receive, send)
        except anyio.get_cancelled_exc_class():
            raise ConnectionError("cancelled") from None


class ResetsOnce(SmallSandbox):
    def reset(self) -> None:
        before = self.before
        super().reset()
        self.before = before  # whose list is now that of the app


class ResetsAfterSuccess(SmallSandbox):
    failed = False

    async def serve(self, scope: Scope, receive: Receive, send: Send) -> Any:
        try:
            result = await super().serve(scope, receive, send)
        except ValueError:
            self.failed = self.app.remembered == "failed"
            raise
        return result

    def reset(self) -> None:
        if not self.failed:
            super().reset()
        self.failed = False


class OneForAll(SmallSandbox):
    """All run the same app."""

    first: ClassVar[Any] = None
    alive: ClassVar[int] = 0

    def __init__(self, app: Any) -> None:
        if not OneForAll.alive:
            OneForAll.first = app
        OneForAll.alive += 1
        super().__init__(OneForAll.first)

    async def aclose(self) -> None:
        OneForAll.alive -= 1
        await super().aclose()


class LosesState(SmallSandbox):
    def request_state(self, state: dict[str, Any] | None) -> dict[str, Any] | None:
        return {}


class ClosesOnlyClean(SmallSandbox):
    async def aclose(self) -> None:
        if self.app.remembered == "used":
            raise RuntimeError("it was not reset")


SANDBOXES: list[tuple[type[SmallSandbox], set[str]]] = [
    (ReturnsNothing, {"test_return_value"}),
    (WrapsErrors, {"test_exception"}),
    (TrimsTheScope, {"test_scope"}),
    (Buffers, {"test_streaming"}),
    (KnowsItsMessages, {"test_messages_out"}),
    (JoinsTheBody, {"test_messages_in"}),
    (LosesTheReason, {"test_websocket"}),
    (SendsInVain, {"test_refusing_server"}),
    (HidesCancellation, {"test_cancellation"}),
    (ResetsOnce, {"test_reset_forgets"}),
    (ResetsAfterSuccess, {"test_reset_forgets"}),
    (OneForAll, {"test_sandboxes_are_apart", "test_calls_at_the_same_time"}),
    (LosesState, {"test_state_of_the_lifespan"}),
    (ClosesOnlyClean, {"test_close_at_any_time"}),
]


@pytest.mark.parametrize(
    ("broken", "checks"), [pytest.param(*row, id=row[0].__name__) for row in SANDBOXES]
)
async def test_broken_sandbox_is_noticed(broken: type[SmallSandbox], checks: set[str]) -> None:
    """A sandbox that breaks one rule is noticed by the check of that rule."""
    assert await noticed(impatient(SmallKit, sandbox_class=broken), checks) == checks


@pytest.mark.slow
@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
@pytest.mark.parametrize(
    ("broken", "checks"), [pytest.param(*row, id=row[0].__name__) for row in SANDBOXES]
)
async def test_nothing_else_notices_a_broken_sandbox(
    broken: type[SmallSandbox], checks: set[str]
) -> None:
    """The checks of the other rules pass with it: each is about its own."""
    others = [name for name in SmallKit.names() if name not in checks]
    assert await noticed(impatient(SmallKit, sandbox_class=broken), others) == set()


# --- isolations -------------------------------------------------------------------------------


class SmallIsolation:
    """Makes an app for each sandbox, and runs its lifespan; a test breaks one method at a time."""

    def __init__(self, make_app: Callable[[], Any]) -> None:
        self.make_app = make_app
        self.lives: dict[SmallSandbox, Life] = {}
        self.failures: list[LifespanShutdownError] = []

    async def start(self) -> None:
        self.failures.clear()

    async def start_unasked(self) -> None:
        await self.start()

    async def stop(self) -> None:
        if self.failures:
            raise self.failures[0]

    async def create(self) -> SmallSandbox:
        app = self.make_app()
        life = Life(app)
        await life.start()
        sandbox = SmallSandbox(app)
        self.lives[sandbox] = life
        return sandbox

    def reset(self, sandbox: SmallSandbox) -> None:
        sandbox.reset()

    async def destroy(self, sandbox: SmallSandbox) -> None:
        await self.lives.pop(sandbox).stop()
        await sandbox.aclose()


class Life:
    """The lifespan of one app, in as few steps as it can be."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.said: list[str] = []

    async def start(self) -> None:
        self.steps = self.app({"type": "lifespan"}, self.receive, self.send)
        self.go()
        if "lifespan.startup.failed" in self.said:
            raise LifespanStartupError("failed")

    async def stop(self) -> None:
        self.go()
        if "lifespan.shutdown.failed" in self.said:
            raise LifespanShutdownError("failed")

    def go(self) -> None:
        try:
            self.steps.send(None)
        except StopIteration:
            pass

    async def receive(self) -> Message:
        if self.said:
            await Pause()
        return {}

    async def send(self, message: Message) -> None:
        self.said.append(message["type"])


class Pause:
    """Ends a step of a lifespan."""

    def __await__(self) -> Any:
        yield


class IsolationKit(SandboxFactoryConformance):
    """The kit on an isolation that shares no code with the library's."""

    isolation_class: ClassVar[type[SmallIsolation]] = SmallIsolation

    def make_sandbox_factory(self, make_app: Callable[[], ASGIApp]) -> Any:
        return self.isolation_class(make_app)


class TestSmallIsolation(IsolationKit):
    """An isolation of somebody else."""


class StartsOnce(SmallIsolation):
    started = False

    async def start(self) -> None:
        if self.started:
            raise RuntimeError("it was started before")
        self.started = True


class StopsNotUnused(SmallIsolation):
    made = False

    async def create(self) -> SmallSandbox:
        self.made = True
        return await super().create()

    async def stop(self) -> None:
        if not self.made:
            raise RuntimeError("it has made nothing")


class NeedsToBeAsked(SmallIsolation):
    asked = True

    async def start_unasked(self) -> None:
        self.asked = False

    async def create(self) -> SmallSandbox:
        assert self.asked
        return await super().create()


class LeavesLifespans(SmallIsolation):
    async def destroy(self, sandbox: SmallSandbox) -> None:
        life = self.lives.pop(sandbox)
        life.steps.close()
        await sandbox.aclose()
        # It says so where it failed, at least.
        if life.app._lifespans.failing:
            raise LifespanShutdownError("not even tried")


class HidesFailedStart(SmallIsolation):
    async def create(self) -> SmallSandbox:
        try:
            return await super().create()
        except LifespanStartupError as error:
            raise RuntimeError("failed") from error


class HidesFailedStop(SmallIsolation):
    async def destroy(self, sandbox: SmallSandbox) -> None:
        try:
            await super().destroy(sandbox)
        except LifespanShutdownError:
            pass


class SharesWhenBusy(SmallIsolation):
    """Makes no third app."""

    async def create(self) -> SmallSandbox:
        sandbox = await super().create()
        if len(self.lives) == 3:
            sandbox.app = next(iter(self.lives)).app
        return sandbox


class RemembersFailures(SmallIsolation):
    """Does not reset after a request that raised."""

    def reset(self, sandbox: SmallSandbox) -> None:
        if sandbox.app.remembered != "_raises":
            super().reset(sandbox)


class KeepsWhatWasCutOff(SmallIsolation):
    """Gives the next sandbox the app of one that was retired in use."""

    left: Any = None

    async def create(self) -> SmallSandbox:
        sandbox = await super().create()
        if self.left is not None:
            sandbox.app.remembered = self.left
        return sandbox

    async def destroy(self, sandbox: SmallSandbox) -> None:
        left = sandbox.app.remembered
        self.left = left if left in ("_is_cut_off", "_is_cancelled") else None
        await super().destroy(sandbox)


ISOLATIONS: list[tuple[type[SmallIsolation], set[str]]] = [
    (StartsOnce, {"test_starts_again"}),
    (
        StopsNotUnused,
        {
            "test_stop_without_sandboxes",
            # Left out once the factory is there, which is then stopped unused.
            "test_cancelled_create_leaves_nothing",
            "test_check",
            "test_destroy_leaves_nothing",
        },
    ),
    (NeedsToBeAsked, {"test_start_unasked"}),
    (LeavesLifespans, {"test_lifespans_end"}),
    (HidesFailedStart, {"test_app_that_does_not_start"}),
    (HidesFailedStop, {"test_app_that_does_not_stop"}),
    (SharesWhenBusy, {"test_requests_at_the_same_time", "test_in_a_pool"}),
    (RemembersFailures, {"test_nothing_is_left_behind"}),
    (KeepsWhatWasCutOff, {"test_nothing_is_left_behind_by_force"}),
]


@pytest.mark.parametrize(
    ("broken", "checks"), [pytest.param(*row, id=row[0].__name__) for row in ISOLATIONS]
)
async def test_broken_isolation_is_noticed(broken: type[SmallIsolation], checks: set[str]) -> None:
    """An isolation that breaks one rule is noticed by the check of that rule."""
    assert await noticed(impatient(IsolationKit, isolation_class=broken), checks) == checks


@pytest.mark.slow
@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
@pytest.mark.parametrize(
    ("broken", "checks"), [pytest.param(*row, id=row[0].__name__) for row in ISOLATIONS]
)
async def test_nothing_else_notices_a_broken_isolation(
    broken: type[SmallIsolation], checks: set[str]
) -> None:
    """The checks of the other rules pass with it: each is about its own."""
    others = [name for name in IsolationKit.names() if name not in checks]
    assert await noticed(impatient(IsolationKit, isolation_class=broken), others) == set()


def test_every_check_of_sandboxes_has_a_broken_sandbox() -> None:
    """No check of the two kits could be left out without something broken that slips through."""
    caught = {check for _, checks in SANDBOXES for check in checks}
    assert caught == set(SandboxConformance.names())
    caught |= {check for _, checks in ISOLATIONS for check in checks}
    assert caught >= set(SandboxFactoryConformance.names()) - set(FactoryConformance.names())


async def test_kits_without_a_sandbox() -> None:
    """Kits that make nothing say which method is missing."""
    with pytest.raises(NotImplementedError, match=r"make_sandbox\(\) returns one of yours"):
        await SandboxConformance().make_sandbox(ProbeApp())
    with pytest.raises(NotImplementedError, match=r"make_sandbox_factory\(\) returns yours"):
        SandboxFactoryConformance().make_sandbox_factory(ProbeApp)
