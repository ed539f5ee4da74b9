"""What differs from a snapshot."""

from __future__ import annotations

from typing import Literal

import attrs


class Absent:
    """Stands for a value that is not there."""

    def __repr__(self) -> str:
        return "<absent>"


ABSENT = Absent()


@attrs.frozen
class Difference:
    """Something that is not as it was.

    Attributes:
        path: What it is, such as `shop.state.current_user` or `app.state.cart["items"]`.
        kind: `"added"`, `"removed"` or `"changed"`.
        before: The value before, `ABSENT` if there was none.
        after: The value now, `ABSENT` if there is none.
    """

    path: str
    kind: Literal["added", "removed", "changed"]
    before: object
    after: object
