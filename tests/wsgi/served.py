"""Wrap WSGI apps in each way that they can run, and ask them."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable, Iterable
from typing import Any

import anyio
import pytest

from sandboxpool import SandboxedApp, hooks, wrap
from tests.wrap.client import Connection

WAYS = ("loop", "thread", "cooperative")
each_way = pytest.mark.parametrize("run_in", WAYS)

StartResponse = Callable[..., Callable[[bytes], None]]


def wrapped(app: Any, run_in: str, **options: Any) -> SandboxedApp:
    """Wrap a WSGI app for a test."""
    if run_in == "cooperative":
        hooks.install("sleep")  # before, or it would be said to be late
        options["hooks"] = ("sleep",)
    options = {"min_size": 1, "max_size": 4, "stall_after": None, **options}
    sandboxed: SandboxedApp = wrap(app, wsgi=True, run_in=run_in, **options)  # type: ignore[call-overload]
    return sandboxed


@contextlib.asynccontextmanager
async def opened(app: Any, run_in: str, **options: Any) -> AsyncIterator[SandboxedApp]:
    """Wrap a WSGI app and open it."""
    async with wrapped(app, run_in, **options) as sandboxed:
        yield sandboxed


async def ask(
    app: Any, run_in: str, path: str = "/", *, body: Iterable[bytes] = (b"",), **scope: Any
) -> Connection:
    """Wrap an app, send it one request, and wait for all of the answer."""
    async with wrapped(app, run_in) as sandboxed:
        with anyio.fail_after(10):
            return await Connection(sandboxed, path, body=body, **scope).run()


class Blocks:
    """The body of a response: notes what is asked of it.

    Attributes:
        given: How many blocks were asked for.
        closed: How often it was closed.
    """

    def __init__(self, *blocks: Any) -> None:
        self.blocks = blocks
        self.given = 0
        self.closed = 0

    def __iter__(self) -> Blocks:
        return self

    def __next__(self) -> Any:
        if self.given == len(self.blocks):
            raise StopIteration
        block = self.blocks[self.given]
        self.given += 1
        if isinstance(block, Exception):
            raise block
        return block

    def close(self) -> None:
        self.closed += 1
