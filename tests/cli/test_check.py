"""What `sandboxpool check` prints, how it ends, and what pyproject.toml tells it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from rich.console import Console

from sandboxpool.check._report import Report
from sandboxpool.check._rules import RULES
from sandboxpool.check._static import read_app
from sandboxpool.cli._check_display import show_rule, show_summary
from sandboxpool.cli._commands import commands
from tests.check.planted import HEAD, PLANTED, write

LEAKY = """
from fastapi import FastAPI, Request
app = FastAPI()
CART = []
@app.get("/")
async def me(request: Request, user: str):
    CART.append(user)
    request.app.state.user = user
"""


@pytest.fixture
def leaky(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "shop.py").write_text(LEAKY)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def check(*arguments: str) -> Result:
    return CliRunner().invoke(commands, ["check", *arguments], env={"COLUMNS": "80"})


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "sandboxpool", "check", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_findings_end_with_one(leaky: Path) -> None:
    """A finding is a line with its place, its code, what happens, and 1 at the end."""
    done = run(leaky, "shop:app")
    assert done.returncode == 1
    assert done.stderr == ""
    assert done.stdout.splitlines()[:3] == [
        "shop.py:7:5  SP101 mutable-global",
        "    CART.append(user)",
        "    me() calls append() of shop.CART: the module holds it for all requests.",
    ]
    assert "shop.py:8:5  SP105 app-state" in done.stdout
    assert "2 findings in 1 file of shop:app (1 module read, 1 function run in requests)." in (
        done.stdout
    )
    assert 'isolation="clone"   makes 1 private\n' in done.stdout
    assert 'isolation="module"  makes 2 private, all of them\n' in done.stdout


def test_a_clean_app_ends_with_none(leaky: Path) -> None:
    """An app without findings says so, and ends with 0."""
    (leaky / "shop.py").write_text("app = 1\n")
    done = run(leaky, "shop:app")
    assert done.returncode == 0
    assert done.stdout.startswith("No shared state found in shop:app (1 module read,")


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "name the app to check, like `sandboxpool check shop.main:app`"),
        (["shop"], 'must be in the form "<module>:<attribute>"'),
        (["shap:app"], "the module 'shap' does not exist"),
        (["shop:ap"], "has no attribute 'ap'. It has: CART, FastAPI, Request, app"),
        (["broken:app"], "broken.py:1: invalid syntax"),
        (["shop:app", "--select", "SP109x"], "there is no rule 'SP109x'. Did you mean 'SP109'"),
        (["shop:app", "--select", "SP101", "--ignore", "SP101"], "no rule is left"),
        (["shop:app", "--explain", "global-wirte"], "Did you mean 'global-write'"),
        (["shop:app", "--formt", "json"], "No such option '--formt'"),
        (["shop:app", "--format", "xml"], "'xml' is not one of"),
        (["shop:app", "--baseline", "none.json"], "there is no baseline none.json"),
        (["shop:app", "--output", "none/report"], "the report cannot be written"),
        (["shop:app", "--app-dir", "none"], "'none' does not exist"),
        (["shop:app", "--packages", "shap"], "packages='shap': there is no such module"),
    ],
)
def test_what_cannot_be_checked_ends_with_two(leaky: Path, arguments: list[str], told: str) -> None:
    """A mistake is one line, not a finding: it ends with 2."""
    (leaky / "broken.py").write_text("def")
    done = run(leaky, *arguments)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("Error: ")
    assert told in line
    assert done.stdout == ""


def test_formats_and_output(leaky: Path) -> None:
    """Each form goes to the terminal or, with a summary left there, into a file."""
    assert json.loads(check("shop:app", "--format", "json").stdout)["summary"]["findings"] == 2
    assert json.loads(check("shop:app", "--format", "sarif").stdout)["version"] == "2.1.0"
    github = check("shop:app", "--format", "github").stdout
    assert github.startswith("::warning file=shop.py,title=SP101 mutable-global,line=7,col=5::")
    done = check("shop:app", "--format", "json", "--output", "report.json")
    assert done.exit_code == 1
    assert done.stdout.startswith("2 findings")
    assert len(json.loads((leaky / "report.json").read_text())["findings"]) == 2
    check("shop:app", "--output", "report.txt")
    assert "shop.py:7:5  SP101 mutable-global" in (leaky / "report.txt").read_text()


def test_rules_are_selected(leaky: Path) -> None:
    """Rules are chosen by id, by name, by the beginning of ids, and left out in the same way."""
    for arguments, rules in [
        (["--select", "SP105"], {"SP105"}),
        (["--select", "app-state,mutable-global"], {"SP101", "SP105"}),
        (["--select", "sp1"], {"SP101", "SP105"}),
        (["--ignore", "app-state"], {"SP101"}),
    ]:
        told = json.loads(check("shop:app", "--format", "json", *arguments).stdout)
        assert {one["rule"] for one in told["findings"]} == rules


def test_the_baseline(leaky: Path) -> None:
    """What is known is not reported when lines move; new things are, and repaired ones told."""
    done = check("shop:app", "--write-baseline")
    assert done.exit_code == 0
    assert "2 findings are known now, in sandboxpool-baseline.json. Give --baseline" in done.stderr
    given = ("shop:app", "--baseline", "sandboxpool-baseline.json")
    (leaky / "shop.py").write_text("\n\n" + LEAKY)
    done = check(*given)
    assert done.exit_code == 0
    assert done.stdout.startswith("No shared state found, and 2 known in shop:app")
    repaired = LEAKY.replace("request.app.state.user", "request.state.user")
    (leaky / "shop.py").write_text(repaired + "    CART.append(2)\n")
    done = check(*given)
    assert done.exit_code == 1
    assert "Gone from the code, so take out of the baseline (1):\n  SP105 app.state.user in" in (
        done.stdout
    )
    assert "1 finding, and 1 known in 1 file" in done.stdout
    check(*given, "--write-baseline")
    assert check(*given).exit_code == 0


def test_the_project_file(leaky: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Options come from the table of pyproject.toml, its files from its folder, also below it."""
    (leaky / "pyproject.toml").write_text(
        '[tool.sandboxpool]\napp = "shop:app"\nmax-size = 5\n'
        '[tool.sandboxpool.check]\nignore = ["SP105"]\napp-dir = "."\nformat = "json"\n'
        'exclude = "legacy, old"\nbaseline = "known.json"\n'
    )
    below = leaky / "below"
    below.mkdir()
    monkeypatch.chdir(below)
    assert check("--write-baseline").exit_code == 0
    known = json.loads((leaky / "known.json").read_text())
    assert [one["rule"] for one in known["findings"]] == ["SP101"]
    told = json.loads(check().stdout)
    assert (told["app"], told["summary"]["known"]) == ("shop:app", 1)
    # The command line wins.
    told = json.loads(check("--ignore", "SP101").stdout)
    assert [one["rule"] for one in told["findings"]] == ["SP105"]


@pytest.mark.parametrize(
    ("table", "told"),
    [
        ("[tool.sandboxpool.check]\nselekt = []", "[tool.sandboxpool.check] has 'selekt', which"),
        ("[tool.sandboxpool.check]\nselekt = []", "Did you mean 'select'?"),
        ("[tool.sandboxpool.check]\nselect = 3", "3 are no names"),
        ("[tool.sandboxpool.check]\nselect = ['SP999']", "there is no rule 'SP999'"),
        ("[tool.sandboxpool.check]\nexplain = 'SP101'", "has 'explain', which is no option"),
        ("[tool.sandboxpool]\ncheck = 1", "tool.sandboxpool.check is 1, but should be a table"),
    ],
)
def test_mistakes_in_the_project_file(leaky: Path, table: str, told: str) -> None:
    """A name or value in the table that cannot be is refused, with the name that was meant."""
    (leaky / "pyproject.toml").write_text(table)
    done = run(leaky, "shop:app")
    assert done.returncode == 2
    assert told in done.stderr


def test_serve_leaves_the_table_alone(leaky: Path) -> None:
    """`serve` does not read the table of `check`, and still refuses what it does not know."""
    (leaky / "pyproject.toml").write_text("[tool.sandboxpool.check]\nselekt = []\n")
    done = CliRunner().invoke(commands, ["serve"])
    assert "name the app to serve" in done.stderr
    for name in ("chek", "check-x"):
        (leaky / "pyproject.toml").write_text(f"[tool.sandboxpool.{name}]\nselect = []\n")
        done = CliRunner().invoke(commands, ["serve"])
        assert f"has '{name}', which is no option. Did you mean 'check'" in done.stderr


def test_the_summary_fits_the_screen(tmp_path: Path) -> None:
    """With every rule broken and much that is gone or unreadable, it has 24 lines of 80 columns."""
    findings = []
    for number, text in enumerate(PLANTED.values()):
        write(tmp_path / str(number), text)
        findings += read_app("shop.main:app", app_dir=tmp_path / str(number)).findings
    console = Console(
        width=80, height=24, force_terminal=True, record=True, highlight=False, markup=False
    )
    report = Report(app="shop.main:app", findings=findings, notes=["x.py:1: bad"] * 3)
    with console.capture() as captured:
        show_summary(console, report)
    shown = captured.get()
    assert len({finding.rule for finding in findings}) == 12
    assert len(shown.splitlines()) <= 24
    assert "\x1b[1;31mSP102" in shown  # errors are red


def test_colour_is_for_terminals(leaky: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a terminal there is no colour and no progress, and lines are not broken."""
    long = "x" * 100
    (leaky / "shop.py").write_text(LEAKY.replace("CART", f"CART_{long}"))
    done = run(leaky, "shop:app")
    assert "\x1b" not in done.stdout + done.stderr
    assert f"    CART_{long}.append(user)" in done.stdout.splitlines()
    monkeypatch.setenv("NO_COLOR", "1")
    console = Console(force_terminal=True, highlight=False, markup=False)
    with console.capture() as captured:
        show_summary(console, Report(app="shop:app", findings=[]))
    assert "\x1b[1m" in captured.get() or "\x1b" not in captured.get()
    assert "32m" not in captured.get()


def test_rules_are_explained() -> None:
    """`--explain` shows an example, the danger and the remedy; `all` has a line for each rule."""
    done = check("--explain", "global-write")
    assert done.exit_code == 0
    for told in ("SP102 global-write (error)", "global current_user", "Instead:", "ContextVar"):
        assert told in done.stdout
    assert len(check("--explain", "all").stdout.splitlines()) >= 12


def test_each_example_breaks_its_rule(tmp_path: Path) -> None:
    """What `--explain` shows as an example of a rule is found by that rule."""
    users = {
        "SP103": "\n@app.get('/')\nasync def me(item): Cart().add(item)",
        "SP104": "\n@app.get('/')\nasync def me(item): return add(item)",
        "SP106": "\napp.add_middleware(Tenant)",
        "SP110": "\n@app.get('/')\nasync def me(): return Basket().total()",
        "SP111": "\n@app.get('/')\nasync def me(name): login(name)",
    }
    for name, rule in RULES.items():
        if name < "SP2":
            text = f"{HEAD}\nimport time\napp = FastAPI()\n{rule.example}{users.get(name, '')}\n"
            (tmp_path / "main.py").write_text(text)
            found = read_app("main:app", app_dir=tmp_path).findings
            assert {finding.rule for finding in found} == {name}, text


def test_a_rule_is_shown_whole() -> None:
    """The example of a rule is not reformatted."""
    console = Console(width=100, highlight=False, markup=False)
    with console.capture() as captured:
        show_rule(console, RULES["SP102"])
    assert "    async def me(user: str):\n        global current_user\n" in captured.get()


def test_the_page_is_true(leaky: Path) -> None:
    """The page on checks shows what its commands print, and names each rule and option."""
    page = (Path(__file__).parents[2] / "docs" / "check.md").read_text(encoding="utf-8")
    (app,) = re.findall(r'```python title="shop.py"\n(.*?)```', page, re.DOTALL)
    (leaky / "shop.py").write_text(app)
    shown = [
        part
        for block in re.findall(r"```console\n(.*?)```", page, re.DOTALL)
        for part in re.findall(r"^\$ sandboxpool check (.*?)\n(.*?)(?=^\$|\Z)", block, re.M | re.S)
    ]
    assert len(shown) == 3
    for arguments, told in shown:
        done = run(leaky, *arguments.split())
        assert done.stdout + done.stderr == told
    for name, rule in RULES.items():
        if name < "SP2":
            assert f"| `{name}` | `{rule.name}` | {rule.summary} |" in page
