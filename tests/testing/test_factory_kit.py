"""The kit for factories: it passes what is right, and notices what is broken."""

from __future__ import annotations

from collections.abc import Awaitable
from contextvars import ContextVar
from typing import Any, ClassVar

import anyio
import anyio.lowlevel
import pytest

from sandboxpool import FunctionFactory
from sandboxpool.abc import Factory
from sandboxpool.testing import FactoryConformance

from .kits import impatient, noticed

variable: ContextVar[str] = ContextVar("variable")


class Connection:
    """An item with a session."""

    def __init__(self) -> None:
        self.session: list[str] = []
        self.open = True


class SmallFactory:
    """Makes connections; a test breaks one of its methods at a time."""

    def __init__(self) -> None:
        self.opened: list[Connection] = []

    async def create(self) -> Connection:
        connection = self.open()
        try:
            await self.log_in(connection)
        except BaseException:
            self.opened.remove(connection)
            raise
        return connection

    def open(self) -> Connection:
        connection = Connection()
        self.opened.append(connection)
        return connection

    async def log_in(self, connection: Connection) -> None:
        await anyio.lowlevel.checkpoint()
        await anyio.lowlevel.checkpoint()

    def reset(self, connection: Connection) -> Awaitable[None] | None:
        return self.forget(connection)

    async def forget(self, connection: Connection) -> None:
        await anyio.lowlevel.checkpoint()
        connection.session.clear()

    async def destroy(self, connection: Connection) -> None:
        connection.open = False
        self.opened.remove(connection)

    async def check(self, connection: Connection) -> bool:
        return connection.open


class SmallKit(FactoryConformance):
    """The kit on connections."""

    factory_class: ClassVar[type[SmallFactory]] = SmallFactory

    def make_factory(self) -> SmallFactory:
        return self.factory_class()

    async def use(self, item: Connection, value: str) -> None:
        item.session.append(value)

    async def look(self, item: Connection) -> object:
        return item.open, tuple(item.session)

    def alive(self, factory: SmallFactory) -> int:
        return len(factory.opened)


class TestSmallFactory(SmallKit):
    """A factory of somebody."""


class TestFunctionFactory(FactoryConformance):
    """A factory of functions, of which nothing is known."""

    def make_factory(self) -> Factory[Any]:
        return FunctionFactory(Connection)


# --- factories that are broken, each in one way -----------------------------------------------


class OneForAll(SmallFactory):
    def open(self) -> Connection:
        if len(self.opened) == 1:  # the second one
            self.opened *= 2
            return self.opened[0]
        return super().open()


class OneAtATime(SmallFactory):
    """Keeps what it makes in an attribute meanwhile."""

    current: Connection

    async def create(self) -> Connection:
        self.current = await super().create()
        await anyio.lowlevel.checkpoint()
        return self.current


class WrapsCancellation(SmallFactory):
    async def create(self) -> Connection:
        try:
            return await super().create()
        except BaseException as error:
            raise ConnectionError("create failed") from error


class KeepsTheLock(SmallFactory):
    """Holds a lock that a cancelled create does not give back."""

    locked: bool = False

    async def create(self) -> Connection:
        while self.locked:  # noqa: ASYNC110
            await anyio.sleep(0.01)
        self.locked = True
        created = await super().create()
        self.locked = False
        return created


class LeavesHalfOpened(SmallFactory):
    async def create(self) -> Connection:
        connection = self.open()
        await self.log_in(connection)
        return connection


class ForgetsToForget(SmallFactory):
    async def forget(self, connection: Connection) -> None:
        await anyio.lowlevel.checkpoint()
        if connection.session != ["second"]:
            connection.session = connection.session[:0]


class ForgetsAll(SmallFactory):
    async def forget(self, connection: Connection) -> None:
        for each in self.opened:
            if "caller" not in str(each.session):
                each.session.clear()
        await super().forget(connection)


class WrapsCancelledReset(SmallFactory):
    async def forget(self, connection: Connection) -> None:
        try:
            await super().forget(connection)
        except BaseException as error:
            raise ConnectionError("reset failed") from error


class EndsAll(SmallFactory):
    async def destroy(self, connection: Connection) -> None:
        await super().destroy(connection)
        if len(self.opened) == 1:
            self.opened[0].open = False


class EndsOnlyUnused(SmallFactory):
    async def destroy(self, connection: Connection) -> None:
        if connection.session == ["value"]:
            raise RuntimeError("the session is still open")
        await super().destroy(connection)


class LeavesOne(SmallFactory):
    async def destroy(self, connection: Connection) -> None:
        if len(self.opened) == 4:
            self.opened.append(Connection())
        await super().destroy(connection)


class NeedsTheTask(SmallFactory):
    async def create(self) -> Connection:
        connection = await super().create()
        variable.set("mine")
        return connection

    def reset(self, connection: Connection) -> Awaitable[None] | None:
        variable.get()
        return super().reset(connection)


class ChecksNothing(SmallFactory):
    async def check(self, connection: Connection) -> bool:
        return False


class OneResetAtATime(SmallFactory):
    """Keeps what it resets in an attribute meanwhile."""

    async def forget(self, connection: Connection) -> None:
        self.current = connection
        await anyio.lowlevel.checkpoint()
        await anyio.lowlevel.checkpoint()
        self.current.session.clear()


MUTANTS: list[tuple[type[SmallFactory], set[str]]] = [
    (
        OneForAll,
        {
            "test_items_are_new",
            "test_creates_at_the_same_time",
            "test_reset_of_one",
            "test_destroy_of_one",
            "test_in_a_pool",
        },
    ),
    (
        OneAtATime,
        {
            "test_creates_at_the_same_time",
            "test_cancelled_create_leaves_nothing",
            "test_in_a_pool",
        },
    ),
    (WrapsCancellation, {"test_create_that_is_cancelled"}),
    (KeepsTheLock, {"test_create_that_is_cancelled", "test_cancelled_create_leaves_nothing"}),
    (LeavesHalfOpened, {"test_cancelled_create_leaves_nothing"}),
    (ForgetsToForget, {"test_reset"}),
    (ForgetsAll, {"test_reset_of_one"}),
    (WrapsCancelledReset, {"test_reset_that_is_cancelled"}),
    (EndsAll, {"test_destroy_of_one"}),
    (EndsOnlyUnused, {"test_destroy_of_a_used_item"}),
    (LeavesOne, {"test_destroy_leaves_nothing"}),
    (NeedsTheTask, {"test_hooks_in_tasks_of_their_own"}),
    (ChecksNothing, {"test_check"}),
    (OneResetAtATime, {"test_in_a_pool"}),
]


@pytest.mark.parametrize(
    ("broken", "checks"), [pytest.param(*row, id=row[0].__name__) for row in MUTANTS]
)
async def test_broken_factory_is_noticed(broken: type[SmallFactory], checks: set[str]) -> None:
    """A factory that breaks one rule is noticed by the check of that rule."""
    assert await noticed(impatient(SmallKit, factory_class=broken), checks) == checks


@pytest.mark.slow
@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
@pytest.mark.parametrize(
    ("broken", "checks"), [pytest.param(*row, id=row[0].__name__) for row in MUTANTS]
)
async def test_nothing_else_notices_a_broken_factory(
    broken: type[SmallFactory], checks: set[str]
) -> None:
    """The checks of the other rules pass with it: each is about its own."""
    others = [name for name in SmallKit.names() if name not in checks]
    assert await noticed(impatient(SmallKit, factory_class=broken), others) == set()


def test_every_check_of_factories_has_a_broken_factory() -> None:
    """No check of the kit could be left out without a broken factory that slips through."""
    caught = {check for _, checks in MUTANTS for check in checks}
    assert caught == set(FactoryConformance.names())


def test_kit_without_a_factory() -> None:
    """A kit that makes no factory says which method is missing."""
    with pytest.raises(NotImplementedError, match=r"make_factory\(\) returns one of yours"):
        FactoryConformance().make_factory()
