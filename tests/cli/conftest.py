"""A folder with an app in it, and a way to run `serve` without a server."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import pytest
from click.testing import CliRunner, Result

from sandboxpool.cli import _commands
from sandboxpool.cli._settings import HANDOVER, PREFIX, handed_over


@attrs.define
class Served:
    """What `serve` would have done."""

    result: Result
    app: str = ""
    app_dir: str = ""
    options: dict[str, Any] = attrs.Factory(dict)
    server: dict[str, Any] = attrs.Factory(dict)

    @property
    def errors(self) -> str:
        if isinstance(self.result.exception, SystemExit) or self.result.exception is None:
            return self.result.stderr
        raise self.result.exception


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "shop.py").write_text(
        "async def app(scope, receive, send): ...\n"
        "def create_app():\n"
        "    return app\n"
        "def reset(sandbox): ...\n"
    )
    monkeypatch.chdir(tmp_path)
    for name in list(os.environ):
        if name.startswith(PREFIX):
            monkeypatch.delenv(name)
    path = list(sys.path)
    yield tmp_path
    sys.path[:] = path
    os.environ.pop(HANDOVER, None)


@pytest.fixture
def serve(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Served]:
    asked: dict[str, Any] = {}

    def run_server(server: str, **kwargs: Any) -> None:
        asked.update(kwargs, server=server)

    monkeypatch.setattr(_commands, "run_server", run_server)
    monkeypatch.setattr(_commands, "check_worker", lambda: 0)

    def run(*arguments: str, **environment: str) -> Served:
        asked.clear()
        os.environ.pop(HANDOVER, None)
        result = CliRunner().invoke(_commands.commands, ["serve", *arguments], env=environment)
        served = Served(result, server=dict(asked))
        if asked:
            served.app, served.app_dir, served.options = handed_over()
        return served

    return run
