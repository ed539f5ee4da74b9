"""What a request leaves in private modules, and what the next one finds there."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

from sandboxpool import OptionError, wrap

from .probe import ask

Package = Callable[[str], Path]

SHOP = """
### shop/__init__.py
### shop/state.py
from functools import lru_cache

users = []


class Registry:
    seen = {}


@lru_cache
def price(item):
    return object()

### shop/main.py

from tests.isolation.modules.probe import probing

from . import state


def leave(user, *, visits=[]):
    state.users.append(user)
    state.Registry.seen[user] = True
    state.current = user
    state.price("book")
    visits.append(user)
    return [state.users, sorted(state.Registry.seen), visits, state.price.cache_info().currsize]


app = probing(leave)
"""


def alone(user: str) -> list[Any]:
    """Return what a request finds that is the first one for its modules."""
    return [[user], [user], [user], 1]


async def test_control(package: Package) -> None:
    """The plain app shows what it is: the second request finds what the first one has left."""
    package(SHOP)
    app = importlib.import_module("shop.main").app
    assert await ask(app, "/leave", user="alice") == alone("alice")
    assert await ask(app, "/leave", user="bob") != alone("bob")


@pytest.mark.parametrize("run_in", ["loop", "thread", "cooperative"])
@pytest.mark.parametrize("reset", ["restore", "fresh"])
async def test_nothing_is_left(package: Package, reset: Any, run_in: Any) -> None:
    """Each request finds the modules as after start-up, one at a time and many at once."""
    package(SHOP)
    async with wrap(
        "shop.main:app", isolation="module", reset=reset, run_in=run_in, max_size=4
    ) as app:
        for user in ("alice", "bob", "carol"):
            assert await ask(app, "/leave", user=user) == alone(user)
        found: list[Any] = []

        async def one(user: str) -> None:
            found.append((user, await ask(app, "/leave", user=user)))

        async with anyio.create_task_group() as tasks:
            for number in range(10):
                tasks.start_soon(one, f"user{number}")
        assert sorted(found) == sorted((user, alone(user)) for user, _ in found)
        assert len(found) == 10


async def test_keep_leaves_it(package: Package) -> None:
    """With reset="keep" the next request of a sandbox finds what was left there."""
    package(SHOP)
    async with wrap("shop.main:app", isolation="module", reset="keep", max_size=1) as app:
        await ask(app, "/leave", user="alice")
        answer = await ask(app, "/leave", user="bob")
        assert answer[0] == ["alice", "bob"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"keep": ("state.cache",)}, r"keep=\('state.cache',\) cannot go with isolation='module'"),
        ({"max_uses": 5}, "max_uses=5 cannot go with reset='restore' with isolation='module'"),
        ({"middleware": {"X": "share"}}, "isolation='module' constructs its middleware anew"),
    ],
)
def test_refused(package: Package, options: dict[str, Any], text: str) -> None:
    """What can mean nothing with private modules is refused, with the remedy."""
    package(SHOP)
    with pytest.raises(OptionError, match=text):
        wrap("shop.main:app", isolation="module", **options)
