"""Redis, by way of redis-py."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from redis.asyncio import ConnectionPool, Redis

from sandboxpool._exceptions import ConnectionBusyError

from ._member import Driver, Member

# Commands that leave something on their connection that the next one who has it would meet. Those
# of Redis are listed under "connection", "transactions" and "pubsub" in its reference of commands;
# UNWATCH and EXEC undo what WATCH and MULTI do, and redis-py sees to that they come.
_STATEFUL = frozenset(
    (
        "ASKING",
        "AUTH",
        "CLIENT",
        "HELLO",
        "MONITOR",
        "PSUBSCRIBE",
        "PSYNC",
        "QUIT",
        "READONLY",
        "READWRITE",
        "REPLCONF",
        "RESET",
        "SELECT",
        "SSUBSCRIBE",
        "SUBSCRIBE",
        "SYNC",
    )
)
_HARMLESS = frozenset(
    f"CLIENT {word}"
    for word in ("ID", "INFO", "LIST", "GETNAME", "GETREDIR", "KILL", "UNBLOCK", "TRACKINGINFO")
)
_BUSY_FOR = 30.0  # seconds to wait for another task that has the connection, unless told otherwise


class OnlyConnection(ConnectionPool):
    """What redis-py takes its connections from: here there is one, for one command at a time.

    A pipeline that watches, and a subscription, have it until they are reset. Other tasks wait for
    that; the same task would wait for itself, so it gets an error.
    """

    member: Member
    only: Any = None
    _lock: Any
    _owner: object = None
    _free: asyncio.Event | None = None
    _queue: int = 0

    async def get_connection(self, *args: Any, **kwargs: Any) -> Any:
        task = asyncio.current_task()
        while self._owner is not None:
            if self._owner is task:
                raise ConnectionBusyError(
                    f"a pipeline that watches, or a subscription, has this connection of "
                    f"{self.member.name!r}: send the command by it, reset it before, or use "
                    "another `connection()`."
                )
            if self._free is None:
                self._free = asyncio.Event()
            try:
                await asyncio.wait_for(self._free.wait(), _BUSY_FOR)
            except asyncio.TimeoutError:
                raise ConnectionBusyError(
                    f"this connection of {self.member.name!r} was in use by another task of the "
                    f"request for {_BUSY_FOR:g} s: give each of them a `connection()` of its own."
                ) from None
        self.member.begin()
        self._owner = task
        if not self.only.is_connected:
            try:
                await self.only.connect()
            except BaseException as error:
                self._give_back(error)
                raise
        return self.only

    async def release(self, connection: Any) -> None:
        if self._owner is not None:
            self._give_back(None)

    def _give_back(self, error: BaseException | None) -> None:
        self._owner = None
        self.member.end(error)
        if self._free is not None:
            self._free.set()
            self._free = None

    async def disconnect(self, inuse_connections: bool = True, **kwargs: Any) -> None:
        await self.only.disconnect(nowait=True)

    async def aclose(self) -> None:
        # `Redis.aclose()` of a borrowed client: the connection is the pool's.
        pass

    def reset(self) -> None:
        self._available_connections: list[Any] = []
        self._in_use_connections: set[Any] = set()


def tracked(connection_class: type[Any], member: Member) -> type[Any]:
    """Return a class of connections that note what is sent and what is cut off."""

    class Connection(connection_class):  # type: ignore[misc]
        async def connect(self, *args: Any, **kwargs: Any) -> Any:
            # What the driver sends by itself at the start is what each connection begins with.
            effect = member.effect
            try:
                return await super().connect(*args, **kwargs)
            finally:
                member.effect = effect

        async def connect_check_health(self, *args: Any, **kwargs: Any) -> Any:
            effect = member.effect
            try:
                return await super().connect_check_health(*args, **kwargs)
            finally:
                member.effect = effect

        def pack_command(self, *args: Any) -> Any:
            note(args)
            return super().pack_command(*args)

        def pack_commands(self, commands: Any) -> Any:
            commands = list(commands)
            for command in commands:
                note(command)
            return super().pack_commands(commands)

        async def send_packed_command(self, *args: Any, **kwargs: Any) -> Any:
            try:
                return await super().send_packed_command(*args, **kwargs)
            except BaseException as error:
                if not isinstance(error, Exception):
                    member.suspect = True
                raise

        async def read_response(self, *args: Any, **kwargs: Any) -> Any:
            try:
                return await super().read_response(*args, **kwargs)
            except BaseException as error:
                if not isinstance(error, Exception):
                    member.suspect = True
                raise

    def note(command: Any) -> None:
        name = _text(command[0])
        if name.partition(" ")[0] in _STATEFUL:
            if name == "CLIENT" and len(command) > 1:
                name = f"CLIENT {_text(command[1])}"
            if name not in _HARMLESS:
                member.effect = 1

    Connection.__name__ = Connection.__qualname__ = connection_class.__name__
    return Connection


def _text(word: Any) -> str:
    return (word.decode("ascii", "replace") if isinstance(word, bytes) else str(word)).upper()


class BorrowedRedis(Redis):
    """A client over one connection."""

    def set_response_callback(self, command: Any, callback: Callable[..., Any]) -> None:
        pool: Any = self.connection_pool
        pool.member.effect = 1
        super().set_response_callback(command, callback)


class RedisDriver(Driver[Any]):
    """A Redis server."""

    system = "redis"

    def __init__(self, url: str, arguments: dict[str, Any]) -> None:
        self._url = url
        self._arguments = arguments

    def key(self) -> object:
        return self._url, repr(sorted(self._arguments.items()))

    async def open(self, member: Member) -> None:
        pool: Any = OnlyConnection.from_url(self._url, **self._arguments)
        pool.member = member
        pool.connection_class = tracked(pool.connection_class, member)
        pool.only = pool.make_connection()
        try:
            await pool.only.connect()
        except BaseException:
            await pool.only.disconnect(nowait=True)
            raise
        member.connection = BorrowedRedis(connection_pool=pool)
        member.effect = 0

    async def close(self, member: Member) -> None:
        await member.connection.connection_pool.only.disconnect(nowait=True)

    def alive(self, member: Member) -> bool:
        connection = member.connection.connection_pool.only
        reader = connection._reader
        if not connection.is_connected or reader is None:
            return False
        # What an idle connection has received is the answer to somebody else's command.
        return bool(member.running) or not (reader._eof or reader._buffer or reader.exception())

    def lost(self, member: Member) -> bool:
        return False  # the client connects anew by itself

    async def check(self, member: Member) -> bool:
        return bool(await member.connection.ping())

    def pinned(self, member: Member) -> bool:
        return bool(member.running)

    def worn(self, member: Member) -> str | None:
        return super().worn(member) or ("dirty" if member.effect else None)
