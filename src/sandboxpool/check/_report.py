"""What a check has found, and its forms for other programs: JSON, SARIF, GitHub's annotations."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal
from urllib.parse import quote

import attrs

from sandboxpool import __version__

from ._baseline import Known
from ._finding import Finding
from ._rules import RULES, Rule, Severity

JSON_VERSION = 1
"""The version of the JSON form: it grows when a name in it changes or goes."""

_SARIF_SCHEMA = (
    "https://docs.oasis-open.org/sarif/sarif/v2.1.0/errata01/os/schemas/sarif-schema-2.1.0.json"
)
_LEVELS: dict[Severity, str] = {"error": "error", "warning": "warning", "note": "note"}
_COMMANDS: dict[Severity, str] = {"error": "error", "warning": "warning", "note": "notice"}

Format = Literal["text", "json", "sarif", "github"]


@attrs.frozen(kw_only=True)
class Report:
    """What a check has found.

    Attributes:
        app: The app's import string.
        findings: Those that are not in the baseline.
        known: Those that are.
        gone: What the baseline has and the app has no longer.
        modules: How many modules were read.
        functions: How many functions in them run while requests are served.
        notes: What could not be looked at, and why.
    """

    app: str
    findings: Sequence[Finding]
    known: Sequence[Finding] = ()
    gone: Sequence[Known] = ()
    modules: int = 0
    functions: int = 0
    notes: Sequence[str] = ()


def as_json(report: Report) -> str:
    """Return a report as JSON, in the order of its findings."""
    content = {
        "version": JSON_VERSION,
        "tool": {"name": "sandboxpool", "version": __version__},
        "app": report.app,
        "summary": {
            "findings": len(report.findings),
            "known": len(report.known),
            "gone": len(report.gone),
            "modules": report.modules,
            "functions": report.functions,
        },
        "findings": [_as_dict(finding) for finding in report.findings],
        "known": [finding.fingerprint for finding in report.known],
        "gone": [attrs.asdict(known) for known in report.gone],
        "notes": list(report.notes),
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def _as_dict(finding: Finding) -> dict[str, Any]:
    return {
        **attrs.asdict(finding),
        "name": finding.about.name,
        "severity": finding.about.severity,
        "fingerprint": finding.fingerprint,
    }


# --- SARIF ----------------------------------------------------------------------------------


def as_sarif(report: Report) -> str:
    """Return a report as a log of SARIF 2.1.0 with one run.

    Known findings are in it, as `unchanged`; consoles show what is `new`.
    The format is OASIS's "Static Analysis Results Interchange Format", version 2.1.0.
    """
    rules = sorted({one.rule for one in (*report.findings, *report.known)})
    results = [
        _result(finding, rules, state)
        for state, findings in (("new", report.findings), ("unchanged", report.known))
        for finding in findings
    ]
    notes = [
        {"level": "warning", "message": {"text": note}}  # sections 3.58.2 and 3.58.6
        for note in report.notes
    ]
    run = {
        "tool": {
            "driver": {
                "name": "sandboxpool",
                "semanticVersion": __version__,
                "rules": [_rule(RULES[name]) for name in rules],
            }
        },
        "columnKind": "unicodeCodePoints",
        "invocations": [{"executionSuccessful": True, "toolExecutionNotifications": notes}],
        "results": results,
    }
    log = {"$schema": _SARIF_SCHEMA, "version": "2.1.0", "runs": [run]}
    return json.dumps(log, indent=2, ensure_ascii=False) + "\n"


def _rule(rule: Rule) -> dict[str, Any]:
    return {
        "id": rule.id,
        "name": "".join(part.capitalize() for part in rule.name.split("-")),
        "shortDescription": {"text": rule.summary},
        "fullDescription": {"text": rule.danger},
        "help": {
            "text": f"{rule.danger}\n\n{rule.remedy}",
            "markdown": f"{rule.danger}\n\n```python\n{rule.example}\n```\n\n{rule.remedy}",
        },
        "defaultConfiguration": {"level": _LEVELS[rule.severity]},
    }


def _result(finding: Finding, rules: list[str], state: str) -> dict[str, Any]:
    result: dict[str, Any] = {
        "ruleId": finding.rule,
        "ruleIndex": rules.index(finding.rule),
        "level": _LEVELS[finding.about.severity],
        "message": {"text": _sentence(finding)},
        "partialFingerprints": {"sandboxpool/v1": finding.fingerprint},
        "baselineState": state,
    }
    location: dict[str, Any] = {}
    if finding.file:
        physical: dict[str, Any] = {"artifactLocation": {"uri": _uri(finding.file)}}
        if finding.line:
            region: dict[str, Any] = {"startLine": finding.line}
            if finding.column:
                region["startColumn"] = finding.column
            if finding.code:
                region["snippet"] = {"text": finding.code}
            physical["region"] = region
        location["physicalLocation"] = physical
    if finding.function:
        logical = {"fullyQualifiedName": finding.function, "kind": "function"}
        location["logicalLocations"] = [logical]
    if location:
        result["locations"] = [location]
    return result


def _uri(file: str) -> str:
    path = Path(file)
    return path.as_uri() if path.is_absolute() else quote(file)


# --- GitHub ---------------------------------------------------------------------------------


def as_github(report: Report) -> str:
    """Return a report as workflow commands, with which GitHub annotates the lines of a change."""
    return "".join(f"{line}\n" for line in _commands(report))


def _commands(report: Report) -> Iterator[str]:
    for finding in report.findings:
        properties = {"title": f"{finding.rule} {finding.about.name}"}
        if finding.file:
            properties = {"file": finding.file, **properties}
        if finding.line:
            properties.update(line=str(finding.line))
        if finding.column:
            properties.update(col=str(finding.column))
        given = ",".join(f"{name}={_property(value)}" for name, value in properties.items())
        yield f"::{_COMMANDS[finding.about.severity]} {given}::{_data(_sentence(finding))}"
    for note in report.notes:
        yield f"::warning title=sandboxpool check::{_data(note)}"


def _data(text: str) -> str:
    """Escape a message as the runner does: `%` first, for it begins the others."""
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _sentence(finding: Finding) -> str:
    parts = [f"{finding.message}."]
    if finding.evidence is not None:
        seen = finding.evidence
        parts.append(f"{seen.request} answered {seen.answer!r} instead of {seen.control!r}.")
    if len(finding.way) > 1:
        parts.append(f"A request gets there by {' > '.join(finding.way)}.")
    return " ".join(parts)
