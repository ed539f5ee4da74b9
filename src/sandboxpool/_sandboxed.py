"""The wrapped app: an ASGI app that gives each request a sandbox of its own."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from contextvars import copy_context
from math import inf
from threading import get_ident
from time import monotonic
from types import CoroutineType
from typing import TYPE_CHECKING, Any, TypeVar

import anyio
import anyio.lowlevel

from ._answers import INTERNAL_ERROR, answer
from ._app_options import AppOptions
from ._context import RequestLease, current
from ._deferred import run_deferred
from ._exceptions import (
    ExecutionTimeoutError,
    FactoryError,
    LeakError,
    LifespanError,
    PoolClosedError,
    PoolFullError,
    PoolTimeoutError,
)
from ._pool import Pool
from ._read_ahead import ReadAhead
from ._runtime import Counters, Runtime, statistics_of
from ._slots import Slot
from ._stats import AppStatistics, StatsPage
from ._ticks import Tick, TickStatistics, check_tick, made_tick
from ._types import ASGIApp, Receive, Scope, Send
from ._visit import Visit
from .abc import Sandbox, SandboxFactory
from .run.loop import ACCEPTED, GONE, call_plainly, noting, outside, steps_of

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

logger = logging.getLogger("sandboxpool")

F = TypeVar("F", bound=Callable[[Any], Any])

set_current = current.set


class SandboxedApp:
    """An ASGI app that runs each request in a sandbox of its own; made by `wrap()`.

    The server opens and closes it through the lifespan protocol. Without that it opens itself
    with the first request. Tests may write `async with sandboxed:` instead.

    Attributes:
        app: What was wrapped: the template of the clones, or the factory.
        wrap_options: The options it was made with.

    Any other attribute is that of the wrapped app, so that `app = sandboxpool.wrap(app)` changes
    nothing for code that says `app.state`, `app.dependency_overrides` or `@app.get(...)`: inside
    of a request it reaches the request's own sandbox, outside of one the template.
    """

    __slots__ = (
        "__weakref__",
        "_counters",
        "_factory",
        "_runtime",
        "_runtimes",
        "_stats_page",
        "_ticks",
        "app",
        "wrap_options",
    )

    def __init__(self, app: Any, factory: SandboxFactory, options: AppOptions) -> None:
        self.app = app
        self.wrap_options = options
        self._factory = factory
        self._counters = Counters()
        # The one that was used last, and those of all loops, by thread.
        self._runtime: Runtime | None = None
        self._runtimes: dict[int, Runtime] = {}
        self._stats_page = StatsPage(self)
        self._ticks: list[Tick] = []

    def __repr__(self) -> str:
        runtime = self._runtime
        state = "closed" if runtime is None else runtime.state
        options = self.wrap_options
        return f"<SandboxedApp {options.name} isolation={options.isolation} {state}>"

    # --- standing in for the wrapped app ------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        # Only called for what this class has not.
        if name in SandboxedApp.__slots__ or name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._template(name), name)

    def __setattr__(self, name: str, value: Any) -> None:
        if name in SandboxedApp.__slots__:
            object.__setattr__(self, name, value)
        else:
            setattr(self._template(name), name, value)

    def __delattr__(self, name: str) -> None:
        delattr(self._template(name), name)

    def _template(self, name: str) -> Any:
        if self.wrap_options.isolation in ("factory", "module"):
            how = "made by a factory, each" if callable(self.app) else "importing it, each"
            raise AttributeError(
                f"{self!r} has no attribute {name!r}: its sandboxes are {how} "
                f"has an app of its own. Inside of a request use `request.app.{name}`."
            )
        return self.app

    # --- periodic work ------------------------------------------------------------------------

    def every(
        self,
        seconds: float,
        *,
        jitter: float = 0.1,
        immediate: bool = False,
        name: str | None = None,
    ) -> Callable[[F], F]:
        """Return a decorator: run a function periodically, in a sandbox that is leased for it.

        It begins when the app is open, in each worker by itself, and ends with the app: a run
        that is under way at shutdown is a request in flight like any other. The function gets the
        sandbox's app; `current_lease()` and `context` are those of the run, and the watchdog
        watches it. A plain function runs where its sandbox does, or in a worker thread if that is
        the server's event loop. It never overlaps itself: what was missed is left out. What it
        raises is logged and counted.

        Args:
            seconds: From the start of a run to that of the next one.
            jitter: The share by which each of these intervals is longer or shorter by chance, so
                that workers do not all run it at once.
            immediate: Whether it runs as soon as the app is open, instead of an interval later.
            name: What errors and statistics call it; by default the name of the function.

        Raises:
            OptionError: An option cannot work.
            TypeError: What is decorated is no function.
        """
        check_tick(seconds, jitter, immediate, name)

        def decorate(function: F) -> F:
            tick = made_tick(function, seconds, jitter, immediate, name)
            self._ticks.append(tick)
            runtime = self._here()
            if runtime is not None and runtime.ready:
                runtime.ticking.start(tick)
            return function

        return decorate

    @property
    def ticks(self) -> tuple[TickStatistics, ...]:
        """What the periodic work has done in this process, in the order of its declaration."""
        return tuple([tick.statistics() for tick in self._ticks])

    # --- life ---------------------------------------------------------------------------------

    @property
    def pool(self) -> Pool[Sandbox] | None:
        """The pool of the loop that the app was last called in; `None` before that."""
        return None if self._runtime is None else self._runtime.pool

    async def open(self) -> None:
        """Start the app and fill the pool; nothing to do if that is done.

        Raises:
            LifespanStartupError: The app did not start.
            FactoryError: A sandbox could not be made; a sandbox whose own lifespan failed has
                the `LifespanStartupError` as its cause.
        """
        runtime = self._here()
        if runtime is not None and runtime.closing:
            await runtime.aclose(None)  # the end that has begun comes before a new start
        await self._enter().open()

    async def aclose(self, timeout: float | None = None) -> None:
        """Let requests in flight finish, refuse new ones, end everything.

        A second call waits for the first.

        Args:
            timeout: Seconds for the requests in flight; by default `drain_timeout`.

        Raises:
            LifespanShutdownError: The app did not stop in order; everything else is closed.
        """
        runtime = self._here()
        if runtime is None:
            return
        await runtime.aclose(self.wrap_options.drain_timeout if timeout is None else timeout)

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        await self.aclose()

    def _here(self) -> Runtime | None:
        """Return the runtime of the loop that runs here, if there is one."""
        runtime = self._runtimes.get(get_ident())
        return runtime if runtime is not None and runtime.is_here() else None

    def _enter(self) -> Runtime:
        """Return the runtime of the loop that runs here, a new one if need be."""
        runtime = self._here()
        if runtime is None or runtime.closed:
            runtime = Runtime(self, self._factory, self.wrap_options, self._counters)
            for thread, other in tuple(self._runtimes.items()):
                if other.loop.closed():
                    self._runtimes.pop(thread, None)
            self._runtimes[get_ident()] = runtime
        self._runtime = runtime
        return runtime

    async def _serve_lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()
        try:
            try:
                await self.open()
            except Exception as error:
                logger.error("%s did not start: %s", self.wrap_options.name, error)
                told = "".join(traceback.format_exception(error))
                await send({"type": "lifespan.startup.failed", "message": told})
                _raise_reason(error)
                return
            runtime = self._enter()
            if "state" in scope:
                # For middleware outside of here; each request gets a copy of its own anyway.
                scope["state"].update(getattr(self._factory, "lifespan_state", {}))
            await send({"type": "lifespan.startup.complete"})
            await receive()
        except BaseException:
            # The server is going down hard: there is no time to wait for requests.
            await self._give_up()
            raise
        try:
            await runtime.aclose(self.wrap_options.drain_timeout)
        except Exception as error:
            logger.error("%s did not stop in order: %s", self.wrap_options.name, error)
            told = "".join(traceback.format_exception(error))
            await send({"type": "lifespan.shutdown.failed", "message": told})
            _raise_reason(error)
        else:
            await send({"type": "lifespan.shutdown.complete"})

    async def _give_up(self) -> None:
        runtime = self._here()
        if runtime is None:
            return
        with anyio.CancelScope(shield=True):
            try:
                await runtime.aclose(0)
            except Exception as error:
                logger.error("%s did not stop in order: %s", self.wrap_options.name, error)

    # --- requests -----------------------------------------------------------------------------

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> Any:
        """Serve one connection, as ASGI has it."""
        kind = scope["type"]
        if kind == "lifespan":
            await self._serve_lifespan(scope, receive, send)
            return None
        if kind != "http" and kind != "websocket" and not isinstance(scope, Visit):
            raise ValueError(f"{self!r} serves http, websocket and lifespan, not {kind!r}.")
        if self.wrap_options.stats is not None and kind == "http" and self._is_stats(scope):
            return await self._stats_page(scope, receive, send)

        runtime = self._runtime
        if runtime is None or runtime.home._thread_id != get_ident() or not runtime.ready:
            runtime = await self._ready(scope, receive, send)
            if runtime is None:
                return None
        ahead = None
        slot = runtime.slots.take(monotonic())
        if slot is None:
            ahead = ReadAhead(runtime.loop, receive)
            slot = await self._admit(runtime, ahead, scope, send)
            if slot is None:
                return None
            receive = ahead.receive

        # From here on the lease must end, whatever happens.
        sandbox = slot.item
        lease = RequestLease(runtime.isolation, sandbox, scope, current.get(), runtime, slot.since)
        in_flight = runtime.in_flight
        result: Any = None
        whole = interrupted = dropped = False
        app_context = token = visit = report = None
        leaks = runtime.leaks
        try:
            if leaks is not None:
                visit = leaks.begin(lease, sandbox, runtime.loop.backend)
            in_flight[lease.id] = lease
            counters = runtime.counters
            counters.requests += 1
            if len(in_flight) > counters.peak:
                counters.peak = len(in_flight)
            interruption = lease.interruption = runtime.interruption()
            if runtime.watches:
                lease.watched = True
                runtime.watchdog.started(lease)
            scope["sandboxpool.lease"] = lease
            request_state = getattr(sandbox, "request_state", None)
            if request_state is not None:
                state = request_state(scope.get("state"))
                if state is not None:
                    scope["state"] = state
            run: Callable[..., Any]
            if runtime.isolates_context:
                app_context = copy_context()
                run = app_context.run
                run(set_current, lease)
                app_receive, app_send = outside(copy_context(), lease, receive, send)
            else:
                token = set_current(lease)
                run = call_plainly
                app_receive, app_send = noting(lease, receive, send)
            steps = run(sandbox, scope, app_receive, app_send)
            if type(steps) is not CoroutineType:
                steps = steps_of(steps)
            lease.steps = steps
            if interruption.scope is None:
                result = await runtime.drive(runtime.running, lease, run, steps)
            else:
                with interruption.scope:
                    result = await runtime.drive(runtime.running, lease, run, steps)
            if lease.cut_off:
                interrupted = interruption.ended(None)
            whole = not interrupted
        except BaseException as error:
            whole = isinstance(error, Exception)
            dropped = isinstance(error, GeneratorExit)
            if not (lease.cut_off and lease.interruption.ended(error)):
                if lease.cut_off and not dropped and anyio.current_effective_deadline() == -inf:
                    # A cancel scope around us was cancelled as well, right after. The exception
                    # is the one that the watchdog has caused, which that scope would not know
                    # as its own; this raises the scope's.
                    await anyio.lowlevel.checkpoint()
                raise
            interrupted = True
        finally:
            # From here on there is nothing to cut off: it would hit what the server does next.
            lease.interruption = None
            if lease.cut_off or not whole:
                lease.interrupted = True
                if slot.retire is None:
                    # Something of the call may still be there: a thread, a task it has started.
                    slot.retire = "expired" if lease.cut_off else "cancelled"
            try:
                if lease.watched:
                    runtime.watchdog.ended(lease)
                if lease._deferred:
                    await self._run_deferred(runtime, lease, app_context, alive=not dropped)
                if visit is not None and leaks is not None and not interrupted:
                    report = await leaks.end(visit, alive=not dropped, whole=whole)
                    if report is not None and leaks.retires and slot.retire is None:
                        slot.retire = "leaked"
            finally:
                lease.seal()
                leave = getattr(sandbox, "leave", None)
                if leave is not None:
                    leave(scope)
                if token is not None:
                    _reset(token)
                in_flight.pop(lease.id, None)
                if slot.lease:
                    runtime.pool.give_back(slot)
                if runtime.closing:
                    runtime.note_drained()
                if ahead is not None and not interrupted:
                    ahead.close()
        if interrupted:
            try:
                await self._answer_cut_off(lease, scope, receive, send)
            finally:
                if ahead is not None:
                    ahead.close()
                if visit is not None and leaks is not None:
                    # Only now: the answer does not wait for it.
                    report = await leaks.end(visit, alive=True, whole=False)
        if report is not None and leaks is not None and leaks.raises:
            raise LeakError(str(report), report)
        return result

    def _is_stats(self, scope: Scope) -> bool:
        path: str = scope.get("path", "")
        root: str = scope.get("root_path", "")
        # As Starlette has it: the path includes the root path, but not with every server.
        return path == self.wrap_options.stats or path == root.rstrip("/") + str(
            self.wrap_options.stats
        )

    async def _ready(self, scope: Scope, receive: Receive, send: Send) -> Runtime | None:
        """Open the app, or answer that it is not to be had."""
        runtime = self._here()
        if runtime is not None and runtime.closing:
            await self._refuse(runtime, "the app is shutting down", scope, receive, send)
            return None
        runtime = self._enter()
        try:
            await runtime.open(asked=False)
        except Exception as error:
            logger.error("%s did not start: %s", self.wrap_options.name, error, exc_info=error)
            await self._refuse(runtime, "the app did not start", scope, receive, send)
            return None
        return runtime

    async def _admit(
        self, runtime: Runtime, ahead: ReadAhead, scope: Scope, send: Send
    ) -> Slot[Sandbox] | None:
        """Wait for a sandbox; answer 503 if there is none to be had."""
        if isinstance(scope, Visit):
            return await scope.admit(runtime.pool)
        slot = None
        try:
            slot = await runtime.pool.wait(on_queued=ahead.start)
            if slot is None:
                runtime.counters.hung_up += 1
            return slot
        except PoolTimeoutError as error:
            limit = f"no sandbox became free within {self.wrap_options.pool['acquire_timeout']} s"
            cause: Exception = error
        except PoolFullError as error:
            limit = f"{self.wrap_options.pool['max_waiting']} requests are waiting for one already"
            cause = error
        except PoolClosedError as error:
            limit, cause = "the app is shutting down", error
        except FactoryError as error:
            limit, cause = "a sandbox could not be made", error
        except BaseException:
            ahead.close()
            raise
        finally:
            ahead.stop()
        try:
            logger.warning("%s %s: %s", scope.get("method", "WEBSOCKET"), scope.get("path"), cause)
            await self._refuse(
                runtime, limit, scope, ahead.receive, send, connect_seen=ahead.connect_seen
            )
        finally:
            ahead.close()
        return None

    async def _refuse(
        self,
        runtime: Runtime,
        limit: str,
        scope: Scope,
        receive: Receive,
        send: Send,
        *,
        connect_seen: bool = False,
    ) -> None:
        runtime.counters.refused += 1
        await answer(
            scope,
            receive,
            send,
            503,
            f"Service unavailable: {limit}.",
            retry_after=runtime.retry_after(),
            connect_seen=connect_seen,
        )

    async def _run_deferred(
        self, runtime: Runtime, lease: RequestLease, context: Any, *, alive: bool
    ) -> None:
        options = self.wrap_options
        # A sandbox that runs elsewhere runs them there: they may be bound to its thread.
        elsewhere = getattr(lease.sandbox, "run_deferred", None)
        if elsewhere is not None:
            await elsewhere(lease, options.name, options.defer_timeout, alive=alive)
            return
        await run_deferred(
            runtime.loop,
            lease,
            copy_context() if context is None else context,
            options.name,
            options.defer_timeout,
            lease._deferred,
            alive=alive,
            in_task=options.run_in == "cooperative",
        )

    async def _answer_cut_off(
        self, lease: RequestLease, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Answer a request that was told to stop, or cut its connection."""
        if lease.cut_off == 503:
            text, retry_after = "Service unavailable: the app is shutting down.", 1
        else:
            text = "Gateway timeout: the request took longer than its execution timeout."
            retry_after = None
        if lease.answered is None:
            await answer(
                scope,
                receive,
                send,
                lease.cut_off,
                text,
                retry_after=retry_after,
                close_code=INTERNAL_ERROR,
                connect_seen=True,
            )
        elif lease.answered == GONE:
            return  # some servers raise on a close that comes too late
        elif lease.answered == ACCEPTED:
            await send({"type": "websocket.close", "code": INTERNAL_ERROR, "reason": text[:120]})
        else:
            raise ExecutionTimeoutError(
                f"request {scope.get('method')} {lease.path} (lease {lease.id}) was cut off "
                "after its response had begun."
            )

    # --- looking ------------------------------------------------------------------------------

    def statistics(self) -> AppStatistics:
        """Return the figures of this moment, those of the loop that it was last called in."""
        runtime = self._runtime
        if runtime is None:
            pool = Pool(self._factory, **self.wrap_options.pool)
            return statistics_of(self.wrap_options, self._counters, pool)
        return runtime.statistics()

    @property
    def stats_app(self) -> ASGIApp:
        """An ASGI app that shows `statistics()` as JSON; mount it where you like."""
        return self._stats_page


def _raise_reason(error: BaseException) -> None:
    """Raise what the app itself raised, as servers and test clients get it without us.

    An app that only said that it failed has raised nothing, and neither does this.
    """
    reason: BaseException | None = error
    while isinstance(reason, LifespanError | FactoryError):
        reason = reason.__cause__
    if reason is not None:
        raise reason


def _reset(token: Any) -> None:
    try:
        current.reset(token)
    except ValueError:
        # Called from an async generator that is closed in another context: nothing to undo.
        pass
