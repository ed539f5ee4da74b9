"""Have the tasks that cooperative requests start on asyncio run cooperatively, too."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from sandboxpool._context import current

from .cooperative import made_cooperative


class TaskFactory:
    """Makes the tasks of one event loop.

    Args:
        inner: The factory that was there before; it goes on to make all tasks.

    Attributes:
        users: How many apps need it.
    """

    makes_cooperative = True

    def __init__(self, inner: Callable[..., Any] | None) -> None:
        self.inner = inner
        self.users = 0

    def __call__(self, loop: Any, steps: Any, **options: Any) -> Any:
        """Return a new task."""
        context = options.get("context")
        lease = current.get() if context is None else context.get(current)
        if lease is not None:
            steps = made_cooperative(steps, lease)
        if self.inner is None:
            return asyncio.Task(steps, loop=loop, **options)
        return self.inner(loop, steps, **options)


def take_over() -> Callable[[], None]:
    """Begin in the running loop; return what ends it."""
    loop: Any = asyncio.get_running_loop()
    found = loop.get_task_factory()
    factory = found if isinstance(found, TaskFactory) else TaskFactory(found)
    if factory is not found:
        loop.set_task_factory(factory)
    factory.users += 1

    def leave() -> None:
        factory.users -= 1
        # Somebody who has set another one since then may call this one: it stays in there.
        if not factory.users and loop.get_task_factory() is factory:
            loop.set_task_factory(factory.inner)

    return leave
