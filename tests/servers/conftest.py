"""Servers that several tests share: started by the first, ended when the next server's turn is."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from .processes import RunningServer, Server


class Fleet:
    """The running servers of one kind, one for each app that was asked for."""

    def __init__(self, server: Server, stack: ExitStack) -> None:
        self.server = server
        self._stack = stack
        self._running: dict[tuple[str, str], RunningServer] = {}

    def __call__(self, app: str, module: str = "shop") -> RunningServer:
        running = self._running.get((module, app))
        if running is None or running.process.poll() is not None:
            running = self._stack.enter_context(self.server.start(app, module=module))
            self._running[module, app] = running
        return running


@pytest.fixture(scope="session")
def fleet(request: pytest.FixtureRequest) -> Iterator[Fleet]:
    with ExitStack() as stack:
        yield Fleet(request.param, stack)


def every(servers: list[Server]) -> pytest.MarkDecorator:
    """Run a test with each of these servers, all tests of one server after the other."""
    return pytest.mark.parametrize(
        "fleet", [pytest.param(server, id=server.name) for server in servers], indirect=True
    )


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker(pytest.mark.server)
