"""Sockets: everything that waits for the other side.

`socket.socket` inherits these methods from a class in C. Here they are set on the class in Python,
so they reach the sockets that there are already. A socket that does not block, as event loops
have them, gets the original at once.

A socket without a timeout is asked with `MSG_DONTWAIT`. One that has a timeout is in fact a
non-blocking file around which the C code waits by itself, whatever the flags say: it is looked at
first, and called when the call will not wait. Neither changes anything that another thread, which
uses the same socket, could notice.

Event loops come through here with every packet. They run on the stack that a thread has from its
start, the only one without a parent: the calls that they make look at that first, which is half
the price of `stepper()`.
"""

from __future__ import annotations

import _socket
import os
import socket
from collections.abc import Callable, Iterable, Iterator
from errno import EAGAIN, EBADF, EINPROGRESS
from functools import partial, wraps
from typing import Any, TypeVar

import anyio
from greenlet import getcurrent

from sandboxpool._exceptions import OptionError
from sandboxpool.run.cooperative import await_, stepper

from ._deadline import Deadline
from ._patch import Patch
from ._poller import READABLE, WRITABLE, ready_now
from ._readiness import closing, let_others_run

T = TypeVar("T")

_C = _socket.socket
_Socket = socket.socket
_timeout_of = _C.gettimeout
# As plain numbers: flags of an enumeration take microseconds to be put together.
_AT_ONCE = int(getattr(socket, "MSG_DONTWAIT", 0))
_ALL = int(getattr(socket, "MSG_WAITALL", 0))
_INTERNET = (int(socket.AF_INET), int(socket.AF_INET6))
_family_of: Callable[[_Socket], int] = _C.family.__get__

# How long a full queue of a listening Unix socket is left alone: no event tells that it has room.
_QUEUE_PAUSE = 0.01


def _call(sock: _Socket, mask: int, flags: int, call: Callable[[int], T]) -> T:
    """Make a call that may wait for an event of *mask*; it takes its flags as last argument."""
    timeout = _timeout_of(sock)
    if timeout == 0 or flags & _AT_ONCE:
        return call(flags)
    return _wait_and_call(sock, mask, flags, call, timeout, Deadline(timeout))


def _wait_and_call(
    sock: _Socket,
    mask: int,
    flags: int,
    call: Callable[[int], T],
    timeout: float | None,
    deadline: Deadline,
) -> T:
    let_others_run()
    while True:
        fd = sock.fileno()
        if timeout is None or fd < 0 or ready_now(fd, mask):
            try:
                return call(flags | _AT_ONCE)
            except BlockingIOError:
                pass
        deadline.wait(fd, mask)


def _until_ready(sock: _Socket, mask: int, deadline: Deadline) -> None:
    while (fd := sock.fileno()) >= 0 and not ready_now(fd, mask):
        deadline.wait(fd, mask)


# --- receiving ----------------------------------------------------------------------------------


@wraps(_C.recv)
def recv(self: _Socket, bufsize: int, flags: int = 0, /) -> bytes:
    if getcurrent().parent is None or stepper() is None:
        return _C.recv(self, bufsize, flags)
    data = _call(self, READABLE, flags, partial(_C.recv, self, bufsize))
    if flags & _ALL and _blocks_as_stream(self, flags):
        while data and len(data) < bufsize:
            more = _call(self, READABLE, flags, partial(_C.recv, self, bufsize - len(data)))
            if not more:
                break
            data += more
    return data


@wraps(_C.recv_into)
def recv_into(self: _Socket, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
    if getcurrent().parent is None or stepper() is None:
        return _C.recv_into(self, buffer, nbytes, flags)
    count = _call(self, READABLE, flags, partial(_C.recv_into, self, buffer, nbytes))
    if flags & _ALL and _blocks_as_stream(self, flags):
        with memoryview(buffer) as view, view.cast("B") as whole:
            nbytes = nbytes or len(whole)
            while 0 < count < nbytes:
                rest = partial(_C.recv_into, self, whole[count:nbytes], 0)
                more = _call(self, READABLE, flags, rest)
                if not more:
                    break
                count += more
    return count


@wraps(_C.recvfrom)
def recvfrom(self: _Socket, bufsize: int, flags: int = 0, /) -> tuple[bytes, Any]:
    if getcurrent().parent is None or stepper() is None:
        return _C.recvfrom(self, bufsize, flags)
    return _call(self, READABLE, flags, partial(_C.recvfrom, self, bufsize))


@wraps(_C.recvfrom_into)
def recvfrom_into(self: _Socket, buffer: Any, nbytes: int = 0, flags: int = 0) -> tuple[int, Any]:
    if stepper() is None:
        return _C.recvfrom_into(self, buffer, nbytes, flags)
    return _call(self, READABLE, flags, partial(_C.recvfrom_into, self, buffer, nbytes))


@wraps(_C.recvmsg)
def recvmsg(self: _Socket, bufsize: int, ancbufsize: int = 0, flags: int = 0, /) -> Any:
    if stepper() is None:
        return _C.recvmsg(self, bufsize, ancbufsize, flags)
    return _call(self, READABLE, flags, partial(_C.recvmsg, self, bufsize, ancbufsize))


@wraps(_C.recvmsg_into)
def recvmsg_into(
    self: _Socket, buffers: Iterable[Any], ancbufsize: int = 0, flags: int = 0, /
) -> Any:
    if stepper() is None:
        return _C.recvmsg_into(self, buffers, ancbufsize, flags)
    buffers = tuple(buffers)  # an iterator could be asked only once
    return _call(self, READABLE, flags, partial(_C.recvmsg_into, self, buffers, ancbufsize))


def _blocks_as_stream(sock: _Socket, flags: int) -> bool:
    """Tell whether the kernel would wait in the middle of a call, for the rest of the data."""
    return (
        _timeout_of(sock) is None
        and bool(sock.type & socket.SOCK_STREAM)
        and not flags & (_AT_ONCE | socket.MSG_PEEK)
    )


# --- sending ------------------------------------------------------------------------------------


@wraps(_C.send)
def send(self: _Socket, data: Any, flags: int = 0, /) -> int:
    if getcurrent().parent is None or stepper() is None:
        return _C.send(self, data, flags)
    sent = _call(self, WRITABLE, flags, partial(_C.send, self, data))
    with memoryview(data) as view:
        if sent < view.nbytes and _blocks_as_stream(self, flags):
            return _send_rest(self, view, flags, sent)
    return sent


@wraps(_C.sendall)
def sendall(self: _Socket, data: Any, flags: int = 0, /) -> None:
    if stepper() is None:
        return _C.sendall(self, data, flags)
    timeout = _timeout_of(self)
    if timeout == 0 or flags & _AT_ONCE:
        return _C.sendall(self, data, flags)
    deadline = Deadline(timeout)
    with memoryview(data) as view, view.cast("B") as whole:
        sent = 0
        while True:
            rest = partial(_C.send, self, whole[sent:])
            sent += _wait_and_call(self, WRITABLE, flags, rest, timeout, deadline)
            if sent >= len(whole):
                return None


@wraps(_C.sendto)
def sendto(self: _Socket, data: Any, *flags_and_address: Any) -> int:
    # Whether there are flags is told by the count alone, `None` would be a wrong address.
    if getcurrent().parent is None or stepper() is None or len(flags_and_address) not in (1, 2):
        return _C.sendto(self, data, *flags_and_address)
    *given, address = flags_and_address
    address = _resolved(self, address)
    flags: int = given[0] if given else 0
    return _call(self, WRITABLE, flags, lambda flags: _C.sendto(self, data, flags, address))


@wraps(_C.sendmsg)
def sendmsg(
    self: _Socket,
    buffers: Iterable[Any],
    ancdata: Iterable[Any] = (),
    flags: int = 0,
    address: Any = None,
    /,
) -> int:
    if getcurrent().parent is None or stepper() is None:
        return _C.sendmsg(self, buffers, ancdata, flags, address)
    buffers, ancdata = tuple(buffers), tuple(ancdata)
    if address is not None:
        address = _resolved(self, address)
    sent = _call(
        self,
        WRITABLE,
        flags,
        lambda flags: _C.sendmsg(self, buffers, ancdata, flags, address),
    )
    if flags & _AT_ONCE or not _blocks_as_stream(self, flags):
        return sent
    data = memoryview(b"".join(buffers))
    return sent if sent >= len(data) else _send_rest(self, data, flags, sent)


def _send_rest(sock: _Socket, view: memoryview, flags: int, sent: int) -> int:
    # The kernel does not return from a blocking call before all of a stream's data is on its way,
    # and many a caller has never looked at the count.
    with view.cast("B") as whole:
        while sent < len(whole):
            try:
                sent += _call(sock, WRITABLE, flags, partial(_C.send, sock, whole[sent:]))
            except OSError:
                break  # the kernel, too, reports this with the next call only
    return sent


@wraps(_Socket.sendfile)
def sendfile(self: _Socket, file: Any, offset: int = 0, count: int | None = None) -> int:
    if stepper() is None or _timeout_of(self) == 0:
        return _sendfile(self, file, offset, count)
    # `os.sendfile()` would block; this is what is done where there is none.
    sent: int = self._sendfile_use_send(file, offset, count)  # type: ignore[attr-defined]
    return sent


_sendfile = _Socket.sendfile

# --- connecting ---------------------------------------------------------------------------------


@wraps(_C.connect)
def connect(self: _Socket, address: Any, /) -> None:
    if stepper() is None or _timeout_of(self) == 0:
        return _C.connect(self, address)
    code = _connect(self, address)
    if code:
        raise OSError(code, os.strerror(code))
    return None


@wraps(_C.connect_ex)
def connect_ex(self: _Socket, address: Any, /) -> int:
    if stepper() is None or _timeout_of(self) == 0:
        return _C.connect_ex(self, address)
    try:
        return _connect(self, address)
    except TimeoutError:
        return EAGAIN


def _connect(sock: _Socket, address: Any) -> int:
    """Connect, and return the number of the error."""
    timeout = _timeout_of(sock)
    deadline = Deadline(timeout)
    address = _resolved(sock, address)
    while True:
        # There is no flag for this, but nobody else uses a socket that is not connected.
        _C.settimeout(sock, 0.0)
        try:
            code = _C.connect_ex(sock, address)
        finally:
            _C.settimeout(sock, timeout)
        if code != EAGAIN or timeout is not None:
            break
        await_(anyio.sleep(_QUEUE_PAUSE))
    if code != EINPROGRESS:
        return code
    _until_ready(sock, WRITABLE, deadline)
    return sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR) if sock.fileno() >= 0 else EBADF


def _resolved(sock: _Socket, address: Any) -> Any:
    """Return the address with a number for a host; the C code would look the name up itself."""
    family = _family_of(sock)
    if family not in _INTERNET or not isinstance(address, tuple):
        return address
    host = address[0] if address else None
    # These two have a meaning that only the C code knows.
    if not isinstance(host, str) or host in ("", "<broadcast>"):
        return address
    try:
        socket.inet_pton(family, host)
        return address
    except (OSError, ValueError):
        pass
    # By its name in the module: cooperative if the hook `dns` is installed.
    found = socket.getaddrinfo(host, None, family, sock.type)
    return (found[0][4][0], *address[1:])


@wraps(_Socket.accept)
def accept(self: _Socket) -> tuple[_Socket, Any]:
    if stepper() is not None:
        timeout = _timeout_of(self)
        if timeout != 0:
            _until_ready(self, READABLE, Deadline(timeout))
    return _accept(self)


_accept = _Socket.accept

# --- closing ------------------------------------------------------------------------------------


@wraps(_Socket._real_close)  # type: ignore[attr-defined]
def _real_close(self: _Socket, *args: Any) -> None:
    closing(_C.fileno(self))
    _close(self, *args)


@wraps(_Socket.detach)
def detach(self: _Socket) -> int:
    closing(_C.fileno(self))
    return _detach(self)


_close = _Socket._real_close  # type: ignore[attr-defined]
_detach = _Socket.detach


def patches() -> Iterator[Patch]:
    """Yield what is replaced.

    Raises:
        OptionError: The platform lacks what this takes.
    """
    if not _AT_ONCE:
        raise OptionError(
            "the hook 'socket' needs MSG_DONTWAIT, which this platform has not (Windows has not): "
            "name the hooks without 'socket', or use run_in='thread'."
        )
    for method in (
        recv,
        recv_into,
        recvfrom,
        recvfrom_into,
        recvmsg,
        recvmsg_into,
        send,
        sendall,
        sendto,
        sendmsg,
        sendfile,
        connect,
        connect_ex,
        accept,
        _real_close,
        detach,
    ):
        yield Patch(_Socket, method.__name__, method)
