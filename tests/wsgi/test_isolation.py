"""What of a WSGI app is private to a request: with a factory all of it, else nothing."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from functools import cached_property, partial
from types import SimpleNamespace
from typing import Any

import anyio
import pytest
from flask import Flask, current_app, render_template_string, request

from sandboxpool import AppTypeError, FactoryError, wrap
from sandboxpool.adapters._wsgi_state import AppState
from tests.wrap.client import Connection, get

from .served import StartResponse, each_way, opened, wrapped

PLACES = ["config", "attribute", "nested", "closure", "global"]
here: list[str] = []


def meet() -> None:
    """Block until both requests are here."""
    here.append(request.args["user"])
    end = time.monotonic() + 10
    while len(here) < 2:
        assert time.monotonic() < end
        time.sleep(0.001)


def create_app() -> Flask:
    app = Flask("shop")
    app.config["SEEN"] = []
    last = ""

    @app.get("/config")
    def config() -> str:
        current_app.config["USER"] = request.args["user"]
        meet()
        return str(current_app.config["USER"])

    @app.get("/attribute")
    def attribute() -> str:
        app.user = request.args["user"]  # type: ignore[attr-defined]
        meet()
        return str(app.user)  # type: ignore[attr-defined]

    @app.get("/nested")
    def nested() -> str:
        app.config["SEEN"].append(request.args["user"])
        meet()
        return " ".join(app.config["SEEN"])

    @app.get("/closure")
    def closure() -> str:
        nonlocal last
        last = request.args["user"]
        meet()
        return last

    @app.get("/global")
    def by_request() -> str:
        # What Flask itself keeps apart, with or without us.
        from flask import g

        g.user = request.args["user"]
        meet()
        return str(g.user)

    return app


@pytest.fixture(autouse=True)
def nobody_here() -> None:
    here.clear()


async def two_at_once(app: Any, path: str) -> list[str]:
    """Let ada and bob meet inside of an app, and return what each of them is told."""
    told = {}

    async def ask(user: str) -> None:
        told[user] = (await get(app, path, query_string=f"user={user}".encode())).text

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask, "ada")
        tasks.start_soon(ask, "bob")
    return [told["ada"], told["bob"]]


@pytest.mark.parametrize("place", PLACES)
def test_control(place: str) -> None:
    """Unwrapped, in the threads of an ordinary server, one of two requests gets the other's."""
    app = create_app()
    told = {}

    def ask(user: str) -> None:
        told[user] = app.test_client().get(f"/{place}?user={user}").text

    threads = [threading.Thread(target=ask, args=(user,)) for user in ("ada", "bob")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert ((told["ada"], told["bob"]) == ("ada", "bob")) == (place == "global")


@each_way
@pytest.mark.parametrize("place", PLACES)
async def test_factory(run_in: str, place: str) -> None:
    """Made by a factory, two requests at once have an app each, down to its closures."""
    async with opened(create_app, run_in, factory=True, min_size=2) as sandboxed:
        assert await two_at_once(sandboxed, f"/{place}") == ["ada", "bob"]
        assert sandboxed.statistics().isolation == "factory"


@each_way
async def test_one_app_is_shared(run_in: str) -> None:
    """One app is one app: what requests write to it, others see, as its framework has it."""
    async with opened(create_app(), run_in, min_size=2) as sandboxed:
        told = await two_at_once(sandboxed, "/config")
        assert told[0] == told[1]
        here.clear()
        assert await two_at_once(sandboxed, "/global") == ["ada", "bob"]
        assert sandboxed.statistics().isolation == "shared"


# --- one request after another ----------------------------------------------------------------


class Counting:
    """WSGI middleware with state of its own."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.count = 0
        self.paths: list[str] = []

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> Any:
        self.count += 1
        self.paths.append(environ["PATH_INFO"])
        environ["count"] = f"{self.count} {len(self.paths)}"
        return self.app(environ, start_response)


def create_counting() -> Flask:
    app = Flask("counting")
    app.wsgi_app = Counting(app.wsgi_app)  # type: ignore[assignment, method-assign]
    app.extensions["visits"] = {"all": []}
    app.config.update(VISITS=0, DEEP={"list": []}, DEBUG_ME=True)
    app.hits = 0  # type: ignore[attr-defined]
    kept = 0

    @app.get("/")
    def visit() -> str:
        nonlocal kept
        kept += 1
        app.hits += 1  # type: ignore[attr-defined]
        app.late = getattr(app, "late", 0) + 1  # type: ignore[attr-defined]
        app.config["VISITS"] += 1
        app.config["DEEP"]["list"].append(1)
        app.config.pop("DEBUG_ME", None)
        app.extensions["visits"]["all"].append(1)
        return " ".join(
            map(
                str,
                [
                    app.hits,  # type: ignore[attr-defined]
                    app.late,  # type: ignore[attr-defined]
                    app.config["VISITS"],
                    len(app.config["DEEP"]["list"]),
                    len(app.extensions["visits"]["all"]),
                    request.environ["count"],
                    "closure",
                    kept,
                ],
            )
        )

    @app.get("/debug")
    def debug() -> str:
        return str("DEBUG_ME" in app.config)

    @app.get("/template")
    def template() -> str:
        return render_template_string("{{ 1 + 1 }}") + str(id(app.jinja_env))

    return app


def test_control_of_leftovers() -> None:
    """Unwrapped, a request finds what the one before it has left."""
    client = create_counting().test_client()
    assert client.get("/").text == "1 1 1 1 1 1 1 closure 1"
    assert client.get("/").text == "2 2 2 2 2 2 2 closure 2"
    assert client.get("/debug").text == "False"


@each_way
async def test_restore(run_in: str) -> None:
    """Between two requests the app is put back: attributes, config, plain data, middleware.

    What only a closure holds stays until the sandbox is retired.
    """
    async with opened(create_counting, run_in, factory=True, max_size=1) as sandboxed:
        assert (await get(sandboxed)).text == "1 1 1 1 1 1 1 closure 1"
        assert (await get(sandboxed)).text == "1 1 1 1 1 1 1 closure 2"
        assert (await get(sandboxed, "/debug")).text == "True"


@each_way
async def test_fresh(run_in: str) -> None:
    """With reset="fresh" no request finds anything of another one, not even in a closure."""
    async with opened(
        create_counting, run_in, factory=True, max_size=1, reset="fresh"
    ) as sandboxed:
        for _ in range(2):
            assert (await get(sandboxed)).text == "1 1 1 1 1 1 1 closure 1"


async def test_keep() -> None:
    """With reset="keep" the app is left as it is."""
    async with opened(create_counting, "loop", factory=True, max_size=1, reset="keep") as sandboxed:
        assert (await get(sandboxed)).text == "1 1 1 1 1 1 1 closure 1"
        assert (await get(sandboxed)).text == "2 2 2 2 2 2 2 closure 2"


@each_way
async def test_reset_by_a_function(run_in: str) -> None:
    """A function for reset= reaches the WSGI app, and may have it put back first."""
    seen = []

    def reset(sandbox: Any) -> None:
        seen.append(sandbox.app.wsgi_app.hits)
        sandbox.app.restore()
        sandbox.app.wsgi_app.hits += 10

    async with opened(create_counting, run_in, factory=True, max_size=1, reset=reset) as sandboxed:
        assert (await get(sandboxed)).text.startswith("1 1 1")
        assert (await get(sandboxed)).text.startswith("11 1 1")
    assert seen == [1, 11]


async def test_what_is_computed_once_stays() -> None:
    """A cached property is a cache: the templates' environment of Flask is not made anew."""
    async with opened(create_counting, "loop", factory=True, max_size=1) as sandboxed:
        first = (await get(sandboxed, "/template")).text
        assert (await get(sandboxed, "/template")).text == first


class Holder:
    """Has everything that an app might."""

    shared = 0

    def __init__(self) -> None:
        self.number = 1
        self.items = [1, {"a": (2, [3])}]
        self.space = SimpleNamespace(x=[1])
        self.ordered = OrderedDict(a=1)
        self.inner = Counting(None)
        self.bound: Any = Counting(None).__call__
        self.partly: Any = partial(Counting(None))
        self.opaque = Opaque()
        self.me = self

    @cached_property
    def costly(self) -> list[int]:
        return [1]

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> list[bytes]:
        return []


class Opaque:
    """An object of no kind that is known."""

    def __init__(self) -> None:
        self.touched = 0


def test_state_of_an_object() -> None:
    """All that an app keeps in plain data comes back, in itself and in the apps that it wraps."""
    holder = Holder()
    state = AppState(holder)
    for _ in range(2):
        holder.number = 2
        holder.items[1]["a"][1].append(4)  # type: ignore[index]
        holder.items.append(5)
        holder.space.x.append(2)
        holder.space.y = 1
        holder.ordered["b"] = 2
        holder.inner.count = 7
        holder.bound.__self__.paths.append("x")
        holder.partly.func.count = 7
        holder.opaque.touched += 1
        assert holder.costly
        holder.__dict__["new"] = 1
        state.restore()
        assert holder.number == 1
        assert holder.items == [1, {"a": (2, [3])}]
        assert holder.space == SimpleNamespace(x=[1])
        assert holder.ordered == {"a": 1}
        assert holder.inner.count == holder.partly.func.count == 0
        assert holder.bound.__self__.paths == []
        assert "costly" in vars(holder)
        assert "new" not in vars(holder)
    assert holder.opaque.touched == 2


def test_state_of_a_function() -> None:
    """A function has its attributes put back, and those of the app that it closes over."""

    def middleware(app: Any) -> Any:
        plain: list[int] = []

        def outer(environ: dict[str, Any], start_response: StartResponse) -> Any:
            plain.append(1)
            outer.calls += 1  # type: ignore[attr-defined]
            return app(environ, start_response)

        outer.calls = 0  # type: ignore[attr-defined]
        outer.plain = plain  # type: ignore[attr-defined]
        return outer

    inner = Holder()
    outer = middleware(inner)
    state = AppState(outer)
    outer({}, print)
    inner.number = 2
    state.restore()
    assert (outer.calls, outer.plain, inner.number) == (0, [], 1)


class Slotted:
    """An app without a dict."""

    __slots__ = ("number",)

    def __call__(self, environ: dict[str, Any], start_response: StartResponse) -> list[bytes]:
        return []


@pytest.mark.parametrize("app", [Slotted(), Slotted().__call__, len, dict])
def test_nothing_to_put_back(app: Any) -> None:
    """What keeps nothing in a dict is left alone."""
    AppState(app).restore()


# --- what a factory may be, and may not -------------------------------------------------------


def plain(environ: dict[str, Any], start_response: StartResponse) -> list[bytes]:
    start_response("200 OK", [])
    return [b"plain"]


async def make_later() -> Any:
    return Flask("later")


async def raw(scope: Any, receive: Any, send: Any) -> None: ...


@each_way
async def test_async_factory(run_in: str) -> None:
    """A factory may be async."""
    async with opened(make_later, run_in, factory=True) as sandboxed:
        assert (await get(sandboxed)).status == 404


@each_way
async def test_one_at_a_time(run_in: str) -> None:
    """A factory never runs twice at once, in whatever thread."""
    inside = most = 0

    def create() -> Flask:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        time.sleep(0.01)
        inside -= 1
        return Flask("slow")

    async with opened(create, run_in, factory=True, min_size=4, max_size=4) as sandboxed:
        assert sandboxed.statistics().pool.created == 4
    assert most == 1


@each_way
@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: plain, r"the factory .*<lambda> returned the same function twice: build a new"),
        (
            lambda: raw,
            r"got what .*<lambda> returned, which looks like an ASGI app: leave out wsgi",
        ),
        (lambda: None, r"got what .*<lambda> returned of type NoneType, which cannot be called"),
        (lambda: wrap(raw), r"got what .*<lambda> returned, which looks like an ASGI app"),
    ],
)
async def test_broken_factories(
    run_in: str, make: Callable[[], Any], text: str, caplog: pytest.LogCaptureFixture
) -> None:
    """A factory that makes no new WSGI app is named, with what to write instead."""
    with pytest.raises((FactoryError, AppTypeError)) as caught:
        async with opened(make, run_in, factory=True, min_size=2, max_creating=1):
            pass
    errors: list[BaseException | None] = [caught.value]
    while errors[-1] is not None:
        errors.append(errors[-1].__cause__)
    assert isinstance(errors[-2], AppTypeError)
    with pytest.raises(AppTypeError, match=text):
        raise errors[-2]


async def test_a_wsgi_app_from_a_factory_of_asgi_apps() -> None:
    """A factory whose apps are WSGI apps is told what is missing, not left to fail later."""
    with pytest.raises(FactoryError) as caught:
        async with wrap(create_app, factory=True):  # type: ignore[call-overload]
            pass
    cause = caught.value.__cause__
    assert isinstance(cause, AppTypeError)
    assert "returned <Flask 'shop'>, which looks like a WSGI app: pass wsgi=True." in str(cause)


def test_standing_in() -> None:
    """The wrapped app passes attributes on to the WSGI app, as for ASGI apps."""
    app = create_app()
    sandboxed = wrapped(app, "loop")
    assert sandboxed.app is app
    assert sandboxed.config is app.config
    sandboxed.get("/new")(lambda: "new")
    assert "/new" in {rule.rule for rule in app.url_map.iter_rules()}
    with pytest.raises(AttributeError, match="its sandboxes are made by a factory"):
        _ = wrapped(create_app, "loop", factory=True).config


async def test_an_app_of_unclear_signature_is_shared_too() -> None:
    """A WSGI app that would pass for an ASGI app by its signature is never copied."""

    class Odd:
        def __init__(self) -> None:
            self.calls: list[str] = []

        def __call__(self, *args: Any) -> list[bytes]:
            self.calls.append(args[0]["PATH_INFO"])
            args[1]("200 OK", [])
            return []

    odd = Odd()
    async with opened(odd, "loop") as sandboxed:
        for path in ("/a", "/b"):
            await Connection(sandboxed, path).run()
    assert odd.calls == ["/a", "/b"]
