"""Nothing is found in apps that share nothing between requests."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandboxpool.check._static import read_app

from .clean import CLEAN
from .planted import write


@pytest.mark.parametrize("name", CLEAN)
def test_clean_apps_have_no_findings(name: str, tmp_path: Path) -> None:
    """Constants, registries, start-up, first uses and objects of a request are no findings."""
    write(tmp_path, CLEAN[name])
    found = read_app("shop.main:app", app_dir=tmp_path)
    assert [(one.rule, one.line, one.code, one.message) for one in found.findings] == []
    assert found.functions  # it was not only for want of code that runs in requests
    assert found.unreadable == []
