"""A function that runs in a leased sandbox, as if it were a request.

It goes a request's way: it gets a lease with a context of its own, the watchdog sees it, what it
deferred is run in the end, the sandbox is reset. So it looks like one to all that is on that way:
a `Visit` is an ASGI scope, of a type that no server has, and the sandbox calls the function where
it would call the app.
"""

from __future__ import annotations

from collections.abc import Callable
from inspect import isawaitable, iscoroutinefunction
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread

from ._exceptions import ExecutionTimeoutError, PoolClosedError

if TYPE_CHECKING:
    from ._pool import Pool
    from ._slots import Slot
    from ._types import Message
    from .abc import Sandbox

VISIT = "sandboxpool.visit"
"""The type of such a scope."""


class Visit(dict[str, Any]):
    """The scope of a function that runs in a sandbox.

    Args:
        name: What stands where a request has its path.
        function: The function; it is called with the private app.
        offload: Whether a plain function runs in a worker thread, because here it would block
            the event loop.
    """

    __slots__ = ("_came", "_function", "_offload", "_status")

    def __init__(self, name: str, function: Callable[[Any], Any], *, offload: bool = False) -> None:
        super().__init__(type=VISIT, path=name, headers=[])
        self._function = function
        self._offload = offload and not iscoroutinefunction(function)
        self._came = False
        self._status = 0

    async def admit(self, pool: Pool[Sandbox]) -> Slot[Sandbox] | None:
        """Wait for a sandbox, as none is free; errors are the visitor's own."""
        return await pool.wait()

    async def run(self, app: Any) -> Any:
        """Call the function; for the sandbox, in its place."""
        self._came = True
        # A gateway, as for WSGI, stands for the app behind it.
        app = getattr(app, "sandboxpool_visited", app)
        if self._offload:
            result = await anyio.to_thread.run_sync(self._function, app)
        else:
            result = self._function(app)
        return await result if isawaitable(result) else result

    async def make(self, sandboxed: Any) -> Any:
        """Have the function run in a sandbox of *sandboxed*, in the loop of that.

        Returns:
            What the function returns.

        Raises:
            PoolExhaustedError: No sandbox came free.
            PoolClosedError: The app is shutting down.
            ExecutionTimeoutError: The function was cut off by the watchdog.
            TypeError: The sandboxes are of a kind that runs nothing but the app.
            Exception: Whatever the function raises.
        """
        result = await sandboxed(self, self._receive, self._send)
        if self._status == 504:
            raise ExecutionTimeoutError(
                f"{self['path']} took longer than its execution timeout, and was cut off: make "
                "it faster, raise the timeout, or call current_lease().extend(seconds) in it."
            )
        if self._status:
            raise PoolClosedError(f"{self['path']} cannot go on: the app is shutting down.")
        if not self._came:
            raise TypeError(
                f"{self['path']}: the sandboxes of {sandboxed!r} run nothing but the app. One of "
                f"your own does by `return await scope.run(app)` for the scope type {VISIT!r}."
            )
        return result

    async def _receive(self) -> Message:
        await anyio.sleep_forever()
        raise AssertionError  # for type checkers

    async def _send(self, message: Message) -> None:
        # Nobody but the wrapped app itself answers a visit, and only when it cut it off.
        if message["type"] == "http.response.start":
            self._status = message["status"]
