"""What the two drivers of PostgreSQL have in common: how a session is made as good as new."""

from __future__ import annotations

import os
import select
import socket
from typing import Any

import anyio

_STOPS_WITHIN = 1.0
_ACTIVE = 1  # PQTRANS_ACTIVE of libpq

RESET = (
    "RESET SESSION AUTHORIZATION; RESET ROLE; CLOSE ALL; UNLISTEN *; RESET ALL; "
    "SELECT pg_catalog.pg_advisory_unlock_all(); DISCARD TEMP; DISCARD SEQUENCES; "
    "DO $$ DECLARE name text; BEGIN "
    "FOR name IN SELECT p.name FROM pg_catalog.pg_prepared_statements p WHERE p.from_sql LOOP "
    "EXECUTE pg_catalog.format('DEALLOCATE %I', name); END LOOP; END $$"
)
"""
What `DISCARD ALL` does, but for the statements that the driver has prepared, which it still counts
on, and the plans, which belong to nobody. One round trip.

Source: the list of what `DISCARD ALL` stands for, in PostgreSQL's documentation of DISCARD.
"""

MAX_CONNECTIONS = (
    "SELECT pg_catalog.current_setting('max_connections')::int, "
    "pg_catalog.current_setting('superuser_reserved_connections')::int + "
    "coalesce(pg_catalog.current_setting('reserved_connections', true), '0')::int"
)
"""How many connections the server takes, and how many of them only superusers get."""


def is_silent(fd: int) -> bool:
    """Tell whether nothing is to be read from the socket of an idle connection.

    What there is to read is the end of the stream: the server has closed the connection.
    """
    if not hasattr(select, "poll"):  # Windows
        return not select.select([fd], [], [], 0)[0]
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return not poll.poll(0)


async def stop_psycopg(connection: Any) -> None:
    """End what still runs on a connection of psycopg, so that it can be closed.

    Whoever runs it waits for the socket in the event loop. Closed under them, its number would be
    given to the next connection, and the two would be taken for each other.
    """
    if not _active(connection):
        return
    from psycopg import capabilities

    if capabilities.has_cancel_safe():  # else libpq blocks the process while it asks
        try:
            await connection.cancel_safe(timeout=_STOPS_WITHIN)
        except Exception:
            pass  # the server cannot be asked: it finds the connection gone
        with anyio.move_on_after(_STOPS_WITHIN):
            await _idle(connection)
    if _active(connection):
        # Whoever reads gets the end of the stream.
        with socket.socket(fileno=os.dup(connection.pgconn.socket)) as sock:
            try:
                sock.shutdown(socket.SHUT_RDWR)
            except OSError:
                pass  # it is that far already
        with anyio.move_on_after(_STOPS_WITHIN):
            await _idle(connection)


def _active(connection: Any) -> bool:
    return not connection.closed and connection.pgconn.transaction_status == _ACTIVE


async def _idle(connection: Any) -> None:
    while _active(connection):  # noqa: ASYNC110 - it is hardly ever more than a pass of the loop
        await anyio.sleep(0.005)
