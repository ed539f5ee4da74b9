"""The second part of the demo: an endpoint that blocks, as it is and wrapped in two ways."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import Iterator
from contextlib import AsyncExitStack
from importlib.util import find_spec
from pathlib import Path
from time import monotonic

import attrs
from rich.console import Console

from ._demo_display import Bar, show_table
from ._demo_server import DemoError, serving
from ._http_client import Connection

USERS = 2000
"""How many there are, if the machine allows it and nothing else was asked for."""

_OPENED_AT_ONCE = 100  # connections: a server's queue of new ones may be short
_SPARE = 200  # files and threads for everything else
_PATIENCE = 20.0  # seconds for all answers, beyond two times what one takes
_PIDS = Path("/sys/fs/cgroup/pids.max")


@attrs.define
class Wave:
    """What came of it that all users asked once, in the same moment.

    Attributes:
        users: How many asked.
        answers: How many have been answered.
        failed: How many were answered with an error, or not at all.
        seconds: When the last answer came.
        peak: The highest concurrency that the app itself has seen.
    """

    users: int
    answers: int = 0
    failed: int = 0
    seconds: float = 0.0
    peak: int | None = None

    @property
    def per_second(self) -> float:
        """Answers per second."""
        return self.answers / self.seconds if self.seconds else 0.0

    def told(self) -> str:
        """Say how far it is."""
        return f"{self.answers} of {self.users} users have an answer"


async def show_blocking(console: Console, *, users: int | None, sleep: float) -> bool:
    """Show an endpoint that blocks, as it is and wrapped; return whether wrapping helped."""
    wanted = USERS if users is None else users
    users = affordable(wanted)
    console.print(
        f"\nAnother one blocks for {sleep:g} s, as a slow driver does, in `async def`:\n\n"
        '    @app.get("/report")\n'
        "    async def report() -> dict[str, float]:\n"
        f"        time.sleep({sleep:g})\n",
        markup=False,
    )
    fewer = f" ({wanted} are more than this machine's limits allow)" if users < wanted else ""
    console.print(
        f"{users} users{fewer} ask once, in the same moment, over real sockets, "
        "from one uvicorn process.\n"
    )
    # The second answer would come after twice the time: it need not be waited for.
    plain = await _wave(console, "blocking:app", "as it is", users, sleep, limit=1.2 * sleep + 0.2)
    wrapped = {}
    for run_in in ("cooperative", "thread"):
        if run_in == "cooperative" and find_spec("greenlet") is None:
            console.print(
                'run_in="cooperative": left out, it needs greenlet: '
                "pip install sandboxpool\\[hooks]"
            )
            continue
        label = f'run_in="{run_in}"'
        app = f"blocking_wrapped:{run_in}"
        wrapped[label] = await _wave(console, app, label, users, sleep)
    return report_blocking(console, plain, wrapped, sleep)


async def _wave(
    console: Console,
    app: str,
    label: str,
    users: int,
    sleep: float,
    limit: float | None = None,
) -> Wave:
    wave = Wave(users)
    options = ["--loop", "asyncio", "--backlog", "4096"]
    if limit is None:
        options.append("--factory")
    server = serving(
        app,
        *options,
        environment={"DEMO_SLEEP": str(sleep), "DEMO_USERS": str(users)},
        # The app as it is would block for hours yet.
        **({} if limit is None else {"stopping": 0.0}),
    )
    async with server as port, AsyncExitStack() as opened:
        connections = await _open(port, users, opened)
        async with Bar(console, label, limit or 1.1 * sleep, wave.told):
            await _ask(connections, wave, 2 * sleep + _PATIENCE if limit is None else limit)
        if limit is None:
            status, body = await connections[0].get("/stats")
            if status == 200:
                wave.peak = json.loads(body)["peak_concurrency"]
    return wave


async def _open(port: int, users: int, opened: AsyncExitStack) -> list[Connection]:
    """Open a connection for each user before the first one asks."""
    connections = [Connection(port) for _ in range(users)]
    try:
        for first in range(0, users, _OPENED_AT_ONCE):
            some = connections[first : first + _OPENED_AT_ONCE]
            await asyncio.gather(*map(opened.enter_async_context, some))
    except OSError as error:
        raise DemoError(
            f"{users} connections cannot be opened: {error}. Ask for fewer with --blocked."
        ) from error
    return connections


async def _ask(connections: list[Connection], wave: Wave, limit: float) -> None:
    """Send a request over each connection, and count the answers until the time is up."""
    began = monotonic()

    async def one(connection: Connection) -> None:
        try:
            status, _ = await connection.get("/report")
        except ConnectionError:
            status = 0
        if status == 200:
            wave.answers += 1
            wave.seconds = monotonic() - began
        else:
            wave.failed += 1

    asked = [asyncio.create_task(one(connection)) for connection in connections]
    try:
        await asyncio.wait(asked, timeout=limit)
    finally:
        for task in asked:
            task.cancel()
        await asyncio.gather(*asked, return_exceptions=True)


def report_blocking(console: Console, plain: Wave, wrapped: dict[str, Wave], sleep: float) -> bool:
    """Show what came out; return whether everybody was answered, and in a fraction of the time."""
    waves = (plain, *wrapped.values())
    striking = "answers per second"
    console.print()
    show_table(
        console,
        ("", "as it is", *(label.replace("run_in=", "").strip('"') for label in wrapped)),
        [
            ("users that ask at once", *(f"{wave.users}" for wave in waves)),
            ("answered", *(f"{wave.answers}" for wave in waves)),
            ("failed requests", *(f"{wave.failed}" for wave in waves)),
            ("the last answer came after", *(f"{wave.seconds:.1f} s" for wave in waves)),
            (striking, *(_rate(wave.per_second) for wave in waves)),
            (
                "highest concurrency (/stats)",
                *("-" if wave.peak is None else f"{wave.peak}" for wave in waves),
            ),
        ],
        striking=striking,
    )
    console.print(
        f"\nAs it is, one request stops all others: the last of {plain.users} users would wait "
        f"for {_duration(plain.users * sleep)}."
    )
    return bool(plain.answers and wrapped) and all(
        wave.answers == wave.users and wave.per_second > 2 * plain.per_second
        for wave in wrapped.values()
    )


def _rate(per_second: float) -> str:
    return f"{per_second:.1f}" if per_second < 10 else f"{per_second:.0f}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def affordable(wanted: int) -> int:
    """Return for how many of the wanted users there are files and threads.

    Raises what this process may open as far as it may, which the servers inherit.
    """
    return max(2, min([wanted, *(limit - _SPARE for limit in _limits(wanted + _SPARE))]))


def _limits(wanted: int) -> Iterator[int]:
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if resource.RLIM_INFINITY != soft < wanted:
        more = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (more, hard))
        except (OSError, ValueError):  # macOS has a further limit, and does not say so before
            pass
        else:
            soft = more
    if soft != resource.RLIM_INFINITY:
        yield soft
    threads, _ = resource.getrlimit(resource.RLIMIT_NPROC)
    if threads != resource.RLIM_INFINITY:
        yield threads
    try:
        yield int(_PIDS.read_text())  # what a container may have; "max" is no limit
    except (OSError, ValueError):
        pass
