"""The checks of a sandbox: a call passes through it untouched, and leaves nothing behind."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from threading import Event
from typing import Any

import anyio

from sandboxpool._types import ASGIApp, Message, Receive, Scope, Send
from sandboxpool.abc import Sandbox

from ._cancelling import every_moment
from ._conformance import Conformance, check, expect, leave_out, passes
from ._probe_app import Act, Call, ProbeApp, leased, new_call


class SandboxConformance(Conformance):
    """The checks of `sandboxpool.abc.Sandbox`, which must run in this process.

    Write `make_sandbox()`. Where a sandbox keeps something else private than the attributes of
    its app, write `remember()` and `recall()`, too.
    """

    async def make_sandbox(self, app: ASGIApp) -> Sandbox:
        """Return a sandbox of *app*, which is an app of the kit."""
        raise NotImplementedError(f"{type(self).__name__}.make_sandbox() returns one of yours")

    def remember(self, app: Any, value: str) -> None:
        """Leave *value* where the sandbox keeps it private; called in a request.

        Args:
            app: The app that runs in the sandbox.
            value: What to leave.
        """
        app.remembered = value
        app.values.append(value)

    def recall(self, app: Any) -> object:
        """Return what is to be found there; called in a request."""
        return app.remembered, tuple(app.values)

    # --- how a sandbox is called --------------------------------------------------------------

    @asynccontextmanager
    async def sandboxes(self, number: int = 1) -> AsyncIterator[list[Any]]:
        """Hold some sandboxes."""
        made = [await self.make_sandbox(ProbeApp()) for _ in range(number)]
        try:
            yield made
        finally:
            for sandbox in made:
                await sandbox.aclose()

    def app(self, sandbox: Any) -> ASGIApp:
        """Return what is called to have a sandbox serve a call."""
        return leased(sandbox, self)

    async def _forget(self, sandbox: Any) -> None:
        pending = sandbox.reset()
        if inspect.isawaitable(pending):
            await pending

    async def _run(self, sandbox: Any, act: Act, call: Call | None = None) -> Any:
        return await (call or new_call()).run(self.app(sandbox), act)

    async def _remember(self, sandbox: Any, value: str) -> None:
        async def act(app: ProbeApp, scope: Scope, receive: Receive, send: Send) -> None:
            self.remember(app, value)

        await self._run(sandbox, act)

    async def _recall(self, sandbox: Any) -> object:
        async def act(app: ProbeApp, scope: Scope, receive: Receive, send: Send) -> object:
            found.append(self.recall(app))
            return None

        found: list[object] = []
        await self._run(sandbox, act)
        return found[0]

    # --- what passes through ------------------------------------------------------------------

    @check
    async def test_return_value(self) -> None:
        """What the app returns is returned.

        Contract: "Serve one `http` or `websocket` connection; whatever comes out is handed on."
        """
        value = object()

        async def act(app: ProbeApp, scope: Scope, receive: Receive, send: Send) -> object:
            return value

        async with self.sandboxes() as (sandbox,):
            result = await self._run(sandbox, act)
            expect(result is value, f"the app returned {value!r}, and out came {result!r}")

    @check
    async def test_exception(self) -> None:
        """What the app raises is raised, the very same object.

        Contract: "Serve one `http` or `websocket` connection; whatever comes out is handed on."
        """
        error, raised = ValueError("of the app"), None

        async def act(app: ProbeApp, scope: Scope, receive: Receive, send: Send) -> None:
            await passes(1)
            raise error

        async with self.sandboxes() as (sandbox,):
            try:
                await self._run(sandbox, act)
            except Exception as out:
                raised = out
        expect(raised is error, f"the app raised {error!r}, and out came {raised!r}")

    @check
    async def test_scope(self) -> None:
        """The app finds in the scope what the server has put there.

        Contract: "Serve one `http` or `websocket` connection; whatever comes out is handed on."
        """
        seen: dict[str, Any] = {}

        async def act(app: ProbeApp, scope: Scope, receive: Receive, send: Send) -> None:
            seen.update(scope)

        extra: dict[str, Any] = {"kit.extra": object()}
        call = new_call(
            query_string=b"a=1&b=%20",
            root_path="/root",
            headers=[(b"x-twice", b"1"), (b"x-twice", b"2")],
            extensions={"http.response.trailers": {}},
            **extra,
        )
        given = dict(call.scope)
        async with self.sandboxes() as (sandbox,):
            await self._run(sandbox, act, call)
        given.update(path=seen.get("path"), raw_path=str(seen.get("path")).encode())
        changed = sorted(key for key in given if seen.get(key) != given[key])
        expect(not changed, f"other than the server's: {', '.join(changed)}")

    @check
    async def test_streaming(self) -> None:
        """Each part of a response comes out when the app sends it, not at its end.

        Contract: "Serve one `http` or `websocket` connection; whatever comes out is handed on."
        """
        arrived: list[int] = []

        async def act(app: ProbeApp, scope: Scope, receive: Receive, send: Send) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for number in range(3):
                await send({"type": "http.response.body", "body": b"part", "more_body": True})
                await passes(1)
                arrived.append(number + 2 - len(call.sent))
            await send({"type": "http.response.body", "body": b""})

        call = new_call()
        async with self.sandboxes() as (sandbox,):
            await self._run(sandbox, act, call)
        expect(not any(arrived), f"parts that had not come out when they were sent: {arrived}")

    @check
    async def test_messages_out(self) -> None:
        """Messages of the app come out in order and as they are, whatever their type.

        Contract: "Serve one `http` or `websocket` connection; whatever comes out is handed on."
        """
        messages: list[Message] = [
            {"type": "http.response.start", "status": 207, "headers": [(b"a", b"1"), (b"a", b"2")]},
            {"type": "http.response.early_hint", "links": [b"x"], "kit": [1]},
            {"type": "http.response.body", "body": b"1", "more_body": True},
            {"type": "http.response.body", "body": b"", "more_body": True},
            {"type": "http.response.body", "body": b"2", "more_body": False},
            {"type": "http.response.trailers", "headers": [(b"t", b"1")]},
        ]

        async def act(app: ProbeApp, scope: Scope, receive: Receive, send: Send) -> None:
            for message in messages:
                await send(dict(message))

        call = new_call()
        async with self.sandboxes() as (sandbox,):
            await self._run(sandbox, act, call)
        expect(call.sent == messages, f"the app sent {messages}, and out came {call.sent}")

    @check
    async def test_messages_in(self) -> None:
        """The body comes in as the client sends it, and then that it has hung up.

        Contract: "Serve one `http` or `websocket` connection; whatever comes out is handed on."
        """
        incoming: list[Message] = [
            {"type": "http.request", "body": b"1", "more_body": True},
            {"type": "http.request", "body": b"", "more_body": True, "kit": [1]},
            {"type": "http.request", "body": b"2", "more_body": False},
            {"type": "http.disconnect"},
        ]
        seen: list[Message] = []

        async def act(app: ProbeApp, scope: Scope, receive: Receive, send: Send) -> None:
            for _ in incoming:
                seen.append(await receive())

        async with self.sandboxes() as (sandbox,):
            await self._run(sandbox, act, new_call(incoming=incoming, method="POST"))
        expect(seen == incoming, f"the client sent {incoming}, and the app got {seen}")

    @check
    async def test_websocket(self) -> None:
        """A websocket goes through in both directions, its close code and reason included.

        Contract: "Serve one `http` or `websocket` connection; whatever comes out is handed on."
        """
        incoming: list[Message] = [
            {"type": "websocket.connect"},
            {"type": "websocket.receive", "text": "hello"},
            {"type": "websocket.receive", "bytes": b"\x00"},
            {"type": "websocket.disconnect", "code": 4001, "reason": "gone"},
        ]
        outgoing: list[Message] = [
            {"type": "websocket.accept", "subprotocol": "kit", "headers": [(b"a", b"1")]},
            {"type": "websocket.send", "text": "hello"},
            {"type": "websocket.send", "bytes": b"\x00"},
        ]
        seen: list[Message] = []

        async def act(app: ProbeApp, scope: Scope, receive: Receive, send: Send) -> None:
            for message in outgoing:
                seen.append(await receive())
                await send(dict(message))
            seen.append(await receive())

        call = new_call("websocket", incoming)
        async with self.sandboxes() as (sandbox,):
            await self._run(sandbox, act, call)
        expect(seen == incoming, f"the client sent {incoming}, and the app got {seen}")
        expect(call.sent == outgoing, f"the app sent {outgoing}, and out came {call.sent}")

    @check
    async def test_refusing_server(self) -> None:
        """When the server takes no message any more, the app is told.

        Contract: "Serve one `http` or `websocket` connection; whatever comes out is handed on."
        """
        error, seen = OSError("the client has gone"), []

        def refuse(message: Message) -> None:
            if message["type"] == "http.response.body":
                raise error

        async def act(app: ProbeApp, scope: Scope, receive: Receive, send: Send) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            try:
                for _ in range(2):
                    await send({"type": "http.response.body", "body": b"x", "more_body": True})
            except OSError as raised:
                seen.append(raised)

        async with self.sandboxes() as (sandbox,):
            await self._run(sandbox, act, new_call(on_send=refuse))
        expect(seen == [error], f"the server raised {error!r}, and the app got {seen}")

    @check
    async def test_cancellation(self) -> None:
        """A call that is cancelled, at whichever await, takes its app with it, and says so.

        Contract: "Serve one `http` or `websocket` connection; whatever comes out is handed on."
        """
        running, cancelled = 0, False

        async def act(app: ProbeApp, scope: Scope, receive: Receive, send: Send) -> str:
            nonlocal running, cancelled
            running += 1
            try:
                await passes(2)
                await send({"type": "http.response.start", "status": 204, "headers": []})
                await passes(2)
            except anyio.get_cancelled_exc_class():
                cancelled = True
                raise
            finally:
                running -= 1
            return "done"

        for moment in every_moment():
            cancelled = False
            # A new one each time, for a sandbox whose call was cancelled is never used again.
            async with self.sandboxes() as (sandbox,):
                await moment.cancel(partial(self._run, sandbox, act))
                expect(not running, f"{moment}, the app still runs when the call has ended")
            out = moment.error or moment.value
            expect(
                moment.raised or (moment.value == "done" and not cancelled),
                f"{moment}, the call ended with {out!r}",
            )

    # --- what is private ----------------------------------------------------------------------

    @check
    async def test_reset_forgets(self) -> None:
        """After a reset, a call finds nothing of those before it, however they ended.

        Contract: "Forget the last call. If that fails the sandbox is retired."
        """

        async def fails(app: ProbeApp, scope: Scope, receive: Receive, send: Send) -> None:
            self.remember(app, "failed")
            raise ValueError("of the app")

        async with self.sandboxes() as (sandbox,):
            new = await self._recall(sandbox)
            await self._forget(sandbox)
            for turn in range(3):
                if turn == 1:
                    try:
                        await self._run(sandbox, fails)
                    except ValueError:
                        pass
                else:
                    await self._remember(sandbox, f"call {turn}")
                    kept = await self._recall(sandbox)
                    expect(kept != new, f"remember() leaves nothing that recall() finds: {kept}")
                await self._forget(sandbox)
                found = await self._recall(sandbox)
                expect(found == new, f"a new sandbox has {new}, and this one {found}")
                await self._forget(sandbox)

    @check
    async def test_sandboxes_are_apart(self) -> None:
        """What a call leaves in one sandbox is not in another, and no reset of one is the other's.

        Contract: "One isolated app: serves one call at a time, and can be made as good as new."
        """
        async with self.sandboxes(2) as (one, other):
            new = await self._recall(other)
            await self._remember(one, "one")
            found = await self._recall(other)
            expect(found == new, f"with nothing left in it, it has {found}")
            await self._remember(other, "other")
            kept = await self._recall(one)
            await self._forget(other)
            found = await self._recall(one)
            expect(found == kept, f"with the reset of another, it has {found}, not {kept}")

    @check
    async def test_calls_at_the_same_time(self) -> None:
        """Calls in two sandboxes at the same moment each find what they left.

        Contract: "One isolated app: serves one call at a time, and can be made as good as new."
        """
        found: dict[str, tuple[object, object]] = {}

        async def call(name: str, sandbox: Any, mine: Event, others: Event) -> None:
            async def act(app: ProbeApp, scope: Scope, receive: Receive, send: Send) -> None:
                self.remember(app, name)
                before = self.recall(app)
                mine.set()
                # The other one is a call of the same loop, or of a thread of its own.
                while not others.is_set():  # noqa: ASYNC110
                    await anyio.sleep(0.001)
                found[name] = before, self.recall(app)

            await self._run(sandbox, act)

        events = Event(), Event()
        async with self.sandboxes(2) as made, anyio.create_task_group() as tasks:
            tasks.start_soon(call, "one", made[0], events[0], events[1])
            tasks.start_soon(call, "other", made[1], events[1], events[0])
        for name, (before, after) in found.items():
            expect(before == after, f"{name} left {before}, and found {after} a moment later")

    @check
    async def test_state_of_the_lifespan(self) -> None:
        """A request finds the server's `scope["state"]`, if there is one.

        Contract: "given the server's `scope["state"]` (or `None`), it returns the dict the
        request shall see, or `None` to leave the scope as it is."
        """
        async with self.sandboxes() as (sandbox,):
            if not hasattr(sandbox, "request_state"):
                leave_out("the sandbox has no request_state()")
            value = object()
            for given in (None, {"kit": value}):
                state = sandbox.request_state(given)
                expect(
                    state is None or isinstance(state, dict), f"for {given} it returns {state!r}"
                )
                if given and state is not None:
                    expect(state.get("kit") is value, "what the server has put there is gone")

    # --- its end ------------------------------------------------------------------------------

    @check
    async def test_close_at_any_time(self) -> None:
        """A sandbox can be closed unused, used, reset, and after a call that failed.

        Contract: "End the sandbox. Called once, and never while it serves a call."
        """

        async def fails(app: ProbeApp, scope: Scope, receive: Receive, send: Send) -> None:
            raise ValueError("of the app")

        async with self.sandboxes(4) as (_, used, reset, failed):
            await self._remember(used, "used")
            await self._remember(reset, "reset")
            await self._forget(reset)
            try:
                await self._run(failed, fails)
            except ValueError:
                pass
