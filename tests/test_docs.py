"""
The documentation is true: its code runs, and prints what stands below it.

A block of Python in a page is a program of its own. What is printed is what the block of
`output` after it says, where `...` stands for any digits, and nothing if there is none. A block
with `title="shop.py"` is a module that the later blocks of the page can import. What stands
behind `<!-- fragment -->` is only compiled, and what stands behind `<!-- needs fastapi 0.163 -->`
too, where an older version is installed.
"""

from __future__ import annotations

import ast
import inspect
import io
import logging
import re
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import attrs
import pytest

import sandboxpool

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]

BLOCK = re.compile(
    r"(?:<!-- (?P<fragment>fragment|needs (?P<package>\w+) (?P<version>[\d.]+)) -->\n\n?)?"
    r"^(?P<indent> *)```python(?P<info>[^\n]*)\n(?P<code>.*?)^(?P=indent)```$"
    r"(?:\n\n?(?P=indent)```output\n(?P<output>.*?)^(?P=indent)```$)?",
    re.MULTILINE | re.DOTALL,
)


@attrs.frozen
class Block:
    """A block of Python in a page."""

    line: int
    code: str
    output: str
    title: str | None
    fragment: bool


def has(package: str | None, wanted: str) -> bool:
    """Tell whether a package of that version, or of a later one, is installed."""
    if package is None:
        return False
    found = [int(part) for part in version(package).split(".")[:2]]
    return found >= [int(part) for part in wanted.split(".")]


def blocks(path: Path) -> list[Block]:
    """Return the blocks of Python in a page."""
    text = path.read_text(encoding="utf-8")
    found = []
    for match in BLOCK.finditer(text):
        title = re.search(r'title="([^"]+)"', match["info"])
        found.append(
            Block(
                line=text.count("\n", 0, match.start("code")) + 1,
                code=textwrap.dedent(match["code"]),
                output=textwrap.dedent(match["output"] or ""),
                title=title and title[1],
                fragment=match["fragment"] is not None
                and not has(match["package"], match["version"]),
            )
        )
    return found


def our_loggers() -> list[logging.Logger]:
    """Return the root logger and those of this library."""
    names = [n for n in logging.root.manager.loggerDict if n.split(".")[0] == "sandboxpool"]
    return [logging.root, *map(logging.getLogger, names)]


@contextmanager
def levels_restored() -> Iterator[None]:
    """Undo what a page does to the levels of loggers, which the tests after it share."""
    before = {logger: logger.level for logger in our_loggers()}
    try:
        yield
    finally:
        for logger in our_loggers():
            logger.setLevel(before.get(logger, logging.NOTSET))


def run(block: Block, path: Path) -> str:
    """Run a block as a program, and return what it printed."""
    module = ModuleType("__main__")
    lines = "\n" * (block.line - 1)  # so that tracebacks name the line of the page
    code = compile(lines + block.code, str(path), "exec", dont_inherit=True)
    printed = io.StringIO()
    before, sys.modules["__main__"] = sys.modules["__main__"], module
    try:
        with redirect_stdout(printed), levels_restored():
            exec(code, vars(module))
    finally:
        sys.modules["__main__"] = before
    return printed.getvalue()


def pattern(output: str) -> str:
    """Return a regular expression for what a page says is printed."""
    return re.escape(output.strip()).replace(r"\.\.\.", r"[\d.]+")


@pytest.mark.parametrize(
    "path",
    [pytest.param(path, id=str(path.relative_to(ROOT))) for path in PAGES if blocks(path)],
)
def test_code_in_pages_is_true(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each block of Python in a page runs and prints what the page says."""
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CI", raising=False)  # pytest says more with it
    monkeypatch.delenv("BUILD_NUMBER", raising=False)
    known = set(sys.modules)
    try:
        for block in blocks(path):
            if block.fragment:
                ast.parse(block.code)
                continue
            if block.title is not None:
                file = tmp_path / block.title
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_text(block.code, encoding="utf-8")
                if not block.output:
                    continue
            printed = run(block, path)
            assert re.fullmatch(pattern(block.output), printed.strip()), (
                f"{path.name}:{block.line} printed:\n{printed}"
            )
    finally:
        for name in set(sys.modules) - known:
            module = sys.modules[name]
            # Those without an `__init__.py` have no file.
            places = (getattr(module, "__file__", None), *getattr(module, "__path__", ()))
            if any(str(tmp_path) in str(place) for place in places):
                del sys.modules[name]


def test_fragments_are_few() -> None:
    """Most of the code in the pages is run: what is only compiled stays the exception."""
    every = [block for path in PAGES for block in blocks(path)]
    fragments = [block for block in every if block.fragment]
    assert len(fragments) * 5 <= len(every)


def test_every_output_is_compared() -> None:
    """Each block of output stands directly behind the code that prints it."""
    stray = [
        path.name
        for path in PAGES
        if path.read_text(encoding="utf-8").count("```output")
        != sum(block.output != "" for block in blocks(path))
    ]
    assert stray == []


def test_wrong_output_is_noticed(tmp_path: Path) -> None:
    """A page that says something else than what its code prints does not pass."""
    page = tmp_path / "page.md"
    page.write_text("```python\nprint(1 + 1)\n```\n\n```output\n3\n```\n", encoding="utf-8")
    (block,) = blocks(page)
    assert not re.fullmatch(pattern(block.output), run(block, page).strip())


def test_levels_of_loggers_are_put_back(tmp_path: Path) -> None:
    """A page that silences a logger does so for itself, also if it raises."""
    names = (None, "sandboxpool", "sandboxpool.pool", "sandboxpool.first_seen_in_a_page")
    page = tmp_path / "page.md"
    page.write_text(
        "```python\nimport logging\n\n"
        f"for name in {names!r}:\n    logging.getLogger(name).setLevel(logging.CRITICAL)\n"
        "1 / 0\n```\n",
        encoding="utf-8",
    )
    before = [logging.getLogger(name).level for name in names[:3]]
    (block,) = blocks(page)
    with pytest.raises(ZeroDivisionError):
        run(block, page)
    assert [logging.getLogger(name).level for name in names] == [*before, logging.NOTSET]


def test_links_lead_somewhere() -> None:
    """Each relative link in a page leads to a file that exists."""
    broken = []
    for path in [*PAGES, ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\(([^)#\s]+)[^)]*\)", path.read_text(encoding="utf-8")):
            if not re.match(r"[a-z]+:", target) and not (path.parent / target).exists():
                broken.append(f"{path.name}: {target}")
    assert broken == []


def test_every_page_is_in_the_navigation() -> None:
    """The navigation names every page, but for those that other pages include."""
    config = (ROOT / "zensical.toml").read_text(encoding="utf-8")
    named = set(re.findall(r'"([\w/-]+\.md)"', config))
    pages = {str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md")}
    assert pages - {"isolation-table.md"} == named


def test_every_public_name_is_in_the_reference() -> None:
    """The reference has an entry for each name in `sandboxpool` and in `sandboxpool.abc`."""
    reference = "".join(
        path.read_text(encoding="utf-8") for path in (DOCS / "reference").glob("*.md")
    )
    missing = [
        f"sandboxpool.{name}"
        for name in sandboxpool.__all__
        if name != "__version__" and f"::: sandboxpool.{name}\n" not in reference
    ]
    missing += [
        f"sandboxpool.abc.{name}"
        for name in sandboxpool.abc.__all__
        if f"::: sandboxpool.abc.{name}\n" not in reference
    ]
    assert missing == []


def test_every_error_is_explained() -> None:
    """The page on errors has a heading for each class in the error tree."""
    told = (DOCS / "errors.md").read_text(encoding="utf-8")
    missing = [
        name
        for name in sandboxpool.__all__
        if name.endswith("Error") and not re.search(rf"^#+ .*`{name}`", told, re.MULTILINE)
    ]
    assert missing == []


def test_every_option_is_explained() -> None:
    """The pages name each option of `wrap` and of `Pool`."""
    told = "".join(path.read_text(encoding="utf-8") for path in DOCS.glob("*.md"))
    missing = [
        name
        for function in (sandboxpool.wrap, sandboxpool.Pool)
        for name in inspect.signature(function).parameters
        if f"`{name}" not in told and f"{name}=" not in told
    ]
    assert missing == []


def test_words_of_the_house() -> None:
    """The glossary explains each word of the library's vocabulary."""
    told = (DOCS / "glossary.md").read_text(encoding="utf-8").lower()
    words = "sandbox lease acquire release idle create reset destroy retire drain resize isolation"
    words += " template backend context watchdog leak scope"
    assert [word for word in words.split() if f"**{word}" not in told] == []
