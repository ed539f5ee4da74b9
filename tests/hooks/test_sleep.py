"""`time.sleep` in cooperative requests."""

from __future__ import annotations

import time
import traceback
from functools import partial
from time import monotonic

import anyio
import pytest

from sandboxpool import hooks
from tests.wrap.client import Connection

from .request import alone, at_once, sandboxed

HOOKS = ("sleep",)

pytestmark = pytest.mark.usefixtures("cooperative")

_original = time.sleep


@pytest.mark.backend_with_uvloop
async def test_at_once() -> None:
    """A hundred requests that sleep at the same time take as long as one."""
    await at_once(lambda: time.sleep(0))
    before = monotonic()
    await at_once(*[lambda: time.sleep(0.3)] * 100)
    assert monotonic() - before < 0.3 * 100 / 5


async def test_control() -> None:
    """Without hooks the same sleeps add up."""
    before = monotonic()
    await at_once(*[lambda: time.sleep(0.1)] * 5, run_in="loop")
    assert monotonic() - before >= 0.5


async def test_what_is_no_duration() -> None:
    """A wrong duration is refused as by the original, with the frame of the caller."""
    with pytest.raises(ValueError, match="non-negative"):
        await alone(lambda: time.sleep(-1))
    with pytest.raises(TypeError) as caught:
        await alone(lambda: time.sleep("long"))  # type: ignore[arg-type]
    assert "<lambda>" in [frame.name for frame in traceback.extract_tb(caught.tb)]


@pytest.mark.backend_with_uvloop
async def test_no_time_at_all() -> None:
    """A request that sleeps for no time again and again lets the others run."""
    done: list[bool] = []

    def poll() -> None:
        while not done:
            time.sleep(0)

    await at_once(poll, lambda: done.append(True))


async def test_cancelled() -> None:
    """A request that is cancelled stops to sleep, and its clean-up may sleep again."""
    cleaned = []

    def sleep() -> None:
        try:
            time.sleep(60)
        finally:
            cleaned.append(True)

    with anyio.fail_after(5):
        async with sandboxed(sleep) as app:
            with anyio.move_on_after(0.1):
                await Connection(app, "/0").run()
    assert cleaned == [True]


async def test_execution_timeout() -> None:
    """The watchdog cuts a sleep short and answers for the app."""
    with anyio.fail_after(5):
        async with sandboxed(partial(time.sleep, 60), execution_timeout=0.1) as app:
            assert (await Connection(app, "/0").run()).status == 504


async def test_outside() -> None:
    """Outside of a request the original sleeps: the loop stands still."""
    ticks = []

    async def tick() -> None:
        ticks.append(True)

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(tick)
        time.sleep(0.01)
        assert ticks == []


def test_uninstalled() -> None:
    """After `uninstall()` the original is back."""
    assert time.sleep is not _original
    hooks.uninstall("sleep")
    assert time.sleep is _original
