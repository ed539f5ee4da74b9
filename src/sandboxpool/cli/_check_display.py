"""What `sandboxpool check` shows to people: findings, a summary that fits the screen, rules."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from sandboxpool.check._finding import Finding
from sandboxpool.check._report import Report
from sandboxpool.check._rules import RULES, Rule, private_in

_COLOURS = {"error": "bold red", "warning": "bold yellow", "note": "bold cyan"}
_FEW = 8  # files in the summary, and what is gone: it shall fit a screen of 24 lines


def show_report(console: Console, report: Report) -> None:
    """Show each finding, and below them the summary."""
    for finding in report.findings:
        _show_finding(console, finding)
    show_summary(console, report)


def _show_finding(console: Console, finding: Finding) -> None:
    rule = finding.about
    place = f"{finding.file}:{finding.line}:{finding.column}" if finding.file else finding.path
    console.print(
        Text.assemble((place, "bold"), "  ", (rule.id, _COLOURS[rule.severity]), f" {rule.name}")
    )
    if finding.code:
        _line(console, Text(f"    {finding.code}", style="cyan"))
    _indented(console, f"{finding.message}.")
    if finding.evidence is not None:
        seen = finding.evidence
        _indented(console, f"{seen.request}: {seen.answer!r} instead of {seen.control!r}.")
    if len(finding.way) > 1:
        _indented(console, f"Called by {' > '.join(finding.way[:-1])}.", style="dim")
    console.print()


def _indented(console: Console, text: str, style: str = "") -> None:
    if console.is_terminal:
        console.print(Padding(Text(text, style=style), (0, 0, 0, 4), expand=False))
    else:
        console.print(Text(f"    {text}", style=style), soft_wrap=True)


def _wrapped(console: Console, text: Text) -> None:
    """Print a sentence: broken into lines on a terminal only."""
    console.print(text, soft_wrap=not console.is_terminal)


def _line(console: Console, text: Text) -> None:
    """Print a line as one: cut off on a terminal, whole elsewhere, where others may read it."""
    if console.is_terminal:
        console.print(text, no_wrap=True, overflow="ellipsis")
    else:
        console.print(text, soft_wrap=True)


def show_summary(console: Console, report: Report) -> None:
    """Show what was found by rule, what would make it harmless, and what the baseline has."""
    for note in report.notes[:_FEW]:
        _wrapped(console, Text(f"Not read: {note}", style="yellow"))
    if len(report.notes) > _FEW:
        _wrapped(console, Text(f"Not read: {len(report.notes) - _FEW} more", style="yellow"))
    if report.gone:
        _wrapped(
            console, Text(f"Gone from the code, so take out of the baseline ({len(report.gone)}):")
        )
        for known in report.gone[:3]:
            _wrapped(
                console, Text(f"  {known.rule} {known.path} in {known.function}", style="green")
            )
    read = (
        f"{_count(report.modules, 'module')} read, "
        f"{_count(report.functions, 'function')} run in requests"
    )
    known_too = f", and {len(report.known)} known" if report.known else ""
    if not report.findings:
        _wrapped(
            console,
            Text.assemble(
                ("No shared state found", "bold green"), f"{known_too} in {report.app} ({read})."
            ),
        )
        return
    files = Counter(finding.file for finding in report.findings)
    _wrapped(
        console,
        Text.assemble(
            (_count(len(report.findings), "finding"), "bold red"),
            f"{known_too} in {_count(len(files), 'file')} of {report.app} ({read}).",
        ),
    )
    counts = Counter(finding.rule for finding in report.findings)
    width = max(len(RULES[name].name) for name in counts)
    for name in sorted(counts):
        rule = RULES[name]
        line = Text.assemble(
            "  ",
            (rule.id, _COLOURS[rule.severity]),
            f" {rule.name:<{width}} {counts[name]:>4}  {rule.summary}",
        )
        _line(console, line)
    for remedy in _remedies(report.findings):
        _wrapped(console, Text(remedy))
    first = min(counts)
    _wrapped(console, Text(f"What it means and what to do: sandboxpool check --explain {first}"))


def _remedies(findings: Sequence[Finding]) -> list[str]:
    """Return how many of the findings each isolation makes harmless, the simplest first."""
    lines = []
    so_far = 0
    for isolation in ("clone", "factory", "module"):
        private = sum(isolation in private_in(finding.rule) for finding in findings)
        if private > so_far:
            every = ", all of them" if private == len(findings) else ""
            quoted = f'"{isolation}"'
            lines.append(f"  isolation={quoted:<9} makes {private} private{every}")
            so_far = private
    if lines:
        lines.insert(0, "Without a change in the code, sandboxpool.wrap(app, ...) with")
    return lines


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def show_rule(console: Console, rule: Rule) -> None:
    """Show what a rule finds, an example, why it is dangerous and what to do."""
    console.print(
        Text.assemble(
            (rule.id, _COLOURS[rule.severity]), (f" {rule.name}", "bold"), f" ({rule.severity})"
        )
    )
    console.print(Text(rule.summary))
    console.print()
    for line in rule.example.splitlines():
        console.print(Text(f"    {line}", style="cyan"))
    console.print()
    console.print(Text(rule.danger))
    console.print()
    console.print(Text.assemble(("Instead: ", "bold"), rule.remedy))
    console.print()
    console.print(
        Text(f"Switch it off in a line with:  # sandboxpool: ignore[{rule.id}]", style="dim")
    )


def show_rules(console: Console) -> None:
    """Show a line for each rule."""
    width = max(len(rule.name) for rule in RULES.values())
    for rule in RULES.values():
        line = Text.assemble(
            (rule.id, _COLOURS[rule.severity]), f" {rule.name:<{width}}  {rule.summary}"
        )
        _line(console, line)
