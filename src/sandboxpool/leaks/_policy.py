"""What of all that has changed is a leak, and what only warms up.

The first requests fill caches, import lazily and connect for the first time; none of that is a
leak, and most of it looks like one. What tells them apart is that it comes to an end:

* Data that was changed is reported at once: nothing that warms up has a reason to.
* So is what belongs to a request, like the request itself.
* Something else opaque that takes the place of nothing (a client, an engine, a compiled pattern) is
  reported when it comes a second time.
* A container of a shared module that gets another item is reported when that has happened three
  times, and then each time that this number has doubled. One that loses items, too, is a cache
  with a limit.
* What Python and its libraries keep in names of their own (`__pydantic_core_schema__`) never is.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterable
from types import FunctionType, ModuleType

import attrs

from sandboxpool.isolation._data import CONTAINERS

from ._difference import ABSENT
from ._names import Names
from ._shared import Found

_GROWTHS = 3
_REMEMBERED = 5000
_DATA = frozenset({str, int, float, complex, bool, bytes, type(None)}) | CONTAINERS
# Values of the standard library, which nobody makes once and for all.
_VALUES = frozenset({"datetime", "decimal", "fractions", "ipaddress", "pathlib", "uuid"})
# Whose objects belong to one request.
_OF_A_REQUEST = frozenset(
    {
        "django.core.handlers.asgi", "django.core.handlers.wsgi", "django.http.request",
        "flask.wrappers", "starlette.datastructures", "starlette.requests",
        "starlette.websockets", "werkzeug.wrappers.request",
    }
)  # fmt: skip
_DUNDER = re.compile(r"\.(__\w+__|_abc_\w+)(?=[.\[(]|\Z)")
_LAST_ITEM = re.compile(r"(.+?)(?:\[[^\[\]]*\]|\{[^{}]*\})\Z", re.DOTALL)
_SIZE = re.compile(r"len\((.+)\)", re.DOTALL)


class Policy:
    """Decides what is reported.

    Args:
        ignored: The names of leaks that are none.
        packages: The top-level packages of the app; what their classes make is data.
    """

    def __init__(self, ignored: Names, packages: frozenset[str] = frozenset()) -> None:
        self.packages = packages
        self._ignored = ignored
        # By owner and path, how often something opaque has come, or a container has grown.
        self._seen: dict[tuple[object, str], int] = {}

    def leaks_in(self, found: Iterable[Found], sandbox: object) -> list[Found]:
        """Return what is to be reported.

        Args:
            found: What differs.
            sandbox: Tells one sandbox from another one.
        """
        left: list[Found] = []
        grown: dict[str, list[Found]] = {}
        shrunk: set[str] = set()
        for one in found:
            if one.path in self._ignored or self._is_internal(one):
                continue
            item = _LAST_ITEM.match(one.path) if one.where == "modules" else None
            size = _SIZE.fullmatch(one.path)
            if size is not None:
                if one.after > one.before:  # type: ignore[operator] # both are numbers
                    grown.setdefault(size[1], []).append(one)
            elif item is not None and one.kind == "added":
                grown.setdefault(item[1], []).append(one)
            elif item is not None and one.kind == "removed":
                shrunk.add(item[1])
                left.append(one)
            elif not self._warms_up(one, sandbox if one.where == "sandbox" else None):
                left.append(one)
        for path, items in grown.items():
            if path in shrunk:
                left = [one for one in left if not one.path.startswith((path + "[", path + "{"))]
                self._seen[None, path] = 0
            elif path not in self._ignored:
                times = self._count(None, path)
                if times >= _GROWTHS and _doubled(times, _GROWTHS):
                    left.append(_grown(path, items[-1], times))
        return left

    def _is_internal(self, one: Found) -> bool:
        if _DUNDER.search(one.path):
            return True
        if one.kind == "added" and issubclass(type(one.after), ModuleType):
            return True  # `import shop.cart`, lazily
        return type(one.before) is _CACHED or type(one.after) is _CACHED

    def _warms_up(self, one: Found, owner: object) -> bool:
        """Tell whether something opaque takes the place of nothing, for the first time."""
        if one.where == "process" or one.kind not in ("added", "changed"):
            return False
        if one.before is not None and one.before is not ABSENT:
            return False
        cls = type(one.after)
        module = str(cls.__module__)
        if cls in _DATA or module.partition(".")[0] in self.packages | _VALUES:
            return False
        if module in _OF_A_REQUEST:
            return False
        if cls in (FunctionType, type) and one.kind == "changed":
            return False
        return self._count(owner, one.path) < 2

    def _count(self, owner: object, path: str) -> int:
        if len(self._seen) > _REMEMBERED:
            self._seen.clear()
        times = self._seen[owner, path] = self._seen.get((owner, path), 0) + 1
        return times


_CACHED: type = type(functools.lru_cache(len))


def _doubled(times: int, first: int) -> bool:
    while times > first and times % 2 == 0:
        times //= 2
    return times == first


def _grown(path: str, last: Found, times: int) -> Found:
    return attrs.evolve(
        last,
        path=path,
        kind="grown",
        text=f"{times} requests have left items in it",
    )
