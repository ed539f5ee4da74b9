"""The pytest plugin: private apps for tests, and tests that leave nothing behind.

It is loaded in each run of pytest where this library is installed, and does nothing there that a
test has not asked for: what it needs is imported when it is used.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from ._leased_sandbox import LeasedSandbox
    from ._sandbox_pool import AppChoice, SandboxPool

_ISOLATIONS = ("auto", "clone", "factory", "module")
_MARKER = (
    "sandboxpool(app, factory, isolation, loop, backend, ...): which app the fixture `sandbox` "
    "leases for this test, and how it is private"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add what stands in the configuration of pytest."""
    parser.addini("sandboxpool_app", "the app under test, like shop.main:app", default="")
    parser.addini(
        "sandboxpool_factory", "whether sandboxpool_app names a function that makes the app", "bool"
    )
    parser.addini(
        "sandboxpool_isolation",
        "how each test's app is private: auto, clone, factory or module",
        default="auto",
    )
    parser.addini(
        "sandboxpool_packages", "with isolation=module, the packages that are private", "args"
    )
    parser.addini(
        "sandboxpool_shared", "with isolation=module, modules of these that exist once", "args"
    )
    parser.addini(
        "sandboxpool_backend",
        "the event loop that the app lives in, where a test does not run in one: asyncio, trio, "
        "uvloop",
        default="asyncio",
    )
    parser.addini(
        "sandboxpool_loop",
        "where requests run: session (a loop of their own) or test (the loop that sends them)",
        default="session",
    )


def pytest_configure(config: pytest.Config) -> None:
    """Refuse a configuration that cannot work, before any test runs."""
    config.addinivalue_line("markers", _MARKER)
    for name, values in (
        ("isolation", _ISOLATIONS),
        ("backend", ("asyncio", "trio", "uvloop")),
        ("loop", ("session", "test")),
    ):
        value = config.getini(f"sandboxpool_{name}")
        if value not in values:
            raise pytest.UsageError(
                f"sandboxpool_{name} = {value}: give one of {', '.join(values)}."
            )
    app = config.getini("sandboxpool_app")
    if app and ":" not in app:
        raise pytest.UsageError(
            f'sandboxpool_app = {app}: give an import string, like "shop.main:app".'
        )


@pytest.hookimpl(wrapper=True)
def pytest_pycollect_makeitem(obj: object) -> Generator[None, Any, Any]:
    """Let anyio's plugin run the checks of a conformance kit, on each of its backends."""
    made = yield
    # Only of a class: a test module may hold proxies, like Flask's, that raise when asked.
    if issubclass(type(obj), type) and getattr(obj, "__sandboxpool_kit__", False) is True:
        # Other plugins make a list of the one that it is.
        for collector in made if isinstance(made, list) else [made]:
            if isinstance(collector, pytest.Class):
                collector.add_marker("anyio")
    return made


def _configured(config: pytest.Config) -> AppChoice:
    """Return the app that the configuration names."""
    from ._sandbox_pool import AppChoice

    options: dict[str, Any] = {}
    if config.getini("sandboxpool_factory"):
        options["factory"] = True
    if config.getini("sandboxpool_isolation") != "auto":
        options["isolation"] = config.getini("sandboxpool_isolation")
    for name in ("packages", "shared"):
        if config.getini(f"sandboxpool_{name}"):
            options[name] = tuple(config.getini(f"sandboxpool_{name}"))
    return AppChoice(
        app=config.getini("sandboxpool_app") or None,
        options=options,
        backend=config.getini("sandboxpool_backend"),
        loop=config.getini("sandboxpool_loop"),
    )


@pytest.fixture(scope="session")
def sandbox_pool(pytestconfig: pytest.Config) -> Iterator[SandboxPool]:
    """All sandboxes of this test run.

    `with sandbox_pool.lease() as sandbox:` leases one, in a test that needs several, or in a
    fixture of a wider scope.
    """
    from ._sandbox_pool import SandboxPool

    pool = SandboxPool(lambda: _configured(pytestconfig))
    try:
        yield pool
    finally:
        pool.close()


@pytest.fixture
def sandbox(request: pytest.FixtureRequest, sandbox_pool: SandboxPool) -> Iterator[LeasedSandbox]:
    """A private app for this test.

    It is an ASGI app: pass it to a test client. `sandbox.app` is the private instance of the app,
    with `dependency_overrides` and `state` of its own.
    """
    from sandboxpool._exceptions import AppError, OptionError

    options = _marked(request.node)
    if "backend" not in options and (backend := _backend_of(request)):
        options["backend"] = backend
    refusal = ""
    with ExitStack() as stack:
        try:
            yield stack.enter_context(sandbox_pool.lease(**options))
        except (AppError, OptionError) as error:
            refusal = str(error)
    if refusal:  # out here, so that no traceback of ours is shown with it
        pytest.fail(f"sandbox: {refusal}", pytrace=False)


def _marked(node: pytest.Item) -> dict[str, Any]:
    """Return what the markers of a test say, the nearest one first."""
    options: dict[str, Any] = {}
    for marker in node.iter_markers("sandboxpool"):
        if len(marker.args) > 1:
            pytest.fail(
                f"sandbox: @pytest.mark.sandboxpool takes one app, and names for the rest, not "
                f"{marker.args!r}.",
                pytrace=False,
            )
        if marker.args:
            options.setdefault("app", marker.args[0])
        for name, value in marker.kwargs.items():
            options.setdefault(name, value)
    return options


def _backend_of(request: pytest.FixtureRequest) -> str | None:
    """Return the event loop that a test runs in, if anyio's plugin runs it."""
    if "anyio_backend" not in request.fixturenames:
        return None
    backend = request.getfixturevalue("anyio_backend")
    name, options = backend if isinstance(backend, tuple) else (backend, {})
    return "uvloop" if options.get("use_uvloop") else str(name)
