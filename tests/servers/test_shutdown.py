"""SIGTERM. This file sorts last, so that it ends the servers that the others have used."""

from __future__ import annotations

from contextlib import ExitStack

from .conftest import Fleet, every
from .processes import SERVERS, ask

WITH_LIFESPAN = [server for server in SERVERS if server.lifespan]


@every(WITH_LIFESPAN)
def test_sigterm_loses_no_request(fleet: Fleet) -> None:
    """50 requests in flight at SIGTERM are all answered, and the app is shut down once."""
    running = fleet("wrapped")
    with ExitStack() as stack:
        idle = stack.enter_context(running.connection())
        ask(idle, "/pid")
        uploads = [stack.enter_context(running.held(f"number{n}")) for n in range(50)]
        running.wait_for("^holding number", 50)
        stats = running.get("/stats")
        assert stats["concurrency"] == 50
        running.terminate()
        # It has begun to shut down when it closes a connection on which nothing is going on.
        assert idle.sock.recv(1) == b""
        answers = [upload.finish() for upload in uploads]
        assert [told["key"] for told in answers] == [f"number{n}" for n in range(50)]
        running.wait_for_end()
        assert running.count("lifespan started") == 1
        assert running.count("lifespan stopped") == 1
        assert running.count("Traceback") == 0
