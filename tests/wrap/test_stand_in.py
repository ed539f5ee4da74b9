"""`app = wrap(app)`: code that goes on saying `app` must find what it found before."""

from __future__ import annotations

from typing import Annotated, Any

import anyio.lowlevel
import pytest
from fastapi import Depends, FastAPI, Request
from starlette.testclient import TestClient

import sandboxpool


async def who() -> str:
    return "nobody"


def make() -> FastAPI:
    app = FastAPI()
    app.state.greeting = "hello"
    return app


def test_rebound_name() -> None:
    """An endpoint that writes to the rebound global name writes to its own sandbox."""
    app: Any = sandboxpool.wrap(make())

    @app.get("/{name}")  # type: ignore[untyped-decorator]
    async def greet(name: str, request: Request) -> dict[str, object]:
        before = getattr(app.state, "user", None)
        app.state.user = name
        await anyio.lowlevel.checkpoint()
        return {
            "before": before,
            "user": app.state.user,
            "same": app.state.user == request.app.state.user,
            "greeting": app.state.greeting,
        }

    with TestClient(app) as client:
        for name in ("ada", "bob"):
            answer = client.get(f"/{name}").json()
            assert answer == {"before": None, "user": name, "same": True, "greeting": "hello"}
    assert not hasattr(app.state, "user")


def test_overrides_through_the_wrapped_app() -> None:
    """`app.dependency_overrides` of the wrapped app is the template's, set, read and replaced."""
    app: Any = sandboxpool.wrap(make())

    @app.get("/")  # type: ignore[untyped-decorator]
    async def root(name: Annotated[str, Depends(who)]) -> str:
        return name

    with TestClient(app) as client:
        assert client.get("/").json() == "nobody"
        app.dependency_overrides[who] = lambda: "ada"
        assert client.get("/").json() == "ada"
        app.dependency_overrides = {}
        assert client.get("/").json() == "nobody"
        assert app.app.dependency_overrides == {}
    del app.dependency_overrides
    with pytest.raises(AttributeError):
        app.dependency_overrides  # noqa: B018


def test_a_factory_has_no_template() -> None:
    """With a factory there is no one app to reach; the error says where to look instead."""
    app = sandboxpool.wrap(make, factory=True)
    text = r"has no attribute 'state'.*Inside of a request use `request\.app\.state`"
    with pytest.raises(AttributeError, match=text):
        app.state  # noqa: B018
    with pytest.raises(AttributeError, match=text):
        app.state = 1


def test_own_attributes_stay_its_own() -> None:
    """What the wrapped app has itself is never looked for in the app."""
    inner = make()
    app = sandboxpool.wrap(inner)
    assert app.app is inner
    assert app.pool is None
    assert app.statistics().state == "closed"
    with pytest.raises(AttributeError):
        app.no_such_thing  # noqa: B018
