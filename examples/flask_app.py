"""
Wrap a Flask app: an app for each request, and blocking calls that stop nobody else.

What it shows: the view keeps its customer in `app.config`, with a blocking call between write
and read. In the threads of Flask's own server, customers get each other's names. Wrapped, each
request has an app that the factory has made for it alone, whether it runs in a thread or on the
server's event loop, where `time.sleep()` suspends only its own request.

Install:  pip install "sandboxpool[hooks,uvicorn]" flask
Run:      python examples/flask_app.py
Serve:    uvicorn examples.flask_app:app
          and, to compare, flask --app examples.flask_app:plain run --port 8000
          then open http://127.0.0.1:8000/buy?user=ada

You see:

    unwrapped:              20 customers, ... of them were taken for somebody else
    wrapped on the loop:    20 customers, 0 of them were taken for somebody else
    wrapped in threads:     20 customers, 0 of them were taken for somebody else
    wrapped on the loop:    20 requests that block for half a second took ... ms together
    wrapped in threads:     20 requests that block for half a second took ... ms together
"""

from __future__ import annotations

import json
import logging
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any
from urllib.request import urlopen

import uvicorn
from flask import Flask, request
from werkzeug.serving import make_server

import sandboxpool
import sandboxpool.hooks
from sandboxpool.abc import ASGIApp

# Before the app is made: `sandboxpool serve` and an import string take care of that themselves.
sandboxpool.hooks.install("sleep")


def create_app() -> Flask:
    app = Flask("shop")

    @app.get("/buy")
    def buy() -> dict[str, Any]:
        app.config["USER"] = request.args["user"]
        time.sleep(float(request.args.get("seconds", 0.05)))  # a database, another service
        return {"user": app.config["USER"]}

    return app


plain = create_app()
app = sandboxpool.wrap(
    create_app, factory=True, wsgi=True, run_in="cooperative", hooks=["sleep"], max_size=20
)
in_threads = sandboxpool.wrap(create_app, factory=True, wsgi=True, run_in="thread", max_size=20)


@contextmanager
def serving_plainly(served: Flask) -> Iterator[str]:
    """Serve an app with Flask's own server."""
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = make_server("127.0.0.1", 0, served, threaded=True)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@contextmanager
def serving(served: ASGIApp) -> Iterator[str]:
    """Serve a wrapped app with uvicorn on a free port of the loopback interface."""
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


def mixed_up(address: str) -> str:
    """Have 20 customers buy at once and count those who were taken for another one."""

    def buy(number: int) -> bool:
        with urlopen(f"{address}/buy?user=user-{number}") as response:
            return bool(json.load(response) != {"user": f"user-{number}"})

    with ThreadPoolExecutor(20) as customers:
        wrong = sum(customers.map(buy, range(20)))
    return f"20 customers, {wrong} of them were taken for somebody else"


def blocked(address: str) -> str:
    """Send 20 requests at once that each block, and measure how long they take together."""

    def wait(number: int) -> None:
        urlopen(f"{address}/buy?user=ada&seconds=0.5").close()

    began = time.monotonic()
    with ThreadPoolExecutor(20) as customers:
        list(customers.map(wait, range(20)))
    took = (time.monotonic() - began) * 1000
    return f"20 requests that block for half a second took {took:.0f} ms together"


def main() -> None:
    with serving_plainly(plain) as address:
        print(f"unwrapped:              {mixed_up(address)}")
    with serving(app) as on_loop, serving(in_threads) as threads:
        for ask in (mixed_up, blocked):
            print(f"wrapped on the loop:    {ask(on_loop)}")
            print(f"wrapped in threads:     {ask(threads)}")


if __name__ == "__main__":
    main()
