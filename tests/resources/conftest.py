"""Real servers for the tests of resources, started when the first test asks."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.hooks.servers import HOST, Fleet, fleet  # noqa: F401 - a fixture


@pytest.fixture
def postgres(fleet: Fleet) -> str:  # noqa: F811 - the fixture
    """Return the URL of a PostgreSQL server."""
    return f"postgresql://postgres@{HOST}:{fleet('postgres')}/postgres"


@pytest.fixture
def redis_url(fleet: Fleet) -> str:  # noqa: F811 - the fixture
    """Return the URL of a Redis server."""
    return f"redis://{HOST}:{fleet('redis')}/0"


@pytest.fixture
def warnings_of(caplog: pytest.LogCaptureFixture) -> Callable[[str], list[str]]:
    """Return a function that returns what a logger has warned of."""

    def told(name: str) -> list[str]:
        return [record.getMessage() for record in caplog.records if record.name == name]

    return told
