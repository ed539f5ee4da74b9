"""
Wrap an app that is written to the bare ASGI interface, without a framework.

What it shows: the app keeps the user of the request in `self.user`, across an `await`.
Unwrapped, two requests at the same moment read each other's user. Wrapped, each runs in a copy
of the object, and the attribute is as it was after start-up when the next request comes.

Install:  pip install sandboxpool            (to serve it: pip install "sandboxpool[uvicorn]")
Run:      python examples/raw_asgi.py
Serve:    uvicorn examples.raw_asgi:app      then open http://127.0.0.1:8000/?user=ada

You see:

    unwrapped, at the same moment: asked by ada, bob -> answered for bob, bob
    wrapped, at the same moment:   asked by ada, bob -> answered for ada, bob
    wrapped, one after the other:  the user before was None, then None
"""

from __future__ import annotations

from urllib.parse import parse_qs

import anyio

import sandboxpool
from sandboxpool.abc import ASGIApp, Message, Receive, Scope, Send


class Greeter:
    """An app that should not keep the user on itself, but does."""

    def __init__(self) -> None:
        self.user: str | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            raise ValueError("this app speaks http only")
        before = self.user
        self.user = parse_qs(scope["query_string"].decode()).get("user", ["nobody"])[0]
        await anyio.sleep(0.05)  # a database, another service
        body = f"{self.user} (before: {before})".encode()
        headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})


plain = Greeter()
app = sandboxpool.wrap(plain)


async def get(app: ASGIApp, user: str) -> str:
    """Send one request to an app in this process, as a server would."""
    body = b""

    asked = False

    async def receive() -> Message:
        nonlocal asked
        if asked:
            await anyio.sleep_forever()  # the client stays on the line
        asked = True
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Message) -> None:
        nonlocal body
        body += message.get("body", b"")

    scope = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.4"},
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/",
        "raw_path": b"/",
        "root_path": "",
        "query_string": f"user={user}".encode(),
        "headers": [],
        "client": ("127.0.0.1", 50000),
        "server": ("127.0.0.1", 8000),
    }
    await app(scope, receive, send)
    return body.decode()


async def both(app: ASGIApp) -> str:
    """Ask for two users at the same moment."""
    answers: dict[str, str] = {}

    async def ask(user: str) -> None:
        answers[user] = (await get(app, user)).split()[0]

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask, "ada")
        tasks.start_soon(ask, "bob")
    return f"asked by ada, bob -> answered for {answers['ada']}, {answers['bob']}"


async def main() -> None:
    print(f"unwrapped, at the same moment: {await both(Greeter())}")
    async with app:
        print(f"wrapped, at the same moment:   {await both(app)}")
        first = (await get(app, "ada")).partition("before: ")[2].rstrip(")")
        second = (await get(app, "bob")).partition("before: ")[2].rstrip(")")
        print(f"wrapped, one after the other:  the user before was {first}, then {second}")


if __name__ == "__main__":
    anyio.run(main)
