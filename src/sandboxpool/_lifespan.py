"""Drive one app's ASGI lifespan, in one task from start to end.

The task is a background task of the loop, not a child of whoever calls `startup()`: a lifespan
may hold a task group or a cancel scope open between its two halves, which must be entered and
left in one task, while `startup()` and `shutdown()` are called from wherever it suits.
"""

from __future__ import annotations

import logging
from typing import Any

import anyio

from ._exceptions import LifespanError, LifespanShutdownError, LifespanStartupError
from ._loop import Background, running_loop
from ._types import ASGIApp, Message

logger = logging.getLogger("sandboxpool.lifespan")

# An app that has sent its last message has nothing left to wait for; one that hangs all the
# same must not take the process with it.
_LAST_WORDS = 5.0

_ASKED_AT_MOST = 8

_ANSWERS = frozenset(
    f"lifespan.{phase}.{outcome}"
    for phase in ("startup", "shutdown")
    for outcome in ("complete", "failed")
)


class Lifespan:
    """The lifespan of one app.

    Args:
        app: The ASGI app.
        name: What errors call it.
        startup_timeout: Seconds for the start, `None` for no limit.
        shutdown_timeout: Seconds for the stop, `None` for no limit.

    Attributes:
        state: What the app put into `scope["state"]`.
        supported: Whether the app took part; an app that raises on a lifespan scope, before
            it has said anything, does not.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        name: str = "app",
        startup_timeout: float | None = None,
        shutdown_timeout: float | None = None,
    ) -> None:
        self.name = name
        self.state: dict[str, Any] = {}
        self.supported = True
        self._app = app
        self._startup_timeout = startup_timeout
        self._shutdown_timeout = shutdown_timeout
        self._task: Background | None = None
        self._asked_to_start = 0
        self._answered: str | None = None
        self._failure: str | None = None
        self._error: BaseException | None = None

    @property
    def refusal(self) -> BaseException | None:
        """What the app raised instead of taking part; `None` if it takes part, or just returned."""
        return None if self.supported else self._error

    async def startup(self) -> None:
        """Start the app.

        Cancelled meanwhile, the app's lifespan is cancelled too.

        Raises:
            LifespanStartupError: The app reported a failure, or took too long. The app's own
                exception, if it raised one, is the cause.
        """
        if self._task is not None:
            raise LifespanError(f"the lifespan of {self.name} was started before.")
        self._started = anyio.Event()
        self._stop = anyio.Event()
        self._over = anyio.Event()
        self._task = running_loop().spawn(self._run, f"lifespan of {self.name}")
        try:
            with anyio.fail_after(self._startup_timeout):
                await self._started.wait()
        except TimeoutError:
            self._task.cancel()
            raise LifespanStartupError(
                f"{self.name} did not start within {self._startup_timeout} s: "
                "it neither completed nor failed its lifespan startup."
            ) from None
        except BaseException:
            self._task.cancel()
            raise
        if self._answered == "lifespan.startup.failed":
            # The exception, if there is one, comes after the message.
            with anyio.move_on_after(_LAST_WORDS):
                await self._over.wait()
            reason = self._failure or repr(self._error)
            last_line = reason.strip().rsplit("\n", 1)[-1]
            raise LifespanStartupError(f"{self.name} failed to start: {last_line}") from self._error
        if self._answered is None:
            self.supported = False
            if self._error is not None:
                logger.debug(
                    "%s takes no part in the lifespan protocol: %r", self.name, self._error
                )

    async def shutdown(self) -> None:
        """Stop the app; nothing to do if it never started or takes no part.

        Raises:
            LifespanShutdownError: The app reported a failure, raised, or took too long.
        """
        if self._task is None or not self.supported:
            return
        task, self._task = self._task, None
        self._stop.set()
        try:
            with anyio.fail_after(self._shutdown_timeout):
                await self._over.wait()
        except TimeoutError:
            task.cancel()
            raise LifespanShutdownError(
                f"{self.name} did not stop within {self._shutdown_timeout} s."
            ) from None
        except BaseException:
            task.cancel()
            raise
        if self._answered == "lifespan.shutdown.failed" or self._error is not None:
            reason = (self._failure or repr(self._error)).strip().rsplit("\n", 1)[-1]
            raise LifespanShutdownError(f"{self.name} failed to stop: {reason}") from self._error

    async def _run(self) -> None:
        scope = {
            "type": "lifespan",
            "asgi": {"version": "3.0", "spec_version": "2.0"},
            "state": self.state,
        }
        try:
            await self._app(scope, self._receive, self._send)
        except anyio.get_cancelled_exc_class():
            self._error = LifespanError(f"the lifespan of {self.name} was cancelled")
            raise
        except BaseException as error:
            # Also SystemExit: here it would end Trio's run, or vanish in asyncio's.
            self._error = error
        finally:
            self._over.set()
            self._started.set()

    async def _receive(self) -> Message:
        if self._answered is None and self._asked_to_start < _ASKED_AT_MOST:
            # Again to who asks again before any answer: middleware that receives without a look
            # at the scope's type has taken the first one from the app behind it.
            self._asked_to_start += 1
            return {"type": "lifespan.startup"}
        await self._stop.wait()
        return {"type": "lifespan.shutdown"}

    async def _send(self, message: Message) -> None:
        kind = message["type"]
        if kind not in _ANSWERS:
            # An app that looks at no scope type, and perhaps sends for ever.
            raise LifespanError(
                f"{self.name} sent {kind!r} in a lifespan, where only lifespan messages belong."
            )
        self._answered = kind
        if self._answered.endswith(".failed"):
            self._failure = message.get("message", "")
        self._started.set()
