"""Values are nobody's shared mutable state by accident: copied, frozen, or shared by choice."""

from __future__ import annotations

import copy
import datetime
import decimal
import enum
import json
import pathlib
import pickle
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import attrs
import pytest

from sandboxpool import Cache, CacheValueError
from sandboxpool.cache._values import Pickled

Make = Callable[..., Cache]


class Colour(enum.Enum):
    RED = "red"


class Point(NamedTuple):
    x: int
    tags: Any


@dataclass(frozen=True)
class Frozen:
    name: str
    tags: Any = ()


@dataclass
class Loose:
    tags: list[str] = field(default_factory=list)


@attrs.frozen
class FrozenAttrs:
    name: str
    tags: Any = ()


class Breaks:
    """What was stored by another version of the code: it can be written, but not read."""

    def __reduce__(self) -> Any:
        return _break, ()


def _break() -> None:
    raise AttributeError("no such class any more")


async def test_shared_values_are_shared(make: Make, store: Any) -> None:
    """The control: with `values="share"` one reader changes what another one gets."""
    if store is not None:
        pytest.skip("nothing in Redis can be shared")
    cache = make(values="share")
    await cache.set("key", {"tags": []})
    (await cache.get("key"))["tags"].append("mine")
    assert await cache.get("key") == {"tags": ["mine"]}


async def test_copies_are_private(make: Make) -> None:
    """By default neither the writer, nor the resolver, nor any reader can change the value."""
    cache = make()
    mine: dict[str, Any] = {"tags": [], "loose": Loose(["a"])}
    await cache.set("key", mine)
    mine["tags"].append("written later")
    first = await cache.get("key")
    first["tags"].append("changed by a reader")
    first["loose"].tags.clear()
    assert await cache.get("key") == {"tags": [], "loose": Loose(["a"])}
    module_global: list[int] = [1]
    resolved = await cache.get_or_set("other", lambda: module_global)
    resolved.append(2)
    module_global.append(3)
    assert await cache.get("other") == [1]
    assert cache.blocking.get("other") == [1]


async def test_frozen_values_refuse_changes(make: Make) -> None:
    """Frozen values equal what was stored, read like it, and refuse to be changed."""
    cache = make(values="frozen")
    mine: dict[str, Any] = {"list": [1, {"set": {2}}], "bytes": bytearray(b"x"), "tuple": (1, [2])}
    await cache.set("key", mine)
    mine["list"].append(3)
    got = await cache.get("key")
    assert got == {"list": [1, {"set": {2}}], "bytes": b"x", "tuple": (1, [2])}
    assert isinstance(got, dict)
    assert isinstance(got["list"], list)
    assert json.dumps(got["list"][:1]) == "[1]"
    changes: list[Callable[[], object]] = [
        lambda: got.update(a=1),
        lambda: got.__setitem__("a", 1),
        lambda: got.__delitem__("list"),
        lambda: got.pop("list"),
        lambda: got.popitem(),
        lambda: got.setdefault("a", 1),
        lambda: got.clear(),
        lambda: got.__ior__({"a": 1}),
        lambda: got["list"].append(1),
        lambda: got["list"].extend([1]),
        lambda: got["list"].insert(0, 1),
        lambda: got["list"].pop(),
        lambda: got["list"].remove(1),
        lambda: got["list"].reverse(),
        lambda: got["list"].sort(),
        lambda: got["list"].clear(),
        lambda: got["list"].__setitem__(0, 1),
        lambda: got["list"].__delitem__(0),
        lambda: got["list"].__iadd__([1]),
        lambda: got["list"].__imul__(2),
        lambda: got["list"][1].update(a=1),
        lambda: got["tuple"][1].append(1),
    ]
    for change in changes:
        with pytest.raises(TypeError, match=r"shared by all readers of a cache.*change a copy"):
            change()
    assert await cache.get("key") == got


async def test_frozen_values_are_one(make: Make, store: Any) -> None:
    """In memory all readers of a frozen value get the same object, without a copy."""
    if store is not None:
        pytest.skip("what comes over the network is a new object each time")
    cache = make(values="frozen")
    first = await cache.get_or_set("key", lambda: {"a": [1]})
    assert await cache.get("key") is first


async def test_copies_of_frozen_values_can_be_changed(make: Make) -> None:
    """A copy of a frozen value is a plain one, however it is made."""
    cache = make(values="frozen")
    got = await cache.get_or_set("key", lambda: {"a": [1]})
    made: Any
    for made in (dict(got), got.copy(), copy.copy(got)):
        made["b"] = 2
        assert type(made) is dict
    for deep in (copy.deepcopy(got), pickle.loads(pickle.dumps(got))):
        deep["a"].append(2)
        assert deep == {"a": [1, 2]}
    for part in (got["a"].copy(), copy.copy(got["a"])):
        part.append(2)
    assert got == {"a": [1]}


@pytest.mark.parametrize(
    "value",
    [
        Colour.RED, Frozen("a", ("b",)), FrozenAttrs("a", frozenset({1})), Point(1, (2,)),
        datetime.datetime(2026, 1, 2, tzinfo=datetime.timezone.utc), datetime.timedelta(1),
        decimal.Decimal("1.5"), uuid.UUID(int=7), pathlib.PurePosixPath("/a"), range(3), int,
        Frozen("a", Frozen("b")),
    ],
    ids=repr,
)  # fmt: skip
async def test_what_is_frozen_stays_as_it_is(make: Make, value: Any) -> None:
    """Immutable objects can be stored frozen, and come back as they are."""
    cache = make(values="frozen")
    await cache.set("key", [value])
    got = (await cache.get("key"))[0]
    assert got == value
    assert type(got) is type(value)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1, {"a": Loose()}], r"has a Loose at \[1\]\['a'\], which cannot be frozen.*'copy'"),
        (Loose(), r"'key' has a Loose, which cannot be frozen"),
        (Frozen("a", ["b"]), r"has a list at .tags, which can be changed although"),
        (FrozenAttrs("a", Frozen("b", {})), r"has a dict at .tags.tags, which can be changed"),
        ({(n for n in "")}, r"has a generator at \{...\}, which cannot be frozen"),
    ],
    ids=["deep", "top", "in a frozen dataclass", "in frozen attrs", "in a set"],
)
async def test_what_cannot_be_frozen(make: Make, value: Any, message: str) -> None:
    """What could be changed is refused, with the place where it is."""
    with pytest.raises(CacheValueError, match=message):
        await make(values="frozen").set("key", value)


async def test_what_contains_itself(make: Make) -> None:
    """A value that contains itself is copied, and cannot be frozen."""
    value: list[Any] = [1]
    value.append(value)
    with pytest.raises(CacheValueError, match=r"contains itself \(at \[1\]\)"):
        await make(values="frozen").set("key", value)
    cache = make()
    await cache.set("key", value)
    got = await cache.get("key")
    assert got[1] is got


async def test_what_cannot_be_copied(make: Make) -> None:
    """What cannot be pickled is refused, and what was stored before stays."""
    cache = make()
    await cache.set("key", 1)
    with pytest.raises(CacheValueError, match=r"'key', a generator, cannot be copied.*'share'"):
        await cache.set("key", (n for n in ""))
    assert await cache.get("key") == 1


async def test_what_was_written_by_other_code(make: Make) -> None:
    """A value that cannot be read any more is resolved anew, and an error for plain reads."""
    cache = make()
    await cache.set("key", Breaks())
    with pytest.raises(CacheValueError, match=r"'key' cannot be read any more .*Delete it"):
        await cache.get("key")
    assert await cache.get_or_set("key", lambda: "new") == "new"
    with pytest.raises(CacheValueError, match="cannot be read any more"):
        await cache.get_or_set("other", Breaks)


async def test_plain_values_are_not_pickled(make: Make, store: Any) -> None:
    """Text, numbers and bytes need no copy, and are stored as they are in memory."""
    if store is not None:
        pytest.skip("about memory")
    cache = make()
    for value in ("text", 7, b"bytes", None):
        packed, _ = cache._shared.packing.pack("key", value)
        assert packed is value
    assert type(cache._shared.packing.pack("key", ["text"])[0]) is Pickled
