"""`threading.local` in cooperative requests."""

from __future__ import annotations

import gc
import threading
import time
import weakref
from functools import partial
from typing import Any

import anyio
import anyio.to_thread
import pytest

from sandboxpool import hooks
from tests.wrap.client import Connection

from .request import alone, at_once, sandboxed

HOOKS = ("sleep", "locks")

pytestmark = pytest.mark.usefixtures("cooperative")

_local = threading.local


class Settings:
    """A descriptor that some classes have."""

    def __get__(self, instance: Any, owner: Any) -> Any:
        return "read" if instance is not None else self

    def __set__(self, instance: Any, value: Any) -> None:
        instance.written = value

    def __delete__(self, instance: Any) -> None:
        del instance.written


async def test_of_the_request() -> None:
    """What a request keeps for its thread is not seen by others that run meanwhile."""
    kept = threading.local()
    kept.number = "of the thread"

    def request(number: int) -> None:
        assert not hasattr(kept, "number")
        kept.number = number
        time.sleep(0.01)
        assert kept.number == number
        assert kept.__dict__ == {"number": number}

    await at_once(*[partial(request, number) for number in range(10)])
    assert kept.number == "of the thread"


async def test_control() -> None:
    """Without the hook each of them sees what the last one kept."""
    hooks.uninstall("locks")
    kept = threading.local()
    seen: list[int] = []

    def request(number: int) -> None:
        kept.number = number
        time.sleep(0.01)
        seen.append(kept.number)

    await at_once(*[partial(request, number) for number in range(10)])
    assert len(set(seen)) == 1


async def test_of_tasks_and_threads() -> None:
    """Tasks of a request share what it keeps; a thread that it starts has its own."""
    kept = threading.local()

    async def child() -> None:
        kept.number += 1

    async def request() -> None:
        kept.number = 0
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(child)
            tasks.start_soon(child)
        assert kept.number == 2
        assert await anyio.to_thread.run_sync(vars, kept) == {}

    await alone(request)


async def test_goes_with_the_request() -> None:
    """What a request has kept is freed when the request is over."""
    kept = threading.local()
    seen: list[weakref.ref[Any]] = []

    class Session:
        pass

    def request() -> None:
        kept.session = Session()
        seen.append(weakref.ref(kept.session))

    async with sandboxed(request) as app:
        await Connection(app, "/0").run()
        await Connection(app, "/0").run()
        gc.collect()
        assert [reference() for reference in seen] == [None, None]
        assert not hasattr(kept, "session")


class Registry(threading.local):
    """Made before the hooks: one of C."""

    value = 1


async def test_made_before() -> None:
    """One that was made before the hooks were installed goes on to be shared by requests."""
    registry = Registry()

    def request() -> int:
        registry.value += 1
        return registry.value

    assert sorted(await at_once(request, request)) == [2, 3]


async def test_initialized() -> None:
    """A subclass is initialized for each request and each thread, with its arguments."""
    initialized: list[tuple[Any, ...]] = []

    class Stack(threading.local):
        limit = 10

        def __init__(self, *names: str, **more: str) -> None:
            initialized.append((names, more))
            self.names = [*names, *more.values()]

        @property
        def first(self) -> str:
            return self.names[0]

        def push(self, name: str) -> None:
            self.names.append(name)

    stack = Stack("a", b="b")
    assert initialized == [(("a",), {"b": "b"})]

    def request(name: str) -> None:
        stack.push(name)
        time.sleep(0.001)
        assert stack.names == ["a", "b", name]
        assert stack.first == "a"
        assert stack.limit == 10
        stack.limit = 11
        assert (stack.limit, Stack.limit) == (11, 10)
        del stack.limit
        assert stack.limit == 10
        with pytest.raises(AttributeError):
            stack.first = "c"  # type: ignore[misc]
        with pytest.raises(AttributeError):
            del stack.limit
        with pytest.raises(AttributeError, match="'Stack' object has no attribute 'last'"):
            stack.last  # noqa: B018
        with pytest.raises(AttributeError):
            stack.__dict__ = {}

    await at_once(partial(request, "c"), partial(request, "d"))
    assert len(initialized) == 3
    assert stack.names == ["a", "b"]
    assert isinstance(stack, _local)


async def test_initialized_in_a_thread_of_requests() -> None:
    """What belongs to the event loop's thread is initialized when that first asks for it."""

    class Stack(threading.local):
        def __init__(self) -> None:
            self.names = [threading.current_thread().name]

    made: list[Any] = []
    maker = threading.Thread(target=lambda: made.append(Stack()))
    maker.start()
    maker.join()
    stack = made[0]

    def request() -> None:
        stack.names.append("request")

    await alone(request)
    assert stack.names == [threading.current_thread().name]


async def test_fails_to_initialize() -> None:
    """An initializer that raises is called again the next time."""
    fails = [False]

    class Fragile(threading.local):
        def __init__(self) -> None:
            if fails[0]:
                raise LookupError("not now")
            self.value = 1

    fragile = Fragile()

    def request() -> None:
        fails[0] = True
        with pytest.raises(LookupError, match="not now"):
            fragile.value  # noqa: B018
        fails[0] = False
        assert fragile.value == 1

    await alone(request)


async def test_descriptors() -> None:
    """Descriptors, slots, `__getattr__` and class attributes work as in any class."""

    class Rich(threading.local):
        __slots__ = ("slot",)
        settings = Settings()

        def __getattr__(self, name: str) -> str:
            return f"no {name}"

    rich: Any = Rich()

    def request() -> None:
        assert rich.settings == "read"
        rich.settings = 1
        assert rich.__dict__ == {"written": 1}
        del rich.settings
        assert rich.__dict__ == {}
        rich.slot = 2  # one for all, as with the original
        assert rich.other == "no other"
        assert rich.__class__ is Rich

    await alone(request)
    assert rich.slot == 2


def test_arguments() -> None:
    """Arguments that nobody takes are refused as by the original."""
    with pytest.raises(TypeError, match="Initialization arguments are not supported"):
        threading.local(1)  # type: ignore[call-arg]


async def test_after_uninstall() -> None:
    """One that was made with the hook keeps requests apart after the hook is gone."""
    kept = threading.local()
    hooks.uninstall("locks")
    assert threading.local is _local

    def request(number: int) -> None:
        kept.number = number
        time.sleep(0.01)
        assert kept.number == number

    await at_once(partial(request, 1), partial(request, 2), hooks=("sleep",))
    assert not hasattr(kept, "number")
