"""Interleaved timings, and the table that they end in."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from time import process_time

Loop = Callable[[int], Awaitable[object]]


@dataclass
class Timings:
    """Seconds per turn of each contender, one for each round."""

    rounds: dict[str, list[float]] = field(default_factory=dict)

    def add(self, name: str, seconds: float) -> None:
        self.rounds.setdefault(name, []).append(seconds)

    def best(self, name: str) -> float:
        """Return the fastest round, in seconds: noise only ever adds."""
        return min(self.rounds[name])

    def ratio(self, name: str, to: str) -> tuple[float, float]:
        """Return the ratio of the fastest rounds, and the median of each round's own ratio."""
        pairs = zip(self.rounds[name], self.rounds[to], strict=True)
        return self.best(name) / self.best(to), statistics.median(a / b for a, b in pairs)


async def interleave(
    loops: Mapping[str, Loop],
    rounds: int,
    turns: Mapping[str, int],
    into: Timings,
    clock: Callable[[], float] = process_time,
) -> None:
    """Time each loop in turn, *rounds* times, the garbage collector being off meanwhile."""
    for _ in range(rounds):
        for name, loop in loops.items():
            gc.collect()
            gc.disable()
            try:
                begin = clock()
                await loop(turns[name])
                into.add(name, (clock() - begin) / turns[name])
            finally:
                gc.enable()


@dataclass
class Row:
    """One line of the table: what was measured, what is aimed at, whether it is reached."""

    what: str
    figure: str
    median: str = ""
    target: str = ""
    verdict: str = ""


def at_most(what: str, ratio: tuple[float, float], limit: float) -> Row:
    best, median = ratio
    return Row(
        what,
        f"{best:.2f} x",
        f"{median:.2f} x",
        f"<= {limit:g} x",
        "ok" if best <= limit else "MISSED",
    )


def at_least(what: str, ratio: tuple[float, float], limit: float) -> Row:
    best, median = ratio
    return Row(
        what,
        f"{best:.1f} x",
        f"{median:.1f} x",
        f">= {limit:g} x",
        "ok" if best >= limit else "MISSED",
    )


def bounded(what: str, value: float, limit: float, unit: str) -> Row:
    verdict = "ok" if value <= limit else "MISSED"
    return Row(what, f"{value:,.4g} {unit}", "", f"<= {limit:g} {unit}", verdict)


def verdict(what: str, figure: str, target: str, reached: bool) -> Row:
    return Row(what, figure, "", target, "ok" if reached else "MISSED")


def show(title: str, rows: list[Row]) -> None:
    """Print a table."""
    lines = [("", "measured", "median", "target", "")] + [
        (row.what, row.figure, row.median, row.target, row.verdict) for row in rows
    ]
    print(f"\n{title}\n{'-' * len(title)}")
    print(aligned(lines))


def aligned(lines: Sequence[Sequence[str]]) -> str:
    """Return lines of cells as text, the first column to the left and the others to the right."""
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    texts = []
    for line in lines:
        cells = [line[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        texts.append("  ".join(cells).rstrip())
    return "\n".join(texts)
