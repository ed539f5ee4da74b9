"""Find out what is private, and print it as the table of the documentation.

Run: `python -m tests.isolation.table > docs/isolation-table.md`
"""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import anyio
from fastapi import Depends

from sandboxpool import wrap
from sandboxpool._lifespan import Lifespan
from sandboxpool.isolation.clone import CloneFactory
from sandboxpool.isolation.factory import AppFactory
from sandboxpool.isolation.module import ModuleFactory

from . import rows
from .driver import Driver, Meeting, call
from .rows import ROWS, Row, Verdict, limited

ISOLATIONS = ("clone", "factory", "module")
ROWS_MODULE = rows.__name__
PAGE = Path(__file__).parents[2] / "docs" / "isolation-table.md"


def build(row: Row, isolation: str) -> Any:
    """Return a new factory of sandboxes for the app of *row*."""
    if row.namespace:
        namespace = row.make()
        if isolation == "clone":
            return CloneFactory(namespace["app"])
        return AppFactory(namespace["create_app"])
    return CloneFactory(row.make()) if isolation == "clone" else AppFactory(row.make)


async def at_once(ask: Any) -> Verdict:
    """Send two requests that have both written before either of them reads."""
    meet = Meeting(2)
    answers: dict[str, Any] = {}

    async def one(number: int, user: str) -> None:
        answers[user] = (await ask(number, "/probe", query=f"user={user}", meet=meet)).data

    async with anyio.create_task_group() as group:
        group.start_soon(one, 0, "alice")
        group.start_soon(one, 1, "bob")
    private = all(answer["after"] == [user] for user, answer in answers.items())
    return "private" if private else "shared"


async def in_turn(ask: Any) -> Verdict:
    """Send one request after the other, to the same sandbox."""
    first = (await ask(0, "/probe", query="user=alice", meet=Meeting(1))).data
    second = (await ask(0, "/probe", query="user=bob", meet=Meeting(1))).data
    assert first["before"] == []
    # What the app wrote must be honoured in the request itself, or nothing is proven.
    assert first["after"] == ["alice"]
    return "private" if (second["before"], second["after"]) == ([], ["bob"]) else "shared"


SITUATIONS = {"at_once": at_once, "in_turn": in_turn}


async def verdict(row: Row, isolation: str, situation: str) -> Verdict:
    """Return whether the state of *row* is private."""
    async with Driver(build(row, isolation)) as driver:
        return await SITUATIONS[situation](driver.get)


async def through_wrap(row: Row, isolation: str, situation: str) -> Verdict:
    """Return the same for the app as `wrap()` serves it, with a pool."""
    size = 1 if situation == "in_turn" else 2
    if isolation == "module":
        name = f"{ROWS_MODULE}:{row.id}{'_app' if row.namespace else ''}"
        wrapped = wrap(
            name, factory=True, isolation="module", packages=(ROWS_MODULE,), max_size=size
        )
        return await _through(wrapped, situation)
    made = row.make()
    if isolation == "clone":
        app = made["app"] if row.namespace else made
        wrapped = wrap(app, min_size=size, max_size=size)
    else:
        make = made["create_app"] if row.namespace else row.make
        wrapped = wrap(make, factory=True, min_size=size, max_size=size)
    return await _through(wrapped, situation)


async def _through(wrapped: Any, situation: str) -> Verdict:
    async def ask(number: int, path: str, **scope: Any) -> Any:
        return await call(wrapped, path, **scope)

    async with wrapped:
        return await SITUATIONS[situation](ask)


async def control(row: Row, situation: str) -> Verdict:
    """Return the same for the app alone."""
    made = row.make()
    app = made["app"] if row.namespace else made
    lifespan = Lifespan(app)
    await lifespan.startup()

    async def ask(number: int, path: str, **scope: Any) -> Any:
        return await call(app, path, state=dict(lifespan.state), **scope)

    try:
        return await SITUATIONS[situation](ask)
    finally:
        await lifespan.shutdown()


async def measure() -> dict[str, dict[tuple[str, str], Verdict]]:
    """Return what was found for every row, by isolation and situation."""
    found: dict[str, dict[tuple[str, str], Verdict]] = {}
    for row in ROWS:
        found[row.id] = {}
        for isolation in ISOLATIONS:
            for situation in SITUATIONS:
                # A request that comes later finds private modules executed anew, by the pool.
                look = through_wrap if isolation == "module" else verdict
                found[row.id][isolation, situation] = await look(row, isolation, situation)
    return found


HAS_LIMIT = "max_concurrency" in inspect.signature(Depends).parameters
"""Whether this FastAPI knows `Depends(max_concurrency=...)`."""


def _limit_factory(isolation: str) -> Any:
    if isolation == "module":
        return ModuleFactory(f"{ROWS_MODULE}:limited", factory=True, packages=(ROWS_MODULE,))
    return CloneFactory(limited()) if isolation == "clone" else AppFactory(limited)


async def limit(isolation: str) -> int:
    """Return how many of six requests, each in a sandbox of its own, get into the dependency."""
    entered: list[str] = []
    leave = anyio.Event()
    scope = {"entered": entered, "leave": leave}
    factory = _limit_factory(isolation)
    async with Driver(factory, 6) as driver, anyio.create_task_group() as group:

        async def one(number: int) -> None:
            assert (await driver.get(number, "/", query=f"user={number}", **scope)).status == 200

        for number in range(6):
            group.start_soon(one, number)
        # Now each of them either waits inside or waits to get in.
        await anyio.wait_all_tasks_blocked()
        most = len(entered)
        leave.set()
    assert len(set(entered)) == 6
    return most


async def page() -> str:
    """Return the table as the documentation has it."""
    return render(await measure(), {isolation: await limit(isolation) for isolation in ISOLATIONS})


def shown(at_once: Verdict, in_turn: Verdict) -> str:
    """Return a cell of the table."""
    if at_once == in_turn:
        return at_once
    return "private, until retired[^1]" if at_once == "private" else f"{at_once} / {in_turn}"


def render(found: dict[str, dict[tuple[str, str], Verdict]], limits: dict[str, int]) -> str:
    """Return the table as Markdown."""
    lines = ["| state | `clone` | `factory` | `module` |", "|---|---|---|---|"]
    for row in ROWS:
        cells = [
            shown(found[row.id][isolation, "at_once"], found[row.id][isolation, "in_turn"])
            for isolation in ISOLATIONS
        ]
        title = f"{row.title} ({row.note})" if row.note else row.title
        lines.append(f"| {title} | {' | '.join(cells)} |")
    cells = [
        f"{'shared' if limits[isolation] == 2 else 'one each'}: {limits[isolation]} of 6 get in"
        for isolation in ISOLATIONS
    ]
    lines += [
        f"| the limit of a `Depends(max_concurrency=2)` in the app | {' | '.join(cells)} |",
        "",
        "[^1]: Two requests at the same moment never share it. A request after another one in "
        'the same sandbox finds it as that one left it, unless `reset="fresh"` uses no sandbox '
        "twice.",
        "",
    ]
    return "\n".join(lines)


def main() -> None:
    """Print the table."""
    print(anyio.run(page), end="")


if __name__ == "__main__":
    main()
