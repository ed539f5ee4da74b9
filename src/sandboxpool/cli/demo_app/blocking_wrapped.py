"""The second app of the demo, wrapped in two ways: factories for `uvicorn --factory`."""

from __future__ import annotations

import os
from typing import Literal

import sandboxpool


def cooperative() -> sandboxpool.SandboxedApp:
    """Blocking calls suspend their request only."""
    return _wrapped("cooperative")


def thread() -> sandboxpool.SandboxedApp:
    """Each sandbox has a thread of its own."""
    return _wrapped("thread")


def _wrapped(run_in: Literal["cooperative", "thread"]) -> sandboxpool.SandboxedApp:
    users = int(os.environ.get("DEMO_USERS", "100"))
    # An import string, so that hooks are in place before the app is imported.
    return sandboxpool.wrap(
        "blocking:app",
        run_in=run_in,
        min_size=users,
        max_size=users,
        gc_freeze=True,
        stats="/stats",
    )
