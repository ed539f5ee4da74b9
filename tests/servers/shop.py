"""The apps that the servers serve in the tests; they say on stdout how far they are."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any

import anyio
import anyio.lowlevel
from starlette.applications import Starlette
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import BaseRoute, Route, WebSocketRoute
from starlette.websockets import WebSocket

import sandboxpool

who: ContextVar[str] = ContextVar("who", default="nobody")
meetings: dict[str, list[anyio.Event]] = {}
CHUNK = 64 * 1024


def say(*words: object) -> None:
    # In one write: workers share the pipe.
    sys.stdout.write(" ".join(map(str, words)) + "\n")
    sys.stdout.flush()


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
async def lifespan(app: Starlette) -> AsyncIterator[None]:
    say("lifespan started", os.getpid())
    yield
    say("lifespan stopped", os.getpid())


@asynccontextmanager
async def failing_lifespan(app: Starlette) -> AsyncIterator[None]:
    if not meetings:
        raise RuntimeError("the database is away")
    yield


async def meeting(request: Request) -> JSONResponse:
    query = request.query_params
    request.app.state.user = query["user"]
    await meet(query["place"], 2)
    return JSONResponse({"user": request.app.state.user, "sandbox": sandbox()})


async def hold(request: Request) -> JSONResponse:
    key = request.query_params["key"]
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
    return JSONResponse({"key": key, "size": size, "digest": digest.hexdigest()})


async def stream(request: Request) -> StreamingResponse:
    async def parts() -> AsyncIterator[bytes]:
        for number in range(int(request.query_params["chunks"])):
            yield bytes([number % 256]) * CHUNK
            await anyio.lowlevel.checkpoint()

    return StreamingResponse(parts())


async def pid(request: Request) -> JSONResponse:
    return JSONResponse(os.getpid())


async def read_who(request: Request) -> JSONResponse:
    return JSONResponse(who.get())


async def login(request: Request) -> JSONResponse:
    who.set(request.query_params["user"])
    size = 0
    async for chunk in request.stream():
        size += len(chunk)
    return JSONResponse(size)


async def echo(websocket: WebSocket) -> None:
    await websocket.accept()
    async for text in websocket.iter_text():
        await websocket.send_text(text)


async def websocket_who(websocket: WebSocket) -> None:
    await websocket.accept()
    await websocket.send_text(who.get())
    await websocket.close()


async def websocket_meeting(websocket: WebSocket) -> None:
    await websocket.accept()
    query = websocket.query_params
    websocket.app.state.user = query["user"]
    await meet(query["place"], 2)
    await websocket.send_json({"user": websocket.app.state.user, "sandbox": sandbox()})
    await websocket.close()


def create_app(lifespan: Any = lifespan) -> Starlette:
    routes: list[BaseRoute] = [
        Route("/meet", meeting),
        Route("/hold", hold, methods=["POST"]),
        Route("/stream", stream),
        Route("/pid", pid),
        Route("/who", read_who),
        Route("/login", login, methods=["POST"]),
        WebSocketRoute("/echo", echo),
        WebSocketRoute("/who", websocket_who),
        WebSocketRoute("/meet", websocket_meeting),
    ]
    return Starlette(routes=routes, lifespan=lifespan)


class Greeter(BaseHTTPMiddleware):
    """Sets the variable itself, in the task of the server, and calls the app in another."""

    async def dispatch(self, request: Request, call_next: Any) -> Any:
        if user := request.query_params.get("user"):
            who.set(f"{user} of the middleware")
        return await call_next(request)


plain = create_app()
wrapped = sandboxpool.wrap(plain, stats="/stats", max_size=60)
single = sandboxpool.wrap(create_app(), stats="/stats", max_size=1, max_waiting=1)
greeted_plain = create_app()
greeted_plain.add_middleware(Greeter)
greeted = sandboxpool.wrap(greeted_plain)
broken_plain = create_app(failing_lifespan)
broken = sandboxpool.wrap(broken_plain)
