"""The monitor's thread, in a process of its own: what it logs, and that it lives on."""

from __future__ import annotations

import subprocess
import sys

import pytest

CODE = """
import anyio, logging, sys, time
import sandboxpool

logging.basicConfig(stream=sys.stdout, format="%(message)s")

async def app(scope, receive, send):
    time.sleep(0.3)

async def call(sandboxed, path):
    scope = {"type": "http", "method": "GET", "path": path, "headers": []}
    await sandboxed(scope, anyio.sleep_forever, anyio.sleep)

async def main():
    sandboxed = sandboxpool.wrap(app, stall_after=0.1)
    async with sandboxed:
        for number in (1, 2):
            await call(sandboxed, f"/blocking{number}")
            last = None
            while last is None or last.path != f"/blocking{number}":
                await anyio.sleep(0.01)
                last = sandboxed._runtime.monitor.last

anyio.run(main, backend=sys.argv[1])
"""


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_the_monitor_outlives_the_request_that_it_names(backend: str) -> None:
    """A request that is over when the loop is free again is still named, and so is the next."""
    done = subprocess.run(
        [sys.executable, "-c", CODE, backend], capture_output=True, text=True, timeout=60
    )
    assert done.stderr == ""
    for number in (1, 2):
        assert f"by request GET /blocking{number} (lease" in done.stdout
        assert f"free again; request GET /blocking{number} (lease" in done.stdout
