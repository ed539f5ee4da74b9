"""Reports of what a request leaves behind: made after the response, about the right request."""

from __future__ import annotations

import asyncio
import decimal
import json
import logging
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anyio
import attrs
import pytest
import trio
from fastapi import FastAPI, Request, WebSocket
from starlette.applications import Starlette
from starlette.background import BackgroundTask
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from sandboxpool import Leak, LeakError, LeakReport, SandboxedApp, context, wrap
from sandboxpool._visit import Visit
from sandboxpool.leaks._shared import Budget
from tests.wrap.client import Connection, get, respond

PLACES = ["loop", "thread", "cooperative"]


@pytest.fixture(autouse=True)
def _environment() -> Iterator[None]:
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


def records(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    """Return what was logged about leaks."""
    return [record for record in caplog.records if record.name == "sandboxpool.leaks"]


def reports(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    """Return what the warnings about leaks hold, where there is nothing else."""
    found = records(caplog)
    assert all(record.levelno == logging.WARNING for record in found), found
    return [record.leak_report for record in found]  # type: ignore[attr-defined]


def paths(report: dict[str, Any] | LeakReport) -> list[str]:
    """Return what a report names."""
    if isinstance(report, LeakReport):
        return [leak.path for leak in report.leaks]
    return [leak["path"] for leak in report["leaks"]]


class Last:
    """Middleware that keeps the last user on itself."""

    def __init__(self, app: Any) -> None:
        self.app = app
        self.user = "nobody"

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if b"u" in scope.get("query_string", b""):
            self.user = scope["query_string"].decode()
        await self.app(scope, receive, send)


def shop() -> FastAPI:
    """Return an app that leaves things behind, and also does not."""
    app = FastAPI()
    app.add_middleware(Last)
    app.state.cart = {}

    @app.get("/clean")
    async def clean(request: Request) -> int:
        return len(request.app.state.cart)

    @app.get("/cart/{item}")
    async def cart(item: str, request: Request) -> str:
        request.app.state.cart["items"] = [item]
        return item

    @app.get("/environ/{value}")
    async def environ(value: str) -> str:
        os.environ["SHOP_USER"] = value
        return value

    @app.get("/error")
    async def error(request: Request) -> None:
        request.app.state.cart["error"] = 1
        raise RuntimeError("a bug")

    @app.websocket("/chat")
    async def chat(websocket: WebSocket) -> None:
        await websocket.accept()
        websocket.app.state.cart["chat"] = await websocket.receive_text()
        await websocket.close()

    return app


@pytest.mark.parametrize("run_in", PLACES)
@pytest.mark.parametrize("factory", [False, True], ids=["clone", "factory"])
async def test_log(factory: bool, run_in: Any, caplog: pytest.LogCaptureFixture) -> None:
    """One warning says what, by which request, from what to what, and where in the code."""
    app: Any = shop if factory else shop()
    async with wrap(app, factory=factory, leaks="log", name="shop", run_in=run_in) as sandboxed:
        assert (await get(sandboxed, "/clean")).json == 0
        assert reports(caplog) == []
        answer = await get(sandboxed, "/cart/apple", query_string=b"u=ada")
        assert answer.json == "apple"
        (report,) = reports(caplog)
        (record,) = records(caplog)
        assert (await get(sandboxed, "/clean")).json == 0
    assert report == {
        "app": "shop",
        "lease_id": report["lease_id"],
        "type": "http",
        "method": "GET",
        "route": "/cart/{item}",
        "path": "/cart/apple",
        "sandbox": report["sandbox"],
        "leaks": report["leaks"],
    }
    items, user = sorted(report["leaks"], key=lambda leak: str(leak["path"]))
    assert items["path"] == 'app.state.cart["items"]'
    assert (items["kind"], items["where"], items["before"]) == ("added", "sandbox", "")
    assert items["after"] == "['apple']"
    assert items["leases"] == (report["lease_id"],)
    (line,) = items["lines"]
    assert line.startswith("tests/leaks/test_reports.py:")
    assert line.endswith("cart")
    assert user["path"] == "tests.leaks.test_reports.Last().user"
    assert (user["kind"], user["before"], user["after"]) == ("changed", "'nobody'", "'u=ada'")
    text = record.getMessage()
    assert text.startswith("shop: GET /cart/apple (route /cart/{item}), lease ")
    assert f"  app.state.cart[\"items\"] was added: ['apple'], at {line}" in text.splitlines()
    assert json.loads(json.dumps(report))["path"] == "/cart/apple"


def test_nothing_is_imported_when_off() -> None:
    """With `leaks="ignore"`, the default, a request does not even import what would look."""
    code = """
import anyio, sys, sandboxpool
async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b""})
async def main():
    async def send(message):
        pass
    async with sandboxpool.wrap(app, leaks=sys.argv[1]) as sandboxed:
        await sandboxed({"type": "http", "path": "/"}, None, send)
anyio.run(main)
print(*(name for name in sys.modules if name.startswith("sandboxpool.leaks")))
"""
    for mode, imported in (("ignore", False), ("log", True)):
        done = subprocess.run(
            [sys.executable, "-c", code, mode], capture_output=True, check=True, text=True
        )
        assert bool(done.stdout.strip()) is imported


async def test_retire(caplog: pytest.LogCaptureFixture) -> None:
    """With `leaks="retire"` the sandbox of a request that left something is replaced."""
    async with wrap(shop(), leaks="retire", min_size=1, max_size=1) as sandboxed:
        await get(sandboxed, "/clean")
        assert sandboxed.statistics().pool.retired == {}
        await get(sandboxed, "/cart/apple")
        assert sandboxed.statistics().pool.retired == {"leaked": 1}
        assert (await get(sandboxed, "/clean")).json == 0
        assert len(reports(caplog)) == 1


@pytest.mark.parametrize("run_in", PLACES)
async def test_raise(run_in: Any) -> None:
    """With `leaks="raise"` the report is raised out of the call, when the response is out."""
    async with wrap(shop(), leaks="raise", run_in=run_in) as sandboxed:
        await get(sandboxed, "/clean")
        connection = Connection(sandboxed, "/cart/apple")
        with pytest.raises(LeakError, match=r'cart\["items"\] was added') as info:
            await connection.run()
        assert connection.json == "apple"
        assert paths(info.value.report) == ['app.state.cart["items"]']
        assert sandboxed.statistics().pool.retired == {"leaked": 1}


async def test_control() -> None:
    """Without us the same requests see what others have left: that is what is reported."""
    app = shop()
    await get(app, "/cart/apple")
    assert (await get(app, "/clean")).json == 1


async def test_errors_of_the_app_come_first(caplog: pytest.LogCaptureFixture) -> None:
    """What the app raises is raised, also with `leaks="raise"`; the report is in the log."""
    async with wrap(shop(), leaks="raise") as sandboxed:
        with pytest.raises(RuntimeError, match="a bug"):
            await Connection(sandboxed, "/error").run()
        (report,) = reports(caplog)
        assert paths(report) == ['app.state.cart["error"]']
        assert sandboxed.statistics().pool.retired == {"leaked": 1}


@pytest.mark.parametrize("run_in", PLACES)
async def test_websocket(run_in: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A websocket is a request like any other."""
    async with wrap(shop(), leaks="log", run_in=run_in) as sandboxed:
        connection = Connection(sandboxed, "/chat", type="websocket")
        connection.say({"type": "websocket.receive", "text": "hello"})
        await connection.run()
        (report,) = reports(caplog)
    assert (report["type"], report["method"], report["route"]) == ("websocket", None, "/chat")
    assert paths(report) == ['app.state.cart["chat"]']
    assert report["leaks"][0]["after"] == "'hello'"


async def test_it_comes_after_the_response() -> None:
    """All of the response has been sent when a request is looked at."""
    app = shop()
    sent: list[int] = []
    async with wrap(app, leaks="log") as sandboxed:
        assert sandboxed.wrap_options.leaks == "log"
        watch = sandboxed._counters.leaks
        assert watch is not None
        connection = Connection(sandboxed, "/cart/apple")
        look = watch._look

        def noting(*args: Any) -> Any:
            sent.append(len(connection.sent))
            assert not connection.sent[-1].get("more_body")
            return look(*args)

        watch._look = noting  # type: ignore[assignment,method-assign]
        await connection.run()
    assert sent == [2]


async def test_it_never_breaks_a_request(caplog: pytest.LogCaptureFixture) -> None:
    """What goes wrong while a request is looked at is logged, and the request goes well."""
    async with wrap(shop(), leaks="raise") as sandboxed:
        await get(sandboxed, "/clean")
        watch = sandboxed._counters.leaks
        assert watch is not None

        def fail(*args: Any) -> Any:
            raise RuntimeError("a bug of ours")

        for step in ("_begin", "_look", "_report"):
            kept, caplog_before = getattr(watch, step), len(records(caplog))
            setattr(watch, step, fail)
            assert (await get(sandboxed, "/cart/apple")).json == "apple"
            setattr(watch, step, kept)
            record = records(caplog)[caplog_before]
            assert record.levelno == logging.ERROR
            assert "lease" in record.getMessage()
        with pytest.raises(LeakError):
            await get(sandboxed, "/cart/apple")


# --- how often ------------------------------------------------------------------------------


async def test_the_log_is_not_flooded(caplog: pytest.LogCaptureFixture) -> None:
    """A leak is told the first time, the tenth, the hundredth; the statistics count each."""
    async with wrap(shop(), leaks="log") as sandboxed:
        for _ in range(120):
            await get(sandboxed, "/cart/apple")
        texts = [record.getMessage() for record in records(caplog)]
        statistics = sandboxed.statistics().leaks
    assert len(texts) == 3
    assert "10 times so far" in texts[1]
    assert "100 times so far" in texts[2]
    assert (statistics.reports, statistics.leaks) == (120, 120)
    assert statistics.paths == (('app.state.cart["items"]', 120),)


async def test_keys_that_differ_each_time(caplog: pytest.LogCaptureFixture) -> None:
    """A container that gets another key each time is one leak after twenty of them."""

    async def raw(scope: Any, receive: Any, send: Any) -> None:
        os.environ[f"SHOP_{scope['path'][1:]}"] = "1"
        await respond(send)

    async with wrap(raw, leaks="log") as sandboxed:
        for number in range(200):
            await get(sandboxed, f"/{number}")
        statistics = sandboxed.statistics().leaks
    assert statistics.paths[0] == ("os.environ[*]", 180)
    assert statistics.leaks == 200
    assert len(reports(caplog)) == 20 + 3


async def test_statistics_on_the_page() -> None:
    """The page of statistics shows what was left behind."""
    async with wrap(shop(), leaks="log", stats="/stats") as sandboxed:
        await get(sandboxed, "/cart/apple")
        shown = (await get(sandboxed, "/stats")).json["leaks"]
    assert shown == {"reports": 1, "leaks": 1, "paths": [['app.state.cart["items"]', 1]]}
    async with wrap(shop(), stats="/stats") as sandboxed:
        await get(sandboxed, "/cart/apple")
        shown = (await get(sandboxed, "/stats")).json["leaks"]
    assert shown == {"reports": 0, "leaks": 0, "paths": []}


async def test_verify(caplog: pytest.LogCaptureFixture) -> None:
    """Of all requests, the share of `verify=` is looked at."""
    for verify, expected in ((0.0, 0), (0.25, 5), (1, 20)):
        async with wrap(shop(), leaks="log", verify=verify) as sandboxed:
            for _ in range(20):
                await get(sandboxed, "/cart/apple")
            assert sandboxed.statistics().leaks.reports == expected


# --- names ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        'app.state.cart["items"]',
        "app.state.cart['items']",
        "app.state.cart",
        "app.state.*",
        "app.*items*",
        "*",
    ],
)
async def test_ignore(name: str, caplog: pytest.LogCaptureFixture) -> None:
    """A leak that was named is none; the name of a container covers what is in it."""
    caplog.set_level(logging.INFO, "sandboxpool.leaks")
    async with wrap(shop(), leaks="raise", ignore=[name]) as sandboxed:
        await get(sandboxed, "/cart/apple")
        assert sandboxed.statistics().leaks.reports == 0
    assert records(caplog) == []


async def test_ignore_that_does_not_match(caplog: pytest.LogCaptureFixture) -> None:
    """Other names do not hide it; one that was never of any use is told at the end."""
    names = ["app.state.car", "app.state.cart.items", 'app.state.cart["item"]', "cart"]
    caplog.set_level(logging.INFO, "sandboxpool.leaks")
    async with wrap(shop(), leaks="log", ignore=names, name="shop") as sandboxed:
        await get(sandboxed, "/cart/apple")
        assert sandboxed.statistics().leaks.reports == 1
    (hint,) = [r.getMessage() for r in records(caplog) if r.levelno == logging.INFO]
    assert hint.startswith("shop: nothing that 1 requests left behind had a name like app.state.ca")


async def test_secrets_are_hidden(caplog: pytest.LogCaptureFixture) -> None:
    """Secrets stay out of the log unless that is chosen: by name, and by their look in paths."""

    async def raw(scope: Any, receive: Any, send: Any) -> None:
        os.environ["SHOP_PASSWORD"] = f"hunter{scope['path']}"
        os.environ["SHOP_" + scope["path"][7:]] = "x"
        await respond(send)

    path = "/reset/kJ8s92Hd02kdPq81LmZx03Qw"
    async with wrap(raw, leaks="log") as sandboxed:
        await get(sandboxed, path)
        (report,) = reports(caplog)
        assert "hunter" not in str(records(caplog)[0].getMessage())
        assert "kJ8s92" not in json.dumps(report) + records(caplog)[0].getMessage()
        os.environ.pop("SHOP_PASSWORD")
    async with wrap(raw, leaks="log", hide_secrets=False) as sandboxed:
        await get(sandboxed, path)
        assert "hunter/reset/kJ8s92Hd02kdPq81LmZx03Qw" in json.dumps(reports(caplog)[-1])


# --- tasks and threads ----------------------------------------------------------------------


class Outside:
    """Where tasks of a request live on: a nursery that is none of its own."""

    def __init__(self) -> None:
        self.nursery: Any = None
        self.stop: Any = None
        self.kept: list[Any] = []


def stray_app(outside: Outside) -> Starlette:
    async def linger() -> None:
        await anyio.sleep(3600)

    async def start(request: Request) -> PlainTextResponse:
        if outside.nursery is not None:
            outside.nursery.start_soon(linger)
        else:
            outside.kept.append(asyncio.create_task(linger()))
        return PlainTextResponse("ok")

    async def background(request: Request) -> PlainTextResponse:
        return PlainTextResponse("ok", background=BackgroundTask(anyio.sleep, 0.001))

    async def children(request: Request) -> PlainTextResponse:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(anyio.sleep, 0)
        await anyio.to_thread.run_sync(len, "x")
        return PlainTextResponse("ok")

    async def cancels(request: Request) -> PlainTextResponse:
        task = asyncio.create_task(linger())
        await asyncio.sleep(0)
        task.cancel()
        return PlainTextResponse("ok")

    return Starlette(
        routes=[
            Route("/start", start),
            Route("/background", background),
            Route("/children", children),
            Route("/cancels", cancels),
        ]
    )


@pytest.mark.parametrize("run_in", ["loop", "cooperative"])
@pytest.mark.parametrize("isolate_context", [True, False])
async def test_tasks(
    isolate_context: bool, run_in: Any, caplog: pytest.LogCaptureFixture, anyio_backend: Any
) -> None:
    """A task of a request that runs on is reported; what has ended with the request is not."""
    outside = Outside()

    async def use(sandboxed: SandboxedApp) -> None:
        await get(sandboxed, "/background")
        await get(sandboxed, "/children")
        if anyio_backend[0] == "asyncio":
            await get(sandboxed, "/cancels")
        assert reports(caplog) == []
        await get(sandboxed, "/start")
        (report,) = reports(caplog)
        (leak,) = report["leaks"]
        assert leak["path"] == "task tests.leaks.test_reports.stray_app.<locals>.linger"
        assert (leak["kind"], leak["leases"]) == ("running", (report["lease_id"],))
        assert "test_reports.py:" in leak["lines"][0]
        await get(sandboxed, "/background")
        assert len(reports(caplog)) == 1

    async with wrap(
        stray_app(outside), leaks="log", run_in=run_in, isolate_context=isolate_context
    ) as sandboxed:
        if anyio_backend[0] == "trio":
            async with trio.open_nursery() as outside.nursery:
                await use(sandboxed)
                outside.nursery.cancel_scope.cancel()
        else:
            await use(sandboxed)
            for task in outside.kept:
                task.cancel()


@pytest.mark.parametrize("thread_backend", ["asyncio", "trio"])
async def test_tasks_in_threads(thread_backend: Any, caplog: pytest.LogCaptureFixture) -> None:
    """In the event loop of a thread they are found, too."""
    stop = threading.Event()

    async def linger() -> None:
        while not stop.is_set():  # noqa: ASYNC110 - told from another thread
            await anyio.sleep(0.001)

    async def raw(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/start":
            if thread_backend == "trio":
                # Of another nursery than that of the call: the one of the whole thread.
                nursery = trio.lowlevel.current_root_task().child_nurseries[0]  # type: ignore[union-attr]
                nursery.start_soon(linger)
            else:
                kept.append(asyncio.create_task(linger()))
        await respond(send)

    kept: list[Any] = []
    async with wrap(raw, leaks="log", run_in="thread", thread_backend=thread_backend) as sandboxed:
        await get(sandboxed, "/")
        assert reports(caplog) == []
        await get(sandboxed, "/start")
        (report,) = reports(caplog)
        assert paths(report) == [
            "task tests.leaks.test_reports.test_tasks_in_threads.<locals>.linger"
        ]
        stop.set()


@pytest.mark.parametrize("run_in", PLACES)
async def test_threads(run_in: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A thread that runs on is reported; worker threads and one that was joined are not."""
    stop = threading.Event()

    def work() -> None:
        stop.wait()

    async def raw(scope: Any, receive: Any, send: Any) -> None:
        thread = threading.Thread(target=work if scope["path"] == "/start" else len, args=())
        if scope["path"] == "/join":
            thread = threading.Thread(target=len, args=("x",))
            thread.start()
            thread.join()
            await anyio.to_thread.run_sync(len, "x")
        elif scope["path"] == "/start":
            thread.start()
        await respond(send)

    async with wrap(raw, leaks="log", run_in=run_in) as sandboxed:
        await get(sandboxed, "/join")
        assert reports(caplog) == []
        await get(sandboxed, "/start")
        (report,) = reports(caplog)
        (leak,) = report["leaks"]
        stop.set()
    assert leak["path"].startswith("thread tests.leaks.test_reports.")
    assert leak["path"].endswith("work")
    assert (leak["kind"], leak["leases"]) == ("running", (report["lease_id"],))


# --- who has done it ------------------------------------------------------------------------


class Gates:
    """Requests that do something, and then wait."""

    def __init__(self) -> None:
        self.entered: list[str] = []
        self.gates: dict[str, anyio.Event] = {}

    def app(self) -> Any:
        async def raw(scope: Any, receive: Any, send: Any) -> None:
            path = scope["path"]
            gate = self.gates[path] = anyio.Event()
            self.entered.append(path)
            if path.startswith("/write"):
                os.environ["SHOP_USER"] = path
            file = open("/dev/zero") if path == "/device" else None  # noqa: ASYNC230, SIM115
            file = open(__file__) if path == "/file" else file  # noqa: ASYNC230, SIM115
            await gate.wait()
            if file is not None:
                file.close()
            await respond(send)

        return raw


async def come(gates: Gates, path: str) -> None:
    with anyio.fail_after(5):
        while path not in gates.entered:
            await anyio.lowlevel.checkpoint()


async def test_requests_at_once(caplog: pytest.LogCaptureFixture) -> None:
    """With several in flight nobody is blamed alone, but for who was alone the whole time."""
    gates = Gates()
    async with wrap(gates.app(), leaks="log") as sandboxed, anyio.create_task_group() as tasks:
        for path in ("/a", "/write1", "/b"):
            tasks.start_soon(Connection(sandboxed, path).run)
            await come(gates, path)
        gates.gates["/a"].set()
        await settled(sandboxed, 2)
        # The first to end sees it: it, or one of the two others, has done it.
        (report,) = reports(caplog)
        assert report["path"] == "/a"
        (leak,) = report["leaks"]
        assert leak["path"] == "os.environ['SHOP_USER']"
        assert len(leak["leases"]) == 3
        assert report["lease_id"] in leak["leases"]
        assert "; one of the leases " in records(caplog)[0].getMessage()
        for path in ("/write1", "/b"):
            gates.gates[path].set()
        await settled(sandboxed, 0)
        assert len(reports(caplog)) == 1
        tasks.start_soon(Connection(sandboxed, "/write2").run)
        await come(gates, "/write2")
        gates.gates["/write2"].set()
        await settled(sandboxed, 0)
        assert sandboxed.statistics().leaks.reports == 2


async def test_what_changes_between_requests_is_nobodys() -> None:
    """A change that comes when no request is there is blamed on none."""
    async with wrap(shop(), leaks="raise") as sandboxed:
        await get(sandboxed, "/clean")
        os.environ["SHOP_USER"] = "somebody else"
        await get(sandboxed, "/clean")
        with pytest.raises(LeakError):
            await get(sandboxed, "/environ/ada")


async def test_open_while_others_end(caplog: pytest.LogCaptureFixture) -> None:
    """A file that one request uses is no leak of another one that ends meanwhile."""
    gates = Gates()
    async with wrap(gates.app(), leaks="log") as sandboxed, anyio.create_task_group() as tasks:
        for path in ("/a", "/file"):
            tasks.start_soon(Connection(sandboxed, path).run)
            await come(gates, path)
        gates.gates["/a"].set()
        await settled(sandboxed, 1)
        gates.gates["/file"].set()
        await settled(sandboxed, 0)
    assert reports(caplog) == []


async def settled(sandboxed: SandboxedApp, number: int) -> None:
    with anyio.fail_after(5):
        while sandboxed.statistics().concurrency != number:
            await anyio.lowlevel.checkpoint()


async def test_apps_in_apps(caplog: pytest.LogCaptureFixture) -> None:
    """A wrapped app inside of one is watched by itself: each says what its own request left."""
    inner = wrap(shop(), leaks="log", name="inner")
    outer = Starlette(routes=[Mount("/shop", inner)])
    async with wrap(outer, leaks="log", name="outer") as sandboxed:
        await get(sandboxed, "/shop/cart/apple")
        assert [report["app"] for report in reports(caplog)] == ["inner"]
        await inner.aclose()


# --- requests that do not end well ----------------------------------------------------------


def unfinished() -> Any:
    async def raw(scope: Any, receive: Any, send: Any) -> None:
        os.environ["SHOP_USER"] = scope["path"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await anyio.sleep_forever()

    return raw


@pytest.mark.parametrize("run_in", PLACES)
async def test_cancelled(run_in: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A request that the server cancels is reported, and stays cancelled."""
    async with wrap(unfinished(), leaks="raise", run_in=run_in) as sandboxed:
        with anyio.CancelScope() as scope:
            async with anyio.create_task_group() as tasks:
                connection = Connection(sandboxed, "/a")
                tasks.start_soon(connection.run)
                await connection.started.wait()
                scope.cancel()
        assert scope.cancelled_caught
        (report,) = reports(caplog)
        assert paths(report) == ["os.environ['SHOP_USER']"]
        assert sandboxed.statistics().pool.retired == {"cancelled": 1}


@pytest.mark.parametrize("run_in", PLACES)
async def test_cut_off(run_in: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A request that the watchdog cuts off is answered first, and reported then."""

    async def raw(scope: Any, receive: Any, send: Any) -> None:
        os.environ["SHOP_USER"] = scope["path"]
        await anyio.sleep_forever()

    async with wrap(raw, leaks="log", run_in=run_in, execution_timeout=0.05) as sandboxed:
        assert (await get(sandboxed, "/a")).status == 504
        (report,) = reports(caplog)
        assert paths(report) == ["os.environ['SHOP_USER']"]
        assert sandboxed.statistics().pool.retired == {"expired": 1}


async def test_hung_up(caplog: pytest.LogCaptureFixture) -> None:
    """A request whose client hangs up is reported when the app is done with it."""

    async def raw(scope: Any, receive: Any, send: Any) -> None:
        assert (await receive())["type"] == "http.disconnect"
        os.environ["SHOP_USER"] = "x"

    async with wrap(raw, leaks="log") as sandboxed:
        connection = Connection(sandboxed, "/a", body=None)
        connection.hang_up()
        await connection.run()
        assert paths(reports(caplog)[0]) == ["os.environ['SHOP_USER']"]


async def test_deferred_callbacks_come_first() -> None:
    """What a deferred callback puts back is no leak."""

    async def raw(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            return
        os.environ["SHOP_USER"] = "x"
        context.defer(os.environ.pop, "SHOP_USER")
        await respond(send)

    async with wrap(raw, leaks="raise") as sandboxed:
        await get(sandboxed)


def test_dropped() -> None:
    """A request whose task is dropped in the middle is looked at without awaiting anything."""

    async def main() -> list[str]:
        sandboxed = wrap(unfinished(), leaks="log")
        await sandboxed.open()
        call = sandboxed({"type": "http", "path": "/a"}, None, _ignore)  # type: ignore[arg-type]
        steps = call.__await__()
        try:
            next(steps)
        except StopIteration:
            raise AssertionError("it came to an end") from None
        steps.close()
        found = [path for path, _ in sandboxed.statistics().leaks.paths]
        await sandboxed.aclose()
        return found

    assert asyncio.run(main()) == ["os.environ['SHOP_USER']"]


async def _ignore(message: Any) -> None:
    return None


# --- apps that are none of these --------------------------------------------------------------


async def test_dependency_overrides_are_none() -> None:
    """What a test sets on the template, and each lease begins with, is no leak."""
    app = shop()
    async with wrap(app, leaks="raise") as sandboxed:
        await get(sandboxed, "/clean")
        sandboxed.dependency_overrides[len] = lambda: 1
        await get(sandboxed, "/clean")
        sandboxed.dependency_overrides = {}
        await get(sandboxed, "/clean")


async def test_kept_names_are_none() -> None:
    """What `keep=` names is meant to stay."""
    async with wrap(shop(), leaks="raise", keep=["state.cart"], max_size=1) as sandboxed:
        await get(sandboxed, "/cart/apple")
        assert (await get(sandboxed, "/clean")).json == 1


def test_report_is_frozen_and_reads_well() -> None:
    """A report is a record that nobody changes, with a line of text for each leak."""
    leaks = (
        Leak("shop.user", "changed", "modules", "None", "'ada'", ("shop.py:3 in login",), (7,)),
        Leak("shop.old", "removed", "modules", "1", "", ("a.py:1 in f", "b.py:2 in g"), (7, 8)),
        Leak("shop.seen", "grown", "modules", "3 requests have left items in it", "'x'"),
        Leak("file /tmp/x", "open", "process", "", ""),
    )
    report = LeakReport("shop", 7, "http", "GET", "/login/{user}", "/login/ada", "sandbox 1", leaks)
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        report.path = "/other"  # type: ignore[misc]
    assert str(report).splitlines() == [
        "shop: GET /login/ada (route /login/{user}), lease 7 in sandbox 1, has left 4 things "
        "behind:",
        "  shop.user changed from None to 'ada', at shop.py:3 in login",
        "  shop.old was removed: 1, maybe at a.py:1 in f or at b.py:2 in g; one of the leases 7, 8 "
        "has done it",
        "  shop.seen grows: 3 requests have left items in it, now 'x'",
        "  file /tmp/x is still open",
    ]
    assert json.loads(json.dumps(report.as_dict()))["leaks"][0]["path"] == "shop.user"


# --- what is kept, and what closes over things -----------------------------------------------


async def test_sandboxes_that_are_not_put_back(caplog: pytest.LogCaptureFixture) -> None:
    """With `reset="keep"` each request is told of what it has left itself, and not the next."""
    async with wrap(shop(), leaks="log", reset="keep", min_size=1, max_size=1) as sandboxed:
        await get(sandboxed, "/cart/apple")
        assert (await get(sandboxed, "/clean")).json == 1
        assert sandboxed.statistics().leaks.reports == 1
        await get(sandboxed, "/cart/pear")
        assert sandboxed.statistics().leaks.reports == 2
        assert (await get(sandboxed, "/clean")).json == 1
        assert sandboxed.statistics().leaks.reports == 2


def counting() -> FastAPI:
    """Return an app whose endpoint counts in a variable of this function."""
    app = FastAPI()
    count = 0

    @app.get("/count")
    async def count_up() -> int:
        nonlocal count
        count += 1
        return count

    return app


@pytest.mark.parametrize("run_in", PLACES)
@pytest.mark.parametrize("factory", [True, False], ids=["factory", "clone"])
async def test_closures(factory: bool, run_in: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A variable that endpoints close over is named, private to a product, shared by clones."""
    app: Any = counting if factory else counting()
    async with wrap(app, factory=factory, leaks="log", run_in=run_in) as sandboxed:
        await get(sandboxed, "/count")
        (report,) = reports(caplog)
    (leak,) = report["leaks"]
    function = "tests.leaks.test_reports.counting.<locals>.count_up"
    assert leak["path"] == f"{function}.<nonlocal>.count"
    assert (leak["before"], leak["after"]) == ("0", "1")
    assert leak["where"] == ("sandbox" if factory else "modules")
    (line,) = leak["lines"]
    assert line.startswith("tests/leaks/test_reports.py:")
    assert "count_up" in line


class Custom:
    """An isolation of the user's, whose sandboxes have nothing but what they must."""

    class Sandbox:
        __slots__ = ()
        __hash__ = None  # type: ignore[assignment]

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            os.environ["SHOP_USER"] = "ada"
            await respond(send)

        async def reset(self) -> None: ...

        async def aclose(self) -> None: ...

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def create(self) -> Any:
        return self.Sandbox()

    async def reset(self, sandbox: Any) -> None: ...

    async def destroy(self, sandbox: Any) -> None: ...


async def test_isolation_of_your_own(caplog: pytest.LogCaptureFixture) -> None:
    """Sandboxes of any kind are watched for what they share with everybody."""

    async def app(scope: Any, receive: Any, send: Any) -> None: ...

    async with wrap(app, isolation=Custom(), leaks="log") as sandboxed:
        await get(sandboxed)
        (report,) = reports(caplog)
    assert paths(report) == ["os.environ['SHOP_USER']"]


async def test_wsgi(caplog: pytest.LogCaptureFixture) -> None:
    """Requests to a WSGI app are watched like others."""
    flask = pytest.importorskip("flask")
    app = flask.Flask(__name__)
    last: dict[str, Any] = {"user": None}

    @app.route("/login")  # type: ignore[untyped-decorator]
    def login() -> str:
        last["user"] = "ada"
        return str(flask.request.path)

    @app.route("/clean")  # type: ignore[untyped-decorator]
    def clean() -> str:
        return f"{last}"

    async with wrap(app, wsgi=True, leaks="log") as sandboxed:
        assert (await get(sandboxed, "/clean")).text == "{'user': None}"
        assert reports(caplog) == []
        await get(sandboxed, "/login")
        (report,) = reports(caplog)
    (path,) = paths(report)
    assert path.endswith('.<nonlocal>.last["user"]')


DJANGO = """
import anyio, logging, sys
from django.conf import settings
settings.configure(ROOT_URLCONF="shop_urls", ALLOWED_HOSTS=["*"], SECRET_KEY="x")
from django.core.wsgi import get_wsgi_application
import sandboxpool, shop_urls
logging.basicConfig(stream=sys.stdout, format="%(message)s")
async def main():
    app = sandboxpool.wrap(get_wsgi_application(), wsgi=True, leaks="log", name="shop")
    async def receive():
        return {"type": "http.request", "body": b""}
    async def send(message):
        pass
    async with app:
        await app({"type": "http", "method": "GET", "path": "/login", "raw_path": b"/login",
            "query_string": b"", "headers": [(b"host", b"shop")], "http_version": "1.1",
            "scheme": "http", "client": None, "server": ("shop", 80)}, receive, send)
anyio.run(main)
"""
URLS = """
from django.http import HttpResponse
from django.urls import path
last_user = None
def login(request):
    global last_user
    last_user = "ada"
    return HttpResponse("ok")
urlpatterns = [path("login", login)]
"""


def test_django(tmp_path: Path) -> None:
    """The modules of a Django site are found by its settings, although its app knows none."""
    pytest.importorskip("django")
    (tmp_path / "shop_urls.py").write_text(URLS)
    done = subprocess.run(
        [sys.executable, "-c", DJANGO], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert "shop_urls.last_user changed from None to 'ada', at shop_urls.py:7 in login" in (
        done.stdout
    ), done.stderr


async def test_work_that_is_no_request(caplog: pytest.LogCaptureFixture) -> None:
    """What runs in a sandbox without being a request is watched, too, and named by its function."""
    async with wrap(shop(), leaks="log", name="shop") as sandboxed:

        async def tidy_up(app: Any) -> None:
            app.state.cart["tidy"] = True

        await Visit("tidy_up", tidy_up).make(sandboxed)
        (report,) = reports(caplog)
    assert paths(report) == ['app.state.cart["tidy"]']
    assert records(caplog)[0].getMessage().startswith("shop: tidy_up, lease ")


# --- files, connections, contexts -------------------------------------------------------------

needs_proc = pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="only where it is shown")


@needs_proc
async def test_open_files(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A file that a request leaves open is reported at once, one that it closes is not."""
    held: list[Any] = []

    async def raw(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] != "/":
            held.append((tmp_path / "x").open("w"))
        if scope["path"] == "/close":
            held.pop().close()
        await respond(send)

    async with wrap(raw, leaks="log", ignore=["*.held"]) as sandboxed:
        await get(sandboxed, "/close")
        assert reports(caplog) == []
        await get(sandboxed, "/open")
        (report,) = reports(caplog)
        (leak,) = [leak for leak in report["leaks"] if leak["kind"] == "open"]
        assert leak["path"] == f"file {tmp_path / 'x'}"
        await get(sandboxed, "/")
        assert len(reports(caplog)) == 1
        held.pop().close()


@needs_proc
async def test_connections(caplog: pytest.LogCaptureFixture) -> None:
    """A connection that is kept for the next request is none; one more with each request is."""
    held: list[socket.socket] = []
    server = socket.create_server(("127.0.0.1", 0))
    host, port = server.getsockname()

    async def raw(scope: Any, receive: Any, send: Any) -> None:
        if scope["path"] == "/more" or not held:
            held.append(socket.create_connection((host, port)))
        await respond(send)

    async with wrap(raw, leaks="log", ignore=["*held*"]) as sandboxed:
        for _ in range(5):
            await get(sandboxed, "/pooled")
        assert reports(caplog) == []
        while not reports(caplog) and len(held) < 10_000:
            await get(sandboxed, "/more")
        (report,) = reports(caplog)
        (leak,) = report["leaks"]
        assert leak["path"] == f"socket to {host}:{port}"
        assert leak["after"] == f"{len(held)} of them"
    for connection in (*held, server):
        connection.close()


async def test_decimal_context(caplog: pytest.LogCaptureFixture) -> None:
    """A decimal context is an object: who changes one that was there before changes it for all."""

    async def raw(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "lifespan":
            decimal.getcontext().prec = 5
        decimal.Decimal(1) / 3
        await respond(send)

    async with wrap(raw, leaks="log") as sandboxed:
        with decimal.localcontext():
            await get(sandboxed)
            assert decimal.getcontext().prec == 5
            (report,) = reports(caplog)
    assert paths(report) == ["decimal.getcontext().prec"]


@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_what_many_requests_leave_is_found_later() -> None:
    """Who cannot afford to list all tasks leaves that to a later request, which names the lease."""
    outside = Outside()
    async with wrap(stray_app(outside), leaks="log") as sandboxed:
        await get(sandboxed, "/background")
        watch = sandboxed._counters.leaks
        assert watch is not None
        watch._budget = Budget(each=10)
        watch._budget.note(35)
        await get(sandboxed, "/start")
        assert sandboxed.statistics().leaks.reports == 0
        found = 0
        while not sandboxed.statistics().leaks.reports:
            await get(sandboxed, "/background")
            found += 1
            assert found < 10
        ((path, count),) = sandboxed.statistics().leaks.paths
        assert path.endswith("linger")
        assert count == 1
    outside.kept[0].cancel()


def test_budget() -> None:
    """What needs more than one request may spend is done by every second or third of them."""
    budget = Budget(each=500)
    budget.note(1000)
    assert sum(budget.allows() for _ in range(100)) == 50
    budget.note(10)
    assert all(budget.allows() for _ in range(100))
