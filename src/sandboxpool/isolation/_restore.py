"""Put private objects back to how they were, exactly and cheaply.

What a user's class may have done anything to is put back by writing, without comparing: a
comparison would call foreign `__eq__` methods and miss `True` in place of `1`. What belongs to
the framework alone, and hardly ever changes, is compared first, all of it in one instruction.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any


class Restorer:
    """Knows what a set of private objects looked like when it was made.

    Attributes:
        snapshots: The attributes of each object, by the id of its `__dict__`.
    """

    __slots__ = ("_calm", "_known", "_lists", "_owners", "_slots", "_wild", "_written", "snapshots")

    def __init__(self) -> None:
        self.snapshots: dict[int, dict[str, Any]] = {}
        self._wild: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._written: list[tuple[Callable[[Any, Any], None], Any, Any]] = []
        self._lists: list[tuple[list[Any], list[Any]]] = []
        self._owners: list[tuple[Any, dict[str, Any]]] = []
        self._calm: list[Any] = []
        self._known: list[Any] = []
        self._slots: list[tuple[Any, str, bool, Any]] = []

    def watch_dict(self, values: dict[str, Any], *, calm: bool) -> None:
        """Remember the attributes of an object.

        Args:
            values: The `__dict__` of the object.
            calm: Whether equality with the old attributes is proof enough.
        """
        snapshot: dict[str, Any] = {}
        # Filled in one go, so that the table is compact and copying it back is one memcpy.
        snapshot.update(values)
        self.snapshots[id(values)] = snapshot
        if calm:
            self._calm.append(values)
            self._known.append(snapshot)
        else:
            self._wild.append((values, snapshot))

    def watch_owner(self, owner: Any, values: dict[str, Any]) -> None:
        """Remember which dict the attributes of a user's object are in: it may swap that, too."""
        self._owners.append((owner, values))

    def watch_slot(self, owner: Any, name: str) -> None:
        """Remember an attribute that lives in a slot."""
        try:
            self._slots.append((owner, name, True, object.__getattribute__(owner, name)))
        except AttributeError:
            self._slots.append((owner, name, False, None))

    def watch_container(self, container: Any, *, calm: bool) -> None:
        """Remember the content of a mutable container.

        Args:
            container: The container.
            calm: Whether equality with the old content is proof enough.
        """
        cls = type(container)
        if cls is SimpleNamespace:
            self.watch_dict(vars(container), calm=False)
        elif not container:
            # Only something empty equals it, so this comparison is exact for everybody.
            self._calm.append(container)
            self._known.append(_EMPTY.get(cls, {}))
        elif calm:
            self._calm.append(container)
            self._known.append(container.copy())
        elif cls is list:
            self._lists.append((container, container.copy()))
        else:
            write = _WRITERS.get(cls, _write_mapping)
            self._written.append((write, container, container.copy()))

    def restore(self) -> None:
        """Put everything back."""
        if self._owners:
            self._restore_owners()
        for values, snapshot in self._wild:
            # An update of an empty dict copies the whole table at once: several times faster
            # than an update in place, and what was added is gone.
            values.clear()
            values.update(snapshot)
        for items, old in self._lists:
            items[:] = old
        for write, container, snapshot in self._written:
            write(container, snapshot)
        try:
            changed = self._calm != self._known
        except Exception:
            changed = True
        if changed:
            for container, snapshot in zip(self._calm, self._known, strict=True):
                _WRITERS.get(type(container), _write_mapping)(container, snapshot)
        if self._slots:
            self._restore_slots()

    def _restore_owners(self) -> None:
        for owner, values in self._owners:
            if object.__getattribute__(owner, "__dict__") is not values:
                object.__setattr__(owner, "__dict__", values)

    def _restore_slots(self) -> None:
        for owner, name, present, value in self._slots:
            if present:
                object.__setattr__(owner, name, value)
            else:
                try:
                    object.__delattr__(owner, name)
                except AttributeError:
                    continue


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
_EMPTY: dict[type, Any] = {
    list: [],
    bytearray: bytearray(),
    OrderedDict: OrderedDict(),
    set: set(),
    deque: deque(),
}
