"""
Wrap a Starlette app: middleware that keeps state, the context of a request, what is deferred.

What it shows: a middleware object notes the user on itself, which mixes up users as soon as two
requests run at the same moment. Wrapped, each sandbox has a middleware object of its own.
`sandboxpool.context` is a store for one request, and `context.defer` runs something when the
request is over, however it ended. `/stats` answers outside of the pool.

Install:  pip install "sandboxpool[starlette,uvicorn]"
Run:      python examples/starlette_app.py
Serve:    uvicorn examples.starlette_app:app      and, to compare, examples.starlette_app:plain

You see:

    unwrapped: 20 requests, ... of them answered for somebody else
    wrapped:   20 requests, 0 of them answered for somebody else
    deferred callbacks that ran: 20
    the most requests at once, says /stats: ...
"""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from urllib.request import urlopen

import anyio
import uvicorn
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

import sandboxpool
from sandboxpool import context
from sandboxpool.abc import ASGIApp, Receive, Scope, Send

done: list[str] = []  # a module's global: shared by every sandbox, on purpose here


class WhoIsIt:
    """Middleware that keeps the user of the request on itself."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.user = "nobody"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            self.user = Request(scope).query_params.get("user", "nobody")
            scope["who"] = self
        await self.app(scope, receive, send)


async def hello(request: Request) -> JSONResponse:
    asked = request.query_params.get("user", "nobody")
    if sandboxed_request():
        context.set("user", asked)
        context.defer(lambda user: done.append(user), asked)
    await anyio.sleep(0.05)  # a database, another service
    return JSONResponse({"asked": asked, "answered": request.scope["who"].user})


def sandboxed_request() -> bool:
    """Tell whether a sandbox serves this request: `plain` is served without, to compare."""
    try:
        sandboxpool.current_lease()
    except sandboxpool.NoLeaseError:
        return False
    return True


plain = Starlette(routes=[Route("/", hello)], middleware=[Middleware(WhoIsIt)])
app = sandboxpool.wrap(plain, stats="/stats")


@contextmanager
def serving(served: ASGIApp) -> Iterator[str]:
    """Serve an app with uvicorn on a free port of the loopback interface."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(served, log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def fetch(url: str) -> dict[str, object]:
    with urlopen(url) as response:
        answer: dict[str, object] = json.load(response)
    return answer


def mixed_up(address: str) -> str:
    """Send 20 requests at once and count the answers that are about somebody else."""
    with ThreadPoolExecutor(20) as clients:
        answers = list(clients.map(fetch, [f"{address}/?user=user-{n}" for n in range(20)]))
    wrong = sum(answer["asked"] != answer["answered"] for answer in answers)
    return f"{len(answers)} requests, {wrong} of them answered for somebody else"


def main() -> None:
    with serving(plain) as address:
        print(f"unwrapped: {mixed_up(address)}")
    with serving(app) as address:
        print(f"wrapped:   {mixed_up(address)}")
        print(f"deferred callbacks that ran: {len(done)}")
        stats = fetch(f"{address}/stats")
        print(f"the most requests at once, says /stats: {stats['peak_concurrency']}")


if __name__ == "__main__":
    main()
