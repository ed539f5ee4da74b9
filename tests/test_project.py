"""The rules of the house: what an import may load, who may import whom, what things are called."""

from __future__ import annotations

import ast
import inspect
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import pytest

import sandboxpool

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "sandboxpool"

# Each layer may import from itself and from those above it in this table. A module stands under its
# first name below `sandboxpool`; one that is missing here has no place yet: give it one.
LAYERS: list[set[str]] = [
    {"abc", "_types", "_exceptions", "_leak_report"},
    {"_slots", "_options", "_factory", "_closers", "_loop", "_loop_asyncio", "_loop_trio"},
    {"_pool", "_lease", "_context", "_visit", "_lifespan", "_read_ahead", "_answers", "_load"},
    {"_watchdog", "_monitor", "_stacks", "_app_options"},
    {"isolation", "leaks", "run", "adapters", "hooks", "_deferred"},
    {"_wrap", "_isolations", "_sandboxed", "_runtime", "_stats"}
    | {"cache", "_children", "_concurrently", "_ticks"},
    {""},  # `sandboxpool` itself, the public names
    {"check", "cli", "resources", "telemetry", "testing", "__main__"},
]
RANKS = {name: rank for rank, layer in enumerate(LAYERS) for name in layer}

# What nobody pays for who only writes `import sandboxpool`.
HEAVY = [
    "click",
    "fastapi",
    "granian",
    "greenlet",
    "hypercorn",
    "pydantic",
    "redis",
    "rich",
    "starlette",
    "trio",
    "uvicorn",
]


def modules() -> dict[str, Path]:
    """Return every module of the package by its dotted name below `sandboxpool` ("" = itself)."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(name: str, path: Path, *, running: bool = False) -> Iterator[str]:
    """
    Yield the names below `sandboxpool` that a module imports, also inside of its functions.

    Args:
        name: The module's own name below `sandboxpool`.
        path: Its file.
        running: Only what is imported when the module is, so neither for types alone nor lazily.
    """
    known = modules()
    package = name.split(".") if path.name == "__init__.py" else name.split(".")[:-1]
    package = [part for part in package if part]
    body: list[ast.AST] = [ast.parse(path.read_text(encoding="utf-8"))]
    while body:
        node = body.pop()
        if running and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            continue
        if running and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            body.extend(node.orelse)
            continue
        body.extend(ast.iter_child_nodes(node))
        if isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name.split(".")[0] == "sandboxpool":
                    yield ".".join(alias.name.split(".")[1:])
        elif isinstance(node, ast.ImportFrom):
            source = node.module.split(".") if node.module else []
            if node.level:
                source = package[: len(package) + 1 - node.level] + source
            elif source[:1] == ["sandboxpool"]:
                source = source[1:]
            else:
                continue
            for alias in node.names:
                # `from . import _pool` means the module, `from ._pool import Pool` what is in it.
                inner = ".".join([*source, alias.name])
                yield inner if inner in known else ".".join(source)


def test_import_is_light() -> None:
    """`import sandboxpool` loads no framework, no server, no terminal library and no Trio."""
    code = f"import sandboxpool, sys; print(*[m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split() == []


@pytest.mark.parametrize(
    "name", [pytest.param(name, id=name or "sandboxpool") for name in modules()]
)
def test_imports_point_one_way(name: str) -> None:
    """A module imports only from its own layer and from the layers below it."""
    own = name.split(".")[0]
    assert own in RANKS, f"{own!r} has no place in LAYERS of tests/test_project.py"
    upward = [
        other
        for other in imports(name, modules()[name])
        if RANKS.get(other.split(".")[0], -1) > RANKS[own]
    ]
    assert upward == []


def test_no_import_cycles() -> None:
    """No two modules need each other to be imported, so any of them can come first."""
    graph = {
        name: set(imports(name, path, running=True)) - {name} for name, path in modules().items()
    }
    # A package that gathers the names of its own modules is no cycle.
    for name in graph:
        graph[name] -= {
            other for other in graph[name] if name.startswith(f"{other}.") or (other == "" and name)
        }
    while leaves := [name for name, needs in graph.items() if not needs & graph.keys()]:
        for name in leaves:
            del graph[name]
    assert graph == {}


def test_layers_are_read_rightly(tmp_path: Path) -> None:
    """The reader of imports sees absolute, relative and lazy ones, so that the rules above bite."""
    path = tmp_path / "clone.py"
    path.write_text(
        "import anyio\n"
        "import sandboxpool.cli\n"
        "from .. import _pool\n"
        "from ..abc import Sandbox\n"
        "from .factory import x\n"
        "if TYPE_CHECKING:\n"
        "    from sandboxpool._types import Scope\n"
        "def lazy():\n"
        "    from sandboxpool import wrap\n"
    )
    at_import = {"cli", "" if "_pool" not in modules() else "_pool", "abc", "isolation.factory"}
    assert set(imports("isolation.clone", path, running=True)) == at_import
    assert set(imports("isolation.clone", path)) == at_import | {"_types", ""}


@pytest.mark.parametrize("word", ["utils", "helpers", "common", "base", "manager"])
def test_modules_are_nouns(word: str) -> None:
    """No module is named after a drawer: each says what it holds."""
    drawers = [
        name for name in modules() if word in {part.strip("_") for part in name.split(".") if part}
    ]
    assert drawers == []


def test_public_names_are_documented() -> None:
    """Every name in `sandboxpool.__all__` can be imported and has a docstring."""
    names = getattr(sandboxpool, "__all__", ())
    assert sorted(set(names)) == sorted(names)
    undocumented = [
        name
        for name in names
        if name != "__version__" and not inspect.getdoc(getattr(sandboxpool, name))
    ]
    assert undocumented == []


def test_version() -> None:
    """The version in the package is that of the distribution."""
    assert sandboxpool.__version__ == version("sandboxpool")


def test_tests_say_what_they_prove() -> None:
    """Every test function has a docstring."""
    silent = [
        f"{path.relative_to(ROOT)}:{node.lineno} {node.name}"
        for path in sorted((ROOT / "tests").rglob("test_*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        and node.name.startswith("test_")
        and not ast.get_docstring(node)
    ]
    assert silent == []
