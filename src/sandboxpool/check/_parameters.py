"""What the parameters of functions are given: themselves, dependencies, requests, defaults."""

from __future__ import annotations

import ast
from typing import TYPE_CHECKING

from ._objects import Object, last_name, made_by
from ._scopes import FunctionNode, Scope, parameters

if TYPE_CHECKING:
    from ._program import Program

CONSTRUCTORS = frozenset(["__init__", "__post_init__", "__attrs_post_init__", "__set_name__"])
REQUESTS = frozenset({"Request", "WebSocket", "HTTPConnection"})
_APPS = frozenset({"FastAPI", "Starlette"})


def find_parameter(program: Program, node: ast.arg, function: Scope) -> Object | None:
    """Return what a parameter is given: `self`, a dependency, a request, a default, or unknown."""
    cls = function.in_class
    if cls is not None and node.arg == first_parameter(function):
        if is_classmethod(function):
            return Object(kind="class", path=cls.name, scope=cls)
        if function.short in CONSTRUCTORS:  # nobody else has it yet
            return Object(kind="instance", path=cls.name, scope=cls)
        shared = program.on_shared.get(function) or program.held.get(cls)
        return shared or Object(kind="instance", path=cls.name, scope=cls)
    if not isinstance(function.node, FunctionNode):
        return None
    default = next(
        (given for argument, given in parameters(function.node) if argument is node), None
    )
    given = injected(program, node, default, function)
    if given is not None:
        return _given(program, given, node, function)
    annotation = last_name(node.annotation)
    if annotation in REQUESTS or (not annotation and node.arg in ("request", "websocket")):
        return Object(kind="request", path=node.arg)
    if annotation in _APPS or (not annotation and node.arg == "app"):
        return Object(kind="app", path="app") if cls is None else None
    if node.arg == "scope" and annotation in ("", "Scope"):
        return Object(kind="scope", path="scope")
    if made_by(default) == "container" and not routed(function):
        return Object(
            kind="shared",
            path=f"{function.name}({node.arg})",
            rule="SP104",
            make="container",
            defined=(function.module, getattr(default, "lineno", 0)),
        )
    if default is not None:
        found = program.find(default, function.parent or function)
        if found is not None and found.kind == "shared":
            return found
    found = program.find(node.annotation, function.parent or function)
    if found is not None and found.kind == "class" and found.scope is not None:
        return program.held.get(found.scope) or Object(
            kind="instance", path=found.scope.name, scope=found.scope
        )
    return None


def injected(
    program: Program, node: ast.arg, default: ast.expr | None, function: Scope
) -> tuple[ast.expr, Scope] | None:
    """Return what is given to `Depends` for a parameter, and where that is evaluated."""
    around = function.parent or function
    candidates: list[tuple[ast.AST | None, Scope]] = [(default, around)]
    annotation: ast.AST | None = node.annotation
    home = around
    if isinstance(annotation, ast.Name):  # UserDependency = Annotated[User, Depends(...)]
        found = _alias(program, annotation, around)
        if found is not None:
            annotation, home = found
    if isinstance(annotation, ast.Subscript) and last_name(annotation) == "Annotated":
        inner = annotation.slice
        if isinstance(inner, ast.Tuple):
            candidates.extend((part, home) for part in inner.elts[1:])
    for part, scope in candidates:
        if isinstance(part, ast.Call) and last_name(part.func) in ("Depends", "Security"):
            given = [
                *part.args,
                *(one.value for one in part.keywords if one.arg == "dependency"),
            ]
            if given:
                return given[0], scope
            if isinstance(node.annotation, ast.expr):
                return node.annotation, around
    return None


def _alias(program: Program, node: ast.Name, scope: Scope) -> tuple[ast.AST, Scope] | None:
    home = scope.lookup(node.id)
    for _ in range(5):  # imports of imports
        if home is None:
            return None
        binding = home.bindings[node.id][-1] if node.id in home.bindings else None
        if binding is None:
            return None
        if binding.kind == "value":
            return binding.node, binding.scope
        if binding.kind != "from" or binding.name != node.id:
            return None
        home = program.modules.get(binding.source)
    return None


def _given(
    program: Program, given: tuple[ast.expr, Scope], node: ast.arg, function: Scope
) -> Object | None:
    expression, scope = given
    found = program.find(expression, scope)
    if found is None:
        return None
    if found.kind == "function" and found.scope is not None:
        return program.returned(found.scope)
    if found.kind == "class" and found.scope is not None:
        return Object(kind="instance", path=found.path, scope=found.scope)
    if found.kind == "shared" and found.scope is not None:
        call = program.method(found.scope, "__call__")
        return program.returned(call) if call is not None else None
    return None


def routed(function: Scope) -> bool:
    """Tell whether FastAPI calls a function itself, and so copies its defaults."""
    return any(isinstance(one, ast.Call | ast.Attribute) for one in function.decorators)


def first_parameter(function: Scope) -> str:
    """Return what a method calls its object, or "" if it is a static one, or no method."""
    node = function.node
    if not isinstance(node, FunctionNode) or function.kind != "function":
        return ""
    if any(last_name(one) == "staticmethod" for one in function.decorators):
        return ""
    positional = [*node.args.posonlyargs, *node.args.args]
    return positional[0].arg if positional else ""


def is_classmethod(function: Scope) -> bool:
    """Tell whether the first parameter of a method is the class."""
    return function.short in ("__init_subclass__", "__class_getitem__", "__new__") or any(
        last_name(one) == "classmethod" for one in function.decorators
    )
