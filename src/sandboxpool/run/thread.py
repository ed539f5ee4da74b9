"""Run each sandbox in a thread and an event loop of its own, which it may block."""

from __future__ import annotations

import logging
import os
from collections.abc import Awaitable, Mapping
from contextvars import copy_context
from functools import partial
from importlib.util import find_spec
from inspect import isawaitable
from itertools import count
from typing import Any

import anyio

from sandboxpool._context import RequestLease
from sandboxpool._deferred import run_deferred
from sandboxpool._exceptions import ThreadLimitError
from sandboxpool._loop import running_loop
from sandboxpool._stacks import is_waiting, stack_of_steps, stack_of_thread
from sandboxpool._types import Receive, Scope, Send
from sandboxpool.abc import Sandbox, SandboxFactory
from sandboxpool.isolation._per_loop import PerLoop

from ._crossing import Crossing
from ._errand import Errand, Port
from ._loop_thread import LoopThread
from ._open_files import check_files, no_files, ran_out

logger = logging.getLogger("sandboxpool.threads")

# Seconds between two looks after worker threads that do not stop.
_LOOKS_EVERY = 0.05
# File descriptors that an event loop holds from the start.
_FILES = {"asyncio": 1 if hasattr(os, "eventfd") else 3, "uvloop": 5, "trio": 3}


class ThreadSandbox:
    """A sandbox whose app runs in a thread of its own.

    Whatever it has not itself is that of the sandbox in the thread: `app`, `twin()` and so on.

    Attributes:
        inner: The sandbox in the thread.
        thread: The thread.
        port: Wakes tasks of the server's loop.
        call: The call that it serves, or has served last.
        life: What the factory has in the server's loop.
    """

    def __init__(
        self, factory: ThreadFactory, thread: LoopThread, port: Port, inner: Sandbox, life: Any
    ) -> None:
        self.inner = inner
        self.thread = thread
        self.call: Crossing | None = None
        self.life = life
        self._factory = factory
        self.port = port

    def __repr__(self) -> str:
        return f"<ThreadSandbox {self.inner!r} in {self.thread.thread.name!r}>"

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or name == "inner":
            raise AttributeError(name)
        return getattr(self.inner, name)

    async def __call__(self, scope: Scope, receive: Receive, send: Send, /) -> Any:
        """Serve one call in the thread; what the app returns or raises is handed on."""
        call = Crossing(self.thread, self.port, self.inner, scope, receive, send)
        self.call = call
        try:
            return await call.run()
        finally:
            if call.blocks_thread:
                self._factory.abandon(self)

    def reset(self) -> Awaitable[None] | None:
        """Make the sandbox as good as new."""
        return self._factory.reset(self)

    async def aclose(self) -> None:
        """End the sandbox and its thread."""
        await self._factory.destroy(self)

    async def run_deferred(
        self, lease: RequestLease, name: str, timeout: float | None, *, alive: bool
    ) -> None:
        """Run what was deferred to the end of a lease, in the thread in which the app ran."""
        call = self.call
        assert call is not None
        callbacks = lease._deferred  # the lease may be sealed before they run

        async def run_all() -> None:
            loop = self.thread.loop
            assert loop is not None
            await run_deferred(loop, lease, call.app_context, name, timeout, callbacks)

        if alive and call.ended:
            await Errand(
                self.thread, self.port, run_all, f"callbacks of {lease!r}", copy_context()
            ).run()
        else:
            call.then(run_all)

    def stack_of_call(self) -> str:
        """Return where the app is, outermost first."""
        blocked, frames = stack_of_thread(self.thread.thread.ident or 0)
        if frames and not is_waiting(frames[-1]):
            return blocked
        stacks = [] if self.call is None else [stack_of_steps(self.call.steps)]
        for worker in self.thread.busy_workers():
            stacks.append(f"  in {worker.name}:\n{stack_of_thread(worker.ident or 0)[0]}")
        return "\n".join(stacks)


class ThreadFactory:
    """Makes sandboxes that run in threads of their own.

    Args:
        inner: Makes what runs in them. Its `start()` and `stop()` run in the server's loop,
            everything else in the thread of the sandbox.
        backend: `"asyncio"`, `"uvloop"`, `"trio"`, or `"auto"` for the one of the server.
        stack_size: Bytes of address space for the stack of a thread.
        max_abandoned: Threads that may be left behind, `None` for no limit.
        resets_in_thread: Whether a reset must run in the thread of the sandbox.
        name: What errors and threads call the app.
    """

    def __init__(
        self,
        inner: SandboxFactory,
        *,
        backend: str = "auto",
        stack_size: int = 4 * 1024 * 1024,
        max_abandoned: int | None = 100,
        resets_in_thread: bool = True,
        name: str = "app",
    ) -> None:
        if backend in ("uvloop", "trio") and not _can_be_imported(backend):
            raise ImportError(
                f"thread_backend={backend!r} needs {backend}, which is not installed: "
                f"pip install {backend}."
            )
        self.lease_owner = inner
        self._backend = backend
        self._stack_size = stack_size
        self._max_abandoned = max_abandoned
        self._resets_in_thread = resets_in_thread
        self._name = name
        self.ports = PerLoop(lambda: Port(running_loop()), bool)
        self._numbers = count(1)
        self._abandoned: set[LoopThread] = set()
        self._starting: set[LoopThread] = set()

    def __repr__(self) -> str:
        return f"<ThreadFactory of {self.lease_owner!r}>"

    @property
    def abandoned(self) -> int:
        """How many threads were left behind and have not come to their end yet."""
        return len(self._abandoned)

    @property
    def lifespan_state(self) -> Mapping[str, Any]:
        """What a lifespan that runs once put into `scope["state"]`."""
        state: Mapping[str, Any] = getattr(self.lease_owner, "lifespan_state", {})
        return state

    # --- a sandbox factory --------------------------------------------------------------------

    async def start(self) -> None:
        """Start what makes the sandboxes."""
        self.ports.here()
        await self.lease_owner.start()

    async def start_unasked(self) -> None:
        """Start it although the server sends no lifespan events."""
        self.ports.here()
        await getattr(self.lease_owner, "start_unasked", self.lease_owner.start)()

    async def stop(self) -> None:
        """Stop what makes the sandboxes; abandoned threads are left alone."""
        self.ports.pop()
        await self.lease_owner.stop()

    async def create(self) -> ThreadSandbox:
        """Start a thread, and make a sandbox in it.

        Raises:
            ThreadLimitError: There are too many abandoned threads, or no further thread or file
                descriptor is to be had.
        """
        backend = self._backend if self._backend != "auto" else _backend_here()
        self._check_limits(backend)
        inner, port = self.lease_owner, self.ports.here()
        life = inner.life() if hasattr(inner, "life") else None
        thread = LoopThread(
            f"{self._name} sandbox {next(self._numbers)}", backend, self._stack_size, self._ended
        )
        make = inner.create if life is None else partial(inner.create_in, life)  # type: ignore[attr-defined]
        name = f"create a sandbox of {self._name}"
        errand = Errand(thread, port, make, name, copy_context(), starts=True)
        self._starting.add(thread)
        try:
            made = await errand.run()
        except BaseException as error:
            self._end(thread, errand)
            if thread.loop is None and ran_out(error):
                raise no_files(_FILES[backend], _what(backend), "all") from error
            raise
        finally:
            self._starting.discard(thread)
        return ThreadSandbox(self, thread, port, made, life)

    def reset(self, sandbox: ThreadSandbox, /) -> Awaitable[None] | None:
        """Make a sandbox as it was after start-up."""
        sandbox.call = None
        if not self._resets_in_thread:
            # Plain objects, which nobody uses now: that needs no crossing.
            return self.lease_owner.reset(sandbox.inner)
        return self._reset(sandbox)

    async def _reset(self, sandbox: ThreadSandbox) -> None:
        async def reset() -> None:
            pending = self.lease_owner.reset(sandbox.inner)
            if isawaitable(pending):
                await pending

        name = f"reset a sandbox of {self._name}"
        errand = Errand(sandbox.thread, sandbox.port, reset, name, copy_context())
        try:
            await errand.run()
        finally:
            if not errand.ended:
                self._abandon(sandbox.thread)

    async def destroy(self, sandbox: ThreadSandbox, /) -> None:
        """End a sandbox in its thread, and the thread."""
        thread, call = sandbox.thread, sandbox.call
        end = partial(self._destroy, sandbox)
        if thread in self._abandoned:
            return  # it does that itself, if it ever comes to it
        if call is not None and not call.ended:
            # It was cut off and still cleans up.
            call.then(end)
            try:
                await thread.wait()
            finally:
                self._end(thread, call)
            return
        name = f"destroy a sandbox of {self._name}"
        errand = Errand(thread, sandbox.port, end, name, copy_context())
        try:
            await errand.run()
        finally:
            self._end(thread, errand)
        await thread.wait()

    async def _destroy(self, sandbox: ThreadSandbox) -> None:
        inner = self.lease_owner
        try:
            if sandbox.life is not None:
                await inner.destroy_in(sandbox.life, sandbox.inner)  # type: ignore[attr-defined]
            else:
                pending = inner.destroy(sandbox.inner)
                if isawaitable(pending):
                    await pending
        finally:
            try:
                await sandbox.thread.closers.close_all(self._name)
            finally:
                sandbox.thread.stop()

    # --- threads that do not stop -------------------------------------------------------------

    def _check_limits(self, backend: str) -> None:
        if self._max_abandoned is not None and len(self._abandoned) >= self._max_abandoned:
            raise ThreadLimitError(
                f"{len(self._abandoned)} threads of {self._name} are still in calls that were cut "
                f"off, as many as max_abandoned={self._max_abandoned} allows, so no further "
                "sandbox is made. The log says where each of them hangs: give those calls a time "
                "limit of their own, or raise max_abandoned."
            )
        # Those that start right now have not opened their files yet, and still will.
        starting = sum(thread.loop is None for thread in self._starting)
        check_files(_FILES[backend], _what(backend), starting * _FILES[backend])

    def abandon(self, sandbox: ThreadSandbox) -> None:
        """Leave a thread behind that does not stop; it ends the sandbox when it comes to it."""
        call = sandbox.call
        assert call is not None
        self._abandon(sandbox.thread, sandbox.stack_of_call())
        call.then(partial(self._destroy_abandoned, sandbox))

    async def _destroy_abandoned(self, sandbox: ThreadSandbox) -> None:
        # The call may be over, and a worker thread of it be still running.
        while sandbox.thread.busy_workers():  # noqa: ASYNC110 - nobody tells when they end
            await anyio.sleep(_LOOKS_EVERY)
        await self._destroy(sandbox)

    def _end(self, thread: LoopThread, errand: Errand) -> None:
        """End a thread whose errand should have come to its end."""
        if not errand.ended and thread.loop is not None:
            self._abandon(thread)
        thread.stop()

    def _abandon(self, thread: LoopThread, stack: str | None = None) -> None:
        if thread in self._abandoned:
            return
        self._abandoned.add(thread)
        # In this order: a thread that ends sets it before it looks whether it was abandoned.
        if thread.over:
            self._abandoned.discard(thread)
            return
        logger.error(
            "%s does not stop; it is abandoned, and ends by itself when what it is in returns "
            "(%d threads are abandoned). It is at:\n%s",
            thread.thread.name,
            len(self._abandoned),
            stack or stack_of_thread(thread.thread.ident or 0)[0],
        )
        thread.interrupt()

    def _ended(self, thread: LoopThread) -> None:
        # In the thread itself.
        if thread in self._abandoned:
            self._abandoned.discard(thread)
            logger.info("%s, which was abandoned, has ended", thread.thread.name)


def _what(backend: str) -> str:
    return f"a sandbox with an event loop of {backend}"


def _can_be_imported(name: str) -> bool:
    try:
        return find_spec(name) is not None
    except ValueError:  # somebody has forbidden it, by an entry in `sys.modules`
        return False


def _backend_here() -> str:
    loop = running_loop()
    if loop.backend == "trio":
        return "trio"
    native: Any = getattr(loop, "native", None)
    return "uvloop" if type(native).__module__.partition(".")[0] == "uvloop" else "asyncio"
