"""The checks of a context store: the values of one lease, and nobody else's."""

from __future__ import annotations

import threading
import unittest
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.to_thread

from sandboxpool._exceptions import LeaseEndedError, NoLeaseError
from sandboxpool.abc import ContextStore

from ._conformance import Conformance, check, expect, passes, settle

# Each method, with arguments that would work while the lease lasts.
_CALLS: dict[str, Callable[[ContextStore], object]] = {
    "get": lambda store: store.get("key"),
    "set": lambda store: store.set("key", 1),
    "has": lambda store: store.has("key"),
    "delete": lambda store: store.delete("key"),
    "get_or_set": lambda store: store.get_or_set("key", int),
    "update": lambda store: store.update(key=1),
    "copy": lambda store: store.copy(),
    "defer": lambda store: store.defer(print),
}

_ABSENT = object()


class ContextStoreConformance(Conformance):
    """The checks of `sandboxpool.abc.ContextStore`.

    Write `in_lease()`, and `outside()` if there is a store that finds its lease by itself.
    """

    async def in_lease(self, body: Callable[[ContextStore], Awaitable[None]]) -> None:
        """Begin a lease, await `body(store)` with its store, and end the lease.

        However the body ends, the lease ends, with what was deferred; then what the body has
        raised is raised.
        """
        raise NotImplementedError(f"{type(self).__name__}.in_lease() runs a body in a lease")

    def outside(self) -> ContextStore:
        """Return the store as code finds it that runs outside of any lease."""
        raise unittest.SkipTest("there is no store outside of a lease")

    # --- values -------------------------------------------------------------------------------

    @check
    async def test_get_and_set(self) -> None:
        """What was set is what one gets, under its own key.

        Contract: "Return the value of *key*, or *default*."
        """

        async def body(store: ContextStore) -> None:
            value = object()
            expect(store.get("key") is None, "a key that was never set has a value")
            expect(store.get("key", 5) == 5, "the default is not what was given")
            store.set("key", value)
            store.set("other", 1)
            expect(store.get("key", 5) is value, "the value is another object than what was set")
            store.set("key", None)
            expect(store.get("key", 5) is None, "a value of None is taken for none")

        await self.in_lease(body)

    @check
    async def test_has(self) -> None:
        """A key has a value when one was set, be it `None`.

        Contract: "Tell whether *key* has a value."
        """

        async def body(store: ContextStore) -> None:
            expect(store.has("key") is False, "a key that was never set has a value")
            store.set("key", None)
            expect(store.has("key") is True, "a key whose value is None has none")

        await self.in_lease(body)

    @check
    async def test_delete(self) -> None:
        """A key that was deleted has no value, and it is told whether it had one.

        Contract: "Remove *key*; return whether it was there."
        """

        async def body(store: ContextStore) -> None:
            store.update({"key": 0})
            expect(store.delete("key") is True, "for a key that was there it is not True")
            left = store.get("key", _ABSENT)
            expect(left is _ABSENT, "the key is still there")
            expect(store.delete("key") is False, "for a key that was not there it is not False")

        await self.in_lease(body)

    @check
    async def test_get_or_set(self) -> None:
        """A missing value is made once and kept, whatever it is.

        Contract: "Return the value of *key*; if there is none, store and return what *make*
        returns."
        """

        async def body(store: ContextStore) -> None:
            made: list[int] = []

            def make() -> None:
                made.append(1)

            for _ in range(2):
                expect(store.get_or_set("key", make) is None, "it is not what make returned")
            expect(len(made) == 1, f"make was called {len(made)} times for a value of None")
            expect(store.get("key", _ABSENT) is None, "what make returned was not stored")

        await self.in_lease(body)

    @check
    async def test_get_or_set_that_fails(self) -> None:
        """When *make* raises, that comes out, and nothing was stored.

        Contract: "Return the value of *key*; if there is none, store and return what *make*
        returns."
        """

        async def body(store: ContextStore) -> None:
            raised = None
            error = ValueError("make")

            def make() -> None:
                raise error

            try:
                store.get_or_set("key", make)
            except ValueError as out:
                raised = out
            expect(raised is error, f"what came out is {raised!r}")
            expect(store.get("key", _ABSENT) is _ABSENT, "the key has a value all the same")

        await self.in_lease(body)

    @check
    async def test_get_or_set_in_threads(self) -> None:
        """Threads that ask for the same missing value at the same moment get one and the same.

        Contract: "*make* runs once, also when several threads of the request ask at the same
        moment."
        """

        async def body(store: ContextStore) -> None:
            parties, made = 4, []
            barrier, enough = threading.Barrier(parties), threading.Event()

            def make() -> object:
                made.append(1)
                # Who comes meanwhile has this long to be wrong about it.
                enough.wait(0.02)
                return object()

            def ask() -> None:
                barrier.wait(5)
                got.append(store.get_or_set("key", make))

            got: list[object] = []
            async with anyio.create_task_group() as tasks:
                for _ in range(parties):
                    tasks.start_soon(anyio.to_thread.run_sync, ask)
            expect(len(made) == 1, f"make was called {len(made)} times")
            expect(len({id(value) for value in got}) == 1, "they got different values")

        await self.in_lease(body)

    @check
    async def test_update(self) -> None:
        """Several values at once come from a mapping, from pairs, or by name.

        Contract: "Store several values."
        """

        async def body(store: ContextStore) -> None:
            store.set("kept", 0)
            store.update({"a": 1})
            store.update([("b", 2)], c=3)
            store.update()
            store.update(values=4)
            expected = {"kept": 0, "a": 1, "b": 2, "c": 3, "values": 4}
            found = {key: store.get(key) for key in expected}
            expect(found == expected, f"{found} was stored, not {expected}")

        await self.in_lease(body)

    @check
    async def test_copy(self) -> None:
        """A copy has everything, and neither knows of what happens to the other.

        Contract: "Return all keys and values as a new dict, to carry over into another lease."
        """

        async def body(store: ContextStore) -> None:
            value = object()
            store.update(a=1, b=value)
            copied = store.copy()
            expect(type(copied) is dict, f"it is a {type(copied).__name__}")
            expect(copied == {"a": 1, "b": value}, f"it has {copied}")
            copied["c"] = 3
            expect(store.get("c", _ABSENT) is _ABSENT, "what was put into the copy is in the store")
            store.set("a", 2)
            expect(copied["a"] == 1, "what was set in the store is in the copy")

        await self.in_lease(body)

    # --- who sees it --------------------------------------------------------------------------

    @check
    async def test_tasks_see_it(self) -> None:
        """Tasks of the request see its store, and it sees what they set.

        Contract: "Every task and thread that the request started sees the same one."
        """

        async def body(store: ContextStore) -> None:
            async def task() -> None:
                seen.append(store.get("key", _ABSENT))
                store.set("from the task", 2)

            seen: list[object] = []
            store.set("key", 1)
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(task)
            expect(seen == [1], "a task does not see what was set before it")
            expect(store.get("from the task") == 2, "what a task has set is not seen after it")

        await self.in_lease(body)

    @check
    async def test_threads_see_it(self) -> None:
        """Threads of the request see its store, and it sees what they set.

        Contract: "Every task and thread that the request started sees the same one."
        """

        async def body(store: ContextStore) -> None:
            def work() -> object:
                store.set("from the thread", 2)
                return store.get("key", _ABSENT)

            store.set("key", 1)
            seen = await anyio.to_thread.run_sync(work)
            expect(seen == 1, "a thread does not see what was set before it")
            expect(store.get("from the thread") == 2, "what a thread has set is not seen after it")

        await self.in_lease(body)

    @check
    async def test_leases_are_apart(self) -> None:
        """Two leases, at the same moment or one after the other, know nothing of each other.

        Contract: "The key-value store of one lease."
        """

        async def body(store: ContextStore) -> None:
            before.append(store.get("key", _ABSENT))
            store.set("key", object())
            value = store.get("key")
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(passes, 3)
            same.append(store.get("key") is value)

        before: list[object] = []
        same: list[bool] = []
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(self.in_lease, body)
            tasks.start_soon(self.in_lease, body)
        await self.in_lease(body)
        expect(all(value is _ABSENT for value in before), "one sees the values of another")
        expect(all(same), "one has overwritten the value of another")

    # --- its end ------------------------------------------------------------------------------

    @check
    async def test_sealed_at_the_end(self) -> None:
        """After the end of the lease every method raises, whoever still has the store.

        Contract: "It is sealed when the lease ends: from then on each method raises
        `LeaseEndedError`, so that a late write fails where it happens instead of leaking into
        another request."
        """

        async def body(store: ContextStore) -> None:
            store.set("key", 1)
            late.append(store)

        late: list[ContextStore] = []
        await self.in_lease(body)
        for name, call in _CALLS.items():
            try:
                call(late[0])
            except LeaseEndedError:
                continue
            expect(False, f"{name}() still works")

    @check
    async def test_sealed_however_it_ends(self) -> None:
        """The store is sealed, too, when the request raised or was cancelled.

        Contract: "It is sealed when the lease ends: from then on each method raises
        `LeaseEndedError`, so that a late write fails where it happens instead of leaking into
        another request."
        """
        error = ValueError("of the request")

        async def raises(store: ContextStore) -> None:
            late.append(store)
            raise error

        async def is_cancelled(store: ContextStore) -> None:
            late.append(store)
            scope.cancel()
            await anyio.sleep_forever()

        late: list[ContextStore] = []
        raised = None
        try:
            await self.in_lease(raises)
        except ValueError as out:
            raised = out
        expect(raised is error, f"what came out of a lease that raised is {raised!r}")
        with anyio.CancelScope() as scope:
            await self.in_lease(is_cancelled)
        for how, store in zip(("raised", "was cancelled"), late, strict=True):
            try:
                store.set("key", 1)
            except LeaseEndedError:
                continue
            expect(False, f"set() still works after a request that {how}")

    @check
    async def test_outside_of_a_request(self) -> None:
        """Outside of a request every method raises.

        Contract: "Outside of a request each method raises `NoLeaseError`."
        """
        store = self.outside()
        for name, call in _CALLS.items():
            try:
                call(store)
            except NoLeaseError:
                continue
            expect(False, f"{name}() works")

    # --- what is deferred ---------------------------------------------------------------------

    @check
    async def test_deferred_order(self) -> None:
        """What was deferred is called at the end, with its arguments, the last one first.

        Contract: "Call *callback* when the lease ends, whatever its outcome; the last deferred
        first."
        """

        async def body(store: ContextStore) -> None:
            for number in range(3):
                store.defer(lambda *args: called.append(args), number, "more")
            early.extend(called)

        called: list[object] = []
        early: list[object] = []
        await self.in_lease(body)
        expect(not early, "it was called at once")
        expect(
            called == [(2, "more"), (1, "more"), (0, "more")],
            f"0, 1 and 2 were deferred, and called were {called}",
        )

    @check
    async def test_deferred_whatever_the_outcome(self) -> None:
        """What was deferred is called, too, when the request raised or was cancelled.

        Contract: "Call *callback* when the lease ends, whatever its outcome; the last deferred
        first."
        """

        async def raises(store: ContextStore) -> None:
            store.defer(called.append, "raised")
            raise ValueError("of the request")

        async def is_cancelled(store: ContextStore) -> None:
            store.defer(called.append, "was cancelled")
            scope.cancel()
            await anyio.sleep_forever()

        called: list[str] = []
        try:
            await self.in_lease(raises)
        except ValueError:
            pass
        with anyio.CancelScope() as scope:
            await self.in_lease(is_cancelled)
        await settle()
        missing = {"raised", "was cancelled"} - set(called)
        expect(not missing, f"nothing was called after a request that {' or '.join(missing)}")

    @check
    async def test_deferred_is_awaited(self) -> None:
        """An async callback runs to its end, also when the request was cancelled.

        Contract: "An awaitable that it returns is awaited, shielded from cancellation and within
        `defer_timeout`."
        """

        async def callback(how: str) -> None:
            await passes(3)
            done.append(how)

        async def returns(store: ContextStore) -> None:
            store.defer(callback, "returned")

        async def is_cancelled(store: ContextStore) -> None:
            store.defer(callback, "was cancelled")
            scope.cancel()
            await anyio.sleep_forever()

        done: list[str] = []
        await self.in_lease(returns)
        expect(done, "it did not come to its end after a request that returned")
        with anyio.CancelScope() as scope:
            await self.in_lease(is_cancelled)
        expect(len(done) == 2, "it did not come to its end after a request that was cancelled")

    @check
    async def test_deferred_that_fails(self) -> None:
        """A callback that raises stops neither the others nor the request.

        Contract: "An error is logged and stops neither the others nor the release."
        """

        async def raises_later() -> None:
            await passes(1)
            raise ValueError("awaited")

        def raises() -> None:
            raise ValueError("called")

        async def body(store: ContextStore) -> None:
            for callback in (raises, raises_later):
                store.defer(called.append, callback)
                store.defer(callback)

        called: list[Any] = []
        failure = None
        try:
            await self.in_lease(body)
        except ValueError as error:
            failure = error
        expect(failure is None, f"the request ended with {failure!r}")
        expect(len(called) == 2, f"{2 - len(called)} of the others were not called")
