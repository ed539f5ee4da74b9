"""What a test leaves behind for those after it, and what its requests leave in their sandbox."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from types import ModuleType
from typing import Any

from sandboxpool._leak_report import Leak, Where
from sandboxpool.adapters import adapters
from sandboxpool.isolation._data import CONTAINERS, copy_plain
from sandboxpool.isolation._graph import getattr_dict
from sandboxpool.isolation._module_stand_in import plain
from sandboxpool.isolation._sandbox import AppSandbox
from sandboxpool.leaks._compare import compare_value
from sandboxpool.leaks._difference import ABSENT, Difference
from sandboxpool.leaks._names import Names
from sandboxpool.leaks._picture import Picture
from sandboxpool.leaks._states import changed_in_app
from sandboxpool.leaks._values import Shown

_DATA = frozenset({str, int, float, complex, bool, bytes, type(None)}) | CONTAINERS
_SHOWN_AT_MOST = 20

_UNDO = (
    "Undo it in the test: in a fixture with `yield`, or with monkeypatch. What is no leak is named "
    'with `sandboxpool_ignore`, or with @pytest.mark.sandboxpool(ignore=["..."]).'
)


class SharedState:
    """What all tests of a run share: the app's own modules, and the apps in them.

    Args:
        packages: The packages whose modules are looked at.
        left_out: Names of modules that are not, such as those of the tests.
    """

    def __init__(self, packages: frozenset[str], left_out: frozenset[str]) -> None:
        self._packages = packages
        self._left_out = left_out
        self._picture = Picture({})
        self._apps: dict[str, tuple[Any, dict[str, dict[Any, Any]]]] = {}

    def look(self) -> None:
        """Remember how everything looks now."""
        modules = self._modules()
        if modules.keys() != self._picture.modules.keys():
            self._picture = Picture(modules)
        else:
            self._picture.compare()  # from now on it is this that it compares with
        memo: dict[int, Any] = {}
        self._apps = {
            path: (app, copy_plain(_parts_of(app), memo)) for path, app in _apps_in(modules)
        }

    def changes(self) -> list[Difference]:
        """Return what has changed since then."""
        found = self._picture.compare()
        overridden: list[Difference] = []
        for path, (app, before) in self._apps.items():
            for part, now in _parts_of(app).items():
                then = before.get(part, {})
                for key in [*then, *(key for key in now if key not in then)]:
                    values = then.get(key, ABSENT), now.get(key, ABSENT)
                    if part == "state":
                        found += compare_value(f"{path}.state.{key}", *values)
                    else:
                        overridden += compare_value(_item(path, part, key), *values)
        return [one for one in found if is_left_behind(one, self._packages)] + overridden

    def _modules(self) -> dict[str, ModuleType]:
        return {
            name: module
            for name in list(sys.modules)
            if name.partition(".")[0] in self._packages
            and name not in self._left_out
            and type(module := plain(name)) is ModuleType
        }


class SandboxState:
    """What requests leave in one sandbox, as opposed to what its test does to it.

    Attributes:
        left: What they have left so far.
    """

    def __init__(self, sandbox: Any) -> None:
        self._sandbox = sandbox
        self._in_flight = 0
        self._known: set[tuple[str, str]] = set()
        self._modules: dict[str, ModuleType] = dict(getattr(sandbox, "modules", {}))
        self._picture = Picture(self._modules)
        self._packages = frozenset(name.partition(".")[0] for name in self._modules)
        self.left: list[Difference] = []

    def begin(self) -> None:
        """Note that a request begins: what differs now is the test's own doing."""
        if not self._in_flight:
            self._picture.compare()
            self._known.update(map(_key, self._in_app()))
        self._in_flight += 1

    def end(self) -> None:
        """Note that a request is over."""
        self._in_flight -= 1
        for one in [*self._in_app(), *self._picture.compare()]:
            if _key(one) not in self._known and is_left_behind(one, self._packages):
                self._known.add(_key(one))
                self.left.append(one)

    def _in_app(self) -> Iterator[Difference]:
        if isinstance(self._sandbox, AppSandbox):
            yield from changed_in_app(self._sandbox)


def is_left_behind(one: Difference, packages: frozenset[str]) -> bool:
    """Tell whether a difference can matter to somebody else.

    What is imported or made at its first use is the same for whoever comes next: a module, or an
    object of a library where nothing was before.
    """
    if isinstance(one.after, ModuleType) or "__" in one.path.rpartition(".")[2]:
        return False
    cls = type(one.after)
    own = cls.__module__.partition(".")[0] in packages
    return not (one.before in (ABSENT, None) and cls not in _DATA and not own) or cls is type(
        ABSENT
    )


def report(parts: Mapping[Where, Iterable[Difference]], ignored: Iterable[str]) -> str:
    """Return what to say about a test, nothing if it has left nothing behind.

    Args:
        parts: What it has left, in the modules and in its sandbox.
        ignored: The names of leaks that are none.
    """
    names, shown, lines = Names(ignored), Shown(), []
    for where, differences in parts.items():
        leaks = [
            Leak(
                path=shown.text(one.path),
                kind=one.kind,
                where=where,
                before="" if one.before is ABSENT else shown.value(one.before, one.path),
                after="" if one.after is ABSENT else shown.value(one.after, one.path),
            )
            for one in differences
            if one.path not in names
        ]
        if leaks:
            lines.append(
                "what all tests share is not as it was before this one:"
                if where == "modules"
                else "its requests have left in their sandbox, for whoever comes without one:"
            )
            lines += [f"  {leak}" for leak in leaks[:_SHOWN_AT_MOST]]
            if len(leaks) > _SHOWN_AT_MOST:
                lines.append(f"  and {len(leaks) - _SHOWN_AT_MOST} more")
    return "\n".join([*lines, _UNDO]) if lines else ""


def _apps_in(modules: Mapping[str, ModuleType]) -> Iterator[tuple[str, Any]]:
    seen: set[int] = set()
    for name, module in modules.items():
        for attribute, value in list(vars(module).items()):
            # An app that is wrapped stands for the one inside.
            app = value.app if type(value).__name__ == "SandboxedApp" else value
            if id(app) not in seen and any(adapter.is_app(app) for adapter in adapters()):
                seen.add(id(app))
                yield f"{name}.{attribute}", app


def _parts_of(app: Any) -> dict[str, dict[Any, Any]]:
    """Return what an app has for everybody to write to, by name."""
    values = getattr_dict(app) or {}
    parts: dict[str, dict[Any, Any]] = {}
    for adapter in adapters():
        if adapter.is_state(values.get("state")):
            parts["state"] = dict(adapter.state_dict(values["state"]))
            break
    parts["dependency_overrides"] = dict(values.get("dependency_overrides") or {})
    return parts


def _item(path: str, part: str, key: Any) -> str:
    return f"{path}.{part}[{getattr(key, '__qualname__', repr(key))}]"


def _key(one: Difference) -> tuple[str, str]:
    return one.path, Shown(hides_secrets=False).value(one.after)
