"""Redis: what a request leaves on a connection, and when it is cut off in the middle."""

from __future__ import annotations

import asyncio
from itertools import count
from typing import Any

import anyio
import pytest

from sandboxpool import ConnectionBusyError, LeaseEndedError, resources

from .databases import on_asyncio
from .requests import ask, serving, until

pytestmark = [pytest.mark.server, on_asyncio]

# The types of redis-py say less than it does.
declare: Any = resources.redis
_keys = count()
TEXT = {"decode_responses": True}

LEFT: dict[str, tuple[str, ...]] = {
    "database": ("SELECT", "3"),
    "name": ("CLIENT", "SETNAME", "ada"),
    "tracking": ("CLIENT", "NO-EVICT", "on"),
    "user": ("AUTH", "default", "nothing"),
}


@pytest.mark.parametrize("left", LEFT)
async def test_nothing_stays(redis_url: str, left: str) -> None:
    """What a command changes about its connection does not reach the next user."""
    db = declare(redis_url, max_size=1, arguments=TEXT)
    async with db:
        async with db.connection() as redis:
            fresh = await redis.execute_command("CLIENT", "ID")
        async with db.connection() as redis:
            await redis.execute_command(*LEFT[left])
        async with db.connection() as redis:
            assert await redis.execute_command("CLIENT", "ID") != fresh, "another connection"


@pytest.mark.parametrize("way", ["multi", "watch", "subscription", "callback"])
async def test_what_is_begun_does_not_stay(redis_url: str, way: str) -> None:
    """A pipeline, a subscription or a callback that a request leaves does not reach the next."""
    db = declare(redis_url, max_size=1, arguments=TEXT)
    left: list[Any] = []

    async def handle(path: str) -> Any:
        redis = await db.current()
        if path == "/look":
            return await redis.ping(), await redis.echo("bob")
        if way == "subscription":
            left.append(redis.pubsub())
            await left[0].subscribe("news")
        elif way == "callback":
            redis.set_response_callback("ECHO", lambda answer, **options: "ada's")
        else:
            pipe = redis.pipeline()
            left.append(pipe)
            await pipe.watch("key")
            if way == "multi":
                pipe.multi()
                pipe.set("key", "value")

    async with serving(handle) as app:
        await ask(app)
        assert await ask(app, "/look") == "(True, 'bob')"
        assert sum(db.statistics().retired.values()) == 1
    for each in left:
        each.connection = None  # it would complain that nobody has closed it


async def test_a_plain_use_keeps_the_connection(redis_url: str) -> None:
    """After commands about data, also in a transaction, the connection is free at once."""
    db = declare(redis_url, max_size=1, arguments=TEXT)
    key = f"key-{next(_keys)}"
    async with db:
        async with db.connection() as redis:
            await redis.set(key, 1)
            async with redis.pipeline() as pipe:
                assert await pipe.incr(key).get(key).execute() == [2, "2"]
            async with redis.pipeline() as pipe:
                await pipe.watch(key)
                assert await pipe.get(key) == "2"
                pipe.multi()
                pipe.set(key, 3)
                await pipe.execute()
            assert await asyncio.gather(*(redis.get(key) for _ in range(5))) == ["3"] * 5
        assert db.statistics().idle == 1
        assert db.statistics().opened == 1


async def test_an_answer_never_reaches_another_user(redis_url: str) -> None:
    """A command that was cut off takes its answer with it (redis-py#2665)."""
    db = declare(redis_url, max_size=1, arguments=TEXT)
    key = f"key-{next(_keys)}"

    async def handle(path: str) -> Any:
        redis = await db.current()
        if path == "/bob":
            return await redis.echo("bob")
        with anyio.move_on_after(0.05):
            await redis.blpop(key, 30)
        return await redis.echo("still ada")

    async with serving(handle) as app:
        assert await ask(app, "/ada") == "still ada"
        async with declare(redis_url).connection() as other:
            await other.rpush(key, "for ada only")
            await other.connection_pool.disconnect()
        assert await ask(app, "/bob") == "bob"
        assert db.statistics().retired == {"cancelled": 1}


@pytest.mark.parametrize("passes", range(8))
async def test_cut_off_at_any_moment(redis_url: str, passes: int) -> None:
    """Whichever step a command was cut off in, the next user gets the answer to his own."""
    db = declare(redis_url, max_size=1, arguments=TEXT)

    async def one() -> None:
        async with db.connection() as redis:
            await redis.echo("ada")

    async with db:
        task = asyncio.create_task(one())
        for _ in range(passes):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        async with db.connection() as redis:
            assert await redis.echo("bob") == "bob"


async def test_one_thing_at_a_time(redis_url: str) -> None:
    """A command beside a pipeline that watches would wait for itself: it gets an error."""
    db = declare(redis_url, max_size=1)
    async with db, db.connection() as redis, redis.pipeline() as pipe:
        await pipe.watch("key")
        with pytest.raises(ConnectionBusyError, match="a pipeline that watches, or a subscription"):
            await redis.get("key")


async def test_another_task_waits_for_a_pipeline(redis_url: str) -> None:
    """A command of another task of the request waits until the pipeline has ended."""
    db = declare(redis_url, max_size=1, arguments=TEXT)
    key = f"key-{next(_keys)}"
    async with db, db.connection() as redis:
        pipe = redis.pipeline()
        await pipe.watch(key)
        task = asyncio.create_task(redis.get(key))
        await asyncio.sleep(0)
        pipe.multi()
        pipe.set(key, "done")
        await pipe.execute()
        assert await task == "done"


async def test_nothing_works_after_the_end(redis_url: str) -> None:
    """A client refuses to work when its connection was given back."""
    db = declare(redis_url, max_size=1)
    async with db:
        async with db.connection() as redis:
            pass
        with pytest.raises(LeaseEndedError, match="of 'redis' was given back"):
            await redis.ping()


async def test_a_connection_that_the_server_has_closed(redis_url: str) -> None:
    """A connection that the server closed while it was idle is not lent."""
    db = declare(redis_url, max_size=1)
    async with db:
        async with db.connection() as redis:
            ident = await redis.client_id()
        async with declare(redis_url).connection() as other:
            await other.client_kill_filter(_id=ident)
            await other.connection_pool.disconnect()
        await until(lambda: not db._shared.driver.alive(_idle_member(db)))
        async with db.connection() as redis:
            assert await redis.ping()
        assert db.statistics().retired == {"unhealthy": 1}


def _idle_member(db: Any) -> Any:
    return db._shared.heres[0].pool.slots.idle[0].item
