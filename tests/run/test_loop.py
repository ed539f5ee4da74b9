"""How a call is driven on the server's own loop."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Generator
from contextvars import copy_context
from types import coroutine
from typing import Any

import pytest

from sandboxpool._context import RequestLease
from sandboxpool.run.loop import Running, call_plainly, drive


class Oops(Exception):
    """An error of the app's own."""


@coroutine
def wait() -> Generator[str, None, None]:
    """Leave the loop once."""
    yield "waiting"


@pytest.mark.parametrize("run", [call_plainly, copy_context().run])
def test_thrown_exceptions_keep_nothing_alive(run: Any) -> None:
    """An exception that was thrown into a call is gone with it, without the garbage collector."""

    async def app() -> None:
        await wait()

    lease = RequestLease(None, None, {})  # type: ignore[arg-type] # nobody asks for its sandbox
    call: Any = drive(Running(), lease, run, app())
    gc.collect()
    gc.disable()
    try:
        assert call.send(None) == "waiting"
        error = Oops("thrown in")
        known = weakref.ref(error)
        came_out = False
        try:
            call.throw(error)
        except Oops:
            came_out = True
        del error, call
        assert came_out
        assert known() is None
    finally:
        gc.enable()
