"""Modules that fail, options that cannot work, and what tracebacks, debuggers and coverage see."""

from __future__ import annotations

import bdb
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sandboxpool import AppImportError, AppTypeError, FactoryError, OptionError, wrap
from sandboxpool.isolation.module import ModuleFactory
from tests.isolation.driver import Driver

from .probe import ask

Package = Callable[[str], Path]

HEAD = "from tests.isolation.modules.probe import probing\n"
SHOP = f"### shop/__init__.py\n### shop/state.py\nusers = []\n### shop/main.py\n{HEAD}"


def user_frames(error: BaseException, folder: Path) -> list[tuple[str, int | None]]:
    """Return file and line of the frames from the first one in *folder* on."""
    frames = traceback.extract_tb(error.__traceback__)
    found = [(frame.filename, frame.lineno) for frame in frames]
    first = next(number for number, (name, _) in enumerate(found) if str(folder) in name)
    return [(Path(name).name, line) for name, line in found[first:]]


@pytest.mark.parametrize(
    ("body", "error"),
    [
        ("x = 1\n1 / 0\n", ZeroDivisionError),
        ("x = 1\nimport not_there_at_all\n", ModuleNotFoundError),
        ("x = 1\nfrom shop.state import nothing\n", ImportError),
        ("x = 1\nraise SystemExit(3)\n", SystemExit),
    ],
)
async def test_a_module_that_fails(package: Package, body: str, error: Any) -> None:
    """What comes out is the user's own exception, with the user's frames alone in its traceback."""
    folder = package(f"{SHOP}from . import a\napp = probing()\n### shop/a.py\nimport shop.b\n")
    package(f"### shop/b.py\n{body}")
    with pytest.raises(error) as caught:
        await ModuleFactory("shop.main:app").start()
    assert user_frames(caught.value, folder) == [("main.py", 2), ("a.py", 1), ("b.py", 2)]
    assert not [name for name in sys.modules if name.partition(".")[0] == "shop"]


async def test_a_partial_import(package: Package) -> None:
    """A circular import that cannot work has Python's own words for it."""
    package(f"{SHOP}from .a import x\napp = probing()\n### shop/a.py\nfrom .b import y\nx = 1\n")
    package("### shop/b.py\nfrom .a import x\ny = 1\n")
    with pytest.raises(ImportError, match=r"partially initialized module 'shop\.a'"):
        await wrap("shop.main:app", isolation="module").open()


async def test_a_syntax_error(package: Package) -> None:
    """A syntax error names the user's file and line."""
    folder = package(f"{SHOP}from . import a\napp = probing()\n### shop/a.py\nx = 1\nx = = 2\n")
    with pytest.raises(SyntaxError) as caught:
        await wrap("shop.main:app", isolation="module").open()
    assert (caught.value.filename, caught.value.lineno) == (str(folder / "shop" / "a.py"), 2)


async def test_a_module_that_fails_later(package: Package) -> None:
    """One that fails only for a further sandbox fails its creation, and the others go on."""
    folder = package(f"{SHOP}from . import a\ndef found(): return a.x\napp = probing(found)\n")
    package(
        "### shop/a.py\nfrom pathlib import Path\n"
        f"assert not Path({str(folder)!r}, 'stop').exists()\nx = 1\n"
    )
    factory = ModuleFactory("shop.main:app")
    async with Driver(factory, 2) as driver:
        (folder / "stop").touch()
        with pytest.raises(AssertionError):
            await factory.create()
        assert await ask(driver.app(0), "/found") == 1


async def test_at_request_time(package: Package) -> None:
    """A failing import in a request raises there, and leaves nothing behind."""
    folder = package(
        f"{SHOP}import sys\ndef late():\n    import shop.late\n    return shop.late.x\n"
        "def gone():\n    import shop\n    return hasattr(shop, 'late')\n"
        "app = probing(late, gone)\n### shop/late.py\n1 / 0\n"
    )
    factory = ModuleFactory("shop.main:app")
    async with Driver(factory, 1) as driver:
        with pytest.raises(ZeroDivisionError) as caught:
            await ask(driver.app(0), "/late")
        frames = user_frames(caught.value, folder)
        # Between the two is the call of the import itself.
        assert [frames[0], frames[-1]] == [("main.py", 4), ("late.py", 1)]
        assert len(frames) == 3
        assert await ask(driver.app(0), "/gone") is False
        assert "shop.late" not in driver.sandboxes[0].modules


async def test_third_party_import_that_fails(package: Package) -> None:
    """Code of others that imports a private module which fails gets to know why."""
    package(
        f"{SHOP}from tests.isolation.modules import plugins\n"
        "def load(): return plugins.load('shop.late:value')\n"
        "def attribute():\n"
        "    try:\n        plugins.attribute('shop.late', 'value')\n"
        "    except Exception as error:\n        return [type(error).__name__, str(error)]\n"
        "app = probing(load, attribute)\n### shop/late.py\nvalue = 1 / 0\n"
    )
    async with Driver(ModuleFactory("shop.main:app"), 1) as driver:
        with pytest.raises(ZeroDivisionError):
            await ask(driver.app(0), "/load")
        assert await ask(driver.app(0), "/attribute") == ["ZeroDivisionError", "division by zero"]
        assert "shop.late" not in sys.modules


@pytest.mark.parametrize(
    ("app", "options", "error", "text"),
    [
        ("shop", {}, AppImportError, r"must be in the form"),
        ("missing.main:app", {}, AppImportError, r"there is no module 'missing'"),
        ("shop.main:app", {"packages": ("json",)}, OptionError, "'json' is the standard library's"),
        ("shop.main:app", {"packages": ("shop", "starlette")}, OptionError, "the framework's"),
        ("shop.main:app", {"packages": ("shop", "sandboxpool")}, OptionError, "the framework's"),
        ("shop.main:app", {"packages": ("shop", "nowhere")}, OptionError, "'nowhere' cannot be"),
        ("shop.main:app", {"packages": ("shop", ".rel")}, OptionError, "is no name of a package"),
        ("shop.main:app", {"packages": (1,)}, OptionError, "1 is no name of a package"),
        ("shop.main:app", {"packages": ("other",)}, OptionError, "would share it: add 'shop'"),
        ("__main__:app", {}, OptionError, "'__main__' is the script that was started"),
        ("json:app", {}, OptionError, "the app's own package 'json' is the standard library's"),
        ("shop.main:app", {"shared": ("other",)}, OptionError, "in none of the private packages"),
        ("shop.main:app", {"shared": ("shop.stat",)}, OptionError, "did you mean 'shop.state'?"),
        ("shop.main:app", {"shared": ("shop.xyz",)}, OptionError, "give names like 'shop.db'"),
        ("shop.main:app", {"shared": ("shop",)}, OptionError, "'shop' has the app itself"),
    ],
)
def test_refused_options(
    package: Package, app: str, options: dict[str, Any], error: Any, text: str
) -> None:
    """What cannot work is refused by `wrap()`, before anything is imported, with the remedy."""
    package(f"{SHOP}app = probing()\n### other/__init__.py\n")
    with pytest.raises(error, match=text):
        wrap(app, isolation="module", **options)
    assert "shop.main" not in sys.modules


@pytest.mark.parametrize(
    ("target", "options", "error", "text"),
    [
        ("shop.main:nothing", {}, AppImportError, "has no attribute 'nothing'. It has: app"),
        ("shop.missing:app", {}, AppImportError, "there is no module 'shop.missing'"),
        ("shop.main:number", {}, AppTypeError, "of type int, which cannot be called"),
        ("shop.main:app", {"factory": True}, AppTypeError, "leave out factory=True"),
        ("shop.main:wrapped", {}, AppTypeError, "is wrapped already"),
        (
            "shop.main:other",
            {"packages": ("shop",)},
            AppTypeError,
            "is the same Starlette for every sandbox",
        ),
    ],
)
async def test_refused_apps(
    package: Package, target: str, options: dict[str, Any], error: Any, text: str
) -> None:
    """What the import string names is checked when it is first imported, at start-up."""
    package(
        f"{SHOP}import sandboxpool\nfrom tests.isolation.modules.plugins import app as other\n"
        "number = 1\napp = probing()\nwrapped = sandboxpool.wrap(app)\n"
    )
    app = wrap(target, isolation="module", min_size=2, **options)
    with pytest.raises((error, FactoryError)) as caught:
        await app.open()
    found = caught.value.__cause__ if isinstance(caught.value, FactoryError) else caught.value
    assert isinstance(found, error)
    assert text in str(found)


async def test_debugger(package: Package) -> None:
    """A breakpoint in the user's file stops in every sandbox."""
    folder = package(f"{SHOP}def found():\n    return 1\napp = probing(found)\n")

    class Debugger(bdb.Bdb):
        stops = 0

        def user_line(self, frame: Any) -> None:
            self.stops += frame.f_code.co_name == "found"
            self.set_continue()

    async with Driver(ModuleFactory("shop.main:app"), 2) as driver:
        debugger = Debugger()
        assert debugger.set_break(str(folder / "shop" / "main.py"), 3) is None
        debugger.reset()
        trace = sys.gettrace()
        sys.settrace(debugger.trace_dispatch)
        try:
            for number in (0, 1):
                assert await ask(driver.app(number), "/found") == 1
        finally:
            sys.settrace(trace)
    assert debugger.stops >= 1


async def test_coverage(package: Package) -> None:
    """Coverage counts the lines of the modules of all sandboxes together, in the user's files."""
    coverage = pytest.importorskip("coverage")
    folder = package(
        f"{SHOP}def one():\n    return 1\ndef two():\n    return 2\ndef three():\n    return 3\n"
        "app = probing(one, two, three)\n"
    )
    measured = coverage.Coverage(data_file=None, include=[str(folder / "*")])
    measured.start()
    try:
        async with Driver(ModuleFactory("shop.main:app"), 2) as driver:
            await ask(driver.app(0), "/one")
            await ask(driver.app(1), "/two")
    finally:
        measured.stop()
    missing = measured.analysis2(str(folder / "shop" / "main.py"))[3]
    assert missing == [7]
