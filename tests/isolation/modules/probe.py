"""Packages that a test writes, and apps in them that call their functions."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from tests.isolation.driver import call


def probing(*functions: Callable[..., Any], **options: Any) -> Starlette:
    """Return an app that calls each function at its own name, with the query as arguments."""

    def route(function: Callable[..., Any]) -> Route:
        async def endpoint(request: Request) -> JSONResponse:
            result = function(**request.query_params)
            if inspect.isawaitable(result):
                result = await result
            return JSONResponse(result)

        return Route(f"/{function.__name__}", endpoint)

    return Starlette(routes=[route(function) for function in functions], **options)


def write(folder: Path, text: str) -> None:
    """Write files; each begins with a line that says `### path`."""
    for part in text.split("### ")[1:]:
        path, _, content = part.partition("\n")
        file = folder / path.strip()
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(content)


@contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Put a folder on the import path; nothing of it stays imported."""
    before, path = set(sys.modules), list(sys.path)
    sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    try:
        yield
    finally:
        sys.path[:] = path
        # Looked at first: a namespace package asks the one around it for its path.
        ours = []
        for name in set(sys.modules) - before:
            file = getattr(sys.modules[name], "__file__", None)
            places = [file] if file else list(getattr(sys.modules[name], "__path__", ()))
            if any(str(place).startswith(str(folder)) for place in places):
                ours.append(name)
        tops = {name.partition(".")[0] for name in ours}
        # By their package: a module may have put anything in its own place.
        for name in [name for name in sys.modules if name.partition(".")[0] in tops]:
            del sys.modules[name]


async def ask(app: Any, path: str, **query: str) -> Any:
    """Send a request and return what the function has returned."""
    text = "&".join(f"{key}={value}" for key, value in query.items())
    answer = await call(app, path, query=text)
    assert answer.status == 200, answer
    return answer.data
