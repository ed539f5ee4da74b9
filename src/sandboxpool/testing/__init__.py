"""The conformance kits for parts of your own, and the pytest plugin.

A kit is a class with the checks of one contract of `sandboxpool.abc`. Inherit from it, say how one
of your parts is made, and pytest runs each check as a test, on asyncio and on Trio. The kits
import no pytest: `await check_conformance(MyKit())` runs them anywhere.
"""

from __future__ import annotations

from ._conformance import Conformance as Conformance
from ._conformance import broken_rules as broken_rules
from ._conformance import check_conformance as check_conformance
from ._context_store import ContextStoreConformance as ContextStoreConformance
from ._factory import FactoryConformance as FactoryConformance
from ._pool import PoolConformance as PoolConformance
from ._probe_app import ProbeApp as ProbeApp
from ._sandbox import SandboxConformance as SandboxConformance
from ._sandbox_factory import SandboxFactoryConformance as SandboxFactoryConformance
from ._watchdog import WatchdogConformance as WatchdogConformance
