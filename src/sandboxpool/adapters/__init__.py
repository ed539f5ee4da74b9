"""What a framework needs for its apps to be cloned.

An adapter is found by what is already imported: an app of a framework that was never imported
cannot exist, so asking costs no import.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

from .asgi import Adapter, AsgiAdapter

__all__ = ("Adapter", "AsgiAdapter", "adapter_for", "adapters")

_MODULES = {
    "fastapi": "sandboxpool.adapters.fastapi",
    "starlette": "sandboxpool.adapters.starlette",
}
_loaded: dict[str, Adapter] = {}
_plain = AsgiAdapter()


def adapters() -> tuple[Adapter, ...]:
    """Return the adapters of the frameworks that are imported, the most specific first."""
    for framework, module in _MODULES.items():
        if framework not in _loaded and f"{framework}.applications" in sys.modules:
            _loaded[framework] = import_module(module).adapter
    return (*(_loaded[name] for name in _MODULES if name in _loaded), _plain)


def adapter_for(value: Any) -> Adapter:
    """Return the adapter that knows objects like *value*."""
    for adapter in adapters():
        if adapter.knows(value):
            return adapter
    return _plain
