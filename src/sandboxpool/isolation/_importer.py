"""The `__import__` of private modules, and how running code is traced back to its sandbox.

Each sandbox has one dict of builtins, a copy but for `__import__`. A function keeps the builtins
of the module that it was defined in, so what it imports at request time, in a thread or in a
child task is found in its own sandbox, without any context. By the same dict, a frame on the
stack tells whose code it is.
"""

from __future__ import annotations

import builtins
import importlib
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from importlib.util import resolve_name
from threading import get_ident
from types import CodeType, FrameType, ModuleType, TracebackType
from typing import TYPE_CHECKING, Any, TypeVar, cast
from weakref import ReferenceType, WeakSet

from sandboxpool._context import current

if TYPE_CHECKING:
    from ._private_modules import PrivateModules

F = TypeVar("F", bound=Callable[..., Any])

here: ContextVar[ReferenceType[PrivateModules] | None] = ContextVar(
    "sandboxpool_modules", default=None
)
"""Whose modules are executed, or whose lifespan runs: there is no lease then.

Contexts are copied, and outlive what they were copied for, so they hold no modules themselves.
"""

# Python leaves frames of such files out of account when it looks for the code that a warning is
# about: both words must be in the name. It is also how ours are recognised in tracebacks.
_INTERNAL = "<sandboxpool importlib._bootstrap>"


def internal(function: F) -> F:
    """Make a function one of the import system, for warnings and tracebacks."""
    code: CodeType = function.__code__
    function.__code__ = code.replace(co_filename=_INTERNAL)
    return function


def without_internals(traceback: TracebackType | None) -> TracebackType | None:
    """Return a traceback without the frames of the import system, so that the user's remain."""
    first = last = None
    while traceback is not None:
        following = traceback.tb_next
        name = traceback.tb_frame.f_code.co_filename
        if name != _INTERNAL and not name.startswith("<frozen importlib."):
            if last is None:
                first = traceback
            else:
                last.tb_next = traceback
            last = traceback
        traceback = following
    if last is not None:
        last.tb_next = None
    return first


class Importer:
    """The `__import__` of one sandbox.

    Args:
        modules: Its modules.
    """

    __slots__ = ("modules",)

    def __init__(self, modules: PrivateModules) -> None:
        self.modules = modules

    @internal
    def __call__(
        self,
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Sequence[str] | None = (),
        level: int = 0,
    ) -> Any:
        """Import as the statement does, private modules from the sandbox."""
        modules = self.modules
        if level == 0 and name.partition(".")[0] not in modules.tops:
            return builtins.__import__(name, globals, locals, fromlist or (), level)
        try:
            absolute = name
            if level:
                absolute = resolve_name("." * level + name, _package(globals or {}))
            if not modules.owns(absolute):
                return builtins.__import__(name, globals, locals, fromlist or (), level)
            importing = (globals or {}).get("__name__")
            if importing in modules.shared and importing not in modules.loading:
                # A function of a module that all sandboxes share: who calls it?
                modules = asking(absolute) or modules
            module = modules.load(absolute)
            if fromlist:
                if hasattr(module, "__path__"):
                    modules.load_named(absolute, module, fromlist)
                modules.note_import(importing, absolute, module, fromlist)
                return module
            modules.note_import(importing, absolute, module, ())
            cut = len(name) - len(name.partition(".")[0])
            return modules.load_any(absolute[: len(absolute) - cut])
        except BaseException as error:
            # Of all of us, one frame remains, that of this call.
            error.__traceback__ = without_internals(error.__traceback__)
            raise error


def _package(globals: Mapping[str, Any]) -> str:
    """Return the package that relative imports in a module start from."""
    package = globals.get("__package__")
    if package is not None:
        return str(package)
    spec = globals.get("__spec__")
    if spec is not None:
        return str(spec.parent)
    name = str(globals["__name__"])
    return name if "__path__" in globals else name.rpartition(".")[0]


def of_frame(frame: FrameType) -> PrivateModules | None:
    """Return the modules that the code of a frame belongs to; shared ones belong to none."""
    importer = frame.f_builtins.get("__import__")
    if type(importer) is not Importer:
        return None
    modules = importer.modules
    return None if frame.f_globals.get("__name__") in modules.shared else modules


def of_module(module: Any) -> PrivateModules | None:
    """Return the modules that a module is executed for, shared or not."""
    try:
        space = object.__getattribute__(module, "__dict__")
    except AttributeError:
        return None
    own = space.get("__builtins__")
    importer = own.get("__import__") if type(own) is dict else None
    return importer.modules if type(importer) is Importer else None


def asking(name: str) -> PrivateModules | None:
    """Return the modules of the sandbox whose code is asking for a private module.

    That is the sandbox of the nearest frame on the stack; without one, that of the request, or of
    the lifespan, that the running code belongs to.
    """
    frame: FrameType | None = sys._getframe(1)
    while frame is not None:
        modules = of_frame(frame)
        if modules is not None and modules.owns(name):
            return modules
        frame = frame.f_back
    lease = current.get()
    while lease is not None:
        modules = cast("PrivateModules | None", getattr(lease.sandbox, "private_modules", None))
        if modules is not None and not lease.ended and modules.owns(name):
            return modules
        lease = lease.parent
    reference = here.get()
    modules = None if reference is None else reference()
    return modules if modules is not None and modules.owns(name) else None


def importing(frame: FrameType | None) -> tuple[PrivateModules, str] | None:
    """Return the private module whose body is asking, and the modules that it is one of.

    What a third-party module does in its own body, because a private one imports it, is its own.
    """
    while frame is not None:
        file = frame.f_code.co_filename
        if file == importlib.__file__ or file.startswith((_INTERNAL, "<frozen importlib.")):
            return None
        modules = of_frame(frame)
        name = frame.f_globals.get("__name__")
        if modules is not None and modules.loading.get(str(name)) == get_ident():
            return modules, str(name)
        frame = frame.f_back
    return None


class _Builtins(ModuleType):
    """What the module `builtins` is while there are private copies of it."""

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)
        if name not in ("__import__", "__class__"):
            for modules in _copies.all():
                modules.builtins[name] = value

    def __delattr__(self, name: str) -> None:
        super().__delattr__(name)
        for modules in _copies.all():
            modules.builtins.pop(name, None)


class _Copies:
    """The private copies of the builtins, which follow the original.

    `unittest.mock.patch("builtins.open")`, `gettext.install()` and the like change the module.
    """

    def __init__(self) -> None:
        self._live: WeakSet[PrivateModules] = WeakSet()
        self._changing = threading.RLock()
        self._original: type[ModuleType] = ModuleType

    def new(self, modules: PrivateModules) -> dict[str, Any]:
        with self._changing:
            if type(builtins) is not _Builtins:
                self._original = type(builtins)
                builtins.__class__ = _Builtins
            copied = dict(vars(builtins))
            copied["__import__"] = Importer(modules)
            self._live.add(modules)
        return copied

    def follow(self, modules: PrivateModules) -> None:
        """Add what was written into the dict of the original, past its attributes."""
        original = vars(builtins)
        if len(original) > len(modules.builtins):
            modules.builtins.update({k: v for k, v in original.items() if k != "__import__"})

    def all(self) -> list[PrivateModules]:
        with self._changing:
            return list(self._live)

    def drop(self, modules: PrivateModules) -> None:
        with self._changing:
            self._live.discard(modules)
            if not self._live and type(builtins) is _Builtins:
                setattr(builtins, "__class__", self._original)  # noqa: B010 - mypy sees two types


_copies = _Copies()
new_builtins = _copies.new
follow_builtins = _copies.follow
live = _copies.all
drop_builtins = _copies.drop
