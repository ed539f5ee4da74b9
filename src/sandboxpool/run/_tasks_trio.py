"""Have the tasks that cooperative requests start on Trio run cooperatively, too."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import trio

from sandboxpool._context import current

from .cooperative import made_cooperative


class TaskInstrument(trio.abc.Instrument):
    """Sees the tasks of one run.

    Attributes:
        users: How many apps need it.
    """

    def __init__(self) -> None:
        self.users = 0

    def task_spawned(self, task: Any) -> None:
        """Take over a new task."""
        lease = task.context.get(current)
        if lease is not None:
            task.coro = made_cooperative(task.coro, lease)


_instrument: trio.lowlevel.RunVar[TaskInstrument] = trio.lowlevel.RunVar("sandboxpool_tasks")


def take_over() -> Callable[[], None]:
    """Begin in the running loop; return what ends it."""
    try:
        instrument = _instrument.get()
    except LookupError:
        instrument = TaskInstrument()
        _instrument.set(instrument)
    if not instrument.users:
        trio.lowlevel.add_instrument(instrument)
    instrument.users += 1

    def leave() -> None:
        instrument.users -= 1
        if not instrument.users:
            trio.lowlevel.remove_instrument(instrument)

    return leave
