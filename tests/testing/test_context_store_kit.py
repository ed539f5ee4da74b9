"""The kit for context stores: it passes what is right, and notices what is broken."""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import Awaitable, Callable
from typing import Any, ClassVar

import anyio
import anyio.lowlevel
import pytest

import sandboxpool
from sandboxpool import LeaseEndedError, NoLeaseError
from sandboxpool.abc import ContextStore, Message, Receive, Scope, Send
from sandboxpool.testing import ContextStoreConformance

from .kits import impatient, noticed

Body = Callable[[ContextStore], Awaitable[None]]


class TestOurStore(ContextStoreConformance):
    """`sandboxpool.context`, in requests to a wrapped app."""

    async def in_lease(self, body: Body) -> None:
        async def endpoint(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["type"] == "http":
                await body(sandboxpool.current_lease().context)

        async def receive() -> Message:
            await anyio.sleep_forever()  # the client stays on the line
            raise AssertionError

        async def send(message: Message) -> None:
            pass

        logging.getLogger("sandboxpool").disabled = True
        try:
            async with sandboxpool.wrap(endpoint, min_size=0, stall_after=None) as app:
                await app({"type": "http", "path": "/"}, receive, send)
        finally:
            logging.getLogger("sandboxpool").disabled = False

    def outside(self) -> ContextStore:
        return sandboxpool.context


class DictStore:
    """A store around a dict; a test breaks one of its methods at a time."""

    lock_class: ClassVar[Any] = staticmethod(threading.RLock)

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}
        self.deferred: list[tuple[Any, Any]] = []
        self.ended = False
        self.lock = self.lock_class()

    def open(self, method: str) -> dict[str, Any]:
        if self.ended:
            raise LeaseEndedError("ended")
        return self.values

    def get(self, key: str, default: Any = None) -> Any:
        return self.open("get").get(key, default)

    def set(self, key: str, value: Any) -> None:
        self.open("set")[key] = value

    def has(self, key: str) -> bool:
        return key in self.open("has")

    def delete(self, key: str) -> bool:
        missing = object()
        return self.open("delete").pop(key, missing) is not missing

    def get_or_set(self, key: str, make: Callable[[], Any]) -> Any:
        with self.lock:
            values = self.open("get_or_set")
            if key not in values:
                values[key] = make()
            return values[key]

    def update(self, values: Any = (), /, **more: Any) -> None:
        self.open("update").update(values, **more)

    def copy(self) -> dict[str, Any]:
        return dict(self.open("copy"))

    def defer(self, callback: Callable[..., object], /, *args: Any) -> None:
        self.open("defer")
        self.deferred.append((callback, args))

    async def end(self, error: BaseException | None) -> None:
        with anyio.CancelScope(shield=True):
            while self.deferred:
                callback, args = self.deferred.pop()
                await self.call(callback, args)
        self.ended = True

    async def call(self, callback: Any, args: Any) -> None:
        try:
            result = callback(*args)
            if inspect.isawaitable(result):
                await result
        except Exception:
            pass


class Nowhere:
    """A store outside of any lease."""

    def __getattr__(self, name: str) -> Any:
        def call(*args: Any, **more: Any) -> None:
            raise NoLeaseError("no lease")

        return call


class DictKit(ContextStoreConformance):
    """The kit on a store that shares no code with the library's."""

    store_class: ClassVar[type[DictStore]] = DictStore
    nowhere: ClassVar[Any] = Nowhere()

    async def in_lease(self, body: Body) -> None:
        store, failure = self.store_class(), None
        try:
            await body(store)
        except BaseException as error:
            failure = error
            raise
        finally:
            await store.end(failure)

    def outside(self) -> ContextStore:
        found: ContextStore = self.nowhere
        return found


class TestDictStore(DictKit):
    """A store of somebody else."""


# --- stores that are broken, each in one way --------------------------------------------------


class CopiesValues(DictStore):
    def set(self, key: str, value: Any) -> None:
        super().set(key, object() if type(value) is object and key == "key" else value)


class NoneIsMissing(DictStore):
    def has(self, key: str) -> bool:
        return self.get(key) is not None


class DeletesSilently(DictStore):
    def delete(self, key: str) -> bool:
        super().delete(key)
        return True


class MakesAgain(DictStore):
    def get_or_set(self, key: str, make: Callable[[], Any]) -> Any:
        with self.lock:
            values = self.open("get_or_set")
            if values.get(key) is None:
                values[key] = make()
            return values[key]


class StoresBeforeItMakes(DictStore):
    def get_or_set(self, key: str, make: Callable[[], Any]) -> Any:
        with self.lock:
            values = self.open("get_or_set")
            if key not in values:
                values[key] = None
                values[key] = make()
            return values[key]


class _NoLock:
    def __enter__(self) -> None: ...

    def __exit__(self, *exc_info: object) -> None: ...


class Unlocked(DictStore):
    lock_class = _NoLock


class UpdateReplaces(DictStore):
    def update(self, values: Any = (), /, **more: Any) -> None:
        super().update(values, **more)
        if "a" in more or type(values) is dict:
            return
        self.values = {key: value for key, value in self.values.items() if key != "kept"}


class CopyIsLive(DictStore):
    def copy(self) -> dict[str, Any]:
        return self.open("copy")


class OnlyForOneTask(DictStore):
    """Shows each task what it has set itself."""

    def __init__(self) -> None:
        super().__init__()
        self.first = anyio.get_current_task().id
        self.others: dict[str, Any] = {}

    def open(self, method: str) -> dict[str, Any]:
        values = super().open(method)
        try:
            return values if anyio.get_current_task().id == self.first else self.others
        except RuntimeError:  # in a thread
            return values


class OnlyForOneThread(DictStore):
    def __init__(self) -> None:
        super().__init__()
        self.local = threading.local()
        self.home = threading.get_ident()

    def open(self, method: str) -> dict[str, Any]:
        values = super().open(method)
        if method not in ("get", "set") or threading.get_ident() == self.home:
            return values
        return self.local.__dict__


class OneForAll(DictStore):
    everything: ClassVar[dict[str, Any]] = {}
    leases: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        if not OneForAll.leases:
            OneForAll.everything = {}
        OneForAll.leases += 1
        self.values = self.everything

    async def end(self, error: BaseException | None) -> None:
        await super().end(error)
        OneForAll.leases -= 1


class ReadsAfterTheEnd(DictStore):
    def open(self, method: str) -> dict[str, Any]:
        return self.values if method == "copy" else super().open(method)


class SealedOnlyInOrder(DictStore):
    async def end(self, error: BaseException | None) -> None:
        await super().end(error)
        self.ended = error is None


class FirstDeferredFirst(DictStore):
    async def end(self, error: BaseException | None) -> None:
        self.deferred.reverse()
        await super().end(error)


class DefersOnlyForSuccess(DictStore):
    async def end(self, error: BaseException | None) -> None:
        if isinstance(error, Exception):
            self.deferred = []
        await super().end(error)


class Unshielded(DictStore):
    async def end(self, error: BaseException | None) -> None:
        self.ended = True
        while self.deferred:
            callback, args = self.deferred.pop()
            await self.call(callback, args)


class StopsAtAnError(DictStore):
    async def call(self, callback: Any, args: Any) -> None:
        result = callback(*args)
        if inspect.isawaitable(result):
            await result

    async def end(self, error: BaseException | None) -> None:
        try:
            await super().end(error)
        except ValueError:
            pass
        self.ended = True


MUTANTS: list[tuple[type[DictStore], set[str]]] = [
    (CopiesValues, {"test_get_and_set"}),
    (NoneIsMissing, {"test_has"}),
    (DeletesSilently, {"test_delete"}),
    (MakesAgain, {"test_get_or_set"}),
    (StoresBeforeItMakes, {"test_get_or_set_that_fails"}),
    (Unlocked, {"test_get_or_set_in_threads"}),
    (UpdateReplaces, {"test_update"}),
    (CopyIsLive, {"test_copy"}),
    (OnlyForOneTask, {"test_tasks_see_it"}),
    (OnlyForOneThread, {"test_threads_see_it"}),
    (OneForAll, {"test_leases_are_apart"}),
    (ReadsAfterTheEnd, {"test_sealed_at_the_end"}),
    (SealedOnlyInOrder, {"test_sealed_however_it_ends"}),
    (FirstDeferredFirst, {"test_deferred_order"}),
    (DefersOnlyForSuccess, {"test_deferred_whatever_the_outcome"}),
    (Unshielded, {"test_deferred_is_awaited"}),
    (StopsAtAnError, {"test_deferred_that_fails"}),
]


@pytest.mark.parametrize(
    ("broken", "checks"), [pytest.param(*row, id=row[0].__name__) for row in MUTANTS]
)
async def test_broken_store_is_noticed(broken: type[DictStore], checks: set[str]) -> None:
    """A store that breaks one rule is noticed by the check of that rule."""
    assert await noticed(impatient(DictKit, store_class=broken), checks) == checks


@pytest.mark.slow
@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
@pytest.mark.parametrize(
    ("broken", "checks"), [pytest.param(*row, id=row[0].__name__) for row in MUTANTS]
)
async def test_nothing_else_notices_a_broken_store(
    broken: type[DictStore], checks: set[str]
) -> None:
    """The checks of the other rules pass with it: each is about its own."""
    others = [name for name in DictKit.names() if name not in checks]
    assert await noticed(impatient(DictKit, store_class=broken), others) == set()


async def test_store_that_works_outside_is_noticed() -> None:
    """A store that works outside of any lease is noticed."""
    check = "test_outside_of_a_request"
    assert await noticed(impatient(DictKit, nowhere=DictStore()), [check]) == {check}


def test_every_check_of_stores_has_a_broken_store() -> None:
    """No check of the kit could be left out without a broken store that slips through."""
    caught = {check for _, checks in MUTANTS for check in checks}
    assert caught | {"test_outside_of_a_request"} == set(ContextStoreConformance.names())


async def test_store_without_an_outside_leaves_that_out() -> None:
    """Where no store finds its lease by itself, the check of it is left out."""
    import unittest

    with pytest.raises(unittest.SkipTest, match="there is no store outside of a lease"):
        await ContextStoreConformance().test_outside_of_a_request()


async def test_kit_without_a_store() -> None:
    """A kit that has no lease says which method is missing."""
    with pytest.raises(NotImplementedError, match=r"in_lease\(\) runs a body in a lease"):
        await ContextStoreConformance().in_lease(lambda store: anyio.lowlevel.checkpoint())
