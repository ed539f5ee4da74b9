"""`app.state` of a sandbox: lazily private, dead after its lease."""

from __future__ import annotations

import copy
import json
import pickle
import threading
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from starlette.applications import Starlette
from starlette.datastructures import State
from starlette.requests import Request
from starlette.responses import JSONResponse

from sandboxpool import LeaseEndedError
from sandboxpool.isolation._state import LeaseMemo, PrivateDict, SharedNames
from sandboxpool.isolation.clone import CloneFactory

from .driver import Driver


def private(source: dict[str, Any], *, share: tuple[tuple[str, ...], ...] = ()) -> PrivateDict:
    return PrivateDict(LeaseMemo(object(), SharedNames(share)), source)


def updated(state: dict[str, Any]) -> dict[str, Any]:
    other: dict[str, Any] = {}
    other.update(state)
    return other


READS = {
    "item": lambda d: d["users"],
    "get": lambda d: d.get("users"),
    "values": lambda d: next(iter(d.values())),
    "items": lambda d: next(iter(d.items()))[1],
    "dict": lambda d: dict(d)["users"],
    "unpacking": lambda d: {**d}["users"],
    "keyword arguments": lambda d: dict(**d)["users"],
    "copy": lambda d: d.copy()["users"],
    "copy.copy": lambda d: copy.copy(d)["users"],
    "union": lambda d: (d | {})["users"],
    "reflected union": lambda d: ({} | d)["users"],
    "pop": lambda d: d.pop("users"),
    "popitem": lambda d: d.popitem()[1],
    "setdefault": lambda d: d.setdefault("users", None),
    "update of another": lambda d: updated(d)["users"],
    "state attribute": lambda d: State(d).users,
    "state item": lambda d: State(d)["users"],
    "the dict of the state": lambda d: State(d)._state["users"],
}


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_every_way_to_read_gives_the_private_copy(read: Any) -> None:
    """No way to read a state leads to the original container."""
    users: list[str] = ["root"]
    read(private({"users": users})).append("alice")
    assert users == ["root"]


def test_reading_twice_gives_the_same_copy() -> None:
    """The copy is made once per lease, so what is written to it stays there."""
    state = private({"users": []})
    state["users"].append("alice")
    assert state["users"] == ["alice"]
    assert json.loads(json.dumps(state)) == {"users": ["alice"]}
    assert pickle.loads(pickle.dumps(state)) == {"users": ["alice"]}


def test_the_dict_protocol() -> None:
    """It behaves as the dict that it stands for."""
    state = private({"a": [1], "b": 2})
    assert list(state) == ["a", "b"]
    assert list(reversed(state)) == ["b", "a"]
    assert len(state) == 2
    assert state
    assert not private({})
    assert "a" in state
    assert list(state.keys()) == ["a", "b"]
    assert state == {"a": [1], "b": 2}
    assert state == private({"a": [1], "b": 2})
    assert state != {}
    assert repr(state) == "{'a': [1], 'b': 2}"
    del state["b"]
    assert state.pop("b", 3) == 3
    with pytest.raises(KeyError):
        state.pop("b")
    state.update({"c": 1}, d=2)
    state |= {"e": 3}
    assert state.copy() == {"a": [1], "c": 1, "d": 2, "e": 3}
    state.clear()
    assert not state
    with pytest.raises(KeyError):
        state.popitem()
    with pytest.raises(AttributeError, match="has no attribute 'gone'"):
        _ = State(state).gone


@pytest.mark.parametrize(
    "original",
    [
        {"a": {"b": [1]}},
        [[1], [2]],
        {1, 2},
        bytearray(b"ab"),
        deque([[1]], maxlen=3),
        OrderedDict(a=[1]),
        defaultdict(list, a=[1]),
        Counter("abca"),
        SimpleNamespace(a=[1]),
        ([1], 2),
    ],
    ids=lambda value: type(value).__name__,
)
def test_plain_containers_are_copied_in_depth(original: Any) -> None:
    """Every kind of plain container becomes an equal one of the same type."""
    copied = private({"x": original})["x"]
    assert copied == original
    assert type(copied) is type(original)
    assert copied is not original


def test_aliases_and_cycles_survive() -> None:
    """Two names for one list stay two names for one list; a cycle stays a cycle."""
    shared: list[Any] = []
    shared.append((shared,))
    state = private({"a": shared, "b": {"c": shared}})
    assert state["a"] is state["b"]["c"]
    assert state["a"][0][0] is state["a"]
    assert state["a"] is not shared


def test_tuples_and_subclasses_stay_what_they_are() -> None:
    """A tuple of constants, a subclass of dict and an opaque object are not copied."""

    class Special(dict[str, int]):
        """A dict that may be more than data."""

    constant, special, opaque = (1, "a", (2,)), Special(a=1), object()
    state = private({"a": constant, "b": special, "c": opaque})
    assert state["a"] is constant
    assert state["b"] is special
    assert state["c"] is opaque


def test_shared_names_stay_shared_at_any_depth() -> None:
    """What `share=` names is the original, and its neighbours are copies."""
    source: dict[str, Any] = {"engine": {"pool": [], "log": []}}
    state = private(source, share=(("engine", "pool"), ("nothing", "here")))
    assert state["engine"]["pool"] is source["engine"]["pool"]
    assert state["engine"]["log"] is not source["engine"]["log"]


@asynccontextmanager
async def lifespan(app: Starlette) -> AsyncIterator[dict[str, Any]]:
    app.state.users = []
    yield {"basket": []}


def make_app(endpoint: Any) -> Starlette:
    app = Starlette(lifespan=lifespan)
    app.add_route("/", endpoint)
    return app


async def test_a_stray_task_cannot_touch_the_state_of_the_next_lease() -> None:
    """Whatever way a task takes to the state after its request, it gets `LeaseEndedError`."""
    go_on = anyio.Event()
    errors: list[BaseException] = []
    groups: list[Any] = []

    async def endpoint(request: Request) -> JSONResponse:
        app, held, basket = request.app, request.app.state, request.state
        if not groups:
            return JSONResponse([held.users, request.state.basket])

        async def stray() -> None:
            await go_on.wait()
            for touch in (
                lambda: app.state.users,
                lambda: setattr(app.state, "user", "alice"),
                lambda: held.users,
                lambda: setattr(held, "user", "alice"),
                lambda: basket.basket,
                lambda: template.state,
                lambda: setattr(template, "user", "alice"),
            ):
                with pytest.raises(LeaseEndedError) as caught:
                    touch()
                errors.append(caught.value)

        groups.pop().start_soon(stray)
        return JSONResponse(None)

    template = make_app(endpoint)
    async with Driver(CloneFactory(template), 1) as driver, anyio.create_task_group() as group:
        groups.append(group)
        await driver.get(0, "/")
        go_on.set()
        await anyio.wait_all_tasks_blocked()
        assert len(errors) == 7
        assert (await driver.get(0, "/")).data == [[], []]


async def test_a_thread_without_context_cannot_reach_the_next_lease() -> None:
    """A plain thread that kept the state object gets an error once the lease is over."""
    kept: list[Any] = []

    async def endpoint(request: Request) -> JSONResponse:
        kept.append(request.app.state)
        return JSONResponse(request.app.state.users if len(kept) > 1 else None)

    async with Driver(CloneFactory(make_app(endpoint)), 1) as driver:
        await driver.get(0, "/")
        caught: list[BaseException] = []

        def write() -> None:
            try:
                kept[0].users.append("alice")
            except LeaseEndedError as error:
                caught.append(error)

        thread = threading.Thread(target=write)
        thread.start()
        thread.join()
        assert "belongs to a lease that has ended" in str(caught[0])
        assert (await driver.get(0, "/")).data == []


async def test_what_is_written_between_two_leases_is_dropped() -> None:
    """Whoever holds the app of a request that is over cannot reach the next one through it."""
    apps: list[Any] = []

    async def endpoint(request: Request) -> JSONResponse:
        apps.append(request.app)
        return JSONResponse(getattr(request.app.state, "user", None))

    async with Driver(CloneFactory(make_app(endpoint)), 1) as driver:
        await driver.get(0, "/")
        with pytest.raises(LeaseEndedError):
            apps[0].state.user = "alice"
        apps[0].user = "alice"
        apps[0].router.user = "alice"
        assert (await driver.get(0, "/")).data is None
        assert not hasattr(apps[1], "user")
        assert not hasattr(apps[1].router, "user")
        assert apps[1] is not apps[0]


async def test_what_the_lifespan_changes_later_reaches_the_next_request() -> None:
    """A task of the lifespan works on the template, and every lease starts from there."""

    async def endpoint(request: Request) -> JSONResponse:
        return JSONResponse(request.app.state.users)

    app = make_app(endpoint)
    async with Driver(CloneFactory(app), 1) as driver:
        assert (await driver.get(0, "/")).data == []
        app.state.users = ["from the lifespan"]
        assert (await driver.get(0, "/")).data == ["from the lifespan"]


async def test_the_scope_state_of_others_passes_untouched() -> None:
    """Outer middleware's own values pass as they are, and it sees what the app writes."""

    async def endpoint(request: Request) -> JSONResponse:
        request.state.trace.append("app")
        request.state.user = "alice"
        request.state.basket.append(1)
        del request.state.gone
        return JSONResponse(sorted(request.scope["state"]))

    async with Driver(CloneFactory(make_app(endpoint)), 1) as driver:
        outer: dict[str, Any] = {"trace": ["outer"], "gone": 1, **driver.factory.lifespan_state}
        answer = await driver.get(0, "/", state=outer)
        assert answer.data == ["basket", "trace", "user"]
        assert outer == {"trace": ["outer", "app"], "basket": [], "user": "alice"}


async def test_without_lifespan_state_the_scope_is_left_alone() -> None:
    """With nothing from the lifespan, the server's dict is passed on itself."""
    factory = CloneFactory(Starlette())
    async with Driver(factory, 1) as driver:
        assert driver.sandboxes[0].request_state({}) is None
        assert driver.sandboxes[0].request_state(None) is None
