"""Apps whose endpoints block, for the servers in the tests; started by `test_blocking`."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

from fastapi import FastAPI, Request, WebSocket
from fastapi.responses import StreamingResponse

import sandboxpool

SECONDS = 0.3


def create_app() -> FastAPI:
    app = FastAPI()
    app.state.user = "nobody"

    @app.get("/pid")
    async def pid() -> int:
        return os.getpid()

    @app.get("/async")
    async def blocks_async(user: str) -> dict[str, Any]:
        app.state.user = user
        time.sleep(SECONDS)
        return {"user": app.state.user, "thread": threading.get_ident()}

    @app.get("/def")
    def blocks_def(user: str) -> dict[str, Any]:
        app.state.user = user
        time.sleep(SECONDS)
        return {"user": app.state.user, "thread": threading.get_ident()}

    @app.get("/long")
    async def long(seconds: float) -> None:
        time.sleep(seconds)

    @app.post("/upload")
    async def upload(request: Request) -> int:
        size = 0
        async for part in request.stream():
            time.sleep(0.0001)
            size += len(part)
        return size

    @app.get("/stream")
    async def stream() -> StreamingResponse:
        def parts() -> Any:
            for number in range(5):
                time.sleep(0.01)
                yield str(number) * 10_000

        return StreamingResponse(parts())

    @app.websocket("/echo")
    async def echo(websocket: WebSocket) -> None:
        await websocket.accept()
        async for text in websocket.iter_text():
            time.sleep(0.01)
            await websocket.send_text(text)

    return app


options: dict[str, Any] = {"max_size": 30, "stats": "/stats", "execution_timeout": 3}
thread = sandboxpool.wrap(create_app(), run_in="thread", **options)
cooperative = sandboxpool.wrap(create_app(), run_in="cooperative", **options)
