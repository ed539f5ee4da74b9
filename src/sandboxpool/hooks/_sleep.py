"""`time.sleep`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import wraps

import anyio
import anyio.lowlevel

from sandboxpool.run.cooperative import await_, stepper

from ._patch import Patch

_sleep = time.sleep


@wraps(_sleep)
def sleep(seconds: float, /) -> None:
    """Sleep; a cooperative request lets the others run meanwhile."""
    if stepper() is None:
        return _sleep(seconds)
    if not seconds > 0:
        _sleep(seconds)  # refuses what is no duration
        return await_(anyio.lowlevel.checkpoint())  # and a loop around this must let others run
    return await_(anyio.sleep(seconds))


def patches() -> Iterator[Patch]:
    """Yield what is replaced."""
    yield Patch(time, "sleep", sleep)
