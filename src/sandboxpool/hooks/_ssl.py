"""TLS sockets: handshakes, reading, writing, and the farewell.

OpenSSL reads and writes the file descriptor by itself, in C. So each call is made while the
socket does not block, and made again when the socket is ready for what OpenSSL wanted. The
timeout of the socket is back in place whenever another request runs.

Everything else that `ssl.SSLSocket` does leads to one of these, or to what `_socket.py` hooks.
"""

from __future__ import annotations

import _socket
import ssl
from collections.abc import Callable, Iterator
from functools import partial, wraps
from typing import Any, TypeVar

from sandboxpool.run.cooperative import stepper

from ._deadline import Deadline
from ._patch import Patch
from ._poller import READABLE, WRITABLE
from ._readiness import let_others_run

T = TypeVar("T")

_TLS = ssl.SSLSocket
_set_timeout = _socket.socket.settimeout
_timeout_of = _socket.socket.gettimeout


def _call(sock: ssl.SSLSocket, timeout: float | None, doing: str, call: Callable[[], T]) -> T:
    """Make a call that says what it waits for, instead of waiting, if the socket does not block."""
    deadline = Deadline(timeout, f"The {doing} operation timed out")
    before = _timeout_of(sock)
    let_others_run()
    while sock.fileno() >= 0:
        # The C code knows no other way than the timeout of the socket. Other threads could see
        # this, but no two threads may use one TLS connection at the same time.
        _set_timeout(sock, 0.0)
        try:
            return call()
        except ssl.SSLWantReadError:
            mask = READABLE
        except ssl.SSLWantWriteError:
            mask = WRITABLE
        finally:
            if sock.fileno() >= 0:  # not closed by what failed
                _set_timeout(sock, before)
        deadline.wait(sock.fileno(), mask)
    return call()  # which fails, the socket is closed


@wraps(_TLS.read)
def read(self: ssl.SSLSocket, len: int = 1024, buffer: Any = None) -> Any:
    if stepper() is None or (timeout := _timeout_of(self)) == 0:
        return _read(self, len, buffer)
    return _call(self, timeout, "read", partial(_read, self, len, buffer))


@wraps(_TLS.write)
def write(self: ssl.SSLSocket, data: Any) -> int:
    if stepper() is None or (timeout := _timeout_of(self)) == 0:
        return _write(self, data)
    return _call(self, timeout, "write", partial(_write, self, data))


@wraps(_TLS.send)
def send(self: ssl.SSLSocket, data: Any, flags: int = 0) -> int:
    if stepper() is None or (timeout := _timeout_of(self)) == 0 or not _is_tls(self):
        return _send(self, data, flags)
    return _call(self, timeout, "write", partial(_send, self, data, flags))


@wraps(_TLS.do_handshake)
def do_handshake(self: ssl.SSLSocket, block: bool = False) -> None:
    if stepper() is None:
        return _do_handshake(self, block)
    timeout = _timeout_of(self)
    if timeout == 0:
        if not block:
            return _do_handshake(self)
        timeout = None
    return _call(self, timeout, "handshake", partial(_do_handshake, self))


@wraps(_TLS.unwrap)
def unwrap(self: ssl.SSLSocket) -> Any:
    if stepper() is None or (timeout := _timeout_of(self)) == 0:
        return _unwrap(self)
    return _call(self, timeout, "read", partial(_unwrap, self))


_read, _write, _send = _TLS.read, _TLS.write, _TLS.send
_do_handshake, _unwrap = _TLS.do_handshake, _TLS.unwrap


def _is_tls(sock: Any) -> bool:
    # Before it is connected, and after `unwrap()`, it is a plain socket, which `_socket.py` hooks.
    return sock._sslobj is not None


def patches() -> Iterator[Patch]:
    """Yield what is replaced."""
    for method in (read, write, send, do_handshake, unwrap):
        yield Patch(_TLS, method.__name__, method)
