"""Several worker processes with one cache in a real Redis, and what happens when one dies."""

from __future__ import annotations

import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from queue import Queue
from typing import Any

import anyio
import pytest

from sandboxpool import Cache, CacheUnavailableError
from sandboxpool.cache import RedisStore
from tests.hooks.servers import HOST, ROOT, Fleet, free_port
from tests.hooks.servers import redis as running_redis

from .conftest import redis_store

pytestmark = pytest.mark.server

PATIENCE = 30


class Worker:
    """A worker process, told what to do by lines, and what it says."""

    def __init__(self, port: int, backend: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-m", "tests.cache.worker", str(port), backend],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            cwd=ROOT,
            text=True,
        )
        self._said: Queue[str] = Queue()
        threading.Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self._said.put(line.strip())

    def tell(self, line: str) -> None:
        """Give it a command."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def hear(self) -> str:
        """Return the next thing that it says."""
        return self._said.get(timeout=PATIENCE)

    @property
    def pid(self) -> int:
        """Its process id."""
        return self.process.pid


@contextmanager
def workers(port: int, *backends: str) -> Iterator[list[Worker]]:
    made = [Worker(port, backend) for backend in backends]
    try:
        for worker in made:
            assert worker.hear() == "ready"
        yield made
    finally:
        with ExitStack() as stack:
            for worker in made:
                stack.enter_context(worker.process)
                worker.process.kill()


@pytest.fixture
def port(fleet: Fleet) -> int:
    """Return the port of a Redis without values of earlier tests."""
    found = fleet("redis")
    cache = Cache("workers", store=redis_store(found))
    cache.blocking.clear()
    cache.close()
    return found


@pytest.mark.slow
def test_workers_share_one_refresh(port: int) -> None:
    """Workers that miss a key at once run one resolver between them, and all get its value."""
    with workers(port, "asyncio", "trio", "asyncio") as made:
        made[0].tell("get_or_set key 0.5")
        assert made[0].hear() == "begun"
        for worker in made:
            worker.tell("get_or_set key 0.5")
        answers = [worker.hear() for worker in (made[0], *made)]
        assert answers == [f"by {made[0].pid}"] * 4


@pytest.mark.slow
def test_workers_share_a_failure(port: int) -> None:
    """The failure of a resolver reaches those who wait in other workers; then all begin anew."""
    with workers(port, "asyncio", "trio") as (one, two):
        one.tell("get_or_set key 0.5 fail")
        assert one.hear() == "begun"
        two.tell("get_or_set key 0")
        assert one.hear() == f"failed as told {one.pid}"
        assert two.hear() == f"failed as told {one.pid}"
        two.tell("get_or_set key 0")
        assert [two.hear(), two.hear()] == ["begun", f"by {two.pid}"]


@pytest.mark.slow
def test_another_worker_takes_over(port: int) -> None:
    """When the worker that refreshes a key is killed, one of those that wait goes on."""
    with workers(port, "asyncio", "asyncio", "trio") as (one, two, three):
        one.tell("get_or_set key 60")
        assert one.hear() == "begun"
        two.tell("get_or_set key 0")
        three.tell("get_or_set key 0")
        # Longer than a claim that nobody renews would last: it is alive, so nobody takes over.
        time.sleep(1.2)
        assert two._said.empty()
        assert three._said.empty()
        one.process.kill()
        begun, answers = 0, []
        for worker in (two, three):
            heard = worker.hear()
            if heard == "begun":
                begun += 1
                heard = worker.hear()
            answers.append(heard)
        assert begun == 1
        assert answers[0] == answers[1]
        assert answers[0] in (f"by {two.pid}", f"by {three.pid}")


@pytest.mark.slow
def test_workers_keep_one_value_fresh(port: int) -> None:
    """An interval is refreshed by one worker for all, and goes on when some of them are killed."""
    cache = Cache("workers", store=redis_store(port))

    def runs() -> int:
        return int(cache.blocking.get("runs", 0))

    def until(number: int) -> None:
        deadline = time.monotonic() + PATIENCE
        while runs() < number:
            assert time.monotonic() < deadline
            time.sleep(0.02)

    with workers(port, "asyncio", "trio", "asyncio") as made:
        began = time.monotonic()
        for worker in made:
            worker.tell("interval rates 0.2")
        assert int(made[0].hear()) >= 1
        until(5)
        # A value is fresh for 0.2 s, so no worker can refresh it before that is over.
        assert runs() <= (time.monotonic() - began) / 0.2 + 1
        for worker in made[:2]:
            worker.process.kill()
        until(runs() + 3)
    cache.close()


@pytest.mark.slow
def test_counting_in_several_workers(port: int) -> None:
    """Workers that count up one number at once lose no count."""
    with workers(port, "asyncio", "trio", "asyncio") as made:
        for worker in made:
            worker.tell("incr number 200")
        assert [worker.hear() for worker in made] == ["counted"] * 3
    cache = Cache("workers", store=redis_store(port))
    assert cache.blocking.get("number") == 600
    cache.close()


# --- the server is away -------------------------------------------------------------------------


async def test_redis_is_down() -> None:
    """Without the server each operation raises an error that says so, and soon at once."""
    port = free_port()
    cache = Cache("down", store=redis_store(port, down_for=60))
    operations: list[Callable[[], Any]] = [
        lambda: cache.get("key"),
        lambda: cache.set("key", 1),
        lambda: cache.delete("key"),
        lambda: cache.incr("key"),
        lambda: cache.clear(),
        lambda: cache.get_or_set("key", lambda: 1),
    ]
    with pytest.raises(CacheUnavailableError, match=rf"redis://{HOST}:{port}.*does not answer"):
        await operations[0]()
    for operation in operations:
        with pytest.raises(CacheUnavailableError, match="is not asked again yet") as info:
            await operation()
        assert isinstance(info.value, ConnectionError)
    with pytest.raises(CacheUnavailableError):
        cache.blocking.get("key")
    cache.close()


async def test_redis_is_down_and_resolvers_run() -> None:
    """With `when_down="resolve"` callers still get values, of one resolver at a time."""
    cache = Cache("down-resolve", store=redis_store(free_port(), when_down="resolve"))
    runs: list[int] = []
    entered = anyio.Event()

    async def resolve() -> list[int]:
        runs.append(1)
        entered.set()
        await anyio.sleep(0.05)
        return [7]

    got: list[Any] = []

    async def ask() -> None:
        got.append(await cache.get_or_set("key", resolve))

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ask)
        await entered.wait()
        for _ in range(20):
            tasks.start_soon(ask)
    assert got == [[7]] * 21
    assert runs == [1]

    async def fail() -> None:
        raise LookupError

    with pytest.raises(LookupError):
        await cache.get_or_set("key", fail)
    with pytest.raises(CacheUnavailableError):
        await cache.set("key", 1)
    cache.close()


@pytest.mark.slow
def test_redis_comes_back() -> None:
    """When the server is started again the cache works again, by itself, and has nothing old."""
    with running_redis() as port:
        cache = Cache("restarted", store=redis_store(port, down_for=0.05))
        cache.blocking.set("key", 1)
        cache.blocking.get_or_set("other", lambda: 2)
    with pytest.raises(CacheUnavailableError):
        cache.blocking.get("key")
    with on_port(port):
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                assert cache.blocking.get("key") is None
                break
            except CacheUnavailableError:
                assert time.monotonic() < deadline
                time.sleep(0.02)
        assert cache.blocking.incr("key") == 1
    cache.close()


@contextmanager
def on_port(port: int) -> Iterator[None]:
    command = ["redis-server", "--bind", HOST, "--port", str(port), "--save", ""]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        process.terminate()
        process.wait(PATIENCE)


async def test_a_server_that_does_not_answer() -> None:
    """A server that accepts connections and says nothing is given up after `timeout`."""
    with socket.create_server((HOST, 0)) as silent:
        port = silent.getsockname()[1]
        cache = Cache("silent", store=redis_store(port, timeout=0.1))
        with anyio.fail_after(PATIENCE), pytest.raises(CacheUnavailableError, match="not answer"):
            await cache.get("key")
        cache.close()


async def test_cancelled_operations_do_no_harm(fleet: Fleet) -> None:
    """
    Cancelling operations by the hundred leaves no connection with somebody else's reply in it.

    That is what redis-py's asyncio client did (redis/redis-py#2665): the next user of the
    connection got the reply to the cancelled command.
    """
    cache = Cache("cancelled", store=redis_store(fleet("redis"), max_connections=2))
    for number in range(20):
        await cache.set(f"{number}", f"value {number}")

    async def ask(number: int, wrong: list[Any]) -> None:
        got = await cache.get(f"{number}")
        if got != f"value {number}":
            wrong.append((number, got))

    wrong: list[Any] = []
    for round_ in range(15):
        with anyio.move_on_after(0.0005 * round_):
            async with anyio.create_task_group() as tasks:
                for number in range(20):
                    tasks.start_soon(ask, number, wrong)
    async with anyio.create_task_group() as tasks:
        for number in range(20):
            tasks.start_soon(ask, number, wrong)
    assert wrong == []
    cache.close()


async def test_claims_are_given_up(fleet: Fleet) -> None:
    """The claim of a resolver that is cancelled is given up, not left to run out."""
    store = redis_store(fleet("redis"), takeover_after=3600)
    cache = Cache("claims", store=store)
    begun = anyio.Event()

    async def hang() -> None:
        begun.set()
        await anyio.sleep_forever()

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(cache.get_or_set, "key", hang)
        await begun.wait()
        tasks.cancel_scope.cancel()
    with anyio.fail_after(PATIENCE):
        assert await cache.get_or_set("key", lambda: "mine") == "mine"
    await cache.clear()
    cache.close()


def test_a_resolver_that_takes_too_long_loses_its_claim(fleet: Fleet) -> None:
    """Plain code cannot be cut off, but after `resolver_timeout` others have a try, and win."""
    port = fleet("redis")
    options: dict[str, Any] = {"store": redis_store(port, takeover_after=0.2, prefix="slow")}
    cache = Cache("slow", resolver_timeout=0.05, **options)
    other = Cache("slow-other", **options)
    # Another worker's view of the same entries.
    store: Any = other._shared.store
    store._prefix = cache._shared.store._prefix  # type: ignore[attr-defined]
    begun, go_on = threading.Event(), threading.Event()
    got: list[str] = []

    def slow() -> str:
        begun.set()
        assert go_on.wait(PATIENCE)
        return "slow"

    thread = threading.Thread(target=lambda: got.append(cache.blocking.get_or_set("key", slow)))
    thread.start()
    assert begun.wait(PATIENCE)
    assert other.blocking.get_or_set("key", lambda: "quick") == "quick"
    go_on.set()
    thread.join(PATIENCE)
    assert got == ["slow"]
    assert cache.blocking.get("key") == "quick"
    cache.blocking.clear()
    for each in (cache, other):
        each.close()


def test_a_forked_process(fleet: Fleet) -> None:
    """A process that is forked while a resolver runs does not wait for it for ever."""
    code = (
        "import os, threading\n"
        "from sandboxpool import Cache\n"
        "cache = Cache('forked')\n"
        "begun, go_on = threading.Event(), threading.Event()\n"
        "def slow():\n"
        "    begun.set(); go_on.wait(30); return 'parent'\n"
        "thread = threading.Thread(target=cache.blocking.get_or_set, args=('key', slow))\n"
        "thread.start(); begun.wait(30)\n"
        "if (pid := os.fork()) == 0:\n"
        "    print(cache.blocking.get_or_set('key', lambda: 'child'), flush=True)\n"
        "    os._exit(0)\n"
        "os.waitpid(pid, 0); go_on.set(); thread.join()\n"
        "print(cache.blocking.get('key'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split() == ["child", "parent"], done.stderr


def test_stores_with_the_same_options_are_equal() -> None:
    """Two stores of one server are one and the same, so that each private module may make its."""
    assert RedisStore("redis://a") == RedisStore("redis://a")
    assert RedisStore("redis://a") != RedisStore("redis://a", prefix="other")
