"""Values as reports show them: short, safe, without secrets."""

from __future__ import annotations

import datetime
import enum
from collections import OrderedDict, defaultdict
from pathlib import PurePosixPath
from types import ModuleType
from typing import Any
from uuid import UUID

import pytest

from sandboxpool.leaks._values import HIDDEN, LENGTH, Shown, is_secret_name, without_secrets


class Colour(enum.Enum):
    RED = 1


class Angry:
    """Raises whatever is asked of it."""

    def __init__(self) -> None:
        self.name = "ada"

    def __repr__(self) -> str:
        raise RuntimeError("no")

    def __getattr__(self, name: str) -> Any:
        raise RuntimeError("no")

    def __eq__(self, other: object) -> bool:
        raise RuntimeError("no")

    def __bool__(self) -> bool:
        raise RuntimeError("no")

    def __len__(self) -> int:
        raise RuntimeError("no")

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        raise RuntimeError("no")


class Text(str):
    def __str__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "None"),
        (True, "True"),
        (1, "1"),
        (1.5, "1.5"),
        ("ada", "'ada'"),
        (Text("ada"), "'ada'"),
        (b"ada", "b'ada'"),
        (bytearray(b"ada"), "b'ada'"),
        ((), "()"),
        ((1,), "(1,)"),
        ((1, 2), "(1, 2)"),
        ([1, [2, [3, [4]]]], "[1, [2, [3, ...]]]"),
        ({"a": {"b": 1}}, "{'a': {'b': 1}}"),
        (OrderedDict(a=1), "OrderedDict {'a': 1}"),
        (defaultdict(list, a=[1]), "defaultdict {'a': [1]}"),
        ({1}, "{1}"),
        (frozenset({1}), "{1}"),
        (list(range(10)), "[0, 1, 2, 3, 4, 5, ...]"),
        (dict.fromkeys(range(7), 9), "{0: 9, 1: 9, 2: 9, 3: 9, 4: 9, 5: 9, ... 1 more}"),
        (Colour.RED, "Colour.RED"),
        (datetime.date(2020, 1, 2), "datetime.date(2020, 1, 2)"),
        (UUID(int=1), f"UUID('{HIDDEN}')"),
        (PurePosixPath("/x"), "PurePosixPath('/x')"),
        (ValueError("bad", 2), "ValueError('bad', 2)"),
        (Colour, "<class tests.leaks.test_values.Colour>"),
        (ModuleType("shop"), "<module shop>"),
        (print, "<builtin_function_or_method print>"),
        (is_secret_name, "<function is_secret_name>"),
        (object(), "<object>"),
        (10**400, "<int of 1329 bits>"),
    ],
)  # fmt: skip
def test_shown(value: object, text: str) -> None:
    """A value is written out without any of its own code."""
    assert Shown().value(value) == text


def test_objects() -> None:
    """Of an object its attributes are shown, and none of its own code runs."""
    shown = "<tests.leaks.test_values.Angry name='ada'>"
    assert Shown().value(Angry()) == shown
    assert Shown().value([Angry()]) == f"[{shown}]"


def test_cycles() -> None:
    """A container that contains itself comes to an end."""
    cycle: list[Any] = []
    cycle.append(cycle)
    assert Shown().value(cycle) == "[...]"


@pytest.mark.parametrize(
    "value",
    [
        "x" * 10_000_000,
        b"x" * 10_000_000,
        ["x" * 1000] * 1000,
        {str(number): "y" * 100 for number in range(1000)},
        [[["x" * 50] * 100] * 100] * 100,
    ],
    ids=["str", "bytes", "list", "dict", "nested"],
)
def test_short(value: object) -> None:
    """However large a value is, little of it is shown."""
    assert len(Shown().value(value)) <= LENGTH


def test_class_that_lies() -> None:
    """A class that cannot even be named is no reason to fail."""

    class Liar(list[Any]):
        pass

    Liar.__module__ = 3  # type: ignore[assignment]
    assert "Liar" in Shown().value(Liar())


@pytest.mark.parametrize(
    "name",
    [
        "password", "db_passwd", "userPassword", "secret", "SECRET_KEY", "access_token",
        "Authorization", "authorisation", "cookie", "Set-Cookie", "api_key", "apiKey", "X-API-Key",
        "session", "session_id", "credentials", "private_key", "csrf", "app.state.auth",
        'shop.state.tokens["ada"]', "AWS_SECRET_ACCESS_KEY", "otp", "user.pin",
    ],
)  # fmt: skip
def test_secret_names(name: str) -> None:
    """What is called like a secret is hidden."""
    assert is_secret_name(name)
    assert Shown().value("hunter2", name) == HIDDEN


@pytest.mark.parametrize(
    "name",
    ["current_user", "author", "authors", "keyboard", "spinner", "pinned", "passenger", "items"],
)
def test_names_that_are_none(name: str) -> None:
    """What only sounds a little like a secret is shown."""
    assert not is_secret_name(name)


def test_secrets_in_containers() -> None:
    """Keys, attributes and pairs say that what stands with them is secret, at any depth."""

    class User:
        def __init__(self) -> None:
            self.name = "ada"
            self.password = "hunter2"

    for value in (
        {"user": {"password": "hunter2"}},
        {"headers": [(b"authorization", b"hunter2"), ("Cookie", "hunter2")]},
        [User()],
    ):
        shown = Shown().value(value)
        assert "hunter2" not in shown
        assert HIDDEN in shown
        assert "hunter2" in Shown(hides_secrets=False).value(value)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgres://app:hunter2@db:5432/shop", f"postgres://app:{HIDDEN}@db:5432/shop"),
        ("redis://:hunter2@cache", f"redis://:{HIDDEN}@cache"),
        ("see http://db:5432/shop", "see http://db:5432/shop"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.dBjftJeZ4CVPmB92K27uhbUJU1p1r_wW1g", HIDDEN),
        ("Bearer abcdef123456", f"Bearer {HIDDEN}"),
        ("Basic YWRhOmh1bnRlcjI=", f"Basic {HIDDEN}"),
        ("6f1ed002ab5595859014ebf0951522d9", HIDDEN),
        ("550e8400-e29b-41d4-a716-446655440000", HIDDEN),
        ("kJ8s92Hd02kdPq81LmZx03Qw", HIDDEN),
        ("key=kJ8s92Hd02kdPq81LmZx03Qw;", f"{HIDDEN};"),
        ("sk_live_4eC39HqLyjWDarjtT1zdp7dc", HIDDEN),
        ("/reset/kJ8s92Hd02kdPq81LmZx03Qw", HIDDEN),
    ],
)
def test_secrets_by_look(text: str, shown: str) -> None:
    """What looks like a secret is hidden, and the text around it stays."""
    assert without_secrets(text) == shown


@pytest.mark.parametrize(
    "text",
    [
        "a whole sentence of a user, with punctuation, and 12 numbers: 1234567",
        "/usr/lib/python3.11/site-packages/fastapi/applications.py",
        "GetUserAccountInformationV2",
        "this_is_a_long_snake_case_name_2",
        "app.state.orders_by_customer",
        "item-00000000000000000042",
        "2026-11-25T05:32:58.123456+00:00",
        "ada.lovelace@example.com",
        "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        "application/vnd.openxmlformats-officedocument.spreadsheetml.sheet",
        "Donaudampfschifffahrtsgesellschaft",
    ],
)
def test_texts_that_are_none(text: str) -> None:
    """Ordinary texts are shown."""
    assert without_secrets(text) == text
