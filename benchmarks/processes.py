"""What processes use, as Linux tells under /proc: files, processor time, memory."""

from __future__ import annotations

import os
import resource
import threading
from pathlib import Path
from types import TracebackType

from typing_extensions import Self

FILES = 20_000
_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
_PROC = Path("/proc")


def allow_files() -> int:
    """Allow this process and those it starts as many open files as it may have; return how many."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = FILES if hard == resource.RLIM_INFINITY else min(FILES, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    return wanted


def family(pid: int) -> list[int]:
    """Return the ids of a process and of all that descend from it."""
    children: dict[int, list[int]] = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))):
            children.setdefault(int(fields[1]), []).append(int(entry.name))
    found = [pid]
    for parent in found:  # grows meanwhile
        found += children.get(parent, [])
    return found


def processor_time(pid: int) -> float:
    """Return the seconds of processor time that a process and its descendants have used."""
    times = [_stat(member) for member in family(pid)]
    return sum(int(fields[11]) + int(fields[12]) for fields in times if fields) / _TICKS


def resident(pid: int) -> int:
    """Return the bytes that a process and its descendants hold in memory.

    Pages that they share are counted in each, so only differences mean something. What the kernel
    keeps for them (sockets, the 16 kB of its own stack for each thread) is not in it.
    """
    return sum(map(_resident, family(pid)))


def _resident(pid: int) -> int:
    try:
        return int((_PROC / str(pid) / "statm").read_text().split()[1]) * _PAGE
    except (OSError, IndexError):  # it has ended meanwhile
        return 0


def _stat(pid: int) -> list[str]:
    """Return the fields behind the name, from the state on."""
    try:
        return (_PROC / str(pid) / "stat").read_text().rpartition(")")[2].split()
    except OSError:
        return []


class PeakMemory:
    """Looks from a thread at the memory of a process and its descendants, while it is entered.

    Args:
        pid: The process.
        pause: Seconds between two looks.

    Attributes:
        bytes: The most that was seen.
    """

    def __init__(self, pid: int, pause: float = 0.2) -> None:
        self.bytes = 0
        self._pid = pid
        self._pause = pause
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while True:
            self.bytes = max(self.bytes, resident(self._pid))
            if self._ended.wait(self._pause):
                return
