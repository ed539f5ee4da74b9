"""What an expression of the source may stand for, as far as that can be told by reading."""

from __future__ import annotations

import ast
from typing import Literal

import attrs

from ._modules import Module
from ._scopes import Scope

Kind = Literal[
    "module",  # one of the app's
    "class",  # one of the app's
    "function",  # one of the app's
    "instance",  # an object of one of the app's classes, of which there are many
    "shared",  # an object that exists once
    "foreign",  # what a library has, by its dotted name
    "request",
    "request-state",
    "scope",
    "app",
]
Make = Literal[
    "container", "constant", "iterator", "thread-local", "context-variable", "app", "object", ""
]


@attrs.frozen(kw_only=True)
class Object:
    """What an expression stands for.

    Attributes:
        kind: What it is.
        path: What it is called for people, like `shop.state.CART`; of what is foreign, its name.
        scope: The class or function itself, or the class of the object.
        rule: For what is shared, the rule by which it is.
        make: What kind of object it is, where that can be told; "" if not.
        inside: Whether it is reached through an attribute of what is shared.
        defined: Where what is shared is defined.
    """

    kind: Kind
    path: str = ""
    scope: Scope | None = None
    rule: str = ""
    make: Make = ""
    inside: bool = False
    defined: tuple[Module, int] | None = None


CONTAINERS = frozenset(
    [
        "list",
        "dict",
        "set",
        "bytearray",
        "defaultdict",
        "OrderedDict",
        "Counter",
        "deque",
        "ChainMap",
        "UserDict",
        "UserList",
        "array",
        "WeakKeyDictionary",
        "WeakValueDictionary",
        "WeakSet",
        "SortedDict",
        "SortedList",
        "SortedSet",
        "Headers",
        "MutableHeaders",
        "QueryDict",
        "TTLCache",
        "LRUCache",
        "LFUCache",
        "Cache",
        "List",
        "Dict",
        "Set",
        "MutableMapping",
        "MutableSequence",
        "MutableSet",
        "DefaultDict",
        "Deque",
    ]
)
"""Names of classes, and of their annotations, whose objects are changed by their methods."""

_CONSTANTS = frozenset(
    [
        "int",
        "str",
        "float",
        "bool",
        "bytes",
        "tuple",
        "frozenset",
        "complex",
        "range",
        "Decimal",
        "Fraction",
        "UUID",
        "Path",
        "PurePath",
        "MappingProxyType",
        "namedtuple",
        "compile",
        "TypeVar",
        "NewType",
        "ParamSpec",
        "getLogger",
        "get_logger",
        "Enum",
        "IntEnum",
        "StrEnum",
        "Flag",
    ]
)
_COPIES = frozenset(
    [
        "copy",
        "deepcopy",
        "list",
        "dict",
        "set",
        "sorted",
        "tuple",
        "frozenset",
        "reversed",
        "str",
        "len",
    ]
)
_ITERATORS = frozenset(["cycle", "iter", "chain", "islice", "repeat"])
_LITERALS = (ast.List, ast.Dict, ast.Set, ast.ListComp, ast.DictComp, ast.SetComp)


def last_name(node: ast.AST | None) -> str:
    """Return the last name of a dotted expression, of what it calls or is subscripted of."""
    while isinstance(node, ast.Call | ast.Subscript):
        node = node.func if isinstance(node, ast.Call) else node.value
    if isinstance(node, ast.Attribute):
        return node.attr
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value.partition("[")[0].rpartition(".")[2]  # an annotation in quotes
    return node.id if isinstance(node, ast.Name) else ""


def made_by(node: ast.AST | None) -> Make:
    """Return what kind of object an expression makes anew, "" if that cannot be told."""
    if isinstance(node, _LITERALS):
        return "container"
    if isinstance(node, ast.GeneratorExp):
        return "iterator"
    if isinstance(node, ast.Constant | ast.JoinedStr | ast.Tuple | ast.Lambda | ast.UnaryOp):
        return "constant"
    if isinstance(node, ast.Call):
        name = last_name(node.func)
        if name in CONTAINERS:
            return "container"
        if name in _CONSTANTS:
            return "constant"
        if name in _ITERATORS:
            return "iterator"
        if name in ("FastAPI", "Starlette"):
            return "app"
        if name == "ContextVar":
            return "context-variable"
        if name in ("local", "Local"):
            return "thread-local"
        if isinstance(node.func, ast.Attribute) and name == "fromkeys":
            return "container"
    if isinstance(node, ast.BinOp):
        return made_by(node.left) or made_by(node.right)
    if isinstance(node, ast.IfExp):
        return made_by(node.body) or made_by(node.orelse)
    if isinstance(node, ast.BoolOp):
        return next(filter(None, map(made_by, node.values)), "")
    return ""


def is_copy(node: ast.Call) -> bool:
    """Tell whether a call returns something new, though it is called on what is shared."""
    return last_name(node.func) in _COPIES


def annotated_as(node: ast.AST | None) -> Make:
    """Return what kind of object an annotation promises."""
    if isinstance(node, ast.BinOp):
        return annotated_as(node.left) or annotated_as(node.right)
    if last_name(node) in ("Optional", "Final", "Annotated") and isinstance(node, ast.Subscript):
        inner = node.slice
        return annotated_as(inner.elts[0] if isinstance(inner, ast.Tuple) else inner)
    return "container" if last_name(node) in CONTAINERS else ""
