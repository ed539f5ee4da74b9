"""The WSGI apps that `benchmarks.blocking` serves: Flask's, and one without any framework."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from typing import Any

from flask import Flask

SLEEP = float(os.environ.get("BLOCKING_SLEEP", "5"))
AT_ONCE = int(os.environ.get("BLOCKING_AT_ONCE", "2000"))


def make_flask() -> Flask:
    made = Flask("blocking")

    @made.get("/hello")
    def hello() -> dict[str, str]:
        return {"hello": "world"}

    @made.get("/block")
    def blocks() -> dict[str, float]:
        time.sleep(SLEEP)
        return {"waited": SLEEP}

    return made


flask_app = make_flask()


def bare(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
    body = b'{"hello":"world"}'
    if environ["PATH_INFO"] == "/block":
        time.sleep(SLEEP)
        body = b'{"waited":5}'
    headers = [("content-type", "application/json"), ("content-length", str(len(body)))]
    start_response("200 OK", headers)
    return [body]


def in_threads() -> Any:
    """Make the ASGI app that a2wsgi makes of Flask's, with a thread for each request."""
    from a2wsgi import WSGIMiddleware

    application: Any = flask_app
    return WSGIMiddleware(application, workers=AT_ONCE)
