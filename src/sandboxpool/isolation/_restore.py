"""Put private objects back to how they were, exactly and cheaply.

What a user's class may have done anything to is put back by writing, without comparing: a
comparison would call foreign `__eq__` methods and miss `True` in place of `1`. What belongs to
the framework alone, and hardly ever changes, is compared in bulk first, in C, by identity.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, deque
from collections.abc import Callable
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

_NOTHING: dict[type, Any] = {}
_clear = dict.clear
_update = dict.update


class Restorer:
    """Knows what a set of private objects looked like when it was made."""

    __slots__ = ("_calm", "_calm_flat", "_calm_views", "_empty", "_flat", "_full", "_nothing",
                 "_quiet", "_quiet_full", "_slots", "_wild", "snapshots")  # fmt: skip

    def __init__(self) -> None:
        self.snapshots: dict[int, dict[str, Any]] = {}
        self._wild: list[tuple[Any, dict[str, Any], dict[str, Any]]] = []
        self._calm: list[tuple[dict[str, Any], dict[str, Any]]] = []
        self._calm_views: list[Any] = []
        self._calm_flat: list[Any] = []
        self._flat: Callable[..., list[Any]] = _flattener(0)
        self._empty: list[Any] = []
        self._nothing: list[Any] = []
        self._full: list[tuple[Callable[[Any, Any], None], Any, Any]] = []
        self._quiet: list[Any] = []
        self._quiet_full: list[Any] = []
        self._slots: list[tuple[Any, str, bool, Any]] = []

    def watch_dict(self, values: dict[str, Any], *, calm: bool) -> None:
        """Remember the attributes of an object.

        Args:
            values: The `__dict__` of the object.
            calm: Whether only the framework's own code is expected to change it.
        """
        snapshot: dict[str, Any] = {}
        # Filled in one go, so that the table is compact and copying it back is one memcpy.
        snapshot.update(values)
        self.snapshots[id(values)] = snapshot
        if calm:
            self._calm.append((values, snapshot))
        else:
            self._wild.append((values, snapshot, snapshot))

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
            return
        if not container:
            self._empty.append(container)
            if cls not in _NOTHING:
                _NOTHING[cls] = cls() if cls in _WRITERS else {}
            self._nothing.append(_NOTHING[cls])
            return
        snapshot = _COPY.get(cls, cls.copy)(container)
        if calm:
            self._quiet.append(container)
            self._quiet_full.append(snapshot)
        else:
            self._full.append((_WRITERS.get(cls, _write_mapping), container, snapshot))

    def seal(self) -> None:
        """Finish, after the last `watch_` call."""
        self._calm_views = [values.values() for values, _ in self._calm]
        self._flat = _flattener(len(self._calm_views))
        self._calm_flat = self._flat(*self._calm_views)

    def replace(self, values: dict[str, Any], key: str, value: Any) -> None:
        """Change an attribute now and for every restore to come."""
        values[key] = value
        self.snapshots[id(values)][key] = value
        if any(values is calm for calm, _ in self._calm):
            self.seal()

    def restore(self) -> None:
        """Put everything back."""
        for values, snapshot, _ in self._wild:
            # An update of an empty dict copies the whole table at once: several times faster
            # than an update in place, and it drops what was added.
            values.clear()
            values.update(snapshot)
        try:
            changed = self._flat(*self._calm_views) != self._calm_flat
        except Exception:
            changed = True
        if changed:
            for values, snapshot in self._calm:
                _clear(values)
                _update(values, snapshot)
        if self._empty != self._nothing:
            for container in self._empty:
                container.clear()
        for write, container, snapshot in self._full:
            write(container, snapshot)
        if self._quiet:
            try:
                changed = self._quiet != self._quiet_full
            except Exception:
                changed = True
            if changed:
                for container, snapshot in zip(self._quiet, self._quiet_full, strict=True):
                    _WRITERS.get(type(container), _write_mapping)(container, snapshot)
        for owner, name, present, value in self._slots:
            if present:
                object.__setattr__(owner, name, value)
            else:
                try:
                    object.__delattr__(owner, name)
                except AttributeError:
                    pass


def _write_list(container: Any, snapshot: Any) -> None:
    container[:] = snapshot


def _write_mapping(container: Any, snapshot: Any) -> None:
    _clear(container)
    _update(container, snapshot)


def _write_ordered(container: OrderedDict[Any, Any], snapshot: OrderedDict[Any, Any]) -> None:
    container.clear()
    container.update(snapshot)


def _write_set(container: set[Any], snapshot: set[Any]) -> None:
    container.clear()
    container.update(snapshot)


def _write_deque(container: deque[Any], snapshot: deque[Any]) -> None:
    container.clear()
    container.extend(snapshot)


_WRITERS: dict[type, Callable[[Any, Any], None]] = {
    list: _write_list,
    bytearray: _write_list,
    dict: _write_mapping,
    Counter: _write_mapping,
    OrderedDict: _write_ordered,
    set: _write_set,
    deque: _write_deque,
}
_COPY: dict[type, Callable[[Any], Any]] = {}


@lru_cache(maxsize=256)
def _flattener(count: int) -> Callable[..., list[Any]]:
    """Return a function that joins *count* iterables into one list, in one instruction each."""
    names = [f"v{number}" for number in range(count)]
    body = ", ".join(f"*{name}" for name in names)
    source = f"def flat({', '.join(names)}): return [{body}]"
    space: dict[str, Any] = {}
    exec(source, space)
    flat: Callable[..., list[Any]] = space["flat"]
    return flat
