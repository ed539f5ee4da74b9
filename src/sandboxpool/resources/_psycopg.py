"""PostgreSQL, by way of psycopg 3."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from operator import is_
from typing import Any, TypeAlias

import psycopg
from psycopg.adapt import AdaptersMap
from psycopg.pq import PipelineStatus, TransactionStatus
from psycopg.sql import Composable

from ._member import Driver, Member
from ._postgres import MAX_CONNECTIONS, RESET, is_silent, stop_psycopg
from ._resource import code_of
from ._sql import Effect, effect_of

AsyncConnection: TypeAlias = psycopg.AsyncConnection[Any]
Setup = Callable[[AsyncConnection], Awaitable[object]]
IDLE, ACTIVE = TransactionStatus.IDLE, TransactionStatus.ACTIVE

# Generators of the driver that run what the driver itself says.
_OWN = frozenset(
    (
        "_enter_gen",
        "_exit_gen",
        "_commit_gen",
        "_rollback_gen",
        "_set_autocommit_gen",
        "_set_isolation_level_gen",
        "_set_read_only_gen",
        "_set_deferrable_gen",
        "_stream_fetchone_gen",
        "_fetch_gen",
        "_scroll_gen",
        "_close_gen",
        "_sync_gen",
        "_read_gen",
        "_read_row_gen",
        "_write_gen",
        "_end_copy_in_gen",
        "_end_copy_out_gen",
        "copy_to",
        "copy_end",
        "copy_from",
        "fetch_many",
    )
)


class Connection(psycopg.AsyncConnection[Any]):
    """A connection that tells what runs on it, and what that may leave behind.

    Whatever it does, also by its cursors and pipelines, goes through `wait()`, which gets a
    generator; the statement is one of its arguments.
    """

    member: Member

    async def wait(self, gen: Any, *args: Any, **kwargs: Any) -> Any:
        member: Member | None = getattr(self, "member", None)
        if member is None:  # it is being opened
            return await super().wait(gen, *args, **kwargs)
        try:
            member.begin()
        except BaseException:
            gen.close()
            raise
        error: BaseException | None = None
        try:
            if member.effect < Effect.CLOSE:
                effect = self._effect_of(gen)
                if effect > member.effect:
                    member.effect = effect
            return await super().wait(gen, *args, **kwargs)
        except BaseException as raised:
            error = raised
            raise
        finally:
            member.end(error)

    def _effect_of(self, gen: Any) -> int:
        frame = getattr(gen, "gi_frame", None)
        if frame is None:
            return Effect.RESET
        given = frame.f_locals
        query = given.get("query", given.get("statement"))
        if query is None:
            return Effect.NONE if frame.f_code.co_name in _OWN else Effect.RESET
        if isinstance(query, Composable):
            query = query.as_string(self)
        elif isinstance(query, bytes):
            query = query.decode("utf-8", "replace")
        return effect_of(query) if isinstance(query, str) else Effect.RESET


class PsycopgDriver(Driver[AsyncConnection]):
    """A PostgreSQL server, by way of psycopg."""

    system = "postgresql"

    def __init__(self, conninfo: str, arguments: dict[str, Any], setup: Setup | None) -> None:
        self._conninfo = conninfo
        # Without it, each statement outside of `transaction()` begins a transaction, which would
        # be rolled back at the end, with another round trip.
        self._arguments = {"autocommit": True, **arguments}
        self._setup = setup

    def key(self) -> object:
        return self._conninfo, repr(sorted(self._arguments.items())), code_of(self._setup)

    async def open(self, member: Member) -> None:
        connection = await Connection.connect(self._conninfo, **self._arguments)
        member.connection = connection
        connection.member = member
        try:
            if self._setup is not None:
                await self._setup(connection)
        except BaseException:
            await connection.close()
            raise
        member.effect = 0
        # One that has nothing of its own yet.
        connection._adapters = AdaptersMap(connection.adapters)
        member.extra = _attributes(connection)

    async def close(self, member: Member) -> None:
        await stop_psycopg(member.connection, member)
        await member.connection.close()

    def alive(self, member: Member) -> bool:
        connection = member.connection
        if connection.pgconn.status != 0:  # CONNECTION_OK
            return False
        return bool(member.running) or is_silent(connection.pgconn.socket)

    async def check(self, member: Member) -> bool:
        await member.connection.execute("")
        if member.connection.pgconn.transaction_status != IDLE:
            await member.connection.rollback()
        return True

    def pinned(self, member: Member) -> bool:
        return bool(member.connection.pgconn.transaction_status != IDLE)

    def worn(self, member: Member) -> str | None:
        if member.running:
            return "cancelled"
        pgconn = member.connection.pgconn
        if pgconn.status != 0:
            return "unhealthy"
        # psycopg stops a query that was cut off, and waits until the server has said so: then the
        # state is known again, and is not ACTIVE.
        if (
            pgconn.transaction_status in (ACTIVE, TransactionStatus.UNKNOWN)
            or pgconn.pipeline_status != PipelineStatus.OFF
        ):
            return "cancelled"
        if member.effect == Effect.CLOSE:
            return "dirty"
        return None if self.alive(member) else "unhealthy"

    def reset(self, member: Member) -> Awaitable[None] | None:
        member.suspect = False
        connection = member.connection
        if _attributes(connection) != member.extra:
            return self._reset(member)
        if member.effect == Effect.NONE and connection.pgconn.transaction_status == IDLE:
            return None
        return self._reset(member)

    async def _reset(self, member: Member) -> None:
        connection = member.connection
        if connection.pgconn.transaction_status != IDLE:
            await connection.rollback()
        await _restore(connection, member.extra)
        if member.effect:
            await connection.set_autocommit(True)
            # Never prepared, however often it runs: it is several statements.
            await psycopg.AsyncCursor(connection).execute(RESET, prepare=False)
            await connection.set_autocommit(member.extra["_autocommit"])
            if self._setup is not None:
                await self._setup(connection)
            member.effect = 0

    async def limits(self, connection: AsyncConnection) -> tuple[int, int]:
        """Return how many connections the server takes, and how many are reserved."""
        row = await (await connection.execute(MAX_CONNECTIONS)).fetchone()
        assert row is not None
        found, reserved = tuple(row.values()) if isinstance(row, dict) else row
        return int(found), int(reserved)


def _attributes(connection: Any) -> dict[str, Any]:
    """Return what a request may have set on the object that stands for the connection."""
    return {
        "_autocommit": connection._autocommit,
        "_isolation_level": connection._isolation_level,
        "_read_only": connection._read_only,
        "_deferrable": connection._deferrable,
        "row_factory": connection.row_factory,
        "cursor_factory": connection.cursor_factory,
        "server_cursor_factory": connection.server_cursor_factory,
        "prepare_threshold": connection.prepare_threshold,
        "prepared_max": connection.prepared_max,
        "notices": tuple(connection._notice_handlers),
        "notifies": tuple(connection._notify_handlers),
        "adapters": _tables(connection.adapters),
    }


class _Same:
    """Tables that are the same ones, not equal ones: that is quicker, and holds them."""

    __slots__ = ("_tables",)

    def __init__(self, tables: tuple[object, ...]) -> None:
        self._tables = tables

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Same) and all(map(is_, self._tables, other._tables))

    __hash__ = None  # type: ignore[assignment] # nobody asks


def _tables(adapters: Any) -> _Same:
    # A table that a connection has in common with others is copied before it is changed.
    return _Same(
        (
            adapters,
            *adapters._dumpers.values(),
            *adapters._dumpers_by_oid,
            *adapters._loaders,
            adapters.types._registry,
        )
    )


async def _restore(connection: Any, attributes: dict[str, Any]) -> None:
    """Set the attributes of an idle connection back."""
    now = _attributes(connection)
    if now == attributes:
        return
    if now["adapters"] != attributes["adapters"]:
        raise RuntimeError("adapters were registered on a pooled connection")
    for name in (
        "_isolation_level",
        "_read_only",
        "_deferrable",
        "row_factory",
        "cursor_factory",
        "server_cursor_factory",
        "prepare_threshold",
        "prepared_max",
    ):
        setattr(connection, name, attributes[name])
    # They go into the BEGIN of each transaction, whose text is kept.
    connection._begin_statement = b""
    if now["_autocommit"] != attributes["_autocommit"]:
        await connection.set_autocommit(attributes["_autocommit"])
    connection._notice_handlers[:] = attributes["notices"]
    connection._notify_handlers[:] = attributes["notifies"]
