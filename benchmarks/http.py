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
import os
import re
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from sandboxpool.cli._http_client import Connection

from .measure import Row, show

ROOT = Path(__file__).parent.parent
CONNECTIONS = 2000
FILES = 16_384
_TICKS = os.sysconf("SC_CLK_TCK")
_BAD = re.compile(r"ERROR|WARNING|CRITICAL|Traceback|Exception|sandboxpool:")


def _more_files() -> None:
    """Allow this process as many open files as it may have."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


@dataclass
class Server:
    """A uvicorn process that serves one of the apps."""

    app: str
    process: subprocess.Popen[bytes]
    port: int
    log: Path

    def get(self, path: str) -> bytes:
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=30) as answer:
            return bytes(answer.read())

    @property
    def cpu(self) -> float:
        """Seconds of processor time that it has used."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    @property
    def complaints(self) -> list[str]:
        return [line for line in self.log.read_text().splitlines() if _BAD.search(line)]

    @property
    def stalls(self) -> int:
        """How often the log says that the loop was blocked."""
        return self.log.read_text().count("the event loop has been blocked")


@contextmanager
def serving(app: str) -> Iterator[Server]:
    """Run uvicorn with one worker and one of the apps."""
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "uvicorn", f"benchmarks.http_apps:{app}"),
                    *("--port", "0", "--no-access-log", "--backlog", "4096"),
                ],
                cwd=ROOT,
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=_more_files,
            )
        try:
            yield Server(app, process, _port(process, log), log)
        finally:
            process.terminate()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _port(process: subprocess.Popen[bytes], log: Path) -> int:
    end = time.monotonic() + 30
    while time.monotonic() < end and process.poll() is None:
        if found := re.search(r"running on http://127\.0\.0\.1:(\d+)", log.read_text()):
            return int(found[1])
        time.sleep(0.02)
    raise SystemExit(f"uvicorn did not start:\n{log.read_text()}")


@dataclass
class Load:
    """What wrk reports of one run."""

    requests: int
    rate: float
    latency: float  # the mean, in seconds
    errors: str
    cpu: float  # the server's processor time for a request, in seconds


def load(server: Server, path: str, *, connections: int, seconds: int) -> Load:
    """Send requests over so many connections for so long."""
    before = server.cpu
    done = subprocess.run(
        [
            *("wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--timeout", "20s"),
            f"http://127.0.0.1:{server.port}{path}",
        ],
        check=True,
        capture_output=True,
        text=True,
        preexec_fn=_more_files,
    )
    text = done.stdout
    used = server.cpu - before
    counted = re.search(r"(\d+) requests in ([\d.]+)(ms|s|m)", text)
    latency = re.search(r"Latency\s+([\d.]+)(us|ms|s|m)\b", text)
    if counted is None or latency is None:
        raise SystemExit(f"wrk said something unexpected:\n{text}{done.stderr}")
    requests = int(counted[1])
    units = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}
    return Load(
        requests=requests,
        rate=requests / (float(counted[2]) * units[counted[3]]),
        latency=float(latency[1]) * units[latency[2]],
        errors=" ".join(re.findall(r"Socket errors:.*|Non-2xx.*", text)),
        cpu=used / requests if requests else 0.0,
    )


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
        with serving(app) as server:
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
        _verdict("rate: wrapped / as it is", f"{ratio:.3f} x", ">= 0.98 x", ratio >= 0.98),
        _verdict("highest concurrency", f"{peak}", f"= {CONNECTIONS}", peak == CONNECTIONS),
        _verdict("errors, and errors in the log", f"{len(trouble)}", "= 0", not trouble),
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
        servers = {app: stack.enter_context(serving(app)) for app in apps}
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
        _verdict("rate: wrapped / empty wrapper", f"{rate:.3f} x", ">= 0.97 x", rate >= 0.97),
        Row("the same by processor time", f"{cpu:.3f} x"),
        _verdict("errors, and errors in the log", f"{len(trouble)}", "= 0", not trouble),
    ]
    show(f"FastAPI hello world, 32 connections, {rounds} rounds of {seconds} s", rows)
    for line in trouble[:10]:
        print(f"  {line}")
    return all(row.verdict != "MISSED" for row in rows)


def _listed(seconds: list[float]) -> str:
    return " ".join(f"{each:.2f}" for each in seconds) + " s"


def _verdict(what: str, figure: str, target: str, reached: bool) -> Row:
    return Row(what, figure, "", target, "ok" if reached else "MISSED")


def run(quick: bool = False) -> bool:
    """Run both; return whether everything that was aimed at was reached."""
    if shutil.which("wrk") is None:
        print(
            "\nThe benchmark over real sockets needs wrk, which is not installed "
            "(apt-get install wrk): left out."
        )
        return True
    _more_files()
    reached = waiting(quick)
    return hello(quick) and reached


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.http", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="fewer and shorter rounds")
    sys.exit(0 if run(parser.parse_args().quick) else 1)


if __name__ == "__main__":
    main()
