"""Make a template stand for whichever sandbox the running request holds.

The module's global `app`, closures over `app`, the routes that ask the app for its dependency
overrides: all of them hold the template. Its class is swapped for a subclass whose attribute
access goes to the running request's clone of that very object, and to the template itself
outside of any request. The clones keep the original class and pay nothing.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from typing import Any
from weakref import WeakKeyDictionary

from sandboxpool._context import current
from sandboxpool.adapters import adapter_for

_originals: WeakKeyDictionary[type, type] = WeakKeyDictionary()
"""The original class of every stand-in class."""
_changing = threading.Lock()
"""Held while an object gets or loses its stand-in class: every thread may have a loop."""


class Redirect:
    """Where the attributes of one template go.

    Attributes:
        owners: The factories that made clones of the template; one as many times as it asked
            for that, in several event loops or for several products that mount the same app.
        changed: Called with the name when the template itself is written to.
        answers: By name, what the template itself answers for a clone.
    """

    __slots__ = ("answers", "changed", "owners")

    def __init__(self, answers: Mapping[str, Callable[[Any, Any], Any]]) -> None:
        self.answers = answers
        self.owners: list[object] = []
        self.changed: list[Callable[[str], None]] = []

    def target(self, template: Any) -> Any:
        """Return the running request's clone of *template*, or *template* itself.

        Raises:
            LeaseEndedError: The request that started the calling code is over.
        """
        lease = current.get()
        while lease is not None:
            if lease.owner in self.owners:
                lease.check_open()
                return lease.sandbox.twin(template)  # type: ignore[attr-defined]
            lease = lease.parent
        return template


class StandIn:
    """The attribute access of a stand-in; first base of every stand-in class.

    It has no `__slots__` on purpose: CPython swaps the class of an object only for one whose
    first base has the same layout, which for nearly every class is a dict and a weak reference.
    """

    def __init_subclass__(cls, **options: Any) -> None:
        # Do not tell the app's own base classes about a subclass that is not the user's.
        return

    def __getattribute__(self, name: str) -> Any:
        redirect: Redirect = type(self)._sandboxpool_redirect  # type: ignore[attr-defined]
        target = redirect.target(self)
        if target is self:
            return super().__getattribute__(name)
        if name in redirect.answers:
            return redirect.answers[name](self, target)
        return getattr(target, name)

    def __setattr__(self, name: str, value: Any) -> None:
        redirect: Redirect = type(self)._sandboxpool_redirect  # type: ignore[attr-defined]
        target = redirect.target(self)
        if target is not self:
            setattr(target, name, value)
            return
        super().__setattr__(name, value)
        for changed in tuple(redirect.changed):
            changed(name)

    def __delattr__(self, name: str) -> None:
        redirect: Redirect = type(self)._sandboxpool_redirect  # type: ignore[attr-defined]
        target = redirect.target(self)
        if target is not self:
            delattr(target, name)
            return
        super().__delattr__(name)
        for changed in tuple(redirect.changed):
            changed(name)


def original_class(cls: type) -> type:
    """Return the class that *cls* stands for: itself, unless it is a stand-in class."""
    return _originals.get(cls, cls)


def install(template: Any, owner: object, changed: Callable[[str], None] | None = None) -> bool:
    """Make *template* a stand-in for the clones that *owner* makes.

    Returns:
        Whether the class of *template* could be swapped.
    """
    with _changing:
        redirect: Redirect | None = type(template).__dict__.get("_sandboxpool_redirect")
        if redirect is None:
            redirect = _swap(template)
            if redirect is None:
                return False
        redirect.owners.append(owner)
        if changed is not None:
            redirect.changed.append(changed)
        return True


def _swap(template: Any) -> Redirect | None:
    """Give *template* a stand-in class; `None` if it allows none."""
    cls = type(template)
    redirect = Redirect(adapter_for(template).answers(template))
    names = {
        "__slots__": (),
        "__module__": cls.__module__,
        "__qualname__": cls.__qualname__,
        "__doc__": cls.__doc__,
        "_sandboxpool_redirect": redirect,
    }
    try:
        metaclass: Any = type(cls)
        stand_in = metaclass(cls.__name__, (StandIn, cls), names)
        _originals[stand_in] = cls
        object.__setattr__(template, "__class__", stand_in)
    except TypeError:
        # A layout or a metaclass that allows no such subclass: clones work all the same,
        # but what holds the template itself does not reach them.
        return None
    return redirect


def remove(template: Any, owner: object, changed: Callable[[str], None] | None = None) -> None:
    """Undo one `install`; after the last one, the template has its own class again."""
    with _changing:
        cls = type(template)
        redirect: Redirect | None = cls.__dict__.get("_sandboxpool_redirect")
        if redirect is None or owner not in redirect.owners:
            return
        redirect.owners.remove(owner)
        if changed is not None and changed in redirect.changed:
            redirect.changed.remove(changed)
        if not redirect.owners:
            object.__setattr__(template, "__class__", _originals[cls])
