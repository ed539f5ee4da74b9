"""Which functions run while requests are served, and which only while the app is started.

Nothing is executed: a function runs at import if code of a module calls it; it runs in requests if
it is handed to someone (a route, a dependency, a callback), if a decorator registers it, or if
another one that does calls it. A method that is called on an object of unknown class may be that of
each class. What nobody calls or hands on does not run at all.
"""

from __future__ import annotations

import ast
import io
from collections import defaultdict, deque

import attrs

from ._objects import Object, last_name
from ._parameters import first_parameter
from ._program import Program
from ._scopes import FunctionNode, Scope, parameters

_STARTING = frozenset(
    ["lifespan", "on_startup", "on_shutdown", "startup", "shutdown", "lifespan_context"]
)
_EVENTS = frozenset(["startup", "shutdown", "before_server_start", "after_server_stop"])
_AT_START = frozenset(["on_event", "before_serving", "after_serving", "listener", "on_startup"])
_ELSEWHERE = frozenset(  # in a terminal, a worker of a queue, a test
    ["command", "group", "fixture", "task", "shared_task", "hookimpl", "overload", "main"]
)
_PLAIN = frozenset(  # they leave what they decorate where it is
    [
        *("property", "cached_property", "staticmethod", "classmethod", "setter", "getter"),
        *("lru_cache", "cache", "wraps", "contextmanager", "asynccontextmanager", "abstractmethod"),
        *("dataclass", "define", "frozen", "total_ordering", "override", "final", "deprecated"),
    ]
)
_MADE = frozenset(["__init__", "__new__", "__post_init__", "__attrs_post_init__"])
_WHEN_DEFINED = frozenset(["__init_subclass__", "__set_name__", "__class_getitem__"])
_ENTERED = frozenset(["__enter__", "__exit__", "__aenter__", "__aexit__"])
# Where an object that is shared is changed by them is a finding itself.
_CHANGING = frozenset(
    ["__setattr__", "__delattr__", "__setitem__", "__delitem__", "__iadd__", "__ior__", "__del__"]
)
_NOT_HANDED = _MADE | _WHEN_DEFINED | _ENTERED | _CHANGING
_MANY_HAVE = frozenset(
    [
        *("run", "start", "stop", "close", "open", "connect", "disconnect", "reset", "register"),
        *("execute", "aclose", "shutdown", "delete", "create", "save", "load", "set"),
    ]
) | frozenset(
    name
    for kind in (dict, list, set, str, deque, io.TextIOWrapper)
    for name in dir(kind)
    if not name.startswith("_")
)


@attrs.define(eq=False)
class Timing:
    """What runs when.

    Attributes:
        late: The functions that run while requests are served.
        callers: Who calls each of them; `None` for those that are handed over.
        starting: The functions that are called when the app starts or stops.
        made: Where objects of the app's classes are made: the class, the call and its scope.
    """

    program: Program
    late: set[Scope] = attrs.Factory(set)
    callers: dict[Scope, Scope | None] = attrs.Factory(dict)
    starting: set[Scope] = attrs.Factory(set)
    made: list[tuple[Scope, ast.Call, Scope]] = attrs.Factory(list)
    _calls: dict[Scope, set[Scope]] = attrs.Factory(lambda: defaultdict(set))
    _handed: set[Scope] = attrs.Factory(set)
    _methods: dict[str, list[Scope]] = attrs.Factory(lambda: defaultdict(list))
    _attributes: set[str] = attrs.Factory(set)
    _classes: set[Scope] = attrs.Factory(set)
    _used: set[Scope] = attrs.Factory(set)
    _applied: set[Scope] = attrs.Factory(set)

    @classmethod
    def read(cls, program: Program) -> Timing:
        """Return what runs when in a program."""
        timing = cls(program)
        for scope in program.classes:
            for method in scope.children.values():
                if method.kind == "function":
                    timing._methods[method.short].append(method)
        for scope in program.scopes.values():
            for node, inner in scope.nodes:
                timing._node(node, inner)
            timing._decorated(scope)
        timing._callbacks()
        timing._follow()
        return timing

    # --- one node ---

    def _node(self, node: ast.AST, scope: Scope) -> None:
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
            self._named(node, scope)
        elif isinstance(node, ast.Attribute):
            self._attributes.add(node.attr)
            if isinstance(node.ctx, ast.Load):
                self._named(node, scope)
                self._by_name(node, scope)
        elif isinstance(node, ast.Lambda):
            own = self.program.scopes.get(node)
            if own is not None and not self._starts(node):
                self._handed.add(own)
        elif isinstance(node, ast.Call):
            self._called(node, scope)
        elif isinstance(node, ast.With | ast.AsyncWith):
            for item in node.items:
                found = self.program.find(item.context_expr, scope)
                if found is not None and found.scope is not None and found.kind != "function":
                    for name in _ENTERED:
                        self._call(scope, self.program.method(found.scope, name))

    def _call(self, scope: Scope, function: Scope | None) -> None:
        if function is not None and function.kind == "function":
            self._calls[scope.owner].add(function)

    def _named(self, node: ast.Name | ast.Attribute, scope: Scope) -> None:
        found = self.program.find(node, scope)
        if found is None or found.scope is None:
            return
        if found.kind == "class":
            self._classes.add(found.scope)
            return
        if found.kind != "function":
            return
        parent = self.program.parents.get(node)
        self._call(scope, found.scope)
        if isinstance(parent, ast.Attribute) or (
            isinstance(parent, ast.Call) and parent.func is node
        ):
            return
        if isinstance(parent, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            return  # a decorator, which is called with what it decorates
        if isinstance(node, ast.Attribute) and self._is_property(found.scope):
            return
        if isinstance(parent, ast.Return) and found.scope.parent is scope.owner:
            return  # see `_returned`
        if self._starts(node):
            self.starting.add(found.scope)
        elif (taker := self._taker(node, parent, scope)) is not None:
            self._calls[taker].add(found.scope)
        else:
            self._handed.add(found.scope)

    def _taker(self, node: ast.AST, parent: ast.AST | None, scope: Scope) -> Scope | None:
        """Return the function of the app that is given a function, and calls it itself."""
        keyword = parent.arg if isinstance(parent, ast.keyword) else None
        call = self.program.parents.get(parent) if isinstance(parent, ast.keyword) else parent
        if not isinstance(call, ast.Call) or node is call.func:
            return None
        found = self.program.find(call.func, scope)
        if found is None or found.kind != "function" or found.scope is None:
            return None
        taker = found.scope
        if not isinstance(taker.node, FunctionNode):
            return None
        names = [argument.arg for argument, _ in parameters(taker.node)]
        if keyword is None:
            bound = bool(
                taker.in_class and isinstance(call.func, ast.Attribute) and first_parameter(taker)
            )
            index = call.args.index(node) if node in call.args else len(names)
            names = names[index + bound : index + bound + 1]
        else:
            names = [keyword]
        called = any(
            isinstance(one, ast.Call) and isinstance(one.func, ast.Name) and one.func.id in names
            for one, _ in taker.nodes
        )
        return taker if called else None

    @staticmethod
    def _is_property(function: Scope) -> bool:
        return any(
            last_name(one) in ("property", "cached_property", "setter", "getter")
            for one in function.decorators
        )

    def _by_name(self, node: ast.Attribute, scope: Scope) -> None:
        """Call each method of that name, if it is not known whose it is."""
        if last_name(node.value) == "super" and isinstance(node.value, ast.Call):
            cls = scope.owner.in_class
            for above in list(self.program.bases(cls))[1:] if cls is not None else ():
                if (method := self.program.method(above, node.attr)) is not None:
                    return self._call(scope, method)
            return
        base = self.program.find(node.value, scope)
        if base is not None and base.kind in ("module", "class", "request", "app"):
            return
        if base is not None and base.scope is not None:
            self._call(scope, self.program.method(base.scope, node.attr))
            if base.kind == "instance" or base.rule:
                for cls in self._methods[node.attr]:  # of a class that inherits from it
                    if cls.in_class and base.scope in self.program.bases(cls.in_class):
                        self._call(scope, cls)
            return
        if base is not None and base.kind == "foreign" and base.path.count(".") < 3:
            return
        if node.attr.startswith("__"):
            return
        receiver = last_name(node.value).replace("_", "").lower()
        for method in self._methods[node.attr]:
            cls = method.in_class
            assert cls is not None
            # Of names that many classes have, the one that is called like its class.
            if node.attr not in _MANY_HAVE or (
                receiver and receiver in cls.short.replace("_", "").lower()
            ):
                self._call(scope, method)

    def _called(self, node: ast.Call, scope: Scope) -> None:
        found = self.program.find(node.func, scope)
        if found is None or found.scope is None:
            return
        if found.kind == "function" and not isinstance(self.program.parents.get(node), ast.Expr):
            self._used.add(found.scope)
        if found.kind == "class":
            self.made.append((found.scope, node, scope))
            for name in _MADE:
                self._call(scope, self.program.method(found.scope, name))
        elif found.kind in ("shared", "instance"):
            self._call(scope, self.program.method(found.scope, "__call__"))

    def _starts(self, node: ast.AST) -> bool:
        """Tell whether a function is handed over to be called when the app starts or stops."""
        child, parent = node, self.program.parents.get(node)
        while parent is not None and isinstance(
            parent, ast.keyword | ast.Call | ast.List | ast.Tuple | ast.Assign
        ):
            if isinstance(parent, ast.keyword) and parent.arg in _STARTING:
                return True
            if isinstance(parent, ast.Assign) and last_name(parent.targets[0]) in _STARTING:
                return True
            if isinstance(parent, ast.Call) and child is not parent.func:
                first = parent.args[0] if parent.args else None
                if isinstance(first, ast.Constant) and first.value in _EVENTS:
                    return True
                if last_name(parent.func) in ("run", "register", "run_until_complete", "signal"):
                    called = parent.func
                    owner = last_name(called.value) if isinstance(called, ast.Attribute) else ""
                    if owner in ("asyncio", "anyio", "trio", "uvloop", "atexit", "signal", "loop"):
                        return True
            child, parent = parent, self.program.parents.get(parent)
        return False

    # --- functions ---

    def _decorated(self, scope: Scope) -> None:
        around = scope.parent
        if around is None or not scope.decorators:
            return
        for decorator in scope.decorators:
            found = self.program.find(
                decorator.func if isinstance(decorator, ast.Call) else decorator, around
            )
            if found is None or found.kind != "function" or found.scope is None:
                continue
            self._call(around, found.scope)
            self._used.add(found.scope)
            if isinstance(decorator, ast.Call):
                # @register("name"): what it returns is called, with what is decorated.
                self._applied.add(found.scope)

    def _runs_in_requests(self, function: Scope, mentioned: set[Scope]) -> bool:
        """Tell whether a decorator hands a function on to be called in requests."""
        for decorator in function.decorators:
            name = last_name(decorator)
            if name in _AT_START or name in _ELSEWHERE or name in _PLAIN:
                continue
            if _is_event(decorator):
                continue
            own = self.program.find(
                decorator.func if isinstance(decorator, ast.Call) else decorator,
                function.parent or function,
            )
            registers = isinstance(decorator, ast.Call) and isinstance(
                decorator.func, ast.Attribute
            )
            if registers and (own is None or own.kind != "foreign"):
                return True
            # Of what is only decorated it is known who calls it, if anybody names it.
            if function not in mentioned:
                return True
        return False

    def _callbacks(self) -> None:
        """Add the methods that a framework calls, for it has their names."""
        mentioned = {one for called in self._calls.values() for one in called}
        for function in self.program.functions:
            if function in self._handed or function in self.starting:
                continue
            if _starts_by_name(function):
                self.starting.add(function)
                continue
            if self._decorators_elsewhere(function):
                continue
            if self._is_callback(function, mentioned):
                self._handed.add(function)
            if function.decorators and self._runs_in_requests(function, mentioned):
                self._handed.add(function)

    def _is_callback(self, function: Scope, mentioned: set[Scope]) -> bool:
        cls, name = function.in_class, function.short
        if cls is None:
            return False
        if name.startswith("__") and name.endswith("__"):
            known = cls in self._classes or any(
                cls in self.program.bases(one) for one in self._classes
            )
            return known and name not in _NOT_HANDED
        return (
            function not in mentioned
            and not function.decorators
            and name not in self._attributes
            and bool(self.program.foreign_bases(cls))
        )

    def _decorators_elsewhere(self, function: Scope) -> bool:
        for decorator in function.decorators:
            if last_name(decorator) in _AT_START or _is_event(decorator):
                self.starting.add(function)
                return True
            if last_name(decorator) in _ELSEWHERE:
                return True
        return False

    def _returned(self, function: Scope) -> list[Scope]:
        """Return the functions in a function that it returns."""
        found = []
        for node, scope in function.nodes:
            if not isinstance(node, ast.Return) or not isinstance(
                node.value, ast.Name | ast.Lambda
            ):
                continue
            value: Object | None = self.program.find(node.value, scope)
            inner = value.scope if value is not None and value.kind == "function" else None
            if inner is not None and inner.parent is function:
                found.append(inner)
        return found

    def _follow(self) -> None:
        """Follow the calls from what is handed over, and what functions return."""
        for function in list(self.program.functions):
            if function not in self._used | self._handed | self._applied:
                continue  # nobody keeps what it returns
            for inner in self._returned(function):
                if function in self._applied:
                    # It is called where it decorates, and only what it returns lives on.
                    self._calls[function].add(inner)
                else:
                    self._handed.add(inner)
        waiting: deque[tuple[Scope, Scope | None]] = deque(
            (one, None) for one in self._handed if one not in self.starting
        )
        while waiting:
            function, caller = waiting.popleft()
            if function in self.callers:
                continue
            self.callers[function] = caller
            waiting.extend(
                (one, function) for one in self._calls[function] if one not in self.starting
            )
        self.late = set(self.callers)

    def way(self, function: Scope) -> list[Scope]:
        """Return how a request gets to a function: a shortest way of calls, from a handler on."""
        way = [function]
        while (caller := self.callers.get(way[0])) is not None:
            way.insert(0, caller)
        return way


def _is_event(decorator: ast.expr) -> bool:
    if not isinstance(decorator, ast.Call) or not decorator.args:
        return False
    first = decorator.args[0]
    return isinstance(first, ast.Constant) and first.value in _EVENTS


def _starts_by_name(function: Scope) -> bool:
    name = function.short.strip("_").lower()
    if name.endswith("lifespan") or name in ("startup", "shutdown", "on_startup", "on_shutdown"):
        return True
    return any(
        last_name(one) == "asynccontextmanager" for one in function.decorators
    ) and _takes_an_app(function)


def _takes_an_app(function: Scope) -> bool:
    arguments = getattr(function.node, "args", None)
    names = arguments.args if isinstance(arguments, ast.arguments) else []
    return len(names) == 1 and (
        last_name(names[0].annotation) in ("FastAPI", "Starlette")
        or names[0].arg in ("app", "_app")
    )
