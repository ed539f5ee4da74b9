"""The apps that the servers serve in the tests; they say on stdout how far they are."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any

import anyio
import anyio.lowlevel
from fastapi import FastAPI, Request, WebSocket
from fastapi.responses import StreamingResponse
from starlette.middleware.base import BaseHTTPMiddleware

import sandboxpool

who: ContextVar[str] = ContextVar("who", default="nobody")
meetings: dict[str, list[anyio.Event]] = {}
CHUNK = 64 * 1024


def say(*words: object) -> None:
    print(*words, flush=True)


async def meet(place: str, parties: int) -> None:
    """Wait until *parties* requests of this process are here, which is the point of sharing."""
    event = anyio.Event()
    waiting = meetings.setdefault(place, [])
    waiting.append(event)
    if len(waiting) == parties:
        for other in meetings.pop(place):
            other.set()
    await event.wait()


def sandbox() -> str:
    try:
        return str(id(sandboxpool.current_sandbox()))
    except sandboxpool.NoLeaseError:
        return "none"


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    say("lifespan started", os.getpid())
    yield
    say("lifespan stopped", os.getpid())


def create_app(lifespan: Any = lifespan) -> FastAPI:
    app = FastAPI(lifespan=lifespan)

    @app.get("/meet")
    async def meeting(request: Request, user: str, place: str, parties: int = 2) -> dict[str, Any]:
        request.app.state.user = user
        await meet(place, parties)
        return {"user": request.app.state.user, "sandbox": sandbox(), "pid": os.getpid()}

    @app.post("/hold")
    async def hold(request: Request, key: str) -> dict[str, Any]:
        say("holding", key)
        size = 0
        digest = hashlib.sha256()
        try:
            async for chunk in request.stream():
                if chunk:
                    size += len(chunk)
                    digest.update(chunk)
                    say("got", key, size)
        except BaseException as error:
            say("gone", key, type(error).__name__)
            raise
        return {"key": key, "size": size, "digest": digest.hexdigest()}

    @app.get("/stream")
    async def stream(chunks: int) -> StreamingResponse:
        async def parts() -> AsyncIterator[bytes]:
            for number in range(chunks):
                yield bytes([number % 256]) * CHUNK
                await anyio.lowlevel.checkpoint()

        return StreamingResponse(parts())

    @app.get("/pid")
    async def pid() -> int:
        return os.getpid()

    @app.get("/who")
    async def read_who() -> str:
        return who.get()

    @app.post("/login")
    async def login(request: Request, user: str) -> int:
        who.set(user)
        size = 0
        async for chunk in request.stream():
            size += len(chunk)
        return size

    @app.websocket("/echo")
    async def echo(websocket: WebSocket) -> None:
        await websocket.accept()
        async for text in websocket.iter_text():
            await websocket.send_text(text)

    @app.websocket("/who")
    async def websocket_who(websocket: WebSocket) -> None:
        await websocket.accept()
        await websocket.send_text(who.get())
        await websocket.close()

    @app.websocket("/meet")
    async def websocket_meeting(websocket: WebSocket, user: str, place: str) -> None:
        await websocket.accept()
        websocket.app.state.user = user
        await meet(place, 2)
        await websocket.send_json({"user": websocket.app.state.user, "sandbox": sandbox()})
        await websocket.close()

    return app


class Greeter(BaseHTTPMiddleware):
    """Sets the variable itself, in the task of the server, and calls the app in another."""

    async def dispatch(self, request: Request, call_next: Any) -> Any:
        if user := request.query_params.get("user"):
            who.set(f"{user} of the middleware")
        return await call_next(request)


@asynccontextmanager
async def failing_lifespan(app: FastAPI) -> AsyncIterator[None]:
    raise RuntimeError("the database is away")
    yield


plain = create_app()
wrapped = sandboxpool.wrap(plain, stats="/stats", max_size=60)
single_plain = create_app()
single = sandboxpool.wrap(single_plain, stats="/stats", max_size=1, acquire_timeout=0.3)
patient = sandboxpool.wrap(create_app(), stats="/stats", max_size=1)
greeted_plain = create_app()
greeted_plain.add_middleware(Greeter)
greeted = sandboxpool.wrap(greeted_plain)
broken_plain = create_app(failing_lifespan)
broken = sandboxpool.wrap(broken_plain)
