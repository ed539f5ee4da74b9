"""The table in the documentation."""

from __future__ import annotations

from functools import partial

import anyio
import pytest

from . import rows, table
from .driver import call


@pytest.mark.skipif(not table.HAS_LIMIT, reason="this FastAPI has no such limit")
async def test_a_limit_of_a_dependency() -> None:
    """Clones share the limit that the app declares; what is made anew has one of its own."""
    assert await table.limit("clone") == 2
    assert await table.limit("factory") == 6
    assert await table.limit("module") == 6


@pytest.mark.skipif(not table.HAS_LIMIT, reason="this FastAPI has no such limit")
async def test_a_limit_without_sandboxes() -> None:
    """The app alone lets two in at the same moment, and all six in the end."""
    entered: list[str] = []
    leave = anyio.Event()
    app = rows.limited()
    scope = {"entered": entered, "leave": leave}
    async with anyio.create_task_group() as group:
        for number in range(6):
            group.start_soon(partial(call, app, "/", query=f"user={number}", **scope))
        await anyio.wait_all_tasks_blocked()
        assert len(entered) == 2
        leave.set()
    assert len(set(entered)) == 6


@pytest.mark.skipif(not table.HAS_LIMIT, reason="this FastAPI has no such limit")
async def test_the_page_is_what_the_tests_find() -> None:
    """The documented table is the one that the rows give when they are run."""
    assert table.PAGE.read_text() == await table.page()
