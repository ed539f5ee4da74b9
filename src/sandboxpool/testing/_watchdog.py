"""The checks of a watchdog: it hits who is late, nobody else, and never in the wrong moment."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, ClassVar

import anyio

from sandboxpool._context import RequestLease
from sandboxpool._loop import running_loop
from sandboxpool._sandboxed import SandboxedApp
from sandboxpool._types import ASGIApp, Message, Receive, Scope, Send
from sandboxpool._wrap import wrap
from sandboxpool.abc import Watchdog

from ._conformance import Conformance, check, expect, leave_out, settle, until

# Seconds that the watchdogs of the checks grant. What must not be hit waits for three times that.
_LIMIT = 0.05


class _Calls:
    """What `lease.cancel()` and `lease.extend()` lead to, instead of a running request."""

    def __init__(self, watchdog: Watchdog) -> None:
        self.watchdog = watchdog
        self.hit: list[int] = []

    def cancelled(self, lease: RequestLease) -> None:
        self.hit.append(lease.id)

    def deadline_changed(self, lease: RequestLease) -> None:
        self.watchdog.changed(lease)


class WatchdogConformance(Conformance):
    """The checks of `sandboxpool.abc.Watchdog`.

    Write `make_watchdog()`.

    Attributes:
        cuts_off: Whether it cuts off requests that are late. One that only looks does not, and
            the checks about that are left out.
        extends: Whether it heeds `lease.extend()`.
    """

    cuts_off: ClassVar[bool] = True
    extends: ClassVar[bool] = True

    def make_watchdog(self, limit: float) -> Watchdog:
        """Return a watchdog that cuts off a request after *limit* seconds.

        It is called in the event loop that it will watch.
        """
        raise NotImplementedError(f"{type(self).__name__}.make_watchdog() returns one of yours")

    @asynccontextmanager
    async def _watching(self, limit: float = _LIMIT) -> AsyncIterator[tuple[Watchdog, _Calls]]:
        watchdog = self.make_watchdog(limit)
        try:
            yield watchdog, _Calls(watchdog)
        finally:
            watchdog.stop()

    def _begin(self, calls: _Calls, **scope: Any) -> RequestLease:
        full = {"type": "http", "method": "GET", "path": "/", **scope}
        lease = RequestLease(self, _nothing, full, None, calls)  # type: ignore[arg-type]
        lease.interruption = running_loop().interruption()
        calls.watchdog.started(lease)
        return lease

    def _end(self, calls: _Calls, lease: RequestLease) -> None:
        calls.watchdog.ended(lease)
        lease.interruption = None
        lease.seal()

    def _needs(self, *, extends: bool = False) -> None:
        if not self.cuts_off:
            leave_out("this watchdog cuts nobody off")
        if extends and not self.extends:
            leave_out("this watchdog does not look at deadlines")

    # --- what wrap() asks of it ---------------------------------------------------------------

    @check
    async def test_methods_return_at_once(self) -> None:
        """No method is to be awaited, and none raises, for a websocket as for a request.

        Contract: "`wrap` calls these in the event loop, without awaiting; none of them may block
        or raise."
        """
        watchdog = self.make_watchdog(10.0)
        calls = _Calls(watchdog)
        scopes: list[dict[str, Any]] = [
            {},
            {"type": "websocket", "method": None},
            {"path": "", "headers": []},
        ]
        for scope in scopes:
            lease = RequestLease(self, _nothing, _plain(scope), None, calls)  # type: ignore[arg-type]
            lease.interruption = running_loop().interruption()
            for name in ("started", "changed", "ended"):
                result = getattr(watchdog, name)(lease)
                if inspect.iscoroutine(result):
                    result.close()
                expect(
                    not inspect.isawaitable(result),
                    f"{name}() returns an awaitable, which nobody awaits",
                )
            lease.seal()
        stop: Callable[[], object] = watchdog.stop
        expect(not inspect.isawaitable(stop()), "stop() returns an awaitable")

    @check
    async def test_stop_with_requests(self) -> None:
        """It can be stopped with nothing to watch, and with requests that still run.

        Contract: "Stop watching; called once, when the app is closed."
        """
        self.make_watchdog(_LIMIT).stop()
        watchdog = self.make_watchdog(_LIMIT)
        calls = _Calls(watchdog)
        self._begin(calls)
        watchdog.stop()
        await anyio.sleep(3 * _LIMIT)
        expect(not calls.hit, "a request was cut off after stop()")

    @check
    async def test_many_at_once(self) -> None:
        """Requests come and go in any order, and it keeps no trace that raises later.

        Contract: "Note that it is over."
        """
        async with self._watching(10.0) as (_, calls):
            for order in itertools.permutations(range(3)):
                leases = [self._begin(calls) for _ in range(3)]
                for number in order:
                    self._end(calls, leases[number])
            await settle()

    # --- requests that are late ---------------------------------------------------------------

    @check
    async def test_late_request_is_cut_off(self) -> None:
        """A request that runs for longer than the limit is cut off.

        Contract: "Decide what happens to a request that takes too long."
        """
        self._needs()
        async with self._watching() as (_, calls):
            lease = self._begin(calls)
            with anyio.move_on_after(self.short_while):
                await until(lambda: calls.hit)
            expect(calls.hit, f"it still runs, and the limit is {_LIMIT} s")
            self._end(calls, lease)

    @check
    async def test_only_the_late_one(self) -> None:
        """Of several requests, only the one that is late is cut off.

        Contract: "Decide what happens to a request that takes too long."
        """
        self._needs()
        async with self._watching(4 * _LIMIT) as (_, calls):
            late = self._begin(calls)
            await anyio.sleep(2 * _LIMIT)
            young = [self._begin(calls) for _ in range(3)]
            with anyio.move_on_after(self.short_while):
                await until(lambda: calls.hit)
            hit = set(calls.hit)
            for lease in (late, *young):
                self._end(calls, lease)
            wrong = hit - {late.id}
            expect(not wrong, f"{len(wrong)} of 3 requests that had just begun were cut off")

    @check
    async def test_ended_request_is_left_alone(self) -> None:
        """A request that is over is never cut off.

        Contract: "Note that it is over."
        """
        self._needs()
        async with self._watching() as (_, calls):
            lease = self._begin(calls)
            calls.watchdog.ended(lease)
            # Not sealed: what cuts it off now would hit what its task does next.
            await anyio.sleep(3 * _LIMIT)
            expect(not calls.hit, "a request was cut off after ended()")

    # --- deadlines that move ------------------------------------------------------------------

    @check
    async def test_longer_deadline(self) -> None:
        """A request that asks for more time gets it.

        Contract: "Note that the lease's deadline was moved by `extend()`."
        """
        self._needs(extends=True)
        async with self._watching() as (_, calls):
            lease, endless = self._begin(calls), self._begin(calls)
            lease.extend(10.0)
            endless.extend(None)
            await anyio.sleep(3 * _LIMIT)
            hit = set(calls.hit)
            for each in (lease, endless):
                self._end(calls, each)
            expect(lease.id not in hit, "extend(10.0), and it was cut off before that")
            expect(endless.id not in hit, "extend(None), and it was cut off all the same")

    @check
    async def test_shorter_deadline(self) -> None:
        """A request that asks for less time is cut off earlier.

        Contract: "Note that the lease's deadline was moved by `extend()`."
        """
        self._needs(extends=True)
        async with self._watching(60.0) as (_, calls):
            lease = self._begin(calls)
            await settle()
            lease.extend(_LIMIT)
            with anyio.move_on_after(self.short_while):
                await until(lambda: calls.hit)
            hit = list(calls.hit)
            self._end(calls, lease)
            expect(hit, f"extend({_LIMIT}), and it still runs long after that")

    # --- with an app --------------------------------------------------------------------------

    @check
    async def test_with_an_app(self) -> None:
        """In front of an app, late requests are answered 504, and the others as ever.

        Contract: "Decide what happens to a request that takes too long."
        """
        self._needs()
        app = wrap(_slow_or_fast, watchdog=self.make_watchdog(_LIMIT), stall_after=None)
        statuses: dict[str, int] = {}

        async def ask(path: str) -> None:
            statuses[path] = await _status(app, path)

        async with app, anyio.create_task_group() as tasks:
            for path in ("/slow", "/fast"):
                tasks.start_soon(ask, path)
        right = {"/slow": 504, "/fast": 200}
        expect(statuses == right, f"the answers are {statuses}, not {right}")


async def _nothing(scope: Scope, receive: Receive, send: Send) -> None:
    """Stand for a sandbox that nobody calls."""


def _plain(scope: dict[str, Any]) -> dict[str, Any]:
    full = {"type": "http", "method": "GET", "path": "/", **scope}
    return {key: value for key, value in full.items() if value is not None}


async def _slow_or_fast(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        return
    if scope["path"] == "/slow":
        await anyio.sleep_forever()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def _status(app: SandboxedApp | ASGIApp, path: str) -> int:
    status = 0

    async def receive() -> Message:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        nonlocal status
        status = message.get("status", status)

    scope = {"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": []}
    await app(scope, receive, send)
    return status
