"""What wrap() takes as a WSGI app, and what it says about everything else."""

from __future__ import annotations

from typing import Any

import pytest
from django.core.handlers.wsgi import WSGIHandler  # type: ignore[import-untyped]
from flask import Flask
from starlette.applications import Starlette

from sandboxpool import AppTypeError, OptionError, wrap

from .served import StartResponse


def app(environ: dict[str, Any], start_response: StartResponse) -> list[bytes]:
    start_response("200 OK", [])
    return []


async def app_async(environ: dict[str, Any], start_response: StartResponse) -> list[bytes]:
    return []


async def raw(scope: Any, receive: Any, send: Any) -> None: ...


class StarryFlask(Flask):
    """A Flask app whose signature does not say that it is one."""

    def __call__(self, *args: Any) -> Any:
        return super().__call__(*args)


class StarryStarlette(Starlette):
    """A Starlette app whose signature does not say that it is one."""

    async def __call__(self, *args: Any) -> None:
        await super().__call__(*args)


class AsyncCall:
    """An object that is called as an ASGI app."""

    async def __call__(self, *args: Any) -> None: ...


def create_app() -> Flask:
    return Flask("shop")


class Handler(WSGIHandler):  # type: ignore[misc]
    """Django's handler, which would read the settings of a project."""

    def __init__(self) -> None: ...


@pytest.mark.parametrize(
    ("given", "name"),
    [
        (Flask("shop"), r"flask\.app\.Flask"),
        (StarryFlask("shop"), r"tests\.wsgi\.test_options\.StarryFlask"),
        (Handler(), r"tests\.wsgi\.test_options\.Handler"),
        (app, r"tests\.wsgi\.test_options\.app"),
    ],
)
def test_without_wsgi(given: Any, name: str) -> None:
    """A WSGI app that is given as an ASGI app is recognised, and the remedy is one word."""
    with pytest.raises(
        AppTypeError,
        match=rf"^wrap\(\) takes an ASGI app, got {name}, which takes two arguments and looks like "
        r"a WSGI app: pass wsgi=True\.$",
    ):
        wrap(given)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        (raw, r"raw, which looks like an ASGI app: leave out wsgi=True\.$"),
        (Starlette(), r"Starlette, which looks like an ASGI app: leave out wsgi=True\.$"),
        (StarryStarlette(), r"StarryStarlette, which looks like an ASGI app: leave out"),
        (AsyncCall(), r"AsyncCall, which looks like an ASGI app: leave out"),
        (app_async, r"app_async, which looks like an ASGI app: leave out"),
        (create_app, r"create_app, which is called without arguments and looks like a factory"),
        (Flask, r"got the class Flask: pass an instance, or factory=True to have one Flask\(\) ma"),
        (3, r"of type int, which cannot be called\. Pass a Flask app, a Django WSGIHandler, a `de"),
        (lambda a: [], r"called as app\(environ, start_response\); .* does not take two positiona"),
        (lambda a, b, c, d: [], r"does not take two positional arguments\.$"),
    ],
)
def test_with_wsgi(given: Any, text: str) -> None:
    """What is no WSGI app is refused with wsgi=True, with what to write instead."""
    with pytest.raises(AppTypeError, match=text) as caught:
        wrap(given, wsgi=True)
    assert str(caught.value).startswith("wrap(..., wsgi=True) takes a WSGI app, ")


def test_a_coroutine() -> None:
    """A coroutine is refused and closed, so that Python does not complain as well."""
    coroutine: Any = app_async({}, lambda *args: print)
    with pytest.raises(AppTypeError, match=r"takes a WSGI app, got .*, a coroutine: an async f"):
        wrap(coroutine, wsgi=True)
    assert coroutine.cr_frame is None


@pytest.mark.parametrize("wsgi", [True, False])
@pytest.mark.parametrize("given", [Flask("shop"), StarryFlask("shop")])
def test_an_app_as_a_factory(given: Any, wsgi: bool) -> None:
    """An app that is given as a factory is recognised."""
    with pytest.raises(AppTypeError, match=r"leave out factory=True\.$"):
        wrap(given, factory=True, wsgi=wsgi)


def test_a_function_as_a_factory() -> None:
    """So is a function that is one, where it is said that it makes WSGI apps."""
    with pytest.raises(
        AppTypeError,
        match=r"wrap\(\.\.\., factory=True, wsgi=True\) takes a function without arguments, but "
        r".*app needs 2\. It looks like an app: leave out factory=True",
    ):
        wrap(app, factory=True, wsgi=True)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"wsgi": 1}, r"wsgi=1: give True or False"),
        (
            {"isolation": "clone"},
            r"isolation='clone' is for ASGI apps, but wsgi=True: leave it out",
        ),
        ({"isolation": "factory"}, r"pass the function that makes it, with factory=True"),
        ({"keep": ["config"]}, r"keep=, share=, packages=, shared= and middleware= say what"),
        ({"share": ["config"]}, r"but wsgi=True: leave them out"),
        ({"middleware": {"X": "share"}}, r"but wsgi=True: leave them out"),
    ],
)
def test_options_that_cannot_mean_anything(options: dict[str, Any], text: str) -> None:
    """Options that say what is private in an ASGI app are refused for a WSGI app."""
    with pytest.raises(OptionError, match=text):
        wrap(app, **{"wsgi": True, **options})


@pytest.mark.parametrize("isolation", ["clone", object()])
def test_isolations_of_a_factory(isolation: Any) -> None:
    """So are other isolations than the factory's own."""
    with pytest.raises(OptionError, match=r"isolation="):
        wrap(create_app, factory=True, wsgi=True, isolation=isolation)


def test_sizes() -> None:
    """A shared app costs nothing for each sandbox, one of its own does, and so does a thread."""
    cases: list[tuple[dict[str, Any], tuple[int, int]]] = [
        ({}, (16, 1000)),
        ({"run_in": "thread"}, (4, 200)),
        ({"factory": True}, (1, 40)),
        ({"factory": True, "run_in": "thread"}, (1, 40)),
    ]
    for options, sizes in cases:
        given: Any = create_app if options.get("factory") else app
        pool = wrap(given, wsgi=True, **options).wrap_options.pool
        assert (pool["min_size"], pool["max_size"]) == sizes
