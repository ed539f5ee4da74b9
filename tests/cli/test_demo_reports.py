"""What `sandboxpool demo` makes of what it has counted, and of what the machine allows."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from sandboxpool.cli import _demo_blocking
from sandboxpool.cli._demo import _end
from sandboxpool.cli._demo_blocking import Wave, affordable, report_blocking, show_blocking
from sandboxpool.cli._demo_leak import Outcome, report_leak

resource = pytest.importorskip("resource", reason="limits of a process are those of POSIX")

PLAIN = Wave(100, answers=1, seconds=5)


@pytest.fixture
def no_pids(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A file that does not limit the number of threads, in place of the container's."""
    path = tmp_path / "pids.max"
    path.write_text("max\n")
    monkeypatch.setattr(_demo_blocking, "_PIDS", path)
    return path


@pytest.fixture
def files() -> Iterator[int]:
    """The limit of open files, which is put back."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    yield before[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize(
    ("plain", "wrapped", "well"),
    [
        (Outcome(answers=9, foreign=8), Outcome(answers=9), True),
        (Outcome(answers=9), Outcome(answers=9), False),
        (Outcome(answers=9, foreign=8), Outcome(answers=9, foreign=1), False),
        (Outcome(answers=9, foreign=8), Outcome(answers=9, failed=1), False),
        (Outcome(answers=9, foreign=8), Outcome(), False),
    ],
)
def test_leak(plain: Outcome, wrapped: Outcome, well: bool) -> None:
    """The first part is well only if the app leaked, and wrapped did not and lost nothing."""
    assert report_leak(Console(), plain, wrapped) == well


@pytest.mark.parametrize(
    ("plain", "wrapped", "well"),
    [
        (PLAIN, {"cooperative": Wave(100, answers=100, seconds=5.2)}, True),
        (PLAIN, {"cooperative": Wave(100, answers=99, failed=1, seconds=5.2)}, False),
        (PLAIN, {"cooperative": Wave(100, answers=99, seconds=5.2)}, False),
        (PLAIN, {"cooperative": Wave(100, answers=100, seconds=400)}, False),
        (Wave(100), {"cooperative": Wave(100, answers=100, seconds=5.2)}, False),
        (PLAIN, {}, False),
    ],
)
def test_blocking(plain: Wave, wrapped: dict[str, Wave], well: bool) -> None:
    """The second part is well only if wrapped everybody was answered, and far sooner."""
    assert report_blocking(Console(), plain, wrapped, sleep=5) == well


@pytest.mark.parametrize(
    ("users", "sleep", "told"),
    [(2000, 5.0, "2 h 46 min"), (100, 5.0, "8 min 20 s"), (20, 0.5, "10 s")],
)
def test_the_last_user(
    users: int, sleep: float, told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """It says how long the last user would wait, in units that one can picture."""
    report_blocking(Console(soft_wrap=True), Wave(users, answers=1, seconds=sleep), {}, sleep)
    assert f"the last of {users} users would wait for {told}." in capsys.readouterr().out


@pytest.mark.parametrize("well", [True, False])
def test_end(well: bool, capsys: pytest.CaptureFixture[str]) -> None:
    """It ends with 0 and says how to go on only if all was well."""
    assert _end(Console(), well) == (0 if well else 1)
    told = capsys.readouterr().out
    assert ("How to go on" in told) == well
    assert ("please report it" in told) != well


def test_more_files(files: int, no_pids: Path) -> None:
    """The limit of open files is raised for as many users as are wanted."""
    resource.setrlimit(resource.RLIMIT_NOFILE, (256, files))
    assert affordable(300) == 300
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] >= 300


@pytest.mark.parametrize(("allowed", "users"), [("1000\n", 800), ("100\n", 2), ("max\n", 900)])
def test_fewer_threads(files: int, no_pids: Path, allowed: str, users: int) -> None:
    """Where a container may have few threads there are fewer users, two at least."""
    no_pids.write_text(allowed)
    assert affordable(900) == users


def test_without_greenlet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without greenlet that part is left out, and what installs it is said."""
    asked = []

    async def wave(
        console: Console, app: str, label: str, users: int, *_: object, **__: object
    ) -> Wave:
        asked.append(app)
        return PLAIN if app == "blocking:app" else Wave(users, answers=users, seconds=5.2)

    monkeypatch.setattr(_demo_blocking, "find_spec", lambda name: None)
    monkeypatch.setattr(_demo_blocking, "_wave", wave)
    assert asyncio.run(show_blocking(Console(soft_wrap=True), users=10, sleep=0.2))
    assert asked == ["blocking:app", "blocking_wrapped:thread"]
    assert "pip install sandboxpool[hooks]" in capsys.readouterr().out
