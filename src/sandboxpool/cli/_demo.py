"""`sandboxpool demo`: apps that leak and that block, and the same apps wrapped, on real sockets."""

from __future__ import annotations

import asyncio
import signal
import sys
from importlib.util import find_spec

from rich.console import Console

from ._demo_blocking import show_blocking
from ._demo_leak import show_leak
from ._demo_server import DemoError

_NEEDS = ("fastapi", "uvicorn")


def run_demo(*, seconds: float, users: int, blocked: int | None = None, sleep: float = 5.0) -> int:
    """Show both parts; return 0 if each of them came out as it should.

    Args:
        seconds: How long each half of the first part asks.
        users: How many ask at once in the first part.
        blocked: How many do in the second; 0 leaves it out, `None` is as many as are affordable.
        sleep: Seconds for which their requests block.

    Raises:
        DemoError: Something that it needs is missing, or does not start.
    """
    console = Console(highlight=False, soft_wrap=True)
    missing = [name for name in _NEEDS if find_spec(name) is None]
    if missing:
        raise DemoError(
            f"the demo runs a FastAPI app under uvicorn, and {' and '.join(missing)} cannot be "
            f"imported. Install with: pip install sandboxpool[cli,{','.join(_NEEDS)}]"
        )
    try:
        return asyncio.run(_show(console, seconds, users, blocked, sleep))
    except (KeyboardInterrupt, asyncio.CancelledError):
        console.print("Stopped; its server is gone.")
        return 130


async def _show(
    console: Console, seconds: float, users: int, blocked: int | None, sleep: float
) -> int:
    task = asyncio.current_task()
    assert task is not None
    if sys.platform != "win32":
        # SIGTERM would otherwise end this process and leave its servers behind.
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    well = await show_leak(console, seconds=seconds, users=users)
    if blocked != 0:
        well = await show_blocking(console, users=blocked, sleep=sleep) and well
    return _end(console, well)


def _end(console: Console, well: bool) -> int:
    """Say how to go on, or that it should not have come out like that."""
    if not well:
        console.print("\nThat is not what should have come out: please report it.")
        return 1
    console.print(
        "\nHow to go on:\n"
        "    app = sandboxpool.wrap(app)               in your main.py, then: uvicorn main:app\n"
        "    app = sandboxpool.wrap(app, run_in=...)   for an app that blocks\n"
        "    sandboxpool serve main:app --max-size 50  without a change in your code\n"
        "    sandboxpool serve main:app --run-in thread\n"
        "    sandboxpool serve --help                  all options"
    )
    return 0
