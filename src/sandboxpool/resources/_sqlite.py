"""SQLite, by way of aiosqlite: a thread for each connection."""

from __future__ import annotations

import sqlite3
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import aiosqlite

from sandboxpool._exceptions import OptionError

from ._member import Driver, Member
from ._resource import code_of

Setup = Callable[[Any], Awaitable[object]]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# What begins a statement that leaves nothing but data: others may attach, set or define something.
_PLAIN = _words(
    """
    select values with insert replace update delete begin commit end rollback savepoint
    release explain create drop alter reindex analyze vacuum
    """
)
# What a connection may be asked for without being changed for those who come later.
_HARMLESS = _words(
    """
    execute executemany executescript fetchone fetchmany fetchall commit rollback close
    cursor _execute_insert _execute_fetchall iterdump backup
    """
)


class Connection(aiosqlite.Connection):
    """A connection that tells what runs on it."""

    member: Member

    async def _execute(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        member = self.member
        member.begin()
        error: BaseException | None = None
        name = getattr(fn, "__name__", "")
        if name not in _HARMLESS or (
            args and isinstance(args[0], str) and not all(map(_is_plain, args[0].split(";")))
        ):
            member.effect = 1
        try:
            return await super()._execute(fn, *args, **kwargs)  # type: ignore[no-untyped-call] # theirs
        except BaseException as raised:
            error = raised
            raise
        finally:
            member.end(error)


def _is_plain(statement: str) -> bool:
    words = statement.lower().split(None, 2)
    if not words:
        return True
    if words[0] not in _PLAIN:
        return False
    return words[0] != "create" or words[1:2] not in (["temp"], ["temporary"])


class SqliteDriver(Driver[aiosqlite.Connection]):
    """A file; each connection sees what the others have committed."""

    system = "sqlite"

    def __init__(self, database: str, arguments: dict[str, Any], setup: Setup | None) -> None:
        private = database in ("", ":memory:") or (
            arguments.get("uri") and "memory" in database and "cache=shared" not in database
        )
        if private:
            raise OptionError(
                f"database={database!r}: each connection would have a database of its own, and "
                "there are several. Name a file, or give "
                "'file:name?mode=memory&cache=shared' with uri=True and min_size=1."
            )
        self._database = database
        self._arguments = arguments
        self._setup = setup

    def key(self) -> object:
        return self._database, repr(sorted(self._arguments.items())), code_of(self._setup)

    async def open(self, member: Member) -> None:
        connect = partial(sqlite3.connect, self._database, **self._arguments)
        connection = Connection(connect, 64)
        # It ends with the process, if it is never closed.
        connection._thread.daemon = True
        connection.member = member
        try:
            await connection
            if self._setup is not None:
                await self._setup(connection)
                await connection.rollback() if connection.in_transaction else None
        except BaseException:
            connection.stop()
            raise
        member.connection = connection
        member.effect = 0
        member.extra = _attributes(connection)

    async def close(self, member: Member) -> None:
        connection = member.connection
        if connection._connection is not None:
            # What was cut off still runs in the thread.
            connection._connection.interrupt()
        await aiosqlite.Connection.close(connection)

    def alive(self, member: Member) -> bool:
        return bool(member.connection._running and member.connection._connection is not None)

    def pinned(self, member: Member) -> bool:
        return bool(member.connection.in_transaction)

    def worn(self, member: Member) -> str | None:
        # Opening a file is cheaper than finding out what was set on the old connection.
        return super().worn(member) or ("dirty" if member.effect else None)

    def reset(self, member: Member) -> Awaitable[None] | None:
        if member.connection.in_transaction:
            return self._roll_back(member)
        _restore(member)
        return None

    async def _roll_back(self, member: Member) -> None:
        await member.connection.rollback()
        # Not before: to set an isolation level of None commits what is open (before Python 3.11).
        _restore(member)


def _attributes(connection: Any) -> dict[str, Any]:
    names = ("row_factory", "text_factory", "isolation_level")
    return {name: getattr(connection, name) for name in names}


def _restore(member: Member) -> None:
    for name, value in member.extra.items():
        if getattr(member.connection, name) != value:
            setattr(member.connection, name, value)
