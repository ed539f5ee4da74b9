"""What a cache needs of the place that holds its entries.

Every method is plain and synchronous, so that coroutines and threads use one and the same store;
one that waits for a network says so with `blocks`, and is called in worker threads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, Protocol, TypeVar

import attrs

T = TypeVar("T")


@attrs.frozen
class Life:
    """How long a new entry lives, in seconds; `None` is for ever.

    Attributes:
        fresh: How long it is as good as new.
        stale: How long after that it may stand in for a new value.
    """

    fresh: float | None
    stale: float = 0.0


@attrs.frozen
class Found:
    """An entry.

    Attributes:
        packed: Its value, as a `Packing` made it.
        remaining: Seconds for which it is as good as new; 0 or less: it is not any more.
        resting: Whether its refresh has just failed, and is not to be tried again yet.
    """

    packed: Any
    remaining: float
    resting: bool = False

    @property
    def fresh(self) -> bool:
        """Whether it is as good as new."""
        return self.remaining > 0


@attrs.frozen
class Start:
    """What there is to do for whoever wants to refresh an entry.

    Attributes:
        verdict: `"lead"`: run the resolver. `"found"`: there is a value already. `"wait"`: the
            one with *token* runs it, in another process. `"failed"`: that one has failed.
        packed: The value that was found.
        token: Who is to be waited for.
        error: What it has failed with.
    """

    verdict: Literal["lead", "found", "wait", "failed"]
    packed: Any = None
    token: str = ""
    error: Exception | None = None


class Store(Protocol):
    """Holds the entries of one cache; safe for threads."""

    blocks: bool
    """Whether its methods wait for something, so that an event loop must not call them."""

    resolves_when_down: bool
    """Whether resolvers are run although the store cannot be reached."""

    async def call(self, function: Callable[[], T]) -> T:
        """Call something that uses the store, without blocking the event loop."""
        ...

    def read(self, key: str) -> Found | None:
        """Return the entry of a key, fresh or stale; `None` if there is none or it is too old."""
        ...

    def write(self, key: str, packed: Any, size: int, life: Life) -> None:
        """Store a value; a refresh that is under way cannot overwrite it any more."""
        ...

    def delete(self, key: str) -> bool:
        """Remove an entry, and keep a refresh that is under way from bringing it back.

        Returns:
            Whether there was a fresh one.
        """
        ...

    def incr(self, key: str, by: int, life: Life) -> int:
        """Add to a whole number, in one step; without a fresh entry it begins at 0.

        Only a new entry gets *life*: one that exists keeps its own.
        """
        ...

    def clear(self) -> None:
        """Remove all entries."""
        ...

    def start(self, key: str, token: str, waited_for: str) -> Start:
        """Ask to refresh an entry, as *token*; *waited_for* is who did it when last asked."""
        ...

    def hold(self, key: str, token: str, seconds: float | None) -> None:
        """Keep others from refreshing the entry, for so many seconds; does not wait."""
        ...

    def finish(self, key: str, token: str, packed: Any, size: int, life: Life) -> None:
        """Store what the resolver has returned, unless the entry was changed meanwhile."""
        ...

    def fail(self, key: str, token: str, error: Exception, rest: float) -> None:
        """Note that the resolver has failed; an old value is left in peace for *rest* seconds."""
        ...

    def drop(self, key: str, token: str) -> None:
        """Let others refresh the entry: nobody here does any more. Neither waits nor raises."""
        ...

    def usage(self) -> tuple[int | None, int | None]:
        """Return how many entries there are and how many bytes they take, if that is known."""
        ...

    def close(self) -> None:
        """Give everything back."""
        ...

    def after_fork(self) -> None:
        """Start anew in a forked process."""
        ...
