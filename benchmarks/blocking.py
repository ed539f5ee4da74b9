"""Requests that block: what one worker process answers, with this library and with others.

Run: `python -m benchmarks.blocking [--quick] [--only NAME ...] [--markdown FILE]`

1. 2000 connections, and each request blocks for 5 s: `time.sleep(5)`. No server can answer more
   than 400 in a second then; rounds being discrete, the yardstick is an app that awaits 5 s.
2. 10,000 connections.
3. A FastAPI hello world over 32 connections: what it costs requests that do not block.
4. How long 2000 sandboxes take to start, and for how long the server's loop is held up.
"""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path

from . import blocking_runs as runs
from . import wrk
from .blocking_contenders import MANY, OURS, PLAIN, RIVALS, Contender
from .blocking_report import (
    Results,
    markdown,
    rate,
    show_results,
    versions,
)
from .blocking_runs import QUICK, Blocked, Scale
from .processes import allow_files
from .servers import ServerError

_MANY = "many-"  # before the name of a contender, for the run with many connections
_HELLO = {
    "as it is": "benchmarks.blocking_apps:app",
    "loop": "--factory benchmarks.blocking_wrapped:loop",
    "thread": "--factory benchmarks.blocking_wrapped:thread_asyncio",
    "thread, uvloop in it": "--factory benchmarks.blocking_wrapped:thread",
    "cooperative": "--factory benchmarks.blocking_wrapped:cooperative",
}
_HELD_UP = {
    "as it is, awaiting": "probed_plain",
    "thread": "probed_thread",
    "cooperative": "probed_cooperative",
}
NAMES = (
    *(contender.name for contender in (*PLAIN, *OURS, *RIVALS)),
    *(_MANY + contender.name for contender in MANY),
    "hello",
    "held-up",
)
# What a quick run leaves out, unless it is asked for.
_LONG = (_MANY + "await", _MANY + "gevent-bare", _MANY + "cooperative-bare")


def measure(scale: Scale, only: Collection[str] = NAMES) -> Results:
    """Measure what was asked for, one after the other."""
    results = Results(scale)
    for contender in (*PLAIN, *OURS, *RIVALS):
        if contender.name in only:
            found = _blocked(contender, scale.at_once, scale.seconds, scale.sleep, results)
            if found is not None:
                results.blocked[contender.name] = found
    for contender in MANY:
        if _MANY + contender.name in only:
            found = _blocked(contender, scale.many, scale.many_seconds, scale.many_sleep, results)
            if found is not None:
                results.many[contender.name] = found
    if "hello" in only:
        print("hello world ...", flush=True)
        try:
            loads = runs.hello(tuple(_HELLO.values()), scale)
        except ServerError as error:
            results.failed.append(f"hello world: {error}")
        else:
            results.hello = {name: loads[app] for name, app in _HELLO.items()}
    if "held-up" in only:
        for name, app in _HELD_UP.items():
            print(f"how long the loop is held up, {name} ...", flush=True)
            try:
                results.held_up[name] = runs.held_up(app, scale)
            except ServerError as error:
                results.failed.append(f"held up, {name}: {error}")
    return results


def _blocked(
    contender: Contender, at_once: int, seconds: float, sleep: float, results: Results
) -> Blocked | None:
    if contender.missing:
        names = " ".join(contender.missing)
        print(f"{contender.label}: left out, not installed: {names} (pip install {names})")
        return None
    try:
        found = runs.blocked(contender, at_once, seconds, sleep)
    except ServerError as error:
        results.failed.append(str(error))
        print(f"{contender.label}: did not start", flush=True)
        return None
    print(
        f"{contender.label}, {at_once} at once: {rate(found.load.rate)} requests/s, "
        f"{found.load.failed} errors, {found.memory / 1e3:.0f} kB a request",
        *(f"\n  {line}" for line in (found.load.errors, *found.complaints[:5]) if line),
        flush=True,
    )
    return found


def run(quick: bool = False) -> bool:
    """Measure everything; return whether everything that was aimed at was reached."""
    return report(QUICK if quick else Scale(), _names(quick))


def _names(quick: bool) -> list[str]:
    return [name for name in NAMES if not (quick and name in _LONG)]


def report(scale: Scale, only: Collection[str] = NAMES, write: Path | None = None) -> bool:
    """Measure, and print the tables; return whether everything that was aimed at was reached.

    Args:
        scale: How much of everything.
        only: What to measure, of `NAMES`.
        write: A file for the tables as Markdown.
    """
    if without := wrk.missing():
        print(without)
        return True
    print(versions(), flush=True)
    files = allow_files()
    if files < scale.many + 500:
        print(
            f"this process may have {files} open files: {files - 500} instead of {scale.many} "
            "connections at most (raise it with `ulimit -Hn`)"
        )
        scale = replace(
            scale,
            many=min(scale.many, files - 500),
            # An event loop in a thread has files of its own.
            at_once=min(scale.at_once, files // 6 - 100),
        )
    results = measure(scale, only)
    reached = show_results(results)
    if write is not None:
        write.write_text(markdown(results))
    return reached


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.blocking", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=NAMES)
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the tables there")
    small = parser.add_argument_group("to try it out, with figures that mean nothing")
    small.add_argument("--connections", type=int, help="instead of 2000 and 10,000")
    small.add_argument("--sleep", type=float, help="seconds that a request blocks")
    small.add_argument("--seconds", type=float, help="of each run")
    arguments = parser.parse_args()
    scale = QUICK if arguments.quick else Scale()
    if arguments.connections:
        scale = replace(scale, at_once=arguments.connections, many=arguments.connections)
    if arguments.sleep:
        scale = replace(scale, sleep=arguments.sleep, many_sleep=arguments.sleep)
    if arguments.seconds:
        seconds = arguments.seconds
        scale = replace(scale, seconds=seconds, many_seconds=seconds, held_up_seconds=seconds)
    # So that the servers are ended then, too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    only = arguments.only or _names(arguments.quick)
    sys.exit(0 if report(scale, only, arguments.markdown) else 1)


if __name__ == "__main__":
    main()
