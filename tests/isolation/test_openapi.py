"""The OpenAPI schema: generated once, private all the same."""

from __future__ import annotations

from typing import Any

import fastapi.applications
import pytest
from fastapi import APIRouter, FastAPI
from starlette.requests import Request
from starlette.responses import JSONResponse

from sandboxpool.isolation.clone import CloneFactory
from sandboxpool.isolation.factory import AppFactory

from .driver import Driver, call


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The titles for which a schema was generated."""
    titles: list[str] = []
    generate: Any = vars(fastapi.applications)["get_openapi"]

    def noting(**options: Any) -> Any:
        titles.append(options["title"])
        return generate(**options)

    monkeypatch.setattr(fastapi.applications, "get_openapi", noting)
    return titles


def make(cls: type[FastAPI] = FastAPI) -> FastAPI:
    app, included, sub = cls(title="shop"), APIRouter(prefix="/in"), FastAPI(title="sub")

    @included.get("/item")
    def item() -> None: ...

    @app.post("/spoil")
    def spoil() -> None:
        app.openapi()["paths"]["/in/item"]["get"] = "spoiled"
        app.openapi()["paths"]["/alice"] = {}

    @app.post("/add")
    def add() -> list[str]:
        app.add_api_route("/alice", lambda: "alice")
        return sorted(app.openapi()["paths"])

    @app.post("/rename")
    def rename() -> str:
        app.title = "alice"
        return str(app.openapi()["info"]["title"])

    app.include_router(included)
    app.mount("/sub", sub)
    return app


PATHS = ["/add", "/in/item", "/rename", "/spoil"]


@pytest.mark.parametrize("kind", ["clone", "factory"])
async def test_the_schema_is_generated_once(kind: str, generated: list[str]) -> None:
    """One schema serves all requests of all clones, and no request sees what another did to it."""
    app = make()
    expected = app.openapi()
    app = make()
    generated.clear()
    factory: Any = CloneFactory(app) if kind == "clone" else AppFactory(make)
    async with Driver(factory, 2 if kind == "clone" else 1) as driver:
        last = driver.size - 1
        for number in (0, last, 0):
            assert (await driver.get(number, "/openapi.json")).data == expected
            assert (await driver.get(number, "/spoil", method="POST")).status == 200
            assert (await driver.get(number, "/sub/openapi.json")).data["info"]["title"] == "sub"
        assert generated == ["shop", "sub"]
        added = await driver.get(0, "/add", method="POST")
        assert added.data == sorted([*PATHS, "/alice"])
        assert (await driver.get(0, "/rename", method="POST")).data == "alice"
        assert generated == ["shop", "sub", "shop", "alice"]
        for number in (0, last):
            assert (await driver.get(number, "/openapi.json")).data == expected
        assert len(generated) == 4
    assert app.openapi_schema is None


async def test_the_control(generated: list[str]) -> None:
    """The app alone generates it once as well, and keeps what a request did to it."""
    app = make()
    await call(app, "/spoil", method="POST")
    paths = (await call(app, "/openapi.json")).data["paths"]
    assert paths["/in/item"]["get"] == "spoiled"
    assert "/alice" in paths
    assert generated == ["shop"]


async def test_changes_of_the_template_show(generated: list[str]) -> None:
    """What is changed outside of requests is in the schema of the next request."""
    app = make()
    async with Driver(CloneFactory(app), 1) as driver:
        assert (await driver.get(0, "/openapi.json")).data["info"]["title"] == "shop"
        app.title = "bazaar"
        assert (await driver.get(0, "/openapi.json")).data["info"]["title"] == "bazaar"
        app.add_api_route("/late", lambda: None)
        for _ in range(2):
            paths = (await driver.get(0, "/openapi.json")).data["paths"]
            assert sorted(paths) == sorted([*PATHS, "/late"])
    assert generated == ["shop", "bazaar", "bazaar"]


async def test_a_schema_that_was_made_at_start_up(generated: list[str]) -> None:
    """A template's own schema, and what was done to it, reaches each request as a copy."""
    app = make()
    app.openapi()["info"]["x-logo"] = "cow"

    @app.get("/logo", include_in_schema=False)
    def logo() -> list[str]:
        schema: Any = app.openapi_schema
        before: str = schema["info"]["x-logo"]
        schema["info"]["x-logo"] = "alice"
        return [before, app.openapi()["info"]["x-logo"]]

    # The route is new, so the schema must be made and changed once more to be up to date.
    app.openapi()["info"]["x-logo"] = "cow"
    made = list(generated)
    async with Driver(CloneFactory(app), 2) as driver:
        twin: Any = driver.sandboxes[0].app
        assert twin.openapi_schema is None  # nobody has asked yet, so nothing is copied
        for number in (0, 1, 0):
            assert (await driver.get(number, "/logo")).data == ["cow", "alice"]
            info = (await driver.get(number, "/openapi.json")).data["info"]
            assert info["x-logo"] == "cow"
    assert generated == made
    assert app.openapi()["info"]["x-logo"] == "cow"


async def test_a_schema_that_is_asked_for_again() -> None:
    """A request that empties the schema of its sandbox and adds a route gets a new one."""
    app = make()
    app.openapi()

    @app.get("/again", include_in_schema=False)
    def again() -> Any:
        app.add_api_route("/alice", lambda: "alice")
        app.openapi_schema = None
        return [app.openapi_schema, "/alice" in app.openapi()["paths"]]

    async with Driver(CloneFactory(app), 1) as driver:
        for _ in range(2):
            assert (await driver.get(0, "/again")).data == [None, True]


class Special(FastAPI):
    """An app with a schema of its own."""

    def openapi(self) -> dict[str, Any]:
        """Return a schema."""
        return {"special": getattr(self.state, "user", None)}


async def test_a_schema_of_the_users_is_left_alone() -> None:
    """An `openapi` of a subclass, or on the app itself, is called for every request."""

    async def write(request: Request) -> JSONResponse:
        request.app.state.user = "alice"
        return JSONResponse(request.app.openapi())

    replaced = FastAPI()
    replaced.openapi = lambda: {  # type: ignore[method-assign]
        "special": getattr(replaced.state, "user", None)
    }
    for app in (Special(), replaced):
        app.add_route("/write", write)
        async with Driver(CloneFactory(app), 1) as driver:
            for _ in range(2):
                assert (await driver.get(0, "/openapi.json")).data == {"special": None}
                assert (await driver.get(0, "/write")).data == {"special": "alice"}


async def test_a_fastapi_that_does_not_count_its_routes(
    monkeypatch: pytest.MonkeyPatch, generated: list[str]
) -> None:
    """Without the count of routes nobody can tell what has changed: every request generates."""
    monkeypatch.setattr(
        "sandboxpool.adapters.fastapi._COUNT", "no_such_method_of_a_router", raising=True
    )
    async with Driver(CloneFactory(make()), 1) as driver:
        for _ in range(2):
            assert sorted((await driver.get(0, "/openapi.json")).data["paths"]) == PATHS
    assert generated == ["shop", "shop"]


async def test_a_root_path() -> None:
    """The server's root path is in the schema of the request only."""
    async with Driver(CloneFactory(make()), 1) as driver:
        answer = await driver.get(0, "/api/openapi.json", root_path="/api")
        assert answer.data["servers"] == [{"url": "/api"}]
        assert "servers" not in (await driver.get(0, "/openapi.json")).data
