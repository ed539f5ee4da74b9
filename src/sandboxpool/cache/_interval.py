"""A value that is kept fresh by a task, so that hardly anybody ever waits for it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextvars import Context
from functools import partial
from inspect import iscoroutinefunction
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread

from sandboxpool._exceptions import CacheError
from sandboxpool._loop import Background, Loop, running_loop

from ._steps import drive, drive_blocking
from ._store import Found, Life

if TYPE_CHECKING:
    from ._core import Core

logger = logging.getLogger("sandboxpool.cache")


class Interval:
    """One key that is kept fresh.

    The task lives in one event loop of the process: that of the first reader. When that loop has
    ended, the next reader starts another one.
    """

    def __init__(
        self, core: Core, key: str, seconds: float, stale: float, resolver: Callable[[], Any]
    ) -> None:
        self.core = core
        self.key = key
        self.seconds = seconds
        self.stale = stale
        self.resolver = resolver
        self._loop: Loop | None = None
        self._task: Background | None = None
        self._due: anyio.Event | None = None
        self._stopped = False
        self._runs_begun = 0

    @classmethod
    def declare(
        cls, core: Core, key: str, seconds: float, stale: float, resolver: Callable[[], Any]
    ) -> None:
        """Take up a key, or the new terms of one: a private module declares it once per sandbox."""
        known = core.intervals.get(key)
        if known is None:
            core.intervals.setdefault(key, cls(core, key, seconds, stale, resolver))
        else:
            known.seconds, known.stale, known.resolver = seconds, stale, resolver

    def _life(self) -> Life:
        return Life(self.seconds, self.stale)

    # --- readers ------------------------------------------------------------------------------

    async def read(self) -> Any:
        """Return the value; resolve it if there is none that may be returned."""
        self._keep_running()
        core, store = self.core, self.core.store
        found = (
            await store.call(lambda: store.read(self.key)) if store.blocks else store.read(self.key)
        )
        if found is not None:
            return self._seen(found)
        steps = core.refreshing(self.key, self._life(), blocking=False).steps()
        call = store.call if store.blocks else None
        return await drive(steps, call, self.resolver, core.options.resolver_timeout)

    def read_blocking(self) -> Any:
        """Return the value, in a thread without an event loop."""
        core = self.core
        found = core.store.read(self.key)
        if found is not None and (found.fresh or self._runs()):
            return self._seen(found)
        if iscoroutinefunction(self.resolver):
            raise CacheError(
                f"{self.key!r} has no value yet, and its resolver is a coroutine function, which "
                "needs an event loop: `await cache.get(...)` once where one runs, such as in the "
                "lifespan of the app."
            )
        steps = core.refreshing(self.key, self._life(), blocking=True).steps()
        return drive_blocking(steps, self.resolver)

    def _seen(self, found: Found) -> Any:
        if found.fresh:
            self.core.counts.hits += 1
        else:
            self.core.counts.stale += 1
            if not found.resting:
                self._hurry()
        return self.core.packing.unpack(self.key, found.packed)

    # --- the task -----------------------------------------------------------------------------

    def _runs(self) -> bool:
        return self._task is not None and self._loop is not None and not self._loop.closed()

    def _keep_running(self) -> None:
        # Two threads may both come here first: then two tasks run, and single flight makes sure
        # that they do one work.
        if not self._runs() and not self._stopped:
            self._loop = running_loop()
            self._due = None
            self._runs_begun += 1
            run = partial(self._run, self._runs_begun)
            # In a context of its own: it is nobody's request.
            self._task = self._loop.spawn(run, f"keep {self.key!r} fresh", Context())

    def _hurry(self) -> None:
        """Have the value refreshed now: its task is late, or a clock was set forward."""
        loop, due = self._loop, self._due
        if loop is not None and due is not None:
            try:
                loop.call_from_thread(due.set)
            except RuntimeError:
                self._task = None  # the loop has just ended

    def stop(self) -> None:
        """End the task, from any thread."""
        self._stopped = True
        task, loop = self._task, self._loop
        if task is not None and loop is not None:
            try:
                loop.call_from_thread(task.cancel)
            except RuntimeError:
                pass  # the loop has ended, and the task with it

    async def _run(self, number: int) -> None:
        try:
            while not self._stopped:
                self._due = anyio.Event()
                pause = await self._refresh()
                with anyio.move_on_after(pause):
                    await self._due.wait()
        except Exception:
            logger.exception("%r is not kept fresh any more", self.key)
        finally:
            if self._runs_begun == number:
                self._task = None

    async def _refresh(self) -> float:
        """Refresh the value if it is due; return the seconds until it is again."""
        core, store = self.core, self.core.store
        steps = core.refreshing(self.key, self._life(), blocking=False).steps()
        call = store.call if store.blocks else None
        try:
            await drive(steps, call, self.resolver, core.options.resolver_timeout)
            found = await store.call(lambda: store.read(self.key)) if call else store.read(self.key)
        except Exception as error:
            logger.warning("%r could not be refreshed", self.key, exc_info=error)
            return max(core.options.retry_after, 0.05)
        if found is None or not found.fresh:
            return max(core.options.retry_after, 0.05)
        return min(max(found.remaining, 0.001), self.seconds)
