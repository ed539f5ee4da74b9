"""The app of the demo: it keeps the user of a request on itself, as small apps do.

With one request at a time that works. With two, the second overwrites what the first has
written, while the first awaits.
"""

from __future__ import annotations

import asyncio
from typing import Any

from fastapi import FastAPI, Request

import sandboxpool


class Session:
    """Middleware that remembers on itself who is logged in."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.user = ""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Note whose request this is."""
        if scope["type"] == "http":
            self.user = scope["query_string"].decode().removeprefix("user=")
            scope["session"] = self
        await self.app(scope, receive, send)


app = FastAPI()
app.add_middleware(Session)


@app.get("/basket")
async def basket(request: Request, user: str) -> dict[str, str]:
    """Answer with the name that the app knows the user by."""
    request.app.state.user = user
    await asyncio.sleep(0.02)  # a query, a call of another service
    return {"basket_of": request.app.state.user, "logged_in": request.scope["session"].user}


wrapped = sandboxpool.wrap(app, stats="/stats")
