"""
Wrap a FastAPI app: request state on `app.state`, a lifespan, a request that takes too long.

What it shows: the endpoint keeps its user and its basket in `app.state`, with an `await`
between write and read. Unwrapped, customers get each other's goods. Wrapped, each request has
an `app.state` of its own that begins as the lifespan left it. A request that runs for longer
than `execution_timeout` is cancelled and answered 504.

Install:  pip install "sandboxpool[fastapi,uvicorn]"
Run:      python examples/fastapi_app.py
Serve:    uvicorn examples.fastapi_app:app      and, to compare, examples.fastapi_app:plain
          then open http://127.0.0.1:8000/buy?user=ada&item=tea

You see:

    unwrapped: 20 customers, ... of them got something that they did not buy
    wrapped:   20 customers, 0 of them got something that they did not buy
    wrapped:   the basket that the lifespan made is still []
    wrapped:   a request without an end is answered 504
    /stats:    ... requests, ... cut off, ... sandboxes
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from typing import Any
from urllib.error import HTTPError
from urllib.request import urlopen

import anyio
import uvicorn
from fastapi import FastAPI, Request

import sandboxpool
from sandboxpool.abc import ASGIApp


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    app.state.basket = []  # plain data: each request gets a copy
    yield


plain = FastAPI(lifespan=lifespan)


@plain.get("/buy")
async def buy(request: Request, user: str, item: str) -> dict[str, Any]:
    state = request.app.state
    state.user = user
    state.basket.append(item)
    await anyio.sleep(0.05)  # a database, another service
    return {"user": state.user, "basket": state.basket}


@plain.get("/basket")
async def basket() -> list[str]:
    items: list[str] = plain.state.basket  # the module's global: the request's sandbox, too
    return items


@plain.get("/forever")
async def forever() -> None:
    await anyio.sleep_forever()


app = sandboxpool.wrap(plain, execution_timeout=1.0, stats="/stats")


@contextmanager
def serving(served: ASGIApp) -> Iterator[str]:
    """Serve an app with uvicorn on a free port of the loopback interface."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(served, log_level="critical"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def fetch(url: str) -> Any:
    with urlopen(url) as response:
        return json.load(response)


def mixed_up(address: str) -> str:
    """Have 20 customers buy at once and count those who got more or something else."""

    def buy_one(number: int) -> bool:
        got = fetch(f"{address}/buy?user=user-{number}&item=item-{number}")
        return bool(got != {"user": f"user-{number}", "basket": [f"item-{number}"]})

    with ThreadPoolExecutor(20) as customers:
        wrong = sum(customers.map(buy_one, range(20)))
    return f"20 customers, {wrong} of them got something that they did not buy"


def main() -> None:
    with serving(plain) as address:
        print(f"unwrapped: {mixed_up(address)}")
    with serving(app) as address:
        print(f"wrapped:   {mixed_up(address)}")
        print(f"wrapped:   the basket that the lifespan made is still {fetch(f'{address}/basket')}")
        try:
            fetch(f"{address}/forever")
        except HTTPError as error:
            print(f"wrapped:   a request without an end is answered {error.code}")
            error.close()
        stats = fetch(f"{address}/stats")
        print(
            f"/stats:    {stats['requests']} requests, {stats['cut_off']} cut off, "
            f"{stats['pool']['size']} sandboxes"
        )


if __name__ == "__main__":
    main()
