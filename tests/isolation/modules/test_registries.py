"""Modules that cannot be executed twice, and those that are said to be shared."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from sandboxpool import wrap

from .probe import ask

Package = Callable[[str], Path]

APP = """
### shop/__init__.py
### shop/state.py
users = []
### shop/main.py
from tests.isolation.modules.probe import probing

from . import registry, state


def leave(user):
    state.users.append(user)
    return [state.users, id(registry)]


app = probing(leave)
"""

TABLE = """
### shop/registry.py
from sqlmodel import Field, SQLModel


class Item(SQLModel, table=True):
    id: int | None = Field(default=None, primary_key=True)
"""

COUNTER = """
### shop/registry.py
from prometheus_client import CollectorRegistry, Counter

import tests.isolation.modules.test_registries as here

requests = Counter("requests", "Requests.", registry=here.collectors)
"""


@pytest.mark.parametrize("registry", [TABLE, COUNTER], ids=["SQLModel", "prometheus_client"])
@pytest.mark.filterwarnings("ignore:This declarative base already contains a class")
async def test_refused_twice(
    package: Package, registry: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A module whose second execution a registry refuses is shared, and a warning names it."""
    sqlmodel = pytest.importorskip("sqlmodel")
    if registry is COUNTER:
        globals()["collectors"] = pytest.importorskip("prometheus_client").CollectorRegistry()
    package(APP + registry)
    try:
        with caplog.at_level(logging.WARNING, "sandboxpool"):
            async with wrap("shop.main:app", isolation="module", max_size=3) as app:
                users = ("alice", "bob", "carol")
                answers = [await ask(app, "/leave", user=user) for user in users]
        assert [answer[0] for answer in answers] == [[user] for user in users]
        assert len({answer[1] for answer in answers}) == 1
        warnings = [r.getMessage() for r in caplog.records if "shop.registry" in r.getMessage()]
        assert len(warnings) == 1
        assert "shared=" in warnings[0]
    finally:
        sqlmodel.SQLModel.metadata.clear()


async def test_shared_by_name(package: Package) -> None:
    """A module that is named in shared= exists once, beside the private ones."""
    package(APP + "### shop/registry.py\n")
    options = {"isolation": "module", "max_size": 3}
    async with wrap("shop.main:app", shared=("shop.registry",), **options) as app:  # type: ignore[call-overload] # one by one they are fine
        first, second = [await ask(app, "/leave", user=user) for user in ("alice", "bob")]
        assert first[1] == second[1]
        assert [first[0], second[0]] == [["alice"], ["bob"]]
