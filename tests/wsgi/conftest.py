"""What the tests of WSGI apps share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from sandboxpool import hooks


@pytest.fixture(autouse=True)
def no_hooks_left() -> Iterator[None]:
    """Put back what wrap(run_in="cooperative") has replaced."""
    yield
    hooks.uninstall()
