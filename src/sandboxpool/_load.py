"""What was given to `wrap()`: find the app, or say what to write instead."""

from __future__ import annotations

import importlib
import inspect
import sys
from collections.abc import Callable
from typing import Any

from ._exceptions import AppImportError, AppTypeError

# Their subclasses are WSGI apps, whatever the signature is that they show.
_WSGI_CLASSES = frozenset({("flask.app", "Flask"), ("django.core.handlers.wsgi", "WSGIHandler")})


def load(
    app: object,
    *,
    factory: bool,
    wsgi: bool = False,
    import_module: Callable[[str], Any] = importlib.import_module,
) -> tuple[Any, str]:
    """Resolve import strings and check that *app* is what `factory` and `wsgi` say it is.

    Args:
        app: The app, a function that makes it, or an import string for either.
        factory: Whether it is such a function.
        wsgi: Whether the app is a WSGI app.
        import_module: Returns the module of an import string.

    Returns:
        The app, or the factory of one, and a name for it.

    Raises:
        AppImportError: An import string names nothing.
        AppTypeError: It is not an app of that kind, or not a factory of one.
    """
    name = _name(app)
    if isinstance(app, str):
        app = import_string(app, import_module)
    if factory:
        _check_factory(app, name, wsgi=wsgi)
    else:
        check_app(app, name, wsgi=wsgi)
    return app, name


def import_string(text: str, import_module: Callable[[str], Any] = importlib.import_module) -> Any:
    """Return what `"module:attribute"` names; the attribute may be dotted.

    Raises:
        AppImportError: The string, the module or the attribute is wrong. An error inside of the
            module is raised as it is.
    """
    module_name, colon, attributes = text.partition(":")
    if not colon or not module_name or not attributes or module_name.startswith("."):
        raise AppImportError(
            f'import string {text!r} must be in the form "<module>:<attribute>", '
            'like "shop.main:app".'
        )
    try:
        module = import_module(module_name)
    except ModuleNotFoundError as error:
        # Of the module itself or a parent, not of something that the module imports.
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise AppImportError(
            f"import string {text!r}: there is no module {error.name!r}. "
            f"Is its folder on the import path? ({_import_path()})"
        ) from None
    value: Any = module
    for attribute in attributes.split("."):
        try:
            value = getattr(value, attribute)
        except AttributeError:
            candidates = [
                name
                for name, member in vars(module).items()
                if not name.startswith("_")
                and callable(member)
                and not inspect.isclass(member)
                and (not inspect.isfunction(member) or member.__module__ == module_name)
            ]
            has = f" It has: {', '.join(sorted(candidates)[:8])}." if candidates else ""
            raise AppImportError(
                f"import string {text!r}: module {module_name!r} has no attribute "
                f"{attributes!r}.{has}"
            ) from None
    return value


def _import_path() -> str:
    return f"{len(sys.path)} folders, the first is {sys.path[0] or 'the current one'!r}"


def check_app(app: object, name: str, *, wsgi: bool = False) -> None:
    """Refuse what is not an ASGI 3 app, or not a WSGI app, and say what to write instead."""
    wrap = "wrap(..., wsgi=True) takes a WSGI app" if wsgi else "wrap() takes an ASGI app"
    if inspect.iscoroutine(app):
        app.close()
        raise AppTypeError(
            f"{wrap}, got {name}, a coroutine: an async function was called. "
            "Pass the function itself if it is the app; if it makes the app, pass it with "
            "factory=True."
        )
    if not callable(app):
        instead = (
            "Pass a Flask app, a Django WSGIHandler, a `def app(environ, start_response)`"
            if wsgi
            else "Pass a Starlette or FastAPI instance, an `async def app(scope, receive, send)`"
        )
        raise AppTypeError(
            f"{wrap}, got {name} of type {type(app).__name__}, "
            f'which cannot be called. {instead}, or an import string like "shop.main:app".'
        )
    if isinstance(app, type) and not (_makes_responses(app) if wsgi else _makes_awaitables(app)):
        raise AppTypeError(
            f"{wrap}, got the class {app.__name__}: pass an instance, "
            f"or factory=True to have one {app.__name__}() made for each sandbox."
        )
    wanted = _positional(app)
    # Some say what they are although their signature, such as `*args`, does not.
    if wsgi and (_is_app_object(app) or _is_async(app)):
        wanted = range(3, 4)
    elif not wsgi and _is_wsgi_object(app):
        wanted = range(2, 3)
    if wanted is None or (2 if wsgi else 3) in wanted:
        return
    if wanted.start == 0:
        raise AppTypeError(
            f"{wrap}, got {name}, which is called without arguments and looks "
            "like a factory: write wrap(..., factory=True), or pass the app that it returns."
        )
    if wsgi and 3 in wanted:
        raise AppTypeError(
            f"{wrap}, got {name}, which looks like an ASGI app: leave out wsgi=True."
        )
    if wsgi:
        raise AppTypeError(
            f"{wrap}, called as app(environ, start_response); {name} does not take two "
            "positional arguments."
        )
    if 2 in wanted:
        raise AppTypeError(
            f"{wrap}, got {name}, which takes two arguments and looks like a WSGI app: pass "
            "wsgi=True."
        )
    raise AppTypeError(
        f"wrap() takes an ASGI 3 app, called as app(scope, receive, send); {name} does not take "
        "three positional arguments. (An ASGI 2 app, called as app(scope), needs "
        "asgiref.compatibility.guarantee_single_callable in front.)"
    )


def is_wsgi(app: Any) -> bool:
    """Tell whether *app* is certainly a WSGI app."""
    return _is_wsgi_object(app) or (not isinstance(app, type) and _positional(app) == range(2, 3))


def _check_factory(make: object, name: str, *, wsgi: bool) -> None:
    kind = ", wsgi=True" if wsgi else ""
    wrap = f"wrap(..., factory=True{kind})"
    if inspect.iscoroutine(make):
        make.close()
        raise AppTypeError(
            f"{wrap} takes a function that makes an app, got {name}, a "
            "coroutine: pass the function itself, without calling it."
        )
    if not callable(make):
        raise AppTypeError(
            f"{wrap} takes a function that makes an app, got {name} of type "
            f"{type(make).__name__}, which cannot be called."
        )
    wanted = _positional(make)
    if wanted is not None and wanted.start > 0:
        remedy = (
            "It looks like an app: leave out factory=True."
            if (2 if wsgi else 3) in wanted or _is_wsgi_object(make)
            else "Bind its arguments with functools.partial or a lambda."
        )
        raise AppTypeError(
            f"{wrap} takes a function without arguments, but {name} needs {wanted.start}. {remedy}"
        )
    if _is_app_object(make) or _is_wsgi_object(make):
        raise AppTypeError(
            f"{wrap} takes a function that makes an app, but {name} is an app: "
            "leave out factory=True."
        )


def _makes_responses(cls: type) -> bool:
    """Tell whether calling *cls* is a WSGI call: PEP 3333 allows for such classes."""
    return hasattr(cls, "__iter__")


def _is_wsgi_object(value: object) -> bool:
    # By name: whoever asks need not have imported what is asked about.
    return any(
        (base.__module__, base.__qualname__) in _WSGI_CLASSES for base in type(value).__mro__
    )


def _is_async(function: object) -> bool:
    call = getattr(type(function), "__call__", None)  # noqa: B004 - the function itself is meant
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


def _makes_awaitables(cls: type) -> bool:
    """Tell whether calling *cls* is an ASGI call, as with Starlette's `HTTPEndpoint`."""
    return hasattr(cls, "__await__")


def _is_app_object(value: object) -> bool:
    return hasattr(value, "middleware_stack") and hasattr(value, "router")


def _positional(function: Callable[..., Any]) -> range | None:
    """Return how many positional arguments *function* can be called with, if that is known."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None
    least = most = 0
    for parameter in parameters:
        if parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD):
            most += 1
            least += parameter.default is parameter.empty
        elif parameter.kind is parameter.VAR_POSITIONAL:
            most = max(most, 255)
        elif parameter.kind is parameter.KEYWORD_ONLY and parameter.default is parameter.empty:
            return range(256, 257)
    return range(least, most + 1)


def _name(app: object) -> str:
    if isinstance(app, str):
        return app
    named = app if hasattr(app, "__qualname__") else type(app)
    module = getattr(named, "__module__", "") or ""
    qualified = f"{module}.{getattr(named, '__qualname__', repr(named))}".lstrip(".")
    return qualified
