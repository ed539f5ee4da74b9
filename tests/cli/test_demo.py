"""`sandboxpool demo` as a process, on real sockets."""

from __future__ import annotations

import os
import pty
import re
import signal
import subprocess
import sys

import pytest

pytestmark = [pytest.mark.server, pytest.mark.slow]

DEMO = [sys.executable, "-m", "sandboxpool", "demo", "--users", "10"]


def test_plain_lines() -> None:
    """Without a terminal it prints lines, shows the leak and its end, and how to go on."""
    done = subprocess.run(
        [*DEMO, "--seconds", "0.5"], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", done.stdout)
    rows = dict(re.findall(r"^(\D+?)  +(\S+ +\S+)$", done.stdout, re.MULTILINE))
    leaked, wrapped = map(int, rows["with someone else's data"].split())
    assert leaked > 0 == wrapped
    assert rows["highest concurrency (/stats)"].split() == ["-", "10"]
    assert "sandboxpool serve main:app" in done.stdout


@pytest.mark.parametrize("no_color", [False, True])
def test_terminal(no_color: bool) -> None:
    """On a terminal there is a bar and a table; NO_COLOR takes the colours out."""
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
    environment.pop("NO_COLOR", None)
    if no_color:
        environment["NO_COLOR"] = "1"
    ours, its = pty.openpty()
    with subprocess.Popen([*DEMO, "--seconds", "0.3"], stdout=its, env=environment) as process:
        os.close(its)
        received = b""
        try:
            while data := os.read(ours, 65536):
                received += data
        except OSError:  # how Linux tells that the other side is closed
            pass
        os.close(ours)
    assert process.returncode == 0
    shown = received.decode()
    assert "with someone else's data" in shown
    assert "┃" in shown
    coloured = re.search(r"\x1b\[[0-9;]*3[1-7]m", shown) is not None
    assert coloured == (not no_color)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_interrupted(number: signal.Signals) -> None:
    """Interrupted, it ends its server before it goes."""
    with subprocess.Popen(
        [*DEMO, "--seconds", "60"], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if "asking" in line:
                break
        # To the process alone, as `kill` does: a terminal would tell its server too.
        process.send_signal(number)
        rest = process.stdout.read()
        assert process.wait(20) == 130
    assert "both servers are gone" in rest
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
