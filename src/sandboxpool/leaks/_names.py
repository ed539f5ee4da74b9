"""The names of leaks, and patterns of them: what `ignore=` was given."""

from __future__ import annotations

import re
from collections.abc import Iterable


class Names:
    """Patterns of paths that are no leaks.

    A pattern is a path, in which `*` stands for anything, also for dots and brackets. It also
    covers what is below that path: `shop.cache` covers `shop.cache.hits["x"]`. Both kinds of
    quotes mean the same.

    Args:
        patterns: The patterns, which `check_names()` has accepted.
    """

    def __init__(self, patterns: Iterable[str]) -> None:
        self._unused = dict.fromkeys(patterns)
        self._matchers = [(pattern, _compiled(pattern)) for pattern in self._unused]

    def __contains__(self, path: str) -> bool:
        path = path.replace('"', "'")
        for pattern, matcher in self._matchers:
            if matcher.match(path):
                self._unused.pop(pattern, None)
                return True
        return False

    @property
    def unused(self) -> list[str]:
        """The patterns that have matched nothing yet."""
        return list(self._unused)


def _compiled(pattern: str) -> re.Pattern[str]:
    literal = ".*".join(map(re.escape, pattern.replace('"', "'").split("*")))
    return re.compile(rf"{literal}(?:[.\[].*)?\Z", re.DOTALL)


_SUBSCRIPT = re.compile(r"\[(?:'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\"|[^\]]*)\]")


def family_of(path: str) -> str:
    """Return a path with `[*]` for each item: many keys of one container are one family."""
    return _SUBSCRIPT.sub("[*]", path)
