"""Have the tasks that cooperative requests start on asyncio run cooperatively, too."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from sandboxpool._context import current

from .cooperative import made_cooperative

_eager_factory: Any = getattr(asyncio, "eager_task_factory", None)  # since Python 3.12


class Use:
    """How a loop's task factory came to be ours; set on it as `sandboxpool_use`.

    Args:
        inner: The factory that was there before; it goes on to make all tasks.

    Attributes:
        apps: How many need it.
    """

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        self.apps = 0


def take_over() -> Callable[[], None]:
    """Begin in the running loop; return what ends it."""
    loop: Any = asyncio.get_running_loop()
    factory: Any = loop.get_task_factory()
    if not hasattr(factory, "sandboxpool_use"):
        use = Use(factory)
        factory = _around(factory)
        factory.sandboxpool_use = use
        loop.set_task_factory(factory)
    use = factory.sandboxpool_use
    use.apps += 1

    def leave() -> None:
        use.apps -= 1
        # Somebody who has set another one since then may call this one: it stays in there.
        if not use.apps and loop.get_task_factory() is factory:
            loop.set_task_factory(use.inner)

    return leave


def _around(inner: Any) -> Any:
    if inner is None:
        task = asyncio.Task

        def new_task(loop: Any, steps: Any, **options: Any) -> Any:
            return task(_prepared(steps, options), loop=loop, **options)

        return new_task
    if _eager_factory is not None and getattr(inner, "__code__", 0) is _eager_factory.__code__:
        # One that asyncio makes, of the kind that anyio knows: it starts no child eagerly.
        construct = inner.__closure__[0].cell_contents

        def construct_task(steps: Any, **options: Any) -> Any:
            return construct(_prepared(steps, options), **options)

        make_eager: Any = asyncio.create_eager_task_factory  # type: ignore[attr-defined]
        return make_eager(construct_task)

    def task_of_another(loop: Any, steps: Any, **options: Any) -> Any:
        return inner(loop, _prepared(steps, options), **options)

    return task_of_another


def _prepared(steps: Any, options: Mapping[str, Any]) -> Any:
    """Return the coroutine of a new task, a cooperative one if that is a request's."""
    context = options.get("context")
    lease = current.get() if context is None else context.get(current)
    return steps if lease is None else made_cooperative(steps, lease)
