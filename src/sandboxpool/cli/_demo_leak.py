"""The first part of the demo: an app that leaks between its users, and the same app wrapped."""

from __future__ import annotations

import asyncio
import json
from time import monotonic

import attrs
from rich.console import Console

from ._demo_display import Bar, show_table
from ._demo_server import serving
from ._http_client import Connection


@attrs.define
class Outcome:
    """What one half has counted."""

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

    def told(self) -> str:
        """Say how far it is."""
        return f"{self.answers} answers, {self.foreign} with someone else's data"


async def show_leak(console: Console, *, seconds: float, users: int) -> bool:
    """Show both halves; return whether the first one leaked and the second one did not."""
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
    return report_leak(console, plain, wrapped)


async def _half(
    console: Console, attribute: str, label: str, seconds: float, users: int
) -> Outcome:
    outcome = Outcome()
    async with serving(f"main:{attribute}") as port:
        async with Bar(console, label, seconds, outcome.told):
            await _ask(port, users, seconds, outcome)
        if attribute == "wrapped":
            async with Connection(port) as connection:
                status, body = await connection.get("/stats")
            if status == 200:
                outcome.peak = json.loads(body)["peak_concurrency"]
    return outcome


async def _ask(port: int, users: int, seconds: float, outcome: Outcome) -> None:
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

    await asyncio.gather(*(one(f"user{number}") for number in range(users)))
    outcome.seconds = monotonic() - began


def report_leak(console: Console, plain: Outcome, wrapped: Outcome) -> bool:
    """Show what came out; return whether it is what should have."""
    foreign = "with someone else's data"
    console.print()
    show_table(
        console,
        ("", "as it is", "wrapped"),
        [
            ("answers", f"{plain.answers}", f"{wrapped.answers}"),
            (foreign, f"{plain.foreign}", f"{wrapped.foreign}"),
            ("failed requests", f"{plain.failed}", f"{wrapped.failed}"),
            ("answers per second", f"{plain.per_second:.0f}", f"{wrapped.per_second:.0f}"),
            (
                "highest concurrency (/stats)",
                "-",
                "-" if wrapped.peak is None else f"{wrapped.peak}",
            ),
        ],
        striking=foreign,
    )
    if plain.example:
        console.print(f"\nFor example: {plain.example}. Wrapped, everybody saw their own.")
    return plain.foreign > 0 and wrapped.foreign == 0 and wrapped.failed == 0 < wrapped.answers
