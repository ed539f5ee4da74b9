"""The Flask app, wrapped in each way."""

from __future__ import annotations

from typing import Any

import sandboxpool

options: dict[str, Any] = {"factory": True, "wsgi": True, "max_size": 60, "stats": "/stats"}
make = "tests.wsgi.flask_shop:create_app"

cooperative = sandboxpool.wrap(make, run_in="cooperative", hooks=("sleep",), **options)
loop = sandboxpool.wrap(make, run_in="loop", **options)
thread = sandboxpool.wrap(make, run_in="thread", **options)
