"""The second app of the demo: it calls something that blocks where nothing may block."""

from __future__ import annotations

import os
import time

from fastapi import FastAPI

SLEEP = float(os.environ.get("DEMO_SLEEP", "5"))

app = FastAPI()


@app.get("/report")
async def report() -> dict[str, float]:
    """Answer after a while in which nobody else is answered."""
    time.sleep(SLEEP)  # noqa: ASYNC251 # a slow driver, requests.get(), a lock
    return {"seconds": SLEEP}
