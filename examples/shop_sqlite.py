"""
A shop with FastAPI on SQLite: few connections for many requests, given back whatever happens.

What it shows: the database is declared once and shared by all sandboxes. `db.connection()` has a
connection for the length of a block, `db.current()` for the length of the request. What a request
leaves open is rolled back. The app opens the database, and closes it with itself.

Install:  pip install "sandboxpool[fastapi,uvicorn,sqlite]"
Run:      python examples/shop_sqlite.py
Serve:    uvicorn examples.shop_sqlite:app
          then open http://127.0.0.1:8000/products

You see:

    40 customers want one of 25 keyboards: 25 bought one, 15 came too late
    a customer who changed his mind in the middle of it has changed nothing
    left: [{'name': 'Keyboard', 'stock': 0}, {'name': 'Mouse', 'stock': 40}]
    42 requests used ... connections, never more than 4
"""

from __future__ import annotations

import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any
from urllib.error import HTTPError
from urllib.request import Request as Post
from urllib.request import urlopen

import aiosqlite
import uvicorn
from fastapi import FastAPI, HTTPException

import sandboxpool
from sandboxpool import resources

STOCK = [("Keyboard", 25), ("Mouse", 40)]
FILE = os.environ.get("SHOP_DB", str(Path(tempfile.gettempdir()) / "sandboxpool-shop.db"))


async def setup(connection: aiosqlite.Connection) -> None:
    await connection.execute("pragma journal_mode = wal")  # readers do not wait for a writer


# Without an isolation level, transactions begin where the code says so.
db = resources.sqlite(FILE, arguments={"isolation_level": None}, setup=setup, max_size=4)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with db.connection() as connection:
        await connection.execute("create table if not exists products (name primary key, stock)")
        await connection.executemany("insert or replace into products values (?, ?)", STOCK)
    yield


plain = FastAPI(lifespan=lifespan)


@plain.get("/products")
async def products() -> list[dict[str, Any]]:
    async with db.connection() as connection:
        rows = await connection.execute_fetchall("select name, stock from products order by name")
    return [{"name": name, "stock": stock} for name, stock in rows]


async def take(name: str) -> None:
    connection = await db.current()  # the same one wherever the request asks for it
    await connection.execute("update products set stock = stock - 1 where name = ?", (name,))


@plain.post("/buy/{name}")
async def buy(name: str, changes_mind: bool = False) -> str:
    connection = await db.current()
    await connection.execute("begin immediate")
    rows = await connection.execute_fetchall("select stock from products where name = ?", (name,))
    if not any(stock for (stock,) in rows):
        raise HTTPException(409, "sold out")  # the transaction is rolled back
    await take(name)
    if changes_mind:
        raise HTTPException(410, "never mind")  # and so is this one
    await connection.commit()
    return "bought"


app = sandboxpool.wrap(plain, resources=(db,))


@contextmanager
def serving() -> Iterator[str]:
    """Serve the app with uvicorn on a free port of the loopback interface."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
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
        figures = db.statistics()
        print(f"42 requests used {figures.opened} connections, never more than {figures.max_size}")


if __name__ == "__main__":
    main()
