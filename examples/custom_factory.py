"""
Write an isolation of your own: a sandbox with a directory that belongs to one request.

What it shows: `wrap(app, isolation=...)` takes any object that makes sandboxes, and a sandbox is
any ASGI callable with `reset` and `aclose`. This one gives the app a scratch directory. The app
finds it with `current_sandbox()`, writes the same file name in every request, and neither sees
the files of the requests at the same moment nor those of the requests before.

Install:  pip install sandboxpool            (to serve it: pip install "sandboxpool[uvicorn]")
Run:      python examples/custom_factory.py
Serve:    uvicorn examples.custom_factory:app      then open http://127.0.0.1:8000/

You see:

    3 requests at once, in 3 directories, and each read what it wrote: True
    9 requests later, files that were found in a fresh request: 0
    directories left after the end: 0
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Awaitable
from pathlib import Path
from typing import Any, cast

import anyio

import sandboxpool
from sandboxpool.abc import ASGIApp, Message, Receive, Scope, Send


class ScratchSandbox:
    """The app, with a directory that is empty whenever a request begins."""

    def __init__(self, app: ASGIApp, directory: Path) -> None:
        self.app = app
        self.directory = directory

    def __call__(self, scope: Scope, receive: Receive, send: Send, /) -> Awaitable[Any]:
        return self.app(scope, receive, send)

    def reset(self) -> None:
        # A plain function runs at release, and the sandbox is free at once. Whatever it raises
        # retires the sandbox.
        for path in self.directory.iterdir():
            path.unlink()

    async def aclose(self) -> None:
        shutil.rmtree(self.directory)


class ScratchFactory:
    """Makes the sandboxes of one app; inherits nothing, it only has the right shape."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.parent: Path | None = None

    async def start(self) -> None:
        self.parent = Path(tempfile.mkdtemp(prefix="scratch-"))

    async def stop(self) -> None:
        assert self.parent is not None
        self.parent.rmdir()  # fails if a sandbox left something behind

    async def create(self) -> ScratchSandbox:
        return ScratchSandbox(self.app, Path(tempfile.mkdtemp(dir=self.parent)))

    def reset(self, sandbox: ScratchSandbox, /) -> None:
        sandbox.reset()

    async def destroy(self, sandbox: ScratchSandbox, /) -> None:
        await sandbox.aclose()


async def notes(scope: Scope, receive: Receive, send: Send) -> None:
    """Write a file, wait, read it, and tell what else there was."""
    sandbox = cast("ScratchSandbox", sandboxpool.current_sandbox())
    found = len(list(sandbox.directory.iterdir()))
    note = sandbox.directory / "note.txt"
    note.write_text(f"lease {sandboxpool.current_lease().id}")
    await anyio.sleep(0.05)  # a database, another service
    same = note.read_text() == f"lease {sandboxpool.current_lease().id}"
    body = f"{sandbox.directory.name} {found} {same}".encode()
    headers = [(b"content-type", b"text/plain"), (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


scratch = ScratchFactory(notes)
app = sandboxpool.wrap(notes, isolation=scratch, max_size=3)


async def get(app: ASGIApp) -> list[str]:
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

    scope = {"type": "http", "method": "GET", "path": "/", "query_string": b"", "headers": []}
    await app(scope, receive, send)
    return body.decode().split()


async def main() -> None:
    answers: list[list[str]] = []

    async def ask() -> None:
        answers.append(await get(app))

    async with app:
        async with anyio.create_task_group() as tasks:
            for _ in range(3):
                tasks.start_soon(ask)
        directories = {directory for directory, _, _ in answers}
        right = all(same == "True" for _, _, same in answers)
        print(
            f"3 requests at once, in {len(directories)} directories, "
            f"and each read what it wrote: {right}"
        )
        async with anyio.create_task_group() as tasks:
            for _ in range(9):
                tasks.start_soon(ask)
        found = sum(int(count) for _, count, _ in answers)
        print(f"9 requests later, files that were found in a fresh request: {found}")
    assert scratch.parent is not None
    print(f"directories left after the end: {int(scratch.parent.exists())}")


if __name__ == "__main__":
    anyio.run(main)
