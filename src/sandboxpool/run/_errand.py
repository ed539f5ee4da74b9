"""Run an async function in the loop of another thread, on behalf of a task of this one.

Here "home" is the loop whose task waits, usually the server's, and "away" the thread that the
function runs in. Nothing here blocks either: whoever has something to say appends it to a deque
and lets the other loop know, which takes it up when it comes to it.
"""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Awaitable, Callable
from contextvars import Context
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel

from sandboxpool._loop import Background, Loop, Timer, Wakeup

from ._loop_thread import AbandonedError, LoopThread

# Seconds between two looks of a loop after threads that block in the middle of a step.
_LOOKS_EVERY = 0.005
# Seconds in which a thread that does not block answers, also on a busy machine: one that has not
# by then is taken to block.
_ANSWERS_WITHIN = 0.1
# Seconds that code which was cancelled gets for its clean-up before its caller goes on.
_CLEANS_UP_WITHIN = 0.5


class Port:
    """Wakes tasks of one loop on behalf of other threads, many of them with one wake-up.

    A thread that has something to say says so at the end of the step that it runs. Woken earlier,
    the loop would only compete with it for the GIL. But it may block in that step, so the loop
    also looks by itself now and then, as long as something is under way.

    Args:
        loop: The loop of the tasks.
    """

    def __init__(self, loop: Loop) -> None:
        self.loop = loop
        self._ready: deque[Errand] = deque()
        self._called = False
        self._timer: Timer | None = None
        self._ticking = False
        self._oldest: Errand | None = None
        self.under_way = 0

    def note(self, errand: Errand) -> None:
        """Wake the task that waits for *errand*, soon; in the thread of the errand."""
        self._ready.append(errand)
        if not self._called:
            # Two threads may both find it unset: then the loop is called twice, for nothing.
            self._called = True
            assert errand.thread.loop is not None
            errand.thread.loop.soon(self._call)

    def note_from_elsewhere(self, errand: Errand) -> None:
        """Wake the task that waits for *errand*, soon; in any thread."""
        self._ready.append(errand)
        self._call()

    def begin(self) -> None:
        """Note that an errand is under way."""
        self.under_way += 1
        if not self._ticking:
            self._ticking = True
            if self._timer is None:
                self._timer = self.loop.timer(self._tick)
            self._timer.arm(_LOOKS_EVERY)

    def _tick(self) -> None:
        # Who has been there at the last look is stuck in its step; others will call in a moment.
        oldest = self._ready[0] if self._ready else None
        if oldest is not None and oldest is self._oldest:
            self.wake_all()
            oldest = None
        self._oldest = oldest
        self._ticking = self.under_way > 0
        if self._ticking:
            assert self._timer is not None
            self._timer.arm(_LOOKS_EVERY)

    def close(self) -> None:
        """Stop looking."""
        if self._timer is not None:
            self._timer.close()

    def _call(self) -> None:
        try:
            self.loop.call_from_thread(self.wake_all)
        except RuntimeError:
            pass  # the loop has ended, and everybody who waited with it

    def wake_all(self) -> None:
        """Wake the tasks of all errands that have something to say."""
        # First: who appends after the last look below must call again.
        self._called = False
        ready = self._ready
        while ready:
            wakeup = ready.popleft().wakeup
            if wakeup is not None:
                wakeup.wake()


class Errand:
    """An async function that runs away, awaited at home.

    Args:
        thread: Where it runs.
        port: Of the loop that waits.
        function: What runs.
        name: What its task is called.
        context: The context variables that it runs with.
        starts: Whether the thread is still to be started.

    Attributes:
        wakeup: What the waiting task waits for, if it does.
        ended: Whether the function has come to its end.
        cancelled: Whether it was told to stop.
        answered: Whether its thread has taken note of that.
        blocks_thread: Whether it was told to stop, and blocks its thread or a worker instead.
        task: Its task, once it runs.
    """

    def __init__(
        self,
        thread: LoopThread,
        port: Port,
        function: Callable[[], Awaitable[Any]] | None,
        name: str,
        context: Context,
        *,
        starts: bool = False,
    ) -> None:
        self.thread = thread
        self.wakeup: Wakeup | None = None
        self.ended = False
        self.cancelled = False
        self.answered = False
        self.blocks_thread = False
        self.task: Background | None = None
        self._port = port
        self._starts = starts
        self._function = function
        self._name = name
        self._context = context
        self._afterwards: list[Callable[[], Awaitable[None]]] = []
        self._over = self._was_stopped = False
        self._told = False
        self._value: Any = None
        self._error: BaseException | None = None

    # --- at home ------------------------------------------------------------------------------

    async def run(self) -> Any:
        """Run the function, and return or raise what it returns or raises.

        Cancelled, it cancels the function and waits for its end, though no longer than the
        thread seems to go on; `ended` tells whether it has come. Any other exception at home is
        raised at once.
        """
        if self._starts:
            self.thread.start(self._start, self._fail)
        elif not self.thread.post(self._start):
            raise RuntimeError(f"{self.thread.thread.name} has ended: its loop runs no more.")
        self._port.begin()
        try:
            while not self.ended:
                await self._next()
                await self.handle()
            await self.handle()
        except GeneratorExit:
            self.stop()
            raise
        except anyio.get_cancelled_exc_class():
            if not self.ended:
                await self._end_early()
            # An app that comes to an end of its own all the same is taken at its word, as it
            # would be in the task that was cancelled.
            if not self.ended or self._was_stopped:
                raise
        finally:
            self._port.under_way -= 1
            self.leave()
        return self._outcome()

    def then(self, function: Callable[[], Awaitable[None]]) -> None:
        """Run something away once the function has ended, whenever that is."""
        self.thread.post(partial(self._then, function))

    async def handle(self) -> None:
        """Do at home what the function has asked for."""

    def leave(self) -> None:
        """Clean up at home."""

    def pending(self) -> bool:
        """Tell whether there is something to handle."""
        return False

    async def _next(self) -> None:
        # In this order: what is said after the look makes the other side tell again.
        self._told = False
        if self.ended or self.pending():
            return
        self.wakeup = self._port.loop.wakeup()
        try:
            await self.wakeup
        finally:
            self.wakeup = None

    def stop(self) -> None:
        """Tell the function to stop."""
        self.thread.post(self._cancel)

    async def _end_early(self) -> None:
        """Tell the function to stop, and wait as long as that makes sense."""
        self.cancelled = True
        began = anyio.current_time()
        with anyio.CancelScope(shield=True):
            # What has come for it already is on its way before the cancellation.
            for _ in range(2):
                try:
                    await anyio.lowlevel.checkpoint()
                except anyio.get_cancelled_exc_class():
                    pass  # whoever cancels again insists
            at = self.thread.position()
            self.stop()
            while not self.ended:
                waited = anyio.current_time() - began
                if waited >= _ANSWERS_WITHIN and not self.answered:
                    # Not there twice in a row: it may just be late, on a busy machine.
                    last, at = at, self.thread.position()
                    self.blocks_thread = at is not None and (
                        at == last or waited >= _CLEANS_UP_WITHIN
                    )
                elif waited >= _ANSWERS_WITHIN:
                    self.blocks_thread = bool(self.thread.busy_workers())
                if self.blocks_thread or waited >= _CLEANS_UP_WITHIN:
                    return
                try:
                    with anyio.move_on_after(_ANSWERS_WITHIN):
                        await self._next()
                        await self.handle()
                except anyio.get_cancelled_exc_class():
                    self.stop()
            await self.handle()  # what it has said in the end
            self.blocks_thread = bool(self.thread.busy_workers())

    def _outcome(self) -> Any:
        error, self._error = self._error, None
        if error is None:
            return self._value
        try:
            if self._was_stopped and not isinstance(error, anyio.get_cancelled_exc_class()):
                # By its own loop, whose cancellations mean nothing to this one.
                raise RuntimeError(f"{self._name} was cancelled in its own event loop") from error
            raise error
        finally:
            del error  # its traceback leads here

    # --- away ---------------------------------------------------------------------------------

    def _start(self) -> None:
        loop = self.thread.loop
        assert loop is not None
        name_backend(self._context, loop.backend)
        self.task = loop.run_in(self._context, self.run_errand, self.thread.thread.name)

    def _fail(self, error: BaseException) -> None:
        """End it without a thread that could run it."""
        self._error = error
        self.ended = True
        self._port.note_from_elsewhere(self)

    def serve(self) -> Awaitable[Any]:
        """Return what runs away."""
        assert self._function is not None
        return self._function()

    async def run_errand(self) -> None:
        """Be the task that the function runs in."""
        try:
            self._value = await self.serve()
        except BaseException as error:
            # Also a cancellation: this is the end of the task anyway.
            self._error = error
            self._was_stopped = isinstance(error, (anyio.get_cancelled_exc_class(), AbandonedError))
        self.ended = True
        self.tell()
        while self._afterwards:
            await self._afterwards.pop(0)()
        self._over = True

    def _then(self, function: Callable[[], Awaitable[None]]) -> None:
        if not self._over:
            self._afterwards.append(function)
        elif self.thread.loop is not None:
            self.thread.loop.spawn(function, self._name)

    def _cancel(self) -> None:
        self.answered = True
        self.tell()
        loop = self.thread.loop
        assert loop is not None
        # Not at once: what was said before, a message or an answer, is taken up before it.
        loop.soon(partial(loop.soon, self._cancel_now))

    def _cancel_now(self) -> None:
        if self.task is not None and not self.ended:
            self.task.cancel()

    def tell(self) -> None:
        """Let the waiting task look at what has changed; from any thread."""
        if not self._told:
            self._told = True
            self._port.note(self)


def name_backend(context: Context, backend: str) -> None:
    """Let anyio find the right backend in a context that comes from another one's loop."""
    sniffio = sys.modules.get("sniffio")
    if sniffio is not None:
        variable = sniffio.current_async_library_cvar
        if context.get(variable) not in (None, backend):
            context.run(variable.set, backend)
