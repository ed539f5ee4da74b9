"""Over real sockets: wrk against uvicorn with one worker, the app wrapped and as it is.

Run: `python -m benchmarks.http [--quick]`

1. 2000 connections to an endpoint that awaits 5 s: all of them are served at once, so the rate is
   that of the app as it is.
2. A FastAPI hello world. Besides the rate, the processor time that the server's process needs for
   a request is shown: another process on the machine changes the rate, and that hardly.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import sys
import time
from contextlib import AbstractContextManager, ExitStack

from sandboxpool.cli._http_client import Connection

from . import wrk
from .measure import Row, show, verdict
from .processes import allow_files
from .servers import Server, serving, uvicorn
from .wrk import Load, load

CONNECTIONS = 2000


def serving_app(app: str) -> AbstractContextManager[Server]:
    """Run uvicorn with one worker and one of the apps."""
    return serving(app, uvicorn(f"benchmarks.http_apps:{app}"))


async def wave(server: Server) -> float:
    """Send a request over each of 2000 new connections at once; return how long it took."""

    async def one() -> None:
        async with Connection(server.port) as connection:
            await connection.get("/wait")

    began = time.monotonic()
    await asyncio.gather(*(one() for _ in range(CONNECTIONS)))
    return time.monotonic() - began


def waiting(quick: bool) -> bool:
    """Compare the wrapped app with the app as it is, at 2000 requests at once."""
    # So many whole rounds of 5 s fit, with time to spare for a busy machine in each.
    seconds = 12 if quick else 28
    runs: dict[str, Load] = {}
    waves: dict[str, list[float]] = {}
    trouble: list[str] = []
    stats = {}
    stalls = 0
    for app in ("plain", "wrapped_2000"):
        with serving_app(app) as server:
            # In the first, the app is cold.
            waves[app] = [asyncio.run(wave(server)) for _ in range(2 if quick else 3)]
            runs[app] = load(server, "/wait", connections=CONNECTIONS, seconds=seconds)
            if app != "plain":
                stats = json.loads(server.get("/stats"))
                stalls = server.stalls
            trouble += [f"{app}: {line}" for line in server.complaints]
            if runs[app].errors:
                trouble.append(f"{app}: {runs[app].errors}")
    plain, wrapped = runs["plain"], runs["wrapped_2000"]
    ratio = wrapped.rate / plain.rate
    peak = stats["peak_concurrency"]
    rows = [
        Row("as it is", f"{plain.rate:.1f} /s", f"{plain.latency:.3f} s"),
        Row("wrapped, 2000 sandboxes", f"{wrapped.rate:.1f} /s", f"{wrapped.latency:.3f} s"),
        Row("  waves before, as it is", _listed(waves["plain"])),
        Row("  waves before, wrapped", _listed(waves["wrapped_2000"])),
        verdict("rate: wrapped / as it is", f"{ratio:.3f} x", ">= 0.98 x", ratio >= 0.98),
        verdict("highest concurrency", f"{peak}", f"= {CONNECTIONS}", peak == CONNECTIONS),
        verdict("errors, and errors in the log", f"{len(trouble)}", "= 0", not trouble),
        Row("blocked loops in the log", f"{stalls}"),
    ]
    show(f"{CONNECTIONS} connections, an endpoint that awaits 5 s, one worker", rows)
    for line in trouble[:10]:
        print(f"  {line}")
    return all(row.verdict != "MISSED" for row in rows)


def hello(quick: bool) -> bool:
    """Compare a hello world as it is, in an empty wrapper, and wrapped, turn by turn."""
    rounds, seconds = (3, 1) if quick else (9, 2)
    apps = ("plain", "passed_through", "wrapped")
    runs: dict[str, list[Load]] = {app: [] for app in apps}
    with ExitStack() as stack:
        servers = {app: stack.enter_context(serving_app(app)) for app in apps}
        for server in servers.values():
            load(server, "/hello", connections=32, seconds=1)
        for number in range(rounds):
            # Each is first as often as last, so that nobody gains by its place.
            for app in apps[number % 3 :] + apps[: number % 3]:
                runs[app].append(load(servers[app], "/hello", connections=32, seconds=seconds))
        trouble = [
            *(f"{app}: {run.errors}" for app in apps for run in runs[app] if run.errors),
            *(f"{app}: {line}" for app in apps for line in servers[app].complaints),
        ]
    rows = [
        Row(
            label,
            f"{statistics.median(run.rate for run in runs[app]):,.0f} /s",
            f"{statistics.median(run.cpu for run in runs[app]) * 1e6:.1f} us",
        )
        for app, label in zip(
            apps, ("as it is", "in an empty wrapper", "wrapped, all defaults"), strict=True
        )
    ]
    pairs = list(zip(runs["wrapped"], runs["passed_through"], strict=True))
    rate = statistics.median(wrapped.rate / empty.rate for wrapped, empty in pairs)
    cpu = statistics.median(empty.cpu / wrapped.cpu for wrapped, empty in pairs)
    rows += [
        verdict("rate: wrapped / empty wrapper", f"{rate:.3f} x", ">= 0.97 x", rate >= 0.97),
        Row("the same by processor time", f"{cpu:.3f} x"),
        verdict("errors, and errors in the log", f"{len(trouble)}", "= 0", not trouble),
    ]
    show(f"FastAPI hello world, 32 connections, {rounds} rounds of {seconds} s", rows)
    for line in trouble[:10]:
        print(f"  {line}")
    return all(row.verdict != "MISSED" for row in rows)


def _listed(seconds: list[float]) -> str:
    return " ".join(f"{each:.2f}" for each in seconds) + " s"


def run(quick: bool = False) -> bool:
    """Run both; return whether everything that was aimed at was reached."""
    if without := wrk.missing():
        print(without)
        return True
    allow_files()
    reached = waiting(quick)
    return hello(quick) and reached


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.http", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    sys.exit(0 if run(parser.parse_args().quick) else 1)


if __name__ == "__main__":
    main()
