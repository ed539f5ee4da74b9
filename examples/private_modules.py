"""
Wrap an app that keeps what belongs to a request in module globals, without changing a line of it.

What it shows: the app keeps its user in a module global, its goods in a class attribute and its
prices in an `lru_cache`, with an `await` between write and read. Unwrapped, customers get each
other's goods. With `isolation="module"` each sandbox executes this file for itself, and a request
finds globals, classes and caches as they were after start-up. The standard library and installed
packages are shared as ever.

Install:  pip install "sandboxpool[fastapi]" httpx2
Run:      python examples/private_modules.py
Serve:    sandboxpool serve examples.private_modules:app --isolation module
          then open http://127.0.0.1:8000/buy?user=ada&item=tea

You see:

    unwrapped: 20 customers, ... of them got something that they did not buy
    wrapped:   20 customers, 0 of them got something that they did not buy
    afterwards 20 items are in this module, all from the unwrapped app
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import anyio
import httpx2
from fastapi import FastAPI

import sandboxpool

current_user: str | None = None


class Basket:
    items: ClassVar[list[str]] = []


@lru_cache
def price(user: str, item: str) -> int:
    return len(item)


app = FastAPI()


@app.get("/buy")
async def buy(user: str, item: str) -> dict[str, Any]:
    global current_user
    current_user = user
    Basket.items.append(item)
    price(user, item)
    await anyio.sleep(0.05)  # a database, another service
    return {"user": current_user, "items": Basket.items, "priced": price.cache_info().currsize}


async def mixed_up(served: Any) -> str:
    """Have 20 customers buy at once and count those who got more or something else."""
    wrong = 0

    async def buy_one(client: httpx2.AsyncClient, number: int) -> None:
        nonlocal wrong
        got = (await client.get(f"/buy?user=user-{number}&item=item-{number}")).json()
        wrong += got != {"user": f"user-{number}", "items": [f"item-{number}"], "priced": 1}

    client = httpx2.AsyncClient(transport=httpx2.ASGITransport(served), base_url="http://shop")
    async with client, anyio.create_task_group() as customers:
        for number in range(20):
            customers.start_soon(buy_one, client, number)
    return f"20 customers, {wrong} of them got something that they did not buy"


async def main() -> None:
    print(f"unwrapped: {await mixed_up(app)}")
    # By its name, for each sandbox imports it for itself.
    name = f"{Path(__file__).stem}:app"
    async with sandboxpool.wrap(name, isolation="module", min_size=4) as wrapped:
        print(f"wrapped:   {await mixed_up(wrapped)}")
    print(f"afterwards {len(Basket.items)} items are in this module, all from the unwrapped app")


if __name__ == "__main__":
    anyio.run(main)
