"""What private modules cost: time to make a sandbox, its memory, and calls of its functions.

A package of 50 modules is written, and executed plainly and for sandboxes in turn. "plainly" is
the import system with a loader that has the code objects already, so that neither side reads or
compiles files; "with files" is what an `import` of an unloaded package does.

Run: `python -m benchmarks modules`
"""

from __future__ import annotations

import gc
import importlib
import sys
import tempfile
import tracemalloc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from time import perf_counter
from types import CodeType, ModuleType
from typing import Any

from sandboxpool.isolation import _module_stand_in as stand_ins
from sandboxpool.isolation._private_modules import PrivateModules
from sandboxpool.isolation.module import ModuleFactory

from .measure import Row, aligned, at_most, show

GROUPS = 16

MODELS = """
from __future__ import annotations

import enum

from pydantic import BaseModel, Field


class Kind{n}(enum.Enum):
    first = "first"
    second = "second"


class Line{n}(BaseModel):
    name: str
    amount: int = Field(ge=0, default=1)
    kind: Kind{n} = Kind{n}.first


class Order{n}(BaseModel):
    number: int
    lines: list[Line{n}] = []
    note: str | None = None

    def total(self) -> int:
        return sum(line.amount for line in self.lines)
"""

LOGIC = """
from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import lru_cache

from . import models{n}
from .models{n} import Line{n}, Order{n}

logger = logging.getLogger(__name__)
orders: dict[int, Order{n}] = {{}}


@dataclass
class Price{n}:
    net: int
    tax: int = 19


class Book{n}:
    seen: list[str] = []

    def add(self, order: Order{n}) -> int:
        orders[order.number] = order
        return len(orders)


@lru_cache
def price(name: str) -> Price{n}:
    return Price{n}(len(name))


def book(order: Order{n}) -> int:
    logger.debug("booked %s", order.number)
    return Book{n}().add(order)


def work(rounds: int) -> int:
    total = 0
    for number in range(rounds):
        total += len(orders) + abs(number)
    return total
"""

ROUTES = """
from __future__ import annotations

from fastapi import APIRouter, Depends

from shop.logic{n} import Book{n}, book, price
from shop.models{n} import Line{n}, Order{n}

router = APIRouter(prefix="/group{n}")


def current_book() -> Book{n}:
    return Book{n}()


@router.get("/orders")
def orders(limit: int = 10) -> list[Order{n}]:
    return []


@router.post("/orders")
def add(order: Order{n}, book_: Book{n} = Depends(current_book)) -> int:
    return book(order)


@router.get("/price")
async def get_price(name: str) -> int:
    return price(name).net
"""

CLASSES = """
from __future__ import annotations

from functools import lru_cache
import shop
from . import models{n} as own

state: dict[str, int] = {{}}


class Thing{n}:
    seen: list[str] = []

    def one(self, value: int = 1) -> int:
        return value

    def two(self) -> str:
        return self.__class__.__name__


def function(value: int) -> int:
    return value + len(state)


@lru_cache
def cached(value: int) -> int:
    return value
"""


def write(folder: Path, *, framework: bool) -> None:
    """Write the package: with models, routers and an app, or with classes and functions alone."""
    shop = folder / "shop"
    shop.mkdir()
    numbers = range(GROUPS)
    if framework:
        files = {"models": MODELS, "logic": LOGIC, "routes": ROUTES}
        imports = "\n".join(f"from .routes{n} import router as router{n}" for n in numbers)
        body = "from fastapi import FastAPI\n" + imports + "\napp = FastAPI()\n"
        body += "".join(f"app.include_router(router{n})\n" for n in numbers)
    else:
        plain = CLASSES.replace("from . import models{n} as own\n", "")
        files = {"models": plain, "logic": CLASSES, "routes": CLASSES}
        body = "".join(
            f"from . import {name}{n}\nimport shop.{name}{n}\n" for name in files for n in numbers
        )
        body += "async def app(scope, receive, send): ...\n"
    (shop / "__init__.py").write_text("")
    (shop / "main.py").write_text(body)
    for name, text in files.items():
        for number in numbers:
            (shop / f"{name}{number}.py").write_text(text.format(n=number))


class PlainLoader:
    """Loads modules of a package from code objects, as plainly as the import system can."""

    def __init__(self, codes: dict[str, CodeType]) -> None:
        self.codes = codes

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name not in self.codes:
            return None
        return importlib.machinery.ModuleSpec(name, self, is_package=name == "shop")  # type: ignore[arg-type] # it is one

    def create_module(self, spec: Any) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        exec(self.codes[module.__name__], module.__dict__)


def forget() -> dict[str, ModuleType]:
    """Take the package out of `sys.modules`, and return its modules."""
    names = [name for name in sys.modules if name.partition(".")[0] == "shop"]
    return {name: sys.modules.pop(name) for name in names}


@contextmanager
def plainly(codes: dict[str, CodeType]) -> Iterator[Callable[[], Any]]:
    """Give what imports the package from *codes* and returns its modules."""
    loader: Any = PlainLoader(codes)

    def run() -> Any:
        importlib.import_module("shop.main")
        return forget()

    sys.meta_path.insert(0, loader)
    try:
        yield run
    finally:
        sys.meta_path.remove(loader)


@contextmanager
def with_files() -> Iterator[Callable[[], Any]]:
    """Give what imports the package from its files."""

    def run() -> Any:
        importlib.import_module("shop.main")
        return forget()

    yield run


@contextmanager
def privately() -> Iterator[Callable[[], PrivateModules]]:
    """Give what executes the package for one sandbox more."""
    factory = ModuleFactory("shop.main:app")
    stand_ins.open_space(factory.space)
    try:
        yield lambda: factory._boot()[0]
    finally:
        stand_ins.close_space(factory.space)


def seconds(run: Callable[[], Any]) -> float:
    """Return how long one run takes, the garbage collector being off."""
    gc.collect()
    gc.disable()
    try:
        begin = perf_counter()
        kept = run()
        took = perf_counter() - begin
    finally:
        gc.enable()
    close(kept)
    return took


def close(kept: Any) -> None:
    if isinstance(kept, PrivateModules):
        kept.close()


def kilobytes(run: Callable[[], Any], number: int = 10) -> float:
    """Return what one more takes when several have been made, in kB."""
    first = run()
    gc.collect()
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        kept = [run() for _ in range(number)]
        gc.collect()
        took = (tracemalloc.get_traced_memory()[0] - before) / number / 1000
    finally:
        tracemalloc.stop()
    for one in (first, *kept):
        close(one)
    return took


def codes_of(folder: Path) -> dict[str, CodeType]:
    """Return the code objects of the package, by module."""
    codes = {}
    for file in (folder / "shop").glob("*.py"):
        name = "shop" if file.stem == "__init__" else f"shop.{file.stem}"
        codes[name] = compile(file.read_text(), str(file), "exec")
    return codes


def compare(
    folder: Path, rounds: int, *, framework: bool
) -> tuple[list[Row], list[tuple[str, ...]]]:
    """Measure both sides in turn, and return what to show of it."""
    codes = codes_of(folder)
    contenders: dict[str, Callable[[], Any]] = {
        "plainly": lambda: plainly(codes),
        "with files": with_files,
        "a sandbox": privately,
    }
    times: dict[str, list[float]] = {name: [] for name in contenders}
    for turn in range(rounds + 1):
        for name, contender in contenders.items():
            with contender() as run:
                run_once = run()  # what is found or compiled once
                close(run_once)
                took = [seconds(run) for _ in range(3)]
            if turn:
                times[name].extend(took)
    memory = {}
    for name in ("plainly", "a sandbox"):
        with contenders[name]() as run:
            memory[name] = kilobytes(run)

    def ratio(of: dict[str, list[float]], base: str) -> tuple[float, float]:
        pairs = sorted(a / b for a, b in zip(of["a sandbox"], of[base], strict=True))
        return min(of["a sandbox"]) / min(of[base]), pairs[len(pairs) // 2]

    boot = ratio(times, "plainly")
    space = memory["a sandbox"] / memory["plainly"]
    what = f"boot, {len(codes)} modules, against plainly"
    rows = [
        at_most("boot, against an import from files", ratio(times, "with files"), 1.2),
    ]
    if framework:
        rows += [
            at_most(what, boot, 1.2),
            at_most("memory, against plainly", (space, space), 1.1),
        ]
    else:
        # Bodies that do next to nothing show what an import and a namespace cost by themselves.
        rows += [
            Row(what, f"{boot[0]:.2f} x", f"{boot[1]:.2f} x"),
            Row("memory, against plainly", f"{space:.2f} x"),
        ]
    lines = [("", "ms, fastest", "kB")] + [
        (
            name,
            f"{min(times[name]) * 1e3:.1f}",
            f"{memory.get(name, 0):,.0f}" if name in memory else "",
        )
        for name in contenders
    ]
    return rows, lines


def calls(folder: Path) -> tuple[float, ...]:
    """Return what a function takes that reads globals, plainly, in a sandbox, in two in turn."""
    with plainly(codes_of(folder)) as run:
        work = run()["shop.logic0"].work
        plain = min(seconds(lambda: [work(20_000) for _ in range(4)]) for _ in range(9))
    with privately() as boot:
        sandboxes = [boot(), boot()]
        works = [modules.modules["shop.logic0"].work for modules in sandboxes]
        for work in works:
            work(20_000)
        alone = min(seconds(lambda: [works[0](20_000) for _ in range(4)]) for _ in range(9))
        turns = min(seconds(lambda: [works[i % 2](20_000) for i in range(4)]) for _ in range(9))
        for modules in sandboxes:
            modules.close()
    return plain, alone, turns


def run(quick: bool) -> None:
    """Measure and print."""
    rounds = 3 if quick else 9
    for title, framework in (
        ("private modules: FastAPI, pydantic models, dataclasses, routers", True),
        ("private modules: classes and functions alone, nothing but imports", False),
    ):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write(folder, framework=framework)
            sys.path.insert(0, name)
            importlib.invalidate_caches()
            try:
                rows, lines = compare(folder, rounds, framework=framework)
                show(title, rows)
                print(aligned(lines))
                if framework:
                    plain, alone, turns = calls(folder)
                    print(
                        f"80,000 turns of a loop that reads globals: {plain * 1e3:.1f} ms plainly, "
                        f"{alone * 1e3:.1f} ms in a sandbox, {turns * 1e3:.1f} ms in two in turn"
                    )
            finally:
                sys.path.remove(name)
                forget()


if __name__ == "__main__":
    run(quick=False)
