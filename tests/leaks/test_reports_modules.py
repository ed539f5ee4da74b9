"""Reports of what requests change in the app's own modules, shared or private."""

from __future__ import annotations

import importlib
import itertools
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

from sandboxpool import SandboxedApp, wrap
from tests.wrap.client import Connection, get

from .test_reports import paths, records, reports

_numbers = itertools.count(1)
Write = Callable[..., str]

MAIN = """
    import functools, re
    from fastapi import FastAPI, Request
    from werkzeug.local import LocalProxy
    from . import state
    from .state import Counter, users

    app = FastAPI()
    gates = {}
    proxy = LocalProxy(lambda: 1 / 0)  # raises whatever it is asked

    def route(function):
        app.get("/" + function.__name__ + "/{name}")(function)
        return function

    @route
    async def clean(name: str):
        return str(state.current_user)
"""
STATE = """
    import functools

    current_user = None
    users = []
    names = set()
    cache = {}
    settings = {"user": None, "deep": {"list": [1]}}
    client = None
    hits = 0

    class Counter:
        total = 0
        seen = []

        def __init__(self):
            self.count = 0

    class Slotted:
        __slots__ = ("value",)

    counter = Counter()
    slotted = Slotted()

    @functools.lru_cache
    def square(x):
        return x * x

    def defaults(x, into=[], *, more={}):
        into.append(x)
        more["x"] = x

    def closing():
        count = 0
        def count_up(x):
            nonlocal count
            count += 1
        return count_up

    count_up = closing()

    class Lazy:
        @functools.cached_property
        def pattern(self):
            import re
            return re.compile("x")

        @functools.cached_property
        def words(self):
            return ["a"]

    lazy = Lazy()
"""


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Return a function that writes a package with an app, and returns its name."""
    monkeypatch.syspath_prepend(tmp_path)
    made = []

    def write(*endpoints: str, **files: str) -> str:
        name = f"shop_of_leaks_{next(_numbers)}"
        made.append(name)
        folder = tmp_path / name
        folder.mkdir()
        main = textwrap.dedent(MAIN) + "".join(
            f"\n@route\nasync def {text}\n" for text in map(textwrap.dedent, endpoints)
        )
        for file, text in {"__init__": "", "state": STATE, **files}.items():
            (folder / f"{file}.py").write_text(textwrap.dedent(text))
        (folder / "main.py").write_text(main)
        importlib.invalidate_caches()
        return name

    yield write
    for name in list(sys.modules):
        if name.partition(".")[0] in made:
            del sys.modules[name]


WRITES = [
    ("state.current_user = name", "state.current_user", "changed", "None", "'ada'"),
    ("state.settings['user'] = name", 'state.settings["user"]', "changed", "None", "'ada'"),
    (
        "state.settings['deep']['list'][0] = name",
        'state.settings["deep"]["list"][0]',
        "changed",
        "1",
        "'ada'",
    ),
    ("state.counter.count += 1", "state.counter.count", "changed", "0", "1"),
    ("Counter.total += 1", "state.Counter.total", "changed", "0", "1"),
    ("state.slotted.value = name", "state.slotted.value", "added", "", "'ada'"),
    ("state.count_up(1)", "state.count_up.<nonlocal>.count", "changed", "0", "1"),
    ("state.square.hits = 1", None, "", "", ""),
    ("state.defaults.hits = name", "state.defaults.hits", "added", "", "'ada'"),
    ("del state.hits", "state.hits", "removed", "0", ""),
    ("state.current_user = request", "state.current_user", "changed", "None", "<starlette.req"),
    (
        "import datetime; state.current_user = datetime.date(2020, 1, 2)",
        "state.current_user",
        "changed",
        "None",
        "datetime.date(2020, 1, 2)",
    ),
    ("state.current_user = Counter()", "state.current_user", "changed", "None", "<"),
]


@pytest.mark.parametrize("where", ["modules", "sandbox"])
@pytest.mark.parametrize(("write", "path", "kind", "before", "after"), WRITES)
async def test_written(
    write: str,
    path: str | None,
    kind: str,
    before: str,
    after: str,
    where: str,
    package: Write,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What a request writes to a module is reported at once, by path, with its values and line."""
    name = package(f"login(name: str, request: Request):\n    {write}")
    isolation: Any = "module" if where == "sandbox" else "clone"
    async with wrap(f"{name}.main:app", isolation=isolation, leaks="log") as sandboxed:
        await get(sandboxed, "/clean/x")
        assert reports(caplog) == []
        await get(sandboxed, "/login/ada")
        if path is None:
            assert reports(caplog) == []
            return
        (report,) = reports(caplog)
        (leak,) = report["leaks"]
        assert leak["path"] == f"{name}.{path}"
        assert (leak["kind"], leak["where"], leak["before"]) == (kind, where, before)
        assert leak["after"].startswith(after)
        assert leak["leases"] == (report["lease_id"],)
        if path != "state.count_up.<nonlocal>.count":
            assert leak["lines"] == (f"{name}/main.py:22 in login",)
        # It is there once, whoever comes next.
        await get(sandboxed, "/clean/x")
        assert len(reports(caplog)) == 1


async def test_control(package: Write) -> None:
    """Without us the next request sees it."""
    name = package("login(name: str):\n    state.current_user = name")
    app = importlib.import_module(f"{name}.main").app
    assert (await get(app, "/clean/x")).json == "None"
    await get(app, "/login/ada")
    assert (await get(app, "/clean/x")).json == "ada"


async def test_growing(package: Write, caplog: pytest.LogCaptureFixture) -> None:
    """A container of a shared module that grows is named when it has grown three times."""
    name = package(
        """
        login(name: str):
            users.append(name)
            state.names.add(name)
            state.cache[name] = 1
            Counter.seen.append(name)
            state.defaults(name)
        """.strip()
    )
    async with wrap(f"{name}.main:app", leaks="log") as sandboxed:
        for number in range(2):
            await get(sandboxed, f"/login/{number}")
        assert [path for path in map(paths, reports(caplog)) if "defaults" not in str(path)] == []
        await get(sandboxed, "/login/ada")
        report = reports(caplog)[-1]
        assert sorted(path for path in paths(report) if "more" not in path) == [
            f"{name}.state.Counter.seen",
            f"{name}.state.cache",
            f"{name}.state.defaults(into=)",
            f"{name}.state.names",
            f"{name}.state.users",
        ]
        (users,) = [leak for leak in report["leaks"] if leak["path"].endswith("users")]
        assert users["kind"] == "grown"
        assert users["before"] == "3 requests have left items in it"
        assert users["after"] == "'ada'"
        before = len(reports(caplog))
        for number in range(4, 7):
            await get(sandboxed, f"/login/{number}")
        assert sandboxed.statistics().leaks.paths[0][1] <= 6
        assert len(reports(caplog)) - before <= 3


async def test_caches_with_a_limit(package: Write, caplog: pytest.LogCaptureFixture) -> None:
    """A cache that fills up and then drops what is old never becomes a leak."""
    name = package(
        """
        login(name: str):
            state.cache[name] = 1
            while len(state.cache) > 2:
                del state.cache[next(iter(state.cache))]
            state.square(int(name))
        """.strip()
    )
    async with wrap(f"{name}.main:app", leaks="log") as sandboxed:
        for number in range(20):
            await get(sandboxed, f"/login/{number}")
    assert reports(caplog) == []


async def test_what_warms_up(package: Write, caplog: pytest.LogCaptureFixture) -> None:
    """Lazy imports, clients, caches, patterns and models are no leaks when they come first."""
    name = package(
        """
        login(name: str):
            from . import lazy
            import email.mime.text
            if state.client is None:
                import http.client
                state.client = http.client.HTTPConnection("127.0.0.1")
            state.square(3)
            state.lazy.pattern
            state.lazy.words
            lazy.Model(x=1).model_dump_json()
            re.compile("ab+c")
            import warnings
            return name
        """.strip(),
        lazy="""
        from pydantic import BaseModel
        class Model(BaseModel, defer_build=True):
            x: int
        """,
    )
    async with wrap(f"{name}.main:app", leaks="raise") as sandboxed:
        for _ in range(5):
            await get(sandboxed, "/login/ada")


async def test_a_client_that_comes_each_time(package: Write) -> None:
    """Something opaque that takes the place of nothing again and again is a leak after all."""
    name = package(
        """
        login(name: str):
            import http.client
            state.client = http.client.HTTPConnection("127.0.0.1") if name != "none" else None
        """.strip()
    )
    async with wrap(f"{name}.main:app", leaks="log") as sandboxed:
        await get(sandboxed, "/login/ada")
        assert sandboxed.statistics().leaks.reports == 0
        await get(sandboxed, "/login/none")
        await get(sandboxed, "/login/ada")
        assert sandboxed.statistics().leaks.paths == ((f"{name}.state.client", 2),)


async def test_ignored(package: Write) -> None:
    """Names with a `*` cover what is below."""
    name = package(
        "login(name: str):\n    state.hits += 1\n    state.settings['user'] = name",
    )
    ignore = [f"{name}.state.hits", "shop_*.settings[*]"]
    async with wrap(f"{name}.main:app", leaks="raise", ignore=ignore) as sandboxed:
        await get(sandboxed, "/login/ada")


async def test_who_was_there(package: Write, caplog: pytest.LogCaptureFixture) -> None:
    """With several requests at once, all that may have done it are named; alone, only one."""
    name = package(
        """
        login(name: str):
            import anyio
            gates[name] = anyio.Event()
            await gates[name].wait()
            state.current_user = name
        """.strip()
    )
    app = importlib.import_module(f"{name}.main")
    async with (
        wrap(app.app, leaks="log", ignore=[f"{name}.main.gates"]) as sandboxed,
        anyio.create_task_group() as tasks,
    ):
        for user in ("ada", "bob"):
            tasks.start_soon(Connection(sandboxed, f"/login/{user}").run)
        await until(lambda: len(app.gates) == 2)
        app.gates["ada"].set()
        await until(lambda: sandboxed.statistics().concurrency == 1)
        (report,) = reports(caplog)
        assert len(report["leaks"][0]["leases"]) == 2
        app.gates["bob"].set()
        await until(lambda: sandboxed.statistics().concurrency == 0)
        (leak,) = reports(caplog)[-1]["leaks"] if len(reports(caplog)) > 1 else (None,)
        assert sandboxed.statistics().leaks.leaks == 2
        assert leak is None  # told once: the path is the same
        del app.gates["ada"]
        tasks.start_soon(Connection(sandboxed, "/login/ada").run)
        await until(lambda: "ada" in app.gates)
        app.gates["ada"].set()
        await until(lambda: sandboxed.statistics().concurrency == 0)


async def until(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(5):
        while not condition():
            await anyio.lowlevel.checkpoint()


@pytest.mark.parametrize("run_in", ["loop", "thread", "cooperative"])
@pytest.mark.parametrize("isolation", ["clone", "module"])
async def test_everywhere(
    isolation: Any, run_in: Any, package: Write, caplog: pytest.LogCaptureFixture
) -> None:
    """Wherever requests run, and whatever is private, it is reported."""
    name = package("login(name: str):\n    state.current_user = name")
    app = f"{name}.main:app"
    async with wrap(app, isolation=isolation, run_in=run_in, leaks="log") as sandboxed:
        await get(sandboxed, "/login/ada")
        await get(sandboxed, "/clean/x")
        (report,) = reports(caplog)
    assert paths(report) == [f"{name}.state.current_user"]
    assert "state.current_user changed from None to 'ada', at " in records(caplog)[0].getMessage()


async def test_large_containers(package: Write, caplog: pytest.LogCaptureFixture) -> None:
    """Of a container with very many items only the number is looked at."""
    name = package(
        "login(name: str):\n    state.users.append(name)",
        state=textwrap.dedent(STATE).replace("users = []", "users = list(range(20_000))"),
    )
    sandboxed: SandboxedApp
    async with wrap(f"{name}.main:app", leaks="log") as sandboxed:
        for _ in range(3):
            await get(sandboxed, "/login/ada")
        (report,) = reports(caplog)
    assert paths(report) == [f"{name}.state.users"]
