"""An ASGI app without any framework, to compare with a WSGI app without any."""

from __future__ import annotations

import os
import time

from sandboxpool.abc import Receive, Scope, Send

SLEEP = float(os.environ.get("BLOCKING_SLEEP", "5"))


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["type"] != "http":
        raise NotImplementedError  # uvicorn goes on without the lifespan
    body = b'{"hello":"world"}'
    if scope["path"] == "/block":
        time.sleep(SLEEP)
        body = b'{"waited":5}'
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})
