"""What the tests of sandboxes in threads share."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import anyio
from anyio import to_thread

from sandboxpool import SandboxedApp, wrap
from tests.wrap.client import Connection

PATIENCE = 10.0  # seconds until a test gives up on something that should happen at once


def in_threads(app: Any, **options: Any) -> SandboxedApp:
    """Wrap an app to run in threads; a raw one has no lifespan, unless the options say so."""
    options.setdefault("lifespan", "off")
    options.setdefault("min_size", 1)
    options.setdefault("max_size", 1)
    options.setdefault("stall_after", None)
    return wrap(app, run_in="thread", **options)


async def until(true: Callable[[], object]) -> None:
    """Wait until something is true."""
    with anyio.fail_after(PATIENCE):
        while not true():
            await anyio.sleep(0.005)


async def wait_for(event: threading.Event) -> None:
    """Wait for an event of another thread without blocking the loop."""
    assert await to_thread.run_sync(event.wait, PATIENCE)


async def together(app: Any, count: int, path: str = "/", **scope: Any) -> list[Connection]:
    """Send so many requests at once; return all of their connections."""
    connections = [Connection(app, path, **scope) for _ in range(count)]
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as tasks:
            for connection in connections:
                tasks.start_soon(connection.run)
    return connections


def sandbox_threads() -> list[threading.Thread]:
    """Return the threads of sandboxes that are alive."""
    return [thread for thread in threading.enumerate() if " sandbox " in thread.name]
