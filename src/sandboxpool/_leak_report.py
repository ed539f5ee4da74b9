"""What a request has left behind, as frozen records."""

from __future__ import annotations

from typing import Any, Literal

import attrs

Kind = Literal["added", "removed", "changed", "grown", "open", "running"]
Where = Literal["sandbox", "modules", "process"]


@attrs.frozen
class Leak:
    """Something that a request has left behind.

    Attributes:
        path: What it is, such as `shop.state.current_user`, `app.state.cart["items"]`,
            `os.environ['LANG']` or `task shop.mail.send`. `ignore=` takes it as it stands here.
        kind: `"added"`, `"removed"` or `"changed"`; `"grown"` for a container that gets larger
            and larger; `"open"` for a file or a socket; `"running"` for a task or a thread.
        where: Who sees it: `"sandbox"` if it is private to the sandbox, whose reset puts it
            back, `"modules"` if it is in the app's own modules, which all sandboxes share, and
            `"process"` if the whole process does.
        before: The value before the request, shortened, without secrets; empty if there was none.
        after: The value after it, empty if there is none any more.
        lines: Where it may have been done, as `file:line in function`; empty if that is not
            known. Several if there are several such lines.
        leases: The ids of the leases one of which has done it. Only that of the report's own
            request if it can have been nobody else.
    """

    path: str
    kind: Kind
    where: Where
    before: str
    after: str
    lines: tuple[str, ...] = ()
    leases: tuple[int, ...] = ()

    def __str__(self) -> str:
        if self.kind == "added":
            what = f"was added: {self.after}"
        elif self.kind == "removed":
            what = f"was removed: {self.before}"
        elif self.kind == "changed":
            what = f"changed from {self.before} to {self.after}"
        elif self.kind == "grown":
            what = f"grows: {self.before}, now {self.after}"
        else:
            what = f"is still {self.kind}" + (f": {self.after}" if self.after else "")
        text = f"{self.path} {what}"
        if len(self.lines) == 1:
            text += f", at {self.lines[0]}"
        elif self.lines:
            text += f", maybe at {' or at '.join(self.lines)}"
        if len(self.leases) > 1:
            text += f"; one of the leases {', '.join(map(str, self.leases))} has done it"
        return text


@attrs.frozen
class LeakReport:
    """What one request has left behind.

    Attributes:
        app: The name of the wrapped app.
        lease_id: The id of its lease.
        type: `"http"` or `"websocket"`; `"sandboxpool.visit"` for work that runs in a sandbox
            without being a request.
        method: The HTTP method, `None` for anything else.
        route: The template of the route that served it, like `/users/{name}`; `None` if the
            framework does not say.
        path: The path, without what looks like a secret.
        sandbox: Which sandbox served it: a number that no other one of the app has.
        leaks: What it has left behind.
    """

    app: str
    lease_id: int
    type: str
    method: str | None
    route: str | None
    path: str
    sandbox: str
    leaks: tuple[Leak, ...]

    def as_dict(self) -> dict[str, Any]:
        """Return everything as plain data, which JSON can hold."""
        return attrs.asdict(self)

    def __str__(self) -> str:
        route = f" (route {self.route})" if self.route not in (None, self.path) else ""
        count = "something" if len(self.leaks) == 1 else f"{len(self.leaks)} things"
        # What runs in a sandbox without being a request has a name where these have a path.
        what = self.method or ("WEBSOCKET" if self.type == "websocket" else "")
        what = f"{what} {self.path}{route}, lease {self.lease_id} in {self.sandbox}".lstrip()
        lines = [
            f"{self.app}: {what}, has left {count} behind:",
            *(f"  {leak}" for leak in self.leaks),
        ]
        return "\n".join(lines)
