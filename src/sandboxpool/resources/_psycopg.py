"""PostgreSQL, by way of psycopg 3."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from time import monotonic
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
_wait = psycopg.AsyncConnection.wait
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


# What a request may set on the object that stands for the connection.
_SETTABLE = frozenset(
    (
        "_autocommit",
        "_isolation_level",
        "_read_only",
        "_deferrable",
        "row_factory",
        "cursor_factory",
        "server_cursor_factory",
        "prepare_threshold",
        "prepared_max",
    )
)


class Connection(psycopg.AsyncConnection[Any]):
    """A connection that tells what runs on it, and what that may leave behind.

    Whatever it does, also by its cursors and pipelines, goes through `wait()`, which gets a
    generator; the statement is one of its arguments.
    """

    member: Member | None = None
    touched = False

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _SETTABLE:
            object.__setattr__(self, "touched", True)
        object.__setattr__(self, name, value)

    def wait(self, gen: Any, *args: Any, **kwargs: Any) -> Any:
        # It returns what the driver awaits, and looks at nothing later: while something runs, the
        # state of the connection is ACTIVE, and if it is cut off the driver brings that in order.
        member = self.member
        if member is not None:  # else it is being opened
            try:
                member.begin()
            except BaseException:
                gen.close()
                raise
            member.running = 0
            member.used_at = monotonic()
            if member.effect < Effect.CLOSE:
                effect = self._effect_of(gen)
                if effect > member.effect:
                    member.effect = effect
        return _wait(self, gen, *args, **kwargs)

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
        adapters = connection._adapters = _Adapters(connection.adapters)
        adapters.connection = connection
        connection.touched = False
        member.extra = _attributes(connection)

    async def close(self, member: Member) -> None:
        connection = member.connection
        connection.adapters.connection = None  # they lead to each other
        await stop_psycopg(connection)
        await connection.close()

    def alive(self, member: Member) -> bool:
        connection = member.connection
        if connection.pgconn.status != 0:  # CONNECTION_OK
            return False
        return self.busy(member) or is_silent(connection.pgconn.socket)

    def lost(self, member: Member) -> bool:
        return bool(member.connection.pgconn.status != 0)

    async def check(self, member: Member) -> bool:
        await member.connection.execute("")
        if member.connection.pgconn.transaction_status != IDLE:
            await member.connection.rollback()
        return True

    def busy(self, member: Member) -> bool:
        return bool(member.connection.pgconn.transaction_status == ACTIVE)

    def pinned(self, member: Member) -> bool:
        return bool(member.connection.pgconn.transaction_status != IDLE)

    def clean(self, member: Member) -> bool:
        connection = member.connection
        before = member.extra
        return bool(
            member.effect == 0
            and not connection.touched
            and connection.pgconn.transaction_status == IDLE
            and connection._pipeline is None
            and len(connection._notice_handlers) == before["notices"]
            and len(connection._notify_handlers) == before["notifies"]
        )

    def worn(self, member: Member) -> str | None:
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
        return None

    def reset(self, member: Member) -> Awaitable[None] | None:
        return None if self.clean(member) else self._reset(member)

    async def _reset(self, member: Member) -> None:
        connection = member.connection
        if connection.pgconn.transaction_status != IDLE:
            await connection.rollback()
        await _restore(connection, member.extra)
        if member.effect:
            if not member.extra["_autocommit"]:
                await connection.set_autocommit(True)
            # Never prepared, however often it runs: it is several statements.
            await psycopg.AsyncCursor(connection).execute(RESET, prepare=False)
            if not member.extra["_autocommit"]:
                await connection.set_autocommit(False)
            if self._setup is not None:
                await self._setup(connection)
            connection.touched = False
            member.effect = 0

    async def limits(self, connection: AsyncConnection) -> tuple[int, int]:
        """Return how many connections the server takes, and how many are reserved."""
        row = await (await connection.execute(MAX_CONNECTIONS)).fetchone()
        assert row is not None
        found, reserved = tuple(row.values()) if isinstance(row, dict) else row
        return int(found), int(reserved)


class _Adapters(AdaptersMap):
    """Adapters of a connection, which tell it when they are added to."""

    __module__ = "psycopg.adapt"

    connection: Any = None

    def register_dumper(self, *args: Any, **kwargs: Any) -> None:
        self._note()
        super().register_dumper(*args, **kwargs)

    def register_loader(self, *args: Any, **kwargs: Any) -> None:
        self._note()
        super().register_loader(*args, **kwargs)

    def _note(self) -> None:
        if self.connection is not None:
            self.connection.member.effect = Effect.CLOSE


def _attributes(connection: Any) -> dict[str, Any]:
    """Return what a request may have set on the object that stands for the connection."""
    return {
        **{name: getattr(connection, name) for name in _SETTABLE},
        "_notice_handlers": tuple(connection._notice_handlers),
        "_notify_handlers": tuple(connection._notify_handlers),
        "notices": len(connection._notice_handlers),
        "notifies": len(connection._notify_handlers),
    }


async def _restore(connection: Any, attributes: dict[str, Any]) -> None:
    """Set the attributes of an idle connection back."""
    connection._notice_handlers[:] = attributes["_notice_handlers"]
    connection._notify_handlers[:] = attributes["_notify_handlers"]
    if not connection.touched:
        return
    if connection._autocommit != attributes["_autocommit"]:
        await connection.set_autocommit(attributes["_autocommit"])
    for name in _SETTABLE:
        if name != "_autocommit":
            setattr(connection, name, attributes[name])
    # They go into the BEGIN of each transaction, whose text is kept.
    connection._begin_statement = b""
    connection.touched = False
