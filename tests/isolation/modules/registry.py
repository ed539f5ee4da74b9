"""A registry of third-party code: it takes each name once, as that of SQLModel or Prometheus."""

from __future__ import annotations

from typing import Any

taken: set[str] = set()
made: list[Any] = []
"""What modules have told of themselves."""


class AlreadyThereError(Exception):
    """The name is taken."""


def register(name: str) -> None:
    """Take a name."""
    if name in taken:
        raise AlreadyThereError(f"{name} is already defined")
    taken.add(name)
