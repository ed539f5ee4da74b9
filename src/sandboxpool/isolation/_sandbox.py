"""One private app, whichever way it was made."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from sys import getrefcount
from typing import TYPE_CHECKING, Any

import attrs

from sandboxpool._visit import VISIT

from ._graph import Walk, getattr_dict, slot_names
from ._recipe import Recipe
from ._restore import Calm, Wild
from ._state import LeaseMemo, PrivateDict, SharedNames

if TYPE_CHECKING:
    from sandboxpool._types import ASGIApp, Receive, Scope, Send

    from ._template import Template


@attrs.define
class Rules:
    """What a factory was told about reset and sharing.

    Attributes:
        reset: `"restore"`, `"keep"`, `"fresh"` or a callable that takes the sandbox.
        kept_states: Keys of states that survive a reset.
        kept_attributes: Attributes of the app that survive a reset.
        shared_names: What is shared below a state.
        shared_attributes: Attributes of the app that stay shared.
        policy: What is done with the middleware of a class: `"copy"`, `"share"`, `"fresh"`.
    """

    reset: str | Callable[[Any], Awaitable[None] | None] = "restore"
    kept_states: tuple[str, ...] = ()
    kept_attributes: frozenset[str] = frozenset()
    shared_names: SharedNames = attrs.field(factory=SharedNames)
    shared_attributes: frozenset[str] = frozenset()
    policy: Callable[[type], str] = attrs.field(default=lambda cls: "copy")


class StateEntry:
    """A state object of a sandbox.

    Attributes:
        index: Which object holds it.
        owner: That object.
        key: The name of the state among its attributes.
        source: The original's dict.
        private: The dict behind the state.
        state: The state.
        references: How many references there are to it when nobody else holds it.
    """

    __slots__ = ("index", "key", "owner", "private", "references", "source", "state")

    def __init__(self, index: int, owner: Any, key: str, source: dict[str, Any]) -> None:
        self.index = index
        self.owner = owner
        self.key = key
        self.source = source
        self.private = _NO_STATE
        self.state: Any = None
        self.references = 0


_NO_ALIASES: Mapping[int, int] = {}


class AppSandbox:
    """A private app: an ASGI callable that serves one call at a time.

    Attributes:
        aliases: By the id of an app that has no twin of its own, that of the one whose twin it has.
        app: The private app.
        template: What the private app was made from.
        lifespan_state: What the lifespan put into `scope["state"]`.
        version: Which version of the template it was made from.
    """

    __slots__ = (
        "__weakref__", "_apps", "_armed", "_busy", "_calm", "_keeps", "_lists", "_memo", "_new",
        "_olds", "_owner", "_recipe", "_references", "_restores", "_rules", "_states", "_wild",
        "aliases", "app", "lifespan_state", "template", "version",
    )  # fmt: skip

    def __init__(self, owner: object, rules: Rules, template: Template) -> None:
        self._owner = owner
        self._rules = rules
        self._restores = rules.reset == "restore"
        self._keeps = bool(rules.kept_states or rules.kept_attributes)
        self._references = 0
        self._armed = self._busy = False
        self._calm: Calm | None = None
        self._wild: Wild | None = None
        self._lists: tuple[list[Any], ...] = ()
        self._olds: tuple[tuple[Any, ...], ...] = ()
        self._states: list[StateEntry] = []
        self._memo = LeaseMemo(owner, rules.shared_names)
        self.app: ASGIApp = template.app
        self._apps: dict[int, Any] | None = None
        self.aliases: Mapping[int, int] = _NO_ALIASES
        self.lifespan_state: Mapping[str, Any] = {}
        self.template = template
        self.version = -1
        template.build_into(self)

    def __repr__(self) -> str:
        return f"<AppSandbox of {self.app!r}>"

    def __call__(self, scope: Scope, receive: Receive, send: Send, /) -> Awaitable[Any]:
        """Serve one call; what the app returns is handed on untouched."""
        if not self._armed:
            self.arm()
        elif self._memo.touched and self._memo.lease is None and self._restores:
            # Somebody without a lease wrote between two leases, a thread that was left over.
            self._renew()
        self.template.refresh(self)
        self._busy = True
        if scope["type"] == VISIT:
            running: Awaitable[Any] = scope.run(self.app)  # type: ignore[attr-defined]
            return running
        return self.app(scope, receive, send)

    @property
    def apps(self) -> dict[int, Any]:
        """The private twin of each app of the template, by the id of the original."""
        if self._apps is None:
            new = self._new
            apps = {key: new[index] for key, index in self._recipe.apps.items() if new}
            apps.update({key: apps[same] for key, same in self.aliases.items() if same in apps})
            self._apps = apps
        return self._apps

    def twin(self, original: Any) -> Any:
        """Return the private twin of an app; *original* itself if it has none here."""
        apps = self._apps
        return (self.apps if apps is None else apps).get(id(original), original)

    # -- life ------------------------------------------------------------------------------

    def fill(self, recipe: Recipe, new: list[Any]) -> None:
        """Take over the private objects *new*, made by *recipe* in its order."""
        self._recipe = recipe
        self._new = new
        self._apps = None
        self._armed = False
        self._wild = None
        if recipe.root is not None:
            self.app = new[recipe.root]
            if not recipe.plan.references:
                recipe.plan.references = getrefcount(self.app)
        old = self._states
        self._states = []
        self._calm = None
        for number, (index, key, source) in enumerate(recipe.states):
            entry = StateEntry(index, new[index], key, source)
            if self._rules.kept_states and number < len(old):
                entry.private = old[number].private
            self._states.append(entry)
            self._replace(entry)
        if recipe.plan.fits(new):
            self._calm = Calm(recipe.plan, new)

    def arm(self) -> None:
        """Remember how everything looks now: as after start-up."""
        recipe, new = self._recipe, self._new
        plan, wild = recipe.plan, Wild()
        self._armed = True
        self._references = self._held()
        nodes, containers = plan.wild_nodes, plan.wild_containers
        if self._calm is not None and self._calm.changed():
            self._calm = None
        if self._calm is None:
            nodes = recipe.nodes
            containers = [index for index in recipe.containers if index not in recipe.kept]
            self._lists = self._olds = ()
        else:
            self._lists = tuple([new[index] for index in plan.lists])
            self._olds = plan.olds_of(self._lists)
        for index in nodes:
            watch_object(wild, new[index])
        for index in containers:
            wild.watch_container(new[index])
        for index, _ in recipe.fresh:
            # What the constructor made is known only now: what it was given is private already.
            inner = Walk(known=[item for item in new if item is not new[index]])
            made = inner.compile(new[index])
            for at in made.containers:
                wild.watch_container(made.originals[at])
            for at in made.nodes[1:]:
                watch_object(wild, made.originals[at])
        self._wild = wild if wild.used else None
        for entry in self._states:
            entry.references = getrefcount(entry.state)

    def _expected(self, index: int) -> dict[str, Any]:
        values = self._recipe.attributes(index, self._new)
        for entry in self._states:
            if entry.index == index:
                values[entry.key] = entry.state
        return values

    def override(self, index: int, overrides: dict[Any, Any] | None) -> None:
        """Use other dependency overrides for this lease, in an app of the sandbox."""
        own = None if overrides is None else dict(overrides)
        self._new[index].__dict__["dependency_overrides"] = own

    def reset(self) -> Awaitable[None] | None:
        """Make the app as it was after start-up, or do what `reset=` says instead."""
        self._busy = False
        if self._restores:
            self.restore()
            return None
        policy = self._rules.reset
        if callable(policy):
            result: Awaitable[None] | None = policy(self)
            return result
        return None

    def leave(self, scope: Scope) -> None:
        """Take the private app out of the scope of a request that is over.

        Servers keep the scope until the next request of the connection comes. What stands there
        then is the template, and whoever still holds the private app is a stray.
        """
        app = scope.get("app")
        if app is not None and (app is self.app or self._is_own(app)):
            scope["app"] = self.template.app

    def _is_own(self, app: Any) -> bool:
        return any(app is self._new[index] for index in self._recipe.apps.values())

    def _held(self) -> int:
        """Count who holds the private app; `_apps` does once it is asked for."""
        return getrefcount(self.app) - (self._apps is not None)

    def restore(self) -> None:
        """Put everything private back as it was after start-up."""
        if not self._armed:
            return
        if self._held() > self._references and not self._keeps and not self._recipe.fresh:
            # A task or a thread that outlives its request holds the app, and may write to it at
            # any time: it keeps that one, and the next request gets another.
            self._memo.ended = True
            self._memo = LeaseMemo(self._owner, self._rules.shared_names)
            self.template.build_into(self)
            return
        calm, wild = self._calm, self._wild
        if wild is not None:
            kept = self._rules.kept_attributes
            values = (getattr_dict(self.app) if kept else None) or {}
            saved = {name: values[name] for name in kept if name in values}
            wild.restore()
            values.update(saved)
        at = 0
        for items in self._lists:
            # Cheaper than to look whether it has changed.
            items[:] = self._olds[at]
            at += 1  # noqa: SIM113 - so is this, than `enumerate()` or `zip()`
        if calm is not None and calm.changed():
            calm.put_back(self._expected)
        if self._memo.touched:
            self._renew()
            return
        for entry in self._states:
            # Somebody still holds the state object: its next use must fail, not write here.
            if getrefcount(entry.state) != entry.references:
                self._renew()
                return

    def _renew(self) -> None:
        """Give the next lease new state objects; whoever holds the old ones gets errors."""
        self._memo.ended = True
        memo = self._memo = LeaseMemo(self._owner, self._rules.shared_names)
        for entry in self._states:
            if entry.private.idle and getrefcount(entry.state) == entry.references:
                entry.private.use(memo)
            else:
                self._replace(entry)

    def _replace(self, entry: StateEntry) -> None:
        private, old = PrivateDict(self._memo, entry.source), entry.state
        for name in self._rules.kept_states:
            present, value = entry.private.peek(name)
            if present:
                private.carry(name, value)
        entry.private = private
        entry.state = self._recipe.make_state(private)
        object.__setattr__(entry.owner, entry.key, entry.state)
        if self._calm is not None:
            places = self._recipe.plan.places
            at = self._calm.swap(old, entry.state, places.get(entry.index, 0))
            if at >= 0:
                places[entry.index] = at
                return
        if self._wild is not None:
            self._wild.swap(entry.owner, entry.key, entry.state)

    async def aclose(self) -> None:
        """Drop everything private."""
        self._memo.ended = True
        recipe, new = self._recipe, self._new
        self._states = []
        self._new = []
        self._calm = self._wild = None
        self._lists = self._olds = ()
        self._armed = False
        self._apps = {}
        # A call that was cut off may still run; its app falls to the garbage collector.
        if not self._busy or getrefcount(self.app) == recipe.plan.references:
            for index in recipe.plan.cyclic if new else ():
                object.__getattribute__(new[index], "__dict__").clear()

    # -- scope["state"] --------------------------------------------------------------------

    def request_state(self, server_state: dict[str, Any] | None) -> dict[str, Any] | None:
        """Return the `scope["state"]` for one request, `None` to leave the scope as it is.

        What the lifespan put there reaches the request as private copies. What others have put
        there, such as middleware outside of the wrapped app, passes untouched; what the
        app writes goes through to the server's dict, where they expect it.
        """
        own = self.lifespan_state
        if not own:
            return None
        given = {} if server_state is None else server_state
        merged = {**own, **given}
        private = PrivateDict(self._memo, merged, through=server_state)
        for key, value in given.items():
            if key not in own or own[key] is not value:
                private.carry(key, value)
        return private


_NO_STATE = PrivateDict(LeaseMemo(None, SharedNames()), {})


def watch_object(wild: Wild, value: Any) -> None:
    """Remember the attributes of one object."""
    values = getattr_dict(value)
    if values is not None:
        wild.watch_dict(values)
        wild.watch_owner(value, values)
    for name in slot_names(type(value)):
        wild.watch_slot(value, name)
