"""Files in cooperative requests, read and written in threads."""

# ruff: noqa: SIM115 (how files are opened is what is tested)

from __future__ import annotations

import builtins
import io
import json
import logging.handlers
import os
import threading
import traceback
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from time import monotonic
from typing import Any

import anyio
import anyio.lowlevel
import pytest

from sandboxpool import hooks
from tests.wrap.client import Connection

from .request import PATIENCE, alone, at_once, sandboxed

HOOKS = ("files",)

pytestmark = pytest.mark.usefixtures("cooperative")

_original = builtins.open

MANY = 50
T = 0.1


def late(path: Path, content: bytes) -> None:
    """Make a file that has its content after a while only: a named pipe."""
    os.mkfifo(path)
    threading.Timer(T, path.write_bytes, (content,)).start()


def opens_late(path: Path) -> None:
    """Make a file that can be opened after a while only."""
    os.mkfifo(path)
    threading.Timer(T, path.read_bytes).start()


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this platform has no named pipes")
@pytest.mark.backend_with_uvloop
async def test_at_once(tmp_path: Path) -> None:
    """Requests that wait for slow files, here named pipes, wait together."""

    def read(number: int) -> bytes:
        with open(tmp_path / f"read {number}", "rb") as file:
            return file.read()

    def write(number: int) -> None:
        (tmp_path / f"write {number}").write_text("text")

    calls: list[Callable[[], Any]] = []
    for number in range(MANY // 2):
        late(tmp_path / f"read {number}", b"content")
        opens_late(tmp_path / f"write {number}")
        calls += [partial(read, number), partial(write, number)]
    before = monotonic()
    assert await at_once(*calls) == [b"content", None] * (MANY // 2)
    assert monotonic() - before < T * MANY / 2


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this platform has no named pipes")
async def test_control(tmp_path: Path) -> None:
    """Without the hook the event loop stands still while a request waits for a file."""
    ticks = []

    async def tick() -> None:
        await anyio.lowlevel.checkpoint()
        ticks.append(True)

    late(tmp_path / "file", b"")

    def read() -> None:
        (tmp_path / "file").read_bytes()
        assert ticks == []

    await at_once(read, tick, run_in="loop")


def use(directory: Path) -> None:
    """Use files in all the ways there are."""
    path = directory / str(threading.get_ident()) / str(id(object()))
    path.parent.mkdir(exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="\n") as text:
        assert isinstance(text, io.TextIOWrapper)
        assert text.write("ä\n" * 3) == 6
        assert text.mode == "w"
        assert str(text.name) == str(path)
        text.flush()
        os.fsync(text.fileno())
        assert not text.isatty()
        assert text.writable()
        assert not text.readable()
        with pytest.raises(io.UnsupportedOperation):
            text.read()
    assert text.closed
    with pytest.raises(ValueError, match="closed"):
        text.write("more")
    with open(path, encoding="utf-8") as text:
        assert list(text) == ["ä\n"] * 3
        text.seek(0)
        assert text.readline() == "ä\n"
        position = text.tell()
        assert text.read(1) == "ä"
        text.seek(position)
        assert text.read() == "ä\nä\n"
        assert text.read() == ""
    with open(path, "rb") as data:
        assert isinstance(data, io.BufferedReader)
        assert data.read(2) == "ä".encode()
        assert data.peek()[:1] == b"\n"
        assert data.read1(1) == b"\n"
        view = bytearray(3)
        assert data.readinto(view) == 3
        assert bytes(view) == "ä\n".encode()
        assert data.seek(-1, os.SEEK_END) == 8
        assert data.readlines() == [b"\n"]
    with open(path, "r+b") as both:
        assert isinstance(both, io.BufferedRandom)
        both.seek(0)
        both.write(b"xy")
        both.seek(0)
        assert both.read(3) == b"xy\n"
        assert both.truncate(3) == 3
    with open(path, "ab", buffering=0) as raw:
        assert isinstance(raw, io.RawIOBase)
        assert raw.write(b"end\n") == 4
        assert raw.mode == "ab"
        assert raw.fileno() > 0
    with open(path, "rb", buffering=0) as raw:
        assert raw.read(2) == b"xy"
        assert raw.read() == b"\nend\n"
    with open(path, "a", buffering=1) as line:
        assert line.line_buffering
        line.write("line\n")
        assert path.read_text() == "xy\nend\nline\n"
    with open(path, "rb", buffering=16) as data:
        assert data.read() == b"xy\nend\nline\n"
    assert path.read_bytes() == b"xy\nend\nline\n"
    path.write_text(json.dumps({"a": 1}))
    with path.open() as text:
        assert json.load(text) == {"a": 1}
    large = os.urandom(1_000_000)
    path.write_bytes(large)
    with open(os.open(path, os.O_RDONLY), "rb") as data:
        assert data.read() == large
    with open(path, "rb") as data:
        assert b"".join(iter(partial(data.read, 1000), b"")) == large
    with pytest.raises(FileExistsError):
        open(path, "x")
    with pytest.raises(FileNotFoundError) as caught:
        open(path / "nothing" if os.name == "nt" else path.parent / "nothing")
    assert "use" in [frame.name for frame in traceback.extract_tb(caught.tb)]
    with pytest.raises(ValueError, match="mode"):
        open(path, "no mode")
    with pytest.raises(ValueError, match="encoding"):
        open(path, "rb", encoding="utf-8")
    with pytest.raises(TypeError):
        open()  # type: ignore[call-overload]


async def test_all_ways(tmp_path: Path) -> None:
    """Files have the classes, methods, results and errors that they always had."""
    use(tmp_path)
    await at_once(partial(use, tmp_path), partial(use, tmp_path))
    await alone(partial(use, tmp_path), hooks=("default", "files", "threads"))


async def test_unclosed(tmp_path: Path) -> None:
    """A file that nobody closes is written and closed with the usual warning."""
    path = tmp_path / "file"

    def write() -> None:
        open(path, "w").write("text")

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        await alone(write)
    assert "unclosed file" in str(caught[0].message)
    assert path.read_text() == "text"


async def test_kept(tmp_path: Path) -> None:
    """A file that one request has opened can be used by others, by threads and by the loop."""
    kept: list[Any] = []

    def first() -> None:
        kept.append(open(tmp_path / "file", "w"))
        kept[0].write("FIRST\n" * 100_000)

    def other(text: str) -> None:
        kept[0].write(text * 100_000)

    await alone(first)
    await at_once(partial(other, "a"), partial(other, "b"))
    thread = threading.Thread(target=other, args=("c",))
    thread.start()
    thread.join()
    other("d")
    kept[0].close()
    text = (tmp_path / "file").read_text()
    assert text.startswith("FIRST\n" * 100_000)
    assert all(text.count(letter) == 100_000 for letter in "abcd")


async def test_log_that_rotates(tmp_path: Path) -> None:
    """A log that rotates in the middle of requests is written by all of them."""
    logger = logging.getLogger("tests.hooks.rotates")
    logger.propagate = False
    handler = logging.handlers.RotatingFileHandler(tmp_path / "log", maxBytes=100, backupCount=99)
    logger.addHandler(handler)
    try:
        await at_once(*[partial(logger.warning, "line %s", number) for number in range(50)])
        logger.warning("line 50")
    finally:
        logger.removeHandler(handler)
        handler.close()
    lines = [line for path in tmp_path.iterdir() for line in path.read_text().splitlines()]
    assert sorted(lines) == sorted(f"line {number}" for number in range(51))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this platform has no named pipes")
@pytest.mark.parametrize("anyio_backend", ["asyncio"], indirect=True)
async def test_cut_off_while_reading(tmp_path: Path) -> None:
    """A request that is cut off leaves its thread to end by itself, which harms nothing."""
    path = tmp_path / "file"
    os.mkfifo(path)
    writer = os.open(path, os.O_RDWR)

    def read() -> None:
        with open(path, "rb") as file:
            file.read(10)

    with anyio.fail_after(PATIENCE):
        async with sandboxed(read, execution_timeout=0.1) as app:
            assert (await Connection(app, "/0").run()).status == 504
    os.write(writer, b"late" * 3)
    os.close(writer)


def test_uninstalled() -> None:
    """After `uninstall()` the original is back."""
    assert builtins.open is not _original
    hooks.uninstall("files")
    assert builtins.open is io.open is _original
