"""How the demo shows what it does: bars and tables on a terminal, plain lines elsewhere."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from time import monotonic
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table
from typing_extensions import Self

_REFRESH = 0.1


def is_terminal(console: Console) -> bool:
    """Tell whether bars and frames can be shown."""
    return console.is_terminal and not console.is_dumb_terminal


class Bar:
    """A bar on a terminal; elsewhere a line at the beginning and one at the end.

    Args:
        console: Where to show it.
        label: What is going on.
        seconds: How long it will take, about.
        told: Says how far it is.
    """

    def __init__(
        self, console: Console, label: str, seconds: float, told: Callable[[], str]
    ) -> None:
        self._console = console
        self._label = label
        self._told = told
        self._began = monotonic()
        self._bar: Progress | None = None
        self._task: Any = None
        self._ticking: asyncio.Task[None] | None = None
        if is_terminal(console):
            self._bar = Progress(
                TextColumn("{task.description:<22}"),
                BarColumn(),
                TextColumn("{task.fields[told]}"),
                TimeRemainingColumn(),
                console=console,
            )
            self._task = self._bar.add_task(label, total=seconds, told="")

    async def __aenter__(self) -> Self:
        if self._bar is None:
            self._console.print(f"{self._label}: asking ...")
        else:
            self._bar.start()
            self._ticking = asyncio.create_task(self._tick())
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        if self._ticking is not None:
            self._ticking.cancel()
        if self._bar is not None:
            self._update()
            self._bar.stop()
        elif exc is None:
            self._console.print(f"{self._label}: {self._told()}")

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(_REFRESH)
            self._update()

    def _update(self) -> None:
        if self._bar is not None:
            self._bar.update(self._task, completed=monotonic() - self._began, told=self._told())


def show_table(
    console: Console, heads: Sequence[str], rows: Sequence[Sequence[str]], striking: str
) -> None:
    """Show what came out, the first column to the left and the others to the right.

    Args:
        console: Where to.
        heads: What the columns are.
        rows: Their cells, a name first.
        striking: The name of the row that matters most.
    """
    if not is_terminal(console):
        for row in (heads, *rows):
            console.print(f"{row[0]:<30}" + "".join(f"{cell:>13}" for cell in row[1:]))
        return
    table = Table(*heads)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        name, before, *after = row
        if name == striking:
            cells = [name, f"[red]{before}[/]", *(f"[green]{cell}[/]" for cell in after)]
            table.add_row(*cells, style="bold")
        else:
            table.add_row(*row)
    console.print(table)
