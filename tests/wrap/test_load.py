"""What `wrap()` takes, and what it says about everything else."""

from __future__ import annotations

import functools
import re
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from sandboxpool import AppImportError, AppTypeError, SandboxedApp, wrap

from .client import get, respond


async def raw(scope: Any, receive: Any, send: Any) -> None:
    """A raw ASGI app."""
    if scope["type"] == "http":
        await respond(send, b"hello")


class ASGIObject:
    """An ASGI app that is an object."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await raw(scope, receive, send)

    async def method(self, scope: Any, receive: Any, send: Any) -> None:
        await raw(scope, receive, send)


def hello(request: Any) -> PlainTextResponse:
    return PlainTextResponse("hello")


def make_starlette() -> Starlette:
    return Starlette(routes=[Route("/", hello)])


async def make_later() -> Starlette:
    return make_starlette()


def make_fastapi() -> FastAPI:
    app = FastAPI()
    app.add_api_route("/", lambda: "hello")
    return app


async def with_defaults(scope: Any, receive: Any, send: Any, more: int = 0) -> None:
    await raw(scope, receive, send)


async def with_star(*args: Any) -> None:
    await raw(*args)


class FlaskLike:
    """A WSGI app that is an object."""

    def __call__(self, environ: Any, start_response: Any) -> list[bytes]:
        return []


def wsgi(environ: Any, start_response: Any) -> list[bytes]:
    return []


class ASGI2:
    """An ASGI 2 app: a class that is called with the scope."""

    def __init__(self, scope: Any) -> None: ...

    async def __call__(self, receive: Any, send: Any) -> None: ...


def asgi2(scope: Any) -> Any: ...


class SlackApp(Starlette):
    """A Starlette app whose signature does not say that it is one."""

    async def __call__(self, *args: Any) -> None:
        await super().__call__(*args)


APPS: dict[str, Any] = {
    "function": raw,
    "object": ASGIObject(),
    "method": ASGIObject().method,
    "partial": functools.partial(with_defaults, more=1),
    "defaults": with_defaults,
    "star": with_star,
    "starlette": make_starlette(),
    "fastapi": make_fastapi(),
}
FACTORIES: dict[str, Any] = {
    "function": make_starlette,
    "lambda": lambda: raw,
    "async": make_later,
    "class": Starlette,
    "partial": functools.partial(Starlette, routes=[Route("/", hello)]),
    "fastapi": make_fastapi,
}


@pytest.mark.parametrize("name", APPS)
async def test_apps(name: str) -> None:
    """Every form of an ASGI app is wrapped, and serves."""
    app = APPS[name]
    async with wrap(app, max_size=1) as sandboxed:
        assert sandboxed.app is app
        answer = await get(sandboxed)
        assert (answer.status, b"hello" in answer.body) == (200, True)


@pytest.mark.parametrize("name", FACTORIES)
async def test_factories(name: str) -> None:
    """Every form of a factory is wrapped, and each sandbox is one of its products."""
    async with wrap(FACTORIES[name], factory=True, max_size=2) as sandboxed:
        answer = await get(sandboxed)
        assert answer.status == (404 if name == "class" else 200)


# --- import strings ---------------------------------------------------------------------------


@pytest.fixture
def shop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package to import from."""
    package = tmp_path / "wrapped_shop"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "main.py").write_text(
        "import sandboxpool\n"
        "from starlette.applications import Starlette\n"
        "app = Starlette()\n"
        "wrapped = sandboxpool.wrap(app)\n"
        "class Box:\n"
        "    inner = app\n"
        "def create_app():\n"
        "    return Starlette()\n"
        "number = 3\n"
    )
    (package / "broken.py").write_text("def deep():\n    import wrapped_shop_missing\ndeep()\n")
    (package / "wrong.py").write_text("def deep():\n    return 1 / 0\ndeep()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield package
    for name in [name for name in sys.modules if name.startswith("wrapped_shop")]:
        del sys.modules[name]


async def test_import_strings(shop: Path) -> None:
    """An import string may name an app, a dotted attribute, or a factory; it becomes the name."""
    for text in ("wrapped_shop.main:app", "wrapped_shop.main:Box.inner"):
        sandboxed = wrap(text)
        assert isinstance(sandboxed.app, Starlette)
        assert sandboxed.wrap_options.name == text
    async with wrap("wrapped_shop.main:create_app", factory=True) as made:
        assert (await get(made)).status == 404


def test_name() -> None:
    """An app is called after its class or function, unless it is given a name."""
    assert wrap(raw).wrap_options.name == f"{__name__}.raw"
    assert wrap(Starlette()).wrap_options.name == "starlette.applications.Starlette"
    assert wrap(raw, name="shop").wrap_options.name == "shop"
    assert repr(wrap(raw, name="shop")) == "<SandboxedApp shop isolation=clone closed>"


@pytest.mark.parametrize("text", ["wrapped_shop.main", ":app", "wrapped_shop.main:", "", ":"])
def test_no_colon(shop: Path, text: str) -> None:
    """A string that is not module:attribute is refused, and the form is shown."""
    with pytest.raises(AppImportError, match=r'form "<module>:<attribute>", like "shop.main:app"'):
        wrap(text)


@pytest.mark.parametrize(
    ("text", "missing"),
    [
        ("wrapped_nowhere:app", "wrapped_nowhere"),
        ("wrapped_nowhere.main:app", "wrapped_nowhere"),
        ("wrapped_shop.nowhere:app", "wrapped_shop.nowhere"),
    ],
)
def test_missing_module(shop: Path, text: str, missing: str) -> None:
    """A module that does not exist is named, and so is the import path."""
    with pytest.raises(AppImportError, match=f"there is no module '{re.escape(missing)}'") as info:
        wrap(text)
    assert "import path" in str(info.value)
    assert isinstance(info.value, ImportError)


def test_missing_attribute(shop: Path) -> None:
    """An attribute that does not exist is named, and so are those that could be meant."""
    with pytest.raises(AppImportError) as info:
        wrap("wrapped_shop.main:ap")
    assert "module 'wrapped_shop.main' has no attribute 'ap'" in str(info.value)
    assert "It has: app, create_app, wrapped." in str(info.value)
    with pytest.raises(AppImportError, match=r"no attribute 'x'\.$"):
        wrap("wrapped_shop:x")


@pytest.mark.parametrize(
    ("module", "error"), [("broken", ModuleNotFoundError), ("wrong", ZeroDivisionError)]
)
def test_error_in_module(shop: Path, module: str, error: type[Exception]) -> None:
    """What a module raises while it is imported comes out as it is, with its traceback."""
    with pytest.raises(error) as info:
        wrap(f"wrapped_shop.{module}:app")
    assert not isinstance(info.value, AppImportError)
    assert "deep" in [frame.name for frame in traceback.extract_tb(info.tb)]


@pytest.mark.parametrize("text", ["", ".", "..:app", ".main:app", "a b:app", "shop/main.py:app"])
def test_odd_strings(text: str) -> None:
    """No string, however odd, gets past with another kind of error."""
    with pytest.raises(AppImportError):
        wrap(text)


# --- refusals ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("app", "text"),
    [
        (make_starlette, r"make_starlette, which is called without arguments and looks like a fac"),
        (lambda: raw, r"write wrap\(\.\.\., factory=True\), or pass the app that it returns"),
        (make_later, r"make_later, which is called without arguments .* factory=True"),
        (wsgi, r"wsgi, which takes two arguments and looks like a WSGI app: pass wsgi=True"),
        (FlaskLike(), r"FlaskLike, which takes two arguments .*: pass wsgi=True"),
        (Starlette, r"got the class Starlette: pass an instance, or factory=True"),
        (ASGI2, r"got the class ASGI2"),
        (asgi2, r"asgi2 does not take three positional arguments\. \(An ASGI 2 app"),
        (3, r"got builtins\.int of type int, which cannot be called"),
        (None, r"of type NoneType, which cannot be called"),
        (ASGIObject, r"got the class ASGIObject"),
        (lambda a, b, c, d: None, r"does not take three positional arguments"),
        (lambda *, scope: None, r"does not take three positional arguments"),
    ],
)
def test_refused_apps(app: Any, text: str) -> None:
    """What is no app is refused, with what was given and what to write instead."""
    with pytest.raises(AppTypeError, match=text) as info:
        wrap(app)
    assert str(info.value).startswith("wrap() takes an ASGI")
    assert isinstance(info.value, TypeError)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (raw, r"raw needs 3\. It looks like an app: leave out factory=True"),
        (wsgi, r"needs 2\. Bind its arguments with functools\.partial or a lambda"),
        (SlackApp(), r"SlackApp is an app: leave out factory=True"),
        (make_starlette(), r"Starlette needs 3\. It looks like an app"),
        (3, r"got builtins\.int of type int, which cannot be called"),
        (lambda *, name: raw, r"lambda> needs .*Bind its arguments"),
    ],
)
def test_refused_factories(make: Any, text: str) -> None:
    """What is no factory is refused with `factory=True`, with what to write instead."""
    with pytest.raises(AppTypeError, match=text):
        wrap(make, factory=True)


@pytest.mark.parametrize("factory", [True, False])
def test_coroutines(factory: bool) -> None:
    """A coroutine is refused and closed, so that Python does not complain as well."""
    coroutine: Any = make_later()
    with pytest.raises(AppTypeError, match="a coroutine: "):
        wrap(coroutine, factory=factory)
    assert coroutine.cr_frame is None


def test_wrapped_twice(shop: Path) -> None:
    """An app that is wrapped already is refused, also by import string and from a factory."""
    sandboxed = wrap(raw)
    with pytest.raises(AppTypeError, match=r"is wrapped already: .* in one call of wrap\(\)"):
        wrap(sandboxed)
    with pytest.raises(AppTypeError, match=r"wrapped_shop\.main:wrapped is wrapped already"):
        wrap("wrapped_shop.main:wrapped")
    with pytest.raises(AppTypeError, match="is wrapped already"):
        wrap(sandboxed, factory=True)  # type: ignore[call-overload]


def test_factory_with_clone() -> None:
    """`isolation="clone"` makes the template with the factory, at once, and checks it."""
    sandboxed = wrap(make_starlette, factory=True, isolation="clone")
    assert isinstance(sandboxed, SandboxedApp)
    assert sandboxed.wrap_options.isolation == "clone"
    with pytest.raises(AppTypeError, match=r"got what .* returned, which takes two arguments"):
        wrap(lambda: wsgi, factory=True, isolation="clone")  # type: ignore[call-overload]
    with pytest.raises(AppTypeError, match="is an async factory"):
        wrap(make_later, factory=True, isolation="clone")
    with pytest.raises(AppTypeError, match="wrapped already"):
        wrap(lambda: wrap(raw), factory=True, isolation="clone")


async def test_awaitable_class() -> None:
    """A class whose instances are awaitable, as Starlette's endpoints are, is an app itself."""

    class Hello(HTTPEndpoint):
        async def get(self, request: Request) -> PlainTextResponse:
            return PlainTextResponse("hello")

    async with wrap(Hello, stall_after=None) as sandboxed:
        assert (await get(sandboxed)).body == b"hello"
