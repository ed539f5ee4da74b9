"""How sandboxes with private modules live and end: lifespans, memory, threads, several at once."""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import pytest

from sandboxpool import wrap
from sandboxpool.isolation.module import ModuleFactory
from tests.isolation.driver import Driver
from tests.wrap.client import settle

from . import registry
from .probe import ask

Package = Callable[[str], Path]

FULL = """
### shop/__init__.py
### shop/state.py
users = []
### shop/models.py
from __future__ import annotations
import typing
from pydantic import BaseModel
class Item(BaseModel):
    name: str
    more: typing.Optional[Item] = None
    many: typing.List[Item] = []
Page = typing.Optional[typing.List[Item]]
### shop/main.py
from contextlib import asynccontextmanager
from fastapi import Depends, FastAPI
from tests.isolation.modules import registry
from . import state
from .models import Item, Page

@asynccontextmanager
async def lifespan(app):
    from shop.late import value
    import sys
    assert sys.modules["shop.late"].value is value
    state.users.append("started")
    yield {"users": state.users}
    registry.made.append(list(state.users))

app = FastAPI(lifespan=lifespan)

def user(name: str) -> str:
    return name

@app.post("/items")
def items(item: Item, name: str = Depends(user)) -> Page:
    return [item]

@app.get("/leave")
def leave(user: str) -> list[str]:
    state.users.append(user)
    return state.users

@app.get("/openapi")
def openapi() -> dict:
    return app.openapi()
### shop/late.py
value = object()
"""


@pytest.fixture(autouse=True)
def nothing_made(monkeypatch: pytest.MonkeyPatch) -> None:
    """Begin with an empty list."""
    monkeypatch.setattr(registry, "made", [])


async def test_each_sandbox_runs_its_lifespan(package: Package) -> None:
    """A lifespan fills the globals of its own sandbox, finds its modules, and ends with them."""
    package(FULL)
    async with Driver(ModuleFactory("shop.main:app"), 2) as driver:
        assert await ask(driver.app(0), "/leave", user="alice") == ["started", "alice"]
        assert await ask(driver.app(1), "/leave", user="bob") == ["started", "bob"]
    assert sorted(registry.made) == [["started", "alice"], ["started", "bob"]]


async def test_the_lifespan_of_the_first(package: Package) -> None:
    """With `lifespan="once"` only the first sandbox's runs, from start to end."""
    package(FULL)
    async with Driver(ModuleFactory("shop.main:app", lifespan="once"), 2) as driver:
        assert await ask(driver.app(0), "/leave", user="alice") == ["started", "alice"]
        assert await ask(driver.app(1), "/leave", user="bob") == ["bob"]
    assert registry.made == [["started", "alice"]]


async def test_a_sandbox_frees_its_modules(package: Package) -> None:
    """Nothing holds the modules, classes or functions of a sandbox that was used and destroyed."""
    package(FULL)
    factory = ModuleFactory("shop.main:app")
    async with Driver(factory, 2) as driver:
        for number in (0, 1):
            await ask(driver.app(number), "/leave", user="alice")
            await ask(driver.app(number), "/openapi")
        gone = driver.sandboxes.pop()
        modules: Any = dict(gone.modules)
        kept = [weakref.ref(module) for module in modules.values()]
        kept += [weakref.ref(modules["shop.models"].Item), weakref.ref(modules["shop.main"].leave)]
        kept += [weakref.ref(modules["shop.main"].app)]
        await factory.destroy(gone)
        del gone, modules
        # Until the worker thread has forgotten the endpoint, and the loop the lifespan's task.
        await anyio.to_thread.run_sync(bool)
        await settle()
        gc.collect()
        assert [reference() for reference in kept] == [None] * len(kept)
        assert await ask(driver.app(0), "/leave", user="bob") == ["started", "alice", "bob"]


async def test_ten_generations(package: Package) -> None:
    """The number of modules alive does not grow with the number of sandboxes that there were."""
    package(FULL)

    def alive() -> int:
        gc.collect()
        return sum(
            getattr(value, "__name__", "") == "shop.state"
            for value in gc.get_objects()
            if type(value) is type(sys)
        )

    async with wrap("shop.main:app", isolation="module", max_size=1, min_size=1) as app:
        counts = []
        for number in range(10):
            await ask(app, "/leave", user=f"user{number}")
            counts.append(alive())
    # Nine more were made; one or two may be on their way in or out at the moment of a count.
    assert max(counts) - counts[0] <= 3


async def test_a_straggler_goes_on(package: Package) -> None:
    """A thread that outlives its sandbox still works on its modules, and imports more of them."""
    package(
        "### shop/__init__.py\n### shop/state.py\nusers = []\n### shop/late.py\nvalue = 1\n"
        "### shop/main.py\nfrom tests.isolation.modules import registry\n"
        "from tests.isolation.modules.probe import probing\nimport threading\nfrom . import state\n"
        "def work(go):\n    go.wait(10)\n    from shop.late import value\n"
        "    from shop.state import users\n"
        "    registry.made.append([users is state.users, value])\n"
        "def begin():\n    go = threading.Event()\n"
        "    thread = threading.Thread(target=work, args=(go,))\n    thread.start()\n"
        "    registry.made.extend((go, thread))\napp = probing(begin)\n"
    )
    factory = ModuleFactory("shop.main:app")
    async with Driver(factory, 2) as driver:
        await ask(driver.app(1), "/begin")
        await factory.destroy(driver.sandboxes.pop())
        go, thread = registry.made
        registry.made.clear()
        go.set()
        thread.join()
    assert registry.made == [[True, 1]]


SMALL = """
### shop/__init__.py
### shop/state.py
import threading
users, home = [], threading.get_ident()
### shop/main.py
import sys, threading
from tests.isolation.modules.probe import probing
from . import state
def leave(user):
    sys.modules["shop.state"].users.append(user)
    return [state.users, state.home == threading.get_ident()]
app = probing(leave)
"""


@pytest.mark.parametrize("reset", ["restore", "keep"])
async def test_threads(package: Package, reset: Any) -> None:
    """With `run_in="thread"` modules are executed in the thread that uses them, many at once."""
    package(SMALL)
    options: Any = {"run_in": "thread", "min_size": 4, "max_size": 8, "reset": reset}
    async with wrap("shop.main:app", isolation="module", **options) as app:
        answers: list[Any] = []

        async def one(user: str) -> None:
            answers.append((user, await ask(app, "/leave", user=user)))

        async with anyio.create_task_group() as group:
            for number in range(12):
                group.start_soon(one, f"user{number}")
    assert len(answers) == 12
    for user, (users, at_home) in answers:
        assert at_home
        assert users[-1] == user
        assert reset == "keep" or users == [user]


async def test_many_threads_boot_at_once(package: Package) -> None:
    """Sandboxes that are made in several threads at the same moment do not mix their modules."""
    package(SMALL)
    package(
        "### shop/state.py\nimport sys, threading, time\n"
        "class State: pass\nme = State()\nme.users, me.home = [], threading.get_ident()\n"
        "me.owner = None\ntime.sleep(0.001)\nsys.modules[__name__] = me\n"
        "from shop import other\nassert sys.modules[__name__].home == threading.get_ident()\n"
        "### shop/other.py\nfrom . import state\n"
    )
    factory = ModuleFactory("shop.main:app")
    async with Driver(factory, 0):
        made: list[Any] = []
        errors: list[BaseException] = []
        barrier = threading.Barrier(6)

        def boot() -> None:
            barrier.wait(10)
            try:
                modules, _ = factory._boot()
                made.append((threading.get_ident(), modules))
            except BaseException as error:
                errors.append(error)

        threads = [threading.Thread(target=boot) for _ in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            await anyio.to_thread.run_sync(thread.join)
        assert errors == []
        for home, modules in made:
            state: Any = modules.modules["shop.state"]
            assert state.home == home
            assert modules.modules["shop.main"].state is state
            assert modules.modules["shop.other"].state is state
            modules.close()
        assert len({id(modules.modules["shop.state"]) for _, modules in made}) == 6


async def test_threads_that_import_each_other(package: Package) -> None:
    """Two threads of one sandbox that import modules which need each other do not wait for ever."""
    package(
        "### shop/__init__.py\n### shop/a.py\nimport time\ntime.sleep(0.02)\n"
        "from . import b\nx = 1\n"
        "### shop/b.py\nimport time\ntime.sleep(0.02)\nfrom . import a\ny = 2\n"
        "### shop/main.py\nimport threading\nfrom tests.isolation.modules.probe import probing\n"
        "def both():\n"
        "    found, start = [], threading.Barrier(2)\n"
        "    def load(name):\n        start.wait(10)\n"
        "        __import__(f'shop.{name}')\n        found.append(name)\n"
        "    threads = [threading.Thread(target=load, args=(name,)) for name in 'ab']\n"
        "    [thread.start() for thread in threads]\n    [thread.join(10) for thread in threads]\n"
        "    from shop import a, b\n    return [sorted(found), a.x, b.y, a.b is b, b.a is a]\n"
        "app = probing(both)\n"
    )
    async with Driver(ModuleFactory("shop.main:app"), 1) as driver:
        assert await ask(driver.app(0), "/both") == [["a", "b"], 1, 2, True, True]


def test_loops_in_threads(package: Package) -> None:
    """One wrapped app in the event loops of several threads at once serves each, and cleans up."""
    package(SMALL)
    app = wrap("shop.main:app", isolation="module", max_size=2)
    barrier = threading.Barrier(3)
    answers: list[Any] = []

    async def serve(user: str) -> None:
        async with app:
            barrier.wait(10)
            answers.append((user, (await ask(app, "/leave", user=user))[0]))
            barrier.wait(10)

    threads = [
        threading.Thread(target=anyio.run, args=(serve, f"user{number}")) for number in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(answers) == [(f"user{number}", [f"user{number}"]) for number in range(3)]


async def test_two_apps_of_one_package(package: Package) -> None:
    """Two wrapped apps of one package are apart, also when a request of one calls the other."""
    package(
        SMALL + "### shop/outer.py\nfrom tests.isolation.modules import registry\n"
        "from tests.isolation.modules.probe import ask, probing\nfrom . import state\nimport sys\n"
        "async def through(user):\n    state.users.append('outer')\n"
        "    inner = (await ask(registry.made[0], '/leave', user=user))[0]\n"
        "    return [inner, state.users, sys.modules['shop.state'].users]\napp = probing(through)\n"
    )
    async with (
        wrap("shop.main:app", isolation="module") as inner,
        wrap("shop.outer:app", isolation="module") as outer,
    ):
        registry.made.append(inner)
        answer = await ask(outer, "/through", user="alice")
        assert answer == [["alice"], ["outer"], ["outer"]]


async def test_the_state_of_the_app_is_restored(package: Package) -> None:
    """What a request leaves on the app itself is put back also where modules are kept."""
    package(
        "### shop/__init__.py\n### shop/main.py\n"
        "from tests.isolation.modules.probe import probing\n"
        "def leave(user):\n    app.state.users = [*getattr(app.state, 'users', []), user]\n"
        "    return app.state.users\napp = probing(leave)\n"
    )
    async with Driver(ModuleFactory("shop.main:app"), 1) as driver:
        assert await ask(driver.app(0), "/leave", user="alice") == ["alice"]
        assert await ask(driver.app(0), "/leave", user="bob") == ["bob"]
