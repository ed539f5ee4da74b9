"""Where a function changes what it has not made itself."""

from __future__ import annotations

import ast
from collections.abc import Iterator

import attrs

from ._modules import Module
from ._objects import Object, last_name
from ._once import fills_once
from ._program import Program
from ._scopes import Scope

# Methods that only containers have, and those that other things have as well.
_CHANGES_SURELY = frozenset(
    [
        *("append", "appendleft", "extend", "extendleft", "setdefault", "popitem", "popleft"),
        *("__setitem__", "__delitem__", "move_to_end", "difference_update", "intersection_update"),
    ]
)
_CHANGES = _CHANGES_SURELY | frozenset(
    [
        *("add", "update", "pop", "clear", "remove", "insert", "sort", "reverse", "discard"),
        *("subtract", "rotate", "symmetric_difference_update", "__setattr__"),
    ]
)
_REMOVES = frozenset(
    ["pop", "popitem", "popleft", "clear", "remove", "discard", "move_to_end", "__delitem__"]
)
_DICTS_OF_CLIENTS = frozenset(["headers", "cookies", "params", "proxies", "globals", "filters"])
_OF_APPS = frozenset(
    [
        *("add_route", "add_api_route", "add_middleware", "add_exception_handler", "mount"),
        *("include_router", "add_websocket_route", "add_event_handler", "host"),
    ]
)
_CHANGED_BY = {  # functions that change their first argument
    *("heapq.heappush", "heapq.heappop", "heapq.heapify", "heapq.heapreplace"),
    *("bisect.insort", "bisect.insort_left", "bisect.insort_right", "random.shuffle"),
    "builtins.next",
}
_OF_PROCESS = {
    *("os.chdir", "os.fchdir", "os.putenv", "os.unsetenv", "os.umask", "os.nice", "time.tzset"),
    *("locale.setlocale", "random.seed", "numpy.random.seed", "torch.manual_seed"),
    *("socket.setdefaulttimeout", "signal.signal", "sys.setrecursionlimit", "logging.disable"),
    *("logging.basicConfig", "warnings.simplefilter", "warnings.filterwarnings"),
    *("asyncio.set_event_loop_policy", "gc.disable", "gc.enable", "gc.freeze"),
}
_PER_TASK = frozenset(["g", "context", "ctx", "local", "session", "current_app"])
_WHY = {
    "SP101": "the module holds it for all requests",
    "SP102": "a module's global is the same for all requests",
    "SP103": "all objects of the class share it",
    "SP104": "a default is made once, for all calls",
    "SP105": "the app is the same for all requests",
    "SP106": "one middleware object serves all requests",
    "SP107": "this object exists once, for all requests",
    "SP108": "the variable outlives the request, and all of them share it",
    "SP109": "a function is one object for all requests",
    "SP110": "the cache returns the same object to all requests",
    "SP111": "the default is one object for all contexts",
    "SP112": "the process is the same for all requests",
}


@attrs.frozen(kw_only=True)
class Write:
    """A place in a function that changes what is shared.

    Attributes:
        rule: By which rule it is shared.
        path: What is changed.
        message: What happens, in one sentence.
        node: Where.
        function: The function.
        defined: Where what is changed is defined, if that is known.
        fills: Whether it only fills in what is missing, and is the same for all requests.
        removes: Whether it only takes something away.
    """

    rule: str
    path: str
    message: str
    node: ast.AST
    function: Scope
    defined: tuple[Module, int] | None = None
    fills: bool = False
    removes: bool = False


def find_writes(program: Program, function: Scope) -> Iterator[Write]:
    """Yield what a function, which runs in requests, changes that is shared between them."""
    for node, scope in function.nodes:
        if scope.owner is not function:
            continue
        if isinstance(node, ast.Assign):
            for target in node.targets:
                yield from _assigned(program, node, target, node.value, scope)
        elif isinstance(node, ast.AnnAssign) and node.value is not None:
            yield from _assigned(program, node, node.target, node.value, scope)
        elif isinstance(node, ast.AugAssign):
            yield from _augmented(program, node, scope)
        elif isinstance(node, ast.For | ast.AsyncFor):
            yield from _assigned(program, node, node.target, None, scope)
        elif isinstance(node, ast.With | ast.AsyncWith):
            for item in node.items:
                if item.optional_vars is not None:
                    yield from _assigned(program, node, item.optional_vars, None, scope)
        elif isinstance(node, ast.NamedExpr):
            yield from _assigned(program, node, node.target, node.value, scope)
        elif isinstance(node, ast.Delete):
            for target in node.targets:
                yield from _assigned(program, node, target, None, scope)
        elif isinstance(node, ast.Call):
            yield from _called(program, node, scope)


def _write(
    rule: str, path: str, verb: str, node: ast.AST, scope: Scope, about: Object | None = None
) -> Write:
    function = scope.owner
    message = f"{function.short}() {verb}: {_WHY[rule]}"
    defined = about.defined if about is not None else None
    return Write(
        rule=rule, path=path, message=message, node=node, function=function, defined=defined
    )


def _assigned(
    program: Program, node: ast.AST, target: ast.expr, value: ast.AST | None, scope: Scope
) -> Iterator[Write]:
    if isinstance(target, ast.Tuple | ast.List):
        values: list[ast.AST | None] = [value] * len(target.elts)
        if isinstance(value, ast.Tuple | ast.List) and len(value.elts) == len(target.elts):
            values = list(value.elts)
        for part, one in zip(target.elts, values, strict=True):
            yield from _assigned(program, node, part, one, scope)
        return
    if isinstance(target, ast.Starred):
        yield from _assigned(program, node, target.value, None, scope)
        return
    for write in _assigned_one(program, node, target, scope):
        fills = fills_once(program, node, target, value, scope)
        yield attrs.evolve(write, fills=fills)


def _assigned_one(
    program: Program, node: ast.AST, target: ast.expr, scope: Scope
) -> Iterator[Write]:
    verb = "deletes" if isinstance(node, ast.Delete) else "sets"
    if isinstance(target, ast.Name):
        yield from _rebound(program, node, target, scope, verb)
    elif isinstance(target, ast.Attribute):
        found = program.find(target.value, scope)
        yield from _attribute(node, found, target.attr, scope, verb)
    elif isinstance(target, ast.Subscript):
        verb = "deletes from" if isinstance(node, ast.Delete) else "writes to"
        for write in _inside(node, program.find(target.value, scope), scope, verb):
            yield attrs.evolve(write, removes=isinstance(node, ast.Delete))


def _rebound(
    program: Program, node: ast.AST, target: ast.Name, scope: Scope, verb: str
) -> Iterator[Write]:
    function = scope.owner
    declared = function.declared.get(target.id)
    if declared == "global":
        path = f"{scope.top.name}.{target.id}"
        first = scope.top.bindings.get(target.id, ())
        line = min((getattr(one.node, "lineno", 0) for one in first), default=0)
        about = Object(kind="shared", defined=(scope.top.module, line))
        yield _write("SP102", path, f"{verb} the global {path}", node, scope, about)
    elif declared == "nonlocal":
        home = function.lookup(target.id) or (function.parent and function.parent.lookup(target.id))
        if home and home.kind == "function" and home not in (program.late or ()):
            path = f"{home.name}.{target.id}"
            yield _write("SP108", path, f"{verb} {path}", node, scope)


def _attribute(
    node: ast.AST, found: Object | None, name: str, scope: Scope, verb: str
) -> Iterator[Write]:
    if found is None or _is_private(found, scope):
        return
    path = f"{found.path}.{name}"
    if found.kind == "function" and found.scope is not None and found.scope.parent is scope.owner:
        return  # which it has just made
    if found.kind in ("module", "class", "function"):
        rule = {"module": "SP102", "class": "SP103", "function": "SP109"}[found.kind]
    elif found.kind == "app":
        rule = "SP105"
    elif found.kind == "foreign":
        if found.path.startswith("builtins.") or last_part(found.path) in _PER_TASK:
            return
        rule = "SP107"
    elif found.kind == "shared":
        rule = "SP107" if found.rule == "SP101" else found.rule
        if found.make == "context-variable":
            return
    else:
        return
    yield _write(rule, path, f"{verb} {path}", node, scope, found)


def last_part(path: str) -> str:
    """Return the last name of a dotted path."""
    return path.rpartition(".")[2]


def _inside(node: ast.AST, found: Object | None, scope: Scope, verb: str) -> Iterator[Write]:
    """Yield the write if what is changed in itself, by item or method, is shared."""
    if found is None or _is_private(found, scope):
        return
    if found.kind == "foreign":
        if found.path == "os.environ" or found.path.startswith("sys."):
            yield _write("SP112", found.path, f"{verb} {found.path}", node, scope)
        elif not found.path.startswith("builtins.") and last_part(found.path) not in _PER_TASK:
            yield _write("SP101", found.path, f"{verb} {found.path}", node, scope)
    elif found.kind == "shared" and found.make not in ("context-variable", "thread-local"):
        rule = "SP107" if found.rule == "SP101" and found.inside else found.rule
        yield _write(rule, found.path, f"{verb} {found.path}", node, scope, found)


def _is_private(found: Object, scope: Scope) -> bool:
    """Tell whether each thread has its own; which coroutines of one thread do not."""
    if found.make != "thread-local":
        return False
    return not isinstance(scope.owner.node, ast.AsyncFunctionDef)


def _augmented(program: Program, node: ast.AugAssign, scope: Scope) -> Iterator[Write]:
    target = node.target
    if isinstance(target, ast.Name):
        yield from _rebound(program, node, target, scope, "changes")
        if target.id not in scope.owner.declared and isinstance(
            node.op, ast.Add | ast.BitOr | ast.BitAnd | ast.Sub
        ):
            found = program.find(ast.copy_location(ast.Name(target.id, ast.Load()), node), scope)
            if found is not None and found.make == "container":
                yield from _inside(node, found, scope, "changes")
    elif isinstance(target, ast.Attribute):
        found = program.find(target.value, scope)
        member = program.find(target, scope)
        if member is not None and member.rule == "SP103" and member.make == "container":
            yield from _inside(node, member, scope, "changes")
        else:
            yield from _attribute(node, found, target.attr, scope, "changes")
    else:
        yield from _inside(node, program.find(target.value, scope), scope, "writes to")


def _called(program: Program, node: ast.Call, scope: Scope) -> Iterator[Write]:
    function = node.func
    found = program.find(function, scope)
    if found is not None and found.kind == "foreign":
        if found.path in _OF_PROCESS:
            if not _is_undone(program, node, scope):
                yield _write("SP112", found.path, f"calls {found.path}()", node, scope)
        elif found.path in _CHANGED_BY and node.args:
            yield from _consumed(program, node, found.path, scope)
        elif found.path in ("builtins.setattr", "builtins.delattr") and len(node.args) > 1:
            given = node.args[1]
            text = given.value if isinstance(given, ast.Constant) else "..."
            verb = "sets" if found.path.endswith("setattr") else "deletes"
            target = program.find(node.args[0], scope)
            for write in _attribute(node, target, str(text), scope, verb):
                fills = fills_once(program, node, node.args[0], node.args[-1], scope)
                yield attrs.evolve(write, fills=fills)
    if not isinstance(function, ast.Attribute):
        return
    name = function.attr
    if name in ("setLevel", "addHandler", "removeHandler"):
        yield _write("SP112", "logging", f"calls {name}() of a logger", node, scope)
        return
    base = program.find(function.value, scope)
    if base is None:
        return
    if base.kind == "app" and name in _OF_APPS:
        yield _write("SP105", f"app.{name}", f"calls app.{name}()", node, scope)
    if name not in _CHANGES or (base.scope is not None and program.method(base.scope, name)):
        return
    if base.kind == "foreign" and base.path in ("os.environ", "sys.path", "sys.modules"):
        yield from _inside(node, base, scope, f"calls {name}() of")
    if base.kind != "shared" or base.make in ("constant", "iterator"):
        return
    if base.make != "container" and name not in _CHANGES_SURELY:
        of_client = last_part(base.path) in _DICTS_OF_CLIENTS and name in ("update", "pop", "clear")
        if not of_client and not _is_in_app_state(base):
            return
    for write in _inside(node, base, scope, f"calls {name}() of"):
        yield attrs.evolve(write, removes=name in _REMOVES)


def _is_in_app_state(base: Object) -> bool:
    return base.path.startswith("app.state.") and base.make == ""


def _consumed(program: Program, node: ast.Call, name: str, scope: Scope) -> Iterator[Write]:
    found = program.find(node.args[0], scope)
    if found is None or found.kind != "shared":
        return
    if name == "builtins.next" and found.make != "iterator":
        return
    yield from _inside(node, found, scope, f"calls {last_part(name)}() on")


def _is_undone(program: Program, node: ast.Call, scope: Scope) -> bool:
    """Tell whether the filters of warnings are restored by the block around."""
    above = program.parents.get(node)
    while above is not None and above is not scope.owner.node:
        if isinstance(above, ast.With) and any(
            last_name(item.context_expr) == "catch_warnings" for item in above.items
        ):
            return True
        above = program.parents.get(above)
    return False
