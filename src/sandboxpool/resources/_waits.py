"""Find waits that can never end: a graph of who waits for which pool, and who holds it.

A node is a task. A task that waits for an exhausted pool depends on all who hold a connection of
it: any of them could end the wait. A task that waits for the end of a task group depends on its
children: any of them could end it by an exception. So a task is stuck if all that it depends on are
stuck, and everybody else is not; what is left of the first assumption that all are stuck, once
those that are not have been taken out one after another, is the largest such set. (It is the knot
that deadlock detection looks for where one of several resources is enough; see E. Knapp, "Deadlock
Detection in Distributed Databases", ACM Computing Surveys 19 (1987), section 2, the OR model.)

What is not known to be stuck is not stuck: a holder that awaits anything else, on which an
operation runs, or whose task is not known; a wait with a timeout of its own or a deadline around
it, which may be an attempt; a pool that opens or resets something.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from ._tasks import awaited, main_task

if TYPE_CHECKING:
    from ._borrow import Borrow
    from ._here import Here


class Wait:
    """A task that waits for a connection.

    Attributes:
        task: The task.
        here: The pool.
        borrow: What it wants to become.
        bounded: Whether it ends by itself, by a timeout of its own or a deadline around it.
        leave: Takes it out of the queue.
        chain: Why it could never have ended, once that was found.
    """

    __slots__ = ("borrow", "bounded", "chain", "here", "leave", "task")

    def __init__(self, task: Any, here: Here, borrow: Borrow[Any], bounded: bool) -> None:
        self.task = task
        self.here = here
        self.borrow = borrow
        self.bounded = bounded
        self.leave: Callable[[], None] | None = None
        self.chain: tuple[str, ...] = ()


waits: dict[Any, Wait] = {}
"""All waits of this process, by task."""


def find_deadlock(wait: Wait) -> tuple[str, ...]:
    """Return the chain that leads from a wait back to itself, or nothing if it may end.

    Call it in the loop of the wait.
    """
    graph: dict[Any, list[Any] | None] = {}
    unseen = [wait.task]
    while unseen:
        task = unseen.pop()
        if task not in graph:
            needs = graph[task] = _needs(task)
            if needs is None and task is wait.task:
                return ()
            unseen.extend(needs or ())
    stuck = {task for task, needs in graph.items() if needs is not None}
    changed = True
    while changed:
        free = {task for task in stuck if not stuck.issuperset(graph[task] or ())}
        stuck -= free
        changed = bool(free)
    return _chain(wait.task, graph) if wait.task in stuck else ()


def _needs(task: Any) -> list[Any] | None:
    """Return the tasks any of which could let *task* go on, or `None` if others could."""
    wait = waits.get(task)
    if wait is None:
        return awaited(task) or None
    slots = wait.here.pool.slots
    exhausted = slots.in_use == len(slots.all) >= slots.max_size
    if wait.bounded or not exhausted or len(wait.here.borrows) != slots.in_use:
        return None
    holders = [_holder(borrow) for borrow in wait.here.borrows]
    return None if None in holders else holders


def _holder(borrow: Borrow[Any]) -> Any:
    """Return the task that must go on before a connection comes back, if that is known."""
    assert borrow.member is not None
    if borrow._here.driver.busy(borrow.member):
        return None
    task = main_task(borrow.lease) if borrow.own and borrow.lease is not None else borrow.task
    done = getattr(task, "done", None)
    return None if done is not None and done() else task


def _chain(first: Any, graph: dict[Any, list[Any] | None]) -> tuple[str, ...]:
    told: list[str] = []
    seen: list[Any] = []
    task = first
    while task not in seen:
        seen.append(task)
        wait, needs = waits.get(task), graph[task]
        assert needs
        task = next((other for other in needs if other in seen), needs[0])
        if wait is None:
            told.append("its task waits for a task that it has started")
            continue
        holder = next(b for b in wait.here.borrows if _holder(b) is task)
        told.append(
            f"{wait.borrow.who} waits for {wait.here.name!r}, which {holder.who} holds"
            + ("" if len(needs) == 1 else f" (as {len(needs)} do, all of them stuck)")
        )
    return tuple(told)
