"""Reports of leaks under real servers: in the log, and without what belongs to the server."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from .conftest import Fleet, every
from .processes import DAPHNE, GRANIAN, HYPERCORN_TRIO, UVICORN_H11, UVICORN_UVLOOP, ask


@every([UVICORN_H11, UVICORN_UVLOOP, HYPERCORN_TRIO, GRANIAN, DAPHNE])
def test_reports_in_the_log(fleet: Fleet) -> None:
    """
    A leak is told with its line, and nothing of the server is taken for one.

    Neither connections that come and stay meanwhile nor its threads and tasks.
    """
    server = fleet("wrapped", "leaky_shop")
    with ExitStack() as stack:
        connections = [stack.enter_context(server.connection()) for _ in range(20)]
        for connection in connections:
            for _ in range(3):
                assert ask(connection, "/clean")["items"] == 0
        assert server.get("/stats")["leaks"]["reports"] == 0
        assert server.count("left") == 0

        assert server.get("/login", user="ada") == "ada"
        server.wait_for(r"shop: GET /login, lease \d+ in sandbox \d+, has left 3 ")
        server.wait_for(
            r"^  tests.servers.leaky_shop.last_user changed from None to 'ada', "
            r"at tests/servers/leaky_shop.py:37 in login$"
        )
        server.wait_for(r'^  app.state.cart\["items"\] was added: \[\'ada\'\], at .*:38 in login$')
        server.wait_for(r"^  app.state.password was added: <hidden>, at ")
        assert "hunter2" not in server.log

        file = Path(__file__).with_name("leaky_shop.lock")
        try:
            server.get("/open")
            server.wait_for(rf"^  file {file} is still open")
        finally:
            file.unlink(missing_ok=True)
        server.get("/stray")
        server.wait_for(r"^  thread threading.Event.wait is still running|^  thread .*Thread-\d+")
        assert ask(connections[0], "/clean")["items"] == 0
        assert server.get("/stats")["leaks"]["reports"] == 3
