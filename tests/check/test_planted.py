"""Each planted bug is found by reading, in its line and by its rule, and nothing else is."""

from __future__ import annotations

from pathlib import Path

import pytest

from sandboxpool.check._rules import RULES
from sandboxpool.check._static import read_app

from .planted import PLANTED, write


@pytest.mark.parametrize("name", PLANTED)
def test_planted_bugs_are_found(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted bug is reported where it is, by the rule that it breaks, and no line beside it."""
    expected = write(tmp_path, PLANTED[name])
    assert expected
    monkeypatch.chdir(tmp_path)
    found = read_app("shop.main:app", app_dir=tmp_path).findings
    assert {(one.file, one.line): one.rule for one in found} == expected


def test_each_rule_is_planted(tmp_path: Path) -> None:
    """There is a planted bug for each rule of the static half."""
    planted = {
        rule
        for number, text in enumerate(PLANTED.values())
        for rule in write(tmp_path / str(number), text).values()
    }
    assert planted == {rule for rule in RULES if rule < "SP2"}
