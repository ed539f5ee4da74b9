"""Each example prints what its docstring says it does."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from tests.hooks.servers import HOST, fleet  # noqa: F401 - a fixture

ROOT = Path(__file__).parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def docstring(path: Path) -> str:
    """Return what an example says about itself."""
    return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""


def needs_servers(path: Path) -> bool:
    """Tell whether an example needs a PostgreSQL and a Redis."""
    return "DATABASE_URL" in docstring(path)


def promised(path: Path) -> str:
    """Return what the docstring of an example says that one sees, as a regular expression."""
    shown = textwrap.dedent(docstring(path).partition("You see:\n")[2]).strip()
    return re.escape(shown).replace(r"\.\.\.", r"\d+")


@pytest.mark.parametrize(
    "path",
    [
        pytest.param(path, id=path.stem, marks=pytest.mark.server if needs_servers(path) else ())
        for path in EXAMPLES
    ],
)
def test_example_does_what_it_says(
    path: Path, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    """An example runs without a warning and prints what its docstring promises."""
    environment = {**os.environ, "SHOP_DB": str(tmp_path / "shop.db")}
    if needs_servers(path):
        fleet = request.getfixturevalue("fleet")
        postgres, redis = fleet("postgres"), fleet("redis")
        environment["DATABASE_URL"] = f"postgresql://postgres@{HOST}:{postgres}/postgres"
        environment["REDIS_URL"] = f"redis://{HOST}:{redis}/0"
    done = subprocess.run(
        [sys.executable, "-W", "error", str(path)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(promised(path), done.stdout.strip()), done.stdout


@pytest.mark.parametrize("path", [pytest.param(path, id=path.stem) for path in EXAMPLES])
def test_example_says_how_to_run_it(path: Path) -> None:
    """The docstring of an example says what it shows, what to install, how to run, what to see."""
    told = docstring(path)
    for part in (
        "What it shows:",
        "Install:",
        f"Run:      python examples/{path.name}",
        "You see:",
    ):
        assert part in told
    app = re.search(r"examples\.(\w+):(\w+)", told)
    assert app is None or app[1] == path.stem


@pytest.mark.parametrize(
    "path", [pytest.param(path, id=path.stem) for path in EXAMPLES if "Serve:" in docstring(path)]
)
def test_example_can_be_served(path: Path) -> None:
    """What the docstring tells a server to serve is an ASGI app, importable from the root."""
    names = re.findall(rf"examples\.{path.stem}:(\w+)", docstring(path))
    assert names
    code = f"from examples.{path.stem} import {', '.join(names)} as served; assert callable(served)"
    if len(names) > 1:
        code = f"import examples.{path.stem} as e; assert callable(e.app) and callable(e.plain)"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 0, done.stderr
