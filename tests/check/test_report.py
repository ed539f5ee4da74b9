"""What reports and baselines hold: JSON, SARIF, GitHub's annotations, known findings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import attrs
import pytest

import sandboxpool
from sandboxpool import OptionError
from sandboxpool.check._baseline import compare, read_baseline, save_baseline
from sandboxpool.check._finding import Evidence, Finding
from sandboxpool.check._report import Report, as_github, as_json, as_sarif
from sandboxpool.check._rules import RULES, find_rule, private_in, rule_names

FOUND = Finding(
    rule="SP102",
    path="shop.state.user",
    message="login() sets the global shop.state.user: 100% shared,\nreally",
    file="shop/my state, no: 1.py",
    line=7,
    column=5,
    function="shop.state.login",
    way=("shop.main.me", "shop.state.login"),
    code='user = "ä"',
)
OUTSIDE = attrs.evolve(FOUND, rule="SP101", file="/srv/shop/main.py", way=())
DRIVEN = Finding(
    rule="SP201",
    path="GET /me",
    message="GET /me answers with another user",
    evidence=Evidence(request="GET /me?user=ann", control="ann", answer="bob"),
)
REPORT = Report(
    app="shop.main:app",
    findings=[FOUND, OUTSIDE, DRIVEN],
    known=[attrs.evolve(FOUND, code="user = 1")],
    modules=3,
    functions=4,
    notes=["shop/old.py:1: invalid syntax"],
)

# What SARIF 2.1.0 asks for and allows, of the objects that are used here (sections 3.13 to 3.59).
SARIF: dict[str, tuple[set[str], set[str]]] = {
    "": ({"version", "runs"}, {"$schema"}),
    "runs": ({"tool"}, {"columnKind", "invocations", "results"}),
    "tool": ({"driver"}, set()),
    "driver": ({"name"}, {"semanticVersion", "rules"}),
    "rules": (
        {"id"},
        {"name", "shortDescription", "fullDescription", "help", "defaultConfiguration"},
    ),
    "shortDescription": ({"text"}, set()),
    "fullDescription": ({"text"}, set()),
    "help": ({"text"}, {"markdown"}),
    "defaultConfiguration": (set(), {"level"}),
    "invocations": ({"executionSuccessful"}, {"toolExecutionNotifications"}),
    "toolExecutionNotifications": ({"message"}, {"level"}),
    "results": (
        {"message"},
        {"ruleId", "ruleIndex", "level", "partialFingerprints", "baselineState", "locations"},
    ),
    "message": ({"text"}, set()),
    "locations": (set(), {"physicalLocation", "logicalLocations"}),
    "physicalLocation": ({"artifactLocation"}, {"region"}),
    "artifactLocation": ({"uri"}, set()),
    "region": ({"startLine"}, {"startColumn", "snippet"}),
    "snippet": ({"text"}, set()),
    "logicalLocations": ({"fullyQualifiedName"}, {"kind"}),
}


def check_sarif(value: Any, name: str = "") -> None:
    if isinstance(value, list):
        for one in value:
            check_sarif(one, name)
    elif isinstance(value, dict) and name != "partialFingerprints":
        required, allowed = SARIF[name]
        assert required <= value.keys() <= required | allowed, name
        for key, inner in value.items():
            check_sarif(inner, key)
    elif isinstance(value, dict):
        assert all(isinstance(one, str) for one in value.values())


def test_sarif_is_as_the_standard_has_it() -> None:
    """Each object has the properties that SARIF 2.1.0 asks for, and none that it does not know."""
    log = json.loads(as_sarif(REPORT))
    check_sarif(log)
    assert log["version"] == "2.1.0"
    (run,) = log["runs"]
    rules = run["tool"]["driver"]["rules"]
    assert [rule["id"] for rule in rules] == ["SP101", "SP102", "SP201"]
    assert {rule["defaultConfiguration"]["level"] for rule in rules} <= {"error", "warning", "note"}
    for result in run["results"]:
        assert rules[result["ruleIndex"]]["id"] == result["ruleId"]
        assert result["level"] in ("error", "warning", "note")
        assert result["message"]["text"].endswith(".")
    assert [one["baselineState"] for one in run["results"]] == ["new", "new", "new", "unchanged"]
    first, outside, driven, _ = run["results"]
    place = first["locations"][0]["physicalLocation"]
    assert place["artifactLocation"]["uri"] == "shop/my%20state%2C%20no%3A%201.py"
    assert place["region"] == {"startLine": 7, "startColumn": 5, "snippet": {"text": 'user = "ä"'}}
    uri = outside["locations"][0]["physicalLocation"]["artifactLocation"]["uri"]
    assert uri == "file:///srv/shop/main.py"
    assert "locations" not in driven
    assert "GET /me?user=ann answered 'bob' instead of 'ann'" in driven["message"]["text"]
    (notes,) = (one["toolExecutionNotifications"] for one in run["invocations"])
    assert notes[0]["message"]["text"] == "shop/old.py:1: invalid syntax"


def test_a_report_without_findings_is_valid_sarif() -> None:
    """A clean app has a run with an empty list of results, which is not the same as none."""
    log = json.loads(as_sarif(Report(app="shop.main:app", findings=[])))
    check_sarif(log)
    assert log["runs"][0]["results"] == []


def test_json_has_a_version_and_all_that_a_finding_has() -> None:
    """JSON names its version, counts, and for each finding what SARIF has and the fingerprint."""
    told = json.loads(as_json(REPORT))
    assert told["version"] == 1
    assert told["tool"] == {"name": "sandboxpool", "version": sandboxpool.__version__}
    assert told["summary"] == {
        "findings": 3, "known": 1, "gone": 0, "modules": 3, "functions": 4,
    }  # fmt: skip
    first = told["findings"][0]
    assert first["rule"] == "SP102"
    assert first["name"] == "global-write"
    assert first["severity"] == "error"
    assert first["way"] == ["shop.main.me", "shop.state.login"]
    assert first["fingerprint"] == FOUND.fingerprint
    assert told["findings"][2]["evidence"]["answer"] == "bob"


def test_github_commands_are_escaped() -> None:
    """Line ends, percent signs, and in properties colons and commas, cannot end a command early."""
    first, outside, driven, note = as_github(REPORT).splitlines()
    assert first == (
        "::error file=shop/my state%2C no%3A 1.py,title=SP102 global-write,line=7,col=5::"
        "login() sets the global shop.state.user: 100%25 shared,%0Areally. "
        "A request gets there by shop.main.me > shop.state.login."
    )
    assert outside.startswith("::warning file=/srv/shop/main.py,title=SP101 mutable-global,")
    assert driven.startswith("::error title=SP201 answer-differs::")
    assert note == "::warning title=sandboxpool check::shop/old.py:1: invalid syntax"


def test_a_fingerprint_does_not_depend_on_the_place() -> None:
    """A finding is the same one when its line, file name or indentation changes, and only then."""
    moved = attrs.evolve(FOUND, line=70, column=9, file="elsewhere.py", code='user  =  "ä"')
    assert moved.fingerprint == FOUND.fingerprint
    others = (
        attrs.evolve(FOUND, rule="SP101"),
        attrs.evolve(FOUND, path="x"),
        attrs.evolve(FOUND, function="x"),
        attrs.evolve(FOUND, code="user = 2"),
    )
    assert len({one.fingerprint for one in (FOUND, *others)}) == 5


def test_a_baseline_comes_back_as_it_was_written(tmp_path: Path) -> None:
    """What is written is read again; then nothing is new, and what is repaired is gone."""
    path = tmp_path / "known.json"
    save_baseline(path, [FOUND, OUTSIDE])
    baseline = read_baseline(path)
    moved = attrs.evolve(FOUND, line=99)
    assert compare([moved], baseline, RULES)[:2] == ([], [moved])
    (gone,) = compare([moved], baseline, RULES)[2]
    assert (gone.rule, gone.path, gone.function) == ("SP101", OUTSIDE.path, OUTSIDE.function)
    assert compare([moved], baseline, {"SP102"})[2] == []  # SP101 was not looked for
    assert compare([FOUND, FOUND], baseline, RULES)[0] == [FOUND]  # known once, there twice


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (None, "there is no baseline .*: write it with --write-baseline"),
        ("nothing", "is no baseline of sandboxpool check"),
        ("[]", "is no baseline of sandboxpool check"),
        ("[" * 100_000, "is no baseline of sandboxpool check.* Write it anew"),
        ('{"version": 1, "findings": [{}]}', "is no baseline of sandboxpool check"),
        ('{"version": 2, "findings": []}', "is a baseline of version 2, but this is version 1"),
    ],
)
def test_what_is_no_baseline_is_refused(text: str | None, told: str, tmp_path: Path) -> None:
    """A file that is missing, broken or of another version is named, with what to do."""
    path = tmp_path / "known.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(OptionError, match=told):
        read_baseline(path)


def test_a_baseline_that_cannot_be_written(tmp_path: Path) -> None:
    """A baseline in a folder that does not exist is an error of one line."""
    with pytest.raises(OptionError, match="cannot be written"):
        save_baseline(tmp_path / "none" / "known.json", [FOUND])


def test_rules_are_told_apart() -> None:
    """Each rule has an id and a name of its own, and everything that `--explain` shows."""
    assert len(set(rule_names())) == 2 * len(RULES)
    for name, rule in RULES.items():
        assert find_rule(name.lower()) is find_rule(rule.name) is rule
        assert all((rule.summary, rule.example, rule.danger, rule.remedy))
    assert private_in("SP106") == ("clone", "factory", "module")
    assert private_in("SP112") == ()
