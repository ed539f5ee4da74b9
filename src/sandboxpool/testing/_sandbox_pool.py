"""The sandboxes of a test run: made once for each app, leased by one test after the other."""

from __future__ import annotations

import logging
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from contextvars import Context
from typing import TYPE_CHECKING, Any, Literal

import attrs

from sandboxpool._exceptions import (
    AppImportError,
    FactoryError,
    LifespanError,
    OptionError,
    PrivateModuleError,
)
from sandboxpool._load import import_string
from sandboxpool._pool import Pool
from sandboxpool._sandboxed import SandboxedApp
from sandboxpool._wrap import wrap
from sandboxpool.run._loop_thread import LoopThread

from ._leased_sandbox import LeasedSandbox

if TYPE_CHECKING:
    from ._leaks_of_tests import SandboxState

Backend = Literal["asyncio", "trio", "uvloop"]
Loop = Literal["session", "test"]

BACKENDS = ("asyncio", "trio", "uvloop")
LOOPS = ("session", "test")

# What a marker may say besides which app, and what of it `wrap()` is given.
WRAP_OPTIONS = (
    "factory", "isolation", "keep", "lifespan", "middleware", "packages", "share", "shared",
)  # fmt: skip

logger = logging.getLogger("sandboxpool.testing")

_STACK_SIZE = 16 * 1024 * 1024


class LoopOfTests:
    """An event loop in a thread of its own, in which the apps of tests live.

    Attributes:
        thread: The thread.
        blocked: Whether it was left behind, because a request that was cancelled blocks it.
        left: What was left behind with it.
    """

    def __init__(self, backend: Backend) -> None:
        self.blocked = False
        self.left: list[object] = []
        self.thread = LoopThread(f"sandboxpool tests on {backend}", backend, _STACK_SIZE, _ignore)
        self._failure: BaseException | None = None
        running = threading.Event()

        def failed(error: BaseException) -> None:
            self._failure = error
            running.set()

        self.thread.start(running.set, failed)
        running.wait()
        if self._failure is not None:
            raise self._failure

    def run(self, function: Callable[[], Awaitable[Any]]) -> Any:
        """Run an async function in the loop, and wait for it."""
        over = threading.Event()
        result: Any = None
        failure: BaseException | None = None

        async def run() -> None:
            nonlocal result, failure
            try:
                result = await function()
            except Exception as error:
                failure = error
            except BaseException as error:
                failure = error
                raise
            finally:
                over.set()

        def spawn() -> None:
            assert self.thread.loop is not None
            # Held until it is over: a loop may hold its tasks only weakly.
            self._task = self.thread.loop.spawn(run, "sandboxpool.testing", Context())

        if not self.thread.post(spawn):
            raise RuntimeError(f"{self.thread.thread.name} has ended: its loop runs no more.")
        over.wait()
        if failure is not None:
            try:
                raise failure
            finally:
                failure = None
        return result

    def close(self) -> None:
        """End the thread, unless it is blocked: then it ends by itself when that is over."""
        self.thread.stop()
        if not self.blocked:
            self.thread.thread.join(5)


def _ignore(thread: LoopThread) -> None:
    """Do nothing when a thread ends."""


class AppInTests:
    """One app with its sandboxes.

    Attributes:
        name: What errors call it.
        isolation: How its sandboxes are private.
        lease_owner: Whose requests the template stands for.
        defer_timeout: Seconds for what a request defers.
    """

    def __init__(self, wrapped: SandboxedApp, loop: LoopOfTests, where: Loop) -> None:
        options = wrapped.wrap_options
        self.name = options.name
        self.isolation = options.isolation
        self.defer_timeout = options.defer_timeout
        self._loop = loop
        self._where = where
        self._factory = factory = wrapped._factory
        self.lease_owner = getattr(factory, "lease_owner", factory)
        limits = {
            **options.pool,
            "min_size": 1,
            "acquire_timeout": None,
            "max_idle": None,
            "max_lifetime": None,
        }
        if self.isolation == "module":
            limits["max_uses"] = 1
        self._pool: Pool[Any] = Pool(factory, **limits)
        self._started = False

    @property
    def thread(self) -> LoopThread | None:
        """Where requests run, `None` for wherever they come from."""
        return self._loop.thread if self._where == "session" else None

    def open(self) -> None:
        """Start the app, and make the first sandbox.

        Raises:
            Exception: What the app has raised.
        """
        try:
            self._loop.run(self._open)
        except (FactoryError, LifespanError) as error:
            raise reason_of(error) from None

    async def _open(self) -> None:
        await self._factory.start()
        self._started = True
        await self._pool.open()

    def close(self) -> None:
        """End all sandboxes, and stop the app.

        Raises:
            LifespanShutdownError: It did not stop in order.
        """
        if not self.blocked:
            self._loop.run(self._close)

    async def _close(self) -> None:
        await self._pool.aclose(0)
        if self._started:
            await self._factory.stop()

    @property
    def blocked(self) -> bool:
        """Whether the event loop that it lives in was left behind."""
        return self._loop.blocked

    def leave_behind(self) -> None:
        """Note that a request that was cancelled blocks the event loop of the app."""
        logger.error(
            "a request to %s was cancelled and blocks its event loop; the next test has the app "
            "started anew, in another one",
            self.name,
        )
        self._loop.blocked = True

    @contextmanager
    def lease(self, watch: Callable[[Any], SandboxState] | None) -> Iterator[LeasedSandbox]:
        """Lease a sandbox.

        Args:
            watch: Begins to watch what requests leave in a sandbox.

        Raises:
            Exception: What the app has raised when it was made.
        """
        lease = self._pool.lease()
        try:
            sandbox = self._loop.run(lease.__aenter__)
        except FactoryError as error:
            raise reason_of(error) from None
        leased = None
        try:
            self._arm(sandbox)
            leased = LeasedSandbox(self, sandbox, watch)
            yield leased
        finally:
            if leased is not None:
                leased.end()
            if self.blocked:
                self._loop.left.append(lease)
            else:
                self._loop.run(lambda: lease.__aexit__(None, None, None))

    def _arm(self, sandbox: Any) -> None:
        """Note how a sandbox looks now, before the test changes anything in it."""
        refresh = getattr(getattr(sandbox, "template", None), "refresh", None)
        if hasattr(sandbox, "arm"):
            sandbox.arm()
        if refresh is not None:
            refresh(sandbox)


def reason_of(error: BaseException) -> BaseException:
    """Return what lies behind an error: what the app itself has raised, if it has."""
    while isinstance(error, (FactoryError, LifespanError)) and error.__cause__ is not None:
        error = error.__cause__
    return error


@attrs.frozen
class AppChoice:
    """Which app a test wants, and how.

    Attributes:
        app: An app, a function that makes one, or an import string.
        options: Those of `WRAP_OPTIONS` that were given.
        backend: The event loop that the app lives in.
        loop: Where its requests run.
    """

    app: Any
    options: dict[str, Any] = attrs.field(factory=dict)
    backend: Backend = "asyncio"
    loop: Loop = "session"

    @property
    def key(self) -> tuple[object, ...]:
        """What two tests have in common that can share the sandboxes."""
        app = self.app if isinstance(self.app, str) else id(self.app)
        options = sorted((name, repr(value)) for name, value in self.options.items())
        return app, tuple(options), self.backend, self.loop

    def check(self) -> None:
        """Refuse what cannot work.

        Raises:
            OptionError: The message names the option, the value, the remedy.
        """
        for name, value, values in (
            ("backend", self.backend, BACKENDS),
            ("loop", self.loop, LOOPS),
        ):
            if value not in values:
                shown = ", ".join(map(repr, values))
                raise OptionError(f"{name}={value!r}: give one of {shown}.")

    def wrap(self) -> SandboxedApp:
        """Return the app, wrapped as it shall be.

        Raises:
            AppError: It is no app, or cannot be imported.
            OptionError: An option has a value that cannot work.
        """
        app, name = self.app, None
        if isinstance(app, str):
            name = app
            if self.options.get("isolation") != "module":
                loaded = _import_plainly(app)
                # What its module wraps already is taken as its own options say.
                app = loaded if isinstance(loaded, SandboxedApp) else app
        if isinstance(app, SandboxedApp):
            if not self.options:
                return app
            app = app.app
        return wrap(app, name=name, stall_after=None, **self.options)


def _import_plainly(app: str) -> Any:
    try:
        return import_string(app)
    except AppImportError as error:
        # Sandboxes with private modules run already, and nobody else has imported this one.
        if isinstance(error.__context__, PrivateModuleError):
            raise AppImportError(f"{app!r}: {error.__context__}") from None
        raise


class SandboxPool:
    """All sandboxes of a test run; the fixture `sandbox_pool`."""

    def __init__(self, default: Callable[[], AppChoice]) -> None:
        self.watch: Callable[[Any], SandboxState] | None = None
        self._default = default
        self._loops: dict[str, LoopOfTests] = {}
        self._left: list[LoopOfTests] = []
        self._apps: dict[tuple[object, ...], tuple[AppChoice, AppInTests]] = {}

    @contextmanager
    def lease(
        self,
        app: Any = None,
        *,
        backend: Backend | None = None,
        loop: Loop | None = None,
        **options: Any,
    ) -> Iterator[LeasedSandbox]:
        """Lease a sandbox, for as long as a `with` block or a fixture of any scope lasts.

        Args:
            app: An app, a function that makes one (with `factory=True`), or an import string.
                By default the one that the configuration of pytest names.
            backend: The event loop that the app lives in.
            loop: `"session"` runs requests in that loop, `"test"` in the one that sends them.
            options: Those of `sandboxpool.wrap()` that say how the app is private.

        Raises:
            OptionError: An option has a value that cannot work, or is none.
            AppError: It is no app, or cannot be imported.
            Exception: Whatever the app raises when it is imported, made or started.
        """
        wrong = [name for name in options if name not in WRAP_OPTIONS]
        if wrong:
            allowed = ", ".join(sorted(("app", "backend", "loop", *WRAP_OPTIONS)))
            raise OptionError(f"{wrong[0]}={options[wrong[0]]!r}: the options are {allowed}.")
        choice = self._default()
        if app is not None:
            # What the configuration says about its own app does not hold for another one.
            choice = attrs.evolve(choice, app=app, options={})
        if choice.app is None:
            raise OptionError(
                "no app: say which one is tested with `sandboxpool_app = shop.main:app` in the "
                'configuration of pytest, or with @pytest.mark.sandboxpool(app="shop.main:app").'
            )
        choice = attrs.evolve(
            choice,
            options={**choice.options, **options},
            backend=backend or choice.backend,
            loop=loop or choice.loop,
        )
        choice.check()
        with self._app(choice).lease(self.watch) as leased:
            yield leased

    def _app(self, choice: AppChoice) -> AppInTests:
        known = self._apps.get(choice.key)
        if known is not None and not known[1].blocked:
            return known[1]
        wrapped = choice.wrap()
        loop = self._loops.get(choice.backend)
        if loop is not None and loop.blocked:
            self._left.append(loop)
            loop = None
        if loop is None:
            loop = self._loops[choice.backend] = LoopOfTests(choice.backend)
        made = AppInTests(wrapped, loop, choice.loop)
        try:
            made.open()
        except BaseException:
            made.close()
            raise
        self._apps[choice.key] = choice, made
        return made

    def close(self) -> None:
        """End everything, also if some of it raises.

        Raises:
            LifespanShutdownError: An app did not stop in order.
        """
        failures: list[Exception] = []
        for _, app in self._apps.values():
            try:
                app.close()
            except Exception as error:
                failures.append(error)
        for loop in self._loops.values():
            loop.close()
        self._apps.clear()
        self._loops.clear()
        if failures:
            raise failures[0]
