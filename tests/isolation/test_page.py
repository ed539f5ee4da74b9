"""The table in the documentation."""

from __future__ import annotations

from . import table


async def test_the_page_is_what_the_tests_find() -> None:
    """The documented table is the one that the rows give when they are run."""
    assert table.PAGE.read_text() == table.render(await table.measure())
