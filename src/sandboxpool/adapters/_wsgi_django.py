"""Let cooperative requests use the ORM of Django, which refuses to work beside an event loop.

That is to keep code from blocking the loop, which a cooperative request does not do. The loop
itself stays visible: by it Django tells that each request must have a database connection of its
own, and not one for the thread, which all requests would share.
"""

from __future__ import annotations

import sys
from importlib import import_module
from typing import Any

from sandboxpool.run.cooperative import stepper


def allow_orm() -> None:
    """Have Django ask whether the running code is that of a cooperative request, if it is loaded.

    All other code that runs in an event loop is refused as before.
    """
    if "django" not in sys.modules:
        return
    # Django itself does so with the first query, which may be that of the first request.
    module: Any = import_module("django.utils.asyncio")
    look = module.get_running_loop
    if hasattr(look, "sandboxpool_asks"):
        return

    def get_running_loop() -> Any:
        if stepper() is not None:
            raise RuntimeError("the running code is that of a cooperative request, and may block")
        return look()

    get_running_loop.sandboxpool_asks = True  # type: ignore[attr-defined]
    module.get_running_loop = get_running_loop
