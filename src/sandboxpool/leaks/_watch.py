"""Watch the requests of a wrapped app, and report what they leave behind.

Nothing here runs while the app does, and a report is made when the response is out. What goes
wrong in here is logged, and never the request's problem.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from types import ModuleType
from typing import Any
from weakref import WeakKeyDictionary

import anyio
import anyio.lowlevel
import attrs

from sandboxpool._context import RequestLease
from sandboxpool._leak_report import Leak, LeakReport
from sandboxpool.isolation._sandbox import AppSandbox
from sandboxpool.isolation.factory import FactorySandbox

from ._counts import LeakCounts, is_told
from ._difference import ABSENT, Difference
from ._lines import Lines
from ._modules import ModulesWatch, PrivateCodeWatch, functions_of, packages_of
from ._names import Names
from ._policy import Policy
from ._process import decimal_context
from ._shared import Budget, Found, process_watch
from ._states import changed_in_app
from ._strays import (
    name_of_task,
    note_told,
    place_of_task,
    stray_tasks,
    tasks_here,
    tasks_of_thread,
)
from ._values import Shown

logger = logging.getLogger("sandboxpool.leaks")

_SHOWN_AT_MOST = 50  # leaks in one report
_DIFFERENCES_AT_MOST = 1000
_PASSES = 3  # of the loop, for what is just coming to its end


@attrs.define(eq=False)
class Visit:
    """A request that is watched.

    Attributes:
        lease: Its lease.
        scope: Its scope, which the lease forgets when it ends.
        sandbox: The sandbox that serves it.
        looks: Whether what it leaves behind is looked at; else only that it is there counts.
        backend: Its event loop.
        decimal: The decimal context around it.
    """

    lease: RequestLease
    scope: Mapping[str, Any]
    sandbox: Any
    looks: bool
    backend: str
    decimal: Mapping[str, Any]


class LeakWatch:
    """Watches one wrapped app, in all of its event loops.

    Args:
        name: The name of the app.
        mode: `"log"`, `"retire"` or `"raise"`.
        ignore: Names of leaks that are none.
        verify: Share of the requests that are looked at.
        hides_secrets: Whether values that look like secrets are left out.

    Attributes:
        counts: What was found so far.
        raises: Whether a report is raised.
        retires: Whether the sandbox of a reported request is replaced.
    """

    def __init__(
        self, *, name: str, mode: str, ignore: Iterable[str], verify: float, hides_secrets: bool
    ) -> None:
        self.counts = LeakCounts()
        self.raises = mode == "raise"
        self.retires = mode != "log"
        self._name = name
        self._verify = verify
        self._share = 0.0
        self._ignored = Names(ignore)
        self._policy = Policy(self._ignored)
        self._shown = Shown(hides_secrets=hides_secrets)
        self._numbers: WeakKeyDictionary[Any, int] = WeakKeyDictionary()
        self._count = 0
        self._modules: ModulesWatch | None = None
        self._private_code = PrivateCodeWatch()
        self._kept: WeakKeyDictionary[Any, set[tuple[str, str]]] = WeakKeyDictionary()
        self._lines = Lines()
        self._roots: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()
        self._looked = 0
        self._lock = threading.Lock()
        self._budget = Budget()

    # --- a request ----------------------------------------------------------------------------

    def begin(self, lease: RequestLease, sandbox: Any, backend: str) -> Visit | None:
        """Note how everything is before a request; it must be told of the end of it, too."""
        try:
            return self._begin(lease, sandbox, backend)
        except Exception:
            logger.exception(
                "%s: what lease %d begins with was not looked at", self._name, lease.id
            )
            return None

    def _begin(self, lease: RequestLease, sandbox: Any, backend: str) -> Visit | None:
        if self._verify <= 0:
            return None
        self._share += self._verify
        looks = self._share >= 1
        if looks:
            self._share -= 1
        if self._modules is None:
            self._learn(sandbox)
        assert self._modules is not None
        if looks:
            process_watch.begin(lease, lease.scope)
            self._note_sandbox(sandbox)
            self._private_code.begin(sandbox, self._policy.packages)
        else:
            process_watch.miss(lease, begins=True)
        self._modules.begin(lease, looks=looks)
        decimal = decimal_context() if looks else {}
        return Visit(lease, lease.scope, sandbox, looks, backend, decimal)

    def _learn(self, sandbox: Any) -> None:
        with self._lock:
            if self._modules is not None:
                return
            inner = getattr(sandbox, "inner", sandbox)
            app = getattr(inner, "app", inner)
            packages = packages_of(app)
            private: Mapping[str, ModuleType] = getattr(inner, "modules", {})
            # A clone has the functions of its template.
            owned = isinstance(inner, FactorySandbox)
            functions = {} if owned else functions_of(app, packages)
            self._policy.packages = packages
            self._lines.add(private)
            self._modules = ModulesWatch(packages, private, functions)

    async def end(self, visit: Visit, *, alive: bool, whole: bool) -> LeakReport | None:
        """Report what a request has left behind.

        Cancelled meanwhile, it reports what it has found so far, and raises the cancellation.

        Args:
            visit: What `begin()` has returned.
            alive: Whether anything can be awaited.
            whole: Whether the call has come to its own end. If not, what is private is not looked
                at: it goes with the sandbox.

        Returns:
            The report, if there is anything to report.
        """
        found: list[Found] = []
        cancelled: BaseException | None = None
        try:
            found += self._look(visit, whole)
            if visit.looks:
                lists = self._budget.allows()
                ending = process_watch.has_suspects() or (lists and self._tasks(visit))
                if alive and ending:
                    try:
                        await self._pass(visit)
                    except BaseException as error:
                        cancelled = error
                if lists and ending:
                    found += self._strays(visit)
                found += process_watch.left_over()
            report = self._report(visit, found)
        except Exception:
            logger.exception("%s: lease %d was not looked at", self._name, visit.lease.id)
            report = None
        if cancelled is not None:
            try:
                raise cancelled
            finally:
                del cancelled  # its traceback leads here
        return report

    # --- looking ------------------------------------------------------------------------------

    def _look(self, visit: Visit, whole: bool) -> list[Found]:
        lease = visit.lease
        assert self._modules is not None
        if not visit.looks:
            process_watch.miss(lease, begins=False)
            self._modules.end(lease, looks=False)
            return []
        self._looked += 1
        found = process_watch.end(lease)
        found += self._modules.end(lease, looks=True)
        own = (lease.id,)
        now = decimal_context()
        found += [
            Found(path, "changed", "process", before, now[path], own)
            for path, before in visit.decimal.items()
            if now.get(path) != before
        ]
        if whole:
            found += [
                Found.from_difference(difference, "sandbox", own)
                for difference in islice(self._private(visit.sandbox), _DIFFERENCES_AT_MOST)
            ]
        return found

    def _private(self, sandbox: Any) -> Iterator[Difference]:
        inner = getattr(sandbox, "inner", sandbox)
        if isinstance(inner, AppSandbox):
            changes = changed_in_app(inner)
            yield from changes if inner._restores else self._new_in(inner, changes)
        yield from self._private_code.end(sandbox)

    def _new_in(self, sandbox: Any, changes: Iterator[Difference]) -> list[Difference]:
        """Return what has changed with this request, in a sandbox that is not put back."""
        known = self._kept.get(sandbox, set())
        now = {
            (one.path, self._shown.value(one.after)): one
            for one in islice(changes, _DIFFERENCES_AT_MOST)
        }
        self._kept[sandbox] = set(now)
        return [one for key, one in now.items() if key not in known]

    def _note_sandbox(self, sandbox: Any) -> None:
        thread = getattr(sandbox, "thread", None)
        if thread is not None and sandbox not in self._roots:
            loop = thread.loop
            if loop is not None and loop.backend == "trio":
                # Its tasks can be listed from here, once its own thread has said where they begin.
                self._roots[sandbox] = None
                thread.post(lambda: self._note_root(sandbox))

    def _note_root(self, sandbox: Any) -> None:
        import trio

        self._roots[sandbox] = trio.lowlevel.current_root_task()

    def _tasks(self, visit: Visit) -> list[tuple[Any, RequestLease]]:
        thread = getattr(visit.sandbox, "thread", None)
        tasks: list[Any] = list(tasks_here(visit.backend))
        if thread is not None:
            native = getattr(thread.loop, "native", None)
            tasks += tasks_of_thread(self._roots.get(visit.sandbox), native)
        self._budget.note(len(tasks))
        return stray_tasks(visit.lease, tasks)

    async def _pass(self, visit: Visit) -> None:
        """Let what was cancelled or closed right before the end come to its own."""
        with anyio.CancelScope(shield=True):
            for _ in range(_PASSES):
                if getattr(visit.sandbox, "thread", None) is None:
                    await anyio.lowlevel.checkpoint()
                else:
                    await anyio.sleep(0.001)

    def _strays(self, visit: Visit) -> list[Found]:
        found = []
        for task, owner in self._tasks(visit):
            if not note_told(task):
                continue
            place = place_of_task(task)
            found.append(
                Found(
                    f"task {name_of_task(task)}",
                    "running",
                    "process",
                    leases=(owner.id,),
                    text="",
                    lines=(place,) if place else (),
                )
            )
        return found

    # --- reporting ----------------------------------------------------------------------------

    def _report(self, visit: Visit, found: list[Found]) -> LeakReport | None:
        number = self._number(visit.sandbox)
        left = self._policy.leaks_in(found, number)
        if not left:
            return None
        route = visit.scope.get("route")
        template = getattr(route, "path", None)
        endpoint = visit.scope.get("endpoint")
        leaks = tuple(self._leak(one, endpoint) for one in left[:_SHOWN_AT_MOST])
        report = LeakReport(
            app=self._name,
            lease_id=visit.lease.id,
            type=visit.scope["type"],
            method=visit.scope.get("method"),
            route=template if isinstance(template, str) else None,
            path=self._shown.text(visit.lease.path),
            sandbox=f"sandbox {number}",
            leaks=leaks,
        )
        self._tell(report)
        return report

    def _leak(self, one: Found, endpoint: object) -> Leak:
        if self._modules is not None:
            self._lines.add(self._modules.modules)  # also those that were imported since
        lines = one.lines or self._lines.of(one.path, endpoint)
        path = self._shown.text(one.path)
        if one.text is not None:
            before, after = one.text, ""
            if one.kind == "grown":
                after = self._value(one.after, one.path)
            elif one.kind in ("open", "running"):
                before, after = "", one.text
        else:
            before, after = self._value(one.before, one.path), self._value(one.after, one.path)
        return Leak(path, one.kind, one.where, before, after, lines, one.leases)

    def _value(self, value: object, path: str) -> str:
        return "" if value is ABSENT else self._shown.value(value, path)

    def _number(self, sandbox: Any) -> int:
        try:
            number = self._numbers.get(sandbox)
            if number is None:
                self._count += 1
                number = self._numbers[sandbox] = self._count
        except TypeError:  # one that has no weak references, or no hash
            return 0
        return number

    def _tell(self, report: LeakReport) -> None:
        self.counts.reports += 1
        told = []
        for leak in report.leaks:
            times = self.counts.count(leak.path)
            if is_told(times):
                told.append((leak, times))
        if not told:
            return
        shown = attrs.evolve(report, leaks=tuple(leak for leak, _ in told))
        text = str(shown)
        again = [f"  {leak.path}: {times} times so far" for leak, times in told if times > 1]
        logger.warning("%s", "\n".join([text, *again]), extra={"leak_report": report.as_dict()})

    def close(self) -> None:
        """Say, once the app has stopped, what the names in `ignore=` were good for."""
        unused = self._ignored.unused
        if unused and self._looked:
            logger.info(
                "%s: nothing that %d requests left behind had a name like %s, which ignore= has",
                self._name,
                self._looked,
                " or ".join(unused),
            )
