"""Reads the app's modules and finds where requests change what they share."""

from __future__ import annotations

import ast
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import attrs

from sandboxpool._exceptions import AppImportError

from ._finding import Finding
from ._held import find_held
from ._modules import Module, read_sources
from ._parameters import REQUESTS
from ._program import Program
from ._scopes import FunctionNode, Scope, parameters
from ._timing import Timing
from ._writes import Write, find_writes


@attrs.frozen
class Reading:
    """What came of reading an app.

    Attributes:
        findings: In the order of files and lines.
        modules: How many modules were read.
        functions: How many functions in them run while requests are served.
        unreadable: Modules that could not be parsed, each as `file:line: why`.
    """

    findings: list[Finding]
    modules: int
    functions: int
    unreadable: list[str]


def read_app(
    app: str,
    *,
    app_dir: Path,
    packages: Sequence[str] = (),
    exclude: Sequence[str] = (),
    progress: Callable[[str], None] = lambda step: None,
) -> Reading:
    """Find shared state in the source of an app, without importing it.

    Args:
        app: Its import string, like `shop.main:app`.
        app_dir: The folder to find it in.
        packages: Further packages that belong to the app.
        exclude: Modules that are left out.
        progress: Told what is being done.

    Raises:
        AppImportError: There is no such module, it has no such name, or it cannot be parsed.
    """
    progress("reading modules")
    sources = read_sources(app, app_dir=app_dir, packages=packages, exclude=exclude)
    progress(f"reading names in {len(sources.modules)} modules")
    program = Program.read(sources.modules)
    _check_name(app, program)
    progress(f"following calls in {len(sources.modules)} modules")
    timing = Timing.read(program)
    program.late = timing.late
    program.forget()
    find_held(program, timing)
    progress(f"looking at {len(timing.late)} functions that run in requests")
    writes = [
        write
        for function in program.functions
        if function in timing.late
        for write in find_writes(program, function)
    ]
    found = {
        (finding.rule, finding.file, finding.line, finding.path): finding
        for finding in (*_written(timing, writes), *_cached_by_request(program, timing))
    }
    return Reading(
        findings=sorted(found.values(), key=lambda one: (one.file, one.line, one.column, one.rule)),
        modules=len(sources.modules),
        functions=len(timing.late),
        unreadable=sources.unreadable,
    )


def _check_name(app: str, program: Program) -> None:
    module, _, name = app.partition(":")
    names = program.modules[module].bindings
    first = name.partition(".")[0]
    if first in names or "*" in names or "__getattr__" in names:
        return
    near = [one for one in names if not one.startswith("_")]
    raise AppImportError(
        f"import string {app!r}: module {module!r} has no attribute {name!r}. "
        f"It has: {', '.join(sorted(near)[:8]) or 'nothing'}."
    )


def _written(timing: Timing, writes: list[Write]) -> Iterator[Finding]:
    # What only fills in what is missing is harmless, and so is to make room in what is filled so.
    caches = {write.path for write in writes if write.fills}
    caches -= {write.path for write in writes if not write.fills and not write.removes}
    for write in writes:
        if write.fills or (write.removes and write.path in caches):
            continue
        node, module = write.node, write.function.module
        line = getattr(node, "lineno", 0)
        lines = range(line, (getattr(node, "end_lineno", None) or line) + 1)
        if any(module.ignores(write.rule, one) for one in lines):
            continue
        if write.defined is not None and write.defined[0].ignores(write.rule, write.defined[1]):
            continue
        way = tuple(one.name for one in timing.way(write.function))
        found = _finding(module, node, write.rule, write.path, write.message, write.function)
        yield attrs.evolve(found, way=way)


def _finding(
    module: Module, node: ast.AST, rule: str, path: str, message: str, function: Scope
) -> Finding:
    line = getattr(node, "lineno", 0)
    before = module.raw(line).encode()[: getattr(node, "col_offset", 0)]  # counted in bytes
    return Finding(
        rule=rule,
        path=path,
        message=message,
        file=_relative(module.path),
        line=line,
        column=len(before.decode(errors="replace")) + 1,
        function=function.name,
        code=module.line(line),
    )


def _cached_by_request(program: Program, timing: Timing) -> Iterator[Finding]:
    for function in program.functions:
        if function in timing.late and program.cached(function):
            yield from _cached(program, function)


def _cached(program: Program, function: Scope) -> Iterator[Finding]:
    """Yield what is wrong with a cache around a function."""
    node = function.node
    if not isinstance(node, FunctionNode):
        return
    first = next(iter(parameters(node)), None)
    cls = function.in_class
    message = ""
    if isinstance(node, ast.AsyncFunctionDef) and _is_functools(function):
        message = "keeps a coroutine, which only the first request can await"
    elif cls not in (None, *program.held) and first is not None and first[0].arg == "self":
        message = "keeps each object that its method is called on, and all that belongs to it"
    for argument, _ in parameters(node):
        annotation = ast.unparse(argument.annotation) if argument.annotation else argument.arg
        if annotation.rpartition(".")[2] in REQUESTS or annotation == "request":
            message = f"keeps each {argument.arg} that it is called with"
    line = node.lineno
    if message and not function.module.ignores("SP110", line):
        yield _finding(
            function.module,
            node,
            "SP110",
            function.name,
            f"the cache of {function.short}() {message}",
            function,
        )


def _is_functools(function: Scope) -> bool:
    return any(
        ast.unparse(one).partition("(")[0].removeprefix("functools.") in ("lru_cache", "cache")
        for one in function.decorators
    )


def _relative(path: Path) -> str:
    try:
        return path.resolve().relative_to(Path.cwd().resolve()).as_posix()
    except ValueError:
        return Path(os.path.abspath(path)).as_posix()
