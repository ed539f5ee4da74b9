"""A pool that shares no code with the library's: plain lists and events, as short as it can be."""

from __future__ import annotations

import asyncio
import inspect
from collections import deque
from collections.abc import Awaitable, Callable
from contextvars import Context, ContextVar
from typing import Any

import anyio
import trio

from sandboxpool import (
    FactoryError,
    NestedAcquireError,
    PoolClosedError,
    PoolFullError,
    PoolStatistics,
    PoolTimeoutError,
)

in_hook: ContextVar[tuple[object, ...]] = ContextVar("in_hook", default=())
tasks: set[Any] = set()


def spawn(function: Callable[[], Awaitable[None]]) -> None:
    """Run a function in a task of nobody, with no context variables."""

    async def run() -> None:
        await function()

    try:
        task = Context().run(asyncio.get_running_loop().create_task, run())
    except RuntimeError:
        trio.lowlevel.spawn_system_task(run, context=Context())
    else:
        tasks.add(task)
        task.add_done_callback(tasks.discard)


class Waiter:
    """Somebody in the queue."""

    def __init__(self) -> None:
        self.told = anyio.Event()
        self.item: Any = None
        self.error: Exception | None = None


class SmallLease:
    """One use of an item."""

    def __init__(self, pool: SmallPool, timeout: float | None) -> None:
        self.pool = pool
        self.timeout = timeout

    async def __aenter__(self) -> Any:
        self.item = await self.pool.acquire(self.timeout)
        return self.item

    async def __aexit__(self, *exc_info: object) -> None:
        self.pool.release(self.item)


class SmallPool:
    """The pool; a test breaks one of its methods at a time."""

    lease_class = SmallLease

    def __init__(
        self,
        factory: Any,
        *,
        max_size: int,
        acquire_timeout: float | None,
        max_waiting: int | None = None,
    ) -> None:
        self.factory = factory
        self.max_size = max_size
        self.acquire_timeout = acquire_timeout
        self.max_waiting = max_waiting
        self.closed = False
        self.idle: list[Any] = []
        self.in_use: list[Any] = []
        self.queue: deque[Waiter] = deque()
        self.old: list[Any] = []  # what goes when it comes back
        self.size = self.creating = self.resetting = self.closing = 0
        self.counts = dict.fromkeys(("leases", "waits", "timeouts", "refusals", "created"), 0)
        self.peak = 0
        self.changed = anyio.Event()

    def lease(self, *, timeout: float | None = -1) -> Any:
        return self.lease_class(self, self.acquire_timeout if timeout == -1 else timeout)

    # --- leases -------------------------------------------------------------------------------

    async def acquire(self, timeout: float | None) -> Any:
        self.may_lease()
        if self.idle:
            item = self.idle.pop()
        else:
            self.counts["waits"] += 1
            item = await self.wait(timeout)
        self.counts["leases"] += 1
        return self.lend(item)

    def may_lease(self) -> None:
        if self.closed:
            raise PoolClosedError("closed")
        if self in in_hook.get():
            raise NestedAcquireError("nested")

    def lend(self, item: Any) -> Any:
        if item not in self.in_use:
            self.in_use.append(item)
        self.peak = max(self.peak, len(self.in_use))
        return item

    async def wait(self, timeout: float | None) -> Any:
        if self.max_waiting is not None and len(self.queue) - self.creating >= self.max_waiting:
            self.counts["refusals"] += 1
            raise PoolFullError("full")
        waiter = Waiter()
        self.enqueue(waiter)
        self.grow()
        try:
            with anyio.fail_after(timeout):
                await waiter.told.wait()
        except TimeoutError:
            self.leave(waiter)
            self.counts["timeouts"] += 1
            raise PoolTimeoutError("timeout") from None
        except BaseException:
            self.leave(waiter)
            raise
        if waiter.error is not None:
            raise waiter.error
        return waiter.item

    def enqueue(self, waiter: Waiter) -> None:
        self.queue.append(waiter)

    def leave(self, waiter: Waiter) -> None:
        if waiter in self.queue:
            self.queue.remove(waiter)
        elif waiter.item is not None:
            self.in_use.remove(waiter.item)
            self.put(waiter.item)

    def put(self, item: Any) -> None:
        """Give an item that is ready to whom it belongs."""
        if self.closed or self.size > self.max_size or item in self.old:
            self.retire(item)
        elif self.queue:
            waiter = self.next_waiter()
            waiter.item = item
            self.lend(item)
            waiter.told.set()
        else:
            self.idle.append(item)
        self.note()

    def next_waiter(self) -> Waiter:
        return self.queue.popleft()

    def release(self, item: Any) -> None:
        if item not in self.in_use:
            return  # it was cut off
        self.in_use.remove(item)
        if self.closed or self.size > self.max_size or item in self.old:
            self.retire(item)
            return
        try:
            pending = self.factory.reset(item)
        except Exception:
            self.retire(item)
            return
        if inspect.isawaitable(pending):
            self.resetting += 1
            self.finish(item, pending)
        else:
            self.put(item)
        self.note()

    def finish(self, item: Any, pending: Awaitable[None]) -> None:
        async def run() -> None:
            try:
                await pending
            except Exception:
                self.resetting -= 1
                self.retire(item)
            else:
                self.resetting -= 1
                self.put(item)

        spawn(run)

    # --- items --------------------------------------------------------------------------------

    def grow(self) -> None:
        while self.size < self.max_size and self.creating < len(self.queue):
            self.size += 1
            self.creating += 1
            spawn(self.create)

    async def create(self) -> None:
        in_hook.set((self,))
        try:
            item = await self.factory.create()
        except Exception as error:
            self.creating -= 1
            self.size -= 1
            self.create_failed(error)
        else:
            self.creating -= 1
            self.counts["created"] += 1
            self.put(item)

    def create_failed(self, cause: Exception) -> None:
        while self.queue:
            error = FactoryError("create failed", phase="create")
            error.__cause__ = cause
            self.fail(self.queue.popleft(), error)
            if self.size:
                break
        self.grow()
        self.note()

    def fail(self, waiter: Waiter, error: Exception) -> None:
        waiter.error = error
        waiter.told.set()

    def retire(self, item: Any) -> None:
        self.closing += 1
        spawn(lambda: self.destroy(item))

    async def destroy(self, item: Any) -> None:
        try:
            pending = self.factory.destroy(item)
            if inspect.isawaitable(pending):
                await pending
        except Exception:
            pass
        self.destroyed(item)

    def destroyed(self, item: Any) -> None:
        self.closing -= 1
        self.size -= 1
        if item in self.old:
            self.old.remove(item)
        if not self.closed:
            self.grow()
        self.note()

    # --- life ---------------------------------------------------------------------------------

    def note(self) -> None:
        self.changed.set()
        self.changed = anyio.Event()

    async def until(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self.changed.wait()

    async def resize(self, *, min_size: int | None = None, max_size: int | None = None) -> None:
        self.max_size = self.max_size if max_size is None else max_size
        self.shrink()
        self.grow()

    def shrink(self) -> None:
        while self.idle and self.size - self.closing > self.max_size:
            self.retire(self.idle.pop())

    async def drain(self, timeout: float | None = None) -> bool:
        old, self.old = self.idle + self.in_use, self.old + self.idle + self.in_use
        self.drain_idle()
        with anyio.move_on_after(timeout):
            await self.until(lambda: not any(item in self.old for item in old))
        return not any(item in self.old for item in old)

    def drain_idle(self) -> None:
        while self.idle:
            self.retire(self.idle.pop())

    async def aclose(self, timeout: float | None = None) -> None:
        self.begin_close()
        try:
            with anyio.move_on_after(timeout):
                await self.until(lambda: not self.in_use)
        finally:
            self.cut()
            with anyio.move_on_after(0.2, shield=True):  # a broken one must not hang the tests
                await self.until(lambda: not self.size)

    def begin_close(self) -> None:
        self.closed = True
        self.drain_idle()
        while self.queue:
            self.fail(self.queue.popleft(), PoolClosedError("closed meanwhile"))

    def cut(self) -> None:
        while self.in_use:
            self.retire(self.in_use.pop())

    def statistics(self) -> PoolStatistics:
        figures: dict[str, Any] = {
            "name": "small", "min_size": 0, "max_size": self.max_size, "size": self.size,
            "idle": len(self.idle), "in_use": len(self.in_use), "creating": self.creating,
            "resetting": self.resetting, "closing": self.closing, "waiting": len(self.queue),
            "peak_in_use": self.peak, "wait_time": 0.0, "hold_time": 0.0, "create_failures": 0,
            "resets": 0, "reset_failures": 0, "retired": {}, **self.counts,
        }  # fmt: skip
        return PoolStatistics(**figures)
