"""Put private objects back to how they were, exactly and cheaply.

Nothing is written that has not changed: a write to the `__dict__` of an object, even of what is
there already, makes the interpreter's inline caches miss in the next request, which costs more
than the whole comparison. What belongs to the framework alone is compared in one instruction, on
one flat list of references. What a user's class may have done anything to is compared by
identity: equality would call foreign `__eq__` methods and miss `True` in place of `1`.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from gc import get_referents
from operator import is_not, itemgetter
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ._plan import Plan

Expected = Callable[[int], dict[str, Any]]


class Calm:
    """What of a sandbox hardly anybody but the framework changes.

    `gc.get_referents()` shows what objects and containers refer to, all in one flat list, and
    without making a `__dict__` for an object that has none yet. Equality of these lists, which
    begins with identity, is proof enough, but for numbers: `1` equals `True`. String keys are not
    shown: a key that took the place of another is the last one of its dict. A deleted attribute
    of an object without a `__dict__` whose place another one takes, with the same value, goes
    unseen; the frameworks, to whose classes alone this applies, never delete any.
    """

    __slots__ = (
        "_empty", "_getter", "_known", "_lasts", "_new", "_numbers", "_plan", "_targets", "_then",
    )  # fmt: skip

    def __init__(self, plan: Plan, new: list[Any]) -> None:
        self._plan = plan
        self._new = new
        self._known = plan.known_of(new)
        self._empty = plan.empty_of(new)
        self._targets = plan.targets_of(new)
        then = self._then = get_referents(*self._targets)
        self._lasts = plan.lasts
        if plan.getter is None:
            plan.getter = numbers_in(then)
            plan.numbers = plan.getter(then)
        self._getter = plan.getter
        numbers = self._getter(then)
        self._numbers = numbers if any(map(is_not, numbers, plan.numbers)) else plan.numbers

    def changed(self) -> bool:
        """Tell whether anything differs."""
        if any(self._empty):
            return True
        now = get_referents(*self._targets)
        try:
            if now != self._then:
                return True
        except Exception:
            # The `__eq__` of a value that was not there before.
            return True
        if any(map(is_not, self._getter(now), self._numbers)):
            return True
        place = 0
        for last in self._lasts:
            if next(reversed(self._targets[place])) is not last:
                return True
            place += 1  # noqa: SIM113 - every request comes by here, and `enumerate()` costs more
        return False

    def put_back(self, expected: Expected) -> None:
        """Write what differs."""
        plan, new = self._plan, self._new
        dicts: list[Any] = []
        for index in plan.nodes:
            values = object.__getattribute__(new[index], "__dict__")
            write_attributes(values, expected(index))
            dicts.append(values)
        for index, known in zip(plan.full, self._known, strict=True):
            write_content(new[index], known)
        for container in self._empty:
            container.clear()
        # From here on all objects have a `__dict__`, and that is where their references are.
        dicts += [new[index] for index in plan.keyed]
        dicts = [values for values in dicts if values]
        self._lasts = [next(reversed(values)) for values in dicts]
        self._targets = (*dicts, *plan.separated(new))
        self._then = get_referents(*self._targets)
        self._getter = numbers_in(self._then)
        self._numbers = self._getter(self._then)

    def swap(self, old: Any, new: Any, place: int) -> int:
        """Expect *new* instead of *old* from now on; return its place, which is a hint."""
        then = self._then
        if place >= len(then) or then[place] is not old:
            places = (at for at, value in enumerate(then) if value is old)
            place = next(places, -1)
        if place >= 0:
            then[place] = new
        return place


class Wild:
    """What may have been changed in any way, with snapshots of it.

    Attributes:
        snapshots: The attributes of each object, by the id of its `__dict__`.
    """

    __slots__ = ("_namespaces", "_owners", "_slots", "_written", "snapshots")

    def __init__(self) -> None:
        self.snapshots: dict[int, dict[str, Any]] = {}
        self._namespaces: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._written: list[tuple[Any, Any]] = []
        self._owners: list[tuple[Any, dict[str, Any]]] = []
        self._slots: list[tuple[Any, str, bool, Any]] = []

    def watch_dict(self, values: dict[str, Any]) -> None:
        """Remember the attributes of an object, given its `__dict__`."""
        snapshot = self.snapshots[id(values)] = dict(values)
        self._namespaces.append((values, snapshot))

    def watch_owner(self, owner: Any, values: dict[str, Any]) -> None:
        """Remember which dict the attributes of a user's object are in: it may swap that, too."""
        self._owners.append((owner, values))

    def watch_slot(self, owner: Any, name: str) -> None:
        """Remember an attribute that lives in a slot."""
        try:
            self._slots.append((owner, name, True, object.__getattribute__(owner, name)))
        except AttributeError:
            self._slots.append((owner, name, False, None))

    def watch_container(self, container: Any) -> None:
        """Remember the content of a mutable container."""
        if type(container) is SimpleNamespace:
            self.watch_dict(vars(container))
        else:
            self._written.append((container, container.copy()))

    @property
    def used(self) -> bool:
        """Whether there is anything to put back."""
        return bool(self._namespaces or self._written or self._slots)

    def swap(self, owner: Any, key: str, value: Any) -> None:
        """Expect another value of an attribute from now on."""
        snapshot = self.snapshots.get(id(object.__getattribute__(owner, "__dict__")))
        if snapshot is not None:
            snapshot[key] = value

    def restore(self) -> None:
        """Put everything back."""
        for owner, values in self._owners:
            if object.__getattribute__(owner, "__dict__") is not values:
                object.__setattr__(owner, "__dict__", values)
        for values, snapshot in self._namespaces:
            if (
                len(values) != len(snapshot)
                or any(map(is_not, values.values(), snapshot.values()))
                or any(map(is_not, values, snapshot))
            ):
                write_attributes(values, snapshot)
        for container, snapshot in self._written:
            # Data, not code, refers to these, so no cache minds a write.
            if container or snapshot:
                write_content(container, snapshot)
        for owner, name, present, value in self._slots:
            if present:
                object.__setattr__(owner, name, value)
            else:
                try:
                    object.__delattr__(owner, name)
                except AttributeError:
                    continue


def numbers_in(values: list[Any]) -> Callable[[list[Any]], tuple[Any, ...]]:
    """Return a function that picks the numbers in a list that is laid out like *values*."""
    places = [at for at, value in enumerate(values) if isinstance(value, (int, float, complex))]
    # With at least two places the result is always a tuple.
    getter: Callable[[list[Any]], tuple[Any, ...]] = itemgetter(*places, 0, 0)
    return getter


def write_attributes(values: dict[str, Any], snapshot: dict[str, Any]) -> None:
    """Make a `__dict__` like its snapshot, and touch no more of it than necessary."""
    for key in [key for key in values if key not in snapshot]:
        del values[key]
    if list(values) != list(snapshot):
        values.clear()
        values.update(snapshot)
        return
    for key, value in snapshot.items():
        if values[key] is not value:
            values[key] = value


def write_content(container: Any, snapshot: Any) -> None:
    """Make a container like its snapshot."""
    _WRITERS.get(type(container), _write_mapping)(container, snapshot)


def _write_list(container: Any, snapshot: Any) -> None:
    container[:] = snapshot


def _write_mapping(container: Any, snapshot: Any) -> None:
    # Also for `Counter`, whose own `update` adds, and for subclasses that do more on a write.
    dict.clear(container)
    dict.update(container, snapshot)


def _write_set(container: Any, snapshot: Any) -> None:
    container.clear()
    container.update(snapshot)


def _write_deque(container: deque[Any], snapshot: deque[Any]) -> None:
    container.clear()
    container.extend(snapshot)


_WRITERS: dict[type, Callable[[Any, Any], None]] = {
    list: _write_list,
    bytearray: _write_list,
    OrderedDict: _write_set,
    set: _write_set,
    deque: _write_deque,
}
