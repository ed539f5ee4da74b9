"""Failure to start, and several workers."""

from __future__ import annotations

from contextlib import ExitStack

import pytest

from .processes import (
    GRANIAN,
    HYPERCORN,
    HYPERCORN_TRIO,
    SERVE_GRANIAN,
    SERVE_HYPERCORN,
    SERVE_UVICORN,
    UVICORN_UVLOOP,
    Server,
    answer,
    ask,
    send_get,
)


def each(servers: list[Server]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("server", [pytest.param(s, id=s.name) for s in servers])


@pytest.mark.parametrize(
    ("server", "serve"),
    [
        pytest.param(UVICORN_UVLOOP, SERVE_UVICORN, id="uvicorn"),
        pytest.param(HYPERCORN_TRIO, SERVE_HYPERCORN, id="hypercorn-trio"),
        pytest.param(GRANIAN, SERVE_GRANIAN, id="granian"),
    ],
)
def test_startup_failure(server: Server, serve: Server) -> None:
    """
    An app that does not start ends the server with the same exit code as without wrap().

    Under `sandboxpool serve` too, and the cause is printed.
    """
    with ExitStack() as stack:
        codes = []
        runs = [server.start("broken_plain"), server.start("broken"), serve.start("broken")]
        for running in runs:
            stack.callback(running.stop)
        for running in runs:
            codes.append(running.wait_for_end())
            assert "RuntimeError: the database is away" in running.log
        assert len(set(codes)) == 1, codes


@each([UVICORN_UVLOOP, HYPERCORN, SERVE_GRANIAN])
def test_two_workers(server: Server) -> None:
    """Each of two workers starts the app, has sandboxes of its own, and shuts it down."""
    with server.start("wrapped", "--workers", "2") as running:
        running.wait_for("^lifespan started", 2)
        pids = set()
        met = False
        # The kernel chooses the worker for each connection. That 200 pairs are never in two
        # different ones, or never in the same, is as good as impossible.
        for _ in range(200):
            with running.connection() as first, running.connection() as second:
                pair = {ask(first, "/pid"), ask(second, "/pid")}
                pids |= pair
                if len(pair) == 1 and not met:
                    send_get(first, "/meet", user="alice", place="workers")
                    send_get(second, "/meet", user="bob", place="workers")
                    assert [answer(first)["user"], answer(second)["user"]] == ["alice", "bob"]
                    met = True
            if len(pids) == 2 and met:
                break
        assert len(pids) == 2
        assert met
        running.terminate()
        # Hypercorn kills its other workers as soon as the first has ended, whatever app it serves.
        running.wait_for("^lifespan stopped", 1 if server is HYPERCORN else 2)
        running.wait_for_end()
