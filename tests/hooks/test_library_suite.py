"""The standard library's own tests, each module in a cooperative request."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent

MODULES = {
    "test_socket": [],
    "test_ssl": ["SimpleBackgroundTests"],
    "test_selectors": [],
    "test_timeout": [],
    "test_httplib": [],
    "test_smtplib": [],
}


@pytest.mark.slow
@pytest.mark.skipif(
    importlib.util.find_spec("test.test_socket") is None,
    reason="this Python comes without its tests: the Debian package is libpython3-testsuite",
)
@pytest.mark.parametrize("module", MODULES)
def test_library(module: str) -> None:
    """What the standard library's tests ask of sockets holds in a cooperative request, too."""
    command = [sys.executable, "-m", "tests.hooks.library_suite", "asyncio", module]
    done = subprocess.run(
        [*command, *MODULES[module]],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-5000:]
