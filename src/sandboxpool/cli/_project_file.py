"""`[tool.sandboxpool]` of the project's pyproject.toml."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from sandboxpool._exceptions import OptionError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FILE = "pyproject.toml"
TABLES = ("check",)
"""The tables in it that are those of other commands than `serve`."""


def find_project_file(start: Path) -> Path | None:
    """Return the pyproject.toml of *start* or of the nearest folder above it."""
    for folder in (start, *start.parents):
        if (folder / FILE).is_file():
            return folder / FILE
    return None


def read_project_file(
    path: Path, known: Collection[str] | None, *, table: str | None = None
) -> dict[str, Any]:
    """Return the table, or a table in it, with underscores in its names.

    Args:
        path: The file.
        known: Every name that it may have; `None` to look for none in particular.
        table: Which of `TABLES`, for `[tool.sandboxpool.check]` and the like; `None` for
            `[tool.sandboxpool]` without them.

    Raises:
        OptionError: The file is no TOML, or the table has a name that does not exist.
    """
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise OptionError(f"{path} cannot be read: {error}") from None
    name = "tool.sandboxpool"
    inner: tuple[str, ...] = TABLES
    given = content.get("tool", {}).get("sandboxpool", {})
    if table is not None:
        name, inner = f"{name}.{table}", ()
        given = given.get(table, {}) if isinstance(given, Mapping) else given
    if not isinstance(given, Mapping):
        raise OptionError(f"{path}: {name} is {given!r}, but should be a table.")
    found = {}
    for key, value in given.items():
        option = key.replace("-", "_")
        if key in inner and isinstance(value, Mapping):
            continue
        if known is not None and option not in known:
            raise OptionError(
                f"{path}: [{name}] has {key!r}, which is no option."
                f"{did_you_mean(option, [*known, *inner])}"
            )
        found[option] = value
    return found


def did_you_mean(name: str, known: Collection[str]) -> str:
    """Return a question that names what is spelt like *name*, if anything is."""
    near = get_close_matches(name, known, n=3)
    return f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
