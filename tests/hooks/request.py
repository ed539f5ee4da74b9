"""Runs functions in cooperative requests, each in one of its own, on the running backend."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext
from functools import partial
from typing import Any

import anyio

from sandboxpool import wrap
from sandboxpool._sandboxed import SandboxedApp
from sandboxpool.hooks import install, installed, uninstall
from tests.wrap.client import Connection

# Long enough for a busy machine, short enough to end a test that hangs.
PATIENCE = 30.0


@contextmanager
def hooked(*names: Any) -> Iterator[None]:
    """Install hooks (the default ones if none is named), and take them out again."""
    before = installed()
    install(*names)
    try:
        yield
    finally:
        added = [name for name in installed() if name not in before]
        if added:
            uninstall(*added)


@asynccontextmanager
async def sandboxed(
    *functions: Callable[[], Any],
    run_in: Any = "cooperative",
    hooks: Iterable[Any] = (),
    **options: Any,
) -> AsyncIterator[SandboxedApp]:
    """
    Wrap an app whose path `/n` calls the nth function; what it returns is the request's result.

    Args:
        functions: Blocking functions, or coroutine functions.
        run_in: Where the requests run.
        hooks: The hooks of cooperative requests, uninstalled afterwards. If none is named, those
            that are installed already, or the default ones.
        options: More options of `wrap()`.
    """

    async def app(scope: Any, receive: Any, send: Any) -> Any:
        result = functions[int(scope["path"][1:])]()
        return await result if inspect.isawaitable(result) else result

    cooperative = run_in == "cooperative"
    hooks = tuple(hooks) or installed() or ("default",)
    with hooked(*hooks) if cooperative else nullcontext():
        options.setdefault("max_size", max(1, len(functions)))
        wrapped = wrap(app, run_in=run_in, hooks=hooks if cooperative else (), **options)
        async with wrapped:
            yield wrapped


async def at_once(*functions: Callable[[], Any], **options: Any) -> list[Any]:
    """
    Call functions at the same time, each in a request of its own.

    Args:
        functions: Blocking functions, or coroutine functions.
        options: Those of `sandboxed()`.

    Returns:
        What each of them returned.
    """
    results: list[Any] = [None] * len(functions)

    async def request(app: SandboxedApp, number: int) -> None:
        results[number] = (await Connection(app, f"/{number}").run()).result

    with anyio.fail_after(PATIENCE):
        async with sandboxed(*functions, **options) as app, anyio.create_task_group() as tasks:
            for number in range(len(functions)):
                tasks.start_soon(partial(request, app, number))
    return results


async def alone(function: Callable[[], Any], **options: Any) -> Any:
    """
    Call a function in a request, and raise what it raises as it is.

    Args:
        function: A blocking function, or a coroutine function.
        options: Those of `sandboxed()`.

    Returns:
        What it returned.
    """
    with anyio.fail_after(PATIENCE):
        async with sandboxed(function, **options) as app:
            return (await Connection(app, "/0").run()).result
