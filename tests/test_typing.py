"""Types: the public interface says to a type checker what it does."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_typing_api() -> None:
    """mypy finds all that is right in `typing_api.py`, and every error that is marked there."""
    command = [sys.executable, "-m", "mypy", "tests/typing_api.py"]
    done = subprocess.run(
        command, cwd=ROOT, check=False, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stdout + done.stderr
