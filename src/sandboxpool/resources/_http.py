"""HTTP, by way of httpx: hot connections in common, cookies and credentials for each request alone.

What httpx keeps on a client (cookies that servers set, `auth`, default headers) must not be shared;
what is worth sharing is the transport below it, with its connections. So each request to the app
has a client of its own over the one transport.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

from sandboxpool._context import RequestLease, current
from sandboxpool._exceptions import LeaseEndedError, NoLeaseError
from sandboxpool._lease import UNSET

from ._borrow import Borrow
from ._figures import ResourceStatistics
from ._member import Driver, Member
from ._resource import PoolOptions, Resource
from ._shared import Shared

if TYPE_CHECKING:
    from types import FrameType, TracebackType

    import httpx

    from ._here import Here
else:
    try:
        import httpx
    except ImportError:
        import httpx2 as httpx


class ExchangeDriver(Driver[Member]):
    """A place for one request and its response; without one a request waits for its turn.

    The transport never has to queue itself, and so nothing that is cancelled can be left in its
    queue.
    """

    system = "http"

    def __init__(self, transport_options: dict[str, Any]) -> None:
        self.transport_options = transport_options

    def key(self) -> object:
        return repr(sorted(self.transport_options.items()))

    async def open(self, member: Member) -> None:
        member.connection = member

    async def close(self, member: Member) -> None:
        stream, member.extra = member.extra, None
        if stream is not None:
            await stream.aclose()

    def worn(self, member: Member) -> str | None:
        return "cancelled" if member.extra is not None or member.suspect else None


class HttpResource:
    """Clients for HTTP over one shared transport; made by `resources.http()`."""

    def __init__(
        self,
        client_options: dict[str, Any],
        transport_options: dict[str, Any],
        options: PoolOptions,
        caller: FrameType,
    ) -> None:
        driver = ExchangeDriver(transport_options)
        given: PoolOptions = {
            "max_size": 100,
            "idle_warning": None,
            "max_lifetime": None,
            **options,
        }
        self._exchanges: Resource[Member] = Resource.of(driver, given, caller)
        self._client_options = client_options
        _new_client(client_options, _Refusing())  # so that a wrong option is refused here

    def __repr__(self) -> str:
        figures = self.statistics()
        return (
            f"<HttpResource {self.name!r} max_size={figures.max_size} used={figures.used} "
            f"pending={figures.pending_requests}>"
        )

    def __copy__(self) -> HttpResource:
        return self

    def __deepcopy__(self, memo: object) -> HttpResource:
        return self

    @property
    def name(self) -> str:
        """What errors, logs and figures call it."""
        return self._exchanges.name

    @property
    def _shared(self) -> Shared:
        return self._exchanges._shared

    def client(self) -> Lent:
        """Return a context manager over a client that nobody else has.

        The client is an `httpx.AsyncClient` with the options of the declaration; what it learns,
        like cookies, ends with the block. It holds no connection except while it sends a request
        and reads the response.
        """
        return Lent(self)

    async def current(self) -> httpx.AsyncClient:
        """Return the client of the running request: the same for each call and each child task.

        It ends with the request; responses that are still open then are closed.

        Raises:
            NoLeaseError: The code runs outside of a request.
            LeaseEndedError: The request is over.
        """
        lease = current.get()
        if lease is None:
            raise NoLeaseError(
                f"{self.name!r} has no current client here: this code runs outside of a request "
                "to a wrapped app. Use `async with ....client()`."
            )
        lease.check_open()
        here = self._shared.here() or await self._shared.enter()
        clients: dict[RequestLease, httpx.AsyncClient] = here.extras.setdefault("clients", {})
        client = clients.get(lease)
        if client is None:
            self._shared.adopt(here, lease)
            client = clients[lease] = self._make(here, lease)
            lease.context.defer(_end, clients, lease)
        return client

    def _make(self, here: Here, lease: RequestLease | None) -> httpx.AsyncClient:
        transport = here.extras.get("transport")
        if transport is None:
            size = self._shared.max_size
            limits = httpx.Limits(max_connections=size, max_keepalive_connections=size)
            options = {"limits": limits, **self._transport_options()}
            transport = here.extras["transport"] = httpx.AsyncHTTPTransport(**options)
            here.at_close.append(transport.aclose)
        return _new_client(self._client_options, _Transport(self, transport, lease))

    def _transport_options(self) -> dict[str, Any]:
        driver: Any = self._shared.driver
        options: dict[str, Any] = driver.transport_options
        return options

    async def open(self) -> None:
        """Open it in the running event loop; nothing is connected yet."""
        await self._shared.enter()

    async def open_for(self, owner: Any) -> None:
        """Open it for an app, which closes it when it ends."""
        here = await self._shared.enter()
        self._shared.own(here, owner)

    async def aclose(self, timeout: float | None = 0) -> None:
        """Close the connections of the running event loop; the next use opens it again."""
        await self._shared.aclose(timeout)

    async def __aenter__(self) -> HttpResource:
        await self.open()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    def statistics(self) -> ResourceStatistics:
        """Return the figures of this moment: what is used is a request that is under way."""
        return self._exchanges.statistics()


class Lent:
    """A client for the length of a block."""

    def __init__(self, resource: HttpResource) -> None:
        self._resource = resource
        self._client: httpx.AsyncClient | None = None

    async def __aenter__(self) -> httpx.AsyncClient:
        shared = self._resource._shared
        here = shared.here() or await shared.enter()
        self._client = self._resource._make(here, current.get())
        return self._client

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._client is not None:
            _transport_of(self._client).end()


class _Transport(httpx.AsyncBaseTransport):
    """The shared transport, as one client sees it."""

    def __init__(self, resource: HttpResource, inner: Any, lease: RequestLease | None) -> None:
        self._resource = resource
        self._inner = inner
        self._lease = lease
        self._ended = False
        self._open: set[_Stream] = set()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if self._ended:
            raise LeaseEndedError(
                f"this client of {self._resource.name!r} has ended with the request or the block "
                "that it was made for: ask for another one."
            )
        borrow: Borrow[Member] = Borrow(self._resource._shared, UNSET)
        member = await borrow.acquire()
        try:
            response: httpx.Response = await self._inner.handle_async_request(request)
        except BaseException:
            # Nothing was handed out: the transport has closed what it had begun.
            borrow.release(None)
            raise
        stream = _Stream(response.stream, borrow, self._open.discard)
        member.extra = stream.inner
        self._open.add(stream)
        return httpx.Response(
            response.status_code,
            headers=response.headers,
            stream=stream,
            extensions=response.extensions,
        )

    def end(self) -> None:
        """Refuse further requests, and close the responses that are still open."""
        self._ended = True
        for stream in tuple(self._open):
            stream.end()

    async def aclose(self) -> None:
        self.end()


class _Stream(httpx.AsyncByteStream):
    """The body of a response, which gives its place back when it is closed."""

    def __init__(
        self, inner: Any, borrow: Borrow[Member], closed: Callable[[_Stream], object]
    ) -> None:
        self.inner = inner
        self._borrow = borrow
        self._closed = closed

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for part in self.inner:
            yield part

    async def aclose(self) -> None:
        member = self._borrow.member
        if member is None:
            return
        try:
            await self.inner.aclose()
            member.extra = None
        finally:
            # Cancelled half-way, it is closed in a task of the pool.
            self.end()

    def end(self) -> None:
        self._closed(self)
        self._borrow.release(None)


class _Refusing(httpx.AsyncBaseTransport):
    pass


def _new_client(options: dict[str, Any], transport: Any) -> httpx.AsyncClient:
    # The environment's proxies would be transports of the client's own.
    return httpx.AsyncClient(transport=transport, trust_env=False, **options)


def _transport_of(client: httpx.AsyncClient) -> _Transport:
    transport = client._transport
    assert isinstance(transport, _Transport)
    return transport


def _end(clients: dict[RequestLease, httpx.AsyncClient], lease: RequestLease) -> None:
    client = clients.pop(lease, None)
    if client is not None:
        _transport_of(client).end()
