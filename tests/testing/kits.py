"""Run a kit on something that is right, or broken, and see which checks notice."""

from __future__ import annotations

import logging
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from sandboxpool import ConformanceError
from sandboxpool._loop import running_backend
from sandboxpool.testing import Conformance, broken_rules


@contextmanager
def silent() -> Iterator[None]:
    """Have the library log nothing: what goes wrong is what the checks are about."""
    logger = logging.getLogger("sandboxpool")
    before, logger.disabled = logger.disabled, True
    levels = [(logging.getLogger(n), logging.getLogger(n).level) for n in ("sandboxpool.pool",)]
    for child, _ in levels:
        child.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.disabled = before
        for child, level in levels:
            child.setLevel(level)


async def noticed(kit: Conformance, meant: Collection[str]) -> set[str]:
    """Return which checks fail.

    On asyncio all of them are run, on Trio only those that are *meant* to fail: what one backend
    shows about the others needs no second look.
    """
    with silent():
        if running_backend() == "asyncio":
            return {error.check for error in await broken_rules(kit)}
        failed = set()
        for name in meant:
            try:
                await getattr(kit, name)()
            except ConformanceError:
                failed.add(name)
        return failed


def impatient(kit: type[Any], **members: Any) -> Any:
    """Return a kit that does not wait for long, with some of its methods replaced."""
    return type(kit.__name__, (kit,), {"patience": 0.5, **members})()
