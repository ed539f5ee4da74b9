"""HTTP: hot connections in common, and nothing else."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import anyio.abc
import httpx
import pytest

from sandboxpool import LeaseEndedError, NoLeaseError, OptionError, resources

from .requests import ask, serving, until

pytestmark = pytest.mark.server


class Site:
    """
    A small HTTP server in the test's own loop, over real sockets.

    `/login/ada` sets a cookie, `/who` tells what it got, `/slow` answers half and waits.

    Attributes:
        url: Where it is.
        connections: How many it has accepted.
        open: How many of them are open.
        waiting: Requests that wait in `/slow`.
    """

    def __init__(self) -> None:
        self.url = ""
        self.connections = self.open = self.waiting = 0
        self.go = anyio.Event()

    async def serve(self, stream: anyio.abc.SocketStream) -> None:
        self.connections += 1
        self.open += 1
        try:
            async with stream:
                await self._serve(stream)
        except (anyio.BrokenResourceError, anyio.EndOfStream):
            pass
        finally:
            self.open -= 1

    async def _serve(self, stream: anyio.abc.SocketStream) -> None:
        data = b""
        while True:
            while b"\r\n\r\n" not in data:
                data += await stream.receive()
            head, _, data = data.partition(b"\r\n\r\n")
            first, *lines = head.decode().split("\r\n")
            path = first.split()[1]
            headers = {k.lower(): v for k, v in (line.split(": ", 1) for line in lines)}
            extra = ""
            if path.startswith("/login/"):
                extra = f"set-cookie: user={path.rpartition('/')[2]}; path=/\r\n"
            told = [headers.get(name, "-") for name in ("cookie", "authorization", "x-user")]
            body = " ".join(told)
            answer = f"HTTP/1.1 200 OK\r\ncontent-length: {len(body)}\r\n{extra}\r\n{body}"
            if path == "/slow":
                await stream.send(answer[:-1].encode())
                self.waiting += 1
                try:
                    await self.go.wait()
                finally:
                    self.waiting -= 1
                answer = answer[-1]
            await stream.send(answer.encode())


@asynccontextmanager
async def site() -> AsyncIterator[Site]:
    """Run a site as long as the block lasts."""
    served = Site()
    listener = await anyio.create_tcp_listener(local_host="127.0.0.1", local_port=0)
    port = listener.extra(anyio.abc.SocketAttribute.local_port)
    served.url = f"http://127.0.0.1:{port}"
    async with listener, anyio.create_task_group() as tasks:
        tasks.start_soon(listener.serve, served.serve)
        yield served
        tasks.cancel_scope.cancel()


Users = Callable[[str], Awaitable[httpx.AsyncClient]]


async def two_users(client_of: Users) -> tuple[str, str]:
    """Let Ada log in, with credentials and headers of hers, and tell what is sent for Bob then."""
    ada = await client_of("/ada")
    ada.headers["x-user"] = "ada"
    ada.auth = httpx.BasicAuth("ada", "secret")
    await ada.get("/login/ada")
    of_ada = (await ada.get("/who")).text
    bob = await client_of("/bob")
    return of_ada, (await bob.get("/who")).text


async def test_a_shared_client_leaks() -> None:
    """The control: over one client for all, Bob's requests carry what is Ada's."""
    async with site() as there, httpx.AsyncClient(base_url=there.url) as shared:

        async def client_of(path: str) -> httpx.AsyncClient:
            return shared

        of_ada, of_bob = await two_users(client_of)
    assert of_bob == of_ada == "user=ada Basic YWRhOnNlY3JldA== ada"


async def test_cookies_and_credentials_are_private() -> None:
    """What Ada's client learns or is told is never sent for Bob, over the same connections."""
    async with site() as there:
        web = resources.http(there.url)

        async def handle(path: str) -> str:
            client = await web.current()
            if path == "/ada":
                client.headers["x-user"] = "ada"
                client.auth = httpx.BasicAuth("ada", "secret")
                await client.get("/login/ada")
            assert client is await web.current()
            return (await client.get("/who")).text

        async with serving(handle) as app:
            assert await ask(app, "/ada") == "user=ada Basic YWRhOnNlY3JldA== ada"
            assert await ask(app, "/bob") == "- - -"
            assert there.connections == 1
            assert there.open == 1
        await until(lambda: there.open == 0)


async def test_at_the_same_time() -> None:
    """Many users at once each get answers to what their own client has."""
    async with site() as there:
        web = resources.http(there.url, max_size=5)

        async def handle(path: str) -> str:
            client = await web.current()
            await client.get(f"/login{path}")
            return (await client.get("/who")).text

        answers: dict[str, str] = {}

        async def send(user: str) -> None:
            answers[user] = await ask(app, f"/{user}")

        async with serving(handle) as app:
            async with anyio.create_task_group() as tasks:
                for number in range(40):
                    tasks.start_soon(send, f"user{number}")
            assert answers == {user: f"user={user} - -" for user in answers}
            assert len(answers) == 40
            assert there.connections <= 5


async def test_a_request_that_was_cut_off_leaves_the_transport_alone() -> None:
    """However many requests are cut off, at whichever moment, the others are served."""
    async with site() as there:
        web = resources.http(there.url, max_size=3)
        async with web:
            for round in range(25):
                async with anyio.create_task_group() as tasks:

                    async def one() -> None:
                        async with web.client() as client:
                            await client.get("/slow")

                    for _ in range(6):
                        tasks.start_soon(one)
                    if round == 0:
                        await until(lambda: there.waiting == 3)
                    else:
                        for _ in range(round):
                            await anyio.lowlevel.checkpoint()
                    tasks.cancel_scope.cancel()
            there.go.set()
            with anyio.fail_after(20):
                async with anyio.create_task_group() as tasks:

                    async def served() -> None:
                        async with web.client() as client:
                            assert (await client.get("/who")).status_code == 200

                    for _ in range(9):
                        tasks.start_soon(served)
            await until(lambda: web.statistics().used == 0)
            assert web.statistics().pending_requests == 0


async def test_a_response_that_is_left_open_is_closed() -> None:
    """A response that a request does not read to the end is closed when the request ends."""
    async with site() as there:
        web = resources.http(there.url, max_size=1)

        async def handle(path: str) -> str:
            client = await web.current()
            if path == "/leave":
                await client.send(client.build_request("GET", "/slow"), stream=True)
                return "left"
            return (await client.get("/who")).text

        async with serving(handle) as app:
            assert await ask(app, "/leave") == "left"
            assert await ask(app) == "- - -"


async def test_a_client_ends() -> None:
    """A client refuses to work after the end of its request or block."""
    async with site() as there:
        web = resources.http(there.url)
        kept: list[httpx.AsyncClient] = []

        async def handle(path: str) -> None:
            kept.append(await web.current())

        async with serving(handle) as app:
            await ask(app)
            async with web.client() as client:
                kept.append(client)
            for client in kept:
                with pytest.raises(LeaseEndedError, match="this client of 'http' has ended"):
                    await client.get("/who")
        with pytest.raises(NoLeaseError, match="has no current client here"):
            await web.current()


async def test_options_reach_the_client() -> None:
    """Options of the declaration are those of each client and of the transport."""
    async with site() as there:
        web = resources.http(
            there.url,
            client_options={"headers": {"x-user": "all"}},
            transport_options={"local_address": "127.0.0.1"},
            name="web",
        )
        async with web, web.client() as client:
            assert (await client.get("/who")).text == "- - all"
        assert repr(web) == "<HttpResource 'web' max_size=100 used=0 pending=0>"


def test_wrong_options_are_refused() -> None:
    """An option that the client or the resource does not know is refused at once."""
    with pytest.raises(TypeError, match="timeuot"):
        resources.http(client_options={"timeuot": 3})
    with pytest.raises(OptionError, match="max_size=0"):
        resources.http(max_size=0)


async def test_figures() -> None:
    """What is under way is counted, and who waits for a place."""
    async with site() as there:
        web = resources.http(there.url, max_size=1)
        async with web, anyio.create_task_group() as tasks:

            async def one() -> None:
                async with web.client() as client:
                    await client.get("/slow")

            tasks.start_soon(one)
            tasks.start_soon(one)
            await until(lambda: there.waiting)
            assert web.statistics().used == 1
            await until(lambda: web.statistics().pending_requests == 1)
            there.go.set()
        assert web.statistics().uses == 2


def test_without_httpx(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where only httpx2 is installed, that is used; without both the error names the extra."""
    monkeypatch.delitem(sys.modules, "sandboxpool.resources._http", raising=False)
    monkeypatch.setitem(sys.modules, "httpx", None)
    web: Any = resources.http("http://127.0.0.1")
    assert type(web)._make.__globals__["httpx"].__name__ == "httpx2"
    monkeypatch.delitem(sys.modules, "sandboxpool.resources._http", raising=False)
    monkeypatch.setitem(sys.modules, "httpx2", None)
    with pytest.raises(ImportError, match=r"pip install 'sandboxpool\[http\]'"):
        resources.http("http://127.0.0.1")


@pytest.mark.parametrize("name", ["asyncpg", "psycopg", "sqlalchemy", "redis", "sqlite"])
def test_without_the_driver(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without its driver, a resource says which extra to install."""
    package = {"sqlite": "aiosqlite"}.get(name, name)
    for module in [m for m in sys.modules if m.split(".")[0] == package]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.delitem(sys.modules, f"sandboxpool.resources._{name}", raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"resources.{name}\(\) needs {package}.*\[{name}\]"):
        getattr(resources, name)("x://")
