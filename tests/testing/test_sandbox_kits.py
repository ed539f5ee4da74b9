"""The kits for factories and sandboxes, on the library's own and on those of an example."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from examples.custom_factory import ScratchFactory, ScratchSandbox
from sandboxpool import current_sandbox
from sandboxpool.abc import ASGIApp, SandboxFactory
from sandboxpool.isolation.clone import CloneFactory
from sandboxpool.isolation.factory import AppFactory
from sandboxpool.run.thread import ThreadFactory
from sandboxpool.testing import (
    SandboxFactoryConformance,
)


class TestClones(SandboxFactoryConformance):
    """`isolation="clone"`."""

    def make_sandbox_factory(self, make_app: Callable[[], ASGIApp]) -> SandboxFactory:
        return CloneFactory(make_app())


class TestClonesWithLifespan(SandboxFactoryConformance):
    """`isolation="clone"`, with a lifespan for each."""

    def make_sandbox_factory(self, make_app: Callable[[], ASGIApp]) -> SandboxFactory:
        return CloneFactory(make_app(), lifespan="each")


class TestProducts(SandboxFactoryConformance):
    """`isolation="factory"`."""

    def make_sandbox_factory(self, make_app: Callable[[], ASGIApp]) -> SandboxFactory:
        return AppFactory(make_app)


class TestThreads(SandboxFactoryConformance):
    """`run_in="thread"`."""

    def make_sandbox_factory(self, make_app: Callable[[], ASGIApp]) -> SandboxFactory:
        return ThreadFactory(CloneFactory(make_app(), lifespan="each"), resets_in_thread=False)


class TestScratch(SandboxFactoryConformance):
    """The isolation of `examples/custom_factory.py`: a directory for each request."""

    def make_sandbox_factory(self, make_app: Callable[[], ASGIApp]) -> SandboxFactory:
        return ScratchFactory(make_app())

    def remember(self, app: Any, value: str) -> None:
        sandbox = current_sandbox()
        assert isinstance(sandbox, ScratchSandbox)
        (sandbox.directory / "note.txt").write_text(value)

    def recall(self, app: Any) -> object:
        sandbox = current_sandbox()
        assert isinstance(sandbox, ScratchSandbox)
        return sorted((path.name, path.read_text()) for path in sandbox.directory.iterdir())

    def alive(self, factory: Any) -> int:
        return len(list(factory.parent.iterdir()))
