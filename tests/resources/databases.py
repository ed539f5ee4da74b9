"""PostgreSQL by way of each driver, spoken to in one way."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import text

from sandboxpool import resources


class Database:
    """
    A resource of PostgreSQL.

    Attributes:
        driver: How it is reached.
        resource: The resource.
    """

    def __init__(self, driver: str, url: str, **options: Any) -> None:
        self.driver = driver
        options = {"name": driver, **options}
        self.resource: Any
        if driver == "asyncpg":
            self.resource = resources.asyncpg(url, **options)
        elif driver == "psycopg":
            self.resource = resources.psycopg(url, **options)
        else:
            url = url.replace("postgresql:", f"postgresql+{driver.removeprefix('sqlalchemy-')}:")
            self.resource = resources.sqlalchemy(url, **options)

    async def run(self, connection: Any, statement: str) -> Any:
        """Return the first value of the first row, or `None` if there are none."""
        if self.driver == "asyncpg":
            if ";" in statement:
                return await connection.execute(statement)
            return await connection.fetchval(statement)
        if self.driver == "psycopg":
            cursor = await connection.execute(statement)
            return (await cursor.fetchone())[0] if cursor.description else None
        result = await connection.execute(text(statement.replace(":", "\\:")))
        return result.scalar() if result.returns_rows else None

    async def commit(self, connection: Any) -> None:
        """Commit what the driver has begun by itself."""
        if self.driver.startswith("sqlalchemy"):
            await connection.commit()

    async def ask(self, statement: str) -> Any:
        """Run a statement in a use of its own."""
        async with self.resource.connection() as connection:
            return await self.run(connection, statement)


MakeDatabase = Callable[..., Database]
DRIVERS = ["asyncpg", "psycopg", "sqlalchemy-asyncpg", "sqlalchemy-psycopg"]
each_driver = pytest.mark.parametrize("driver", DRIVERS)
on_asyncio = pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
