"""Which modules are read: the app's own, found from the import string without importing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from sandboxpool import AppImportError
from sandboxpool.check._modules import read_sources
from sandboxpool.check._static import read_app


def write(folder: Path, **files: str) -> None:
    for name, text in files.items():
        path = folder / (name.replace("__slash__", "/") + ".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def names(folder: Path, app: str = "shop.main:app", **options: tuple[str, ...]) -> set[str]:
    return set(read_sources(app, app_dir=folder, **options).modules)


def test_imports_are_followed_through_the_package(tmp_path: Path) -> None:
    """Absolute, relative and late imports lead on, `from` also to modules; the rest is left out."""
    write(
        tmp_path,
        shop__slash____init__="",
        shop__slash__main="import json, shop.a\nfrom . import b\nfrom .sub.c import x\napp = 1\n",
        shop__slash__a="def late():\n    from shop import d\n",
        shop__slash__b="import importlib\nimportlib.import_module('shop.e')\n",
        shop__slash__sub__slash____init__="from ..f import *",
        shop__slash__sub__slash__c="x = 1",
        shop__slash__d="",
        shop__slash__e="",
        shop__slash__f="",
        shop__slash__unused="",
        shop__slash__tests__slash__test_a="",
    )
    read = {"", ".main", ".a", ".b", ".sub", ".sub.c", ".d", ".e", ".f"}
    assert names(tmp_path) == {f"shop{name}" for name in read}


def test_nothing_is_imported(tmp_path: Path) -> None:
    """A module that would fail is read all the same, and neither it nor its package is loaded."""
    write(
        tmp_path,
        shopfail__slash____init__="raise SystemExit(3)",
        shopfail__slash__main="1 / 0\napp = 1",
    )
    assert names(tmp_path, "shopfail.main:app") == {"shopfail", "shopfail.main"}
    assert not [name for name in sys.modules if name.startswith("shopfail")]


def test_modules_beside_the_app_are_its_own(tmp_path: Path) -> None:
    """In a flat folder each module and package that is imported belongs to the app."""
    write(
        tmp_path,
        main="import state, routers.users, fastapi, json\napp = 1",
        state="",
        routers__slash__users="",
        other="",
    )
    assert names(tmp_path, "main:app") == {"main", "state", "routers.users"}


def test_installed_packages_are_not_the_app(tmp_path: Path) -> None:
    """An app that is installed itself does not make its neighbours its own."""
    site = tmp_path / "site-packages"
    write(site, shop__slash____init__="import other\napp = 1", other="")
    assert names(site, "shop:app") == {"shop"}
    assert names(site, "shop:app", packages=("other",)) == {"shop", "other"}


def test_namespace_packages(tmp_path: Path) -> None:
    """Folders without `__init__.py` are packages, also inside of each other."""
    write(tmp_path, ns__slash__shop__slash__main="from ns.shop.deep import x\napp = 1")
    write(tmp_path, ns__slash__shop__slash__deep__slash__x="")
    assert names(tmp_path, "ns.shop.main:app") == {"ns.shop.main", "ns.shop.deep.x"}


def test_computed_imports_read_the_whole_package(tmp_path: Path) -> None:
    """A package that loads its modules by computed names is read whole, without its tests."""
    write(
        tmp_path,
        shop__slash____init__="",
        shop__slash__main="from . import plugins\napp = 1",
        shop__slash__plugins__slash____init__="for n in x: importlib.import_module(n)",
        shop__slash__plugins__slash__a="",
        shop__slash__plugins__slash__test_a="",
        shop__slash__plugins__slash__tests__slash__b="",
        shop__slash__other="",
    )
    assert names(tmp_path) == {"shop", "shop.main", "shop.plugins", "shop.plugins.a"}


def test_excluded_modules(tmp_path: Path) -> None:
    """What is excluded is left out with all below it, by name or by pattern."""
    write(
        tmp_path,
        shop__slash____init__="",
        shop__slash__main="import shop.a.b, shop.c.migrations.d\napp = 1",
        shop__slash__a__slash____init__="",
        shop__slash__a__slash__b="",
        shop__slash__c__slash____init__="",
        shop__slash__c__slash__migrations__slash__d="",
    )
    left = names(tmp_path, exclude=("shop.a", "*.migrations"))
    assert left == {"shop", "shop.main", "shop.c"}


def test_what_cannot_be_parsed_is_told(tmp_path: Path) -> None:
    """A module with a syntax error is named, and the rest is read; that of the app is an error."""
    write(tmp_path, main="import broken\napp = 1", broken="x = = 1")
    (told,) = read_sources("main:app", app_dir=tmp_path).unreadable
    assert told.startswith(f"{tmp_path / 'broken.py'}:1: ")
    with pytest.raises(AppImportError, match=r"broken\.py:1: invalid syntax"):
        read_sources("broken:app", app_dir=tmp_path)


def test_other_encodings_and_odd_lines(tmp_path: Path) -> None:
    """A file is read in the encoding it declares, and columns count characters, not bytes."""
    text = (
        "# coding: latin-1\nfrom fastapi import FastAPI\napp = FastAPI()\nÜ = []\n"
        "@app.get('/')\ndef me(user): x = 'äöü'; Ü.append(user)\n"
    )
    (tmp_path / "main.py").write_bytes(text.encode("latin-1"))
    (found,) = read_app("main:app", app_dir=tmp_path).findings
    assert (found.rule, found.line, found.column) == ("SP101", 6, 26)
    assert found.code.endswith("Ü.append(user)")


@pytest.mark.parametrize(
    ("app", "told"),
    [
        ("shop", 'must be in the form "<module>:<attribute>"'),
        (":app", 'must be in the form "<module>:<attribute>"'),
        (".shop:app", 'must be in the form "<module>:<attribute>"'),
        ("shop.nain:app", "the module 'shop.nain' does not exist"),
        ("sys:app", "the module 'sys' is no file of Python"),
        ("shop.main:ap", "module 'shop.main' has no attribute 'ap'. It has: app, x."),
    ],
)
def test_wrong_import_strings(app: str, told: str, tmp_path: Path) -> None:
    """An import string that leads nowhere says what is there, or where it was looked for."""
    write(tmp_path, shop__slash__main="app = 1\nx = 2")
    with pytest.raises(AppImportError) as caught:
        read_app(app, app_dir=tmp_path)
    assert told in str(caught.value)


def test_packages_that_do_not_exist(tmp_path: Path) -> None:
    """A further package that is misspelt is an error, and not read as nothing."""
    write(tmp_path, main="app = 1")
    with pytest.raises(AppImportError, match="packages='shap': there is no such module"):
        read_app("main:app", app_dir=tmp_path, packages=("shap",))


def test_the_way_of_a_request(tmp_path: Path) -> None:
    """A finding tells by which calls a request gets there, from its handler on."""
    write(
        tmp_path,
        main=(
            "from fastapi import FastAPI\nfrom state import remember\napp = FastAPI()\n"
            "@app.get('/')\ndef me(user): login(user)\ndef login(user): remember(user)\n"
        ),
        state="current = None\ndef remember(user):\n    global current\n    current = user\n",
    )
    (found,) = read_app("main:app", app_dir=tmp_path).findings
    assert found.way == ("main.me", "main.login", "state.remember")
    assert (found.path, found.function) == ("state.current", "state.remember")


@pytest.mark.parametrize(
    "deep",
    [
        "x = " + " + ".join(["'a'"] * 3000),
        "x = 'a'" + ".strip()" * 500,
        "if x == 0: pass\n" + "".join(f"elif x == {n}: pass\n" for n in range(400)),
    ],
    ids=["+", "calls", "elif"],
)
def test_modules_that_are_nested_too_deeply(deep: str, tmp_path: Path) -> None:
    """A module whose tree is too deep for Python's stack is named, and the rest is read."""
    write(tmp_path, main="import deep\napp = 1", deep=f"app = 1\n{deep}\n")
    reading = read_app("main:app", app_dir=tmp_path)
    assert reading.modules == 1
    (told,) = reading.unreadable
    assert "deep.py:0: it is nested too deeply to be read" in told
    with pytest.raises(AppImportError, match="nested too deeply"):
        read_app("deep:app", app_dir=tmp_path)


def test_long_chains_of_calls(tmp_path: Path) -> None:
    """Functions that call one another in a long chain are followed as far as the stack allows."""
    chain = "".join(f"def f{n}(): return f{n - 1}()\n" for n in range(2000, 0, -1))
    text = (
        "from fastapi import FastAPI\napp = FastAPI()\nSEEN = []\n"
        f"{chain}def f0(): return SEEN\n"
        "@app.get('/')\ndef me(): f10().append(1); f2000().append(1)\n"
    )
    write(tmp_path, main=text)
    found = read_app("main:app", app_dir=tmp_path).findings
    assert {one.path for one in found} == {"main.SEEN"}
