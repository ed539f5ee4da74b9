"""Every request its own app: a pool of isolated app sandboxes in front of any ASGI app."""

from __future__ import annotations

from ._concurrently import concurrently as concurrently
from ._context import RequestLease as RequestLease
from ._context import context as context
from ._context import current_lease as current_lease
from ._context import current_sandbox as current_sandbox
from ._exceptions import AppError as AppError
from ._exceptions import AppImportError as AppImportError
from ._exceptions import AppTypeError as AppTypeError
from ._exceptions import CacheClosedError as CacheClosedError
from ._exceptions import CacheCycleError as CacheCycleError
from ._exceptions import CacheError as CacheError
from ._exceptions import CacheResolverError as CacheResolverError
from ._exceptions import CacheTimeoutError as CacheTimeoutError
from ._exceptions import CacheUnavailableError as CacheUnavailableError
from ._exceptions import CacheValueError as CacheValueError
from ._exceptions import ChildDeadlockError as ChildDeadlockError
from ._exceptions import ChildTimeoutError as ChildTimeoutError
from ._exceptions import ConformanceError as ConformanceError
from ._exceptions import ConnectionBusyError as ConnectionBusyError
from ._exceptions import DeadlockError as DeadlockError
from ._exceptions import ExecutionTimeoutError as ExecutionTimeoutError
from ._exceptions import FactoryError as FactoryError
from ._exceptions import LeakError as LeakError
from ._exceptions import LeaseEndedError as LeaseEndedError
from ._exceptions import LifespanError as LifespanError
from ._exceptions import LifespanShutdownError as LifespanShutdownError
from ._exceptions import LifespanStartupError as LifespanStartupError
from ._exceptions import ModuleIsolationError as ModuleIsolationError
from ._exceptions import NestedAcquireError as NestedAcquireError
from ._exceptions import NoLeaseError as NoLeaseError
from ._exceptions import OptionError as OptionError
from ._exceptions import PoolClosedError as PoolClosedError
from ._exceptions import PoolError as PoolError
from ._exceptions import PoolExhaustedError as PoolExhaustedError
from ._exceptions import PoolFullError as PoolFullError
from ._exceptions import PoolNotOpenError as PoolNotOpenError
from ._exceptions import PoolTimeoutError as PoolTimeoutError
from ._exceptions import PrivateModuleError as PrivateModuleError
from ._exceptions import SandboxPoolError as SandboxPoolError
from ._exceptions import ThreadLimitError as ThreadLimitError
from ._exceptions import WrongLoopError as WrongLoopError
from ._factory import FunctionFactory as FunctionFactory
from ._leak_report import Leak as Leak
from ._leak_report import LeakReport as LeakReport
from ._lease import PoolLease as PoolLease
from ._pool import Pool as Pool
from ._sandboxed import SandboxedApp as SandboxedApp
from ._stats import AppStatistics as AppStatistics
from ._stats import LeakStatistics as LeakStatistics
from ._stats import RequestInFlight as RequestInFlight
from ._stats import stats_route as stats_route
from ._ticks import TickStatistics as TickStatistics
from ._wrap import wrap as wrap
from .abc import Holder as Holder
from .abc import PoolStatistics as PoolStatistics
from .cache import Cache as Cache
from .cache import CacheStatistics as CacheStatistics

__version__ = "0.1.0"

__all__ = (
    "AppError",
    "AppImportError",
    "AppStatistics",
    "AppTypeError",
    "Cache",
    "CacheClosedError",
    "CacheCycleError",
    "CacheError",
    "CacheResolverError",
    "CacheStatistics",
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
    "FunctionFactory",
    "Holder",
    "Leak",
    "LeakError",
    "LeakReport",
    "LeakStatistics",
    "LeaseEndedError",
    "LifespanError",
    "LifespanShutdownError",
    "LifespanStartupError",
    "ModuleIsolationError",
    "NestedAcquireError",
    "NoLeaseError",
    "OptionError",
    "Pool",
    "PoolClosedError",
    "PoolError",
    "PoolExhaustedError",
    "PoolFullError",
    "PoolLease",
    "PoolNotOpenError",
    "PoolStatistics",
    "PoolTimeoutError",
    "PrivateModuleError",
    "RequestInFlight",
    "RequestLease",
    "SandboxPoolError",
    "SandboxedApp",
    "ThreadLimitError",
    "TickStatistics",
    "WrongLoopError",
    "__version__",
    "concurrently",
    "context",
    "current_lease",
    "current_sandbox",
    "stats_route",
    "wrap",
)
