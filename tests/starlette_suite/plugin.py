"""A pytest plugin that wraps every app which a Starlette `TestClient` is given.

Loaded by `tests/starlette_suite/run` into Starlette's own test suite. `client.app` stays what the
test passed; only what serves the requests and the lifespan is the wrapped app. The environment
variable `RUN_IN` says where it runs.
"""

from __future__ import annotations

import os
from typing import Any

import starlette.testclient

import sandboxpool
import sandboxpool.hooks

RUN_IN: Any = os.environ.get("RUN_IN", "loop")
if RUN_IN == "cooperative":
    sandboxpool.hooks.install()  # before an app or blockbuster takes what they replace

_init = starlette.testclient.TestClient.__init__
_lifespan = starlette.testclient.TestClient.lifespan


def _init_wrapped(self: Any, app: Any, *args: Any, **kwargs: Any) -> None:
    _init(self, app, *args, **kwargs)
    self._sandboxed = sandboxpool.wrap(self.app, run_in=RUN_IN, min_size=2, max_size=50)
    self._transport.app = self._sandboxed


async def _lifespan_wrapped(self: Any) -> None:
    app = self.app
    self.app = self._sandboxed
    try:
        await _lifespan(self)
    finally:
        self.app = app


starlette.testclient.TestClient.__init__ = _init_wrapped  # type: ignore[method-assign]
starlette.testclient.TestClient.lifespan = _lifespan_wrapped  # type: ignore[method-assign]
