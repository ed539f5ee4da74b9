"""Open files and sockets of the process, and which of them belong to the server.

Linux lists them in `/proc/self/fd`, macOS and the BSDs in `/dev/fd`. Elsewhere none are seen.
"""

from __future__ import annotations

import _socket
import errno
import os
import stat
from collections.abc import Mapping
from typing import Any

import attrs

# `_socket`, not `socket`: hooks may have put classes of theirs there, which change what they wrap.

_FOLDERS = ("/proc/self/fd", "/dev/fd")


@attrs.frozen
class OpenFile:
    """What a file descriptor that a request has opened stands for.

    Attributes:
        number: The file descriptor.
        identity: Tells it from another file that gets the same number later.
        name: What it is, like `file /tmp/x` or `socket to 127.0.0.1:5432`.
        pooled: Whether it is of a kind that pools keep open: a connection.
    """

    number: int
    identity: tuple[int, int]
    name: str
    pooled: bool

    def is_open(self) -> bool:
        """Tell whether it is still open."""
        try:
            status = os.fstat(self.number)
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == self.identity


def open_numbers() -> frozenset[int]:
    """Return the file descriptors that are open; none where that cannot be known."""
    for folder in _FOLDERS:
        try:
            listing = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError:
            continue
        try:
            return frozenset(map(int, os.listdir(listing))) - {listing}
        except (OSError, ValueError):
            continue
        finally:
            os.close(listing)
    return frozenset()


class Files:
    """Tells what was opened, and leaves out what the server has accepted.

    Attributes:
        served: The ports, and the paths of Unix sockets, at which this process is served.
    """

    def __init__(self) -> None:
        self.served: set[Any] = set()
        self._looked = False

    def note_server(self, scope: Mapping[str, Any]) -> None:
        """Note at which address a request has come in."""
        server = scope.get("server")
        if server:
            self.served.add(server[0] if server[1] is None else server[1])

    def opened(self, before: frozenset[int], now: frozenset[int]) -> list[OpenFile]:
        """Return what is open now and was not before."""
        found = []
        for number in sorted(now - before):
            file = self._look(number)
            if file is not None:
                found.append(file)
        return found

    def _look(self, number: int) -> OpenFile | None:
        try:
            status = os.fstat(number)
        except OSError:
            return None  # it is closed already
        identity = status.st_dev, status.st_ino
        if stat.S_ISSOCK(status.st_mode):
            name = self._name_of_socket(number)
            if name is None:
                return None
            return OpenFile(number, identity, name, pooled=name.startswith("socket to "))
        if not (stat.S_ISREG(status.st_mode) or stat.S_ISDIR(status.st_mode)):
            return None  # pipes, and what event loops are made of
        target = _target(number)
        if target.endswith((".py", ".pyc")):
            return None  # it is being imported, or read for a traceback, by whichever thread
        return OpenFile(number, identity, f"file {target}", pooled=False)

    def _name_of_socket(self, number: int) -> str | None:
        """Return what to call a socket, `None` if it is the server's."""
        if _socket.getdefaulttimeout() is not None:
            return None  # to wrap it would make it non-blocking
        try:
            wrapped = _socket.socket(fileno=number)
        except OSError:
            return None
        try:
            return self._describe(wrapped)
        except OSError:
            return None
        finally:
            wrapped.detach()

    def _describe(self, wrapped: _socket.socket) -> str | None:
        own = wrapped.getsockname()
        if _accepts(wrapped):
            return f"socket listening at {_address(own)}"
        try:
            peer = wrapped.getpeername()
        except OSError as error:
            if error.errno != errno.ENOTCONN:
                raise
            # Closed by the other side, not connected yet, or UDP.
            return None if self._is_served(own) else f"socket at {_address(own)}"
        if self._is_served(own):
            return None
        if not peer and not own:
            return None  # a pair, by which event loops wake themselves
        return f"socket to {_address(peer)}"

    def _is_served(self, own: Any) -> bool:
        if not self._looked:
            self._looked = True
            self.served.update(_listening())
        return _port(own) in self.served


def _port(address: Any) -> Any:
    if isinstance(address, tuple) and len(address) >= 2:
        return address[1]
    return os.fsdecode(address) if isinstance(address, bytes) else address


def _listening() -> set[Any]:
    """Return at which ports and paths this process accepts connections."""
    found = set()
    for number in open_numbers():
        try:
            if not stat.S_ISSOCK(os.fstat(number).st_mode):
                continue
            wrapped = _socket.socket(fileno=number)
        except OSError:
            continue
        try:
            if _accepts(wrapped):
                found.add(_port(wrapped.getsockname()))
        except OSError:
            pass
        finally:
            wrapped.detach()
    return found


def _accepts(wrapped: _socket.socket) -> bool:
    try:
        return bool(wrapped.getsockopt(_socket.SOL_SOCKET, _socket.SO_ACCEPTCONN))
    except (OSError, AttributeError):
        return False


def _address(address: Any) -> str:
    if isinstance(address, tuple) and len(address) >= 2:
        host = f"[{address[0]}]" if ":" in str(address[0]) else address[0]
        return f"{host}:{address[1]}"
    if isinstance(address, bytes):
        address = os.fsdecode(address)
    return str(address) or "(unnamed)"


def _target(number: int) -> str:
    try:
        return os.readlink(f"/proc/self/fd/{number}")
    except OSError:
        return f"descriptor {number}"
