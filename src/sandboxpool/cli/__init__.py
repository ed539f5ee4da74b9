"""The command line: `sandboxpool demo` and `sandboxpool serve`."""

from __future__ import annotations

import sys

_NEEDS = ("click", "rich", "tomli")


def main() -> None:
    """Run the command line, or say what to install for it."""
    # Worker processes import this package too, and need neither click nor rich.
    try:
        from ._commands import run
    except ModuleNotFoundError as error:
        missing = (error.name or "").partition(".")[0]
        if missing not in _NEEDS:
            raise
        print(
            f"sandboxpool: the command line needs {missing}, which is not installed. "
            "Install it with: pip install sandboxpool[cli]",
            file=sys.stderr,
        )
        sys.exit(1)
    run()
