"""Which objects of the app's own classes exist once, and serve all requests."""

from __future__ import annotations

import ast

import attrs

from ._objects import Object, last_name, made_by
from ._parameters import first_parameter
from ._program import Program
from ._scopes import FunctionNode, Scope, parameters
from ._timing import Timing

_PER_REQUEST = ("Endpoint", "Response", "Model", "Base", "Schema", "Exception", "Error", "Enum")
_ASKS_FOR_CLASS = frozenset(
    ["isinstance", "issubclass", "super", "cast", "__new__", "add_middleware"]
)


def find_held(program: Program, timing: Timing) -> None:
    """Tell the program which classes have one object, and which methods are called on it."""
    held: dict[Scope, Object] = {}
    per_request = _made_by_framework(program)
    for cls, call, scope in timing.made:
        place = _place(program, call, scope, timing)
        for one in program.bases(cls):
            if place is None:
                if scope.owner in timing.late:
                    per_request.add(one)
            elif one not in held:
                held[one] = Object(kind="shared", path=place or one.name, rule="SP107", scope=one)
    for cls in program.classes:
        if _is_middleware(program, cls) and cls not in per_request:
            for one in program.bases(cls):
                held[one] = Object(kind="shared", path=one.name, rule="SP106", scope=one)
    program.held = {
        cls: found
        for cls, found in held.items()
        if cls not in per_request and not _is_per_request(program, cls)
    }
    for function in timing.starting:
        for node, _ in function.nodes:
            if isinstance(node, ast.Yield) and isinstance(node.value, ast.Dict):
                for key, value in zip(node.value.keys, node.value.values, strict=True):
                    if isinstance(key, ast.Constant) and isinstance(key.value, str):
                        program.lifespan_state[key.value] = made_by(value)
    program.forget()
    _follow_calls(program, timing)


def _place(program: Program, call: ast.Call, scope: Scope, timing: Timing) -> str | None:
    """Return where an object is held that outlives requests: "" if unknown, `None` if none does."""
    parent = program.parents.get(call)
    while isinstance(parent, ast.IfExp | ast.BoolOp | ast.Await):
        parent = program.parents.get(parent)
    targets = parent.targets if isinstance(parent, ast.Assign) else []
    if isinstance(parent, ast.AnnAssign):
        targets = [parent.target]
    for target in targets:
        if isinstance(target, ast.Name):
            if scope.kind == "module" or scope.declared.get(target.id) == "global":
                return f"{scope.top.name}.{target.id}"
        elif isinstance(target, ast.Attribute):
            found = program.find(target.value, scope)
            if found is not None and found.kind in ("class", "module", "app", "shared"):
                return f"{found.path}.{target.attr}"
    found = program.find(call.func, scope)
    if found is not None and found.scope is not None and _makes_one(program, found.scope):
        return found.path
    owner = scope.owner
    if owner.kind == "function" and program.cached(owner):
        return f"{owner.name}()"
    if owner in timing.late or not _is_kept(parent, targets, owner):
        return None
    return ""


def _is_kept(parent: ast.AST | None, targets: list[ast.expr], function: Scope) -> bool:
    """Tell whether more is done with a new object than to call its methods."""
    if isinstance(parent, ast.Attribute | ast.Expr):
        return False
    if len(targets) != 1 or not isinstance(targets[0], ast.Name) or function.kind == "module":
        return True
    name = targets[0].id
    used = [
        node
        for node in ast.walk(function.node)
        if isinstance(node, ast.Name) and node.id == name and isinstance(node.ctx, ast.Load)
    ]
    receivers = {node.value for node in ast.walk(function.node) if isinstance(node, ast.Attribute)}
    return any(node not in receivers for node in used) or any(
        name in _free_names(child) for child in function.children.values()
    )


def _free_names(function: Scope) -> set[str]:
    return {node.id for node in ast.walk(function.node) if isinstance(node, ast.Name)}


def _makes_one(program: Program, cls: Scope) -> bool:
    """Tell whether a class keeps its one object itself, in `__new__`."""
    new = program.method(cls, "__new__")
    return new is not None and any(
        isinstance(node, ast.Attribute)
        and isinstance(node.ctx, ast.Store)
        and isinstance(node.value, ast.Name)
        and node.value.id in (first_parameter(new), cls.short)
        for node, _ in new.nodes
    )


def _made_by_framework(program: Program) -> set[Scope]:
    """Return the classes whose objects others make: from bodies, rows, for dependencies."""
    found: set[Scope] = set()
    for scope in program.scopes.values():
        for node, inner in scope.nodes:
            if isinstance(node, ast.Call) and last_name(node.func) not in (
                *_ASKS_FOR_CLASS,
                "Middleware",
            ):
                for given in (*node.args, *(one.value for one in node.keywords)):
                    _add_class(program, given, inner, found)
        if not isinstance(scope.node, FunctionNode) or not program.routed(scope):
            continue
        for argument, default in parameters(scope.node):
            if program.injected(argument, default, scope) is None:
                for part in ast.walk(argument.annotation or ast.Pass()):
                    _add_class(program, part, scope.parent or scope, found)
    return found


def _add_class(program: Program, node: ast.AST, scope: Scope, found: set[Scope]) -> None:
    if isinstance(node, ast.Name | ast.Attribute):
        one = program.find(node, scope)
        if one is not None and one.kind == "class" and one.scope is not None:
            found.update(program.bases(one.scope))


def _is_per_request(program: Program, cls: Scope) -> bool:
    return program.method(cls, "__await__") is not None or any(
        base.endswith(_PER_REQUEST) for base in program.foreign_bases(cls)
    )


def _is_middleware(program: Program, cls: Scope) -> bool:
    if any(base.endswith("Middleware") for base in program.foreign_bases(cls)):
        return True
    call, made = program.method(cls, "__call__"), program.method(cls, "__init__")
    return (
        call is not None
        and made is not None
        and _arguments(call)[1:] == ["scope", "receive", "send"]
        and "app" in _arguments(made)
    )


def _arguments(function: Scope) -> list[str]:
    node = function.node
    assert isinstance(node, FunctionNode)
    return [argument.arg for argument, _ in parameters(node)]


def _follow_calls(program: Program, timing: Timing) -> None:
    """Find the methods that are called on one shared object, though its class has others too."""
    while True:
        found: dict[Scope, Object] = {}
        for function in timing.late:
            for node, scope in function.nodes:
                if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
                    continue
                base = program.find(node.func.value, scope)
                if base is None or base.kind != "shared" or base.scope is None:
                    continue
                method = program.method(base.scope, node.func.attr)
                if (
                    method is not None
                    and method in timing.late
                    and method.in_class not in program.held
                    and method not in program.on_shared
                    and first_parameter(method)
                    and base.rule != "SP103"
                ):
                    found[method] = attrs.evolve(base, rule="SP107", inside=False)
        if not found:
            return
        program.on_shared.update(found)
        program.forget()
