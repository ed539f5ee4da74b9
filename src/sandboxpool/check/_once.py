"""Writes that are none of a request's: what is made at its first use, and caches of pure functions.

`if CONNECTION is None: CONNECTION = connect()` and `if key not in CACHE: CACHE[key] = f(key)` leave
the same behind whoever comes first, as long as the value depends on nothing but the key.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator

from ._objects import last_name
from ._parameters import first_parameter
from ._program import Program
from ._scopes import FunctionNode, Scope, parameters


def fills_once(
    program: Program, statement: ast.AST, target: ast.expr, value: ast.AST | None, scope: Scope
) -> bool:
    """Tell whether an assignment only fills in what is missing, with a value of the key alone.

    Args:
        program: The app.
        statement: The assignment, or the call of `setdefault`.
        target: What is assigned to.
        value: What is assigned.
        scope: Where.
    """
    if value is None:
        return False
    function = scope.owner
    allowed: set[str] = set()
    held = target
    while isinstance(held, ast.Subscript):  # CACHE[a][b] = f(a, b)
        allowed |= _names(held.slice, function)
        held = held.value
    place = ast.unparse(held)
    used = _names(value, function)
    node = function.node
    if not isinstance(node, FunctionNode):
        return False
    own = {argument.arg for argument, _ in parameters(node)} - {first_parameter(function)}
    if function.in_class is None:
        own = {argument.arg for argument, _ in parameters(node)}
    # A decorator's `func(*args)` is the function that is cached: it is no argument of a call.
    if (used & own) - allowed:
        return False
    if any(ast.unparse(part) == place for part in ast.walk(value)):
        return False  # the new value is made of the old one
    if _reads_context(program, value, scope):
        return False
    return _is_checked(program, statement, place, function)


def _names(node: ast.AST | None, function: Scope) -> set[str]:
    """Return the names in an expression, and those that their values in the function come from."""
    found: set[str] = set()
    waiting = [] if node is None else [node]
    while waiting:
        for part in ast.walk(waiting.pop()):
            if isinstance(part, ast.Name) and part.id not in found:
                found.add(part.id)
                for binding in function.bindings.get(part.id, ()):
                    if binding.kind in ("value", "element", "entered"):
                        waiting.append(binding.node)
    return found


def _reads_context(program: Program, value: ast.AST, scope: Scope) -> bool:
    for node in ast.walk(value):
        if isinstance(node, ast.Attribute):
            found = program.find(node.value, scope)
            if found is not None and found.make == "context-variable":
                return True
    return False


def _is_checked(program: Program, statement: ast.AST, place: str, function: Scope) -> bool:
    """Tell whether the function looks first whether the value is there already."""
    for above in _above(program, statement, function.node):
        if isinstance(above, ast.If | ast.IfExp | ast.While) and _asks(
            above.test, place, function, statement
        ):
            return True
        if isinstance(above, ast.ExceptHandler) and last_name(above.type) in (
            *("KeyError", "AttributeError", "LookupError"),
        ):
            return True
    line = getattr(statement, "lineno", 0)
    for node, _ in function.nodes:
        if (
            isinstance(node, ast.If)
            and node.lineno < line
            and any(isinstance(part, ast.Return) for part in ast.walk(node))
            and _asks(node.test, place, function, statement)
        ):
            return True  # if key in CACHE: return CACHE[key]
        if (
            isinstance(node, ast.Try)
            and (node.end_lineno or 0) < line
            and any(place in ast.unparse(part) for part in node.body)
            and any(isinstance(part, ast.Return) for part in ast.walk(node))
        ):
            return True  # try: return CACHE[key] / except KeyError: pass
    return False


def _above(program: Program, node: ast.AST, end: ast.AST) -> Iterator[ast.AST]:
    above = program.parents.get(node)
    while above is not None and above is not end:
        yield above
        above = program.parents.get(above)


def _asks(test: ast.AST, place: str, function: Scope, statement: ast.AST) -> bool:
    """Tell whether a condition asks for what is at a place, or for a copy of it."""
    texts = {ast.unparse(part) for part in ast.walk(test)}
    if isinstance(test, ast.Call) and last_name(test.func) == "hasattr":
        return True
    if place in texts:
        return True
    line = getattr(statement, "lineno", 0)
    for part in ast.walk(test):
        if isinstance(part, ast.Name):
            for binding in function.bindings.get(part.id, ()):
                if binding.kind == "value" and binding.end[0] <= line:
                    inner = {ast.unparse(one) for one in ast.walk(binding.node)}
                    if place in inner:
                        return True
    return False
