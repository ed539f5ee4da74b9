"""What a clone must know about FastAPI beyond Starlette."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI, routing
from fastapi.dependencies import models

from .starlette import StarletteAdapter

_TELEMETRY = frozenset({"_telemetry", "_native_telemetry"})


class FastAPIAdapter(StarletteAdapter):
    """Knows what FastAPI adds to Starlette."""

    def knows(self, value: Any) -> bool:
        """Know FastAPI's apps; the rest is Starlette's."""
        return isinstance(value, FastAPI)

    def shared_attributes(self, value: Any) -> frozenset[str]:
        """Share the telemetry, which makes its instruments only once per object."""
        return _TELEMETRY if isinstance(value, FastAPI) else frozenset()

    def forget(self, app: Any) -> None:
        """Clear what FastAPI keeps for ever about the functions of an app.

        It caches by `id()`, so a stale entry would also describe the next function that happens
        to get the same address, and by the callable itself, which keeps a dropped app alive.
        """
        contexts = getattr(routing, "_endpoint_context_cache", None)
        if isinstance(contexts, dict):
            for function in _endpoints(app):
                contexts.pop(id(function), None)
        # An lru_cache cannot drop single entries. What is cleared is computed again on demand.
        for cached in vars(models).values():
            clear = getattr(cached, "cache_clear", None)
            if clear is not None:
                clear()


def _endpoints(app: Any) -> list[Any]:
    """Return the endpoints of all routes, also of included routers and mounted apps."""
    found: list[Any] = []
    seen: set[int] = set()
    pending = [app]
    while pending:
        routes = pending.pop()
        if id(routes) in seen:
            continue
        seen.add(id(routes))
        endpoint = getattr(routes, "endpoint", None)
        if endpoint is not None:
            found.append(endpoint)
        pending.extend(getattr(routes, "routes", None) or ())
        included = getattr(routes, "original_router", None)
        if included is not None:
            pending.append(included)
    return found


adapter = FastAPIAdapter()
