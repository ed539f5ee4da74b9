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
BLOCKING = ["--blocked", "30", "--sleep", "0.5"]


def test_plain_lines() -> None:
    """Without a terminal it prints lines: what leaks, what blocks, both wrapped, how to go on."""
    done = subprocess.run(
        [*DEMO, "--seconds", "0.5", *BLOCKING],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", done.stdout)
    leak, blocking = done.stdout.split("Another one blocks for 0.5 s")
    rows = dict(re.findall(r"^(\D+?)  +(\S+ +\S+)$", leak, re.MULTILINE))
    leaked, wrapped = map(int, rows["with someone else's data"].split())
    assert leaked > 0 == wrapped
    assert rows["highest concurrency (/stats)"].split() == ["-", "10"]
    found = re.findall(r"^(\D+?)  +(\S+) +(\S+) +(\S+)$", blocking, re.MULTILINE)
    columns = {name: figures for name, *figures in found}
    assert columns["answered"][1:] == ["30", "30"]
    assert columns["failed requests"] == ["0", "0", "0"]
    assert columns["highest concurrency (/stats)"] == ["-", "30", "30"]
    plain, *both = map(float, columns["answers per second"])
    assert plain < 5 < 2 * plain + 2
    assert min(both) > 2 * plain
    assert "the last of 30 users would wait for 15 s" in blocking
    assert "sandboxpool serve main:app" in blocking


@pytest.mark.parametrize("no_color", [False, True])
def test_terminal(no_color: bool) -> None:
    """On a terminal there is a bar and a table; NO_COLOR takes the colours out."""
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "100"}
    environment.pop("NO_COLOR", None)
    if no_color:
        environment["NO_COLOR"] = "1"
    blocking = ["--blocked", "0"] if no_color else BLOCKING
    ours, its = pty.openpty()
    with subprocess.Popen(
        [*DEMO, "--seconds", "0.3", *blocking], stdout=its, env=environment
    ) as process:
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
    assert ("users have an answer" in shown) == (not no_color)
    assert "┃" in shown
    coloured = re.search(r"\x1b\[[0-9;]*3[1-7]m", shown) is not None
    assert coloured == (not no_color)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("options", "asking"),
    [
        (["--seconds", "60"], 1),
        (["--seconds", "0.2", "--blocked", "5", "--sleep", "60"], 3),
        (["--seconds", "0.2", "--blocked", "5", "--sleep", "1"], 5),
    ],
    ids=["leak", "blocking", "thread"],
)
def test_interrupted(number: signal.Signals, options: list[str], asking: int) -> None:
    """Interrupted in either part, it ends its server before it goes."""
    with subprocess.Popen(
        [*DEMO, *options], stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        assert process.stdout is not None
        seen = 0
        for line in process.stdout:
            seen += "asking ..." in line
            if seen == asking:
                break
        # To the process alone, as `kill` does: a terminal would tell its server too.
        process.send_signal(number)
        rest = process.stdout.read()
        assert process.wait(20) == 130
    assert "its server is gone" in rest
    with pytest.raises(ProcessLookupError):
        os.killpg(process.pid, 0)
