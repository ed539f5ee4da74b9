"""What `benchmarks.blocking` found, as tables for the terminal and for a page."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import TypeAlias

from . import blocking_contenders as contenders
from .blocking_contenders import Contender
from .blocking_runs import Blocked, HeldUp, Hello, Scale
from .measure import Row, aligned, show, verdict

Line: TypeAlias = tuple[str, ...]

BLOCKED_HEADS = (
    "",
    "requests/s",
    "of awaiting",
    "errors",
    "log",
    "peak MB",
    "kB a request",
    "kB idle",
    "us CPU",
)
_PACKAGES = (
    *("uvicorn", "uvloop", "fastapi", "flask", "greenlet"),
    *("gunicorn", "gevent", "a2wsgi", "granian"),
)


@dataclass
class Results:
    """Everything that was measured; what was left out is not in it."""

    scale: Scale
    blocked: dict[str, Blocked] = field(default_factory=dict)
    many: dict[str, Blocked] = field(default_factory=dict)
    hello: dict[str, Hello] = field(default_factory=dict)
    held_up: dict[str, HeldUp] = field(default_factory=dict)
    failed: list[str] = field(default_factory=list)


def versions() -> str:
    """Return what was measured, as a line."""
    found = [f"{platform.python_implementation()} {platform.python_version()}"]
    for package in _PACKAGES:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            found.append(f"{package} missing")
    return ", ".join(found)


def blocked_line(contender: Contender, found: Blocked, yardstick: Blocked | None) -> Line:
    """Return a contender's line of the table."""
    complaints = len(found.complaints) + found.stalls
    return (
        contender.label,
        rate(found.load.rate),
        "" if yardstick is None else f"{found.load.rate / yardstick.load.rate:.3f}",
        f"{found.load.failed}",
        f"{complaints}" if complaints else "-",
        f"{found.peak / 1e6:.0f}",
        f"{found.memory / 1e3:.0f}",
        f"{found.idle_memory / 1e3:.0f}" if contender.ours else "",
        f"{found.load.cpu * 1e6:,.0f}",
    )


def rate(each: float) -> str:
    """Return requests in a second, such that those of 0.2 and of 4000 can be read."""
    return f"{each:.2f}" if each < 10 else f"{each:,.0f}"


def of(found: dict[str, Blocked], group: Iterable[Contender]) -> list[tuple[Contender, Blocked]]:
    """Return those of a group that were measured."""
    return [(each, found[each.name]) for each in group if each.name in found]


def _blocked_lines(found: dict[str, Blocked], group: Iterable[Contender]) -> list[Line]:
    yardstick = found.get(contenders.AWAIT.name)
    return [blocked_line(contender, each, yardstick) for contender, each in of(found, group)]


def _hello_lines(results: Results) -> list[Line]:
    plain = results.hello.get("as it is")
    if plain is None:
        return []
    return [
        (
            name,
            f"{each.rate:,.0f}",
            f"{each.ratio(plain):.3f}",
            f"{each.errors}",
            f"{each.cpu * 1e6:.0f}",
        )
        for name, each in results.hello.items()
    ]


HELLO_HEADS = ("", "requests/s", "of as it is", "errors", "us CPU")


def _held_up_lines(results: Results) -> list[Line]:
    return [
        (
            name,
            f"{each.seconds:.2f}",
            *(
                f"{seconds * 1e3:,.0f}"
                for longest in (each.start, each.blocked)
                for seconds in (longest.callback, longest.collection, longest.pause)
            ),
        )
        for name, each in results.held_up.items()
    ]


HELD_UP_HEADS = (
    "",
    "start, s",
    "callback, ms",
    "gc, ms",
    "pause, ms",
    "then: callback, ms",
    "gc, ms",
    "pause, ms",
)


def _tables(results: Results) -> list[tuple[str, Line, list[Line]]]:
    scale = results.scale
    group = (*contenders.PLAIN, *contenders.OURS, *contenders.RIVALS)
    found = [
        (
            f"{scale.at_once} connections, requests that block for {scale.sleep:g} s",
            BLOCKED_HEADS,
            _blocked_lines(results.blocked, group),
        ),
        (
            f"{scale.many} connections, requests that block for {scale.many_sleep:g} s",
            BLOCKED_HEADS,
            _blocked_lines(results.many, contenders.MANY),
        ),
        (
            f"A hello world, 32 connections, {scale.rounds} rounds of {scale.round_seconds:g} s",
            HELLO_HEADS,
            _hello_lines(results),
        ),
        (
            f"{scale.at_once} sandboxes: the start, and how long the server's loop was held up",
            HELD_UP_HEADS,
            _held_up_lines(results),
        ),
    ]
    return [table for table in found if table[2]]


def show_results(results: Results) -> bool:
    """Print all tables and the verdicts; return whether all targets were reached."""
    for title, heads, lines in _tables(results):
        print(f"\n{title}\n{'-' * len(title)}")
        print(aligned([heads, *lines]))
    for name, held in results.held_up.items():
        print(f"{name}: the longest callback at start was {held.start.blocker}")
        print(f"{name}: the longest callback then was {held.blocked.blocker}")
    rows = list(_verdicts(results))
    if rows:
        show("Targets", rows)
    for line in results.failed:
        print(f"  {line}")
    return not results.failed and all(row.verdict != "MISSED" for row in rows)


def _verdicts(results: Results) -> Iterable[Row]:
    found = results.blocked
    yardstick, gevent = found.get(contenders.AWAIT.name), found.get(contenders.GEVENT.name)
    rivals = of(found, contenders.RIVALS)
    for contender, each in of(found, contenders.OURS):
        if yardstick is not None:
            ratio = each.load.rate / yardstick.load.rate
            label = f"{contender.name}: rate / that of awaiting"
            yield verdict(label, f"{ratio:.3f} x", ">= 0.97 x", ratio >= 0.97)
        if gevent is not None:
            # Whole rounds make equal counts, of which wrk's clock makes rates that differ by 0.1 %.
            ratio = round(each.load.rate / gevent.load.rate, 2)
            yield verdict(
                f"{contender.name}: rate / gevent's", f"{ratio:.2f} x", ">= 1 x", ratio >= 1
            )
        if rivals:
            best = max(rivals, key=lambda pair: pair[1].load.rate)
            ratio = each.load.rate / best[1].load.rate
            yield Row(
                f"{contender.name}: rate / the best other's ({best[0].name})", f"{ratio:.2f} x"
            )
        yield from _no_errors(contender.name, each)
        if contender.name.startswith("thread"):
            yield _memory(contender.name, each, 60)
        elif contender.name == "cooperative":
            yield _memory(contender.name, each, 40)
    yield from _many_verdicts(results)
    yield from _hello_verdicts(results)
    yield from _held_up_verdicts(results)


def _memory(name: str, found: Blocked, limit: float) -> Row:
    size = found.memory / 1e3
    return verdict(
        f"{name}: memory of a blocked request", f"{size:.1f} kB", f"<= {limit:g} kB", size <= limit
    )


def _no_errors(name: str, found: Blocked) -> Iterable[Row]:
    count = found.load.failed + len(found.complaints)
    yield verdict(f"{name}: errors, and errors in the log", f"{count}", "= 0", count == 0)


def _many_verdicts(results: Results) -> Iterable[Row]:
    pairs = (
        (contenders.COOPERATIVE, contenders.GEVENT, 0.9),
        (contenders.COOPERATIVE_BARE, contenders.GEVENT_BARE, 0.9),
        (contenders.COOPERATIVE, contenders.GEVENT_BARE, None),
    )
    for ours, theirs, target in pairs:
        mine, other = results.many.get(ours.name), results.many.get(theirs.name)
        if mine is None or other is None:
            continue
        ratio = mine.load.rate / other.load.rate
        label = f"{results.scale.many}: {ours.name} / {theirs.name}"
        if target is None:
            yield Row(label, f"{ratio:.3f} x")
        else:
            yield verdict(label, f"{ratio:.3f} x", f">= {target:g} x", ratio >= target)
    for contender, each in of(results.many, contenders.MANY):
        if contender.ours:
            yield from _no_errors(f"{results.scale.many}: {contender.name}", each)


def _hello_verdicts(results: Results) -> Iterable[Row]:
    plain = results.hello.get("as it is")
    targets = (("thread", 0.6), ("cooperative", 0.75))
    for name, target in targets:
        each = results.hello.get(name)
        if plain is None or each is None:
            continue
        ratio = each.ratio(plain)
        label = f"hello world: {name} / as it is"
        yield verdict(label, f"{ratio:.3f} x", f">= {target:g} x", ratio >= target)
        yield Row("  the same by processor time", f"{plain.cpu / each.cpu:.3f} x")
    if results.hello:
        count = sum(each.errors + len(each.complaints) for each in results.hello.values())
        yield verdict("hello world: errors, and errors in the log", f"{count}", "= 0", count == 0)


def _held_up_verdicts(results: Results) -> Iterable[Row]:
    for name, each in results.held_up.items():
        if name == "as it is, awaiting":
            continue
        if name == "thread":
            label = f"start of {results.scale.at_once} sandboxes"
            yield verdict(label, f"{each.seconds:.2f} s", "<= 1.5 s", each.seconds <= 1.5)
        for when, seconds in (("at start", each.start.callback), ("then", each.blocked.callback)):
            yield verdict(
                f"{name}: longest hold of the loop, {when}",
                f"{seconds * 1e3:.0f} ms",
                "<= 50 ms",
                seconds <= 0.05,
            )


def markdown(results: Results) -> str:
    """Return the tables for a page."""
    blocks = [f"{versions()}."]
    for title, heads, lines in _tables(results):
        rules = [":--", *("--:" for _ in heads[1:])]
        blocks.append("\n".join([f"**{title}**", "", *map(_row, [heads, rules, *lines])]))
    return "\n\n".join(blocks) + "\n"


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
