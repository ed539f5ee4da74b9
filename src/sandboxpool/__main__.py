"""`python -m sandboxpool`: the command line without its script."""

from __future__ import annotations

from .cli import main

# Servers start worker processes that import this module under another name.
if __name__ == "__main__":
    main()
