"""Serve a WSGI app as an ASGI app.

Where the WSGI app runs is what matters here, and what the well-kept adapters decide for
themselves: they have threads of their own. On the loop, with blocking calls made cooperative, it
runs on the request's own stack, which waits for the client like any other blocking call. In a
sandbox with a thread of its own it runs right there, and the sandbox's event loop stands still.
Elsewhere it runs in a worker thread, of which there are as many as requests.
"""

from __future__ import annotations

import functools
import logging
import threading
import weakref
from collections.abc import Awaitable, Callable
from inspect import isawaitable
from typing import Any, TypeVar

import anyio.to_thread

from sandboxpool._answers import answer
from sandboxpool._exceptions import AppTypeError
from sandboxpool._load import check_app
from sandboxpool._types import Receive, Scope, Send, WSGIApp
from sandboxpool.run._crossing import Crossing
from sandboxpool.run._hidden_loop import HiddenLoop

from ._wsgi_call import WSGICall
from ._wsgi_client import CrossingClient, LoopClient
from ._wsgi_state import AppState
from ._wsgi_threads import WorkerThreads, unlimited

__all__ = ("GatewayFactory", "WSGIGateway", "WorkerThreads", "restore")

logger = logging.getLogger("sandboxpool.wsgi")

T = TypeVar("T")


class WSGIGateway:
    """An ASGI app that serves a WSGI app.

    Args:
        wsgi_app: The WSGI app.
        name: What errors and logs call it.
        threads: Where it runs; `None` for the event loop, in cooperative requests.

    Attributes:
        wsgi_app: The WSGI app.
        sandboxpool_visited: The same: what functions get that run in the sandbox.
    """

    def __init__(self, wsgi_app: WSGIApp, name: str, threads: WorkerThreads | None) -> None:
        self.wsgi_app = self.sandboxpool_visited = wsgi_app
        self._name = name
        self._threads = threads
        self._run = _run_on_the_loop if threads is None else threads.run
        self._state: AppState | None = None

    def __repr__(self) -> str:
        return f"<WSGIGateway of {self._name}>"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        kind = scope["type"]
        if kind == "http":
            await self._serve(scope, receive, send)
        elif kind == "websocket":
            logger.warning(
                "the websocket %s is refused: %s is a WSGI app, and WSGI has none",
                scope["path"],
                self._name,
            )
            await answer(scope, receive, send, 501, "Not implemented: no websockets here.")
        elif kind == "lifespan":
            for phase in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{phase}.complete"})
        else:
            raise ValueError(f"{self!r} serves http, websocket and lifespan, not {kind!r}.")

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        call = WSGICall(self.wsgi_app, self._name, scope)
        threads = self._threads
        if threads is not None and threads.in_sandbox:
            crossing = _crossing_of(scope)
            if crossing is not None:
                with HiddenLoop():
                    call.run(CrossingClient(crossing))
                return
        if threads is not None and threads.full:
            logger.error(
                "%s %s is refused: %d threads are still in calls of %s that were cut off, as "
                "many as max_abandoned allows",
                scope["method"],
                scope["path"],
                len(threads.abandoned),
                self._name,
            )
            text = "Service unavailable: too many calls that were cut off do not stop."
            await answer(scope, receive, send, 503, text, retry_after=1)
            return
        await self._run(call, receive, send)

    def remember(self) -> None:
        """Take the WSGI app as it is now for what `restore()` makes of it again."""
        self._state = AppState(self.wsgi_app)

    def restore(self) -> None:
        """Put the WSGI app back to what it was, as far as it is plain data."""
        if self._state is not None:
            self._state.restore()


def restore(sandbox: Any) -> None:
    """Put the WSGI app of a sandbox back to what it was; for `reset=`."""
    sandbox.app.restore()


class GatewayFactory:
    """Makes gateways to WSGI apps: an app factory as others see it.

    Args:
        make: Makes WSGI apps; plain or `async`.
        name: What errors and logs call them.
        threads: Where they run; `None` for the event loop.
    """

    def __init__(
        self,
        make: Callable[[], WSGIApp | Awaitable[WSGIApp]],
        name: str,
        threads: WorkerThreads | None,
    ) -> None:
        functools.update_wrapper(self, make)
        self._make = make
        self._name = name
        self._threads = threads
        self._made: weakref.WeakSet[WSGIGateway] = weakref.WeakSet()
        # An app factory was never meant to run twice at once, and it may take its time.
        self._one_at_a_time = threading.Lock()

    async def __call__(self) -> WSGIGateway:
        """Return a gateway to a new app.

        Raises:
            AppTypeError: The factory returned no WSGI app, or one that it returned before.
        """
        if self._threads is None:
            (made,) = self._make_one()
        elif self._threads.in_sandbox:
            with HiddenLoop():
                (made,) = self._make_one()
        else:
            (made,) = await anyio.to_thread.run_sync(self._make_one, limiter=unlimited())
        if isawaitable(made):
            made = await made
        check_app(made, f"what {self._name} returned", wsgi=True)
        with self._one_at_a_time:
            if any(gateway.wsgi_app is made for gateway in self._made):
                raise AppTypeError(
                    f"the factory {self._name} returned the same {type(made).__name__} twice: "
                    "build a new app in every call, or wrap the app itself instead."
                )
            gateway = WSGIGateway(made, self._name, self._threads)
            self._made.add(gateway)
        gateway.remember()
        return gateway

    def _make_one(self) -> tuple[Any]:
        with self._one_at_a_time:
            return (self._make(),)  # Trio refuses to bring a bare coroutine from a thread


def _crossing_of(scope: Scope) -> Crossing | None:
    """Return the call that runs in the thread of a sandbox, if this one does."""
    sandbox = getattr(scope.get("sandboxpool.lease"), "sandbox", None)
    crossing = getattr(sandbox, "call", None)
    return crossing if isinstance(crossing, Crossing) else None


async def _run_on_the_loop(call: WSGICall, receive: Receive, send: Send) -> None:
    from sandboxpool.run.cooperative import await_

    from ._wsgi_django import allow_orm

    allow_orm()

    def await_here(function: Callable[..., Awaitable[T]], /, *args: Any) -> T:
        return await_(function(*args))

    client = LoopClient(receive, send, await_here)
    try:
        call.run(client)
    finally:
        client.close()
