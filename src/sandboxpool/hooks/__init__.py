"""Blocking calls made cooperative: they suspend the request that makes them, and no other.

`install()` replaces functions and methods of the standard library by ones that look who calls.
Code of a request that runs with `run_in="cooperative"` waits by way of the event loop. All other
code gets the original: other threads, the event loop itself, requests that run in another way.
"""

from __future__ import annotations

from ._install import DEFAULT_HOOKS as DEFAULT_HOOKS
from ._install import HOOKS as HOOKS
from ._install import HookName as HookName
from ._install import install as install
from ._install import installed as installed
from ._install import uninstall as uninstall

__all__ = ("DEFAULT_HOOKS", "HOOKS", "HookName", "install", "installed", "uninstall")
