"""Apps with `run_in="cooperative"`, and what may be asked of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import anyio
import pytest

from sandboxpool import SandboxedApp, wrap
from sandboxpool.run.cooperative import await_
from tests.hooks.request import hooked
from tests.wrap.client import Connection, respond

PATIENCE = 20.0


@pytest.fixture(autouse=True)
def sleep_hooked() -> Iterator[None]:
    """Have `time.sleep` hooked, and nothing else, so that no other hook has a part in it."""
    with hooked("sleep"):
        yield


def cooperative(app: Any, **options: Any) -> SandboxedApp:
    """Wrap an app without a lifespan in one cooperative sandbox."""
    options = {"max_size": 1, "stall_after": None, "lifespan": "off", **options}
    return wrap(app, run_in="cooperative", hooks=("sleep",), **options)


def calling(function: Callable[[], Any]) -> Any:
    """Return an app that calls a function, which may block, and responds."""

    async def app(scope: Any, receive: Any, send: Any) -> Any:
        result = function()
        await respond(send)
        return result

    return app


async def ask(app: Any, path: str = "/", **scope: Any) -> Connection:
    """Send one request and wait for its end."""
    with anyio.fail_after(PATIENCE):
        return await Connection(app, path, **scope).run()


class Gate:
    """Where code waits that cannot await.

    Attributes:
        reached: Set when somebody has come to it.
        opened: Lets everybody go on.
    """

    def __init__(self) -> None:
        self.reached = anyio.Event()
        self.opened = anyio.Event()

    def pass_through(self) -> None:
        """Block until it is open."""
        self.reached.set()
        await_(self.opened.wait())  # the blocking line
