"""Connections times workers, against what the server takes."""

from __future__ import annotations

import logging
import os
from typing import Any

import attrs

from sandboxpool._exceptions import OptionError
from sandboxpool._options import check_count

from ._borrow import Borrow
from ._resource import Resource
from ._shared import Shared, all_shared

logger = logging.getLogger("sandboxpool.resources")


@attrs.frozen
class Budget:
    """What a resource may come to need, and what its server takes.

    Attributes:
        name: The name of the resource.
        workers: Worker processes.
        connections: Connections that one worker opens at most.
        limit: What the server takes, all its clients together.
        reserved: How many of these only superusers get.
    """

    name: str
    workers: int
    connections: int
    limit: int
    reserved: int

    @property
    def needed(self) -> int:
        """Connections that all workers open at most."""
        return self.workers * self.connections

    @property
    def available(self) -> int:
        """Connections that the server has for ordinary users."""
        return self.limit - self.reserved

    @property
    def fits(self) -> bool:
        """Whether the server takes as many."""
        return self.needed <= self.available

    def __str__(self) -> str:
        verdict = "which fits" if self.fits else "which is too many"
        return (
            f"{self.name}: {self.workers} workers x {self.connections} connections = "
            f"{self.needed} of {self.available} (max_connections={self.limit}, "
            f"{self.reserved} reserved), {verdict}"
        )


async def budget(
    *resources: Resource[Any], workers: int | None = None, reserve: int = 0
) -> tuple[Budget, ...]:
    """Ask the servers how many connections they take, and warn if the workers may need more.

    Only PostgreSQL says it. Call it at start-up, for example in the app's lifespan.

    Args:
        resources: What to ask about; by default all that are declared in this process.
        workers: Worker processes; by default the `WEB_CONCURRENCY` of the environment, or 1.
        reserve: Connections that others need of the same server, such as migrations.

    Returns:
        One record for each resource whose server has a limit.

    Raises:
        FactoryError: A server cannot be reached.
        OptionError: An option cannot work.
    """
    if workers is None:
        workers = _workers_of_environment()
    check_count("workers", workers, least=1)
    check_count("reserve", reserve, least=0)
    shared: list[Shared] = [resource._shared for resource in resources] or sorted(
        all_shared, key=lambda each: each.name
    )
    found = []
    for each in shared:
        limits: Any = getattr(each.driver, "limits", None)
        if limits is None:
            continue
        async with Borrow[Any](each, None) as connection:
            answer: tuple[int, int] | None = await limits(connection)
        if answer is None:
            continue
        limit, reserved = answer
        record = Budget(each.name, workers, each.max_size, limit, reserved + reserve)
        found.append(record)
        if record.fits:
            logger.info("%s", record)
        else:
            logger.warning(
                "%s: lower max_size to %d, start fewer workers, or raise max_connections of the "
                "server.",
                record,
                max(1, record.available // workers),
            )
    return tuple(found)


def _workers_of_environment() -> int:
    text = os.environ.get("WEB_CONCURRENCY", "1")
    try:
        return max(1, int(text))
    except ValueError:
        raise OptionError(
            f"WEB_CONCURRENCY={text!r}: give the number of worker processes, or pass workers=."
        ) from None
