"""What a clone must know about Starlette."""

from __future__ import annotations

from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import State
from starlette.middleware.errors import ServerErrorMiddleware
from starlette.middleware.exceptions import ExceptionMiddleware
from starlette.responses import Response
from starlette.routing import BaseRoute, Host, Mount, Route, Router, WebSocketRoute
from starlette.staticfiles import StaticFiles

from .asgi import Adapter, is_asgi_instance

_OWN = ("starlette.", "fastapi.")


class StarletteAdapter(Adapter):
    """Knows Starlette's apps, routers, mounts and states."""

    def knows(self, value: Any) -> bool:
        """Know what inherits from Starlette's own classes."""
        return isinstance(value, (Starlette, Router, BaseRoute, State, Response, StaticFiles))

    def is_app(self, value: Any) -> bool:
        """Tell whether *value* is a Starlette app."""
        return isinstance(value, Starlette)

    def is_node(self, value: Any) -> bool:
        """
        Copy apps, routers, mounts, and routes that lead to an object; share leaf routes.

        Responses that are served as apps are shared, for their headers are a view of one of
        their lists, and static files, which only remember that their directory was checked.
        """
        if isinstance(value, (Starlette, Router, Mount, Host)):
            return True
        if isinstance(value, (Route, WebSocketRoute)):
            # A plain endpoint is a function here and a class for class-based views. An object
            # is middleware round the endpoint, or an ASGI app: both have state of their own.
            return is_asgi_instance(value.app, "app")
        # A kind of route of the app's own may hold anything; the frameworks' own do not.
        return isinstance(value, BaseRoute) and not type(value).__module__.startswith(_OWN)

    def is_state(self, value: Any) -> bool:
        """Tell whether *value* is a `State`."""
        return type(value) is State

    def state_dict(self, value: Any) -> dict[str, Any]:
        """Return the dict behind a `State`."""
        values: dict[str, Any] = object.__getattribute__(value, "_state")
        return values

    def make_state(self, values: dict[str, Any]) -> Any:
        """Return a `State` over *values*."""
        return State(values)

    def prepare(self, app: Any) -> None:
        """Build the middleware stack, as the first request would.

        Through the instance's own attribute: instrumentors replace it there.
        """
        if isinstance(app, Starlette) and app.middleware_stack is None:
            app.middleware_stack = app.build_middleware_stack()

    def watched(self, app: Any) -> list[tuple[dict[str, Any], str]]:
        """Watch the routes and the exception handlers."""
        if isinstance(app, Starlette):
            return [(vars(app), "exception_handlers"), (vars(app.router), "routes")]
        if isinstance(app, Router):
            return [(vars(app), "routes")]
        return []

    def handler_sinks(self, app: Any) -> tuple[Any, Any] | None:
        """Find the two middlewares that hold copies of the exception handlers."""
        outer = inner = None
        layer, seen = vars(app).get("middleware_stack"), 0
        while layer is not None and seen < 1000:
            if isinstance(layer, ServerErrorMiddleware) and outer is None:
                outer = layer
            elif isinstance(layer, ExceptionMiddleware):
                inner = layer
                break
            layer, seen = getattr(layer, "app", None), seen + 1
        return (outer, inner) if outer is not None and inner is not None else None

    def user_middleware(self, app: Any) -> list[Any]:
        """Return `app.user_middleware`."""
        return list(vars(app).get("user_middleware") or ()) if isinstance(app, Starlette) else []


adapter: Adapter = StarletteAdapter()
