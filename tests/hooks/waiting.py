"""Tells a test that a request has come to wait."""

from __future__ import annotations

import time
from typing import Any

from sandboxpool.hooks import _readiness


def until_blocked(*files: Any) -> None:
    """
    Wait, in a request, until other requests wait for these files.

    A file that stands there twice is waited for by two of them.
    """
    fds = [file if isinstance(file, int) else file.fileno() for file in files]
    while any(len(waiting(fd)) < fds.count(fd) for fd in fds):
        time.sleep(0.001)


def waiting(fd: int) -> list[Any]:
    """Return who waits for a file descriptor in the loop of this thread."""
    readiness = _readiness._here.readiness
    return [] if readiness is None else readiness.waits.get(fd, [])
