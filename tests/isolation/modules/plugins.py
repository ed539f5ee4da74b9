"""Code outside of the private packages that imports by name, as plugin systems do."""

from __future__ import annotations

import pkgutil
from typing import Any

from starlette.applications import Starlette


def load(name: str) -> Any:
    return pkgutil.resolve_name(name)


def attribute(module: str, name: str) -> Any:
    return getattr(__import__(module, fromlist=[name]), name)


app = Starlette()
"""An app that all sandboxes have in common."""
