"""A resource of the app: pooled connections, borrowed late and given back early."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any, Generic, TypedDict, TypeVar, cast, overload

from typing_extensions import Unpack

from sandboxpool._context import RequestLease, current, current_lease
from sandboxpool._exceptions import NoLeaseError, OptionError
from sandboxpool._lease import UNSET, Unset
from sandboxpool._options import check_seconds, check_sizes

from ._binding import Binding
from ._borrow import Borrow
from ._figures import ResourceStatistics
from ._member import Driver
from ._shared import Shared

if TYPE_CHECKING:
    from types import TracebackType

    from typing_extensions import Self

T = TypeVar("T")


class PoolOptions(TypedDict, total=False):
    """How many connections, and how long things may take; the same for every resource.

    Attributes:
        name: What errors, logs and figures call it.
        min_size: Connections opened ahead of need in each event loop that uses the resource.
        max_size: Connections at most, all event loops of the process together.
        acquire_timeout: Seconds a caller waits at most, `None` for no limit.
        max_waiting: Callers that may wait; one more gets `PoolFullError`. `None`: no limit.
        max_uses: Uses after which a connection is closed, `None` for no limit.
        max_lifetime: Seconds after which it is closed, a little earlier at random.
        max_idle: Seconds without use after which it is closed, unless `min_size` keeps it.
        check_after: Seconds without use after which the server is asked before it is lent.
        idle_warning: Seconds for which a request may hold a connection and do something else
            before it is logged, `None` for ever.
        connect_timeout: Seconds to open a connection.
        reset_timeout: Seconds to reset one; after it the connection is closed.
    """

    name: str | None
    min_size: int
    max_size: int
    acquire_timeout: float | None
    max_waiting: int | None
    max_uses: int | None
    max_lifetime: float | None
    max_idle: float | None
    check_after: float | None
    idle_warning: float | None
    connect_timeout: float | None
    reset_timeout: float | None


_DEFAULTS: PoolOptions = {
    "name": None,
    "min_size": 0,
    "max_size": 10,
    "acquire_timeout": 30.0,
    "max_waiting": None,
    "max_uses": None,
    "max_lifetime": 3600.0,
    "max_idle": 300.0,
    "check_after": 30.0,
    "idle_warning": 1.0,
    "connect_timeout": 10.0,
    "reset_timeout": 5.0,
}


class Resource(Generic[T]):
    """Something that requests use one at a time, pooled: most often connections to a server.

    Declare it once, in a module of the app. It is opened by its first use, shared by all
    sandboxes of the worker, and closed with the app. In each event loop there is a pool; all
    together have `max_size` connections at most.

    The same declaration, executed again, is the same resource: by modules that each sandbox has
    for itself, or by a function that makes the app of each sandbox. It is told by file and line,
    and by the arguments.

    Args:
        open: Returns a new connection; sync or async, as the others.
        close: Ends one.
        check: Tells whether one still works, by returning `False` or raising if not.
        reset: Makes a used one as good as new. If it raises, the connection is closed.
        options: See `PoolOptions`.

    What runs on a connection of yours is not seen from here. So one whose use ends by a
    cancellation, or that a request still has when it ends by one, is closed. A cancellation that
    is caught *inside* of a use, by a timeout for example, is not seen either: call
    `discard(connection)` then. (Ready-made resources see it for themselves.)

    Raises:
        OptionError: An option cannot work.
    """

    _shared: Shared

    # The awaitable one first: a coroutine would also do for the `T` of the other.
    @overload
    def __init__(
        self,
        open: Callable[[], Awaitable[T]],
        *,
        close: Callable[[T], object] | None = None,
        check: Callable[[T], object] | None = None,
        reset: Callable[[T], object] | None = None,
        **options: Unpack[PoolOptions],
    ) -> None: ...

    @overload
    def __init__(
        self,
        open: Callable[[], T],
        *,
        close: Callable[[T], object] | None = None,
        check: Callable[[T], object] | None = None,
        reset: Callable[[T], object] | None = None,
        **options: Unpack[PoolOptions],
    ) -> None: ...

    def __init__(
        self,
        open: Callable[[], Any],
        *,
        close: Callable[[T], object] | None = None,
        check: Callable[[T], object] | None = None,
        reset: Callable[[T], object] | None = None,
        **options: Unpack[PoolOptions],
    ) -> None:
        functions: dict[str, object] = {
            "open": open,
            "close": close,
            "check": check,
            "reset": reset,
        }
        for what, function in functions.items():
            if not callable(function) and (function is not None or what == "open"):
                raise OptionError(f"{what}={function!r}: give a function.")
        from ._functions import FunctionDriver

        driver: Driver[T] = FunctionDriver(open, close, check, reset)
        self._declare(driver, options, sys._getframe(1))

    @classmethod
    def of(cls, driver: Driver[T], options: PoolOptions, caller: FrameType) -> Self:
        """Return a resource over a driver, declared in the line that *caller* is at."""
        resource = cls.__new__(cls)
        resource._declare(driver, options, caller)
        return resource

    def _declare(self, driver: Driver[T], options: PoolOptions, caller: FrameType) -> None:
        unknown = options.keys() - _DEFAULTS.keys()
        if unknown:
            raise OptionError(
                f"a resource has no option {sorted(unknown)[0]!r}: it has {', '.join(_DEFAULTS)}."
            )
        given: PoolOptions = {**_DEFAULTS, **options}
        name: object = given["name"]
        if name is None:
            name = driver.system
        if not isinstance(name, str) or not name:
            raise OptionError(f"name={name!r}: give a text that errors and logs can call it.")
        check_sizes(given["min_size"], given["max_size"])
        check_seconds("idle_warning", given["idle_warning"], zero=False)
        check_seconds("connect_timeout", given["connect_timeout"], zero=False)
        pool = {
            "max_size": given["max_size"],
            "acquire_timeout": given["acquire_timeout"],
            "max_waiting": given["max_waiting"],
            "max_uses": given["max_uses"],
            "max_lifetime": given["max_lifetime"],
            "max_idle": given["max_idle"],
            "check_after": given["check_after"],
            "create_timeout": given["connect_timeout"],
            "reset_timeout": given["reset_timeout"],
            # A pool opens a few at a time, so that a burst does not storm the server.
            "max_creating": 4,
            # A server that comes back is noticed within a second.
            "max_create_backoff": 1.0,
        }

        def make() -> Shared:
            return Shared(driver, name, given["min_size"], given["idle_warning"], pool)

        place = (caller.f_code.co_filename, caller.f_lineno)
        key = (place, type(driver), driver.key(), tuple(sorted(given.items())))
        self._shared = Shared.declared(key, make)

    def __repr__(self) -> str:
        shared = self._shared
        figures = shared.statistics()
        return (
            f"<Resource {shared.name!r} ({shared.driver.system}) max_size={shared.max_size} "
            f"idle={figures.idle} used={figures.used} pending={figures.pending_requests}>"
        )

    # A resource in the state of an app is shared by its copies, as sockets are.
    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, memo: object) -> Self:
        return self

    @property
    def name(self) -> str:
        """What errors, logs and figures call it."""
        return self._shared.name

    @property
    def max_size(self) -> int:
        """Connections at most, in this process."""
        return self._shared.max_size

    # --- use ----------------------------------------------------------------------------------

    def connection(self, timeout: float | Unset | None = UNSET) -> Borrow[T]:
        """Return a context manager that has a connection while it is entered.

        Entering takes an idle one at once, or waits in order of arrival. Cancelled while it
        waits, it leaves the queue, and the cancellation is raised. Leaving never waits: what is
        still to be done (a rollback, a reset) happens in the background. Inside of a request it
        is left at the end of the request at the latest.

        Args:
            timeout: Seconds to wait at most, `None` for no limit; by default `acquire_timeout`.

        Raises (when entered):
            DeadlockError: The wait could never end, because all who have a connection wait for
                this task. A wait with a *timeout*, or inside of a cancel scope with a deadline, is
                never taken for that.
            PoolTimeoutError: Nothing became free in time.
            PoolFullError: `max_waiting` callers wait already.
            PoolClosedError: The resource is being closed.
            FactoryError: A connection could not be opened; the driver's error is the cause.
            LeaseEndedError: The request that started this code is over.
        """
        return Borrow(self._shared, timeout)

    async def current(self, timeout: float | Unset | None = UNSET) -> T:
        """Return the request's own connection: the same for each call and each child task.

        The first call acquires it, and it is given back when the request ends, whatever its
        outcome, or by `release()`. If the server has closed it meanwhile, the next call acquires
        another one.

        Args:
            timeout: As for `connection()`.

        Raises:
            NoLeaseError: The code runs outside of a request.
            LeaseEndedError: The request is over.
            Exception: As `connection()`.
        """
        shared = self._shared
        lease = current.get()
        if lease is None:
            raise NoLeaseError(
                f"{self.name!r} has no current connection here: this code runs outside of a "
                "request to a wrapped app. Use `async with ....connection()`."
            )
        if lease.ended:
            lease.check_open()
        here = shared.here() or await shared.enter()
        binding = here.bindings.get(lease) or Binding.of(here, lease)
        own = binding.own
        if own is None or here.driver.lost(own.member):  # type: ignore[arg-type] # it has one
            own = await binding.acquire_own(Borrow(shared, timeout, own=True))
        assert own.member is not None
        return cast("T", here.driver.lend(own.member))

    def release(self) -> bool:
        """Give the request's own connection back before the request ends.

        The next `current()` acquires one again, perhaps another.

        Returns:
            Whether there is none any more. It is kept as long as a transaction is open or
            something runs on it.

        Raises:
            NoLeaseError: The code runs outside of a request.
        """
        own = self._own(current_lease())
        if own is None:
            return True
        assert own.member is not None
        driver = self._shared.driver
        if driver.busy(own.member) or driver.pinned(own.member):
            return False
        own.release(None)
        return True

    def discard(self, connection: T, reason: str = "unhealthy") -> None:
        """Have a borrowed connection closed instead of reset when its use ends.

        Args:
            connection: What `connection()` or `current()` gave.
            reason: What the statistics count it under.

        Raises:
            LookupError: It is not borrowed in this event loop.
        """
        here = self._shared.here()
        for borrow in () if here is None else here.borrows:
            member = borrow.member
            if member is not None and self._shared.driver.lend(member) is connection:
                assert borrow._slot is not None
                borrow._slot.retire = reason
                return
        raise LookupError(f"{connection!r} is not borrowed from {self.name!r} here.")

    def _own(self, lease: RequestLease) -> Borrow[T] | None:
        here = self._shared.here()
        binding = None if here is None else here.bindings.get(lease)
        return None if binding is None else binding.own

    # --- life ---------------------------------------------------------------------------------

    async def open(self) -> None:
        """Open `min_size` connections in the running event loop, and show that one can be had.

        There is no need to: the first use does the same. It makes a server that cannot be reached
        a failure of the start instead of the first request.

        Raises:
            FactoryError: A connection could not be opened.
        """
        borrow: Borrow[T] = Borrow(self._shared, UNSET)
        await borrow.acquire()
        borrow.release(None, used=False)

    async def open_for(self, owner: Any) -> None:
        """Open it as `open()` does, for an app that closes it when it ends.

        Where the server says how many connections it takes, see `budget()`, too many are warned of.
        """
        from ._budget import budget

        await self.open()
        here = self._shared.here()
        assert here is not None
        self._shared.own(here, owner)
        await budget(self)

    async def aclose(self, timeout: float | None = 0) -> None:
        """Close the connections of the running event loop; the next use opens it again.

        Args:
            timeout: Seconds to wait until what is in use is given back; then it is cut off.
        """
        await self._shared.aclose(timeout)

    async def __aenter__(self) -> Self:
        await self.open()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.aclose()

    # --- looking ------------------------------------------------------------------------------

    def statistics(self) -> ResourceStatistics:
        """Return the figures of this moment, all event loops of the process together."""
        return self._shared.statistics()


def code_of(function: Callable[..., Any] | None) -> object:
    """Return what makes two functions the same: one object, or made anew by the same lines.

    What a function has bound (an object, variables, defaults) must be the same objects.
    """
    code = getattr(function, "__code__", None)
    if not isinstance(code, CodeType):
        return None if function is None else id(function)
    bound = (
        getattr(function, "__self__", None),
        # The cells, not what is in them now: that may change, in one and not in the other.
        *(getattr(function, "__closure__", None) or ()),
        *(getattr(function, "__defaults__", None) or ()),
    )
    return code.co_filename, code.co_firstlineno, code.co_name, tuple(map(id, bound))
