"""A finding: one place, or one answer, that shows state which requests share."""

from __future__ import annotations

import hashlib

import attrs

from ._rules import RULES, Rule


@attrs.frozen(kw_only=True)
class Evidence:
    """What the app did when it was driven.

    Attributes:
        request: The request, like `GET /me?user=ann`.
        control: The answer when nothing else ran, shortened.
        answer: The answer that differed, shortened.
        during: The other requests that were running then.
    """

    request: str
    control: str = ""
    answer: str = ""
    during: tuple[str, ...] = ()


@attrs.frozen(kw_only=True)
class Finding:
    """One place, or one answer, that shows state which requests share.

    Attributes:
        rule: The rule's id, like `SP101`: a key of `RULES`.
        path: What is shared, like `shop.state.current_user` or `app.state.user`.
        message: What happens to it, in one sentence.
        file: The file, relative to the current folder where it is below it; empty if unknown.
        line: The line in it, counted from 1; 0 if it is unknown.
        column: The column in that line, counted from 1; 0 if it is unknown.
        function: The function that does it, like `shop.main.remember`.
        way: How a request gets there: the functions that call one another, from a handler on.
        code: The line's text, without the spaces around it.
        evidence: What was seen when the app was driven; `None` for what was read.
    """

    rule: str = attrs.field(validator=attrs.validators.in_(RULES))
    path: str
    message: str
    file: str = ""
    line: int = 0
    column: int = 0
    function: str = ""
    way: tuple[str, ...] = ()
    code: str = ""
    evidence: Evidence | None = None

    @property
    def about(self) -> Rule:
        """The rule itself: its name, its severity and what it explains."""
        return RULES[self.rule]

    @property
    def fingerprint(self) -> str:
        """What stays the same when lines move: not where it is, but what it is."""
        request = self.evidence.request if self.evidence else ""
        parts = (self.rule, self.path, self.function, " ".join(self.code.split()), request)
        return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20]
