"""What the bodies of private modules do to the process, which would be done once per sandbox.

A handler that is added to a logger, a function registered with `atexit`, a handler for a signal,
a filter for warnings, an entry of `sys.path`: there is one of each for the whole process, but
every sandbox executes the line. Here is what becomes of it.

* Of the handlers that one line adds to one logger, that of the oldest sandbox is attached.
* What is registered with `atexit` is called when its sandbox ends, at the latest at the exit.
* A signal calls the handlers of all sandboxes, the oldest first.
* A filter for a private class of warnings goes with its sandbox.
* An entry of `sys.path` that is there already is not added again.
"""

from __future__ import annotations

import atexit
import logging
import signal
import sys
import threading
import warnings
from collections.abc import Callable
from types import FrameType, ModuleType
from typing import TYPE_CHECKING, Any

import attrs

from sandboxpool._exceptions import ModuleIsolationError

from ._importer import importing, live, of_frame

if TYPE_CHECKING:
    from ._private_modules import PrivateModules

logger = logging.getLogger("sandboxpool.modules")

_changing = threading.RLock()
_add_handler = logging.Logger.addHandler
_register = atexit.register
_unregister = atexit.unregister
_signal: Any = signal.signal


@attrs.define(eq=False)
class ImportEffects:
    """What the modules of one sandbox have done to the process.

    Attributes:
        handlers: The handlers that they have added, by the module, the logger and the position.
        exits: What they have registered with `atexit`, in that order.
        signals: Their handlers for signals.
    """

    handlers: dict[tuple[str, str, int], logging.Handler] = attrs.field(factory=dict)
    exits: list[tuple[Callable[..., object], tuple[Any, ...], dict[str, Any]]] = attrs.field(
        factory=list
    )
    signals: dict[int, Callable[[int, FrameType | None], object]] = attrs.field(factory=dict)


def install() -> None:
    """Begin to look at what modules do to the process."""
    logging.Logger.addHandler = _add_handler_once  # type: ignore[method-assign] # that is the aim
    atexit.register = _register_privately
    atexit.unregister = _unregister_privately
    signal.signal = _signal_privately  # type: ignore[assignment] # that is the aim


def remove() -> None:
    """Leave it alone again."""
    for owner, name, ours, theirs in (
        (logging.Logger, "addHandler", _add_handler_once, _add_handler),
        (atexit, "register", _register_privately, _register),
        (atexit, "unregister", _unregister_privately, _unregister),
        (signal, "signal", _signal_privately, _signal),
    ):
        # Somebody may have put something round it, who then goes on to call it.
        if getattr(owner, name) is ours:
            setattr(owner, name, theirs)
    if threading.current_thread() is threading.main_thread():
        for number, dispatcher in _dispatchers.items():
            now: object = signal.getsignal(number)
            if now is dispatcher:
                _signal(number, dispatcher.before)
        _dispatchers.clear()


def end(modules: PrivateModules) -> None:
    """Take back what the modules of a sandbox have done, because it ends."""
    _call_exits(modules)
    _detach_handlers(modules)
    modules.effects.signals.clear()
    _drop_filters(modules)


# --- logging ------------------------------------------------------------------------------------

_attached: dict[tuple[object, str, str, int], list[tuple[PrivateModules, logging.Handler]]] = {}
"""The handlers of all sandboxes for one place, the attached one first."""


def _add_handler_once(self: logging.Logger, hdlr: logging.Handler) -> None:
    """Add a handler to a logger, as `logging.Logger.addHandler()` does."""
    found = importing(sys._getframe(1))
    if found is None:
        _add_handler(self, hdlr)
        return
    modules, module = found
    own = modules.effects.handlers
    number = sum(key[:2] == (module, self.name) for key in own)
    with _changing:
        own[module, self.name, number] = hdlr
        others = _attached.setdefault((modules.space, module, self.name, number), [])
        if others and others[0][1] in self.handlers:
            others.append((modules, hdlr))
        else:
            # The first, or those before were removed, as `logging.config` does.
            others.insert(0, (modules, hdlr))
            _add_handler(self, hdlr)


def _detach_handlers(modules: PrivateModules) -> None:
    for (module, name, number), handler in modules.effects.handlers.items():
        if module in modules.shared:
            continue
        target = logging.getLogger(None if name == "root" else name)
        with _changing:
            key = (modules.space, module, name, number)
            others = [other for other in _attached.pop(key, ()) if other[0] is not modules]
            if handler in target.handlers:
                target.removeHandler(handler)
                if others:
                    _add_handler(target, others[0][1])
            if others:
                _attached[key] = others
        handler.close()
    modules.effects.handlers.clear()


# --- atexit -------------------------------------------------------------------------------------


def _register_privately(func: Any, /, *args: Any, **kwargs: Any) -> Any:
    """Register a function for the end of the process, as `atexit.register()` does."""
    modules = of_frame(sys._getframe(1))
    if modules is None:
        return _register(func, *args, **kwargs)
    if not callable(func):
        raise TypeError("the first argument must be callable")
    modules.effects.exits.append((func, args, kwargs))
    return func


def _unregister_privately(func: Any, /) -> None:
    """Undo `atexit.register()`."""
    for modules in live():
        exits = modules.effects.exits
        exits[:] = [entry for entry in exits if entry[0] != func]
    _unregister(func)


def _call_exits(modules: PrivateModules) -> None:
    exits = modules.effects.exits
    while exits:
        func, args, kwargs = exits.pop()
        try:
            func(*args, **kwargs)
        except Exception:
            logger.exception("what %r registered with atexit has failed: %r", modules, func)


@_register
def _at_exit() -> None:
    for modules in live():
        _call_exits(modules)


# --- signals ------------------------------------------------------------------------------------


class SignalDispatcher:
    """The handler of a signal that calls those of the sandboxes, or else what was there before.

    It stays until the last app stops, so that sandboxes in threads of their own, where Python lets
    nobody set a handler, find it there from the first time that the modules were executed.

    Args:
        before: The handler that was there before.
    """

    def __init__(self, before: Any) -> None:
        self.before = before

    def __call__(self, number: int, frame: FrameType | None) -> None:
        """Call the handlers of all sandboxes; the first exception is raised after them all."""
        errors: list[BaseException] = []
        handlers = [
            modules.effects.signals[number]
            for modules in sorted(live(), key=lambda modules: modules.number)
            if number in modules.effects.signals
        ]
        for handler in handlers or ([self.before] if callable(self.before) else []):
            try:
                handler(number, frame)
            except BaseException as error:
                errors.append(error)
        if errors:
            raise errors[0]
        if not handlers and self.before == signal.SIG_DFL:
            _signal(number, signal.SIG_DFL)
            signal.raise_signal(number)


_dispatchers: dict[int, SignalDispatcher] = {}


def _signal_privately(signalnum: Any, handler: Any, /) -> Any:
    """Set the handler of a signal, as `signal.signal()` does."""
    modules = of_frame(sys._getframe(1))
    if modules is None or not callable(handler):
        return _signal(signalnum, handler)
    with _changing:
        now = signal.getsignal(signalnum)
        if not isinstance(now, SignalDispatcher):
            if threading.current_thread() is not threading.main_thread():
                raise ModuleIsolationError(
                    f"{sys._getframe(1).f_globals.get('__name__')!r} sets a handler for signal "
                    f"{signalnum!r}, which Python allows in the main thread only, and this sandbox "
                    "is made in another one: set it in the module that starts the server."
                )
            _dispatchers[int(signalnum)] = SignalDispatcher(now)
            _signal(signalnum, _dispatchers[int(signalnum)])
            before = now
        else:
            before = now.before
        modules.effects.signals[int(signalnum)] = handler
        return before


# --- warnings, sys.path ---------------------------------------------------------------------------


def _drop_filters(modules: PrivateModules) -> None:
    """Drop the filters for warnings of private classes, which would keep the modules alive."""

    def private(category: Any) -> bool:
        module: ModuleType | None = modules.modules.get(getattr(category, "__module__", ""))
        return module is not None and vars(module).get(category.__name__) is category

    kept = [entry for entry in warnings.filters if not private(entry[2])]
    if len(kept) < len(warnings.filters):
        warnings.filters[:] = kept  # type: ignore[index] # a list, whatever its type says
        warnings._filters_mutated()  # type: ignore[attr-defined] # there is no public way


def without_doubles(before: list[str]) -> None:
    """Take away what a module has added to `sys.path` and was there *before*."""
    if len(sys.path) <= len(before) or sys.path == before:
        return
    known = set(before)
    added = len(sys.path) - len(before)
    for entry in [entry for entry in sys.path if entry in known]:
        if added and sys.path.count(entry) > before.count(entry):
            # Where it stands now is where the module wants it.
            last = len(sys.path) - 1 - sys.path[::-1].index(entry)
            del sys.path[last]
            added -= 1
