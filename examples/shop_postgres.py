"""
A shop with FastAPI on PostgreSQL and Redis: the shop of `shop_sqlite.py`, for several workers.

What it shows: the same shape over other servers. PostgreSQL has the stock, Redis counts who looked
at what. Both are declared once, shared by all sandboxes, and opened before the app starts, so that
it does not start without them.

Install:  pip install "sandboxpool[fastapi,uvicorn,asyncpg,redis]"
Run:      python examples/shop_postgres.py
          with DATABASE_URL and REDIS_URL in the environment, unless both run where they usually do
Serve:    uvicorn examples.shop_postgres:app
          then open http://127.0.0.1:8000/products

You see:

    40 customers want one of 25 keyboards: 25 bought one, 15 came too late
    a customer who changed his mind in the middle of it has changed nothing
    left: [{'name': 'Keyboard', 'stock': 0}, {'name': 'Mouse', 'stock': 40}]
    looked at the keyboard: 40 times
    43 requests used ... connections to PostgreSQL, never more than 5
"""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request as Post
from urllib.request import urlopen

import uvicorn
from fastapi import FastAPI, HTTPException

import sandboxpool
from sandboxpool import resources

STOCK = [("Keyboard", 25), ("Mouse", 40)]

db = resources.asyncpg(
    os.environ.get("DATABASE_URL", "postgresql://postgres@127.0.0.1:5432/postgres"), max_size=5
)
counters = resources.redis(
    os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0"),
    arguments={"decode_responses": True},
    max_size=5,
)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with db.connection() as connection:
        await connection.execute(
            "create table if not exists shop_products (name text primary key, stock int)"
        )
        await connection.executemany(
            "insert into shop_products values ($1, $2) "
            "on conflict (name) do update set stock = excluded.stock",
            STOCK,
        )
    async with counters.connection() as redis:
        await redis.delete("shop:looks:Keyboard", "shop:looks:Mouse")
    yield


plain = FastAPI(lifespan=lifespan)


@plain.get("/products")
async def products() -> list[dict[str, Any]]:
    async with db.connection() as connection:
        rows = await connection.fetch("select name, stock from shop_products order by name")
    return [dict(row) for row in rows]


@plain.get("/looks/{name}")
async def looks(name: str) -> int:
    async with counters.connection() as redis:
        return int(await redis.get(f"shop:looks:{name}") or 0)


async def take(name: str) -> None:
    connection = await db.current()  # the same one wherever the request asks for it
    await connection.execute("update shop_products set stock = stock - 1 where name = $1", name)


@plain.post("/buy/{name}")
async def buy(name: str, changes_mind: bool = False) -> str:
    async with counters.connection() as redis:  # given back before another one is acquired
        await redis.incr(f"shop:looks:{name}")
    connection = await db.current()
    async with connection.transaction():
        stock = await connection.fetchval(
            "select stock from shop_products where name = $1 for update", name
        )
        if not stock:
            raise HTTPException(409, "sold out")
        await take(name)
        if changes_mind:
            raise HTTPException(410, "never mind")  # the transaction is rolled back
    return "bought"


app = sandboxpool.wrap(plain, resources=(db, counters))


@contextmanager
def serving() -> Iterator[str]:
    """Serve the app with uvicorn on a free port of the loopback interface."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        if not server.started:
            raise SystemExit("the app did not start: are PostgreSQL and Redis there?")
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def post(url: str) -> int:
    try:
        with urlopen(Post(url, method="POST")) as response:
            return int(response.status)
    except HTTPError as error:
        error.close()
        return error.code


def main() -> None:
    with serving() as address:
        with ThreadPoolExecutor(40) as customers:
            answers = list(customers.map(lambda _: post(f"{address}/buy/Keyboard"), range(40)))
        print(
            f"40 customers want one of 25 keyboards: {answers.count(200)} bought one, "
            f"{answers.count(409)} came too late"
        )
        if post(f"{address}/buy/Mouse?changes_mind=true") == 410:
            print("a customer who changed his mind in the middle of it has changed nothing")
        with urlopen(f"{address}/products") as response:
            print(f"left: {json.load(response)}")
        with urlopen(f"{address}/looks/Keyboard") as response:
            print(f"looked at the keyboard: {json.load(response)} times")
        figures = db.statistics()
        print(
            f"43 requests used {figures.opened} connections to PostgreSQL, "
            f"never more than {figures.max_size}"
        )


if __name__ == "__main__":
    main()
