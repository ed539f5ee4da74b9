"""What the command line says and how it ends when something is wrong, or missing."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import sandboxpool
from sandboxpool import OptionError
from sandboxpool.cli import _demo, _servers
from sandboxpool.cli._demo import run_demo
from sandboxpool.cli._demo_server import DemoError

from .conftest import Served

Serve = Callable[..., Served]


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sandboxpool", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_help_and_version(folder: Path) -> None:
    """Every command explains itself, and nothing at all shows what there is."""
    assert run(folder, "--version").stdout == f"sandboxpool {sandboxpool.__version__}\n"
    assert "demo" in run(folder).stdout
    for command in ([], ["demo"], ["serve"]):
        done = run(folder, *command, "--help")
        assert done.returncode == 0
        assert done.stdout.startswith("Usage: sandboxpool")


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["serve"], 2, "name the app to serve, like `sandboxpool serve shop.main:app`"),
        (["serve", "shop:nope"], 1, "module 'shop' has no attribute 'nope'. It has: app"),
        (["serve", "shop:nope", "--server", "hypercorn"], 1, "has no attribute 'nope'"),
        (["serve", "shop:nope", "--server", "granian"], 1, "has no attribute 'nope'"),
        (["serve", "shop:nope", "--workers", "2"], 1, "has no attribute 'nope'"),
        (["serve", "shop"], 1, 'must be in the form "<module>:<attribute>"'),
        (["serve", "shop:create_app"], 1, "looks like a factory: write wrap(..., factory=True)"),
        (["serve", "shop:app", "--max-size", "0"], 1, "max_size=0: give a whole number"),
        (["serve", "shop:app", "--max-size", "x"], 2, "max_size='x': give a whole number"),
        (["serve", "shop:app", "--max-sise", "3"], 2, "No such option '--max-sise'"),
        (["serve", "shop:app", "--server", "hypercorn", "--reload"], 1, "works with uvicorn"),
    ],
)
def test_mistakes_are_one_line(folder: Path, arguments: list[str], code: int, told: str) -> None:
    """A mistake in what was typed is one line that says what is wrong, and no traceback."""
    done = run(folder, *arguments)
    assert done.returncode == code
    errors = [line for line in done.stderr.splitlines() if line.startswith("Error: ")]
    assert len(errors) == 1
    assert told in errors[0]
    assert "Traceback" not in done.stderr


def test_an_error_in_the_app_keeps_its_traceback(folder: Path) -> None:
    """What fails inside of the app's own module is shown with the place where it failed."""
    (folder / "shop.py").write_text("1 / 0\n")
    done = run(folder, "serve", "shop:app")
    assert done.returncode != 0
    assert "ZeroDivisionError" in done.stderr
    assert 'shop.py", line 1' in done.stderr


def test_a_server_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A server that is not installed is named, with the extra that installs it."""
    monkeypatch.setattr(_servers, "find_spec", lambda name: None)
    with pytest.raises(OptionError, match=r"pip install sandboxpool\[granian\]"):
        _servers.check_server("granian", reload=False)


@pytest.mark.parametrize("missing", ["click", "rich"])
def test_the_extra_is_missing(missing: str) -> None:
    """Without click or rich the command line says what to install."""
    code = f"import sys; sys.modules[{missing!r}] = None; import sandboxpool.cli as c; c.main()"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr == (
        f"sandboxpool: the command line needs {missing}, which is not installed. "
        "Install it with: pip install sandboxpool[cli]\n"
    )


def test_the_demo_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without FastAPI the demo names it and the extras."""
    monkeypatch.setattr(_demo, "find_spec", lambda name: name == "uvicorn" or None)
    with pytest.raises(DemoError, match=r"fastapi cannot .* sandboxpool\[cli,fastapi,uvicorn\]"):
        run_demo(seconds=1, users=2)
