"""Processes in cooperative requests."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Any

import anyio
import pytest

from sandboxpool import hooks
from sandboxpool.hooks import _subprocess
from tests.wrap.client import Connection

from .request import PATIENCE, alone, at_once, sandboxed

HOOKS = ("subprocess",)

pytestmark = [
    pytest.mark.usefixtures("cooperative"),
    pytest.mark.skipif(os.name != "posix", reason="the hook does nothing on this platform"),
]

_originals = [
    (owner, name, vars(owner)[name])
    for owner, name in (
        (subprocess, "io"),
        (subprocess, "_PopenSelector"),
        (subprocess.Popen, "_wait"),
        (subprocess.Popen, "__exit__"),
        (os, "waitpid"),
        (os, "wait"),
        (os, "system"),
    )
]

MANY = 12
T = 0.2

SLEEP = ["sleep", str(T)]


@pytest.fixture(params=["told", "looking"])
def ends(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Learn of the end of processes from the kernel, or by looking again and again."""
    if request.param == "looking":
        monkeypatch.setattr(_subprocess, "_pidfd_open", None)


def popen_and_wait() -> int:
    """Wait for a process."""
    with subprocess.Popen(SLEEP) as process:
        return process.wait()


def read_pipe() -> bytes:
    """Read all of what a process writes."""
    with subprocess.Popen(["sh", "-c", f"sleep {T}"], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        return process.stdout.read()


def wait_for_pid() -> int:
    """Wait for a process by its number."""
    process = subprocess.Popen(SLEEP)
    pid, status = os.waitpid(process.pid, 0)
    assert pid == process.pid
    process.returncode = os.waitstatus_to_exitcode(status)
    return process.returncode


WAYS: dict[str, Callable[[], Any]] = {
    "run": partial(subprocess.run, SLEEP, check=True),
    "run and capture": partial(subprocess.run, SLEEP, capture_output=True, timeout=PATIENCE),
    "check_output": partial(subprocess.check_output, SLEEP),
    "call": partial(subprocess.call, SLEEP),
    "getoutput": partial(subprocess.getoutput, " ".join(SLEEP)),
    "system": lambda: os.system(" ".join(SLEEP)),
    "popen": lambda: os.popen(" ".join(SLEEP)).close(),
    "wait": popen_and_wait,
    "read": read_pipe,
    "waitpid": wait_for_pid,
}


@pytest.mark.parametrize("way", WAYS)
async def test_at_once(way: str) -> None:
    """Requests that wait for a process each take together about as long as one."""
    before = monotonic()
    await at_once(*[WAYS[way]] * MANY)
    assert T * 0.9 <= monotonic() - before < T * MANY / 2


@pytest.mark.parametrize("way", ["run", "read"])
async def test_control(way: str) -> None:
    """Without hooks the same waits add up, because each of them stops the event loop."""
    before = monotonic()
    await at_once(*[WAYS[way]] * 3, run_in="loop")
    assert monotonic() - before >= T * 3 * 0.9


@pytest.mark.usefixtures("ends")
@pytest.mark.backend_with_uvloop
async def test_results() -> None:
    """Codes, signals, output and errors of processes are those of the originals."""

    def use() -> None:
        assert subprocess.run(["sh", "-c", "exit 3"]).returncode == 3
        assert subprocess.run(["sh", "-c", "kill -TERM $$"]).returncode == -signal.SIGTERM
        assert os.system("exit 3") == 3 << 8
        assert os.system("kill -KILL $$") == signal.SIGKILL
        with pytest.raises(subprocess.CalledProcessError) as caught:
            subprocess.run(["sh", "-c", "echo no; exit 1"], check=True, capture_output=True)
        assert caught.value.stdout == b"no\n"
        assert "use" in [frame.name for frame in traceback.extract_tb(caught.tb)]
        with pytest.raises(FileNotFoundError):
            subprocess.run(["no such program"])
        done = subprocess.run(
            ["sh", "-c", "tr a-z A-Z; echo error >&2"],
            input="text\n",
            text=True,
            capture_output=True,
        )
        assert (done.stdout, done.stderr) == ("TEXT\n", "error\n")
        assert subprocess.check_output("cat", input=b"") == b""
        with os.popen("echo text; exit 3") as pipe:
            assert pipe.read() == "text\n"
        assert pipe.close() == 3 << 8

    use()
    await at_once(use, use)


@pytest.mark.usefixtures("ends")
async def test_timeout() -> None:
    """`run()` kills and collects a process that takes too long, and has what it wrote."""

    def run() -> int:
        before = monotonic()
        code = "import os, time; print(os.getpid(), flush=True); time.sleep(60)"
        with pytest.raises(subprocess.TimeoutExpired) as caught:
            subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, timeout=1)
        assert 1 <= monotonic() - before < PATIENCE
        assert caught.value.timeout == 1
        assert caught.value.stdout is not None
        pid = int(caught.value.stdout)
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)
        with subprocess.Popen(["sleep", "60"]) as process:
            for timeout in (0.01, 0, -1):
                with pytest.raises(subprocess.TimeoutExpired):
                    process.wait(timeout)
            process.kill()
            assert process.wait(PATIENCE) == -signal.SIGKILL
            assert process.wait(PATIENCE) == -signal.SIGKILL
        return pid

    await at_once(run, run)


@pytest.mark.parametrize("text", [False, True])
@pytest.mark.parametrize("bufsize", [-1, 0, 1, 16])
async def test_pipes(bufsize: int, text: bool) -> None:
    """Both pipes of a process carry more than they hold, line by line and all at once."""
    if text and bufsize == 0:
        pytest.skip("text needs a buffer")
    options: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": text}
    if bufsize != 1 or text:  # a line buffer is for text
        options["bufsize"] = bufsize
    line: Any = "line\n" if text else b"line\n"

    def talk() -> None:
        with subprocess.Popen("cat", **options) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(line)
            process.stdin.flush()
            assert process.stdout.readline() == line
        with subprocess.Popen(["sh", "-c", "sleep 0.05; cat >/dev/null"], **options) as process:
            assert process.stdin is not None
            process.stdin.write(line * 20_000)
        with subprocess.Popen(["sh", "-c", "yes line | head -20000"], **options) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == line
            if not text:
                assert process.stdout.read(5) == line
                view = bytearray(5)
                assert process.stdout.readinto(view) == 5  # type: ignore[attr-defined]
            assert set(process.stdout) == {line}
        with subprocess.Popen("cat", **options) as process:
            out, _ = process.communicate(line * 20_000)
            assert out == line * 20_000

    talk()
    await at_once(talk, talk)


_CHILDREN = """
import os, subprocess, sys, time
from functools import partial
import anyio
from sandboxpool.hooks import _subprocess
from tests.hooks.request import at_once

if sys.argv[2] == "looking":
    _subprocess._pidfd_open = None

def wait():
    for call in (
        lambda pid: os.wait(),
        lambda pid: os.waitpid(-1, 0),
        lambda pid: os.waitpid(pid, 0),
        lambda pid: os.wait3(0),
        lambda pid: os.wait4(-1, 0),
        lambda pid: os.wait4(pid, 0),
    ):
        process = subprocess.Popen(["sh", "-c", "sleep 0.1; exit 3"])
        assert os.waitpid(process.pid, os.WNOHANG) == (0, 0)
        if hasattr(os, "waitid"):
            found = os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            assert found.si_status == 3
        pid, status, *_ = call(process.pid)
        assert pid == process.pid
        process.returncode = os.waitstatus_to_exitcode(status)
        assert process.returncode == 3
        for call in (os.wait, partial(os.waitpid, -1, 0), partial(os.waitpid, pid, 0)):
            try:
                call()
            except ChildProcessError:
                continue
            raise AssertionError
    assert os.spawnlp(os.P_WAIT, "sh", "sh", "-c", "exit 3") == 3

ticks = []
over = []

def tick():
    while not over:
        time.sleep(0.01)
        ticks.append(True)

def wait_and_stop():
    wait()
    assert len(ticks) > 10
    over.append(True)

anyio.run(partial(at_once, wait_and_stop, tick, hooks=("sleep", "subprocess")), backend=sys.argv[1])
print("done")
"""


@pytest.mark.parametrize("ends", ["told", "looking"])
@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_wait_for_children(backend: str, ends: str) -> None:
    """The functions of `os` that wait for children find the one that has ended, and none else."""
    done = subprocess.run(
        [sys.executable, "-c", _CHILDREN, backend, ends],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
    )
    assert done.stdout == "done\n"


async def test_collected_by_somebody_else() -> None:
    """A process that was collected behind the back of its `Popen` ends it all the same."""

    def wait() -> int:
        process = subprocess.Popen("true")
        os.waitpid(process.pid, 0)
        return process.wait()

    assert await alone(wait) == 0


KILLED = ["run", "communicate", "system"]


@pytest.mark.parametrize("way", [*KILLED, "write", "wait", "read"])
@pytest.mark.backend_with_uvloop
async def test_cut_short(way: str) -> None:
    """A request that is cut off does not wait for its process; what it ran is killed, and gone."""
    started: list[Any] = []

    class Noted(subprocess.Popen[bytes]):
        def __init__(self, *args: Any, **options: Any) -> None:
            super().__init__(*args, **options)
            started.append(self)

    def popen(**pipes: Any) -> Any:
        return subprocess.Popen(["sleep", "60"], **pipes)

    def write() -> None:
        with popen(stdin=subprocess.PIPE) as process:
            process.stdin.write(bytes(1_000_000))

    def read() -> None:
        with popen(stdout=subprocess.PIPE) as process:
            process.stdout.read()

    def wait() -> None:
        with popen() as process:
            process.wait()

    many = bytes(1_000_000)
    call: Callable[[], Any] = {
        "run": lambda: subprocess.run(["sleep", "60"]),
        "communicate": lambda: subprocess.run(["sleep", "60"], input=many, capture_output=True),
        "write": write,
        "wait": wait,
        "system": lambda: os.system("exec sleep 60"),
        "read": read,
    }[way]
    with pytest.MonkeyPatch.context() as patch, anyio.fail_after(PATIENCE):
        patch.setattr(subprocess, "Popen", Noted)
        if way not in KILLED:
            patch.setattr(_subprocess, "_GRACE", 0.05)
        async with sandboxed(call, execution_timeout=0.05) as app:
            assert (await Connection(app, "/0").run()).status == 504
        async with sandboxed(call) as app:
            with anyio.move_on_after(0.05) as scope:
                await Connection(app, "/0").run()
            assert scope.cancelled_caught
    assert len(started) == 2
    for process in started:
        if way in KILLED:
            assert process.returncode == -signal.SIGKILL
        else:
            process.kill()
            process.wait()


async def test_pipe_that_does_not_block() -> None:
    """A pipe that was told not to block does not, in a request as elsewhere."""

    def use() -> None:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        with subprocess.Popen("cat", bufsize=0, **pipes) as process:  # type: ignore[call-overload]
            for pipe in (process.stdin, process.stdout):
                os.set_blocking(pipe.fileno(), False)
            assert process.stdout.read(1) is None
            assert process.stdout.read() is None
            assert process.stdout.readinto(bytearray(1)) is None
            assert 0 < process.stdin.write(bytes(1_000_000)) < 1_000_000

    use()
    await alone(use)


@pytest.mark.backend_with_uvloop
async def test_processes_of_event_loops() -> None:
    """A request can run processes by way of its event loop, too."""

    async def run() -> bytes:
        done = await anyio.run_process(["cat"], input=b"text")
        return done.stdout

    assert await at_once(run, run) == [b"text"] * 2


async def test_thread_waits_for_the_same() -> None:
    """A thread and requests may wait for one process at the same time."""
    import threading

    process = subprocess.Popen(SLEEP)
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(process.wait()))
    thread.start()
    assert await at_once(process.wait, process.wait) == [0, 0]
    thread.join()
    assert codes == [0]


def test_uninstalled() -> None:
    """After `uninstall()` the originals are back."""
    hooks.uninstall("subprocess")
    for owner, name, original in _originals:
        assert vars(owner)[name] is original


async def test_uninstalled_meanwhile() -> None:
    """A pipe that was opened with the hook works without it, and outside of requests."""
    process = subprocess.Popen("cat", stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    hooks.uninstall("subprocess")
    assert process.communicate(b"text")[0] == b"text"
