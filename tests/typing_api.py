"""What a type checker knows of the public interface; `test_typing.py` runs mypy on this file.

Nothing here is ever run. Each `type: ignore` is an error that must be found: mypy complains about
those that are not needed.
"""

from __future__ import annotations

from collections.abc import Awaitable, Mapping
from typing import Any

from fastapi import FastAPI
from flask import Flask
from starlette.applications import Starlette
from typing_extensions import assert_type

import sandboxpool
from sandboxpool import (
    AppStatistics,
    FunctionFactory,
    Pool,
    PoolStatistics,
    RequestLease,
    SandboxedApp,
    context,
    current_lease,
    current_sandbox,
    wrap,
)
from sandboxpool.abc import ContextStore, Sandbox, SandboxFactory, Watchdog
from sandboxpool.abc import RequestLease as RequestLeaseProtocol
from sandboxpool.isolation.clone import CloneFactory
from sandboxpool.isolation.factory import AppFactory


async def raw(scope: Any, receive: Any, send: Any) -> None: ...


def make() -> Starlette:
    return Starlette()


async def make_later() -> FastAPI:
    return FastAPI()


async def close_later(app: FastAPI) -> None: ...


async def answer_with_value(scope: Any, receive: Any, send: Any) -> int:
    return 0


def wsgi(environ: dict[str, Any], start_response: Any) -> list[bytes]:
    return []


def make_flask() -> Flask:
    return Flask("shop")


# --- what wrap() takes ------------------------------------------------------------------------

assert_type(wrap(Starlette()), SandboxedApp)
assert_type(wrap(FastAPI()), SandboxedApp)
assert_type(wrap(raw), SandboxedApp)
assert_type(wrap(answer_with_value), SandboxedApp)
assert_type(wrap("shop.main:app"), SandboxedApp)
assert_type(wrap("shop.main:create_app", factory=True), SandboxedApp)
assert_type(wrap(make, factory=True), SandboxedApp)
assert_type(wrap(make_later, factory=True), SandboxedApp)
assert_type(wrap(lambda: Starlette(), factory=True), SandboxedApp)
assert_type(wrap(Starlette, factory=True), SandboxedApp)
assert_type(wrap(make, factory=True, isolation="clone"), SandboxedApp)
assert_type(wrap(raw, isolation="clone", lifespan="each", reset="fresh"), SandboxedApp)
assert_type(wrap(wsgi, wsgi=True), SandboxedApp)
assert_type(wrap(Flask("shop"), wsgi=True, run_in="thread"), SandboxedApp)
assert_type(wrap(make_flask, factory=True, wsgi=True), SandboxedApp)
assert_type(wrap("shop.main:app", wsgi=True), SandboxedApp)

# --- and what it does not ---------------------------------------------------------------------

wrap(make)  # type: ignore[arg-type]
wrap(lambda: Starlette())  # type: ignore[arg-type, misc]
wrap(make_later)  # type: ignore[arg-type]
wrap(wsgi)  # type: ignore[arg-type]
wrap(Flask("shop"))  # type: ignore[arg-type]
wrap(raw, wsgi=True)  # type: ignore[call-overload]
wrap(wsgi, wsgi=True, isolation="clone")  # type: ignore[call-overload]
wrap(make())
wrap(make_later())  # type: ignore[call-overload]
wrap(raw, factory=True)  # type: ignore[call-overload]
wrap(Starlette(), factory=True)  # type: ignore[call-overload]
wrap(3)  # type: ignore[call-overload]
wrap(None)  # type: ignore[call-overload]
wrap(app=raw)  # type: ignore[call-overload]
wrap(raw, False)  # type: ignore[call-overload]
wrap(raw, max_sizes=3)  # type: ignore[call-overload]
wrap(raw, max_size="3")  # type: ignore[call-overload]
wrap(raw, isolation="factory")  # type: ignore[call-overload]
wrap(raw, isolation="clown")  # type: ignore[call-overload]
wrap(raw, lifespan="twice")  # type: ignore[call-overload]
wrap(raw, reset="never")  # type: ignore[call-overload]
wrap(raw, middleware={"X": "clone"})  # type: ignore[dict-item]
wrap(raw, watchdog=object())  # type: ignore[call-overload]

# --- what comes out ---------------------------------------------------------------------------

sandboxed = wrap(raw)
assert_type(sandboxed.statistics(), AppStatistics)
assert_type(sandboxed.statistics().as_dict(), dict[str, Any])
assert_type(sandboxed.statistics().pool, PoolStatistics)
assert_type(sandboxed.pool, "Pool[Sandbox] | None")
wrap(sandboxed.stats_app)


async def use() -> None:
    async with wrap(raw) as opened:
        assert_type(opened, SandboxedApp)
    assert_type(current_lease(), RequestLease)
    assert_type(current_sandbox(), Sandbox)
    assert_type(context.get_or_set("x", lambda: [1]), list[int])
    assert_type(context.copy(), dict[str, Any])
    assert_type(context.has("x"), bool)
    assert_type(context.delete("x"), bool)
    context.defer(print, "x")
    context.defer(3)  # type: ignore[arg-type]
    current_lease().extend(None)
    current_lease().extend("5")  # type: ignore[arg-type]
    current_lease().id = 3  # allowed: it is a plain attribute
    async with Pool(FunctionFactory(create=make)) as pool:
        assert_type(pool, Pool[Starlette])
        async with pool.lease() as item:
            assert_type(item, Starlette)
        async with pool.lease(timeout=None) as item:
            assert_type(item, Starlette)
    assert_type(FunctionFactory(create=make_later), FunctionFactory[FastAPI])
    assert_type(FunctionFactory(make, reset=lambda app: app.routes), FunctionFactory[Starlette])
    async with Pool(FunctionFactory(create=make_later, destroy=close_later)) as later:
        assert_type(later, Pool[FastAPI])
    FunctionFactory(create=make, destroy=close_later)  # type: ignore[arg-type]
    Pool(FunctionFactory(create=make), max_sizes=3)  # type: ignore[call-arg]
    async with Pool(OwnFactory()) as sandboxes:
        assert_type(sandboxes, Pool[OwnSandbox])


# --- ours fit the protocols, and so do those of users ----------------------------------------

store: ContextStore = context
lease: RequestLeaseProtocol = current_lease()
store = current_lease().context
clones: SandboxFactory = CloneFactory(raw)
products: SandboxFactory = AppFactory(make)


class OwnSandbox:
    """A sandbox as a user would write it."""

    async def __call__(self, scope: Any, receive: Any, send: Any, /) -> None: ...

    def reset(self) -> None: ...

    async def aclose(self) -> None: ...


class OwnFactory:
    """A factory as a user would write it."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def create(self) -> OwnSandbox:
        return OwnSandbox()

    async def reset(self, sandbox: OwnSandbox, /) -> None: ...

    def destroy(self, sandbox: OwnSandbox, /) -> Awaitable[None] | None: ...


class OwnWatchdog:
    """A watchdog as a user would write it."""

    def started(self, lease: RequestLeaseProtocol, /) -> None: ...

    def ended(self, lease: RequestLeaseProtocol, /) -> None: ...

    def changed(self, lease: RequestLeaseProtocol, /) -> None: ...

    def stop(self) -> None: ...


class HalfFactory:
    """Lacks most of what a factory has."""

    async def create(self) -> OwnSandbox:
        return OwnSandbox()


own: Sandbox = OwnSandbox()
watchdog: Watchdog = OwnWatchdog()
wrap(raw, isolation=OwnFactory(), watchdog=OwnWatchdog())
wrap(raw, isolation=HalfFactory())  # type: ignore[call-overload]

retired: Mapping[str, int] = sandboxed.statistics().pool.retired
errors: tuple[type[Exception], ...] = (
    sandboxpool.SandboxPoolError,
    sandboxpool.NoLeaseError,
    sandboxpool.ExecutionTimeoutError,
)


# --- a cache, and work at the same time -------------------------------------------------------


async def number() -> int:
    return 1


async def text() -> str:
    return ""


async def use_cache(cache: sandboxpool.Cache) -> None:
    assert_type(await cache.get_or_set("x", number), int)
    assert_type(await cache.get_or_set("x", lambda: [1]), list[int])
    assert_type(cache.blocking.get_or_set("x", lambda: "x"), str)
    assert_type(await cache.incr("x"), int)
    assert_type(await cache.request.get_or_set("x", text), str)
    assert_type(cache.blocking.incr("x"), int)
    assert_type(await cache.delete("x"), bool)
    assert_type(cache.statistics(), sandboxpool.CacheStatistics)
    await cache.get(3)  # type: ignore[arg-type]
    await cache.set("x", 1, "5")  # type: ignore[arg-type]
    sandboxpool.Cache(values="frosen")  # type: ignore[arg-type]


async def use_concurrently() -> None:
    assert_type(await sandboxpool.concurrently(number), tuple[int])
    assert_type(await sandboxpool.concurrently(number, text), tuple[int, str])
    assert_type(
        await sandboxpool.concurrently(number, text, number, text, number, text),
        tuple[int, str, int, str, int, str],
    )
    assert_type(await sandboxpool.concurrently(*[number, number]), tuple[int, ...])
    assert_type(
        await sandboxpool.concurrently(number, text, errors="collect", timeout=1, limit=2),
        tuple[int | Exception, str | Exception],
    )
    assert_type(
        await sandboxpool.concurrently(*[number], errors="collect"), tuple[int | Exception, ...]
    )
    await sandboxpool.concurrently(number())  # type: ignore[call-overload]
    await sandboxpool.concurrently(make)  # type: ignore[arg-type]
    await sandboxpool.concurrently(number, sandboxes="mine")  # type: ignore[call-overload]


@sandboxed.every(60)
async def tick(app: Any) -> None: ...


@sandboxed.every(0.5, jitter=0, immediate=True, name="plain")
def plain_tick(app: Starlette) -> int:
    return 1


assert_type(plain_tick(Starlette()), int)
assert_type(sandboxed.ticks, tuple[sandboxpool.TickStatistics, ...])
