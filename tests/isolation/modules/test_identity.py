"""That private code holds its own modules and no stand-ins, and sees the process as it is."""

from __future__ import annotations

import builtins
import importlib
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest import mock
from zipfile import ZipFile

import pytest

from sandboxpool import AppImportError, PrivateModuleError, wrap
from sandboxpool.isolation._module_stand_in import ModuleStandIn
from sandboxpool.isolation.module import ModuleFactory
from tests.isolation.driver import Driver

from .cases import CASES
from .probe import ask, importable, write

Package = Callable[[str], Path]

SHOP = """
### shop/__init__.py
### shop/state.py
users = []
### shop/main.py
from tests.isolation.modules.probe import probing
from . import state
def found(): return state.users
app = probing(found)
"""


@pytest.mark.parametrize("name", CASES)
async def test_no_stand_in_is_bound(package: Package, name: str) -> None:
    """However modules import each other, what their globals hold are the sandbox's own modules."""
    package(CASES[name])
    async with Driver(ModuleFactory("shop.main:app"), 2) as driver:
        for number in (0, 1):
            await ask(driver.app(number), "/found")
        first, second = (sandbox.modules for sandbox in driver.sandboxes)
        assert first.keys() == second.keys() >= {"shop", "shop.main"}
        own = {id(module) for module in first.values()}
        for module in first.values():
            for value in vars(module).values():
                assert type(value) is not ModuleStandIn or name == "sys.modules"  # it asks for it
                if type(value) is ModuleType and value.__name__.partition(".")[0] == "shop":
                    assert id(value) in own
        assert not own & {id(module) for module in second.values()}


async def test_taken_out_of_sys_modules(package: Package) -> None:
    """Private code that takes its module out of `sys.modules` goes on with the one that it has."""
    package(
        SHOP.replace(
            "def found(): return state.users",
            "import importlib, sys\n"
            "def found():\n    sys.modules.pop('shop.state', None)\n"
            "    return importlib.import_module('shop.state') is state",
        )
    )
    async with Driver(ModuleFactory("shop.main:app"), 2) as driver:
        for number in (0, 1, 0):
            assert await ask(driver.app(number), "/found") is True


async def test_imported_by_name(package: Package) -> None:
    """Imported by name, private code gets the private module itself, in every way."""
    package(
        SHOP.replace(
            "def found(): return state.users",
            "import importlib\nfrom importlib import import_module\n"
            "def found(): return [importlib.import_module('shop.state') is state,"
            " import_module('.state', 'shop') is state, __import__('shop').state is state,"
            " __import__('shop.state', fromlist=['users']) is state]",
        )
    )
    async with Driver(ModuleFactory("shop.main:app"), 1) as driver:
        assert await ask(driver.app(0), "/found") == [True] * 4


async def test_all_is_undone(package: Package) -> None:
    """When the last app stops, what it has changed in the process is as it was before."""
    package(SHOP)
    before: Any = (
        dict(sys.modules), list(sys.meta_path), type(builtins), builtins.__import__,
        importlib.import_module, importlib.reload,
    )  # fmt: skip
    first, second = (wrap("shop.main:app", isolation="module") for _ in range(2))
    async with first:
        async with second:
            assert type(sys.modules["shop.state"]) is ModuleStandIn
            assert await ask(second, "/found") == []
        assert await ask(first, "/found") == []
        assert type(sys.modules["shop.state"]) is ModuleStandIn
    after: Any = (
        {name: module for name, module in sys.modules.items() if name in before[0]},
        list(sys.meta_path), type(builtins), builtins.__import__,
        importlib.import_module, importlib.reload,
    )  # fmt: skip
    assert after == before
    assert not [name for name in sys.modules if name.partition(".")[0] == "shop"]


async def test_outside_of_sandboxes(package: Package) -> None:
    """Code of no sandbox gets an error that says what to do, and harmless answers to dunders."""
    package(SHOP)
    async with wrap("shop.main:app", isolation="module") as app:
        assert await ask(app, "/found") == []
        entry = sys.modules["shop.state"]
        assert entry.__name__ == "shop.state"
        assert entry.__file__ is not None
        assert entry.__file__.endswith("state.py")
        assert not hasattr(entry, "users")
        assert "private to sandboxes" in repr(entry)
        text = r"module 'shop.state' is private: each sandbox has its own.* ask a sandbox"
        with pytest.raises(PrivateModuleError, match=text):
            _ = entry.users
        with pytest.raises(PrivateModuleError, match=text):
            entry.users = []  # type: ignore[attr-defined] # it has none here
        with pytest.raises(PrivateModuleError, match=text):
            del entry.users
        with pytest.raises(AppImportError, match=text):
            exec("from shop.state import users")


async def test_plain_import_while_open(package: Package) -> None:
    """What is imported plainly while the app is open is apart, and no sandbox is given it."""
    package(
        SHOP.replace(
            "def found(): return state.users",
            "from tests.isolation.modules import plugins\n"
            "def found(): return plugins.attribute('shop.other', 'users')",
        )
        + "### shop/other.py\nusers = []\n"
    )
    async with wrap("shop.main:app", isolation="module") as app:
        other = importlib.import_module("shop.other")
        other.users.append("plain")
        assert vars(other)["__spec__"].loader.__class__.__name__ == "SourceFileLoader"
        assert await ask(app, "/found") == []
    assert sys.modules["shop.other"] is other


async def test_builtins_are_followed(package: Package) -> None:
    """What others change in `builtins`, in either way, private code sees, and no longer after."""
    package(
        SHOP.replace(
            "def found(): return state.users",
            "import gettext\ngettext.install('shop')\n"
            "def found(): return [sorted('ba'), _('word')]",
        )
    )
    try:
        async with Driver(ModuleFactory("shop.main:app"), 1) as driver:
            assert await ask(driver.app(0), "/found") == [["a", "b"], "word"]
            with mock.patch("builtins.sorted", return_value="patched"):
                assert await ask(driver.app(0), "/found") == ["patched", "word"]
            assert await ask(driver.app(0), "/found") == [["a", "b"], "word"]
            builtins.new_name = 1  # type: ignore[attr-defined] # that is what is tested
            del builtins.new_name  # type: ignore[attr-defined] # as above
    finally:
        vars(builtins).pop("_", None)


async def test_warnings_name_the_users_line(package: Package) -> None:
    """A warning at import with `stacklevel=2` is about the line that imports, not about ours."""
    folder = package(
        SHOP.replace("from . import state", "from . import state, old")
        + "### shop/old.py\nimport warnings\n"
        "warnings.warn('old', DeprecationWarning, stacklevel=2)\n"
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        async with Driver(ModuleFactory("shop.main:app"), 1):
            pass
    where = {(entry.filename, entry.lineno) for entry in caught if str(entry.message) == "old"}
    assert where == {(str(folder / "shop" / "main.py"), 2)}


async def test_zip_file(tmp_path: Path) -> None:
    """Modules in a zip file are private, too."""
    write(tmp_path / "files", SHOP.replace("shop", "zipped"))
    with ZipFile(tmp_path / "app.zip", "w") as archive:
        for file in (tmp_path / "files").rglob("*.py"):
            archive.write(file, str(file.relative_to(tmp_path / "files")))
    with importable(tmp_path / "app.zip"):
        async with Driver(ModuleFactory("zipped.main:app"), 2) as driver:
            first, second = (sandbox.modules["zipped.state"] for sandbox in driver.sandboxes)
            assert first.__file__ is not None
            assert "app.zip" in first.__file__
            first.users.append("alice")
            assert second.users == []


async def test_loader_without_code(package: Package) -> None:
    """A loader that gives no code executes the module by itself, for each sandbox."""
    package(SHOP)

    class Loader:
        executed = 0

        def create_module(self, spec: Any) -> None:
            return None

        def exec_module(self, module: ModuleType) -> None:
            Loader.executed += 1
            exec("from . import state\nown = []", module.__dict__)

    class Finder:
        def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
            if name == "shop.made":
                return importlib.machinery.ModuleSpec(name, Loader())  # type: ignore[arg-type] # one that is odd
            return None

    finder = Finder()
    sys.meta_path.insert(0, finder)
    try:
        package(
            "### shop/main.py\nfrom tests.isolation.modules.probe import probing\n"
            "from . import made, state\n"
            "def found(): return [made.state is state, made.own]\napp = probing(found)\n"
        )
        async with Driver(ModuleFactory("shop.main:app"), 2) as driver:
            driver.sandboxes[0].modules["shop.made"].own.append("alice")
            assert await ask(driver.app(0), "/found") == [True, ["alice"]]
            assert await ask(driver.app(1), "/found") == [True, []]
        assert Loader.executed == 3  # once more, to see whether it can be
    finally:
        sys.meta_path.remove(finder)


async def test_single_file(package: Package) -> None:
    """An app that is one file, without any package, is private as well."""
    package(
        "### single.py\nfrom tests.isolation.modules.probe import probing\nusers = []\n"
        "def leave(user):\n    users.append(user)\n    return [__name__, users]\n"
        "app = probing(leave)\nif __name__ == '__main__':\n    raise SystemExit\n"
    )
    async with Driver(ModuleFactory("single:app"), 2) as driver:
        assert await ask(driver.app(0), "/leave", user="alice") == ["single", ["alice"]]
        assert await ask(driver.app(1), "/leave", user="bob") == ["single", ["bob"]]


async def test_several_packages(package: Package) -> None:
    """All the packages that are named are private, also one inside of a package that is not."""
    package(
        SHOP.replace(
            "from . import state", "from . import state\nimport firm.tax\nimport firm"
        ).replace("return state.users", "return [firm.tax.seen, firm.common, firm.__name__]")
        + "### firm/__init__.py\ncommon = []\n### firm/tax.py\nseen = []\n"
    )
    try:
        factory = ModuleFactory("shop.main:app", packages=("shop", "firm.tax"))
        async with Driver(factory, 2) as driver:
            first = driver.sandboxes[0].modules
            assert "firm" not in first
            first["firm.tax"].seen.append("alice")
            sys.modules["firm"].common.append("all")
            assert await ask(driver.app(0), "/found") == [["alice"], ["all"], "firm"]
            assert await ask(driver.app(1), "/found") == [[], ["all"], "firm"]
        assert not hasattr(sys.modules["firm"], "tax")
    finally:
        sys.modules.pop("firm", None)


async def test_app_of_a_factory(package: Package) -> None:
    """Each sandbox calls its own factory function; `app` of its module stands for the product."""
    package(
        "### shop/__init__.py\n### shop/main.py\n"
        "from tests.isolation.modules.probe import probing\n"
        "def leave(user):\n"
        "    app.state.user = user\n    return [app.state.user, made]\n"
        "made = []\n"
        "def create_app():\n    made.append(1)\n    return probing(leave)\n"
        "app = create_app()\n"
    )
    async with Driver(ModuleFactory("shop.main:create_app", factory=True), 2) as driver:
        assert await ask(driver.app(0), "/leave", user="alice") == ["alice", [1, 1]]
        assert await ask(driver.app(1), "/leave", user="bob") == ["bob", [1, 1]]
        module = driver.sandboxes[0].modules["shop.main"]
        assert not hasattr(module.app.state, "user")
