"""What the whole process has in common: each change is seen, and nothing else is."""

from __future__ import annotations

import decimal
import gc
import io
import locale
import logging
import os
import random
import signal
import socket
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from sandboxpool.leaks._files import Files, open_numbers
from sandboxpool.leaks._process import ProcessState
from sandboxpool.leaks._strays import live_threads, name_of_thread, stray_threads

needs_proc = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="only Linux tells the umask and what is open"
)


@contextmanager
def everything_put_back() -> Iterator[None]:
    """Put back what these tests change."""
    environ, folder, path = dict(os.environ), os.getcwd(), list(sys.path)
    umask = os.umask(0o22)
    os.umask(umask)
    filters, timeout = list(warnings.filters), socket.getdefaulttimeout()
    handler, threshold = signal.getsignal(signal.SIGTERM), gc.get_threshold()
    state, place = random.getstate(), locale.setlocale(locale.LC_ALL)
    limit, interval = sys.getrecursionlimit(), sys.getswitchinterval()
    logger = logging.getLogger("tests.shop")
    streams, hook, show = (sys.stdout, sys.stderr), sys.excepthook, warnings.showwarning
    try:
        yield
    finally:
        (sys.stdout, sys.stderr), sys.excepthook, warnings.showwarning = streams, hook, show
        os.environ.clear()
        os.environ.update(environ)
        time.tzset()
        os.chdir(folder)
        os.umask(umask)
        sys.path[:] = path
        warnings.filters[:] = filters  # type: ignore[index]
        socket.setdefaulttimeout(timeout)
        signal.signal(signal.SIGTERM, handler)
        gc.set_threshold(*threshold)
        gc.enable()
        gc.set_debug(0)
        random.setstate(state)
        locale.setlocale(locale.LC_ALL, place)
        sys.setrecursionlimit(limit)
        sys.setswitchinterval(interval)
        logging.disable(logging.NOTSET)
        logger.setLevel(logging.NOTSET)
        logger.disabled, logger.propagate = False, True
        logger.handlers.clear()
        logger.filters.clear()
        decimal.DefaultContext.prec = 28
        sys.modules.pop("tests_shop_module", None)


def set_time_zone() -> None:
    os.environ["TZ"] = "Asia/Tokyo" if time.tzname != ("JST", "JST") else "UTC"
    time.tzset()


def set_prec() -> None:
    decimal.DefaultContext.prec = 5


def patch_module() -> None:
    sys.modules["tests_shop_module"] = ModuleType("tests_shop_module")


CHANGES: list[tuple[Callable[[], object], str]] = [
    (lambda: os.environ.__setitem__("SHOP_X", "1"), "os.environ['SHOP_X']"),
    (lambda: os.environ.pop("PATH"), "os.environ['PATH']"),
    (lambda: os.chdir("/"), "os.getcwd()"),
    pytest.param(lambda: os.umask(0o77), "os.umask()", marks=needs_proc),  # type: ignore[list-item]
    (lambda: locale.setlocale(locale.LC_ALL, "C.UTF-8"), "locale.setlocale(locale.LC_ALL)"),
    (set_time_zone, "time.tzname"),
    (lambda: warnings.simplefilter("ignore"), "warnings.filters"),
    (lambda: logging.getLogger("tests.shop").setLevel(10), "logging.getLogger('tests.shop').level"),
    (
        lambda: logging.getLogger("tests.shop").addHandler(logging.StreamHandler()),
        "logging.getLogger('tests.shop').handlers",
    ),
    (
        lambda: logging.getLogger("tests.shop").addFilter(lambda record: True),
        "logging.getLogger('tests.shop').filters",
    ),
    (
        lambda: setattr(logging.getLogger("tests.shop"), "propagate", False),
        "logging.getLogger('tests.shop').propagate",
    ),
    (lambda: logging.disable(logging.CRITICAL), "logging.disable()"),
    (
        lambda: signal.signal(signal.SIGTERM, lambda number, frame: None),
        "signal.getsignal(SIGTERM)",
    ),
    (lambda: random.seed(42), "random.seed()"),
    (lambda: sys.path.insert(0, "/shop"), "sys.path"),
    (patch_module, "sys.modules['tests_shop_module']"),
    (set_prec, "decimal.DefaultContext.prec"),
    (lambda: socket.setdefaulttimeout(3), "socket.getdefaulttimeout()"),
    (gc.disable, "gc.isenabled()"),
    (lambda: gc.set_threshold(1234), "gc.get_threshold()"),
    (lambda: gc.set_debug(gc.DEBUG_STATS), "gc.get_debug()"),
    (lambda: setattr(sys, "stdout", io.StringIO()), "sys.stdout"),
    (lambda: setattr(sys, "excepthook", print), "sys.excepthook"),
    (lambda: setattr(warnings, "showwarning", print), "warnings.showwarning"),
    (lambda: sys.setrecursionlimit(2345), "sys.getrecursionlimit()"),
    (lambda: sys.setswitchinterval(0.25), "sys.getswitchinterval()"),
]


@pytest.mark.parametrize(("change", "path"), CHANGES)
def test_changes(change: Callable[[], object], path: str) -> None:
    """Each change of process-wide state is found, under the name that says how to look at it."""
    logging.getLogger("tests.shop")
    sys.modules["tests_shop_module"] = ModuleType("tests_shop_module")
    with everything_put_back():
        before = ProcessState.now()
        assert before.compare(ProcessState.now()) == []
        change()
        paths = [difference.path for difference in before.compare(ProcessState.now())]
    assert path in paths
    if path != "time.tzname":
        assert paths == [path]


def test_looking_changes_nothing() -> None:
    """To look a thousand times leaves everything as it was."""
    before = ProcessState.now()
    numbers = open_numbers()
    for _ in range(1000):
        ProcessState.now()
        open_numbers()
    assert before.compare(ProcessState.now()) == []
    assert open_numbers() == numbers


def test_lazy_imports_are_none() -> None:
    """A module that was imported, and a logger that it has set up, are no leaks."""
    before = ProcessState.now()
    sys.modules["tests_lazy"] = ModuleType("tests_lazy")
    logging.getLogger("tests.lazy").addHandler(logging.NullHandler())
    logging.getLogger("tests.lazy").setLevel(logging.INFO)
    try:
        assert before.compare(ProcessState.now()) == []
    finally:
        del sys.modules["tests_lazy"]


@pytest.mark.parametrize("count", [1, 311, 624, 625, 100_000])
def test_random_numbers_are_there_to_be_drawn(count: int) -> None:
    """Only a new seed is reported, and not that numbers were drawn from the global generator."""
    with everything_put_back():
        before = ProcessState.now()
        for _ in range(count):
            random.getrandbits(32)
        random.gauss(0, 1)
        assert before.compare(ProcessState.now()) == []
        random.seed(1)
        assert [found.path for found in before.compare(ProcessState.now())] == ["random.seed()"]


def test_numpy() -> None:
    """The same goes for numpy, once it is loaded."""
    numpy: Any = pytest.importorskip("numpy.random")
    before = ProcessState.now()
    numpy.random(5000)
    numpy.standard_normal(11)
    assert before.compare(ProcessState.now()) == []
    numpy.seed(3)
    assert [found.path for found in before.compare(ProcessState.now())] == ["numpy.random.seed()"]


def test_folder_that_is_gone(tmp_path: Path) -> None:
    """A working directory that no longer exists is no reason to fail."""
    folder = tmp_path / "gone"
    folder.mkdir()
    with everything_put_back():
        before = ProcessState.now()
        os.chdir(folder)
        folder.rmdir()
        assert [found.path for found in before.compare(ProcessState.now())] == ["os.getcwd()"]


# --- open files -----------------------------------------------------------------------------


def opened_by(files: Files, action: Callable[[], Any]) -> tuple[list[str], Any]:
    """Return the names of what *action* has opened."""
    before = open_numbers()
    kept = action()
    found = files.opened(before, open_numbers())
    assert all(file.is_open() for file in found)
    return [file.name for file in found], kept


@needs_proc
def test_files(tmp_path: Path) -> None:
    """A file that is still open is named; pipes and what loops are made of are not."""
    path = tmp_path / "shop.txt"
    names, kept = opened_by(Files(), lambda: (path.open("w"), os.pipe(), socket.socketpair()))
    file, pipe, pair = kept
    assert names == [f"file {path}"]
    file.close()
    for number in pipe:
        os.close(number)
    for end in pair:
        end.close()


@needs_proc
def test_another_file_with_the_same_number(tmp_path: Path) -> None:
    """A descriptor that was closed and given to another file is not taken for the first one."""
    before = open_numbers()
    first = (tmp_path / "a").open("w")
    (found,) = Files().opened(before, open_numbers())
    first.close()
    assert not found.is_open()
    with (tmp_path / "b").open("w"):
        assert not found.is_open()


@needs_proc
def test_sockets() -> None:
    """A listening socket and a connection are named by address, the server's own never are."""
    files = Files()
    names, listener = opened_by(files, lambda: socket.create_server(("127.0.0.1", 0)))
    host, port = listener.getsockname()
    assert names == [f"socket listening at {host}:{port}"]
    with listener:
        names, client = opened_by(files, lambda: socket.create_connection((host, port)))
        assert names == [f"socket to {host}:{port}"]
        # Seen from the other side it is a connection of the server: accepted where it listens.
        names, accepted = opened_by(files, lambda: listener.accept()[0])
        assert names == []
        accepted.close()
        client.close()


@needs_proc
def test_server_of_another_process() -> None:
    """What came in at the address that the server names is its own, if nothing listens here."""
    listener = socket.create_server(("127.0.0.1", 0))
    client = socket.create_connection(listener.getsockname())
    before = open_numbers()
    accepted = listener.accept()[0]
    host, port = listener.getsockname()
    listener.close()
    files = Files()
    files.note_server({"server": (host, port)})
    assert files.opened(before, open_numbers()) == []
    control = Files()
    assert len(control.opened(before, open_numbers())) == 1
    accepted.close()
    client.close()


@needs_proc
def test_unix_sockets(tmp_path: Path) -> None:
    """Sockets in the file system are named by their path."""
    path = str(tmp_path / "s")
    files = Files()
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        client = socket.socket(socket.AF_UNIX)
        before = open_numbers() - {client.fileno()}
        client.connect(path)
        assert [file.name for file in files.opened(before, open_numbers())] == [f"socket to {path}"]
        before = open_numbers()
        accepted = listener.accept()[0]
        assert files.opened(before, open_numbers()) == []
        accepted.close()
        client.close()


@needs_proc
def test_looking_at_a_socket_leaves_it_alone() -> None:
    """With a default timeout a socket cannot be looked at without changing it, so it is not."""
    before = open_numbers()
    with socket.create_server(("127.0.0.1", 0)) as listener, everything_put_back():
        assert os.get_blocking(listener.fileno())
        assert len(Files().opened(before, open_numbers())) == 1
        assert os.get_blocking(listener.fileno())
        socket.setdefaulttimeout(3)
        assert Files().opened(before, open_numbers()) == []
        assert os.get_blocking(listener.fileno())


# --- threads --------------------------------------------------------------------------------


def test_threads() -> None:
    """A thread that runs on is named by its function; workers of an executor are not."""
    from concurrent.futures import ThreadPoolExecutor

    stop = threading.Event()

    def work() -> None:
        stop.wait()

    before = live_threads()
    thread = threading.Thread(target=work)
    thread.start()
    with ThreadPoolExecutor() as pool:
        pool.submit(stop.wait, 0).result()
        found = stray_threads(before, live_threads())
        assert found == [thread]
        assert name_of_thread(thread) in (
            "tests.leaks.test_process.test_threads.<locals>.work",
            "tests.leaks.test_process.work",  # Python 3.10 has only the name
        )
    stop.set()
    thread.join()
    assert stray_threads(before, live_threads()) == []
