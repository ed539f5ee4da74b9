"""The import system in private modules: as when they are imported plainly, and private."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import sandboxpool
from sandboxpool.isolation.module import ModuleFactory
from tests.isolation.driver import Driver

from .cases import CASES
from .probe import ask

pytestmark = pytest.mark.parametrize("name", CASES)
Package = Callable[[str], Path]


async def test_the_plain_app_leaks(package: Package, name: str) -> None:
    """Imported plainly, the package works, and what a request leaves there reaches the next one."""
    package(CASES[name])
    app = importlib.import_module("shop.main").app
    await ask(app, "/found")
    assert await ask(app, "/leave", user="alice") == ["alice"]
    assert await ask(app, "/leave", user="bob") == ["alice", "bob"]


async def test_private_modules_work_as_plain_ones(package: Package, name: str) -> None:
    """What code finds is the same as in the plain app, with two sandboxes open."""
    package(CASES[name])
    async with Driver(ModuleFactory("shop.main:app"), 2) as driver:
        answers = [await ask(driver.app(number), "/found") for number in (0, 1, 0)]
        users = [
            await ask(driver.app(number), "/leave", user=user)
            for number, user in ((0, "alice"), (1, "bob"))
        ]
    expected = await ask(importlib.import_module("shop.main").app, "/found")
    assert answers == [expected] * 3
    assert users == [["alice"], ["bob"]]


async def test_beside_the_plain_app(package: Package, name: str) -> None:
    """An app that was imported plainly before keeps its state, beside the sandboxes and after."""
    package(CASES[name])
    plain: Any = importlib.import_module("shop.main").app
    expected = await ask(plain, "/found")
    await ask(plain, "/leave", user="carol")
    async with sandboxpool.wrap("shop.main:app", isolation="module", min_size=2) as wrapped:
        assert await ask(wrapped, "/found") == expected
        assert await ask(wrapped, "/leave", user="alice") == ["alice"]
        assert await ask(plain, "/found") == expected
        assert await ask(plain, "/leave", user="dave") == ["carol", "dave"]
    assert await ask(plain, "/leave", user="erin") == ["carol", "dave", "erin"]
