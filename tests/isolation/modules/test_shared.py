"""Modules that exist once: named, found out, written in C; and what they need of private ones."""

from __future__ import annotations

import gc
import importlib
import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import pytest

import sandboxpool
from sandboxpool import FactoryError, ModuleIsolationError
from sandboxpool.isolation.module import ModuleFactory
from tests.isolation.driver import Driver

from . import registry
from .probe import ask

Package = Callable[[str], Path]

HEAD = "from tests.isolation.modules.probe import probing\n"

DATABASE = f"""
### shop/__init__.py
### shop/settings.py
values = []
### shop/state.py
users = []
### shop/db.py
from . import settings
connections = []
def late():
    from . import state
    from .state import users
    import shop.state
    return users is state.users is shop.state.users and users
### shop/main.py
{HEAD}
from . import db, settings, state
def leave(user):
    for values in (db.connections, settings.values, state.users):
        values.append(user)
    return [db.connections, settings.values, state.users, db.late(), db.settings is settings]
app = probing(leave)
"""

MODELS = f"""
### shop/__init__.py
### shop/kinds.py
import enum
class Kind(enum.Enum):
    tea = 1
### shop/models.py
from tests.isolation.modules.registry import register
import shop.kinds
from .kinds import Kind
class Item:
    kind = Kind.tea
register("item")
### shop/state.py
users = []
### shop/main.py
{HEAD}
from . import kinds, models, state
def leave(user):
    state.users.append(user)
    return [state.users, models.Item.kind is kinds.Kind.tea, id(models), models.shop.kinds is kinds]
app = probing(leave)
"""


@pytest.fixture(autouse=True)
def empty_registry(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let each test begin with a registry that knows nothing."""
    monkeypatch.setattr(registry, "taken", set())
    monkeypatch.setattr(registry, "made", [])


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the warnings about modules."""
    return [r.getMessage() for r in caplog.records if r.name == "sandboxpool.modules"]


async def test_a_shared_module_that_imports_a_private_one(
    package: Package, caplog: pytest.LogCaptureFixture
) -> None:
    """It is reported, and shared; what functions import is that of the sandbox that calls."""
    package(DATABASE)
    factory = ModuleFactory("shop.main:app", shared=("shop.db",))
    async with Driver(factory, 2) as driver:
        first = await ask(driver.app(0), "/leave", user="alice")
        second = await ask(driver.app(1), "/leave", user="bob")
        assert first == [["alice"], ["alice"], ["alice"], ["alice"], True]
        assert second == [["alice", "bob"], ["alice", "bob"], ["bob"], ["bob"], True]
        for sandbox in driver.sandboxes:
            assert sorted(sandbox.modules) == ["shop", "shop.main", "shop.state"]
    [warning] = said(caplog)
    assert "'shop.db' of app is shared by all sandboxes and imports shop.settings" in warning
    assert "shared=('shop.settings',)" in warning
    assert "inside of the functions" in warning


async def test_the_report_can_be_silenced(
    package: Package, caplog: pytest.LogCaptureFixture
) -> None:
    """Who names all that is shared hears nothing."""
    package(DATABASE)
    factory = ModuleFactory("shop.main:app", shared=("shop.db", "shop.settings"))
    async with Driver(factory, 2):
        pass
    assert said(caplog) == []


async def test_found_out(package: Package, caplog: pytest.LogCaptureFixture) -> None:
    """A module that fails for the second sandbox is shared, with what it needs, and both fit it."""
    package(MODELS)
    async with Driver(ModuleFactory("shop.main:app"), 3) as driver:
        answers = [await ask(driver.app(n), "/leave", user=f"user{n}") for n in range(3)]
    assert [answer[0] for answer in answers] == [["user0"], ["user1"], ["user2"]]
    assert [answer[1] for answer in answers] == [True] * 3
    assert len({answer[2] for answer in answers}) == 1
    [warning] = said(caplog)
    assert "'shop.models' of app cannot be executed for each sandbox" in warning
    assert "(AlreadyThereError: item is already defined)" in warning
    assert "and what it imports: shop.kinds" in warning
    assert "shared=('shop.kinds', 'shop.models') says that this is meant" in warning


async def test_found_out_control(package: Package) -> None:
    """Executed twice plainly, the module fails: there is something to find out."""
    package(MODELS)
    module = importlib.import_module("shop.models")
    with pytest.raises(registry.AlreadyThereError):
        importlib.reload(module)


async def test_the_next_app_shares_it_too(package: Package) -> None:
    """What a registry knows stays known: another app of the same modules shares the same copy."""
    package(MODELS)
    found = []
    for _ in range(3):
        async with sandboxpool.wrap("shop.main:app", isolation="module", min_size=1) as app:
            answer = await ask(app, "/leave", user="alice")
            assert answer[:2] == [["alice"], True]
            found.append(answer[2])
    assert len(set(found[1:])) == 1


async def test_imported_plainly_before(package: Package) -> None:
    """A module that the registry knows from a plain import is shared with the plain app."""
    package(MODELS)
    plain = importlib.import_module("shop.main")
    async with Driver(ModuleFactory("shop.main:app"), 2) as driver:
        for number, user in enumerate(("alice", "bob")):
            answer = await ask(driver.app(number), "/leave", user=user)
            assert answer[:2] == [[user], True]
            assert answer[2] == id(plain.models)
    assert plain.state.users == []


async def test_named_and_imported_plainly_before(package: Package) -> None:
    """A module that is named in `shared=` is the one that the process has already."""
    package(DATABASE)
    plain = importlib.import_module("shop.db")
    factory = ModuleFactory("shop.main:app", shared=("shop.db", "shop.settings"))
    async with Driver(factory, 1) as driver:
        assert await ask(driver.app(0), "/leave", user="alice") == [["alice"]] * 4 + [True]
    assert plain.connections == ["alice"]


@pytest.mark.parametrize("shared", [(), ("shop.models",)])
async def test_it_needs_the_app(package: Package, shared: tuple[str, ...]) -> None:
    """A module that must be shared and imports the app's module is refused, with the remedy."""
    package(MODELS)
    package(
        "### shop/models.py\nfrom tests.isolation.modules.registry import register\n"
        f"from . import main\nregister('item')\n### shop/main.py\n{HEAD}"
        "from . import models\napp = probing()\n"
    )
    text = "it needs that of the app, 'shop.main'.*Move what must exist once"
    app = sandboxpool.wrap("shop.main:app", isolation="module", shared=shared)
    with pytest.raises((ModuleIsolationError, FactoryError)) as caught:
        await app.open()
    error = caught.value.__cause__ if isinstance(caught.value, FactoryError) else caught.value
    assert re.search(text, str(error))


LATE = f"""
### shop/__init__.py
### shop/kinds.py
### shop/models.py
from tests.isolation.modules.registry import register
from . import kinds
register("item")
### shop/main.py
{HEAD}
KINDS
def late():
    from . import models
    return id(models)
app = probing(late)
"""


async def test_found_out_at_request_time(package: Package) -> None:
    """A module that is imported by a request and needs nothing that is private is shared then."""
    package(LATE.replace("KINDS", ""))
    async with Driver(ModuleFactory("shop.main:app"), 2) as driver:
        first = await ask(driver.app(0), "/late")
        assert await ask(driver.app(1), "/late") == first


async def test_found_out_too_late(package: Package) -> None:
    """If the request's sandbox has its own copy of what it needs, an error says what to do."""
    package(LATE.replace("KINDS", "from . import kinds"))
    factory = ModuleFactory("shop.main:app")
    async with Driver(factory, 2) as driver:
        first = await ask(driver.app(0), "/late")
        text = r"is too late: it needs 'shop.kinds'.*Pass shared=\('shop.models',\)"
        with pytest.raises(ModuleIsolationError, match=text):
            await ask(driver.app(1), "/late")
        # From now on it is known: the next sandbox is made with it.
        driver.sandboxes.append(await factory.create())
        assert await ask(driver.app(2), "/late") == first


async def test_an_error_like_any_other(package: Package) -> None:
    """A module that two sandboxes have executed, and that fails for a third, is simply wrong."""
    package(MODELS.replace('register("item")', "register(str(id(Item)))"))
    factory = ModuleFactory("shop.main:app")
    async with Driver(factory, 2):
        package("### shop/other.py\n")
        registry.register = _refuse
        try:
            with pytest.raises(registry.AlreadyThereError, match="out of order"):
                await factory.create()
        finally:
            registry.register = _register


_register = registry.register


def _refuse(name: str) -> None:
    raise registry.AlreadyThereError("out of order")


async def test_the_first_copy_is_let_go(package: Package) -> None:
    """The first copy of a module is kept only until a second one has been executed."""
    package(
        DATABASE.replace(
            "users = []",
            "import tests.isolation.modules.registry as registry\n"
            "class Users(list): pass\nusers = Users()\nregistry.made.append(weakref.ref(users))",
        ).replace("### shop/state.py\n", "### shop/state.py\nimport weakref\n")
    )
    factory = ModuleFactory("shop.main:app")
    async with Driver(factory, 0) as driver:
        gc.collect()
        assert [made() is None for made in registry.made] == [False]
        driver.sandboxes.append(await factory.create())
        gc.collect()
        assert [made() is None for made in registry.made] == [True, False]


CELERY = f"""
### shop/__init__.py
### shop/tasks.py
from celery import Celery, shared_task
queue = Celery("shop", broker="memory://")
seen = []
@queue.task
def add(user):
    seen.append(user)
    return list(seen)
@shared_task
def common(user):
    return add(user)
### shop/state.py
users = []
### shop/main.py
{HEAD}
from . import state
from .tasks import add, common, queue
def leave(user):
    state.users.append(user)
    return [add.apply(args=[user]).get(), common.app is queue, state.users, sorted(
        name for name in queue.tasks if name.startswith("shop."))]
app = probing(leave)
"""


# Once: the registry knows the names of the tasks from then on.
@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_celery(package: Package, caplog: pytest.LogCaptureFixture) -> None:
    """A module with tasks of Celery, whose registry never complains, is shared from the start."""
    pytest.importorskip("celery")
    package(CELERY)
    async with Driver(ModuleFactory("shop.main:app"), 2) as driver:
        tasks = ["shop.tasks.add", "shop.tasks.common"]
        first = await ask(driver.app(0), "/leave", user="alice")
        assert first == [["alice"], True, ["alice"], tasks]
        second = await ask(driver.app(1), "/leave", user="bob")
        assert second == [["alice", "bob"], True, ["bob"], tasks]
        assert all("shop.tasks" not in sandbox.modules for sandbox in driver.sandboxes)
    [warning] = said(caplog)
    assert "(celery knows what it defines in the whole process)" in warning


async def test_celery_in_the_module_of_the_app(package: Package) -> None:
    """Where the registry knows the module of the app itself, the app is refused when it starts."""
    pytest.importorskip("celery")
    package(
        CELERY + f"### shop/main.py\n{HEAD}from celery import Celery\nqueue = Celery('shop')\n"
        "app = probing()\n"
    )
    app = sandboxpool.wrap("shop.main:app", isolation="module")
    with pytest.raises(ModuleIsolationError, match=r"it is that of the app, 'shop.main'"):
        await app.open()


DJANGO = f"""
### shop/__init__.py
### shop/models.py
from django.db import models
class Item(models.Model):
    name = models.CharField(max_length=10)
    class Meta:
        app_label = "shop"
### shop/main.py
{HEAD}
from django.apps import apps
from .models import Item
def found():
    return apps.get_registered_model("shop", "Item") is Item
app = probing(found)
### run.py
import anyio, django, logging, warnings
from django.conf import settings
warnings.simplefilter("error")
logging.basicConfig(format="%(message)s")
settings.configure()
django.setup()
from sandboxpool.isolation.module import ModuleFactory
from tests.isolation.driver import Driver
from tests.isolation.modules.probe import ask
async def main():
    async with Driver(ModuleFactory("shop.main:app"), 3) as driver:
        print([await ask(driver.app(number), "/found") for number in range(3)])
anyio.run(main)
"""


def test_django(package: Package) -> None:
    """A module with models of Django, whose registry goes on with the last one, is shared."""
    pytest.importorskip("django")
    folder = package(DJANGO)
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, str(folder / "run.py")],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env={**os.environ, "PYTHONPATH": str(root)},
    )
    assert done.stdout.strip() == "[True, True, True]", done.stderr
    assert "(django knows what it defines in the whole process)" in done.stderr


@pytest.mark.slow
async def test_written_in_c(package: Package) -> None:
    """A module in C exists once, without a word; those in Python beside it are private."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("there is no compiler")
    source = """
        #include <Python.h>
        static struct PyModuleDef def = {PyModuleDef_HEAD_INIT, "fast", NULL, -1, NULL};
        PyMODINIT_FUNC PyInit_fast(void) {
            PyObject *module = PyModule_Create(&def);
            PyModule_AddObject(module, "values", PyList_New(0));
            return module;
        }
    """
    folder = package(
        f"### shop/__init__.py\n### shop/state.py\nusers = []\n### fast.c\n{source}\n"
        f"### shop/main.py\n{HEAD}from . import fast, state\n"
        "def leave(user):\n    fast.values.append(user)\n    state.users.append(user)\n"
        "    return [fast.values, state.users, fast.__name__]\napp = probing(leave)\n"
    )
    target = folder / "shop" / f"fast{sysconfig.get_config_var('EXT_SUFFIX')}"
    include = sysconfig.get_path("include")
    command: list[Any] = [compiler, "-shared", "-fPIC", f"-I{include}", "-o", target, "fast.c"]
    await anyio.run_process(command, cwd=folder)
    async with Driver(ModuleFactory("shop.main:app"), 2) as driver:
        assert await ask(driver.app(0), "/leave", user="a") == [["a"], ["a"], "shop.fast"]
        assert await ask(driver.app(1), "/leave", user="b") == [["a", "b"], ["b"], "shop.fast"]


async def test_shared_by_a_folder(package: Package) -> None:
    """Naming a package in `shared=` shares what is below it."""
    package(
        f"### shop/__init__.py\n### shop/data/__init__.py\n### shop/data/deep.py\nvalues = []\n"
        f"### shop/main.py\n{HEAD}from .data.deep import values\n"
        "def leave(user):\n    values.append(user)\n    return values\napp = probing(leave)\n"
    )
    async with Driver(ModuleFactory("shop.main:app", shared=("shop.data",)), 2) as driver:
        assert await ask(driver.app(0), "/leave", user="alice") == ["alice"]
        assert await ask(driver.app(1), "/leave", user="bob") == ["alice", "bob"]
