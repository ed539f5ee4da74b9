"""What `benchmarks.blocking` compares: apps that block, and the servers that they run in."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

from .servers import PORT, uvicorn

Command = tuple[str, ...]
FLASK = "benchmarks.blocking_wsgi:flask_app"
BARE_WSGI = "benchmarks.blocking_wsgi:bare"


@dataclass(frozen=True)
class Contender:
    """One way to serve requests that block.

    Attributes:
        name: What `--only` calls it.
        label: What the table calls it.
        path: The endpoint that is asked.
        command: Gives what starts it, for so many requests at once.
        needs: The modules without which it is left out.
        ours: Whether this library is in it, so that nothing may go wrong.
        stuck: Whether it blocks its loop, so that it does not end when it is told to.
    """

    name: str
    label: str
    path: str
    command: Callable[[int], Command]
    needs: tuple[str, ...] = ()
    ours: bool = False
    stuck: bool = False

    @property
    def missing(self) -> list[str]:
        return [module for module in self.needs if find_spec(module) is None]


def _plain(name: str, label: str, path: str, app: str = "app", stuck: bool = False) -> Contender:
    command = uvicorn(f"benchmarks.blocking_apps:{app}")
    return Contender(name, label, path, lambda at_once: command, ("uvicorn",), stuck=stuck)


def _ours(
    name: str, label: str, factory: str, path: str = "/block", loop: str = "uvloop"
) -> Contender:
    command = uvicorn("--factory", f"benchmarks.blocking_wrapped:{factory}", "--loop", loop)
    needs = ["uvicorn"]
    if loop == "uvloop":
        needs.append("uvloop")
    if "cooperative" in factory:
        needs.append("greenlet")
    if "wsgi" in factory:
        needs.append("flask")
    return Contender(name, label, path, lambda at_once: command, tuple(needs), ours=True)


def _gunicorn(app: str, worker: str, *options: str) -> Command:
    return (
        *(sys.executable, "-m", "gunicorn", app, "--bind", f"127.0.0.1:{PORT}", "--workers", "1"),
        # Its defaults would close idle connections after 2 s and not accept more than 1000.
        *("--keep-alive", "75", "--worker-connections", "20000", "--backlog", "16384"),
        *("--timeout", "120", "--worker-class", worker, *options),
    )


def _granian(at_once: int) -> Command:
    return (
        *(sys.executable, "-m", "granian", FLASK, "--interface", "wsgi", "--host", "127.0.0.1"),
        *("--port", PORT, "--workers", "1", "--blocking-threads", str(at_once), "--http", "1"),
        # As many requests at a time as there are threads, or they get in each other's way.
        *("--no-ws", "--backlog", "4096", "--backpressure", str(at_once)),
    )


AWAIT, BLOCK, DEF, LIMITER = (
    _plain("await", "FastAPI, async def that awaits", "/await"),
    _plain("block", "FastAPI, async def", "/block", stuck=True),
    _plain("def", "FastAPI, def", "/def", stuck=True),
    _plain("def-limiter", "FastAPI, def, limiter raised", "/def", "limiter_raised"),
)
# uvloop in the server and asyncio's loops in the threads; and both of the one kind or of the other.
THREAD, THREAD_ASYNCIO, THREAD_UVLOOP, THREAD_DEF, COOPERATIVE = (
    _ours("thread", 'run_in="thread", async def', "thread_asyncio"),
    _ours("thread-asyncio", "  asyncio only", "thread", loop="asyncio"),
    _ours("thread-uvloop", "  uvloop only", "thread"),
    _ours("thread-def", 'run_in="thread", def', "thread_asyncio", path="/def"),
    _ours("cooperative", 'run_in="cooperative", async def', "cooperative"),
)
WSGI_LOOP, WSGI_THREAD, WSGI_COOPERATIVE = (
    _ours("wsgi-loop", 'run_in="loop", Flask', "wsgi_loop"),
    _ours("wsgi-thread", 'run_in="thread", Flask', "wsgi_thread"),
    _ours("wsgi-cooperative", 'run_in="cooperative", Flask', "wsgi_cooperative"),
)
GTHREAD = Contender(
    "gthread",
    "gunicorn gthread, Flask",
    "/block",
    lambda at_once: _gunicorn(FLASK, "gthread", "--threads", str(at_once)),
    ("gunicorn", "flask"),
)
GEVENT = Contender(
    "gevent",
    "gunicorn gevent, Flask",
    "/block",
    lambda at_once: _gunicorn(FLASK, "gevent"),
    ("gunicorn", "gevent", "flask"),
)
A2WSGI = Contender(
    "a2wsgi",
    "a2wsgi under uvicorn, Flask",
    "/block",
    lambda at_once: uvicorn("--factory", "benchmarks.blocking_wsgi:in_threads"),
    ("a2wsgi", "uvicorn", "flask"),
)
GRANIAN = Contender(
    "granian", "granian WSGI, Flask", "/block", lambda at_once: _granian(at_once), ("granian",)
)
GEVENT_BARE = Contender(
    "gevent-bare",
    "gunicorn gevent, no framework",
    "/block",
    lambda at_once: _gunicorn(BARE_WSGI, "gevent"),
    ("gunicorn", "gevent"),
)
COOPERATIVE_BARE = _ours(
    "cooperative-bare", 'run_in="cooperative", no framework', "cooperative_bare"
)

PLAIN = (AWAIT, BLOCK, DEF, LIMITER)
OURS = (
    *(THREAD, THREAD_ASYNCIO, THREAD_UVLOOP, THREAD_DEF),
    *(COOPERATIVE, WSGI_LOOP, WSGI_THREAD, WSGI_COOPERATIVE),
)
RIVALS = (GTHREAD, GEVENT, A2WSGI, GRANIAN)
MANY = (AWAIT, GEVENT, COOPERATIVE, GEVENT_BARE, COOPERATIVE_BARE)
