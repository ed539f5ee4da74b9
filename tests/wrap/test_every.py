"""Periodic work: `@sandboxed.every(seconds)` runs it in leased sandboxes, as long as the app."""

from __future__ import annotations

import logging
import threading
from typing import Any

import anyio
import pytest
from flask import Flask
from starlette.applications import Starlette
from starlette.routing import Route

from sandboxpool import (
    NoLeaseError,
    OptionError,
    SandboxedApp,
    TickStatistics,
    context,
    current_lease,
    wrap,
)
from sandboxpool import _ticks as ticks

from .client import Gated, Lifespan, get, respond, settle

PATIENCE = 20


async def app(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] == "http":
        await respond(send)


class Notes:
    """What a tick has done, and how often; others wait for that."""

    def __init__(self) -> None:
        self.made: list[Any] = []

    def note(self, what: Any) -> None:
        self.made.append(what)

    async def have(self, number: int) -> None:
        """Wait until there are so many notes."""
        with anyio.fail_after(PATIENCE):
            while len(self.made) < number:
                await anyio.sleep(0.001)


async def leases_end(wrapped: SandboxedApp) -> None:
    """Wait until no sandbox is in use."""
    assert wrapped.pool is not None
    with anyio.fail_after(PATIENCE):
        while wrapped.pool.statistics().in_use:
            await anyio.sleep(0.001)


@pytest.mark.backend_with_uvloop
async def test_it_runs_again_and_again() -> None:
    """A tick runs every so many seconds from the start of the app to its end."""
    wrapped, notes = wrap(app), Notes()

    @wrapped.every(0.01)
    async def tick(app: Any) -> None:
        notes.note(app)

    await settle()
    assert notes.made == []
    async with wrapped:
        await notes.have(3)
    number = len(notes.made)
    assert wrapped.ticks[0].runs == number
    await anyio.sleep(0.05)
    assert len(notes.made) == number


@pytest.mark.parametrize("run_in", ["loop", "thread", "cooperative"])
@pytest.mark.parametrize("kind", ["async", "plain"])
async def test_it_runs_where_its_sandbox_does(run_in: Any, kind: str) -> None:
    """The function runs in the place of its sandbox, with the private app and its own lease."""
    template = Starlette()
    template.state.user = "nobody"
    wrapped, notes = wrap(template, run_in=run_in, max_size=2), Notes()
    home = threading.get_ident()

    def look(app: Any) -> None:
        found = app.state.user
        app.state.user = context.get_or_set("user", lambda: "mine")
        lease = current_lease()
        here = threading.get_ident() == home
        notes.note((found, app is template, wrapped.state.user, lease.path, here, lease.id))

    if kind == "plain":
        wrapped.every(0.01, name="look")(look)
    else:

        @wrapped.every(0.01, name="look")
        async def look_async(app: Any) -> None:
            await settle()
            look(app)

    async with wrapped:
        await notes.have(2)
    for found, is_template, mine, path, here, _ in notes.made:
        assert (found, is_template, mine, path) == ("nobody", False, "mine", "tick look")
        # A plain function would block the server's loop, so it is somewhere else there, too.
        assert here == (run_in == "cooperative" or (run_in == "loop" and kind == "async"))
    assert len({note[-1] for note in notes.made}) == len(notes.made)
    assert template.state.user == "nobody"


@pytest.mark.parametrize("run_in", ["loop", "thread"])
async def test_wsgi(run_in: Any) -> None:
    """For a WSGI app of a factory the function gets the app of its sandbox, which is reset."""

    def make() -> Flask:
        flask = Flask("shop")
        flask.config["USER"] = "nobody"
        return flask

    wrapped, notes = wrap(make, factory=True, wsgi=True, run_in=run_in, max_size=1), Notes()

    @wrapped.every(0.01)
    def tick(flask: Any) -> None:
        notes.note((type(flask), flask.config["USER"]))
        flask.config["USER"] = "mine"

    async with wrapped:
        await notes.have(3)
    assert set(notes.made) == {(Flask, "nobody")}


async def test_a_shared_app_would_leak() -> None:
    """The control: with the app itself, the second run finds what the first one left behind."""
    template = Starlette()
    template.state.user = "nobody"
    found: list[str] = []
    for _ in range(2):
        found.append(template.state.user)
        template.state.user = "mine"
    assert found == ["nobody", "mine"]


async def test_it_never_overlaps_itself() -> None:
    """A run that is longer than the interval delays the next one; what was missed is left out."""
    wrapped, notes = wrap(app, max_size=5), Notes()
    running = 0

    @wrapped.every(0.01, jitter=0)
    async def slow(app: Any) -> None:
        nonlocal running
        running += 1
        await anyio.sleep(0.055)
        notes.note(running)
        running -= 1

    async with wrapped:
        await notes.have(3)
        figures = wrapped.ticks[0]
    assert set(notes.made) == {1}
    assert figures.missed >= 2 * 4
    assert figures.last_seconds is not None
    assert figures.last_seconds >= 0.05


async def test_two_ticks_run_side_by_side() -> None:
    """One tick that hangs does not keep another one from running."""
    wrapped, notes = wrap(app, drain_timeout=0), Notes()

    @wrapped.every(0.01)
    async def hangs(app: Any) -> None:
        await anyio.sleep_forever()

    wrapped.every(0.01, name="lively")(notes.note)
    async with wrapped:
        await notes.have(3)
        while not wrapped.ticks[0].running:
            await anyio.sleep(0.001)
    assert [tick.name for tick in wrapped.ticks] == ["hangs", "lively"]


async def test_immediate() -> None:
    """An immediate tick runs as soon as the app is open, others an interval later."""
    wrapped, notes = wrap(app), Notes()

    @wrapped.every(3600, immediate=True)
    async def now(app: Any) -> None:
        notes.note("now")

    @wrapped.every(3600)
    async def later(app: Any) -> None:
        notes.note("later")

    async with wrapped:
        await notes.have(1)
        await settle()
    assert notes.made == ["now"]


async def test_declared_while_the_app_is_open() -> None:
    """A tick that is declared when the app is open already begins at once."""
    wrapped, notes = wrap(app), Notes()
    async with wrapped:
        wrapped.every(0.01)(notes.note)
        await notes.have(1)


async def test_it_starts_with_the_first_request() -> None:
    """Where no server sends lifespan events, ticks begin when the first request opens the app."""
    wrapped, notes = wrap(app), Notes()

    @wrapped.every(0.01)
    async def tick(app: Any) -> None:
        notes.note(current_lease().parent)

    assert (await get(wrapped)).text == "ok"
    await notes.have(1)
    await wrapped.aclose()
    assert notes.made[0] is None


async def test_it_starts_with_the_lifespan() -> None:
    """With lifespan events ticks begin after start-up and end before shutdown is over."""
    wrapped, notes = wrap(app), Notes()
    wrapped.every(0.01)(notes.note)
    server = Lifespan(wrapped)
    async with anyio.create_task_group() as tasks:
        await server.start(tasks)
        await notes.have(2)
        await server.stop()
        number = len(notes.made)
        await anyio.sleep(0.03)
    assert server.types == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
    assert len(notes.made) == number


async def test_an_app_that_does_not_start() -> None:
    """Without an app there is no tick."""
    notes = Notes()

    async def broken(scope: Any, receive: Any, send: Any) -> None:
        await receive()
        await send({"type": "lifespan.startup.failed", "message": "no"})

    wrapped = wrap(broken)
    wrapped.every(0.001, immediate=True)(notes.note)
    with pytest.raises(Exception, match="no"):
        await wrapped.open()
    await anyio.sleep(0.01)
    assert notes.made == []


# --- errors -------------------------------------------------------------------------------------


async def test_errors_are_reported(caplog: pytest.LogCaptureFixture) -> None:
    """What a tick raises is logged and counted, and the next run comes all the same."""
    wrapped, notes = wrap(app, name="shop"), Notes()

    @wrapped.every(0.01)
    async def breaks(app: Any) -> None:
        notes.note(1)
        if len(notes.made) <= 2:
            raise LookupError("the database is away")

    async with wrapped:
        await notes.have(4)
        await leases_end(wrapped)
        (figures,) = wrapped.ticks
        assert isinstance(figures, TickStatistics)
    assert (figures.name, figures.seconds, figures.failures) == ("breaks", 0.01, 2)
    assert figures.last_error == "LookupError: the database is away"
    records = [record for record in caplog.records if record.name == "sandboxpool.ticks"]
    assert [record.getMessage() for record in records] == ["tick breaks of shop failed"] * 2
    assert all(record.exc_info for record in records)


@pytest.mark.parametrize("run_in", ["loop", "thread"])
async def test_the_watchdog_ends_it(run_in: Any, caplog: pytest.LogCaptureFixture) -> None:
    """A run that takes longer than `execution_timeout` is cut off, its sandbox retired."""
    wrapped, notes = wrap(app, execution_timeout=0.05, max_size=2, run_in=run_in), Notes()

    @wrapped.every(0.01, name="long")
    async def hangs(app: Any) -> None:
        notes.note(1)
        await anyio.sleep_forever()

    async with wrapped:
        await notes.have(2)
        assert wrapped.statistics().cut_off >= 1
        assert wrapped.pool is not None
        assert wrapped.pool.statistics().retired["expired"] >= 1
        error = wrapped.ticks[0].last_error
    assert error is not None
    assert error.startswith("ExecutionTimeoutError: tick long took longer than its execution")
    assert "extend(seconds)" in error


async def test_it_may_ask_for_more_time() -> None:
    """A run that extends its deadline is not cut off."""
    wrapped, notes = wrap(app, execution_timeout=0.05, max_size=2), Notes()

    @wrapped.every(0.01)
    async def long(app: Any) -> None:
        current_lease().extend(None)
        await anyio.sleep(0.15)
        notes.note(1)

    async with wrapped:
        await notes.have(1)
        assert wrapped.statistics().cut_off == 0


async def test_no_sandbox_is_free(caplog: pytest.LogCaptureFixture) -> None:
    """A tick that finds no sandbox in time is counted as refused, and comes again."""
    gated = Gated()
    wrapped, notes = wrap(gated.app(), max_size=1, acquire_timeout=0.02, name="shop"), Notes()
    wrapped.every(0.01, name="clean")(notes.note)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(get, wrapped, "/slow")
        await gated.came(1)
        with anyio.fail_after(PATIENCE):
            while not wrapped.ticks[0].refused:
                await anyio.sleep(0.001)
        gated.open("/slow")
        await notes.have(1)
        await wrapped.aclose()
    assert "tick clean of shop: " in caplog.text
    assert wrapped.statistics().refused == 0


# --- shutdown -----------------------------------------------------------------------------------


@pytest.mark.parametrize("run_in", ["loop", "thread", "cooperative"])
async def test_shutdown_waits_for_a_run(run_in: Any) -> None:
    """A run that is under way at shutdown gets to its end, as a request does."""
    wrapped, notes = wrap(app, drain_timeout=PATIENCE, max_size=2, run_in=run_in), Notes()
    go_on = threading.Event()
    ended: list[bool] = []

    @wrapped.every(0.01)
    async def slow(app: Any) -> None:
        notes.note(1)
        while not go_on.is_set():
            await anyio.sleep(0.001)
        ended.append(True)

    async with anyio.create_task_group() as tasks:
        await wrapped.open()
        await notes.have(1)
        tasks.start_soon(wrapped.aclose)
        await settle()
        assert ended == []
        go_on.set()
    assert (ended, notes.made) == ([True], [1])
    assert wrapped.ticks[0].failures == 0


async def test_shutdown_does_not_wait_for_ever(caplog: pytest.LogCaptureFixture) -> None:
    """A run that does not end within `drain_timeout` is cut off, and that is no failure of it."""
    wrapped, notes = wrap(app, drain_timeout=0.01), Notes()
    ended: list[str] = []

    @wrapped.every(0.01)
    async def hangs(app: Any) -> None:
        notes.note(1)
        try:
            await anyio.sleep_forever()
        finally:
            ended.append("cancelled")

    with anyio.fail_after(PATIENCE):
        async with wrapped:
            await notes.have(1)
    assert ended == ["cancelled"]
    assert wrapped.ticks[0].failures == 0
    assert not [r for r in caplog.records if r.name == "sandboxpool.ticks"]


async def test_shutdown_does_not_wait_for_the_next_one() -> None:
    """A tick that only waits for its time does not delay the shutdown."""
    wrapped = wrap(app)
    wrapped.every(3600)(print)
    with anyio.fail_after(PATIENCE):
        async with wrapped:
            await settle()


async def test_it_runs_again_after_a_restart() -> None:
    """An app that is opened again has its ticks again, one task each."""
    wrapped, notes = wrap(app), Notes()
    wrapped.every(0.005)(notes.note)
    for _ in range(2):
        before = len(notes.made)
        async with wrapped:
            await notes.have(before + 2)
            (figures,) = wrapped.ticks
            assert figures.runs <= len(notes.made)


async def test_shutdown_while_it_waits_for_a_sandbox(caplog: pytest.LogCaptureFixture) -> None:
    """A tick that waits for a sandbox at shutdown gives up silently."""
    gated = Gated()
    wrapped, notes = wrap(gated.app(), max_size=1, acquire_timeout=None), Notes()
    wrapped.every(0.001)(notes.note)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(get, wrapped, "/slow")
        await gated.came(1)
        number = len(notes.made)
        assert wrapped.pool is not None
        with anyio.fail_after(PATIENCE):
            while not wrapped.pool.statistics().waiting:
                await anyio.sleep(0.001)
        tasks.start_soon(wrapped.aclose)
        await settle()
        gated.open("/slow")
    assert len(notes.made) == number
    assert not [r for r in caplog.records if r.name == "sandboxpool.ticks"]


def test_each_loop_has_its_own() -> None:
    """An app that is opened in another loop runs its ticks there."""
    wrapped = wrap(app)
    places: list[int] = []

    @wrapped.every(0.005)
    async def tick(app: Any) -> None:
        places.append(1)

    async def session() -> None:
        before = len(places)
        async with wrapped:
            with anyio.fail_after(PATIENCE):
                while len(places) == before:
                    await anyio.sleep(0.001)

    for backend in ("asyncio", "trio", "asyncio"):
        anyio.run(session, backend=backend)


async def test_isolated_context() -> None:
    """A tick belongs to nobody: there is no lease outside of it, and none of a request in it."""
    wrapped, notes = wrap(app), Notes()

    @wrapped.every(0.005)
    async def tick(app: Any) -> None:
        context.set("seen", context.get("seen", 0) + 1)
        notes.note(context.get("seen"))

    async with wrapped:
        await notes.have(3)
        with pytest.raises(NoLeaseError):
            current_lease()
    assert set(notes.made) == {1}


# --- options ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seconds": 0}, r"seconds=0: give a number of seconds, more than 0"),
        ({"seconds": None}, r"seconds=None: give a number"),
        ({"seconds": "1"}, r"seconds='1': give a number"),
        ({"seconds": 1, "jitter": 2}, r"jitter=2: give a share from 0.0 to 1.0"),
        ({"seconds": 1, "jitter": True}, r"jitter=True"),
        ({"seconds": 1, "immediate": 1}, r"immediate=1: give True or False"),
        ({"seconds": 1, "name": 7}, r"name=7: give a string, or None"),
    ],
    ids=str,
)
def test_wrong_options(options: dict[str, Any], message: str) -> None:
    """An option that cannot work is refused when the tick is declared."""
    with pytest.raises(OptionError, match=message):
        wrap(app).every(**options)


def test_without_a_function() -> None:
    """What is no function is refused, with what to write."""
    with pytest.raises(TypeError, match=r"every\(5\) takes a function of one argument.*@sandboxed"):
        wrap(app).every(5)("clean")  # type: ignore[type-var]


def test_the_function_stays_what_it_is() -> None:
    """The decorator returns the function, so that it can be called and tested by itself."""

    def clean(app: Any) -> str:
        return f"cleaned {app}"

    assert wrap(app).every(60)(clean) is clean


def test_jitter_is_on_both_sides() -> None:
    """Intervals are longer and shorter by chance, within the jitter, and right on average."""
    tick = ticks.Tick(print, "tick", 10.0, 0.2, False)
    pauses = [tick.pause() for _ in range(2000)]
    assert min(pauses) >= 8
    assert max(pauses) <= 12
    assert min(pauses) < 8.5
    assert max(pauses) > 11.5
    assert 9.8 < sum(pauses) / len(pauses) < 10.2


async def test_statistics_name_the_visit() -> None:
    """While it runs, the statistics of the app show a tick among what is in flight."""
    wrapped, notes = wrap(app), Notes()
    go_on = anyio.Event()

    @wrapped.every(0.005)
    async def tick(app: Any) -> None:
        notes.note(1)
        await go_on.wait()

    async with wrapped:
        await notes.have(1)
        (shown,) = wrapped.statistics().oldest
        assert (shown.type, shown.path, shown.method) == ("sandboxpool.visit", "tick tick", None)
        assert wrapped.ticks[0].running
        go_on.set()


async def test_requests_and_ticks_share_the_sandboxes() -> None:
    """Ticks and requests take turns in one sandbox, and neither sees what the other left."""
    template = Starlette()
    template.state.owner = "nobody"
    seen: list[str] = []

    async def endpoint(request: Any) -> Any:
        from starlette.responses import PlainTextResponse

        found = request.app.state.owner
        request.app.state.owner = "request"
        return PlainTextResponse(found)

    template.routes.append(Route("/", endpoint))
    wrapped = wrap(template, max_size=1)
    notes = Notes()

    @wrapped.every(0.002)
    async def tick(app: Any) -> None:
        seen.append(app.state.owner)
        app.state.owner = "tick"
        notes.note(1)

    async with wrapped:
        for number in range(5):
            await notes.have(number + 1)
            assert (await get(wrapped)).text == "nobody"
    assert set(seen) == {"nobody"}


def test_level_of_reports() -> None:
    """Reports go to a logger of their own, which can be turned down by itself."""
    assert logging.getLogger("sandboxpool.ticks") is ticks.logger
