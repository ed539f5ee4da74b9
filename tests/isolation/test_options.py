"""Options of an isolation that cannot mean anything."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.middleware.gzip import GZipMiddleware

from sandboxpool import AppTypeError, OptionError, wrap
from sandboxpool.isolation.clone import CloneFactory
from sandboxpool.isolation.factory import AppFactory

from .driver import Driver


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"lifespan": "onec"}, "lifespan='onec' is none of 'once', 'each', 'off' (did you mean"),
        ({"reset": "restor"}, "or a callable that takes the sandbox (did you mean 'restore'?)"),
        ({"reset": 1}, "reset=1 is none of"),
        ({"keep": "state.cache"}, "keep='state.cache' is one string: write keep=('state.cache',)"),
        ({"keep": ("state.cache",), "reset": "keep"}, "leave out one of them"),
        ({"keep": ("state.a.b",)}, "only whole entries of the state can be kept"),
        ({"share": ("a-b",)}, "names are dotted identifiers"),
        ({"share": (1,)}, "names are dotted identifiers"),
        ({"share": ("app.cache",)}, "dotted names start with the state"),
        ({"middleware": {"GZipMiddleware": "clone"}}, "is none of 'copy', 'share', 'fresh'"),
        ({"middleware": {1: "copy"}}, "name a class, or give the class"),
    ],
)
@pytest.mark.parametrize("factory", [CloneFactory, AppFactory])
def test_an_option_is_refused_at_once(factory: Any, options: Any, text: str) -> None:
    """What cannot be meant is refused when the factory is made, with the way out."""
    with pytest.raises(OptionError, match=re.escape(text)):
        factory(FastAPI, **options)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"keep": ("titel",)}, "keep='titel': FastAPI has no such attribute (did you mean 'title'"),
        ({"share": ("nothing",)}, "share='nothing': FastAPI has no such attribute"),
        (
            {"middleware": {"GZipMiddlewares": "share"}},
            "middleware={'GZipMiddlewares': ...}: the app has no middleware of that class "
            "(did you mean 'GZipMiddleware'",
        ),
        ({"middleware": {AppFactory: "share"}}, "the app has no middleware of that class"),
    ],
)
async def test_a_name_that_matches_nothing_is_refused_at_the_start(options: Any, text: str) -> None:
    """A name that is not in the app is refused when the app starts, with near matches."""
    app = FastAPI()
    app.add_middleware(GZipMiddleware)
    with pytest.raises(OptionError, match=re.escape(text)):
        await CloneFactory(app, **options).start()
    assert type(app) is FastAPI
    factory = AppFactory(lambda: app, lifespan="off", **options)
    with pytest.raises(OptionError, match=re.escape(text)):
        await factory.create()


@asynccontextmanager
async def filled(app: Any) -> AsyncIterator[dict[str, Any]]:
    app.state.cache = {"users": []}
    yield {"basket": []}


@pytest.mark.parametrize("kind", ["clone", "clone each", "factory"])
async def test_a_name_below_the_state_that_matches_nothing_is_warned_of(
    kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A name below `state.` that is not there after start-up is logged once, with near matches."""

    def make() -> Any:
        return FastAPI(lifespan=filled)

    options: Any = {
        "keep": ("state.cahce", "state.cache", "state.basket"),
        "share": ("state.cache.users", "state.cache.user", "state.baskets", "state.basket"),
        "name": "shop",
    }
    factory: Any
    if kind == "factory":
        factory = AppFactory(make, **options)
    else:
        factory = CloneFactory(make(), lifespan="each" if kind != "clone" else "once", **options)
    for _ in range(2):
        async with Driver(factory, 2):
            pass
    nothing = "matches nothing in the state after start-up"
    kept = "; it has an effect only if a request adds such an entry later"
    shared = "; it has an effect only if something outside of requests adds such an entry later"
    assert [record.getMessage() for record in caplog.records] == [
        f"shop: keep='state.cahce' {nothing} (did you mean 'cache'?){kept}",
        # What a lifespan yields belongs to one request: it cannot survive a reset.
        f"shop: keep='state.basket' {nothing}{kept}",
        f"shop: share='state.cache.user' {nothing} (did you mean 'users'?){shared}",
        f"shop: share='state.baskets' {nothing} (did you mean 'basket'?){shared}",
    ]


async def test_a_factory_that_returns_no_app() -> None:
    """A factory that returns no app is named, with what it returned."""

    def nothing() -> Any:
        return None

    def a_class() -> Any:
        return FastAPI

    for make in (nothing, a_class):
        with pytest.raises(AppTypeError, match=f"the factory .*{make.__name__} returned"):
            await AppFactory(make).create()


async def test_a_factory_that_returns_a_wrapped_app() -> None:
    """A factory must return the app itself: a pool in a pool would only queue twice."""
    inner = wrap(FastAPI(), name="shop")

    def create_app() -> Any:
        return inner

    factory = AppFactory(create_app)
    with pytest.raises(AppTypeError) as refused:
        await factory.create()
    text = str(refused.value)
    assert "create_app returned <SandboxedApp shop isolation=clone closed>" in text
    assert "which is wrapped already: a second pool would only queue in front" in text
    assert "Return the app itself, and pass all options to the wrap() that takes" in text
    assert inner.statistics().requests == 0


async def test_a_factory_that_returns_one_app_twice() -> None:
    """A factory must make a new app in every call."""
    app = FastAPI()
    factory = AppFactory(lambda: app)
    sandbox = await factory.create()
    with pytest.raises(AppTypeError, match="returned the same FastAPI twice"):
        await factory.create()
    await factory.destroy(sandbox)
    assert type(app) is FastAPI


def test_a_factory_that_is_no_function() -> None:
    """What cannot be called is no factory."""
    with pytest.raises(AppTypeError, match="a factory is a function without arguments"):
        AppFactory("shop.main:create_app")  # type: ignore[arg-type]
