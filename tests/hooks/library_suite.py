"""
Run one of the standard library's own test modules in a cooperative request.

    python -m tests.hooks.library_suite asyncio test_socket [PATTERN...]

Its servers and its other sides are threads, which the hooks leave alone.
"""

from __future__ import annotations

import importlib
import sys
import unittest
from collections.abc import Iterator
from typing import Any

import anyio

from tests.wrap.client import Connection

from .request import hooked, sandboxed

HOOKS = ("sleep", "socket", "ssl", "dns", "select")

# What cannot be the same in a request, by a part of its name.
LEFT_OUT = {
    # An exception that a handler of a signal raises comes out of the event loop.
    "sendall_interrupted": "signals",
    "Interrupted": "signals",
    "select_interrupt": "signals",
    # A worker thread holds its last arguments until it gets others.
    "RefCountGetNameInfo": "worker threads",
    # `select.poll` is a class.
    "disallow_instantiation": "replacements",
    # Hangs where there is no virtual machine, also without hooks.
    "VSOCK": "not ours",
}


def kept(suite: unittest.TestSuite) -> Iterator[unittest.TestCase]:
    """Yield the tests of a suite that are not left out."""
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            yield from kept(test)
        elif not any(part in test.id() for part in LEFT_OUT):
            yield test


async def run(name: str, patterns: list[str]) -> unittest.TestResult:
    """Run the tests of a module in one request."""
    module: Any = importlib.import_module(f"test.{name}")
    loader = unittest.TestLoader()
    if patterns:
        loader.testNamePatterns = [f"*{pattern}*" for pattern in patterns]
    suite = unittest.TestSuite(kept(loader.loadTestsFromModule(module)))
    runner = unittest.TextTestRunner(verbosity=2)
    async with sandboxed(lambda: runner.run(suite), hooks=HOOKS, stall_after=None) as app:
        result: unittest.TestResult = (await Connection(app, "/0").run()).result
    return result


def main(backend: str, name: str, *patterns: str) -> int:
    """Install the hooks, run, and return the code to exit with."""
    with hooked(*HOOKS):
        result = anyio.run(run, name, list(patterns), backend=backend)
    return 0 if result.wasSuccessful() and result.testsRun else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
