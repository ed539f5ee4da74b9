"""Every option of `wrap()` as an option of `serve`, an environment variable, a line of TOML."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import sandboxpool
from sandboxpool import OptionError
from sandboxpool._app_options import WrapOptions
from sandboxpool.cli._settings import hand_over, handed_over, settings

from .conftest import Served

Serve = Callable[..., Served]


def test_no_option_of_wrap_is_missing(serve: Serve) -> None:
    """What `wrap()` can be told, `serve` can be told, with help, variable and default."""
    parameters = inspect.signature(sandboxpool.wrap).parameters.values()
    names = {one.name for one in parameters if one.kind is one.KEYWORD_ONLY}
    typed = {*WrapOptions.__annotations__, "factory", "isolation", "wsgi"}
    assert set(settings()) == names == typed
    text = " ".join(serve("--help").result.stdout.split())
    for name, setting in settings().items():
        assert setting.help, name
        assert setting.flag in text
        default = f"; default: {setting.default_text}" if setting.default_text else ""
        assert f"[env var: {setting.envvar}{default}]" in text


# A value for each option, as text, and what it stands for.
GIVEN: dict[str, tuple[str, Any]] = {
    "factory": ("true", True),
    "isolation": ("factory", "factory"),
    "run_in": ("thread", "thread"),
    "wsgi": ("true", True),
    "lifespan": ("off", "off"),
    "reset": ("shop:reset", "shop:reset"),
    "keep": ("state.cache,state.hits", ["state.cache", "state.hits"]),
    "share": ("state.catalogue", ["state.catalogue"]),
    "packages": ("shop,billing", ["shop", "billing"]),
    "shared": ("shop.db", ["shop.db"]),
    "leaks": ("retire", "retire"),
    "ignore": ("shop.state.hits,shop.cache.*", ["shop.state.hits", "shop.cache.*"]),
    "verify": ("0.01", 0.01),
    "hide_secrets": ("false", False),
    "middleware": ("CORS=share,Gzip=fresh", {"CORS": "share", "Gzip": "fresh"}),
    "min_size": ("2", 2),
    "max_size": ("3", 3),
    "acquire_timeout": ("1.5", 1.5),
    "max_waiting": ("none", None),
    "execution_timeout": ("30", 30.0),
    "slow_after": ("None", None),
    "stall_after": ("none", None),
    "drain_timeout": ("0", 0.0),
    "max_uses": ("100", 100),
    "max_lifetime": ("60", 60.0),
    "max_idle": ("none", None),
    "max_creating": ("8", 8),
    "create_timeout": ("1", 1.0),
    "reset_timeout": ("1", 1.0),
    "destroy_timeout": ("1", 1.0),
    "defer_timeout": ("1", 1.0),
    "hooks": ("sleep,socket", ["sleep", "socket"]),
    "thread_backend": ("asyncio", "asyncio"),
    "thread_stack_size": ("1000000", 1_000_000),
    "max_abandoned": ("none", None),
    "isolate_context": ("false", False),
    "gc_freeze": ("true", True),
    "stats": ("/stats", "/stats"),
    "resources": ("shop.db:db,shop.db:cache", ["shop.db:db", "shop.db:cache"]),
    "watchdog": ("shop:Watchdog", "shop:Watchdog"),
    "name": ("shop", "shop"),
}


@pytest.mark.parametrize("name", settings())
def test_each_option_from_everywhere(serve: Serve, folder: Path, name: str) -> None:
    """Each option reaches the worker from the command line, the environment and the table."""
    setting = settings()[name]
    text, value = GIVEN[name]
    if setting.kind == "flag":
        flag = setting.flag if value else f"--no-{setting.flag[2:]}"
        line = serve("shop:app", flag)
    else:
        line = serve("shop:app", setting.flag, text)
    assert line.errors.startswith("sandboxpool serves")
    expected = {name: value}
    if name == "hooks":
        expected["run_in"] = "cooperative"
    assert line.options == expected
    assert serve("shop:app", **{setting.envvar: text}).options == expected
    toml = "true" if value is True else "false" if value is False else f'"{text}"'
    for key in (name, name.replace("_", "-")):
        (folder / "pyproject.toml").write_text(f"[tool.sandboxpool]\n{key} = {toml}\n")
        assert serve("shop:app").options == expected


def test_hooks_alone(serve: Serve) -> None:
    """`--hooks` needs no value, and brings with it what makes use of them."""
    expected = {"hooks": ["default"], "run_in": "cooperative"}
    assert serve("shop:app", "--hooks").options == expected
    both = serve("shop:app", "--hooks", "sleep", "--hooks", "socket", "--run-in", "cooperative")
    assert both.options == {"hooks": ["sleep", "socket"], "run_in": "cooperative"}


def test_natural_values_of_toml(serve: Serve, folder: Path) -> None:
    """Numbers, lists and tables need no quotes; several options of a kind add up."""
    (folder / "pyproject.toml").write_text(
        "[tool.sandboxpool]\n"
        'app = "shop:app"\n'
        'server = "hypercorn"\n'
        "port = 9000\n"
        "max-size = 7\n"
        "acquire-timeout = 2\n"
        'keep = ["state.cache", "state.hits"]\n'
        'middleware = { CORS = "share" }\n'
    )
    served = serve("--workers", "2")
    assert served.app == "shop:app"
    assert served.app_dir == str(folder)
    assert served.server == {
        "server": "hypercorn",
        "host": "127.0.0.1",
        "port": 9000,
        "workers": 2,
        "reload": False,
        "extra": (),
    }
    assert served.options == {
        "max_size": 7,
        "acquire_timeout": 2.0,
        "keep": ["state.cache", "state.hits"],
        "middleware": {"CORS": "share"},
    }
    both = serve("--keep", "state.a", "--keep", "state.b,state.c").options["keep"]
    assert both == ["state.a", "state.b", "state.c"]


def test_who_wins(serve: Serve, folder: Path) -> None:
    """The command line wins over the environment, that over the table, that over the default."""
    assert serve("shop:app").options == {}
    (folder / "pyproject.toml").write_text("[tool.sandboxpool]\nmax-size = 1\nport = 1\n")
    inner = folder / "inner"
    inner.mkdir()
    os.chdir(inner)  # the nearest pyproject.toml counts
    table = serve("shop:app")
    assert (table.options["max_size"], table.server["port"]) == (1, 1)
    variables = {"SANDBOXPOOL_MAX_SIZE": "2", "SANDBOXPOOL_PORT": "2"}
    environment = serve("shop:app", **variables)
    assert (environment.options["max_size"], environment.server["port"]) == (2, 2)
    line = serve("shop:app", "--max-size", "3", "--port", "3", **variables)
    assert (line.options["max_size"], line.server["port"]) == (3, 3)


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ("max-sise = 3", "has 'max-sise', which is no option. Did you mean 'max_size'"),
        ("frobnicate = 3", "has 'frobnicate', which is no option."),
        ('max-size = "many"', "max_size='many': give a whole number, or none."),
        ("max-size = true", "max_size=True: give a whole number, or none."),
        ("acquire-timeout = []", "acquire_timeout=[]: give a number of seconds, or none."),
        ("keep = 3", "keep=3: give names, like state.cache."),
        ("middleware = { CORS = 'no' }", "give CLASS=POLICY, a policy of copy, share, fresh."),
        ("lifespan = 'often'", "lifespan='often': give one of auto, once, each, off."),
        ("stats = 3", "stats=3: give text, or none."),
        ("factory = 'maybe'", "factory='maybe': give true or false."),
        ("watchdog = 'x'", "watchdog='x': give an import string like shop.main:thing, or none."),
        ("reset = 'x'", "give one of restore, fresh, keep, or an import string"),
        ("= 3", "pyproject.toml cannot be read"),
    ],
)
def test_wrong_tables_are_refused(serve: Serve, folder: Path, table: str, told: str) -> None:
    """A name that does not exist, or a value that cannot work, is named, with the remedy."""
    (folder / "pyproject.toml").write_text(f"[tool.sandboxpool]\n{table}\n")
    served = serve("shop:app")
    assert served.result.exit_code == 2
    assert told in served.errors


def test_a_table_must_be_one(serve: Serve, folder: Path) -> None:
    """`tool.sandboxpool` that is no table is refused."""
    (folder / "pyproject.toml").write_text("[tool]\nsandboxpool = 3\n")
    assert "tool.sandboxpool is 3, but should be a table." in serve("shop:app").errors


def test_a_misspelt_variable_is_told(serve: Serve) -> None:
    """A variable with our prefix that sets nothing is warned of: it may be somebody else's."""
    served = serve("shop:app", SANDBOXPOOL_MAX_SISE="3")
    assert served.options == {}
    assert (
        "Warning: the environment variable SANDBOXPOOL_MAX_SISE sets no option. "
        "Did you mean 'max_size'"
    ) in served.errors


def test_options_of_the_server(serve: Serve) -> None:
    """What stands behind `--` goes to the server as it is, also without an app in front."""
    assert serve("shop:app", "--", "--loop", "uvloop").server["extra"] == ("--loop", "uvloop")
    served = serve("--", "--loop", "uvloop", SANDBOXPOOL_APP="shop:app")
    assert (served.app, served.server["extra"]) == ("shop:app", ("--loop", "uvloop"))


WORKER = """
from sandboxpool.cli._worker import app
given = app.wrap_options
print(given.name, given.pool["max_size"], given.watchdog, app._factory)
"""


def work(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", WORKER], cwd="/", capture_output=True, text=True, timeout=60
    )


def test_the_worker_wraps_what_it_is_handed(folder: Path) -> None:
    """A worker process finds the app in its folder and resolves the import strings."""
    (folder / "shop.py").write_text(
        "async def app(scope, receive, send): ...\n"
        "class Watchdog:\n"
        "    def started(self, lease): ...\n"
        "    ended = changed = started\n"
        "    def stop(self): ...\n"
        "    def __repr__(self): return 'a watchdog'\n"
        "def reset(sandbox): ...\n"
    )
    options = {"max_size": 3, "watchdog": "shop:Watchdog", "reset": "shop:reset"}
    hand_over("shop:app", str(folder), options)
    assert handed_over() == ("shop:app", str(folder), options)
    done = work(folder)
    assert done.stderr == ""
    assert done.stdout.startswith("shop:app 3 a watchdog <CloneFactory")


def test_the_worker_needs_the_handover(folder: Path) -> None:
    """Whoever points a server at the worker's module is told what to do instead."""
    done = work(folder)
    assert done.returncode == 1
    assert "run `sandboxpool serve shop.main:app`, or wrap the app in code." in done.stderr
    assert "Traceback" not in done.stderr
    with pytest.raises(OptionError, match="what `sandboxpool serve` shows to its servers"):
        handed_over()
