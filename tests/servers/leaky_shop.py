"""An app for the servers that leaves things behind, and says so in the log."""

from __future__ import annotations

import logging
import os
import sys
import threading
from typing import Any

from fastapi import FastAPI, Request

import sandboxpool

logging.basicConfig(stream=sys.stdout, format="%(name)s %(message)s")

last_user = None
held: list[Any] = []

app = FastAPI()
app.state.cart = {}


@app.get("/pid")
async def pid() -> int:
    return os.getpid()


@app.get("/clean")
def clean(request: Request) -> dict[str, int]:
    return {"items": len(request.app.state.cart), "thread": threading.get_ident()}


@app.get("/login")
async def login(user: str, request: Request) -> str:
    global last_user
    last_user = user
    request.app.state.cart["items"] = [user]
    request.app.state.password = "hunter2"
    return user


@app.get("/open")
async def open_file() -> str:
    held.append(open(__file__.replace(".py", ".lock"), "w"))  # noqa: ASYNC230, SIM115
    return "open"


@app.get("/stray")
def stray() -> str:
    threading.Thread(target=threading.Event().wait, args=(60,), daemon=True).start()
    return "stray"


wrapped = sandboxpool.wrap(app, leaks="log", stats="/stats", name="shop")
