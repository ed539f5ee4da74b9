"""Middleware that all sandboxes share, although each has inner layers of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from sandboxpool._exceptions import OptionError


class SharedLayer:
    """First base of the classes made here."""

    __slots__ = ()

    def __init_subclass__(cls, **options: Any) -> None:
        # Do not tell the app's own base classes about a subclass that is not the user's.
        return


def shared_layer(original: Any, cls: type, names: Iterable[str]) -> Callable[[list[Any]], Any]:
    """Return what makes a twin of *original* that has all attributes in common with it but some.

    The twin has the very same `__dict__`, so that `self.count += 1` counts for all. The
    attributes that lead to what is private, above all to the next app, are slots of a class of
    its own: a slot comes before the dict.

    Args:
        original: The middleware object.
        cls: Its class.
        names: The attributes that each sandbox has of its own.

    Raises:
        OptionError: Objects of that class cannot share their attributes.
    """
    try:
        values = object.__getattribute__(original, "__dict__")
    except AttributeError:
        values = None
    namespace: dict[str, Any] = {
        "__slots__": tuple(names),
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
    }
    if hasattr(cls, "__del__"):
        # The finalizer is the original's: it must not run once for each sandbox as well.
        namespace["__del__"] = lambda self: None
    problem = "has a layout of its own"
    if values is None or _slots(cls):
        problem = "keeps its attributes in __slots__"
        cls_of_twin: Any = None
    else:
        try:
            metaclass: Any = type(cls)
            cls_of_twin = metaclass(cls.__name__, (SharedLayer, cls), namespace)
            object.__setattr__(object.__new__(cls_of_twin), "__dict__", {})
        except TypeError:
            cls_of_twin = None
    if cls_of_twin is None:
        raise OptionError(
            f"middleware={{{cls.__name__!r}: 'share'}}: {cls.__name__} {problem}, which sandboxes "
            "with inner layers of their own cannot share: keep what must be common in an object "
            "that it refers to, and leave the policy at 'copy'."
        )

    def make(new: list[Any]) -> Any:
        twin = object.__new__(cls_of_twin)
        object.__setattr__(twin, "__dict__", values)
        return twin

    return make


def _slots(cls: type) -> bool:
    """Tell whether instances of *cls* have attributes in slots."""
    for base in cls.__mro__:
        slots = base.__dict__.get("__slots__", ())
        names = (slots,) if isinstance(slots, str) else tuple(slots)
        if any(name not in ("__dict__", "__weakref__") for name in names):
            return True
    return False
