"""Run what was deferred to the end of a lease: shielded, bounded, the last one first."""

from __future__ import annotations

import logging
from collections.abc import Awaitable
from contextvars import Context
from math import inf

import anyio

from ._context import Deferred, RequestLease, call_deferred
from ._loop import Loop
from .run.loop import In

logger = logging.getLogger("sandboxpool")


async def run_deferred(
    loop: Loop,
    lease: RequestLease,
    context: Context,
    name: str,
    timeout: float | None,
    callbacks: Deferred | None,
    *,
    alive: bool = True,
    in_task: bool = False,
) -> None:
    """Run the deferred callbacks of a lease: as much as possible here and now.

    Cancelled meanwhile, it goes on to the end, and raises the cancellation then.

    Args:
        loop: The running loop.
        lease: The lease.
        context: The context variables to run them with.
        name: What errors call the app.
        timeout: Seconds for all that must be awaited, `None` for no limit.
        callbacks: The callbacks, in the order in which they were deferred.
        alive: Whether anything can be awaited at all.
        in_task: Whether to run all of them in a task of their own, because those that cannot be
            awaited may block cooperatively, too.
    """

    def report(error: BaseException) -> None:
        logger.error("%s: a deferred callback of %r failed", name, lease, exc_info=error)

    first: Awaitable[object] | None = None
    if not (in_task and alive):
        first = context.run(call_deferred, callbacks, report)
        while first is not None and not alive:
            getattr(first, "close", bool)()
            report(RuntimeError("the task of the request was dropped: nothing can be awaited"))
            first = context.run(call_deferred, callbacks, report)
        if first is None:
            return
    limit = anyio.CancelScope()

    async def await_all() -> None:
        limit.deadline = anyio.current_time() + (inf if timeout is None else timeout)
        with limit:
            pending = call_deferred(callbacks, report) if first is None else first
            while pending is not None:
                try:
                    await pending
                except Exception as error:
                    report(error)
                except anyio.get_cancelled_exc_class() as error:
                    if limit.cancel_called:
                        raise
                    report(error)  # what it awaited was cancelled, not this
                pending = call_deferred(callbacks, report)

    async def await_all_inside() -> None:
        await In(context, await_all())

    # A task of its own: whoever cancels the server's, however often, does not reach it.
    background = loop.spawn(await_all_inside, f"deferred callbacks of {lease.id}", context)
    cancelled: BaseException | None = None
    with anyio.CancelScope(shield=True):
        while True:
            try:
                await background.wait()
                break
            except anyio.get_cancelled_exc_class() as error:
                cancelled = error
    if limit.cancelled_caught:
        logger.error(
            "%s: the deferred callbacks of %r did not end within %s s", name, lease, timeout
        )
    if cancelled is not None:
        raise cancelled
