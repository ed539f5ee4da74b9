"""The app's own modules, and what requests change in those that all sandboxes share."""

from __future__ import annotations

import functools
import sys
import sysconfig
import threading
from collections.abc import Iterable, Iterator, Mapping
from types import FunctionType, MethodType, ModuleType
from typing import Any
from weakref import WeakKeyDictionary

from sandboxpool._context import RequestLease
from sandboxpool.isolation._graph import getattr_dict
from sandboxpool.isolation.factory import FactorySandbox

from ._difference import Difference
from ._picture import Picture
from ._shared import Found, Presence

# What serves apps, and is not theirs.
_FRAMEWORKS = frozenset(
    {
        "anyio", "asgiref", "django", "fastapi", "flask", "granian", "hypercorn", "pydantic",
        "sandboxpool", "starlette", "uvicorn", "werkzeug",
    }
)  # fmt: skip
# What leads from an app to its endpoints and its inner apps.
_LEADS = (
    "app",
    "_app",
    "wsgi_app",
    "router",
    "routes",
    "endpoint",
    "view_functions",
    "user_middleware",
    "cls",
)
_OBJECTS_AT_MOST = 20_000


def packages_of(app: object) -> frozenset[str]:
    """Return the top-level names of the packages that an app was written in."""
    tops = {_module_of(part).partition(".")[0] for part in _parts_of(app)}
    if "django" in tops:
        # Such an app has nothing of its own: what is served is found by a name in the settings.
        tops.add(_root_of_django().partition(".")[0])
    tops -= _FRAMEWORKS | sys.stdlib_module_names | {""}
    # An endpoint may come from a library; an app that is installed itself is no library.
    own = {top for top in tops if not _is_installed(top)}
    return frozenset(own or tops)


def _root_of_django() -> str:
    settings: Any = getattr(sys.modules.get("django.conf"), "settings", None)
    return str(settings.ROOT_URLCONF) if getattr(settings, "configured", False) else ""


def functions_of(app: object, packages: frozenset[str]) -> dict[str, FunctionType]:
    """Return the functions that an app consists of, and no module has, by what they are called.

    A function that makes an app has made them in it, and they share its variables.
    """
    return {
        f"{part.__module__}.{part.__qualname__}": part
        for part in _parts_of(app)
        if type(part) is FunctionType
        and "<" in part.__qualname__
        and _module_of(part).partition(".")[0] in packages
    }


def modules_of(packages: frozenset[str]) -> dict[str, ModuleType]:
    """Return the loaded modules of packages, by name.

    In the order in which their imports have ended (importlib moves each to the end then), which
    is that in which one has from another what several of them have.
    """
    return {
        name: module
        for name, module in list(sys.modules.items())
        if type(module) is ModuleType and name.partition(".")[0] in packages
    }


def _is_installed(top: str) -> bool:
    module = sys.modules.get(top)
    places = [getattr(module, "__file__", None), *(getattr(module, "__path__", None) or ())]
    folders = {sysconfig.get_path(name) for name in ("purelib", "platlib")}
    return any(place and place.startswith(folder) for place in places for folder in folders)


def _parts_of(app: object) -> Iterator[Any]:
    """Yield the functions, classes and objects that an app consists of."""
    rest: list[Any] = [app]
    seen: set[int] = set()
    while rest and len(seen) < _OBJECTS_AT_MOST:
        value = rest.pop()
        if id(value) in seen or value is None:
            continue
        seen.add(id(value))
        # Never `isinstance()`: a proxy that stands for nothing yet raises when it is asked.
        cls = type(value)
        if issubclass(cls, functools.partial):
            rest.append(value.func)
        elif cls is MethodType:
            rest.extend((value.__func__, value.__self__))
        elif issubclass(cls, (list, tuple)):
            rest.extend(value)
        elif issubclass(cls, dict):
            rest.extend(dict.values(value))
        else:
            yield value
            if cls is FunctionType:
                rest.append(value.__dict__.get("__wrapped__"))
            elif not issubclass(cls, type):
                attributes = getattr_dict(value) or {}
                rest.extend(attributes[name] for name in _LEADS if name in attributes)


def _module_of(part: Any) -> str:
    cls = type(part)
    named = part if cls is FunctionType or issubclass(cls, type) else cls
    return str(named.__module__)


class ModulesWatch:
    """Watches the app's own modules that all of its sandboxes share.

    Args:
        packages: The top-level packages of the app.
        private: The names of those modules of these that each sandbox has for itself.
        functions: What no module has, and all sandboxes share, by name.
    """

    def __init__(
        self,
        packages: frozenset[str],
        private: Iterable[str],
        functions: Mapping[str, FunctionType],
    ) -> None:
        self._packages = packages
        self._private = private
        self._functions = functions
        self._presence = Presence()
        self._lock = threading.Lock()
        self._loaded = 0
        self._picture = Picture({})

    @property
    def modules(self) -> Mapping[str, ModuleType]:
        """The modules, by name."""
        return self._picture.modules

    def begin(self, lease: RequestLease, *, looks: bool) -> None:
        """Note a request that begins."""
        with self._lock:
            if looks and not self._presence.now():
                self._look()
            self._presence.enter(lease)

    def end(self, lease: RequestLease, *, looks: bool) -> list[Found]:
        """Return what has changed by the end of a request."""
        with self._lock:
            self._presence.leave(lease)
            if not looks:
                return []
            leases = tuple(sorted(self._presence.since))
            differences = self._look()
        return [Found.from_difference(difference, "modules", leases) for difference in differences]

    def _look(self) -> list[Difference]:
        differences = self._picture.compare()
        if len(sys.modules) != self._loaded:
            self._loaded = len(sys.modules)
            modules = modules_of(self._packages)
            for name in self._private:
                modules.pop(name, None)
            if self._picture.modules.keys() != modules.keys():
                self._picture = Picture(modules, self._functions)
        self._presence.looked()
        return differences


class PrivateCodeWatch:
    """Watches what each sandbox has for itself besides its app: modules, or functions."""

    def __init__(self) -> None:
        self._pictures: WeakKeyDictionary[Any, Picture] = WeakKeyDictionary()

    def begin(self, sandbox: Any, packages: frozenset[str]) -> None:
        """Take how it is for how it is to be."""
        inner = getattr(sandbox, "inner", sandbox)
        if not isinstance(inner, FactorySandbox):
            return
        modules: Mapping[str, ModuleType] = getattr(inner, "modules", {})
        picture = self._pictures.get(inner)
        if picture is None or picture.modules.keys() != modules.keys():
            # The modules are in the order in which their imports have begun.
            in_order = dict(reversed(list(modules.items())))
            self._pictures[inner] = Picture(in_order, functions_of(inner.app, packages))
        else:
            picture.compare()  # whoever has put something back has changed it again

    def end(self, sandbox: Any) -> list[Difference]:
        """Return what a request has changed in it."""
        inner = getattr(sandbox, "inner", sandbox)
        picture = self._pictures.get(inner) if isinstance(inner, FactorySandbox) else None
        return [] if picture is None else picture.compare()
