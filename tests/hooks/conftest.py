"""What the tests of hooks share."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from .request import hooked


@pytest.fixture
def cooperative(request: pytest.FixtureRequest) -> Iterator[None]:
    """
    Have hooks installed during a test, also where it makes its locks.

    Those that the test's module names in `HOOKS`, otherwise the default ones.
    """
    with hooked(*getattr(request.module, "HOOKS", ())):
        yield
