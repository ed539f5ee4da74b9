"""SQLAlchemy's async sessions over one engine."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession, create_async_engine
from sqlalchemy.pool import NullPool

from ._member import Driver, Member
from ._postgres import MAX_CONNECTIONS, RESET, is_silent, stop_psycopg
from ._resource import code_of
from ._sql import Effect, effect_of

Setup = Callable[[AsyncConnection], Awaitable[object]]
_MEMBER = "sandboxpool"
_SYSTEMS = {"mariadb": "mariadb", "mssql": "microsoft.sql_server", "oracle": "oracle.db"}
# Of these it is known how to reset a session; connections of others are closed instead.
_RESETS = ("asyncpg", "psycopg", "psycopg_async")


class SqlalchemyDriver(Driver[AsyncSession]):
    """A database, by whichever async dialect of SQLAlchemy.

    The engine has no pool of its own; each pooled connection is one of its connections, and whoever
    borrows it gets a new session over it.
    """

    def __init__(
        self,
        url: Any,
        engine_options: dict[str, Any],
        session_options: dict[str, Any],
        setup: Setup | None,
    ) -> None:
        self._key = str(url), repr(sorted(engine_options.items())), code_of(setup)
        self.engine = create_async_engine(url, **{**engine_options, "poolclass": NullPool})
        self._session_options = {"expire_on_commit": False, **session_options}
        self._setup = setup
        dialect = self.engine.dialect
        self.system = _SYSTEMS.get(dialect.name, dialect.name)
        self._resets = dialect.driver in _RESETS
        event.listen(self.engine.sync_engine, "before_cursor_execute", _before)
        event.listen(self.engine.sync_engine, "after_cursor_execute", _after)
        event.listen(self.engine.sync_engine, "handle_error", _failed)

    def key(self) -> object:
        return self._key, repr(sorted(self._session_options.items()))

    async def open(self, member: Member) -> None:
        connection = self.engine.connect()
        try:
            await connection.start()
            _sync(connection).info[_MEMBER] = member
            if self._setup is not None:
                await self._setup(connection)
                await connection.commit()
        except BaseException:
            await connection.close()
            raise
        member.connection = connection
        member.effect = 0

    async def close(self, member: Member) -> None:
        session, member.extra = member.extra, None
        if member.running and not member.connection.invalidated:
            if self.engine.dialect.driver.startswith("psycopg"):
                raw = _sync(member.connection).connection.driver_connection
                await stop_psycopg(raw)
            await member.connection.invalidate()
        try:
            if session is not None:
                await session.close()
        finally:
            await member.connection.close()

    async def check(self, member: Member) -> bool:
        connection = member.connection
        await connection.exec_driver_sql("SELECT 1")
        await connection.rollback()
        return True

    def alive(self, member: Member) -> bool:
        connection = member.connection.sync_connection
        if connection is None or connection.closed or connection.invalidated:
            return False
        if connection.info.get(_MEMBER) is not member:
            return False  # SQLAlchemy has connected anew, and nobody has seen what ran there
        driver = connection.connection.driver_connection
        pgconn = getattr(driver, "pgconn", None)
        if pgconn is not None:  # psycopg does not know it before it uses the socket
            return pgconn.status == 0 and (bool(member.running) or is_silent(pgconn.socket))
        closed = getattr(driver, "is_closed", None)  # asyncpg knows it at once
        return not (closed() if callable(closed) else getattr(driver, "closed", False))

    def lost(self, member: Member) -> bool:
        connection = member.connection.sync_connection
        return bool(connection is None or connection.closed)

    def lend(self, member: Member) -> AsyncSession:
        if member.extra is None:
            member.extra = AsyncSession(member.connection, **self._session_options)
        session: AsyncSession = member.extra
        return session

    def pinned(self, member: Member) -> bool:
        session = member.extra
        return bool(member.connection.in_transaction() or (session and session.in_transaction()))

    def worn(self, member: Member) -> str | None:
        reason = super().worn(member)
        if reason is None and (
            member.effect == Effect.CLOSE or (member.effect and not self._resets)
        ):
            return "dirty"
        return reason

    def reset(self, member: Member) -> Awaitable[None] | None:
        session, member.extra = member.extra, None
        if member.effect or member.connection.in_transaction():
            return self._reset(member, session)
        if session is not None:
            if session.in_transaction():
                return self._reset(member, session)
            session.sync_session.close()  # nothing is open: nothing is sent
        return None

    async def _reset(self, member: Member, session: AsyncSession | None) -> None:
        connection = member.connection
        if session is not None:
            await session.close()
        if connection.in_transaction():
            await connection.rollback()
        if member.effect:
            # Not by SQLAlchemy, which would prepare it: it is several statements.
            driver = (await connection.get_raw_connection()).driver_connection
            more = {} if self.engine.dialect.driver == "asyncpg" else {"prepare": False}
            await driver.execute(RESET, **more)
            if more:
                await driver.commit()
            await connection.rollback()
            if self._setup is not None:
                await self._setup(connection)
                await connection.commit()
            member.effect = 0

    async def limits(self, session: AsyncSession) -> tuple[int, int] | None:
        """Return how many connections the server takes, and how many are reserved."""
        if self.engine.dialect.name != "postgresql":
            return None
        row: Any = (await (await session.connection()).exec_driver_sql(MAX_CONNECTIONS)).one()
        return int(row[0]), int(row[1])


def _sync(connection: AsyncConnection) -> Any:
    return connection.sync_connection


def _before(
    connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool
) -> None:
    member: Member | None = connection.info.get(_MEMBER)
    if member is not None:
        member.begin()
        effect = effect_of(statement)
        if effect > member.effect:
            member.effect = effect


def _after(
    connection: Any, cursor: Any, statement: str, parameters: Any, context: Any, many: bool
) -> None:
    member: Member | None = connection.info.get(_MEMBER)
    if member is not None:
        member.end()


def _failed(context: Any) -> None:
    connection = context.connection
    member: Member | None = None
    if connection is not None and not connection.invalidated and not connection.closed:
        member = connection.info.get(_MEMBER)
    if member is not None and member.running:
        member.end(context.original_exception)
