"""What the two drivers of PostgreSQL have in common: how a session is made as good as new."""

from __future__ import annotations

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
