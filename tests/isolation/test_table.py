"""What is private: each row of the documentation's table, with a control on the app alone."""

from __future__ import annotations

import pytest

from . import table
from .rows import PRIVATE, ROWS, Row

pytestmark = pytest.mark.parametrize("row", ROWS, ids=lambda row: row.id)


@pytest.mark.parametrize("situation", ["at_once", "in_turn"])
async def test_the_app_alone_leaks(row: Row, situation: str) -> None:
    """Without isolation every row's state reaches other requests, or the row proves nothing."""
    assert await table.control(row, situation) == "shared"


@pytest.mark.parametrize("situation", ["at_once", "in_turn"])
@pytest.mark.parametrize("isolation", ["clone", "factory"])
async def test_row(row: Row, isolation: str, situation: str) -> None:
    """The state is as private as the table says."""
    expected = row.clone if isolation == "clone" else row.factory
    found = await table.verdict(row, isolation, situation)
    assert found == expected[list(table.SITUATIONS).index(situation)]


@pytest.mark.parametrize("situation", ["at_once", "in_turn"])
@pytest.mark.parametrize("isolation", table.ISOLATIONS)
async def test_row_through_wrap(row: Row, isolation: str, situation: str) -> None:
    """A user of `wrap()` gets what the table says; with private modules, all is private."""
    expected = {"clone": row.clone, "factory": row.factory, "module": PRIVATE}[isolation]
    found = await table.through_wrap(row, isolation, situation)
    assert found == expected[list(table.SITUATIONS).index(situation)]
