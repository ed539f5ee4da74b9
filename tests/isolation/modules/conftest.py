"""A folder on the import path for the packages of a test."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .probe import importable, write


@pytest.fixture
def package(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Return what writes files that can be imported; in the end no stand-in is left."""

    def add(text: str) -> Path:
        write(tmp_path, text)
        return tmp_path

    with importable(tmp_path):
        yield add
        left = [
            name
            for name, module in list(sys.modules.items())
            if type(module).__name__ == "ModuleStandIn"
        ]
        assert left == []
