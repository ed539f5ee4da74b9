"""PostgreSQL, by way of asyncpg."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any

import asyncpg  # type: ignore[import-untyped] # it has no types of its own

from sandboxpool._context import current

from ._member import Driver, Member
from ._postgres import MAX_CONNECTIONS, RESET
from ._resource import code_of
from ._sql import Effect, effect_of, verdicts

Setup = Callable[[Any], Awaitable[object]]
_execute = asyncpg.Connection.execute
_fetch = asyncpg.Connection._execute


@contextmanager
def _running(member: Member, effect: int) -> Iterator[None]:
    """Note that an operation runs, and what it may leave behind."""
    member.effect = max(member.effect, effect)
    member.begin()
    error: BaseException | None = None
    try:
        yield
    except BaseException as raised:
        error = raised
        raise
    finally:
        member.end(error)


class Connection(asyncpg.Connection):  # type: ignore[misc] # asyncpg has no types
    """A connection that tells what runs on it, and what that may leave behind.

    Whatever the driver does goes through one of these methods. They are its own, and a test fails
    if a release of asyncpg no longer calls them.
    """

    __slots__ = ("member",)

    member: Member

    def _note(self, effect: Effect) -> None:
        if effect > self.member.effect:
            self.member.effect = effect

    async def execute(self, query: Any, *args: Any, timeout: Any = None) -> Any:
        with _running(self.member, effect_of(query)):
            return await _execute(self, query, *args, timeout=timeout)

    async def _execute(self, query: Any, args: Any, limit: Any, timeout: Any, **more: Any) -> Any:
        # What nearly all queries go through: written out, for speed.
        member = self.member
        effect = verdicts.get(query)
        if effect != 0:
            member.effect = max(member.effect, effect_of(query))
        borrow = member.borrow
        if borrow is not None and borrow.lease is current.get():
            member.running += 1
        else:
            member.begin()
        try:
            result = await _fetch(self, query, args, limit, timeout, **more)
        except BaseException as error:
            member.end(error)
            raise
        member.end()
        return result

    async def _executemany(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        with _running(self.member, effect_of(query)):
            return await super()._executemany(query, *args, **kwargs)

    async def fetchmany(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        with _running(self.member, effect_of(query)):
            return await super().fetchmany(query, *args, **kwargs)

    async def _prepare(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        # What is done with the statement later is not seen. The reset fails if it still runs.
        with _running(self.member, max(Effect.RESET, effect_of(query))):
            return await super()._prepare(query, *args, **kwargs)

    def cursor(self, query: Any, *args: Any, **kwargs: Any) -> Any:
        self._note(max(Effect.RESET, effect_of(query)))
        return super().cursor(query, *args, **kwargs)

    async def _copy_out(self, statement: Any, *args: Any, **kwargs: Any) -> Any:
        with _running(self.member, effect_of(statement)):
            return await super()._copy_out(statement, *args, **kwargs)

    async def _copy_in(self, statement: Any, *args: Any, **kwargs: Any) -> Any:
        with _running(self.member, effect_of(statement)):
            return await super()._copy_in(statement, *args, **kwargs)

    async def set_type_codec(self, *args: Any, **kwargs: Any) -> Any:
        self._note(Effect.CLOSE)  # nothing tells what was there before
        return await super().set_type_codec(*args, **kwargs)

    async def set_builtin_type_codec(self, *args: Any, **kwargs: Any) -> Any:
        self._note(Effect.CLOSE)
        return await super().set_builtin_type_codec(*args, **kwargs)

    async def reset_type_codec(self, *args: Any, **kwargs: Any) -> Any:
        self._note(Effect.CLOSE)
        return await super().reset_type_codec(*args, **kwargs)

    def add_log_listener(self, callback: Any) -> None:
        self._note(Effect.CLOSE)
        super().add_log_listener(callback)

    def add_query_logger(self, callback: Any) -> None:
        self._note(Effect.CLOSE)
        super().add_query_logger(callback)

    def add_termination_listener(self, callback: Any) -> None:
        self._note(Effect.CLOSE)
        super().add_termination_listener(callback)


class AsyncpgDriver(Driver[Any]):
    """A PostgreSQL server, by way of asyncpg."""

    system = "postgresql"

    def __init__(self, dsn: str | None, arguments: dict[str, Any], setup: Setup | None) -> None:
        self._dsn = dsn
        self._arguments = arguments
        self._setup = setup

    def key(self) -> object:
        return self._dsn, repr(sorted(self._arguments.items())), code_of(self._setup)

    async def open(self, member: Member) -> None:
        connection = await asyncpg.connect(
            self._dsn, connection_class=_class_for(member), **self._arguments
        )
        member.connection = connection
        try:
            if self._setup is not None:
                await self._setup(connection)
        except BaseException:
            connection.terminate()
            raise
        member.effect = 0

    async def close(self, member: Member) -> None:
        connection = member.connection
        if member.suspect or member.running or connection.is_closed():
            connection.terminate()
            return
        try:
            await connection.close()
        except BaseException:
            connection.terminate()
            raise

    def alive(self, member: Member) -> bool:
        # The loop has told the driver when the server closed the connection.
        connection = member.connection
        protocol = connection._protocol
        return protocol is not None and not connection._aborted and protocol.is_connected()

    async def check(self, member: Member) -> bool:
        await _execute(member.connection, "")
        return True

    def pinned(self, member: Member) -> bool:
        connection = member.connection
        return not connection.is_closed() and bool(connection.is_in_transaction())

    def clean(self, member: Member) -> bool:
        connection = member.connection
        protocol = connection._protocol
        if (
            member.effect
            or member.suspect
            or member.running
            or connection._cancellations
            or protocol is None
            or connection._aborted
            or not protocol.is_connected()
            or protocol.is_in_transaction()
            or protocol._is_cancelling()
        ):
            return False
        # Transactions that are still held somewhere refuse to work now.
        connection._pool_release_ctr += 1
        return True

    def worn(self, member: Member) -> str | None:
        if member.suspect or member.running:
            return "cancelled"
        connection = member.connection
        if connection.is_closed():
            return "unhealthy"
        if member.effect == Effect.CLOSE:
            return "dirty"
        # An operation that a timeout has cut off is still being cancelled at the server.
        if connection._cancellations or connection._protocol._is_cancelling():
            return "cancelled"
        return None

    def reset(self, member: Member) -> Awaitable[None] | None:
        connection = member.connection
        # Statements, cursors and transactions that are still held somewhere refuse to work now.
        connection._pool_release_ctr += 1
        in_transaction = connection._protocol.is_in_transaction()
        if not in_transaction and member.effect == Effect.NONE:
            return None
        return self._reset(member, in_transaction)

    async def _reset(self, member: Member, in_transaction: bool) -> None:
        connection = member.connection
        connection._top_xact = None
        if in_transaction:
            await _execute(connection, "ROLLBACK")
        if member.effect:
            await _execute(connection, RESET)
            if self._setup is not None:
                await self._setup(connection)
            member.effect = 0

    async def limits(self, connection: Any) -> tuple[int, int]:
        """Return how many connections the server takes, and how many are reserved."""
        found, reserved = await connection.fetchrow(MAX_CONNECTIONS)
        return int(found), int(reserved)


def _class_for(member: Member) -> type[Connection]:
    """Return a class whose instances belong to *member* from their first query on."""

    class Bound(Connection):
        __slots__ = ()

        def __init__(self, *args: Any, **kwargs: Any) -> None:
            self.member = member
            super().__init__(*args, **kwargs)

    Bound.__name__ = Bound.__qualname__ = "Connection"
    return Bound
