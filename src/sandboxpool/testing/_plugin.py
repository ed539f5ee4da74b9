"""The pytest plugin: private apps for tests, and tests that leave nothing behind.

It is loaded in each run of pytest where this library is installed, and does nothing there that a
test has not asked for: what it needs is imported when it is used.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from ._leaks_of_tests import SharedState
    from ._leased_sandbox import LeasedSandbox
    from ._sandbox_pool import AppChoice, SandboxPool

_LEAKS = ("off", "warn", "fail")
_ISOLATIONS = ("auto", "clone", "factory", "module")
_MARKER = (
    "sandboxpool(app, factory, isolation, loop, backend, ..., leaks, ignore): which app the "
    "fixture `sandbox` leases for this test, and how it is private; what becomes of leaks, and "
    "which are none"
)


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add what stands in the configuration of pytest, and on its command line."""
    parser.getgroup("sandboxpool").addoption(
        "--sandboxpool-leaks",
        nargs="?",
        const="fail",
        type=_leaks_option,
        metavar="fail",
        help="what becomes of a test that leaves state behind: fail (if nothing is given), warn, "
        "off",
    )
    parser.addini("sandboxpool_leaks", "the same, for every run: off, warn or fail", default="off")
    parser.addini(
        "sandboxpool_ignore",
        "names of leaks that are none, like shop.state.hits, with * for anything",
        "linelist",
    )
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


def _leaks_option(value: str) -> str:
    if value not in _LEAKS:
        raise argparse.ArgumentTypeError(
            f"give one of {', '.join(_LEAKS)}, not {value!r}. Before a path, write "
            "--sandboxpool-leaks=fail."
        )
    return value


def pytest_configure(config: pytest.Config) -> None:
    """Refuse a configuration that cannot work, before any test runs."""
    config.addinivalue_line("markers", _MARKER)
    for name, values in (
        ("isolation", _ISOLATIONS),
        ("backend", ("asyncio", "trio", "uvloop")),
        ("loop", ("session", "test")),
        ("leaks", _LEAKS),
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
    leaks = config.getoption("sandboxpool_leaks") or config.getini("sandboxpool_leaks")
    if leaks != "off":
        packages = {app.partition(".")[0].partition(":")[0]} - {""}
        packages |= {name.partition(".")[0] for name in config.getini("sandboxpool_packages")}
        if not packages:
            raise pytest.UsageError(
                f"sandboxpool-leaks={leaks}: say whose state is looked at, with "
                "`sandboxpool_app = shop.main:app` or `sandboxpool_packages = shop` in the "
                "configuration of pytest."
            )
        config.pluginmanager.register(
            LeakCheck(leaks, frozenset(packages), config.getini("sandboxpool_ignore"))
        )


class LeakCheck:
    """Looks before and after each test, in runs that ask for it.

    Args:
        leaks: `"warn"` or `"fail"`.
        packages: The packages whose modules are looked at.
        ignore: The names of leaks that are none.
    """

    def __init__(self, leaks: str, packages: frozenset[str], ignore: Sequence[str]) -> None:
        self._leaks = leaks
        self._packages = packages
        self._ignore = tuple(ignore)
        self._shared: SharedState | None = None

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Leave out the modules of the tests themselves."""
        from ._leaks_of_tests import SharedState

        tests = {
            item.module.__name__ for item in session.items if isinstance(item, pytest.Function)
        }
        # A single file may be both, the app and its tests.
        apps = {session.config.getini("sandboxpool_app").partition(":")[0]}
        tests |= {name for name in sys.modules if name.rpartition(".")[2] == "conftest"}
        self._shared = SharedState(self._packages, frozenset(tests - apps))

    # After fixtures of wider scopes were set up, and before they are torn down: what these do is
    # for more than one test. And around all others of the test's own.
    @pytest.fixture(autouse=True)
    def _sandboxpool_leaks(self, request: pytest.FixtureRequest) -> Iterator[None]:
        from ._leaks_of_tests import SandboxState, report

        options = _marked(request.node)
        if options.get("leaks", self._leaks) == "off" or self._shared is None:
            yield
            return
        states: list[SandboxState] = []

        def watch(sandbox: Any) -> SandboxState:
            states.append(SandboxState(sandbox))
            return states[-1]

        pool: SandboxPool | None = None
        if {"sandbox", "sandbox_pool"} & {*request.fixturenames}:
            pool = request.getfixturevalue("sandbox_pool")
            pool.watch = watch
        self._shared.look()
        try:
            yield
        finally:
            if pool is not None:
                pool.watch = None
        text = report(
            {
                "modules": self._shared.changes(),
                "sandbox": [one for state in states for one in state.left],
            },
            (*self._ignore, *options.get("ignore", ())),
        )
        if text and options.get("leaks", self._leaks) == "warn":
            request.node.warn(pytest.PytestWarning(text))
        elif text:
            pytest.fail(text, pytrace=False)


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
    for name in ("leaks", "ignore"):  # these are for `--sandboxpool-leaks`
        options.pop(name, None)
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
    if options.get("leaks", "off") not in _LEAKS:
        pytest.fail(
            f"sandbox: leaks={options['leaks']!r}: give one of {', '.join(map(repr, _LEAKS))}.",
            pytrace=False,
        )
    return options


def _backend_of(request: pytest.FixtureRequest) -> str | None:
    """Return the event loop that a test runs in, if anyio's plugin runs it."""
    if "anyio_backend" not in request.fixturenames:
        return None
    backend = request.getfixturevalue("anyio_backend")
    name, options = backend if isinstance(backend, tuple) else (backend, {})
    return "uvloop" if options.get("use_uvloop") else str(name)
