"""What all tests share: the backends that they run on."""

from __future__ import annotations

import importlib.util
from typing import Any

import pytest

_BACKENDS = [
    pytest.param(("asyncio", {"use_uvloop": False}), id="asyncio"),
    pytest.param(("trio", {}), id="trio"),
]
_UVLOOP = pytest.param(
    ("asyncio", {"use_uvloop": True}),
    id="asyncio+uvloop",
    marks=pytest.mark.skipif(
        importlib.util.find_spec("uvloop") is None, reason="uvloop is not made for this platform"
    ),
)


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """
    Run each test of a coroutine on asyncio and on Trio.

    `@pytest.mark.backend_with_uvloop` adds asyncio with uvloop;
    `@pytest.mark.parametrize("anyio_backend", ["trio"], indirect=True)` chooses for itself.
    """
    if "anyio_backend" not in metafunc.fixturenames:
        return
    for mark in metafunc.definition.iter_markers("parametrize"):
        if "anyio_backend" in str(mark.args[0]).replace(" ", "").split(","):
            return
    with_uvloop = metafunc.definition.get_closest_marker("backend_with_uvloop") is not None
    backends = [*_BACKENDS, _UVLOOP] if with_uvloop else _BACKENDS
    metafunc.parametrize("anyio_backend", backends, indirect=True)


@pytest.fixture(scope="module")
def anyio_backend(request: pytest.FixtureRequest) -> Any:
    """Return the backend that `pytest_generate_tests` chose for this test."""
    return request.param
