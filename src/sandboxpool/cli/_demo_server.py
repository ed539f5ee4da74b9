"""The servers of the demo: uvicorn as a process, with one of the demo's apps."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from sandboxpool._exceptions import SandboxPoolError

_STARTING = 30.0  # seconds that a server may take to come up on a busy machine
_STOPPING = 10.0
_APP_DIR = Path(__file__).parent / "demo_app"


class DemoError(SandboxPoolError):
    """The demo could not be shown."""


@asynccontextmanager
async def serving(
    app: str,
    *options: str,
    environment: Mapping[str, str] | None = None,
    stopping: float = _STOPPING,
) -> AsyncIterator[int]:
    """Run uvicorn with one of the demo's apps; give the port that it chose.

    Args:
        app: Its import string.
        *options: More of uvicorn's options.
        environment: Variables for the process.
        stopping: Seconds that it gets to end by itself; a server that blocks cannot.

    Raises:
        DemoError: It did not start.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "uvicorn", app, "--app-dir", str(_APP_DIR)),
        *("--port", "0", "--no-access-log", "--no-use-colors", *options),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        env={**os.environ, **(environment or {})},
    )
    assert process.stdout is not None
    log: list[str] = []
    reading: asyncio.Task[None] | None = None
    try:
        try:
            port = await asyncio.wait_for(_port(process.stdout, log), _STARTING)
        except asyncio.TimeoutError:
            raise DemoError(_failure("uvicorn did not start", log)) from None
        reading = asyncio.create_task(_drain(process.stdout))
        yield port
    finally:
        if process.returncode is None:
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), stopping)
        except asyncio.TimeoutError:
            process.kill()
            await process.wait()
        except asyncio.CancelledError:
            process.kill()
            await process.wait()
            raise
        finally:
            if reading is not None:
                reading.cancel()


async def _port(output: asyncio.StreamReader, log: list[str]) -> int:
    while line := (await output.readline()).decode(errors="replace"):
        log.append(line.rstrip())
        if found := re.search(r"running on http://127\.0\.0\.1:(\d+)", line):
            return int(found[1])
    raise DemoError(_failure("uvicorn ended while starting", log))


def _failure(what: str, log: list[str]) -> str:
    last = next((line for line in reversed(log) if line.strip()), "it said nothing")
    return f"{what}: {last}"


async def _drain(output: asyncio.StreamReader) -> None:
    # A server that logs into a full pipe would stop.
    while await output.read(65536):
        pass
