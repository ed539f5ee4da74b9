"""Load from wrk, and what it cost the server."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass

from .servers import Server

_UNITS = {"us": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0}


@dataclass
class Load:
    """What wrk reports of one run."""

    requests: int
    rate: float
    latency: float  # the mean, in seconds
    errors: str
    cpu: float  # the server's processor time for a request, in seconds

    @property
    def failed(self) -> int:
        """How many errors of all kinds there were."""
        found = re.findall(r"(?:connect|read|write|timeout|responses:) (\d+)", self.errors)
        return sum(map(int, found))


def missing() -> str:
    """Return what to say if wrk is not installed, else nothing."""
    if shutil.which("wrk"):
        return ""
    return (
        "\nThe benchmark over real sockets needs wrk, which is not installed "
        "(apt-get install wrk): left out."
    )


def load(server: Server, path: str, *, connections: int, seconds: float) -> Load:
    """Send requests over so many connections for so long."""
    before = server.cpu
    done = subprocess.run(
        [
            *("wrk", "-t1", f"-c{connections}", f"-d{seconds:.0f}s", "--timeout", "20s"),
            f"http://127.0.0.1:{server.port}{path}",
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    text = done.stdout
    used = server.cpu - before
    counted = re.search(r"(\d+) requests in ([\d.]+)(ms|s|m)", text)
    latency = re.search(r"Latency\s+([\d.]+)(us|ms|s|m)\b", text)
    if counted is None or latency is None:
        raise SystemExit(f"wrk said something unexpected:\n{text}{done.stderr}")
    requests = int(counted[1])
    return Load(
        requests=requests,
        rate=requests / (float(counted[2]) * _UNITS[counted[3]]),
        latency=float(latency[1]) * _UNITS[latency[2]],
        errors=" ".join(re.findall(r"Socket errors:.*|Non-2xx.*", text)),
        cpu=used / requests if requests else 0.0,
    )
