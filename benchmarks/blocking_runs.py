"""The runs of `benchmarks.blocking`, and what they found."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field

from .blocking_contenders import Contender
from .blocking_probe import Longest
from .processes import PeakMemory
from .servers import Server, serving, uvicorn
from .wrk import Load, load

STOPPING = 20.0  # seconds: requests may be blocked for a while yet, threads have to end


@dataclass(frozen=True)
class Scale:
    """How much of everything.

    Attributes:
        at_once: Connections, each with a request that blocks.
        many: The same where there are many.
        sleep: Seconds that a request blocks.
        many_sleep: The same where there are many.
        seconds: For how long requests are sent: so that whole rounds fit, with time to spare.
        many_seconds: The same where there are many.
        held_up_seconds: The same while the loop is watched.
        rounds: Turns of each hello world.
        round_seconds: How long each takes.
    """

    at_once: int = 2000
    many: int = 10_000
    sleep: float = 5.0
    many_sleep: float = 5.0
    seconds: float = 28.0
    many_seconds: float = 32.0
    held_up_seconds: float = 12.0
    rounds: int = 9
    round_seconds: float = 2.0


QUICK = Scale(sleep=2, seconds=6, many_seconds=12, held_up_seconds=5, rounds=3, round_seconds=1)


@dataclass(frozen=True)
class Blocked:
    """What came of many requests that block, in bytes and seconds.

    Attributes:
        at_once: How many connections there were.
        load: What wrk counted.
        bare: Memory of the same server, started for one request at a time.
        idle: Memory before the first request.
        peak: The most memory while they were blocked.
        complaints: Lines of the log that say that something went wrong.
        stalls: How often the log says that the loop was blocked.
    """

    at_once: int
    load: Load
    bare: int
    idle: int
    peak: int
    complaints: tuple[str, ...]
    stalls: int

    @property
    def memory(self) -> float:
        """Bytes for each request: its connection, and whatever serves it."""
        return (self.peak - self.bare) / self.at_once

    @property
    def idle_memory(self) -> float:
        """Bytes for each request that could be served at once, before there is one."""
        return (self.idle - self.bare) / self.at_once


@dataclass(frozen=True)
class HeldUp:
    """For how long the loop of the server was held up.

    Attributes:
        seconds: How long the start took.
        start: What was longest meanwhile.
        blocked: What was longest while requests blocked.
    """

    seconds: float
    start: Longest
    blocked: Longest


@dataclass
class Hello:
    """The rounds of one hello world."""

    loads: list[Load] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)

    @property
    def rate(self) -> float:
        return statistics.median(each.rate for each in self.loads)

    @property
    def cpu(self) -> float:
        return statistics.median(each.cpu for each in self.loads)

    @property
    def errors(self) -> int:
        return sum(each.failed for each in self.loads)

    def ratio(self, to: Hello) -> float:
        """Return the median of each round's ratio of the rates."""
        pairs = zip(self.loads, to.loads, strict=True)
        return statistics.median(ours.rate / theirs.rate for ours, theirs in pairs)


def blocked(contender: Contender, at_once: int, seconds: float, sleep: float) -> Blocked:
    """Let so many requests block at once, again and again for so long."""
    with _started(contender, 1, sleep) as server:
        bare = server.memory
    with _started(contender, at_once, sleep) as server:
        idle = server.memory
        with PeakMemory(server.process.pid) as peak:
            done = load(server, contender.path, connections=at_once, seconds=seconds)
    complaints = list(server.complaints)
    if server.killed and contender.ours:
        complaints.append(f"it did not end within {STOPPING:g} s")
    return Blocked(at_once, done, bare, idle, peak.bytes, tuple(complaints), server.stalls)


def _started(contender: Contender, at_once: int, sleep: float) -> AbstractContextManager[Server]:
    return serving(
        contender.label,
        contender.command(at_once),
        environment={"BLOCKING_AT_ONCE": str(at_once), "BLOCKING_SLEEP": str(sleep)},
        stopping=0 if contender.stuck else STOPPING,
    )


def held_up(app: str, scale: Scale) -> HeldUp:
    """Watch the loop of a server (asyncio's own) while it starts and while requests block.

    Args:
        app: The factory in `benchmarks.blocking_wrapped`, of an app in a `Probe`.
        scale: How many, for how long.
    """
    command = uvicorn("--factory", f"benchmarks.blocking_wrapped:{app}", "--loop", "asyncio")
    environment = {"BLOCKING_AT_ONCE": str(scale.at_once), "BLOCKING_SLEEP": str(scale.sleep)}
    path = "/await" if app == "probed_plain" else "/block"
    with serving(
        app, command, environment=environment, ready="/probe", stopping=STOPPING
    ) as server:
        start = json.loads(server.get("/probe"))
        load(server, path, connections=scale.at_once, seconds=scale.held_up_seconds)
        run = json.loads(server.get("/probe"))
    return HeldUp(start["seconds"], Longest(**start["start"]), Longest(**run["since"]))


def hello(apps: Sequence[str], scale: Scale) -> dict[str, Hello]:
    """Ask the hello world of several apps, turn by turn.

    Args:
        apps: Import strings with uvicorn's options before them, in one string.
        scale: How many rounds, how long.
    """
    found = {app: Hello() for app in apps}
    with ExitStack() as stack:
        servers = {app: stack.enter_context(serving(app, uvicorn(*app.split()))) for app in found}
        for server in servers.values():
            load(server, "/hello", connections=32, seconds=1)
        for number in range(scale.rounds):
            # Each is first as often as last, so that nobody gains by its place.
            first = number % len(apps)
            for app in (*apps[first:], *apps[:first]):
                found[app].loads.append(
                    load(servers[app], "/hello", connections=32, seconds=scale.round_seconds)
                )
    for app, server in servers.items():
        found[app].complaints += server.complaints
    return found
