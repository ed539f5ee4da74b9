"""The app's own modules: found and parsed, never imported."""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Collection, Iterator, Sequence
from fnmatch import fnmatchcase
from importlib.machinery import PathFinder
from importlib.util import find_spec
from pathlib import Path

import attrs

from sandboxpool._exceptions import AppImportError

_COMMENT = re.compile(r"#\s*sandboxpool:\s*ignore(?:\[(?P<rules>[^\]]*)\])?")
_INSTALLED = {"site-packages", "dist-packages"}
_DYNAMIC = {"import_module", "walk_packages", "iter_modules", "__import__"}
_TESTS = {"tests", "testing", "conftest", "__main__"}
# Visitors take up to four frames of Python's stack, which has 1000, for each level of a tree.
# Modules that people write have less than 50 levels; a chain of 1000 `+` or `elif` has as many.
_DEEPEST = 150


@attrs.frozen(eq=False, repr=False)
class Module:
    """A module of the app, parsed.

    Attributes:
        name: Its dotted name.
        path: Its file.
        package: Whether it is a package's `__init__`.
        lines: Its source.
        tree: What was parsed.
        ignored: By line: the rules that a comment there switches off, none of them for all.
    """

    name: str
    path: Path
    package: bool
    lines: list[str]
    tree: ast.Module
    ignored: dict[int, frozenset[str]]

    def line(self, number: int) -> str:
        """Return a line of the source without the spaces around it, numbered from 1."""
        return self.raw(number).strip()

    def raw(self, number: int) -> str:
        """Return a line of the source as it is, numbered from 1."""
        return self.lines[number - 1] if 0 < number <= len(self.lines) else ""

    def ignores(self, rule: str, line: int) -> bool:
        """Tell whether a comment in *line* switches *rule* off there."""
        rules = self.ignored.get(line)
        return rules is not None and (not rules or rule in rules)

    def absolute(self, node: ast.ImportFrom) -> str:
        """Return the full name of the module that a `from` imports from."""
        if not node.level:
            return node.module or ""
        parts = self.name.split(".")
        parts = parts[: len(parts) - (node.level - 1 if self.package else node.level)]
        return ".".join([*parts, *([node.module] if node.module else [])])


@attrs.define
class Sources:
    """Every module of the app that its import string leads to.

    Attributes:
        modules: By name.
        unreadable: What could not be parsed, each as `file:line: why`.
    """

    modules: dict[str, Module] = attrs.Factory(dict)
    unreadable: list[str] = attrs.Factory(list)


def read_sources(
    app: str, *, app_dir: Path, packages: Sequence[str] = (), exclude: Sequence[str] = ()
) -> Sources:
    """Return the modules of an app, beginning with that of its import string.

    An import leads on as long as it stays in the app: in the top-level package of the import
    string, in *packages*, or in the folder that the app's module is in, unless that is where
    packages are installed. A package that imports its modules by computed names is read whole.

    Args:
        app: An import string, like `shop.main:app`.
        app_dir: The folder to look in first.
        packages: Further packages that belong to the app, read whole.
        exclude: Modules that are left out, with all below them; `*` stands for anything.

    Raises:
        AppImportError: There is no such module, it is not Python, or it has a syntax error.
    """
    entry = app.partition(":")[0]
    if not entry or entry.startswith(".") or not app.partition(":")[2]:
        raise AppImportError(
            f'import string {app!r} must be in the form "<module>:<attribute>", '
            'like "shop.main:app".'
        )
    finder = _Finder(path=[str(app_dir), *sys.path])
    first = entry.partition(".")[0]
    own = {first, *(name.partition(".")[0] for name in packages)}
    root = finder.folder(first)
    for package in packages:
        if finder.find(package) is None:
            raise AppImportError(f"packages={package!r}: there is no such module.")
    found = Sources()
    waiting = [entry, *(name for package in packages for name in finder.below(package))]
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        top = name.partition(".")[0]
        if top not in own and not _beside(finder, top, root):
            continue
        if "." in name:
            waiting.append(name.rpartition(".")[0])
        if name != entry and _excluded(name, exclude):
            continue
        place = finder.find(name)
        if place is None or place.file is None or not place.file.endswith(".py"):
            if name == entry and (place is None or place.folders is None):
                what = "is no file of Python" if place else "does not exist"
                raise AppImportError(
                    f"import string {app!r}: the module {name!r} {what}. "
                    f"Is its folder on the import path? (looked in {str(app_dir)!r} first)"
                )
            continue
        try:
            module = _parse(name, place)
        except (SyntaxError, ValueError, OSError) as error:
            reason = f"{place.file}:{getattr(error, 'lineno', None) or 0}: " + (
                getattr(error, "msg", None) or str(error)
            )
            if name == entry:
                raise AppImportError(f"import string {app!r}: {reason}") from None
            found.unreadable.append(reason)
            continue
        found.modules[name] = module
        waiting.extend(_imports(module))
        if top in own and _imports_by_computed_name(module):
            waiting.extend(finder.below(name if module.package else name.rpartition(".")[0]))
    return found


def _excluded(name: str, exclude: Collection[str]) -> bool:
    parts = name.split(".")
    above = [".".join(parts[: n + 1]) for n in range(len(parts))]
    return any(fnmatchcase(one, pattern) for one in above for pattern in exclude)


def _beside(finder: _Finder, top: str, root: Path | None) -> bool:
    """Tell whether a module is in the folder of the app, and not merely installed next to it."""
    if root is None or _INSTALLED & set(root.parts) or top in sys.stdlib_module_names:
        return False
    return finder.folder(top) == root


@attrs.frozen
class _Place:
    """Where a module is: its file, and for a package the folders of its modules."""

    file: str | None
    folders: tuple[str, ...] | None


@attrs.define
class _Finder:
    """Finds modules by name as the import system does, without importing their parents."""

    path: list[str]
    _places: dict[str, _Place | None] = attrs.Factory(dict)

    def find(self, name: str) -> _Place | None:
        if name not in self._places:
            self._places[name] = self._find(name)
        return self._places[name]

    def _find(self, name: str) -> _Place | None:
        parent, _, last = name.rpartition(".")
        above = self.find(parent) if parent else _Place(None, tuple(self.path))
        if above is None or above.folders is None:
            return None
        try:
            spec = PathFinder.find_spec(name, list(above.folders))
            if spec is None and not parent:
                # Editable installs have finders of their own; nothing is imported to ask them.
                spec = find_spec(name)
        except (ImportError, ValueError, AttributeError, KeyError):
            spec = None  # KeyError: a namespace package in one that is not imported
        if spec is not None and spec.origin is not None and spec.has_location:
            places = spec.submodule_search_locations
            return _Place(spec.origin, None if places is None else tuple(places))
        if spec is not None and spec.submodule_search_locations is None:
            return _Place(None, None)  # built in, or frozen
        folders = [Path(place or ".", last) for place in above.folders]
        if spec is not None and not parent:
            folders += [Path(place) for place in spec.submodule_search_locations or ()]
        namespace = tuple(dict.fromkeys(str(folder) for folder in folders if folder.is_dir()))
        return _Place(None, namespace) if namespace else None

    def folder(self, top: str) -> Path | None:
        """Return the folder that a top-level module or package is in."""
        place = self.find(top)
        if place is None:
            return None
        if place.folders:
            return Path(place.folders[0]).resolve().parent
        return Path(place.file).resolve().parent if place.file else None

    def below(self, name: str) -> Iterator[str]:
        """Yield a package and every module below it, but for its tests."""
        if not name:
            return
        yield name
        place = self.find(name)
        for folder in (place.folders or ()) if place else ():
            for path in sorted(Path(folder).rglob("*.py")):
                parts = path.relative_to(folder).with_suffix("").parts
                parts = parts[:-1] if parts[-1] == "__init__" else parts
                if all(part.isidentifier() for part in parts) and not any(
                    part in _TESTS or part.startswith("test_") for part in parts
                ):
                    yield ".".join([name, *parts])


def _parse(name: str, place: _Place) -> Module:
    path = Path(place.file or "")
    with tokenize.open(path) as file:  # which reads the encoding that the file declares
        text = file.read()
    try:
        tree = ast.parse(text, filename=str(path))
    except (RecursionError, MemoryError):
        tree = None
    if tree is None or _is_too_deep(tree):
        raise ValueError(f"it is nested too deeply to be read, in more than {_DEEPEST} levels")
    return Module(
        name=name,
        path=path,
        package=place.folders is not None,
        lines=text.split("\n"),
        tree=tree,
        ignored=_comments(text),
    )


def _is_too_deep(tree: ast.Module) -> bool:
    level: list[ast.AST] = [tree]
    for _ in range(_DEEPEST):
        level = [below for node in level for below in ast.iter_child_nodes(node)]
    return bool(level)


def _comments(text: str) -> dict[int, frozenset[str]]:
    if "sandboxpool:" not in text:
        return {}
    found = {}
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT and (match := _COMMENT.search(token.string)):
            rules = (match["rules"] or "").replace(" ", "").upper().split(",")
            found[token.start[0]] = frozenset(filter(None, rules))
    return found


def _imports(module: Module) -> Iterator[str]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name
        elif isinstance(node, ast.ImportFrom):
            source = module.absolute(node)
            if source:
                yield source
                # Each name may be a module, or something in the package.
                yield from (f"{source}.{alias.name}" for alias in node.names if alias.name != "*")
        elif isinstance(node, ast.Call) and _last(node.func) in ("import_module", "__import__"):
            first = node.args[0] if node.args else None
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                yield first.value.lstrip(".")


def _imports_by_computed_name(module: Module) -> bool:
    return any(
        isinstance(node, ast.Call)
        and _last(node.func) in _DYNAMIC
        and not (node.args and isinstance(node.args[0], ast.Constant))
        for node in ast.walk(module.tree)
    )


def _last(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""
