"""Pools of connections in cooperative requests: their locks are held while a request waits."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from time import monotonic
from typing import Any

import anyio
import pytest
import redis
import requests
import requests.adapters
import sqlalchemy

from tests.wrap.client import Connection

from .request import PATIENCE, at_once, sandboxed
from .servers import HOST, UNCLOSED, Fleet
from .servers import fleet as fleet

pytestmark = [
    pytest.mark.server,
    pytest.mark.usefixtures("cooperative"),
    pytest.mark.backend_with_uvloop,
    UNCLOSED,
]

SECONDS = 0.1

# A pool of so many connections, as a function that takes one to ask the server for something
# after so many seconds, and gives it back.
Ask = Callable[[float], str]


def requests_pool(fleet: Fleet, size: int) -> Iterator[Ask]:
    url = f"http://{HOST}:{fleet('http')}/wait/"
    with requests.Session() as session:
        adapter = requests.adapters.HTTPAdapter(pool_maxsize=size, pool_block=True)
        session.mount("http://", adapter)
        yield lambda seconds: session.get(f"{url}{seconds}", timeout=PATIENCE).text
        [pool] = [adapter.poolmanager.connection_from_url(url)]
        assert pool.num_connections <= size + 1  # one more for the one that was cut off


def redis_pool(fleet: Fleet, size: int) -> Iterator[Ask]:
    pool = redis.BlockingConnectionPool(  # type: ignore[no-untyped-call]
        host=HOST,
        port=fleet("redis"),
        max_connections=size,
        timeout=PATIENCE,
        socket_timeout=None,
        protocol=2,
    )
    with redis.Redis(connection_pool=pool) as client:

        def ask(seconds: float) -> str:
            if seconds:
                client.blpop(["nothing"], timeout=seconds)
            return str(client.echo("hello").decode())

        yield ask
        pool.disconnect()


def sqlalchemy_pool(fleet: Fleet, size: int) -> Iterator[Ask]:
    engine = sqlalchemy.create_engine(
        f"postgresql+pg8000://postgres@{HOST}:{fleet('postgres')}/postgres",
        connect_args={"ssl_context": False},
        pool_size=size,
        max_overflow=0,
        pool_timeout=PATIENCE,
    )

    def ask(seconds: float) -> str:
        with engine.begin() as connection:
            statement = sqlalchemy.text("SELECT 'hello', pg_sleep(:seconds)")
            return str(connection.execute(statement, {"seconds": seconds}).one()[0])

    yield ask
    engine.dispose()
    gc.collect()  # now, not in somebody else's test


POOLS = {"requests": requests_pool, "redis": redis_pool, "sqlalchemy": sqlalchemy_pool}


@pytest.fixture(params=POOLS)
def pool(request: pytest.FixtureRequest, fleet: Fleet) -> Iterator[Callable[[int], Ask]]:
    """Make a pool of some size."""
    made: list[Any] = []

    def make(size: int) -> Ask:
        pool = POOLS[request.param](fleet, size)
        made.append(pool)
        return next(pool)

    yield make
    for pool in made:
        assert list(pool) == []


async def test_more_requests_than_connections(pool: Callable[[int], Ask]) -> None:
    """Forty requests share ten connections, and wait for one another without blocking the loop."""
    ask = pool(10)
    before = monotonic()
    assert await at_once(*[lambda: ask(SECONDS)] * 40) == ["hello"] * 40
    took = monotonic() - before
    assert 4 * SECONDS <= took < 40 * SECONDS


async def test_cut_off_with_the_only_connection(pool: Callable[[int], Ask]) -> None:
    """A request that is cut off gives its connection back, and nobody gets its answer."""
    ask = pool(1)
    with anyio.fail_after(20):
        async with sandboxed(lambda: ask(60), lambda: ask(0), execution_timeout=0.2) as app:
            assert (await Connection(app, "/0").run()).status == 504
            assert (await Connection(app, "/1").run()).result == "hello"
            assert (await Connection(app, "/1").run()).result == "hello"


# Not that of urllib3: it gives back a connection that it has not got, if anything but its own
# timeout ends its waiting for one.
@pytest.mark.parametrize("pool", ["redis", "sqlalchemy"], indirect=True)
async def test_cut_off_while_waiting_for_a_connection(pool: Callable[[int], Ask]) -> None:
    """A request that is cut off while it waits for a connection takes none with it."""
    ask = pool(1)

    async def waiter(app: Any) -> None:
        with anyio.move_on_after(0.2) as scope:
            await Connection(app, "/0").run()
        assert scope.cancelled_caught

    with anyio.fail_after(20):
        async with sandboxed(*[lambda: ask(1)] * 3, lambda: ask(0)) as app:
            async with anyio.create_task_group() as tasks:
                for _ in range(3):
                    tasks.start_soon(waiter, app)
            assert (await Connection(app, "/3").run()).result == "hello"
