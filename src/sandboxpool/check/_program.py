"""The app as it is written: what names, attributes and calls in its modules stand for."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import attrs

from ._modules import Module
from ._objects import Make, Object, annotated_as, is_copy, last_name, made_by
from ._parameters import find_parameter, first_parameter, injected, routed
from ._scopes import Binding, Scope, read_scopes, subscopes

# Their classes copy the defaults of their fields, so that a list in the body is private.
_COPYING = ("Model", "Settings", "Schema", "Struct", "Enum", "TypedDict", "NamedTuple", "Protocol")
# How many questions may wait for each other's answers: each has up to 7 frames on Python's stack.
_DEEPEST = 60
_ELEMENTS = frozenset(
    ["get", "setdefault", "pop", "popitem", "values", "items", "keys", "popleft", "__getitem__"]
)


@attrs.define(eq=False)
class Program:
    """The modules of an app, and answers to what their expressions stand for.

    Attributes:
        modules: The scope of each module by its name.
        scopes: Each scope below, by its node.
        parents: Each node's parent.
        late: The functions that run while requests are served; `None` until that is known.
        held: Where the one object of a class is held, by class, once that is known.
        lifespan_state: What the lifespan gives to the state of each request, by its name.
        on_shared: Methods that are called on an object which exists once, and its path.
    """

    modules: dict[str, Scope]
    scopes: dict[ast.AST, Scope] = attrs.Factory(dict)
    parents: dict[ast.AST, ast.AST] = attrs.Factory(dict)
    late: set[Scope] | None = None
    held: dict[Scope, Object] = attrs.Factory(dict)
    lifespan_state: dict[str, Make] = attrs.Factory(dict)
    on_shared: dict[Scope, Object] = attrs.Factory(dict)
    _known: dict[tuple[ast.AST, Scope], Object | None] = attrs.Factory(dict)
    _asking: set[object] = attrs.Factory(set)
    _cycles: int = 0
    _attributes: dict[Scope, dict[str, list[Binding]]] = attrs.Factory(dict)

    @classmethod
    def read(cls, modules: dict[str, Module]) -> Program:
        """Return the program that consists of these modules."""
        program = cls({name: read_scopes(module) for name, module in modules.items()})
        for top in program.modules.values():
            program.scopes.update((scope.node, scope) for scope in subscopes(top))
            for node in ast.walk(top.node):
                program.parents.update((child, node) for child in ast.iter_child_nodes(node))
        return program

    @property
    def functions(self) -> Iterator[Scope]:
        """Every function of the app, those in classes and functions too."""
        return (scope for scope in self.scopes.values() if scope.kind == "function")

    @property
    def classes(self) -> Iterator[Scope]:
        """Every class of the app."""
        return (scope for scope in self.scopes.values() if scope.kind == "class")

    def forget(self) -> None:
        """Answer anew: it is known now what runs when, or what is held."""
        self._known.clear()

    # --- expressions ---

    def find(self, node: ast.AST | None, scope: Scope) -> Object | None:
        """Return what an expression stands for, seen from a scope; `None` if it is not known."""
        if node is None:
            return None
        key = (node, scope)
        if key in self._known:
            return self._known[key]
        if not self._ask(key):
            return None
        cycles = self._cycles
        try:
            found = self._find(node, scope)
        finally:
            self._asking.discard(key)
        if cycles == self._cycles:  # what was cut off by a cycle is asked again from elsewhere
            self._known[key] = found
        return found

    def _ask(self, key: object) -> bool:
        """Begin to answer a question, unless its answer depends on itself or on too many others."""
        if key in self._asking or len(self._asking) >= _DEEPEST:
            self._cycles += 1
            return False
        self._asking.add(key)
        return True

    def _find(self, node: ast.AST, scope: Scope) -> Object | None:
        if isinstance(node, ast.Name):
            return self._name(node, scope)
        if isinstance(node, ast.Attribute):
            return self._attribute(node, scope)
        if isinstance(node, ast.Subscript):
            return self._item(self.find(node.value, scope), node.slice)
        if isinstance(node, ast.Call):
            return self._call(node, scope)
        if isinstance(node, ast.Await | ast.NamedExpr | ast.Starred):
            return self.find(node.value, scope)
        if isinstance(node, ast.Lambda):
            own = self.scopes.get(node)
            return Object(kind="function", path=own.name, scope=own) if own else None
        if isinstance(node, ast.IfExp):
            return self._shared_one([node.body, node.orelse], scope)
        if isinstance(node, ast.BoolOp):
            return self._shared_one(node.values, scope)
        return None

    def _shared_one(self, nodes: list[ast.expr], scope: Scope) -> Object | None:
        found = [self.find(node, scope) for node in nodes]
        return next((one for one in found if one is not None and one.kind == "shared"), found[0])

    def _name(self, node: ast.Name, scope: Scope) -> Object | None:
        home = scope.lookup(node.id)
        if home is None:
            return Object(kind="foreign", path=f"builtins.{node.id}")
        if home.kind == "module":
            return self.member(home, node.id)
        if home.kind == "class":
            return self.class_member(home, node.id)
        bindings = home.bindings[node.id]
        if home.kind == "function" and home is not scope.owner and self._outlives(home):
            return self._closed_over(home, node.id, bindings)
        # The one that stands last before this use; loops can make it an earlier one's.
        place = (node.lineno, node.col_offset)
        before = [one for one in bindings if one.kind == "parameter" or one.end <= place]
        if home is not scope.owner and home.kind == "function":
            before = bindings
        return self._bound((before or bindings)[-1], home)

    def _outlives(self, function: Scope) -> bool:
        """Tell whether the variables of a function outlive a request: it ran before them."""
        return self.late is not None and function not in self.late

    def _closed_over(self, home: Scope, name: str, bindings: list[Binding]) -> Object | None:
        found = [self._bound(one, home) for one in bindings]
        for one in found:
            if one is not None and one.kind != "instance":
                return one
        first = bindings[0]
        return Object(
            kind="shared",
            path=f"{home.name}.{name}",
            rule="SP108",
            scope=next((one.scope for one in found if one is not None), None),
            make=self._make(bindings),
            defined=(home.module, getattr(first.node, "lineno", 0)),
        )

    def _make(self, bindings: list[Binding]) -> Make:
        makes = []
        for one in bindings:
            if one.kind == "value":
                parent = self.parents.get(one.node)
                annotation = None
                if isinstance(parent, ast.AnnAssign) and one.scope.kind != "class":
                    annotation = parent.annotation
                makes.append(made_by(one.node) or annotated_as(annotation))
            elif isinstance(one.node, ast.AnnAssign):
                makes.append(annotated_as(one.node.annotation))
            elif one.kind == "other" and isinstance(one.node, ast.AugAssign):
                continue
            else:
                makes.append("")
        for best in ("container", "app", "context-variable", "thread-local", "iterator"):
            if best in makes:
                return best
        return "constant" if makes and set(makes) == {"constant"} else ""

    def _bound(self, binding: Binding, home: Scope) -> Object | None:
        if binding.kind == "import":
            return self._module(binding.source)
        if binding.kind == "from":
            return self._imported(binding.source, binding.name)
        if binding.kind == "def":
            own = self.scopes.get(binding.node)
            if own is None:
                return None
            kind = "class" if own.kind == "class" else "function"
            return Object(kind=kind, path=own.name, scope=own)  # type: ignore[arg-type] # one of two
        if binding.kind == "parameter" and isinstance(binding.node, ast.arg):
            return find_parameter(self, binding.node, home)
        if binding.kind == "value":
            return self.find(binding.node, binding.scope)
        if binding.kind == "element":
            return self._element(binding.node, binding.scope)
        if binding.kind == "entered":
            found = self.find(binding.node, binding.scope)
            return found if found is not None and found.kind == "shared" else None
        return None

    def _element(self, node: ast.AST, scope: Scope) -> Object | None:
        if isinstance(node, ast.Call) and last_name(node.func) in (
            *("list", "sorted", "tuple", "reversed", "enumerate", "set", "filter", "copy"),
        ):
            # A copy of a container, with the same elements in it.
            inner = node.args[-1] if node.args else getattr(node.func, "value", None)
            return self._element(inner, scope) if inner is not None else None
        found = self.find(node, scope)
        return self._item(found, None) if found is not None and found.kind == "shared" else None

    # --- modules ---

    def _module(self, name: str) -> Object:
        own = self.modules.get(name)
        if own is None:
            return Object(kind="foreign", path=name)
        return Object(kind="module", path=name, scope=own)

    def _imported(self, source: str, name: str) -> Object | None:
        if source in self.modules:
            if name in self.modules[source].bindings:
                return self.member(self.modules[source], name)
            if f"{source}.{name}" in self.modules:
                return self._module(f"{source}.{name}")
            return self.member(self.modules[source], name)
        if f"{source}.{name}" in self.modules:
            return self._module(f"{source}.{name}")
        return Object(kind="foreign", path=f"{source}.{name}")

    def member(self, top: Scope, name: str) -> Object | None:
        """Return what a name means in a module."""
        key = (top, name)
        if not self._ask(key):
            return None
        try:
            return self._member(top, name)
        finally:
            self._asking.discard(key)

    def _member(self, top: Scope, name: str) -> Object | None:
        bindings = top.bindings.get(name)
        if not bindings:
            for star in top.bindings.get("*", ()):
                source = self.modules.get(star.source)
                if source is not None and (found := self.member(source, name)) is not None:
                    return found
            if f"{top.name}.{name}" in self.modules:
                return self._module(f"{top.name}.{name}")
            return None
        plain = [one for one in bindings if one.scope.owner is top] or bindings
        last = plain[-1]
        if last.kind in ("import", "from", "def"):
            return self._bound(last, top)
        found = None
        for one in bindings:
            if one.kind == "value":
                value = self.find(one.node, one.scope)
                if value is not None and value.kind in ("class", "function", "module", "foreign"):
                    if len(bindings) == 1:
                        return value
                elif value is not None and value.kind == "shared" and len(bindings) == 1:
                    return value  # another name for it
                elif value is not None and value.kind == "app":
                    return value
                elif value is not None and value.scope is not None:
                    found = value
        make = self._make(bindings)
        if make == "app":
            return Object(kind="app", path="app", scope=None)
        return Object(
            kind="shared",
            path=f"{top.name}.{name}",
            rule="SP101",
            scope=found.scope if found is not None else None,
            make=make,
            defined=(top.module, getattr(plain[0].node, "lineno", 0)),
        )

    # --- classes ---

    def bases(self, cls: Scope) -> Iterator[Scope]:
        """Yield a class and those of its bases that are the app's own, in about their order."""
        seen: set[Scope] = set()
        waiting = [cls]
        while waiting:
            one = waiting.pop(0)
            if one in seen:
                continue
            seen.add(one)
            yield one
            for base in getattr(one.node, "bases", ()):
                found = self.find(base, one.parent or one)
                if found is not None and found.kind == "class" and found.scope is not None:
                    waiting.append(found.scope)

    def foreign_bases(self, cls: Scope) -> list[str]:
        """Return the names of the bases, of bases too, that are not the app's own."""
        names = []
        for one in self.bases(cls):
            for base in getattr(one.node, "bases", ()):
                found = self.find(base, one.parent or one)
                if found is None or found.kind != "class":
                    names.append(last_name(base))
        return [name for name in names if name not in ("object", "ABC", "Generic")]

    def method(self, cls: Scope, name: str) -> Scope | None:
        """Return the function that a class has under that name, its own or a base's."""
        for one in self.bases(cls):
            for binding in one.bindings.get(name, ()):
                if binding.kind == "def":
                    return self.scopes.get(binding.node)
        return None

    def attributes(self, cls: Scope) -> dict[str, list[Binding]]:
        """Return what the methods of a class assign to attributes of `self`, by attribute."""
        if cls not in self._attributes:
            found: dict[str, list[Binding]] = {}
            for method in cls.children.values():
                me = first_parameter(method)
                for node, scope in method.nodes if me else ():
                    targets: list[ast.expr] = []
                    value: ast.AST = node
                    if isinstance(node, ast.Assign):
                        targets, value = node.targets, node.value
                    elif isinstance(node, ast.AnnAssign):
                        targets, value = [node.target], node.value or node
                    for target in targets:
                        if (
                            isinstance(target, ast.Attribute)
                            and isinstance(target.value, ast.Name)
                            and target.value.id == me
                        ):
                            binding = Binding("value", value, scope)
                            found.setdefault(target.attr, []).append(binding)
            self._attributes[cls] = found
        return self._attributes[cls]

    def class_member(self, cls: Scope, name: str) -> Object | None:
        """Return what a name in the body of a class stands for."""
        for one in self.bases(cls):
            # `items: list[str]` alone only says what objects have.
            bindings = [
                binding
                for binding in one.bindings.get(name, ())
                if not isinstance(binding.node, ast.AnnAssign)
            ]
            if not bindings:
                continue
            last = bindings[-1]
            if last.kind in ("def", "import", "from"):
                return self._bound(last, one)
            value = self.find(last.node, last.scope) if last.kind == "value" else None
            if value is not None and value.kind in ("class", "function", "foreign", "module"):
                return value
            return Object(
                kind="shared",
                path=f"{one.name}.{name}",
                rule="SP103",
                scope=value.scope if value is not None else None,
                make=self._make(bindings),
                defined=(one.module, getattr(last.node, "lineno", 0)),
            )
        return None

    def _private_attribute(self, cls: Scope, name: str) -> bool:
        """Tell whether each object has its own, although the class has one of that name too."""
        return any(name in self.attributes(one) for one in self.bases(cls)) or any(
            base.endswith(_COPYING) for base in self.foreign_bases(cls)
        )

    # --- attributes, items, calls ---

    def _attribute(self, node: ast.Attribute, scope: Scope) -> Object | None:
        base = self.find(node.value, scope)
        name = node.attr
        if base is None:
            if name == "state" and last_name(node.value) == "app":
                return Object(kind="shared", path="app.state", rule="SP105", inside=True)
            return None
        if name == "__class__" and base.kind in ("instance", "shared") and base.scope:
            return Object(kind="class", path=base.scope.name, scope=base.scope)
        if name == "__dict__":
            return attrs.evolve(base, make="container")
        if base.kind == "module" and base.scope is not None:
            return self.member(base.scope, name)
        if base.kind == "foreign":
            return attrs.evolve(base, path=f"{base.path}.{name}")
        if base.kind == "class" and base.scope is not None:
            return self.class_member(base.scope, name)
        if base.kind == "request":
            if name == "app":
                return Object(kind="app", path="app")
            if name in ("state", "scope"):
                kind = "request-state" if name == "state" else "scope"
                return Object(kind=kind, path=name)  # type: ignore[arg-type] # one of two
            return None
        if base.kind == "request-state" and name in self.lifespan_state:
            make = self.lifespan_state[name]
            return Object(kind="shared", path=f"request.state.{name}", rule="SP105", make=make)
        if base.kind == "app":
            return Object(kind="shared", path=f"app.{name}", rule="SP105", inside=True)
        if base.kind == "instance" and base.scope is not None:
            return self._member_of_instance(base.scope, name)
        if base.kind == "shared":
            return self._member_of_shared(base, name)
        return None

    def _member_of_instance(self, cls: Scope, name: str) -> Object | None:
        found = self.class_member(cls, name)
        if found is not None and (
            found.kind != "shared"
            or (
                # What is no container may be a descriptor, or what makes one for each object.
                (found.make == "container" or found.scope is not None)
                and not self._private_attribute(cls, name)
            )
        ):
            return found
        for one in self.bases(cls):
            for binding in self.attributes(one).get(name, ()):
                value = self.find(binding.node, binding.scope)
                if value is not None and value.kind in ("shared", "app", "request", "instance"):
                    return value
        return None

    def _member_of_shared(self, base: Object, name: str) -> Object | None:
        make: Make = ""
        scope = None
        if base.scope is not None:
            found = self.class_member(base.scope, name)
            if found is not None and found.kind != "shared":
                return found
            if found is not None and not self._private_attribute(base.scope, name):
                return found
            make = found.make if found is not None else ""
            for one in self.bases(base.scope):
                bindings = self.attributes(one).get(name, ())
                for binding in bindings:
                    value = self.find(binding.node, binding.scope)
                    if value is not None and value.kind in ("app", "foreign"):
                        return value if value.kind == "app" else None
                    if value is not None and value.kind == "shared":
                        return value
                    scope = scope or (value.scope if value is not None else None)
                make = make or self._make(list(bindings))
        return attrs.evolve(base, path=f"{base.path}.{name}", scope=scope, make=make, inside=True)

    def _item(self, base: Object | None, key: ast.AST | None) -> Object | None:
        if base is None:
            return None
        constant = key.value if isinstance(key, ast.Constant) else None
        if base.kind == "scope" and constant in ("app", "state"):
            if constant == "app":
                return Object(kind="app", path="app")
            return Object(kind="request-state", path="state")
        if base.kind != "shared" or base.make == "constant":
            return None
        text = repr(constant) if isinstance(constant, str | int) else "..."
        return attrs.evolve(base, path=f"{base.path}[{text}]", make="", scope=None)

    def _call(self, node: ast.Call, scope: Scope) -> Object | None:
        function = node.func
        if made_by(node) == "app":
            return Object(kind="app", path="app")
        if isinstance(function, ast.Attribute):
            base = self.find(function.value, scope)
            if base is not None and base.kind == "shared":
                if base.make == "context-variable":
                    return self._context_default(base) if function.attr == "get" else None
                own = base.scope is not None and self.method(base.scope, function.attr)
                if not own and is_copy(node):
                    return None
                if not own and function.attr in _ELEMENTS:
                    key = node.args[0] if node.args else None
                    return self._item(base, key)
        called = self.find(function, scope)
        if called is None:
            return None
        if called.kind == "foreign":
            name = called.path.removeprefix("builtins.")
            if name == "type" and len(node.args) == 1:
                found = self.find(node.args[0], scope)
                if found is not None and found.scope is not None:
                    return Object(kind="class", path=found.scope.name, scope=found.scope)
            if name == "globals":
                return Object(kind="shared", path=scope.top.name, rule="SP102", make="container")
            if name == "vars" and node.args:
                found = self.find(node.args[0], scope)
                return attrs.evolve(found, make="container") if found is not None else None
            if name == "getattr" and len(node.args) > 1:
                return self._got(node, scope)
            if name in ("typing.cast", "t.cast") and len(node.args) == 2:
                return self.find(node.args[1], scope)
            return None
        if called.kind == "class" and called.scope is not None:
            return self.held.get(called.scope) or Object(
                kind="instance", path=called.scope.name, scope=called.scope
            )
        if called.kind == "function" and called.scope is not None:
            return self.returned(called.scope)
        return None

    def _got(self, node: ast.Call, scope: Scope) -> Object | None:
        name = node.args[1]
        if isinstance(name, ast.Constant) and isinstance(name.value, str):
            attribute = ast.Attribute(node.args[0], name.value, ast.Load())
            return self._attribute(ast.copy_location(attribute, node), scope)
        return None

    def _context_default(self, variable: Object) -> Object | None:
        if variable.defined is None:
            return None
        module, line = variable.defined
        for node in ast.walk(module.tree):
            if (
                isinstance(node, ast.Call)
                and node.lineno == line
                and last_name(node) == "ContextVar"
            ):
                for keyword in node.keywords:
                    if keyword.arg == "default" and made_by(keyword.value) == "container":
                        return attrs.evolve(
                            variable, path=f"{variable.path}.get()", rule="SP111", make="container"
                        )
        return None

    def cached(self, function: Scope) -> bool:
        """Tell whether a decorator keeps what a function returned."""
        return any(
            last_name(one) in ("lru_cache", "cache", "cached") for one in function.decorators
        )

    def returned(self, function: Scope) -> Object | None:
        """Return what calls of a function return, if that is known."""
        key = ("returned", function)
        if not self._ask(key):
            return None
        try:
            values = [
                (node.value, scope)
                for node, scope in function.nodes
                if isinstance(node, ast.Return | ast.Yield) and node.value is not None
            ]
            if isinstance(function.node, ast.Lambda):
                values = [(function.node.body, function)]
            if self.cached(function):
                found = [self.find(value, scope) for value, scope in values]
                makes = [made_by(value) for value, _ in values]
                for value, scope in values:
                    if isinstance(value, ast.Name) and (home := scope.lookup(value.id)):
                        makes.append(self._make(home.bindings[value.id]))
                return Object(
                    kind="shared",
                    path=f"{function.name}()",
                    rule="SP110",
                    scope=next((one.scope for one in found if one and one.scope), None),
                    make="container" if "container" in makes else "",
                    defined=(function.module, getattr(function.node, "lineno", 0)),
                )
            instance = None
            for value, scope in values:
                one = self.find(value, scope)
                if one is not None and one.kind in ("shared", "app"):
                    return one
                if one is not None and one.kind == "instance":
                    instance = one
            return instance
        finally:
            self._asking.discard(key)

    def injected(
        self, node: ast.arg, default: ast.expr | None, function: Scope
    ) -> tuple[ast.expr, Scope] | None:
        """Return what is given to `Depends` for a parameter, and where that is evaluated."""
        return injected(self, node, default, function)

    def routed(self, function: Scope) -> bool:
        """Tell whether FastAPI calls a function itself, and so copies its defaults."""
        return routed(function)
