"""Run a kit on something that is right, or broken, and see which checks notice."""

from __future__ import annotations

import logging
import unittest
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

from sandboxpool import ConformanceError
from sandboxpool.testing import Conformance


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


async def noticed(kit: Conformance, checks: Collection[str]) -> set[str]:
    """Run some checks of a kit, and return those that fail."""
    failed = set()
    with silent():
        for name in checks:
            try:
                await getattr(kit, name)()
            except ConformanceError:
                failed.add(name)
            except unittest.SkipTest:
                pass
    return failed


def impatient(kit: type[Any], **members: Any) -> Any:
    """Return a kit that does not wait for long, with some of its methods replaced."""
    return type(kit.__name__, (kit,), {"patience": 0.5, **members})()
