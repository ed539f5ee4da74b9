"""Looking up names and addresses, in worker threads: the C library has no other way.

What needs no looking up is answered at once. `socket.getfqdn()`, `socket.create_connection()` and
the like call these functions by their names in the module.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from functools import partial, wraps
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
import anyio.to_thread

from sandboxpool.run.cooperative import await_, stepper

from ._patch import Patch

T = TypeVar("T")

_AT_ONCE = 40
"""How many names an event loop looks up at the same time."""

# As plain numbers: flags of an enumeration take microseconds to be put together.
_NUMERIC_HOST = int(socket.AI_NUMERICHOST)
_NAME_AS_NUMBER = int(socket.NI_NUMERICHOST)

_limiter: anyio.lowlevel.RunVar[anyio.CapacityLimiter] = anyio.lowlevel.RunVar(
    "sandboxpool_name_lookups"
)


async def _in_thread(function: Callable[[], T]) -> T:
    limiter = _limiter.get(None)
    if limiter is None:
        limiter = anyio.CapacityLimiter(_AT_ONCE)
        _limiter.set(limiter)
    # A resolver that hangs does so for half a minute. Who is cancelled need not wait for it.
    return await anyio.to_thread.run_sync(function, abandon_on_cancel=True, limiter=limiter)


@wraps(socket.getaddrinfo)
def getaddrinfo(
    host: Any, port: Any, family: int = 0, type: int = 0, proto: int = 0, flags: int = 0
) -> Any:
    if stepper() is None or flags & _NUMERIC_HOST:
        return _getaddrinfo(host, port, family, type, proto, flags)
    try:
        return _getaddrinfo(host, port, family, type, proto, flags | _NUMERIC_HOST)
    except socket.gaierror:
        pass
    return await_(_in_thread(partial(_getaddrinfo, host, port, family, type, proto, flags)))


@wraps(socket.gethostbyname)
def gethostbyname(hostname: str, /) -> str:
    if stepper() is None or _is_number(hostname):
        return _gethostbyname(hostname)
    return await_(_in_thread(partial(_gethostbyname, hostname)))


@wraps(socket.gethostbyname_ex)
def gethostbyname_ex(hostname: str, /) -> tuple[str, list[str], list[str]]:
    if stepper() is None or _is_number(hostname):
        return _gethostbyname_ex(hostname)
    return await_(_in_thread(partial(_gethostbyname_ex, hostname)))


@wraps(socket.gethostbyaddr)
def gethostbyaddr(ip_address: str, /) -> tuple[str, list[str], list[str]]:
    if stepper() is None:
        return _gethostbyaddr(ip_address)
    return await_(_in_thread(partial(_gethostbyaddr, ip_address)))


@wraps(socket.getnameinfo)
def getnameinfo(sockaddr: Any, flags: int, /) -> tuple[str, str]:
    if stepper() is None or flags & _NAME_AS_NUMBER:
        return _getnameinfo(sockaddr, flags)
    return await_(_in_thread(partial(_getnameinfo, sockaddr, flags)))


def _is_number(host: Any) -> bool:
    try:
        _getaddrinfo(host, None, socket.AF_INET, flags=_NUMERIC_HOST)
    except socket.gaierror:
        return False
    except (TypeError, ValueError):
        pass  # which the original says better
    return True


_getaddrinfo, _gethostbyname = socket.getaddrinfo, socket.gethostbyname
_gethostbyname_ex, _gethostbyaddr = socket.gethostbyname_ex, socket.gethostbyaddr
_getnameinfo = socket.getnameinfo


def patches() -> Iterator[Patch]:
    """Yield what is replaced."""
    for function in (getaddrinfo, gethostbyname, gethostbyname_ex, gethostbyaddr, getnameinfo):
        yield Patch(socket, function.__name__, function)
