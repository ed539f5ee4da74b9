"""One attribute that is replaced, and how it is put back."""

from __future__ import annotations

from typing import Any

import attrs

MISSING: Any = object()


@attrs.frozen
class Patch:
    """Replace an attribute of a module or a class.

    Attributes:
        owner: The module or class.
        name: The attribute, of its own or inherited.
        replacement: What it becomes.
    """

    owner: Any
    name: str
    replacement: Any

    def apply(self) -> Any:
        """Replace it; return what `undo()` needs: its own value, `MISSING` if it has none."""
        # As it is in the dict: a static method or a slot must not be bound.
        original = vars(self.owner).get(self.name, MISSING)
        setattr(self.owner, self.name, self.replacement)
        return original

    def undo(self, original: Any) -> None:
        """Put it back, unless somebody else has replaced it since."""
        if vars(self.owner).get(self.name, MISSING) is not self.replacement:
            return
        if original is MISSING:
            delattr(self.owner, self.name)
        else:
            setattr(self.owner, self.name, original)
