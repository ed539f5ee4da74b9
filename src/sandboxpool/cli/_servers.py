"""The servers that `sandboxpool serve` can start, each through its own command line.

So all of their options can be given behind `--`, their environment variables work, and the exit
code is theirs.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
from importlib.util import find_spec
from typing import Any

from sandboxpool._exceptions import OptionError

WORKER = "sandboxpool.cli._worker:app"
SERVERS = ("uvicorn", "hypercorn", "granian")


def check_server(server: str, *, reload: bool) -> None:
    """Refuse a server that is not installed, or cannot do what was asked for.

    Raises:
        OptionError: With what to install, or to leave out.
    """
    if find_spec(server) is None:
        raise OptionError(
            f"the server {server} is not installed. "
            f"Install it with: pip install sandboxpool[{server}]"
        )
    if reload and server != "uvicorn":
        raise OptionError(f"--reload works with uvicorn, not with {server}.")


def check_worker() -> int:
    """Load the app once in a process of its own; return its exit code.

    What cannot be loaded is better found before a server starts processes for it: uvicorn's
    supervisor starts a worker that dies again and again, hypercorn leaves with 0.
    """
    code = "import sandboxpool.cli._worker"
    return subprocess.run([sys.executable, "-c", code], check=False).returncode


def in_process(server: str, *, workers: int, reload: bool) -> bool:
    """Tell whether the app is loaded in this process rather than in workers."""
    return server == "uvicorn" and workers == 1 and not reload


def run_server(
    server: str, *, host: str, port: int, workers: int, reload: bool, extra: tuple[str, ...]
) -> None:
    """Run a server until it ends; leaves with its exit code.

    Args:
        server: One of `SERVERS`.
        host: The address to listen at.
        port: The port.
        workers: How many worker processes.
        reload: Whether to restart when the code changes.
        extra: Further arguments for the server's own command line.
    """
    if server == "uvicorn":
        arguments = ["--host", host, "--port", str(port)]
        arguments += ["--reload"] if reload else ["--workers", str(workers)]
        command: Any = importlib.import_module("uvicorn.main").main
        command([*arguments, *extra, WORKER], prog_name="uvicorn")
    elif server == "hypercorn":
        address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
        arguments = ["--bind", address, "--workers", str(workers)]
        command = importlib.import_module("hypercorn.__main__").main
        sys.exit(command([*arguments, *extra, WORKER]))
    else:
        arguments = ["--interface", "asgi", "--host", host, "--port", str(port)]
        arguments += ["--workers", str(workers)]
        command = importlib.import_module("granian.cli").cli
        command([*arguments, *extra, WORKER], prog_name="granian")
