"""Which name means what where: the scopes of modules, classes, functions and comprehensions.

The rules are those of the language reference, 4.2 "Naming and binding": names of a class are not
seen by its methods, a comprehension has a scope of its own but for its first iterable, and `:=`
binds in the function around it.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence
from typing import Literal

import attrs

from ._modules import Module

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda
Declarations = dict[str, Literal["global", "nonlocal"]]
BindingKind = Literal["value", "element", "entered", "import", "from", "def", "parameter", "other"]


@attrs.frozen(eq=False, repr=False)
class Binding:
    """One place that gives a name its value.

    Attributes:
        kind: How: by a value, as an element of what is iterated over, by an import...
        node: The expression or statement that does; for a parameter its `ast.arg`.
        scope: Where that is evaluated.
        source: For an import, the name of the module.
        name: For `from`, the name in that module.
    """

    kind: BindingKind
    node: ast.AST
    scope: Scope
    source: str = ""
    name: str = ""

    @property
    def end(self) -> tuple[int, int]:
        """Line and column where it is done, to order what is bound more than once."""
        return (
            getattr(self.node, "end_lineno", None) or 0,
            getattr(self.node, "end_col_offset", None) or 0,
        )


@attrs.define(eq=False, repr=False)
class Scope:
    """A module, class, function or comprehension, and what its names are bound to.

    Attributes:
        kind: What it is the scope of.
        name: Its dotted path, like `shop.main.create_app.home`.
        node: The node that opens it.
        module: The module that it is in.
        parent: The scope around it.
        bindings: By name, in the order of the source.
        declared: The names that are declared `global` or `nonlocal`.
        children: The classes and functions directly in it, by node.
        nodes: What a module or function runs itself, each with the scope for its names.
    """

    kind: Literal["module", "class", "function", "comprehension"]
    name: str
    node: ast.AST
    module: Module
    parent: Scope | None = None
    bindings: dict[str, list[Binding]] = attrs.Factory(dict)
    declared: Declarations = attrs.Factory(dict)
    children: dict[ast.AST, Scope] = attrs.Factory(dict)
    nodes: list[tuple[ast.AST, Scope]] = attrs.Factory(list)

    @property
    def short(self) -> str:
        """Its own name."""
        return self.name.rpartition(".")[2]

    @property
    def decorators(self) -> list[ast.expr]:
        """What decorates it, evaluated in its parent."""
        return list(getattr(self.node, "decorator_list", ()))

    @property
    def owner(self) -> Scope:
        """The function or module that runs the code in this scope."""
        scope = self
        while scope.kind in ("class", "comprehension"):
            assert scope.parent is not None
            scope = scope.parent
        return scope

    @property
    def top(self) -> Scope:
        """The scope of its module."""
        scope = self
        while scope.parent is not None:
            scope = scope.parent
        return scope

    @property
    def in_class(self) -> Scope | None:
        """The class whose method this is."""
        around = self.parent
        return around if around is not None and around.kind == "class" else None

    def lookup(self, name: str) -> Scope | None:
        """Return the scope that a name is bound in, seen from here; `None` for a built-in."""
        scope: Scope | None = self
        while scope is not None:
            declared = scope.declared.get(name)
            if declared == "global":
                scope = scope.top
                return scope if name in scope.bindings else None
            visible = scope.kind != "class" or scope is self
            if visible and declared is None and name in scope.bindings:
                return scope
            scope = scope.parent
        return None


def parameters(node: FunctionNode) -> Iterator[tuple[ast.arg, ast.expr | None]]:
    """Yield the parameters of a function, each with its default."""
    spec = node.args
    positional = [*spec.posonlyargs, *spec.args]
    padding: list[ast.expr | None] = [None] * (len(positional) - len(spec.defaults))
    yield from zip(positional, [*padding, *spec.defaults], strict=True)
    yield from zip(spec.kwonlyargs, spec.kw_defaults, strict=True)
    for extra in (spec.vararg, spec.kwarg):
        if extra is not None:
            yield extra, None


def read_scopes(module: Module) -> Scope:
    """Return the scope of a module, with all below it."""
    top = Scope("module", module.name, module.tree, module)
    _Reader(top).read(module.tree.body)
    return top


def subscopes(scope: Scope) -> Iterator[Scope]:
    """Yield a scope and every class and function below it."""
    yield scope
    for child in scope.children.values():
        yield from subscopes(child)


class _Reader(ast.NodeVisitor):
    """Walks through a module and fills its scopes."""

    def __init__(self, scope: Scope) -> None:
        self.scope = scope

    def read(self, body: Sequence[ast.AST]) -> None:
        for node in body:
            self.visit(node)

    def visit(self, node: ast.AST) -> None:
        self.scope.owner.nodes.append((node, self.scope))
        super().visit(node)

    # --- what binds a name ---

    def bind(self, name: str, binding: Binding, *, walrus: bool = False) -> None:
        scope = self.scope
        while walrus and scope.kind == "comprehension" and scope.parent is not None:
            scope = scope.parent
        declared = scope.declared.get(name)
        if declared == "global":
            scope = scope.top
        elif declared == "nonlocal":
            outer = scope.parent
            while outer is not None and (
                outer.kind != "function" or name not in outer.bindings or name in outer.declared
            ):
                outer = outer.parent
            if outer is None:
                return  # it is bound further down in the outer function, which is found there
            scope = outer
        scope.bindings.setdefault(name, []).append(binding)

    def bind_target(
        self, target: ast.expr, kind: BindingKind, value: ast.AST, *, walrus: bool = False
    ) -> None:
        if isinstance(target, ast.Name):
            self.bind(target.id, Binding(kind, value, self.scope), walrus=walrus)
        elif isinstance(target, ast.Starred):
            self.bind_target(target.value, "other", value)
        elif isinstance(target, ast.Tuple | ast.List):
            if (
                kind == "value"
                and isinstance(value, ast.Tuple | ast.List)
                and len(value.elts) == len(target.elts)
            ):
                for part, one in zip(target.elts, value.elts, strict=True):
                    self.bind_target(part, "value", one)
            else:
                for part in target.elts:
                    self.bind_target(part, "element" if kind == "element" else "other", value)

    def visit_Assign(self, node: ast.Assign) -> None:
        for target in node.targets:
            self.bind_target(target, "value", node.value)
        self.generic_visit(node)

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        self.bind_target(node.target, "value" if node.value else "other", node.value or node)
        self.generic_visit(node)

    def visit_AugAssign(self, node: ast.AugAssign) -> None:
        # A list stays the same list after `+=`, so this gives a name no other value; it only
        # makes a name local that is bound nowhere else.
        target = node.target
        if isinstance(target, ast.Name) and target.id not in self.scope.bindings:
            self.bind_target(target, "other", node)
        self.generic_visit(node)

    def visit_NamedExpr(self, node: ast.NamedExpr) -> None:
        self.bind_target(node.target, "value", node.value, walrus=True)
        self.generic_visit(node)

    def visit_For(self, node: ast.For | ast.AsyncFor) -> None:
        self.bind_target(node.target, "element", node.iter)
        self.generic_visit(node)

    visit_AsyncFor = visit_For

    def visit_With(self, node: ast.With | ast.AsyncWith) -> None:
        for item in node.items:
            if item.optional_vars is not None:
                self.bind_target(item.optional_vars, "entered", item.context_expr)
        self.generic_visit(node)

    visit_AsyncWith = visit_With

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> None:
        if node.name:
            self.bind(node.name, Binding("other", node, self.scope))
        self.generic_visit(node)

    def visit_MatchAs(self, node: ast.MatchAs) -> None:
        if node.name:
            self.bind(node.name, Binding("other", node, self.scope))
        self.generic_visit(node)

    def visit_MatchStar(self, node: ast.MatchStar) -> None:
        if node.name:
            self.bind(node.name, Binding("other", node, self.scope))

    def visit_MatchMapping(self, node: ast.MatchMapping) -> None:
        if node.rest:
            self.bind(node.rest, Binding("other", node, self.scope))
        self.generic_visit(node)

    def visit_Import(self, node: ast.Import) -> None:
        for alias in node.names:
            first = alias.name.partition(".")[0]
            source = alias.name if alias.asname else first
            self.bind(alias.asname or first, Binding("import", node, self.scope, source=source))

    def visit_ImportFrom(self, node: ast.ImportFrom) -> None:
        source = self.scope.module.absolute(node)
        for alias in node.names:
            binding = Binding("from", node, self.scope, source=source, name=alias.name)
            self.bind(alias.asname or alias.name, binding)

    # --- what opens a scope ---

    def visit_If(self, node: ast.If) -> None:
        test = node.test
        if isinstance(test, ast.Compare) and ast.unparse(test.left) == "__name__":
            self.read(node.orelse)  # what stands under it runs in no server
        else:
            self.generic_visit(node)

    def visit_FunctionDef(self, node: ast.FunctionDef | ast.AsyncFunctionDef) -> None:
        self.bind(node.name, Binding("def", node, self.scope))
        self.read(node.decorator_list)
        self.function(node, node.name, node.body)

    visit_AsyncFunctionDef = visit_FunctionDef

    def visit_Lambda(self, node: ast.Lambda) -> None:
        self.function(node, "<lambda>", [node.body])

    def function(self, node: FunctionNode, name: str, body: Sequence[ast.AST]) -> None:
        around = self.scope
        for argument, default in parameters(node):
            self.read([part for part in (argument.annotation, default) if part is not None])
        if not isinstance(node, ast.Lambda) and node.returns is not None:
            self.visit(node.returns)
        scope = Scope("function", f"{around.name}.{name}", node, around.module, around)
        around.children[node] = scope
        scope.declared.update(_declarations(body))
        self.scope = scope
        for argument, _ in parameters(node):
            self.bind(argument.arg, Binding("parameter", argument, scope))
        self.read(body)
        self.scope = around

    def visit_ClassDef(self, node: ast.ClassDef) -> None:
        self.bind(node.name, Binding("def", node, self.scope))
        self.read([*node.decorator_list, *node.bases, *node.keywords])
        around = self.scope
        scope = Scope("class", f"{around.name}.{node.name}", node, around.module, around)
        around.children[node] = scope
        self.scope = scope
        self.read(node.body)
        self.scope = around

    def comprehension(
        self, node: ast.ListComp | ast.SetComp | ast.GeneratorExp | ast.DictComp
    ) -> None:
        around = self.scope
        self.visit(node.generators[0].iter)
        inner = Scope("comprehension", around.name, node, around.module, around)
        around.children[node] = inner
        self.scope = inner
        for index, generator in enumerate(node.generators):
            if index:
                self.visit(generator.iter)
            iterated = Binding("element", generator.iter, inner if index else around)
            for name in ast.walk(generator.target):
                if isinstance(name, ast.Name):
                    self.bind(name.id, iterated)
            self.read(generator.ifs)
        self.read([node.key, node.value] if isinstance(node, ast.DictComp) else [node.elt])
        self.scope = around

    visit_ListComp = visit_SetComp = visit_GeneratorExp = visit_DictComp = comprehension


def _declarations(body: Sequence[ast.AST]) -> Declarations:
    found: Declarations = {}
    waiting = list(body)
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Global):
            found.update(dict.fromkeys(node.names, "global"))
        elif isinstance(node, ast.Nonlocal):
            found.update(dict.fromkeys(node.names, "nonlocal"))
        elif not isinstance(
            node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda | ast.ClassDef
        ):
            waiting.extend(ast.iter_child_nodes(node))
    return found
