"""The dict behind `app.state` and `scope["state"]` of a sandbox.

It shows every key of its source at once and copies a plain container only when that container
is first read, so an idle sandbox costs no copies and a reset is "drop it and start again".
"""

from __future__ import annotations

import threading
from collections.abc import ItemsView, Iterator, KeysView, Mapping, ValuesView
from typing import Any, SupportsIndex

from sandboxpool._context import RequestLease, current
from sandboxpool._exceptions import LeaseEndedError

from ._data import CONTAINERS, copy_plain


class _Pending:
    """Stands for a container that nobody has read in this lease yet."""

    __slots__ = ("original",)

    def __init__(self, original: Any) -> None:
        self.original = original

    def __repr__(self) -> str:
        return "<not copied yet>"


_ABSENT = object()
_copying = threading.RLock()
_get = dict.__getitem__
_set = dict.__setitem__


class LeaseMemo:
    """What the states of one sandbox have in common during one lease.

    Attributes:
        copies: Private copies made so far, by the id of the original.
        originals: Keeps alive what `copies` knows by its id.
        lease: What the context variable held when the states were last checked.
        touched: Whether anything was read or written.
        ended: Whether the lease is over; whoever still holds a state then gets an error.
        owner: The factory of the sandbox.
        shared: What stays shared by name.
    """

    __slots__ = ("copies", "ended", "lease", "originals", "owner", "shared", "touched")

    def __init__(self, owner: object, shared: SharedNames) -> None:
        self.copies: dict[int, Any] | None = None
        self.originals: list[Any] | None = None
        self.lease: RequestLease | None = None
        self.touched = False
        self.ended = False
        self.owner = owner
        self.shared = shared

    def check(self) -> None:
        """Raise `LeaseEndedError` for code that outlived its lease; note who is here now."""
        if not self.ended:
            top = lease = current.get()
            while lease is not None:
                if lease.owner is self.owner:
                    lease.check_open()
                    break
                lease = lease.parent
            self.lease = top
            self.touched = True
            return
        raise LeaseEndedError(
            "this state belongs to a lease that has ended: the sandbox serves other requests "
            "now. Read what you need from app.state before the request ends."
        )

    def copy(self, value: Any) -> Any:
        """Return the private copy of *value* for this lease."""
        return copy_plain(value, self.know(value))

    def know(self, original: Any) -> dict[int, Any]:
        """Keep *original* alive; return the copies, where its id may be used from now on."""
        if self.copies is None or self.originals is None:
            self.copies, self.originals = {}, []
        self.originals.append(original)
        return self.copies


class SharedNames:
    """The `share=` names below a state, as paths of keys."""

    __slots__ = ("paths",)

    def __init__(self, paths: tuple[tuple[str, ...], ...] = ()) -> None:
        self.paths = paths

    def seed(self, source: Mapping[str, Any], memo: LeaseMemo) -> None:
        """Make the memo hand out the originals of all that is shared by name."""
        for path in self.paths:
            value: Any = source
            for key in path:
                if isinstance(value, Mapping) and key in value:
                    value = value[key]
                else:
                    value = getattr(value, key, None)
            if type(value) in CONTAINERS:
                memo.know(value)[id(value)] = value


class PrivateDict(dict[str, Any]):
    """A dict with private copies of the plain containers in its source.

    Every access asks first whether the code that makes it belongs to the running lease. All
    methods are overridden, `__iter__` above all: with an `__iter__` of its own, CPython's
    `dict(x)` and `{**x}` read a dict subclass through `keys()` and `[]`, and so get the
    private copies too.
    """

    __slots__ = ("_filled", "_memo", "_source", "_through")

    def __init__(
        self,
        memo: LeaseMemo,
        source: dict[str, Any],
        through: dict[str, Any] | None = None,
    ) -> None:
        self._memo = memo
        self._source = source
        self._through = through
        self._filled = False

    def _open(self) -> None:
        memo = self._memo
        if current.get() is not memo.lease or not memo.touched or memo.ended:
            memo.check()
        if not self._filled:
            self._fill()

    def _fill(self) -> None:
        memo, source = self._memo, self._source
        if memo.shared.paths:
            memo.shared.seed(source, memo)
        for key, value in source.items():
            # A key that survived the last reset (`keep=`) is there already.
            if key not in dict.keys(self):
                _set(self, key, _Pending(value) if type(value) in CONTAINERS else value)
        # Last, so that no other thread of the request meets a dict that is half full.
        self._filled = True

    def _resolve(self, key: str) -> Any:
        # Two threads of one request must get one copy, not one each.
        with _copying:
            value = _get(self, key)
            if type(value) is _Pending:
                value = self._memo.copy(value.original)
                _set(self, key, value)
        return value

    def _resolve_all(self) -> None:
        for key in [key for key, value in dict.items(self) if type(value) is _Pending]:
            self._resolve(key)

    @property
    def idle(self) -> bool:
        """Whether nobody has looked into it yet."""
        return not self._filled

    def use(self, memo: LeaseMemo) -> None:
        """Serve the next lease, since nobody has looked into it in this one."""
        self._memo = memo

    def peek(self, key: str) -> tuple[bool, Any]:
        """Return whether this lease has read or written *key*, and its value then."""
        value = dict.get(self, key, _ABSENT)
        return value is not _ABSENT and type(value) is not _Pending, value

    def carry(self, key: str, value: Any) -> None:
        """Set *key* from the lease before this one."""
        _set(self, key, value)

    # -- reading ---------------------------------------------------------------------------

    def __getitem__(self, key: str) -> Any:
        self._open()
        value = _get(self, key)
        return self._resolve(key) if type(value) is _Pending else value

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of *key*, or *default*."""
        self._open()
        value = dict.get(self, key, default)
        return self._resolve(key) if type(value) is _Pending else value

    def __contains__(self, key: object) -> bool:
        self._open()
        return dict.__contains__(self, key)

    def __iter__(self) -> Iterator[str]:
        self._open()
        return dict.__iter__(self)

    def __reversed__(self) -> Iterator[str]:
        self._open()
        return dict.__reversed__(self)

    def __len__(self) -> int:
        self._open()
        return dict.__len__(self)

    def __bool__(self) -> bool:
        return len(self) > 0

    def keys(self) -> KeysView[str]:  # type: ignore[override]
        """Return a live view of the keys."""
        self._open()
        return dict.keys(self)

    def values(self) -> ValuesView[Any]:  # type: ignore[override]
        """Return a live view of the values, all private."""
        self._open()
        self._resolve_all()
        return dict.values(self)

    def items(self) -> ItemsView[str, Any]:  # type: ignore[override]
        """Return a live view of the items, all private."""
        self._open()
        self._resolve_all()
        return dict.items(self)

    def copy(self) -> dict[str, Any]:
        """Return a plain dict with the same, private values."""
        return dict(self.items())

    def __copy__(self) -> dict[str, Any]:
        return self.copy()

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        # Pickled or deep-copied it is the plain dict that it stands for.
        return dict, (self.copy(),)

    def __repr__(self) -> str:
        return repr(self.copy())

    def __eq__(self, other: object) -> bool:
        return self.copy() == (other.copy() if isinstance(other, PrivateDict) else other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = None

    def __or__(self, other: Any) -> Any:
        return self.copy() | other

    def __ror__(self, other: Any) -> Any:
        return other | self.copy()

    # -- writing ---------------------------------------------------------------------------

    def __setitem__(self, key: str, value: Any) -> None:
        self._open()
        _set(self, key, value)
        if self._through is not None:
            self._through[key] = value

    def __delitem__(self, key: str) -> None:
        self._open()
        dict.__delitem__(self, key)
        if self._through is not None:
            self._through.pop(key, None)

    def pop(self, key: str, *default: Any) -> Any:
        """Remove *key* and return its value."""
        if key in self:
            value = self[key]
            del self[key]
            return value
        if default:
            return default[0]
        raise KeyError(key)

    def popitem(self) -> tuple[str, Any]:
        """Remove and return the item that was added last."""
        for key in reversed(self):
            return key, self.pop(key)
        raise KeyError("popitem(): dictionary is empty")

    def clear(self) -> None:
        """Remove everything."""
        for key in list(self):
            del self[key]

    def setdefault(self, key: str, default: Any = None) -> Any:
        """Return the value of *key*; without one, store and return *default*."""
        if key not in self:
            self[key] = default
        return self[key]

    def update(self, *args: Any, **more: Any) -> None:
        """Store several values."""
        for key, value in dict(*args, **more).items():
            self[key] = value

    def __ior__(self, other: Any) -> Any:
        self.update(other)
        return self
