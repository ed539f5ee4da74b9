"""Resources over functions of one's own: who has a connection, and when it comes back."""

from __future__ import annotations

import gc
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from sandboxpool import (
    FactoryError,
    FunctionFactory,
    LeaseEndedError,
    NoLeaseError,
    OptionError,
    Pool,
    PoolTimeoutError,
    current_lease,
    resources,
)
from sandboxpool._context import current
from sandboxpool.resources import Resource

from .requests import ask, serving, until


class Line:
    """A connection that notes what is done with it."""

    def __init__(self, lines: Lines) -> None:
        self.lines = lines
        self.works = True
        self.user: str | None = None


class Lines:
    """Opens, resets, checks and closes lines; async where *slow*."""

    def __init__(self) -> None:
        self.opened: list[Line] = []
        self.closed: list[Line] = []
        self.resets = 0

    async def open(self) -> Line:
        await anyio.lowlevel.checkpoint()
        self.opened.append(Line(self))
        return self.opened[-1]

    async def close(self, line: Line) -> None:
        await anyio.lowlevel.checkpoint()
        self.closed.append(line)

    def check(self, line: Line) -> bool:
        return line.works

    async def reset(self, line: Line) -> None:
        await anyio.lowlevel.checkpoint()
        line.user = None
        self.resets += 1

    def resource(self, **options: Any) -> Resource[Line]:
        """Return a resource of these lines."""
        return Resource(self.open, close=self.close, check=self.check, reset=self.reset, **options)


@pytest.fixture
def lines() -> Lines:
    """Return a source of lines."""
    return Lines()


# --- blocks -------------------------------------------------------------------------------------


async def test_a_block_has_a_connection_and_gives_it_back(lines: Lines) -> None:
    """A connection is had inside of the block only, reset after it, and used again."""
    async with lines.resource() as resource:
        async with resource.connection() as line:
            line.user = "ada"
            assert resource.statistics().used == 1
        await until(lambda: resource.statistics().idle == 1)
        async with resource.connection() as again:
            assert again is line
            assert again.user is None
    assert lines.closed == lines.opened == [line]


async def test_a_block_is_one_use(lines: Lines) -> None:
    """A block that was entered once cannot be entered again."""
    async with lines.resource() as resource:
        block = resource.connection()
        async with block:
            pass
        with pytest.raises(LeaseEndedError, match="was entered before: call connection"):
            async with block:
                pass


async def test_exceptions_reset_and_cancellations_close(lines: Lines) -> None:
    """After an error the connection is reset; after a cancellation it is closed, for good."""
    async with lines.resource() as resource:
        with pytest.raises(ValueError, match="mine"):
            async with resource.connection():
                raise ValueError("mine")
        await until(lambda: resource.statistics().idle == 1)
        with anyio.CancelScope() as scope:
            async with resource.connection() as line:
                scope.cancel()
                await anyio.lowlevel.checkpoint()
        await until(lambda: lines.closed == [line])
        assert resource.statistics().retired == {"cancelled": 1}


async def test_a_discarded_connection_is_closed(lines: Lines) -> None:
    """What is discarded is closed at the end of its use, and what is not borrowed is refused."""
    async with lines.resource() as resource:
        async with resource.connection() as line:
            resource.discard(line, "went wrong")
        await until(lambda: lines.closed == [line])
        assert resource.statistics().retired == {"went wrong": 1}
        with pytest.raises(LookupError, match="is not borrowed from 'resource' here"):
            resource.discard(line)


async def test_nothing_idle_times_out(lines: Lines) -> None:
    """Who waits for longer than the timeout gets the pool's own error, and is counted."""
    async with lines.resource(max_size=1, name="lines") as resource:
        async with resource.connection():
            with pytest.raises(PoolTimeoutError, match="'lines' is exhausted"):
                async with resource.connection(timeout=0.01):
                    pass
        assert resource.statistics().timeouts == 1


async def test_a_connect_that_fails_reaches_who_waits(lines: Lines) -> None:
    """The error of `open` is the cause of what the caller gets, and the next try works."""

    async def fail() -> Line:
        if not lines.opened:
            lines.opened.append(Line(lines))
            raise ConnectionRefusedError("nobody there")
        return Line(lines)

    resource = Resource(fail)
    with pytest.raises(FactoryError) as caught:
        await resource.open()
    assert isinstance(caught.value.__cause__, ConnectionRefusedError)
    await resource.open()
    assert resource.statistics().open_failures == 1
    await resource.aclose()


async def test_functions_may_be_plain() -> None:
    """All four functions may be plain ones."""
    closed: list[object] = []
    resource = Resource(object, close=closed.append, check=lambda item: True, reset=lambda i: None)
    async with resource, resource.connection() as item:
        pass
    assert closed == [item]


# --- the request's own --------------------------------------------------------------------------


async def test_current_is_one_for_the_request_and_its_children(lines: Lines) -> None:
    """Each call and each child task of a request has one connection, given back at its end."""
    resource = lines.resource(max_size=2)
    found: list[Line] = []

    async def handle(path: str) -> int:
        async def child() -> None:
            found.append(await resource.current())

        async with anyio.create_task_group() as tasks:
            for _ in range(5):
                tasks.start_soon(child)
        found.append(await resource.current())
        return resource.statistics().used

    async with serving(handle) as app:
        assert await ask(app) == "1"
        assert len(set(found)) == 1
        await until(lambda: resource.statistics().idle == 1)
        assert lines.resets == 1
    assert lines.closed == lines.opened, "closed with the app"


async def test_current_goes_over_to_the_next_when_the_first_is_cancelled(lines: Lines) -> None:
    """If who acquires the request's connection is cancelled, another child gets it all the same."""
    resource = lines.resource(max_size=1)

    async def handle(path: str) -> bool:
        got: list[Line] = []

        async def child() -> None:
            got.append(await resource.current())

        async with anyio.create_task_group() as tasks:
            first = anyio.CancelScope()

            async def cancelled() -> None:
                with first:
                    await child()

            async with resource.connection():
                tasks.start_soon(cancelled)
                await anyio.wait_all_tasks_blocked()
                tasks.start_soon(child)
                tasks.start_soon(child)
                await anyio.wait_all_tasks_blocked()
                first.cancel()
                await anyio.wait_all_tasks_blocked()
                assert got == []
        return len(got) == 2 and got[0] is got[1]

    async with serving(handle) as app:
        assert await ask(app) == "True"


async def test_current_fails_for_all_who_wait_for_it() -> None:
    """One failure to connect reaches all children that wait for it, once each."""
    attempts = 0

    async def refuse() -> object:
        nonlocal attempts
        attempts += 1
        await anyio.lowlevel.checkpoint()
        raise ConnectionRefusedError

    resource: Resource[object] = Resource(refuse)

    async def handle(path: str) -> int:
        failed = 0

        async def child() -> None:
            nonlocal failed
            try:
                await resource.current()
            except FactoryError:
                failed += 1

        async with anyio.create_task_group() as tasks:
            for _ in range(4):
                tasks.start_soon(child)
        return failed

    async with serving(handle) as app:
        assert await ask(app) == "4"
    assert attempts == 1


async def test_no_request_no_current(lines: Lines) -> None:
    """Outside of a request there is no current connection, and the error says what to write."""
    resource = lines.resource()
    with pytest.raises(NoLeaseError, match="Use `async with"):
        await resource.current()
    with pytest.raises(NoLeaseError):
        resource.release()


async def test_release_before_the_end(lines: Lines) -> None:
    """`release()` gives the request's connection back early; the next call acquires one."""
    resource = lines.resource(max_size=1)

    async def handle(path: str) -> tuple[bool, bool]:
        await resource.current()
        done = resource.release()
        async with resource.connection():
            pass
        await resource.current()
        return done, resource.release() and resource.release()

    async with serving(handle) as app:
        assert await ask(app) == "(True, True)"


@pytest.mark.parametrize("way", ["error", "cancelled", "deadline"])
async def test_however_the_request_ends(lines: Lines, way: str) -> None:
    """After an error the connection is reset; after a request that was cut off it is closed."""
    resource = lines.resource()

    async def handle(path: str) -> None:
        line = await resource.current()
        line.user = "ada"
        if way == "error":
            raise ValueError("mine")
        if way == "deadline":
            current_lease().cancel()
        await anyio.sleep_forever()

    async with serving(handle) as app:
        if way == "error":
            with pytest.raises(ValueError, match="mine"):
                await ask(app)
        elif way == "deadline":
            assert "took longer" in await ask(app)
        else:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(ask, app)
                await until(lambda: resource.statistics().used)
                tasks.cancel_scope.cancel()
        figures = resource.statistics
        await until(lambda: figures().idle if way == "error" else lines.closed)
        assert figures().retired == ({} if way == "error" else {"cancelled": 1})
        assert lines.opened[0].user is None or lines.closed == lines.opened


async def test_what_a_stray_task_still_has_is_closed(lines: Lines) -> None:
    """A block that a task holds beyond the end of its request is taken away, and closed."""
    resource = lines.resource()
    done = anyio.Event()

    async def hold() -> None:
        async with resource.connection():
            await done.wait()

    async with anyio.create_task_group() as tasks:

        async def handle(path: str) -> None:
            tasks.start_soon(hold)
            await until(lambda: resource.statistics().used)

        async with serving(handle) as app:
            await ask(app)
            await until(lambda: lines.closed)
            assert resource.statistics().retired == {"cancelled": 1}
            done.set()


# --- one resource for all sandboxes -------------------------------------------------------------


def declare(lines: Lines, **options: Any) -> Resource[Line]:
    """Declare a resource, always in this line."""
    return Resource(lines.open, close=lines.close, **options)


def test_the_same_declaration_is_the_same_resource() -> None:
    """A declaration that runs again, with equal arguments, shares the pools of the first."""
    opener = object
    first, second = (Resource(opener, name="one") for _ in range(2))
    assert first._shared is second._shared
    other, another = (Resource(opener, name=name) for name in ("one", "two"))
    assert other._shared is not another._shared
    assert first._shared is not other._shared, "two lines are two declarations"


def test_functions_over_other_variables_are_others() -> None:
    """The same lines over other variables or objects are another resource."""

    def declare(value: object) -> Resource[object]:
        return Resource(lambda: value)

    first, second = declare("same"), declare("same")
    assert first._shared is not second._shared
    one, two = (Resource(lines.open) for lines in (Lines(), Lines()))
    assert one._shared is not two._shared


def test_a_resource_ends_with_its_handles() -> None:
    """When nobody holds the resource any more, the same line declares a new one."""

    def declare() -> Resource[object]:
        return Resource(object)

    first = declare()
    shared = id(first._shared)
    keep = declare()._shared
    assert id(keep) == shared
    del first, keep
    gc.collect()
    assert declare().statistics().uses == 0


def test_copies_are_the_resource_itself() -> None:
    """A copy of a resource, also a deep one, is that resource."""
    import copy

    resource = Resource(object)
    assert copy.copy(resource) is resource
    assert copy.deepcopy({"db": resource})["db"] is resource


async def test_sandboxes_of_a_factory_share_it() -> None:
    """Apps that a factory makes for each sandbox, each with its own declaration, share one pool."""
    lines = Lines()
    opener, closer = lines.open, lines.close
    made: list[Resource[Line]] = []

    def create_app() -> Any:
        resource = Resource(opener, close=closer, max_size=3)
        made.append(resource)

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await resource.current()
            await anyio.wait_all_tasks_blocked()
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"ok"})

        return app

    from sandboxpool import wrap

    async with (
        wrap(create_app, factory=True, lifespan="off", min_size=4, max_size=4) as app,
        anyio.create_task_group() as tasks,
    ):
        for _ in range(4):
            tasks.start_soon(ask, app)
    assert len(made) >= 4
    assert len({id(resource._shared) for resource in made}) == 1
    assert len(lines.opened) == 3


@pytest.mark.parametrize(
    ("option", "value", "told"),
    [
        ("max_size", 0, "max_size=0"),
        ("min_size", 20, "min_size=20 is more than max_size=10"),
        ("acquire_timeout", -1, "acquire_timeout=-1"),
        ("idle_warning", 0, "idle_warning=0"),
        ("name", "", "name=''"),
        ("max_sise", 3, "a resource has no option 'max_sise'"),
    ],
)
def test_wrong_options_are_refused(option: str, value: Any, told: str) -> None:
    """An option that cannot work is refused where the resource is declared."""
    with pytest.raises(OptionError, match=told):
        Resource(object, **{option: value})


def test_wrong_functions_are_refused() -> None:
    """What is no function is refused by name."""
    with pytest.raises(OptionError, match="open=3: give a function"):
        Resource(3)  # type: ignore[call-overload] # that is the point
    with pytest.raises(OptionError, match="close='x': give a function"):
        Resource(object, close="x")  # type: ignore[call-overload] # that is the point


# --- life ---------------------------------------------------------------------------------------


async def test_closed_and_opened_again(lines: Lines) -> None:
    """After it was closed, the next use opens it again, and counts anew."""
    resource = lines.resource()
    async with resource.connection():
        pass
    await resource.aclose(None)
    assert resource.statistics().uses == 1
    async with resource.connection():
        pass
    assert resource.statistics().uses == 1
    await resource.aclose(None)
    assert lines.closed == lines.opened
    assert resource.statistics().loops == 0


async def test_opened_before_the_first_request(lines: Lines) -> None:
    """A resource that the app's start used already is closed with the app all the same."""
    resource = lines.resource()

    async def handle(path: str) -> None:
        async with resource.connection():
            pass

    async with serving(handle) as app:
        async with resource.connection():
            pass
        await ask(app)
    assert lines.closed == lines.opened != []


async def test_opened_with_the_app(lines: Lines) -> None:
    """What `wrap()` is told of is opened before the app starts, and closed after it."""
    resource = lines.resource()

    async def handle(path: str) -> None: ...

    async with serving(handle, resources=(resource,)):
        assert len(lines.opened) == 1
    assert lines.closed == lines.opened


async def test_no_start_without_it() -> None:
    """If a resource cannot be opened, the app does not start; it may start later."""
    there = False

    def connect() -> object:
        if not there:
            raise ConnectionRefusedError("nobody there")
        return object()

    async def handle(path: str) -> None: ...

    app = serving(handle, resources=(Resource(connect), f"{__name__}:SPARE"))
    with pytest.raises(FactoryError, match="nobody there"):
        await app.open()
    there = True
    async with app:
        assert SPARE.statistics().loops == 1
    assert SPARE.statistics().loops == 0


SPARE = Resource(object, name="spare")


@pytest.mark.parametrize("wrong", ["shop.db:db", 3, (object(),)])
def test_no_resources(wrong: Any) -> None:
    """What is no resource is refused by `wrap()`."""

    async def handle(path: str) -> None: ...

    with pytest.raises(OptionError, match="resources="):
        serving(handle, resources=wrong)


async def test_connections_belong_to_no_request() -> None:
    """What opens, resets and closes connections runs outside of the request that needed them."""
    leases: list[object] = []

    def note(*line: object) -> Line:
        leases.append(current.get())
        return Line(Lines())

    async def later(line: Line) -> None:
        note()

    resource = Resource(note, close=later, reset=later)

    async def handle(path: str) -> None:
        await resource.current()

    async with serving(handle) as app:
        await ask(app)
        await until(lambda: len(leases) == 2)
    assert leases == [None, None, None]


async def test_two_apps_share_it(lines: Lines) -> None:
    """Used by two apps, it is closed with the last of them."""
    resource = lines.resource()

    async def handle(path: str) -> None:
        await resource.current()

    async with serving(handle) as one:
        async with serving(handle) as other:
            await ask(one)
            await ask(other)
        assert lines.closed == []
        await ask(one)
    assert lines.closed == lines.opened


def test_each_loop_has_its_pool(lines: Lines) -> None:
    """One event loop after the other, each gets connections of its own."""

    async def use() -> Line:
        async with resource.connection() as line:
            return line

    resource = lines.resource(max_size=1)
    first = anyio.run(use)
    second = anyio.run(use)
    assert first is not second, "that of a loop which ended without closing it is left behind"


async def test_what_is_kept_ready(lines: Lines) -> None:
    """`min_size` connections are opened ahead of need and kept."""
    async with lines.resource(min_size=3) as resource:
        await until(lambda: resource.statistics().idle == 3)
    assert len(lines.closed) == 3


# --- what it says -------------------------------------------------------------------------------


async def test_figures_have_their_names(lines: Lines) -> None:
    """The figures come under OpenTelemetry's names, with the attributes that it asks for."""
    async with lines.resource(name="lines", max_size=2) as resource, resource.connection():
        figures = resource.statistics()
        metrics = {
            (m.name, m.attributes.get("db.client.connection.state")): m for m in figures.metrics()
        }
    prefix = "db.client.connection."
    assert metrics[prefix + "count", "used"].value == 1
    assert metrics[prefix + "count", "idle"].value == 0
    assert metrics[prefix + "max", None].value == 2
    assert metrics[prefix + "idle.max", None].value == 2
    assert metrics[prefix + "idle.min", None].value == 0
    assert metrics[prefix + "pending_requests", None].value == 0
    assert metrics[prefix + "timeouts", None].value == 0
    for name in ("create_time", "wait_time", "use_time"):
        found = metrics[prefix + name, None]
        assert found.kind == "histogram"
        assert found.unit == "s"
        assert isinstance(found.value, resources.Histogram)
        assert found.value.count == sum(found.value.buckets) > 0
        assert len(found.value.buckets) == len(found.value.bounds) + 1
    assert {m.attributes["db.client.connection.pool.name"] for m in metrics.values()} == {"lines"}


def test_it_says_what_it_is(lines: Lines) -> None:
    """The representation names it and says what it has."""
    assert repr(lines.resource(name="lines")) == (
        "<Resource 'lines' (resource) max_size=10 idle=0 used=0 pending=0>"
    )


# --- the reason for all this --------------------------------------------------------------------


class Spoken:
    """A connection of a protocol in which each answer belongs to the oldest question."""

    def __init__(self, stream: anyio.abc.SocketStream) -> None:
        self.stream = stream
        self._rest = b""

    async def ask(self, *words: str) -> str:
        line = " ".join(words) + "\r\n"
        await self.stream.send(line.encode())
        head = await self._line()
        return await self._line() if head.startswith("$") else head

    async def _line(self) -> str:
        while b"\r\n" not in self._rest:
            self._rest += await self.stream.receive()
        line, _, self._rest = self._rest.partition(b"\r\n")
        return line.decode()


Borrowing = Callable[[], Any]


async def swap(borrow: Borrowing, prepare: Callable[[], Awaitable[None]]) -> str:
    """Let a user give up while the answer is on its way, and return what the next one reads."""
    await prepare()
    with anyio.CancelScope() as scope:
        async with borrow() as spoken:
            send = spoken.stream.send

            async def send_and_give_up(data: bytes) -> None:
                await send(data)
                scope.cancel()

            spoken.stream.send = send_and_give_up
            try:
                await spoken.ask("GET", "secret-of-ada")
            finally:
                spoken.stream.send = send
    async with borrow() as spoken:
        answer: str = await spoken.ask("GET", "greeting")
        return answer


@pytest.mark.server
async def test_an_answer_never_reaches_another_user(redis_url: str) -> None:
    """
    A command that was cut off leaves its answer on the connection: a plain pool hands it to the
    next user (the control; redis-py#2665), a resource does not.
    """
    port = int(redis_url.split(":")[2].split("/")[0])

    async def connect() -> Spoken:
        return Spoken(await anyio.connect_tcp("127.0.0.1", port))

    async def close(spoken: Spoken) -> None:
        await spoken.stream.aclose()

    async def prepare() -> None:
        spoken = await connect()
        await spoken.ask("SET", "secret-of-ada", "for-ada-only")
        await spoken.ask("SET", "greeting", "hello")
        await close(spoken)

    async with Pool(FunctionFactory(connect, destroy=close), max_size=1) as pool:
        assert await swap(pool.lease, prepare) == "for-ada-only"
    async with Resource(connect, close=close, max_size=1) as resource:
        assert await swap(resource.connection, prepare) == "hello"
