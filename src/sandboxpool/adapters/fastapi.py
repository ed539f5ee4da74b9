"""What a clone must know about FastAPI beyond Starlette."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from fastapi import FastAPI, routing
from fastapi.dependencies import models

from sandboxpool._context import current
from sandboxpool.isolation._data import copy_plain

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

    def answers(self, app: Any) -> dict[str, Callable[[Any, Any], Any]]:
        """Answer for the schema, which takes tens of milliseconds to generate."""
        if not isinstance(app, FastAPI):
            return {}
        return {"openapi": Schema(), "openapi_schema": _schema_of}

    def blank(self, value: Any) -> dict[str, Any]:
        """Leave out a schema that was generated at start-up.

        It is far larger than the rest of the app, so a twin gets its copy only when asked for.
        """
        if not isinstance(value, FastAPI):
            return {}
        return {} if _look(_attributes(value)) is None else {"openapi_schema": None}

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


_COUNT = "_get_routes_version"
_DESCRIBED = (
    "title",
    "version",
    "openapi_version",
    "summary",
    "description",
    "terms_of_service",
    "contact",
    "license_info",
    "openapi_tags",
    "servers",
    "separate_input_output_schemas",
    "openapi_external_docs",
)
"""The attributes of an app that its schema shows."""


class Schema:
    """The OpenAPI schema of a template, generated once for all of its private twins.

    The route `/openapi.json` asks the template. A twin that looks like the template gets a copy
    of the template's schema; one that a request has changed generates its own, as does an app
    with an `openapi` of the user's.
    """

    def __init__(self) -> None:
        self._look: list[Any] | None = None
        self._own: Any = None
        self._schema: dict[str, Any] = {}

    def __call__(self, template: Any, twin: Any) -> Callable[[], Any]:
        """Return what *twin* has as its `openapi`."""
        if type(twin).openapi is not FastAPI.openapi or "openapi" in vars(twin):
            made: Callable[[], Any] = twin.openapi
            return made
        return partial(self._openapi, template, twin)

    def _openapi(self, template: Any, twin: Any) -> Any:
        values = _attributes(template)
        look = _look(values)
        if twin.openapi_schema is None and look is not None and look == _look(vars(twin)):
            if self._look != look or self._own is not values["openapi_schema"]:
                self._generate(values, type(twin))
            twin.openapi_schema = copy_plain(self._schema, {})
            twin._openapi_routes_version = getattr(twin.router, _COUNT)()
        return twin.openapi()

    def _generate(self, values: dict[str, Any], cls: Any) -> None:
        # On a shallow copy and outside of the request: nothing that the request has done shows,
        # and the template itself does not change.
        token = current.set(None)
        try:
            copied = object.__new__(cls)
            copied.__dict__.update(values)
            # What the template has of its own is as good, if it is not out of date.
            self._schema, self._own = FastAPI.openapi(copied), values["openapi_schema"]
            self._look = copy_plain(_look(values), {})
        finally:
            current.reset(token)


def _schema_of(template: Any, twin: Any) -> Any:
    """Return the `openapi_schema` of *twin*, at first a copy of the template's."""
    values = _attributes(template)
    own = values["openapi_schema"]
    if twin.openapi_schema is None and own is not None:
        look = _look(values)
        if look is not None and look == _look(vars(twin)):
            twin.openapi_schema = copy_plain(own, {})
    return twin.openapi_schema


def _attributes(app: Any) -> dict[str, Any]:
    """Return the attributes of the template itself, whatever it stands for."""
    values: dict[str, Any] = object.__getattribute__(app, "__dict__")
    return values


def _look(values: dict[str, Any]) -> list[Any] | None:
    """Return what a schema depends on; `None` if this FastAPI does not count its routes."""
    routers = [values.get("router"), values.get("webhooks")]
    if not all(hasattr(router, _COUNT) for router in routers):
        return None
    look = [values.get(name) for name in _DESCRIBED]
    for router in routers:
        look.append(getattr(router, _COUNT)())
        look.append([getattr(route, "endpoint", None) for route in router.routes])  # type: ignore[union-attr]
    return look


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
