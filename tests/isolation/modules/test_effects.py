"""What modules do to the process when they are imported: handlers, exits, signals, paths."""

from __future__ import annotations

import atexit
import gc
import logging
import os
import signal
import subprocess
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sandboxpool import ModuleIsolationError, wrap
from sandboxpool.isolation.module import ModuleFactory
from tests.isolation.driver import Driver

from . import registry
from .probe import ask

Package = Callable[[str], Path]

HEAD = "from tests.isolation.modules.probe import probing\n"


def shop(body: str, *more: str) -> str:
    """Return a package whose main module has that body before its app."""
    return f"### shop/__init__.py\n### shop/main.py\n{HEAD}{body}\n" + "".join(more)


@pytest.fixture(autouse=True)
def as_before(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Hold each test to leave the process as it was."""
    monkeypatch.setattr(registry, "made", [])
    names = ("root", "shop", "shop.audit")
    loggers = [logging.getLogger(None if name == "root" else name) for name in names]
    handlers = [list(logger.handlers) for logger in loggers]
    usual = signal.getsignal(signal.SIGUSR1)
    yield
    assert [list(logger.handlers) for logger in loggers] == handlers
    assert signal.getsignal(signal.SIGUSR1) is usual
    assert atexit.register.__module__ == "atexit"


# --- logging ------------------------------------------------------------------------------------

LOGGING = shop(
    """
import logging, logging.handlers
logger = logging.getLogger("shop")
lines = []
class Keep(logging.Handler):
    def emit(self, record):
        lines.append(record.getMessage())
first, second = Keep(), Keep()
logger.addHandler(first)
logger.addHandler(second)
def log(text):
    logger.warning(text)
    return lines
app = probing(log)
"""
)


async def test_handlers_are_not_doubled(package: Package) -> None:
    """Of the handlers that each copy adds, those of the oldest sandbox are attached."""
    package(LOGGING)
    factory = ModuleFactory("shop.main:app")
    logger = logging.getLogger("shop")
    async with Driver(factory, 3) as driver:
        first, second, third = (sandbox.modules["shop.main"] for sandbox in driver.sandboxes)
        assert logger.handlers == [first.first, first.second]
        assert await ask(driver.app(1), "/log", text="hello") == []
        assert first.lines == ["hello", "hello"]
        kept = weakref.ref(first)
        await factory.destroy(driver.sandboxes.pop(0))
        assert logger.handlers == [second.first, second.second]
        del first
        gc.collect()
        assert kept() is None
        await factory.destroy(driver.sandboxes.pop(1))
        assert logger.handlers == [second.first, second.second]
        assert third.first is not None
    assert logger.handlers == []


async def test_handlers_control(package: Package) -> None:
    """Without that, each copy would add its own: `Logger.addHandler` itself doubles them."""
    package(LOGGING)
    logger = logging.getLogger("shop")
    for _ in range(2):
        exec(compile((package("") / "shop" / "main.py").read_text(), "main.py", "exec"), {})
    assert len(logger.handlers) == 4
    logger.handlers.clear()


async def test_configurations(package: Package) -> None:
    """`dictConfig()`, which takes away the handlers of the copy before, leaves one handler."""
    package(
        shop(
            """
import logging.config
logging.config.dictConfig({
    "version": 1, "disable_existing_loggers": False,
    "handlers": {"here": {"class": "logging.StreamHandler"}},
    "loggers": {"shop.audit": {"handlers": ["here"]}},
})
app = probing()
"""
        )
    )
    async with Driver(ModuleFactory("shop.main:app"), 3):
        assert len(logging.getLogger("shop.audit").handlers) == 1


async def test_handlers_of_others(package: Package) -> None:
    """What a third-party module does in its own body is its own, whoever imports it first."""
    package(
        shop("import helper_of_others\napp = probing()")
        + "### helper_of_others.py\nimport logging\n"
        "handler = logging.NullHandler()\nlogging.getLogger('others').addHandler(handler)\n"
    )
    async with Driver(ModuleFactory("shop.main:app"), 2):
        pass
    assert logging.getLogger("others").handlers == [sys.modules["helper_of_others"].handler]
    logging.getLogger("others").handlers.clear()


# --- atexit -------------------------------------------------------------------------------------


async def test_exits_run_when_their_sandbox_ends(package: Package) -> None:
    """What a copy registers with `atexit` is called once, when its sandbox ends, in its globals."""
    package(
        shop(
            """
import atexit
from atexit import register
from tests.isolation.modules import registry
name = []
@atexit.register
def last(): registry.made.append(("last", *name))
register(lambda *args: registry.made.append((*args, *name)), "first")
def never(): registry.made.append("never")
atexit.register(never)
atexit.unregister(never)
def call(user):
    name.append(user)
app = probing(call)
"""
        )
    )
    factory = ModuleFactory("shop.main:app")
    async with Driver(factory, 2) as driver:
        registry.made.clear()
        await ask(driver.app(0), "/call", user="alice")
        await ask(driver.app(1), "/call", user="bob")
        assert registry.made == []
        first = driver.sandboxes.pop(0)
        kept = weakref.ref(first.modules["shop.main"])
        await factory.destroy(first)
        assert registry.made == [("first", "alice"), ("last", "alice")]
        del first
        gc.collect()
        assert kept() is None
    assert registry.made[2:] == [("first", "bob"), ("last", "bob")]


async def test_exits_that_fail(package: Package, caplog: pytest.LogCaptureFixture) -> None:
    """One that fails is logged, and the others are called all the same."""
    package(
        shop(
            "import atexit\nfrom tests.isolation.modules import registry\n"
            "atexit.register(registry.made.append, 'called')\natexit.register(lambda: 1 / 0)\n"
            "app = probing()"
        )
    )
    async with Driver(ModuleFactory("shop.main:app"), 0):
        pass
    assert registry.made == ["called"]
    assert "registered with atexit has failed" in caplog.text


def test_exits_at_the_exit(package: Package) -> None:
    """A process that ends with sandboxes open calls what they registered, once each."""
    folder = package(
        shop("import atexit\natexit.register(print, 'exit of', __name__)\napp = probing()")
    )
    code = (
        "import anyio\nfrom sandboxpool.isolation.module import ModuleFactory\n"
        "async def main():\n    factory = ModuleFactory('shop.main:app')\n"
        "    await factory.start()\n    print('started')\n"
        "    global kept\n    kept = factory, await factory.create(), await factory.create()\n"
        "anyio.run(main)\nprint('done')\n"
    )
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True,
        env={**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{root}"},
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert lines == [
        "exit of shop.main",
        "started",
        "done",
        "exit of shop.main",
        "exit of shop.main",
    ]
    assert done.stderr == ""


# --- signals --------------------------------------------------------------------------------------

SIGNALS = shop(
    """
import signal
got = []
def handle(number, frame):
    got.append(number)
before = signal.signal(signal.SIGUSR1, handle)
def found(): return [len(got), repr(before)]
app = probing(found)
"""
)


async def test_a_signal_reaches_all_sandboxes(package: Package) -> None:
    """A signal calls the handler of each living sandbox once, and none that has ended."""
    package(SIGNALS)
    factory = ModuleFactory("shop.main:app")
    usual = signal.getsignal(signal.SIGUSR1)
    async with Driver(factory, 3) as driver:
        last = driver.sandboxes.pop()
        module = last.modules["shop.main"]
        kept = weakref.ref(module)
        await factory.destroy(last)
        signal.raise_signal(signal.SIGUSR1)
        assert module.got == []
        for number in (0, 1):
            assert await ask(driver.app(number), "/found") == [1, repr(usual)]
        del last, module
        gc.collect()
        assert kept() is None
    assert signal.getsignal(signal.SIGUSR1) is usual


async def test_a_signal_handler_that_raises(package: Package) -> None:
    """All handlers are called, and then the first exception goes where that of a handler goes."""
    package(SIGNALS.replace("    got.append(number)", "    got.append(number)\n    raise KeyError"))
    async with Driver(ModuleFactory("shop.main:app"), 2) as driver:
        with pytest.raises(KeyError):
            signal.raise_signal(signal.SIGUSR1)
        for number in (0, 1):
            assert (await ask(driver.app(number), "/found"))[0] == 1


async def test_signals_with_threads(package: Package) -> None:
    """Sandboxes in threads of their own get signals, though Python sets no handler there."""
    package(SIGNALS)
    async with wrap("shop.main:app", isolation="module", run_in="thread", reset="keep") as app:
        signal.raise_signal(signal.SIGUSR1)
        assert (await ask(app, "/found"))[0] == 1


async def test_a_signal_that_is_set_first_in_a_thread(package: Package) -> None:
    """A module that sets a handler when a request in a thread imports it is refused."""
    package(
        shop(
            "def late():\n    import shop.late\napp = probing(late)\n",
            "### shop/late.py\nimport signal\nsignal.signal(signal.SIGUSR1, print)\n",
        )
    )
    async with wrap("shop.main:app", isolation="module", run_in="thread") as app:
        with pytest.raises(
            ModuleIsolationError,
            match=r"'shop.late' sets a handler for signal.*set it in the module that starts the",
        ):
            await ask(app, "/late")


# --- warnings, sys.path, environment, threads -----------------------------------------------------


async def test_filters_for_warnings(package: Package) -> None:
    """A filter for a warning of the package works in each copy, and goes with its sandbox."""
    package(
        shop(
            """
import warnings
class OldWarning(UserWarning): pass
warnings.filterwarnings("ignore", category=OldWarning)
warnings.filterwarnings("ignore", message="shop says")
def warn():
    warnings.warn("old", OldWarning)
app = probing(warn)
"""
        )
    )
    with warnings.catch_warnings():
        before = len(warnings.filters)
        async with Driver(ModuleFactory("shop.main:app"), 2) as driver:
            for number in (0, 1):
                assert await ask(driver.app(number), "/warn") is None
            assert len(warnings.filters) == before + 3
        assert len(warnings.filters) == before + 1


async def test_path_and_environment(package: Package) -> None:
    """`sys.path` gets an entry once, at the place where the module wants it; the rest is common."""
    folder = package("### extra/helper_in_extra.py\nvalue = 1\n")
    package(
        shop(
            f"""
import os, sys
sys.path.insert(0, {str(folder / "extra")!r})
sys.path.append({str(folder / "more")!r})
os.environ["SHOP_STARTED"] = "yes"
import helper_in_extra
def found(): return [helper_in_extra.value, os.environ["SHOP_STARTED"]]
app = probing(found)
"""
        )
    )
    before = list(sys.path)
    try:
        async with Driver(ModuleFactory("shop.main:app"), 3) as driver:
            assert await ask(driver.app(2), "/found") == [1, "yes"]
            assert sys.path == [str(folder / "extra"), *before, str(folder / "more")]
    finally:
        os.environ.pop("SHOP_STARTED", None)
        sys.path[:] = before


async def test_threads_at_import(package: Package) -> None:
    """Each copy has its own thread, which works on its globals, and which `atexit` can end."""
    package(
        shop(
            """
import atexit, threading
inbox, done = [], threading.Event()
stop, ready = threading.Event(), threading.Event()
def work():
    from shop.late import value
    inbox.append(value)
    ready.set()
    stop.wait(10)
    done.set()
thread = threading.Thread(target=work)
thread.start()
ready.wait(10)
@atexit.register
def end():
    stop.set()
    thread.join()
def found(): return [inbox, thread.is_alive()]
app = probing(found)
""",
            "### shop/late.py\nvalue = 'late'\n",
        )
    )
    before = set(threading.enumerate())  # some of which may end meanwhile
    async with Driver(ModuleFactory("shop.main:app"), 2) as driver:
        for number in (0, 1):
            assert await ask(driver.app(number), "/found") == [["late"], True]
        assert len(set(threading.enumerate()) - before) == 2
    assert set(threading.enumerate()) <= before


async def test_register_takes_what_can_be_called(package: Package) -> None:
    """`atexit.register()` of private code refuses what the usual one refuses."""
    body = "import atexit\ntry:\n    atexit.register(1)\nexcept TypeError as error:\n"
    package(shop(f"{body}    text = str(error)\napp = probing()\n"))
    async with Driver(ModuleFactory("shop.main:app"), 1) as driver:
        text: Any = driver.sandboxes[0].modules["shop.main"].text
        assert text == "the first argument must be callable"
