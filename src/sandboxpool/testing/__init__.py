"""The conformance kits for parts of your own, and what the pytest plugin hands out.

A kit is a class with the checks of one contract of `sandboxpool.abc`. Inherit from it, say how one
of your parts is made, and pytest runs each check as a test, on asyncio and on Trio. The kits
import no pytest: `await check_conformance(MyKit())` runs them anywhere.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ._conformance import Conformance as Conformance
    from ._conformance import broken_rules as broken_rules
    from ._conformance import check_conformance as check_conformance
    from ._context_store import ContextStoreConformance as ContextStoreConformance
    from ._factory import FactoryConformance as FactoryConformance
    from ._leased_sandbox import LeasedSandbox as LeasedSandbox
    from ._pool import PoolConformance as PoolConformance
    from ._probe_app import ProbeApp as ProbeApp
    from ._sandbox import SandboxConformance as SandboxConformance
    from ._sandbox_factory import SandboxFactoryConformance as SandboxFactoryConformance
    from ._sandbox_pool import SandboxPool as SandboxPool
    from ._watchdog import WatchdogConformance as WatchdogConformance

# Imported when they are asked for: pytest imports this package in each run, for the plugin in it.
_PLACES = {
    "Conformance": "_conformance",
    "ContextStoreConformance": "_context_store",
    "FactoryConformance": "_factory",
    "LeasedSandbox": "_leased_sandbox",
    "PoolConformance": "_pool",
    "ProbeApp": "_probe_app",
    "SandboxConformance": "_sandbox",
    "SandboxFactoryConformance": "_sandbox_factory",
    "SandboxPool": "_sandbox_pool",
    "WatchdogConformance": "_watchdog",
    "broken_rules": "_conformance",
    "check_conformance": "_conformance",
}

__all__ = tuple(_PLACES)


def __getattr__(name: str) -> object:
    if name not in _PLACES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_PLACES[name]}", __name__), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *_PLACES})
