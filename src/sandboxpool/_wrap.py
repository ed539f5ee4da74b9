"""`wrap()`: an app in, an ASGI app out that gives each request a sandbox of its own."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Literal, overload

from typing_extensions import Unpack

from ._app_options import AppOptions, WrapOptions, check_app_options
from ._exceptions import AppTypeError, OptionError
from ._isolations import isolate, isolate_wsgi, not_wrapped
from ._load import load
from ._pool import Pool
from ._sandboxed import SandboxedApp
from ._types import ASGIApp, WSGIApp
from .abc import SandboxFactory, Watchdog

logger = logging.getLogger("sandboxpool")

# How many sandboxes, unless told otherwise: a clone costs kilobytes, an app of its own may cost
# seconds to start and hold connections.
_LIGHT = ("clone", "shared")
_SIZES = {
    "clone": (16, 1000),
    "shared": (16, 1000),
    "thread": (4, 200),
    "factory": (1, 40),
    "module": (1, 40),
    "custom": (1, 40),
}


@overload
def wrap(
    app: str,
    /,
    *,
    factory: bool = ...,
    isolation: Literal["auto", "clone", "factory", "module"] | SandboxFactory = ...,
    wsgi: bool = ...,
    **options: Unpack[WrapOptions],
) -> SandboxedApp: ...


@overload
def wrap(
    app: Callable[[], ASGIApp | Awaitable[ASGIApp]],
    /,
    *,
    factory: Literal[True],
    isolation: Literal["auto", "clone", "factory"] = ...,
    wsgi: Literal[False] = ...,
    **options: Unpack[WrapOptions],
) -> SandboxedApp: ...


@overload
def wrap(
    app: ASGIApp,
    /,
    *,
    factory: Literal[False] = ...,
    isolation: Literal["auto", "clone"] | SandboxFactory = ...,
    wsgi: Literal[False] = ...,
    **options: Unpack[WrapOptions],
) -> SandboxedApp: ...


@overload
def wrap(
    app: Callable[[], WSGIApp | Awaitable[WSGIApp]],
    /,
    *,
    factory: Literal[True],
    isolation: Literal["auto", "factory"] = ...,
    wsgi: Literal[True],
    **options: Unpack[WrapOptions],
) -> SandboxedApp: ...


@overload
def wrap(
    app: WSGIApp,
    /,
    *,
    factory: Literal[False] = ...,
    isolation: Literal["auto"] = ...,
    wsgi: Literal[True],
    **options: Unpack[WrapOptions],
) -> SandboxedApp: ...


def wrap(
    app: Any,
    /,
    *,
    factory: bool = False,
    isolation: str | SandboxFactory = "auto",
    run_in: str = "loop",
    wsgi: bool = False,
    lifespan: str = "auto",
    reset: Any = "restore",
    keep: Iterable[str] = (),
    share: Iterable[str] = (),
    packages: Iterable[str] = (),
    shared: Iterable[str] = (),
    leaks: str = "ignore",
    ignore: Iterable[str] = (),
    verify: float = 1.0,
    hide_secrets: bool = True,
    middleware: Mapping[Any, str] | None = None,
    min_size: int | None = None,
    max_size: int | None = None,
    acquire_timeout: float | None = 5.0,
    max_waiting: int | None = 10_000,
    execution_timeout: float | None = None,
    slow_after: float | None = None,
    stall_after: float | None = 0.25,
    drain_timeout: float | None = 30.0,
    max_uses: int | None = None,
    max_lifetime: float | None = None,
    max_idle: float | None = 60.0,
    max_creating: int = 4,
    create_timeout: float | None = 60.0,
    reset_timeout: float | None = 5.0,
    destroy_timeout: float | None = 10.0,
    defer_timeout: float | None = 5.0,
    hooks: Iterable[str] = (),
    thread_backend: str = "auto",
    thread_stack_size: int = 4 * 1024 * 1024,
    max_abandoned: int | None = 100,
    isolate_context: bool = True,
    gc_freeze: bool = False,
    stats: str | None = None,
    resources: Iterable[Any] = (),
    watchdog: Watchdog | None = None,
    name: str | None = None,
) -> SandboxedApp:
    """Put a pool of isolated instances of an app in front of it.

    The result is an ASGI app: `uvicorn main:app` serves it like any other. Each `http` or
    `websocket` connection leases a sandbox, runs in it, and the sandbox is made as it was after
    start-up before anybody else gets it. A request that finds none free waits its turn.

    What is wrapped:

    Args:
        app: A Starlette or FastAPI instance or any other ASGI 3 callable; with `wsgi=True` a
            WSGI app, such as one of Flask or Django; with `factory=True` a function without
            arguments that makes one; or an import string for any of these, like
            `"shop.main:app"`.
        factory: Whether *app* makes apps.
        isolation: How sandboxes are made private. `"clone"` copies the app's own objects, in
            microseconds; `"factory"` makes an app of its own for each, which isolates more;
            `"module"` executes the app's own modules for each, so that their globals are
            private, too, and takes an import string. `"auto"` is `"factory"` for a factory, else
            `"clone"`. Or an object of yours that makes sandboxes, see
            `sandboxpool.abc.SandboxFactory`. What each covers is in the table of the
            documentation's page on isolation.
        run_in: Where requests run. `"loop"`: on the server's event loop, which a blocking call
            stops. `"thread"`: each sandbox has a thread and an event loop of its own, and may
            block it. `"cooperative"`: on the server's loop, and blocking calls that hooks reach
            suspend only their request; see `hooks`. The documentation's page about blocking
            code says which fits what.
        wsgi: Whether *app* is a WSGI app, or makes WSGI apps. Such an app is shared by all
            sandboxes, and with `factory=True` each has one of its own. It runs in a worker
            thread, and with `run_in="cooperative"` on the server's loop.
        lifespan: `"once"` for the template, whose state reaches all requests (default for
            `"clone"`), `"each"` for every sandbox (default for `"factory"`, and for threads,
            for each event loop needs its own), `"off"` for never.
        reset: What happens to a sandbox between two requests: `"restore"` puts it back as it
            was after start-up, `"fresh"` replaces it by a new one made ahead of need, `"keep"`
            leaves it as it is, a function (sync or async) is called with the sandbox instead.
            With `isolation="module"`, `"restore"` does what `"fresh"` does.
        keep: Names that survive a reset, like `"state.cache"`.
        share: Names of plain data that all sandboxes share, like `"state.catalogue"`.
        packages: With `isolation="module"`, the packages whose modules are private; by default
            the one that the app is in.
        shared: Modules of these packages that exist once, like `"shop.db"`.
        leaks: What happens when a request leaves something behind: `"ignore"` (nothing looks),
            `"log"`, `"retire"` (its sandbox is replaced, too), or `"raise"`, for tests.
        ignore: Names of leaks that are none, like `"shop.state.hits"`, with `*` for anything.
        verify: Share of the requests after which a sandbox is compared with what it was after
            start-up, from 0.0 to 1.0.
        hide_secrets: Whether reports of leaks leave out what looks like a password, a token or
            a key, by its name or by itself.
        middleware: For a class of middleware (or its name) `"copy"` (default), `"share"` (all
            sandboxes have its attributes in common, but each has inner layers of its own) or
            `"fresh"` (constructed again for each sandbox).

    How many, and how long:

    Args:
        min_size: Sandboxes made at start-up and kept; by default 16 clones, 4 clones in threads,
            or 1 of a factory.
        max_size: Sandboxes at most; by default 1000 clones, 200 clones in threads, or 40 of a
            factory.
        acquire_timeout: Seconds a request waits for a sandbox; then it is answered 503 with
            `Retry-After`. `None` for no limit.
        max_waiting: Requests that may wait; one more is answered 503 at once.
        execution_timeout: Seconds a request may run; then it is cancelled, answered 504 if its
            response has not begun and cut off otherwise, and its sandbox is retired. A request
            moves its own deadline with `current_lease().extend(seconds)`. `None`: no limit.
        slow_after: Seconds after which a request is logged with the stack it is at. `None`: never.
        stall_after: Seconds of a blocked event loop after which the request that blocks it is
            logged with its stack; `None` starts no monitor thread.
        drain_timeout: Seconds that requests in flight get to finish at shutdown.

    Rarely needed:

    Args:
        max_uses: Requests after which a sandbox is replaced; `None` for no limit.
        max_lifetime: Seconds after which it is, a little earlier at random.
        max_idle: Seconds without a request after which a sandbox above `min_size` goes.
        max_creating: Sandboxes made at the same time.
        create_timeout: Seconds to make one.
        reset_timeout: Seconds to reset one; after it the sandbox is retired.
        destroy_timeout: Seconds to end one.
        defer_timeout: Seconds for the deferred callbacks of a request, all together.
        hooks: What `run_in="cooperative"` makes cooperative; by default all of
            `sandboxpool.hooks.DEFAULT_HOOKS`. An app given as an import string is imported after
            they are in place.
        thread_backend: The event loop in the threads of `run_in="thread"`: `"asyncio"`,
            `"uvloop"`, `"trio"`; `"auto"` is the one of the server.
        thread_stack_size: Bytes of address space for the stack of such a thread. Only what is
            used of it takes memory; with less than the default, code that recurses through C up
            to Python's own limit can crash the process.
        max_abandoned: Threads that may be left behind because what they run does not stop when
            it is cut off. As long as so many are, no further sandbox is made. `None` for no limit.
        isolate_context: Whether context variables that the app sets are kept from the server's
            connection and so from its next request.
        gc_freeze: Whether to call `gc.freeze()` once, when the app has started and `min_size`
            sandboxes exist. Full collections then skip them all, and the youngest generation is
            collected after 10,000 new objects. Choose it for a server with many sandboxes. It
            concerns the whole process, and whatever exists at that moment.
        stats: A path at which the wrapped app shows its statistics as JSON, outside of the
            pool, so that it answers when every sandbox is taken.
        resources: Resources of `sandboxpool.resources` that are opened before the app starts, so
            that it does not start without them; as objects, or import strings like `"shop.db:db"`.
            Others are opened by their first use. All are closed after the app.
        watchdog: Instead of the built-in one; see `sandboxpool.abc.Watchdog`.
        name: What errors, logs and statistics call the app.

    Returns:
        The wrapped app.

    Raises:
        AppTypeError: *app* is not an ASGI app (or a WSGI app with `wsgi=True`), or not a factory
            of one; the message says what to write instead.
        AppImportError: The import string names nothing.
        OptionError: An option has a value that cannot work.
    """
    if isinstance(app, SandboxedApp):
        raise AppTypeError(
            f"{app!r} is wrapped already: a second pool would only queue in front of the first. "
            "Pass all options in one call of wrap(). (A wrapped app may be mounted in an app "
            "that is wrapped.)"
        )
    hooks = _names("hooks", hooks)
    ignore = _names("ignore", ignore)
    check_app_options(
        factory=factory,
        isolation=isolation,
        run_in=run_in,
        wsgi=wsgi,
        hooks=hooks,
        thread_backend=thread_backend,
        thread_stack_size=thread_stack_size,
        max_abandoned=max_abandoned,
        lifespan=lifespan,
        reset=reset,
        leaks=leaks,
        ignore=ignore,
        verify=verify,
        hide_secrets=hide_secrets,
        min_size=min_size,
        max_size=max_size,
        stats=stats,
        isolate_context=isolate_context,
        gc_freeze=gc_freeze,
        watchdog=watchdog,
        name=name,
        execution_timeout=execution_timeout,
        slow_after=slow_after,
        stall_after=stall_after,
        drain_timeout=drain_timeout,
        defer_timeout=defer_timeout,
    )
    if run_in == "cooperative":
        _install_hooks(hooks, given=app)
    if isolation == "module" and not wsgi:
        # Each sandbox imports it for itself.
        loaded, found_name = app, _import_string(app)
    else:
        loaded, found_name = load(app, factory=factory, wsgi=wsgi)
        not_wrapped(loaded, found_name)
    name = name or found_name
    private: dict[str, Any] = {
        "factory": factory,
        "isolation": isolation,
        "reset": reset,
        "keep": _names("keep", keep),
        "share": _names("share", share),
        "packages": _names("packages", packages),
        "shared": _names("shared", shared),
        "middleware": _policies(middleware),
        "name": name,
    }
    abandoned: set[Any] = set()
    if wsgi:
        sandboxes, kind = isolate_wsgi(
            loaded, run_in=run_in, abandoned=abandoned, max_abandoned=max_abandoned, **private
        )
    else:
        sandboxes, kind = isolate(
            loaded,
            lifespan="each" if run_in == "thread" and lifespan == "auto" else lifespan,
            **private,
        )
    if run_in == "thread":
        from .run.thread import ThreadFactory

        sandboxes = ThreadFactory(
            sandboxes,
            backend=thread_backend,
            stack_size=thread_stack_size,
            max_abandoned=max_abandoned,
            resets_in_thread=callable(reset) or kind == "custom",
            name=name,
        )
    least, most = _SIZES["thread" if run_in == "thread" and kind in _LIGHT else kind]
    if max_size is None:
        max_size = max(most, min_size or 0)
    if min_size is None:
        min_size = min(least, max_size)
    # Private modules are as they were after start-up when they are executed again.
    if reset == "fresh" or (reset == "restore" and kind == "module"):
        if max_uses not in (None, 1):
            with_modules = " with isolation='module'" if reset == "restore" else ""
            raise OptionError(
                f"max_uses={max_uses!r} cannot go with reset={reset!r}{with_modules}, which uses "
                "no sandbox twice: leave out one of the two."
            )
        max_uses = 1
    pool: dict[str, Any] = {
        "name": name,
        "min_size": min_size,
        "max_size": max_size,
        "acquire_timeout": acquire_timeout,
        "max_waiting": max_waiting,
        "max_uses": max_uses,
        "max_lifetime": max_lifetime,
        "max_idle": max_idle,
        "max_creating": max_creating,
        "create_timeout": create_timeout,
        "reset_timeout": reset_timeout,
        "destroy_timeout": destroy_timeout,
        "check_after": None,
        "replace_worn": True,
    }
    Pool(sandboxes, **pool)  # so that a wrong option is refused here, not at the first request
    options = AppOptions(
        name=name,
        isolation=kind,
        run_in=run_in,
        pool=pool,
        abandoned=abandoned,
        execution_timeout=execution_timeout,
        slow_after=slow_after,
        stall_after=stall_after,
        drain_timeout=drain_timeout,
        stop_timeout=destroy_timeout,
        defer_timeout=defer_timeout,
        isolate_context=isolate_context,
        gc_freeze=gc_freeze,
        leaks=leaks,
        ignore=ignore,
        verify=float(verify),
        hide_secrets=hide_secrets,
        stats=stats,
        resources=_resources(resources),
        watchdog=watchdog,
    )
    return SandboxedApp(loaded, sandboxes, options)


def _install_hooks(names: tuple[str, ...], given: object) -> None:
    """Install hooks, and say so if that may be too late for the app."""
    from . import hooks

    before = hooks.installed()
    hooks.install(*names)  # type: ignore[arg-type] # checked there
    if before != hooks.installed() and not isinstance(given, str):
        logger.warning(
            "the hooks of run_in='cooperative' were installed after the app was imported: what it "
            "took by name before (`from time import sleep`), and locks that it made, still block. "
            "Call sandboxpool.hooks.install() before the app is imported, or pass wrap() an "
            "import string."
        )


def _import_string(app: object) -> str:
    if not isinstance(app, str):
        raise OptionError(
            "isolation='module' executes the app's own modules for each sandbox, but an object "
            f"was given, {app!r}: pass an import string, like 'shop.main:app'."
        )
    return app


def _resources(resources: Iterable[Any]) -> tuple[Any, ...]:
    if isinstance(resources, str) or not isinstance(resources, Iterable):
        raise OptionError(
            f"resources={resources!r}: give several resources, as in resources=(db,)."
        )
    found = tuple(resources)
    for each in found:
        if not isinstance(each, str) and not callable(getattr(each, "open_for", None)):
            raise OptionError(
                f"resources=({each!r},): give what sandboxpool.resources declares, or an import "
                "string like 'shop.db:db'."
            )
    return found


def _policies(middleware: object) -> dict[Any, str]:
    if middleware is not None and not isinstance(middleware, Mapping):
        raise OptionError(
            f"middleware={middleware!r}: give a policy for each class of middleware, "
            "as in middleware={'Limiter': 'share'}."
        )
    return dict(middleware or {})


def _names(option: str, names: Iterable[str]) -> tuple[str, ...]:
    if not isinstance(names, Iterable):
        raise OptionError(f"{option}={names!r}: give names, as in {option}=('state.cache',).")
    if isinstance(names, str):
        raise OptionError(f"{option}={names!r}: give several names, as in {option}=({names!r},).")
    return tuple(names)
