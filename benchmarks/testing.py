"""What the fixture `sandbox` costs a test, beside a new app for each test.

Run: `python -m benchmarks.testing`

Each test makes or leases an app, sends it one request through a `TestClient`, and is done. The app
is the one of `benchmarks.clone` with 40 routes; `create_app()` is the usual factory around it.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

import anyio
from fastapi import FastAPI
from fastapi.testclient import TestClient

from sandboxpool.testing._sandbox_pool import AppChoice, SandboxPool

from .clone import forty_routes
from .measure import Row, Timings, interleave, show

_TESTS = 20


def create_app() -> FastAPI:
    return forty_routes()


def run(quick: bool) -> None:
    """Time tests with an app of their own, made or leased."""
    timings = Timings()
    pool = SandboxPool(lambda: AppChoice(create_app, {"factory": True}))
    clones = create_app()

    def made() -> None:
        assert TestClient(create_app()).get("/direct/1").status_code == 200

    def made_and_started() -> None:
        with TestClient(create_app()) as client:
            assert client.get("/direct/1").status_code == 200

    def leased() -> None:
        with pool.lease() as sandbox:
            assert TestClient(sandbox).get("/direct/1").status_code == 200

    def cloned() -> None:
        with pool.lease(clones) as sandbox:
            assert TestClient(sandbox).get("/direct/1").status_code == 200

    def only_leased() -> None:
        with pool.lease(clones):
            pass

    def only_made() -> None:
        create_app()

    tests = {
        "create_app() and a request": made,
        "create_app(), its lifespan and a request": made_and_started,
        "sandbox of a factory and a request": leased,
        "sandbox of an app and a request": cloned,
        "create_app() alone": only_made,
        "sandbox of an app alone": only_leased,
    }

    def loop(test: Callable[[], None]) -> Callable[[int], object]:
        async def turns(count: int) -> None:
            # Where no event loop runs, as in a sync test.
            await anyio.to_thread.run_sync(lambda: [test() for _ in range(count)])

        return turns

    async def measure() -> None:
        loops = {name: loop(test) for name, test in tests.items()}
        counts = dict.fromkeys(tests, _TESTS)
        await interleave(loops, 3 if quick else 15, counts, timings, perf_counter)

    try:
        for test in tests.values():
            test()
        anyio.run(measure)
    finally:
        pool.close()

    def row(name: str, to: str) -> Row:
        best, median = timings.ratio(name, to)
        return Row(
            f"{name} ({timings.best(name) * 1e3:.2f} ms)", f"{best:.2f} x", f"{median:.2f} x"
        )

    whole = "create_app() and a request"
    alone = "create_app() alone"
    show(
        f"one test, to `{whole}` ({timings.best(whole) * 1e3:.2f} ms)",
        [row(name, whole) for name in list(tests)[1:4]],
    )
    show(
        f"without a request, to `{alone}` ({timings.best(alone) * 1e3:.2f} ms)",
        [row("sandbox of an app alone", alone)],
    )


if __name__ == "__main__":
    run(quick=False)
