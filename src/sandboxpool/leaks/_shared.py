"""Look at what requests share, from one to the next, and say who may have changed it.

There is one state for many requests, so a change can be blamed on one of them only if nobody
else was there since the last look. What was looked at last is what the next look compares with:
each change is seen once, by the first request that ends after it. Between two requests, when
nobody is in flight, whatever changes is nobody's leak.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import attrs

from sandboxpool._context import RequestLease
from sandboxpool._leak_report import Kind, Where

from ._difference import Difference
from ._files import Files, OpenFile, open_numbers
from ._process import ProcessState
from ._strays import live_threads, name_of_thread, place_of_thread, stray_threads

_REMEMBERED = 10_000
_ADDRESSES_AT_MOST = 1000
_FEW = 64


@attrs.frozen(eq=False)
class Found:
    """Something that is not as it was, before it is known whether that is a leak.

    Attributes:
        path: As in `Leak`.
        kind: As in `Leak`.
        where: As in `Leak`.
        before: The value before, or `ABSENT`.
        after: The value after, or `ABSENT`.
        leases: Who may have done it; nobody else if it is one.
        text: What to say instead of the values.
        lines: Where it was done, if that is known already.
    """

    path: str
    kind: Kind
    where: Where
    before: object = None
    after: object = None
    leases: tuple[int, ...] = ()
    text: str | None = None
    lines: tuple[str, ...] = ()

    @classmethod
    def from_difference(
        cls, difference: Difference, where: Where, leases: tuple[int, ...]
    ) -> Found:
        """Return what a comparison has found."""
        return cls(
            difference.path, difference.kind, where, difference.before, difference.after, leases
        )


class Presence:
    """Who is in flight, and who was since the last look.

    Attributes:
        since: The ids of those that were in flight at any time since the last look.
        peak: The most there ever were at once.
    """

    def __init__(self) -> None:
        self.since: set[int] = set()
        self.peak = 0
        self._now: dict[int, RequestLease] = {}
        self._asked = 0

    def enter(self, lease: RequestLease) -> None:
        """Note a lease that begins."""
        self._now[lease.id] = lease
        self.since.add(lease.id)
        self.peak = max(self.peak, len(self._now))
        if len(self.since) > _REMEMBERED:  # of many that were not looked at
            self.since = self.now()

    def leave(self, lease: RequestLease) -> None:
        """Note a lease that ends."""
        self._now.pop(lease.id, None)

    def now(self) -> set[int]:
        """Return the ids of those in flight."""
        # An end may have gone by unnoticed: whoever was cancelled twice in it. With many in flight
        # it is looked for only now and then.
        self._asked += 1
        if len(self._now) < _FEW or self._asked % _FEW == 0:
            self._now = {id: lease for id, lease in self._now.items() if not lease.ended}
        return set(self._now)

    def looked(self) -> None:
        """Note a look: from here on only those count that are still there, or come."""
        self.since = self.now()


@attrs.define(eq=False)
class _Suspect:
    """Something that was opened or started, and may still be closed or ended in time.

    Attributes:
        thing: A file or a thread.
        leases: Who may have done it.
    """

    thing: OpenFile | threading.Thread
    leases: frozenset[int]

    def is_there(self) -> bool:
        if isinstance(self.thing, OpenFile):
            return self.thing.is_open()
        return self.thing.is_alive()


class Budget:
    """Keeps looks at what grows with the load from taking more and more time of each request.

    Each request may look at so many things; who has not enough for all leaves it to one that
    comes later, and what is found then is no less true.
    """

    def __init__(self, each: int = 500) -> None:
        self._each = each
        self._saved = each
        self._needed = 0

    def allows(self) -> bool:
        """Tell whether a look is affordable, and pay for it."""
        self._saved = min(self._saved + self._each, max(self._needed, self._each))
        if self._saved < self._needed:
            return False
        self._saved -= self._needed
        return True

    def note(self, number: int) -> None:
        """Note how many things there were."""
        self._needed = number


class ProcessWatch:
    """Watches what the whole process shares, for all wrapped apps in it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._presence = Presence()
        # The same for files and threads, which are not listed each time.
        self._openers = Presence()
        self._budget = Budget()
        self._files = Files()
        self._before: ProcessState | None = None
        self._numbers: frozenset[int] = frozenset()
        self._threads: frozenset[threading.Thread] = frozenset()
        # What was still there after its request; it counts once all are gone who may own it.
        self._suspects: list[_Suspect] = []
        # Connections that were left open, by where they lead: a pool keeps some.
        self._kept: dict[str, list[_Suspect]] = {}

    def begin(self, lease: RequestLease, scope: Mapping[str, Any]) -> None:
        """Note a request that begins."""
        with self._lock:
            self._files.note_server(scope)
            alone = not self._presence.now()
            if alone or self._before is None:
                self._look()
            if alone and self._budget.allows():
                self._list()
            self._presence.enter(lease)
            self._openers.enter(lease)

    def miss(self, lease: RequestLease, *, begins: bool) -> None:
        """Note a request that is not looked at, when it begins and when it ends."""
        with self._lock:
            if begins:
                if not self._presence.now():
                    self._before = None
                self._presence.enter(lease)
                self._openers.enter(lease)
            else:
                self._presence.leave(lease)
                self._openers.leave(lease)

    def _look(self) -> None:
        """Take what is there now for what is to be there."""
        self._before = ProcessState.now()
        self._presence.looked()

    def _list(self) -> None:
        self._numbers = open_numbers()
        self._threads = live_threads()
        self._budget.note(len(self._numbers) + len(self._threads))
        self._openers.looked()

    def end(self, lease: RequestLease) -> list[Found]:
        """Return what has changed by the end of a request."""
        with self._lock:
            self._presence.leave(lease)
            self._openers.leave(lease)
            leases = tuple(sorted(self._presence.since))
            before = self._before
            self._look()
            if self._budget.allows():
                self._suspect()
            if before is None or self._before is None:
                return []  # nobody has looked when this began
            return [
                Found.from_difference(difference, "process", leases)
                for difference in before.compare(self._before)
            ]

    def _suspect(self) -> None:
        """Note what was opened and started since the last time."""
        openers = frozenset(self._openers.since)
        numbers, threads = self._numbers, self._threads
        self._list()
        for file in self._files.opened(numbers, self._numbers):
            self._suspects.append(_Suspect(file, openers))
        for thread in stray_threads(threads, self._threads):
            self._suspects.append(_Suspect(thread, openers))

    def left_over(self) -> list[Found]:
        """Return files and threads whose possible owners are all gone."""
        found = []
        with self._lock:
            waiting: list[_Suspect] = []
            due: list[_Suspect] = []
            now = self._presence.now()
            for suspect in self._suspects:
                if suspect.is_there():
                    (waiting if suspect.leases & now else due).append(suspect)
            self._suspects = waiting
            for suspect in due:
                leases = tuple(sorted(suspect.leases))
                thing = suspect.thing
                if isinstance(thing, threading.Thread):
                    place = place_of_thread(thing)
                    found.append(
                        Found(
                            f"thread {name_of_thread(thing)}", "running", "process",
                            leases=leases, text=thing.name, lines=(place,) if place else (),
                        )
                    )  # fmt: skip
                elif not thing.pooled:
                    found.append(Found(thing.name, "open", "process", leases=leases, text=""))
                elif (count := self._keep(suspect, thing.name)) > 0:
                    found.append(
                        Found(thing.name, "open", "process", leases=leases, text=f"{count} of them")
                    )
        return found

    def has_suspects(self) -> bool:
        """Tell whether something is left over that may still end in a moment."""
        now = self._presence.now() if self._suspects else set()
        return any(not suspect.leases & now for suspect in self._suspects)

    def _keep(self, suspect: _Suspect, name: str) -> int:
        """Return how many connections were left open, 0 if a pool may need as many.

        No pool needs many more of them than there were requests at once.
        """
        if len(self._kept) > _ADDRESSES_AT_MOST:
            self._kept = {
                other: there
                for other, some in self._kept.items()
                if (there := [known for known in some if known.is_there()])
            }
        kept = [known for known in self._kept.get(name, ()) if known.is_there()]
        kept.append(suspect)
        self._kept[name] = kept
        return len(kept) if len(kept) > 2 * self._presence.peak else 0


process_watch = ProcessWatch()
"""The one of this process."""
