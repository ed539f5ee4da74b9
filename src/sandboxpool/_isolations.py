"""Which isolation makes the sandboxes, from the options of `wrap()`."""

from __future__ import annotations

import inspect
from typing import Any

from ._exceptions import AppTypeError, OptionError
from ._load import check_app
from ._sandboxed import SandboxedApp
from .abc import SandboxFactory


def isolate(
    app: Any,
    *,
    factory: bool,
    isolation: str | SandboxFactory,
    lifespan: Any,
    reset: Any,
    keep: tuple[str, ...],
    share: tuple[str, ...],
    packages: tuple[str, ...],
    shared: tuple[str, ...],
    middleware: dict[Any, str],
    name: str,
) -> tuple[SandboxFactory, str]:
    """Return what makes the sandboxes, and the name of the isolation."""
    if isolation != "module" and (packages or shared):
        raise OptionError(
            "packages= and shared= say which modules each sandbox has for itself, which is what "
            f"isolation='module' does, but isolation={isolation!r}."
        )
    if not isinstance(isolation, str):
        if keep or share or middleware:
            raise OptionError(
                "keep=, share= and middleware= are for the built-in isolations; "
                f"{isolation!r} decides for itself what is private."
            )
        return isolation, "custom"
    if isolation == "auto":
        isolation = "factory" if factory else "clone"
    common: dict[str, Any] = {"reset": reset, "keep": keep, "share": share, "name": name}
    if isolation in ("factory", "module") and middleware:
        constructs = "a factory" if isolation == "factory" else "isolation='module'"
        raise OptionError(
            f"middleware= is for isolation='clone'; {constructs} constructs its middleware anew "
            "for each sandbox."
        )
    if isolation == "module":
        if keep and reset == "restore":
            raise OptionError(
                f"keep={keep!r} cannot go with isolation='module', which executes them again "
                "rather than putting them back: keep what shall survive in a sandboxpool.Cache, or "
                "pass reset='keep'."
            )
        from .isolation.module import ModuleFactory

        return ModuleFactory(
            app,
            factory=factory,
            packages=packages,
            shared=shared,
            lifespan="each" if lifespan == "auto" else lifespan,
            **common,
        ), "module"
    if isolation == "factory":
        _needs_factory(factory)
        from .isolation.factory import AppFactory

        return AppFactory(app, lifespan="each" if lifespan == "auto" else lifespan, **common), (
            "factory"
        )
    from .isolation.clone import CloneFactory

    if factory:
        app = app()
        if inspect.iscoroutine(app):
            app.close()
            raise AppTypeError(
                f"{name} is an async factory, and isolation='clone' needs its app at once: leave "
                "out isolation=, so that each sandbox is made by the factory."
            )
        check_app(app, f"what {name} returned")
        not_wrapped(app, f"what {name} returned")
    return CloneFactory(
        app, lifespan="once" if lifespan == "auto" else lifespan, middleware=middleware, **common
    ), "clone"


def isolate_wsgi(
    app: Any,
    *,
    factory: bool,
    isolation: str | SandboxFactory,
    run_in: str,
    reset: Any,
    keep: tuple[str, ...],
    share: tuple[str, ...],
    packages: tuple[str, ...],
    shared: tuple[str, ...],
    middleware: dict[Any, str],
    abandoned: set[Any],
    max_abandoned: int | None,
    name: str,
) -> tuple[SandboxFactory, str]:
    """Return what makes the sandboxes of a WSGI app, and the name of the isolation."""
    if isolation == "factory":
        _needs_factory(factory)
    elif isolation != "auto":
        raise OptionError(
            f"isolation={isolation!r} is for ASGI apps, but wsgi=True: leave it out. All sandboxes "
            "share a WSGI app, unless a function that makes one for each is passed with "
            "factory=True."
        )
    if keep or share or packages or shared or middleware:
        raise OptionError(
            "keep=, share=, packages=, shared= and middleware= say what is private in an ASGI "
            "app, but wsgi=True: leave them out."
        )
    from .adapters.wsgi import GatewayFactory, WorkerThreads, WSGIGateway, restore

    threads = None
    if run_in != "cooperative":
        in_sandbox = run_in == "thread"
        threads = WorkerThreads(name, abandoned, max_abandoned, in_sandbox=in_sandbox)
    # WSGI knows no lifespan.
    common: dict[str, Any] = {"lifespan": "off", "name": name}
    if factory:
        from .isolation.factory import AppFactory

        common["reset"] = restore if reset == "restore" else reset
        return AppFactory(GatewayFactory(app, name, threads), **common), "factory"
    from .isolation.clone import CloneFactory

    return CloneFactory(WSGIGateway(app, name, threads), reset=reset, **common), "shared"


def _needs_factory(factory: bool) -> None:
    if not factory:
        raise OptionError(
            "isolation='factory' makes an app for each sandbox, but an app was given: pass "
            "the function that makes it, with factory=True."
        )


def not_wrapped(app: object, name: str) -> None:
    """Refuse to put a pool in front of a pool."""
    if isinstance(app, SandboxedApp):
        raise AppTypeError(
            f"{name} is wrapped already: name the app that was passed to wrap(), or serve "
            "it as it is."
        )
