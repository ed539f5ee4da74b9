"""The whole error tree.

Callers branch on classes and attributes, never on text. Each error also inherits the built-in
whose meaning it shares, so that `except TimeoutError` keeps working.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ._leak_report import LeakReport
    from .abc import Holder

__all__ = (
    "AppError",
    "AppImportError",
    "AppTypeError",
    "CacheClosedError",
    "CacheCycleError",
    "CacheError",
    "CacheResolverError",
    "CacheTimeoutError",
    "CacheUnavailableError",
    "CacheValueError",
    "ChildDeadlockError",
    "ChildTimeoutError",
    "ConformanceError",
    "ConnectionBusyError",
    "DeadlockError",
    "ExecutionTimeoutError",
    "FactoryError",
    "LeakError",
    "LeaseEndedError",
    "LifespanError",
    "LifespanShutdownError",
    "LifespanStartupError",
    "ModuleIsolationError",
    "NestedAcquireError",
    "NoLeaseError",
    "OptionError",
    "PoolClosedError",
    "PoolError",
    "PoolExhaustedError",
    "PoolFullError",
    "PoolNotOpenError",
    "PoolTimeoutError",
    "PrivateModuleError",
    "SandboxPoolError",
    "ThreadLimitError",
    "WrongLoopError",
)


class SandboxPoolError(Exception):
    """The root of every error that this library raises by itself."""


class OptionError(SandboxPoolError, ValueError):
    """An option has a value that cannot work, alone or together with another one."""


# --- the pool -----------------------------------------------------------------------------


class PoolError(SandboxPoolError):
    """Something about a pool, rather than about what it pools."""


class PoolNotOpenError(PoolError, RuntimeError):
    """The pool was used before it was opened."""


class PoolClosedError(PoolError, RuntimeError):
    """The pool is closing or closed: nothing can be acquired from it any more."""


class WrongLoopError(PoolError, RuntimeError):
    """The pool was used from another event loop or thread than the one that opened it."""


class NestedAcquireError(PoolError, RuntimeError):
    """A hook of the factory acquired from the very pool that waits for the hook."""


class PoolExhaustedError(PoolError):
    """Nothing was free, and the wait was refused or took too long.

    Attributes:
        holders: The leases that were held longest at that moment, the oldest first.
    """

    def __init__(self, message: str, holders: Sequence[Holder] = ()) -> None:
        super().__init__(message)
        self.holders = tuple(holders)


class PoolTimeoutError(PoolExhaustedError, TimeoutError):
    """Nothing became free within the acquire timeout."""


class PoolFullError(PoolExhaustedError):
    """As many callers as `max_waiting` allows were waiting already."""


class DeadlockError(PoolError, RuntimeError):
    """This wait could never have ended: whoever could end it waits for this caller.

    Attributes:
        chain: Who waits for which pool, and who holds it, up to where it closes.
    """

    def __init__(self, message: str, chain: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.chain = tuple(chain)


class ConnectionBusyError(PoolError, RuntimeError):
    """A connection is in the middle of something that must end before it can do this."""


class FactoryError(PoolError):
    """A hook of the factory failed, and this caller was waiting for it.

    The hook's own exception is the `__cause__`.

    Attributes:
        phase: Which hook it was, `"create"` or `"on_acquire"`.
    """

    def __init__(self, message: str, *, phase: str) -> None:
        super().__init__(message)
        self.phase = phase


class LeaseEndedError(PoolError, RuntimeError):
    """A lease was used after its end, was released twice, or belongs to another pool."""


# --- requests -----------------------------------------------------------------------------


class NoLeaseError(SandboxPoolError, LookupError):
    """Code asked for the current lease or its context outside of any request."""


class ThreadLimitError(SandboxPoolError, RuntimeError):
    """No further thread, or file descriptor for one, is to be had for a sandbox."""


class LeakError(SandboxPoolError, RuntimeError):
    """A request has left something behind, and `leaks="raise"` was asked for.

    It is raised when the response is out.

    Attributes:
        report: What it has left behind.
    """

    def __init__(self, message: str, report: LeakReport) -> None:
        super().__init__(message)
        self.report = report


class ExecutionTimeoutError(SandboxPoolError, TimeoutError):
    """A request ran longer than its execution timeout and was cut off after its response began."""


# --- the wrapped app ----------------------------------------------------------------------


class AppError(SandboxPoolError):
    """What was given to `wrap()` cannot be wrapped."""


class AppTypeError(AppError, TypeError):
    """What was given to `wrap()` is not an ASGI app, or not a factory of one."""


class AppImportError(AppError, ImportError):
    """The import string given to `wrap()` names nothing that can be imported."""


class ModuleIsolationError(AppError, RuntimeError):
    """A module of the app can neither be executed for each sandbox nor be shared by all."""


class PrivateModuleError(SandboxPoolError, AttributeError):
    """A private module was asked for by code of no sandbox, or by one that has not imported it."""


class LifespanError(SandboxPoolError, RuntimeError):
    """The lifespan of an app failed."""


class LifespanStartupError(LifespanError):
    """The app reported `lifespan.startup.failed`, or took too long to start."""


class LifespanShutdownError(LifespanError):
    """The app reported `lifespan.shutdown.failed`, or took too long to stop."""


# --- the cache ----------------------------------------------------------------------------


class CacheError(SandboxPoolError):
    """Something about a cache."""


class CacheValueError(CacheError, ValueError):
    """A value cannot be stored, or what is stored cannot be used like that."""


class CacheClosedError(CacheError, RuntimeError):
    """The cache was closed: it holds nothing any more, and takes nothing."""


class CacheCycleError(CacheError, RuntimeError):
    """A resolver asked for a key whose own resolver waits, directly or not, for this one."""


class CacheTimeoutError(CacheError, TimeoutError):
    """A resolver ran longer than `resolver_timeout` and was cancelled."""


class CacheResolverError(CacheError, RuntimeError):
    """A resolver failed for whom this caller waited, with an exception that cannot be copied."""


class CacheUnavailableError(CacheError, ConnectionError):
    """The server that holds the cache cannot be reached, or does not answer in time."""


# --- concurrent work ----------------------------------------------------------------------


class ChildDeadlockError(PoolExhaustedError):
    """A child needs a sandbox of its own, and all are held by requests that wait for children."""


class ChildTimeoutError(SandboxPoolError, TimeoutError):
    """Children of `concurrently()` were not done in time, and were stopped.

    Attributes:
        unfinished: Which of them, by their number, from 0.
    """

    def __init__(self, message: str, unfinished: Sequence[int] = ()) -> None:
        super().__init__(message)
        self.unfinished = tuple(unfinished)


# --- parts of your own --------------------------------------------------------------------


class ConformanceError(SandboxPoolError, AssertionError):
    """A part of yours breaks a rule of its contract; raised by `sandboxpool.testing`.

    Attributes:
        check: The name of the check, like `"test_first_come_first_served"`.
        rule: The rule, one sentence.
        seen: What was seen instead.
        contract: The sentence of `sandboxpool.abc` behind it.
    """

    def __init__(self, check: str, rule: str, contract: str, *, seen: str) -> None:
        self.check = check
        self.rule = rule
        self.seen = seen
        self.contract = contract
        super().__init__(f"{rule}\n  seen: {seen}\n  contract: {contract}\n  check: {check}")


# Tracebacks name what users import: `sandboxpool.PoolTimeoutError`, not the private module.
for _name in __all__:
    globals()[_name].__module__ = "sandboxpool"
del _name
