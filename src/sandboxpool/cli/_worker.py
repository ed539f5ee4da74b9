"""What `sandboxpool serve` points its servers at: the wrapped app, in each worker process."""

from __future__ import annotations

import sys
from typing import Any

from sandboxpool._exceptions import SandboxPoolError
from sandboxpool._sandboxed import SandboxedApp
from sandboxpool._wrap import wrap

from ._settings import handed_over, settings


def _load() -> SandboxedApp:
    name, app_dir, options = handed_over()
    if app_dir not in sys.path:
        sys.path.insert(0, app_dir)
    known = settings()
    resolved: dict[str, Any] = {
        option: known[option].resolve(value) for option, value in options.items()
    }
    return wrap(name, **resolved)


try:
    app = _load()
except SandboxPoolError as error:
    # A mistake in what was typed, which the message explains: no traceback.
    print(f"Error: {error}", file=sys.stderr, flush=True)
    sys.exit(1)
