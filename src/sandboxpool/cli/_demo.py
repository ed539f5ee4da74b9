"""`sandboxpool demo`: an app that leaks, and the same app wrapped, on real sockets."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.util import find_spec
from pathlib import Path
from time import monotonic
from typing import Any

import attrs
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from sandboxpool._exceptions import SandboxPoolError

from ._http_client import Connection

_NEEDS = ("fastapi", "uvicorn")
_STARTING = 30.0  # seconds that a server may take to come up on a busy machine
_STOPPING = 10.0
_APP_DIR = Path(__file__).parent / "demo_app"


class DemoError(SandboxPoolError):
    """The demo could not be shown."""


@attrs.define
class Outcome:
    """What one half of the demo has counted."""

    answers: int = 0
    foreign: int = 0
    failed: int = 0
    seconds: float = 0.0
    peak: int | None = None
    example: str = ""

    @property
    def per_second(self) -> float:
        """Answers per second."""
        return self.answers / self.seconds if self.seconds else 0.0


def run_demo(*, seconds: float, users: int) -> int:
    """Show both halves; return 0 if the first one leaked and the second one did not."""
    console = Console(highlight=False, soft_wrap=True)
    missing = [name for name in _NEEDS if find_spec(name) is None]
    if missing:
        raise DemoError(
            f"the demo runs a FastAPI app under uvicorn, and {' and '.join(missing)} cannot be "
            f"imported. Install with: pip install sandboxpool[cli,{','.join(_NEEDS)}]"
        )
    try:
        plain, wrapped = asyncio.run(_both(console, seconds, users))
    except (KeyboardInterrupt, asyncio.CancelledError):
        console.print("Stopped; both servers are gone.")
        return 130
    return _report(console, plain, wrapped)


async def _both(console: Console, seconds: float, users: int) -> tuple[Outcome, Outcome]:
    task = asyncio.current_task()
    assert task is not None
    if sys.platform != "win32":
        # SIGTERM would otherwise end this process and leave its servers behind.
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    console.print(
        "A FastAPI app keeps the user of a request on itself, awaits for 20 ms, and reads it back:"
        "\n\n"
        "    request.app.state.user = user\n"
        "    await asyncio.sleep(0.02)\n"
        '    return {"basket_of": request.app.state.user}\n'
    )
    console.print(
        f"{users} users ask at once, for {seconds:g} s each time, over real sockets, "
        "from one uvicorn process.\n"
    )
    plain = await _half(console, "app", "as it is", seconds, users)
    wrapped = await _half(console, "wrapped", "sandboxpool.wrap(app)", seconds, users)
    return plain, wrapped


async def _half(
    console: Console, attribute: str, label: str, seconds: float, users: int
) -> Outcome:
    outcome = Outcome()
    async with _server(attribute) as port:
        with _Progress(console, label, seconds, outcome) as tick:
            await _ask(port, users, seconds, outcome, tick)
        if attribute == "wrapped":
            async with Connection(port) as connection:
                status, body = await connection.get("/stats")
            if status == 200:
                outcome.peak = json.loads(body)["peak_concurrency"]
    return outcome


async def _ask(
    port: int, users: int, seconds: float, outcome: Outcome, tick: Callable[[], None]
) -> None:
    """Send the requests of all users, one after the other for each, until the time is up."""
    began = monotonic()

    async def one(user: str) -> None:
        async with Connection(port) as connection:
            while monotonic() - began < seconds:
                try:
                    status, body = await connection.get(f"/basket?user={user}")
                except ConnectionError:
                    outcome.failed += 1
                    return
                if status != 200:
                    outcome.failed += 1
                    continue
                outcome.answers += 1
                answer = json.loads(body)
                if set(answer.values()) != {user}:
                    outcome.foreign += 1
                    if not outcome.example:
                        other = next(value for value in answer.values() if value != user)
                        outcome.example = f"{user} was shown the basket of {other}"

    async def show() -> None:
        while True:
            await asyncio.sleep(0.1)
            tick()

    showing = asyncio.create_task(show())
    try:
        await asyncio.gather(*(one(f"user{number}") for number in range(users)))
    finally:
        showing.cancel()
    outcome.seconds = monotonic() - began
    tick()


@asynccontextmanager
async def _server(attribute: str) -> AsyncIterator[int]:
    """Run uvicorn with one of the demo's apps; give the port that it chose."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "uvicorn", f"main:{attribute}", "--app-dir", str(_APP_DIR)),
        *("--port", "0", "--no-access-log", "--no-use-colors"),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    assert process.stdout is not None
    log: list[str] = []
    reading: asyncio.Task[None] | None = None
    try:
        try:
            port = await asyncio.wait_for(_port(process.stdout, log), _STARTING)
        except asyncio.TimeoutError:
            raise DemoError(_failure("uvicorn did not start", log)) from None
        reading = asyncio.create_task(_drain(process.stdout))
        yield port
    finally:
        if process.returncode is None:
            process.terminate()
        try:
            await asyncio.wait_for(process.wait(), _STOPPING)
        except (asyncio.TimeoutError, asyncio.CancelledError):
            process.kill()
            await process.wait()
            raise
        finally:
            if reading is not None:
                reading.cancel()


async def _port(output: asyncio.StreamReader, log: list[str]) -> int:
    while line := (await output.readline()).decode(errors="replace"):
        log.append(line.rstrip())
        if found := re.search(r"running on http://127\.0\.0\.1:(\d+)", line):
            return int(found[1])
    raise DemoError(_failure("uvicorn ended while starting", log))


def _failure(what: str, log: list[str]) -> str:
    last = next((line for line in reversed(log) if line.strip()), "it said nothing")
    return f"{what}: {last}"


async def _drain(output: asyncio.StreamReader) -> None:
    # A server that logs into a full pipe would stop.
    while await output.read(65536):
        pass


class _Progress:
    """A bar on a terminal; elsewhere a line at the beginning and one at the end."""

    def __init__(self, console: Console, label: str, seconds: float, outcome: Outcome) -> None:
        self._console = console
        self._label = label
        self._outcome = outcome
        self._began = monotonic()
        self._bar: Progress | None = None
        self._task: Any = None
        if console.is_terminal and not console.is_dumb_terminal:
            self._bar = Progress(
                TextColumn("{task.description:<22}"),
                BarColumn(),
                TextColumn("{task.fields[told]}"),
                TimeRemainingColumn(),
                console=console,
            )
            self._task = self._bar.add_task(label, total=seconds, told="")

    def __enter__(self) -> Callable[[], None]:
        if self._bar is None:
            self._console.print(f"{self._label}: asking ...")
        else:
            self._bar.start()
        return self._tick

    def _tick(self) -> None:
        if self._bar is not None:
            self._bar.update(
                self._task, completed=monotonic() - self._began, told=_told(self._outcome)
            )

    def __exit__(self, *exc: object) -> None:
        if self._bar is not None:
            self._bar.stop()
        elif exc[0] is None:
            self._console.print(f"{self._label}: {_told(self._outcome)}")


def _told(outcome: Outcome) -> str:
    return f"{outcome.answers} answers, {outcome.foreign} with someone else's data"


def _report(console: Console, plain: Outcome, wrapped: Outcome) -> int:
    console.print()
    rows = [
        ("answers", f"{plain.answers}", f"{wrapped.answers}"),
        ("with someone else's data", f"{plain.foreign}", f"{wrapped.foreign}"),
        ("failed requests", f"{plain.failed}", f"{wrapped.failed}"),
        ("answers per second", f"{plain.per_second:.0f}", f"{wrapped.per_second:.0f}"),
        (
            "highest concurrency (/stats)",
            "-",
            "-" if wrapped.peak is None else f"{wrapped.peak}",
        ),
    ]
    heads = ("", "as it is", "wrapped")
    if console.is_terminal and not console.is_dumb_terminal:
        table = Table(*heads)
        for column in table.columns[1:]:
            column.justify = "right"
        for row in rows:
            style = None
            if "else" in row[0]:
                row = (row[0], f"[red]{row[1]}[/]", f"[green]{row[2]}[/]")
                style = "bold"
            table.add_row(*row, style=style)
        console.print(table)
    else:
        for row in (heads, *rows):
            console.print(f"{row[0]:<30}{row[1]:>12}{row[2]:>12}")
    if plain.example:
        console.print(f"\nFor example: {plain.example}. Wrapped, everybody saw their own.")
    well = plain.foreign > 0 and wrapped.foreign == 0 and wrapped.failed == 0 < wrapped.answers
    if not well:
        console.print("\nThat is not what should have come out: please report it.")
        return 1
    console.print(
        "\nHow to go on:\n"
        "    app = sandboxpool.wrap(app)               in your main.py, then: uvicorn main:app\n"
        "    sandboxpool serve main:app --max-size 50  without a change in your code\n"
        "    sandboxpool serve --help                  all options"
    )
    return 0
