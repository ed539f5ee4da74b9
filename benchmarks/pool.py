"""The pool's budget: leases, hand-offs, memory, cancellation, housekeeping."""

from __future__ import annotations

import asyncio
import gc
import random
import statistics
import tracemalloc
from collections.abc import Callable
from contextlib import AsyncExitStack
from itertools import count, pairwise
from time import monotonic, perf_counter, process_time
from typing import Any

import anyio
import trio

from sandboxpool._factory import FunctionFactory
from sandboxpool._pool import Pool

from .measure import Loop, Row, Timings, at_least, at_most, bounded, interleave, show
from .rivals import loops_without_waiting, open_rivals, sqlalchemy_loop

ITEM = object()


def full_pool(size: int, **options: Any) -> Pool[object]:
    """Return a pool with every limit set, none of which is reached."""
    options = {
        "min_size": size,
        "max_size": size,
        "max_uses": 10**9,
        "max_lifetime": 86400,
        "max_creating": 100,
        **options,
    }
    return Pool(FunctionFactory(lambda: ITEM), **options)


def lease_loop(pool: Pool[object]) -> Loop:
    async def loop(turns: int) -> None:
        for _ in range(turns):
            async with pool.lease():
                pass

    return loop


def any_loop(lease: Callable[[], Any]) -> Loop:
    async def loop(turns: int) -> None:
        for _ in range(turns):
            async with lease():
                pass

    return loop


# --- one task, an idle item --------------------------------------------------------------------


def uncontended(quick: bool) -> list[Row]:
    rounds = 12 if quick else 60
    timings = Timings()

    async def on_asyncio() -> None:
        async with AsyncExitStack() as stack:
            pool = await stack.enter_async_context(full_pool(10))
            loops = {"lease": lease_loop(pool), **loops_without_waiting(10)}
            rivals = await open_rivals(stack, 10)
            loops |= {name: any_loop(lease) for name, lease in rivals.items()}
            if (sqlalchemy := sqlalchemy_loop(10)) is not None:
                loops["SQLAlchemy"] = sqlalchemy
            fast = ("lease", "bare", "pair")
            turns = {name: 2000 if name in fast else 300 for name in loops}
            await interleave(loops, rounds, turns, timings)

    anyio.run(on_asyncio)
    backends = Timings()

    async def on(backend: str) -> None:
        async with full_pool(10) as pool:
            await interleave({backend: lease_loop(pool)}, 3, {backend: 2000}, backends)

    for _ in range(rounds // 3):  # in turns, as noise comes and goes
        anyio.run(on, "asyncio")
        anyio.run(on, "trio", backend="trio")

    print(f"a lease takes {timings.best('lease') * 1e9:.0f} ns, ", end="")
    print(f"the bare deque {timings.best('bare') * 1e9:.0f} ns")
    rows = [
        at_most("lease / bare deque behind async with", timings.ratio("lease", "bare"), 1.6),
        at_most("lease / bare deque, take() and put()", timings.ratio("lease", "pair"), 6.5),
        at_most("lease on Trio / on asyncio", backends.ratio("trio", "asyncio"), 1.1),
    ]
    for name, limit in {
        "psycopg_pool": 9.0,
        "asyncpg": 20.0,
        "asyncio-connection-pool": 4.0,
        "CapacityLimiter + deque": 7.0,
        "SQLAlchemy": 0.0,
        "asyncio.Queue": 0.0,
    }.items():
        if name not in timings.rounds:
            continue
        row = at_least(f"{name} / lease", timings.ratio(name, "lease"), limit)
        rows.append(row if limit else Row(row.what, row.figure, row.median))
    return rows


def size_matters(quick: bool) -> list[Row]:
    size = 20_000 if quick else 100_000
    timings = Timings()
    bookkeeping = sweep = 0.0

    async def main() -> None:
        nonlocal bookkeeping, sweep
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        large = full_pool(size, max_idle=3600)
        await large.open()
        gc.collect()
        bookkeeping = (tracemalloc.get_traced_memory()[0] - before) / size
        tracemalloc.stop()
        async with full_pool(10) as small:
            loops = {"large": lease_loop(large), "small": lease_loop(small)}
            await interleave(loops, 12 if quick else 60, dict.fromkeys(loops, 2000), timings)
        passes = []
        for _ in range(50):
            begin = process_time()
            large.slots.sweep(monotonic())
            passes.append(process_time() - begin)
        sweep = statistics.median(passes)
        await large.aclose()

    anyio.run(main)
    return [
        at_most(f"lease with {size:,} items / with 10", timings.ratio("large", "small"), 1.1),
        bounded("bookkeeping of an idle item", bookkeeping, 160, "B"),
        bounded(f"one pass of the housekeeping, {size:,} idle", sweep * 1e6, 50, "us"),
    ]


# --- more tasks than items -----------------------------------------------------------------------


async def crowd(tasks: int, turns: int, turn: Callable[[], Any]) -> float:
    """Let *tasks* take *turns* each; return the seconds for one turn."""

    async def run() -> None:
        for _ in range(turns):
            await turn()

    gc.collect()
    gc.disable()
    try:
        if _on_trio():
            begin = process_time()
            async with trio.open_nursery() as nursery:
                for _ in range(tasks):
                    nursery.start_soon(run)
        else:
            begin = process_time()
            await asyncio.gather(*(run() for _ in range(tasks)))
        return (process_time() - begin) / (tasks * turns)
    finally:
        gc.enable()


def _on_trio() -> bool:
    return trio.lowlevel.in_trio_run()


async def checkpoint() -> None:
    if _on_trio():
        await trio.lowlevel.checkpoint()
    else:
        await asyncio.sleep(0)


def turn_with(lease: Callable[[], Any], trio_run: bool) -> Callable[[], Any]:
    if trio_run:
        rest: Callable[[], Any] = trio.lowlevel.checkpoint

        async def turn() -> None:
            async with lease():
                await rest()

        return turn

    async def turn_asyncio() -> None:
        async with lease():
            await asyncio.sleep(0)

    return turn_asyncio


async def hand_offs(tasks: int, turns: int, rounds: int, timings: Timings, rivals: bool) -> None:
    on_trio = _on_trio()

    async def rest_trio() -> None:
        await trio.lowlevel.checkpoint()

    async def rest_asyncio() -> None:
        await asyncio.sleep(0)

    async with AsyncExitStack() as stack:
        pool = await stack.enter_async_context(full_pool(100))
        patient = await stack.enter_async_context(full_pool(100, acquire_timeout=None))
        contenders = {
            "checkpoint": rest_trio if on_trio else rest_asyncio,
            "lease": turn_with(pool.lease, on_trio),
            "no timeout": turn_with(patient.lease, on_trio),
        }
        if rivals:
            for name, lease in (await open_rivals(stack, 100)).items():
                contenders[name] = turn_with(lease, on_trio)
        for _ in range(rounds):
            for name, turn in contenders.items():
                timings.add(name, await crowd(tasks, turns, turn))


async def fairness(tasks: int, turns: int) -> tuple[int, int, float]:
    """Return overtakes at grant, difference of turns, and p99 / p50 of the waits."""
    arrivals = count()
    log: list[tuple[int, int]] = []  # (number of the lease: the order of grants, of arrival)
    waits: list[float] = []
    taken = [0] * tasks
    total = tasks * turns

    async def run(number: int) -> None:
        while len(log) < total:
            lease = pool.lease()
            arrived, begin = next(arrivals), perf_counter()
            async with lease:
                waits.append(perf_counter() - begin)
                log.append((lease.id, arrived))
                taken[number] += 1
                await checkpoint()

    async with full_pool(100) as pool, anyio.create_task_group() as group:
        for number in range(tasks):
            group.start_soon(run, number)
    log.sort()
    overtakes = sum(a[1] > b[1] for a, b in pairwise(log))
    steady = sorted(waits[tasks:])
    p50, p99 = steady[len(steady) // 2], steady[len(steady) * 99 // 100]
    return overtakes, max(taken) - min(taken), p99 / p50


def contended(quick: bool) -> list[Row]:
    rows: list[Row] = []
    for backend, limits in {"asyncio": (3.3, 2.1), "trio": (3.5, 2.8)}.items():
        for tasks, limit in zip((1000, 10_000), limits, strict=True):
            timings = Timings()
            rounds = (4 if quick else 15) if tasks == 1000 else (2 if quick else 5)
            rivals = backend == "asyncio" and tasks == 1000
            turns = 6 if rivals else 12 if tasks == 1000 else 3
            anyio.run(hand_offs, tasks, turns, rounds, timings, rivals, backend=backend)
            what = f"{backend}, {tasks:,} tasks over 100"
            print(
                f"{what}: a turn with a hand-off takes {timings.best('lease') * 1e6:.2f} us, "
                f"the checkpoint alone {timings.best('checkpoint') * 1e6:.2f} us"
            )
            ratio = timings.ratio("lease", "checkpoint")
            rows.append(at_most(f"hand-off / checkpoint: {what}", ratio, limit))
            if tasks == 1000:
                ratio = timings.ratio("lease", "no timeout")
                rows.append(at_most(f"timeout armed / none: {backend}", ratio, 1.1))
            for name, least in {
                "psycopg_pool": 8.0,
                "asyncpg": 3.5,
                "asyncio-connection-pool": 0.0,
                "CapacityLimiter + deque": 0.0,
                "asyncio.Queue": 0.0,
            }.items():
                if name in timings.rounds:
                    row = at_least(f"{name} / hand-off", timings.ratio(name, "lease"), least)
                    rows.append(row if least else Row(row.what, row.figure, row.median))
        overtakes, difference, spread = anyio.run(fairness, 1000, 20, backend=backend)
        rows.append(bounded(f"overtakes at grant: {backend}", overtakes, 0, ""))
        rows.append(bounded(f"turns per task, max - min: {backend}", difference, 1, ""))
        rows.append(bounded(f"wait p99 / p50: {backend}", spread, 2.5, "x"))
    return rows


# --- waiters that leave --------------------------------------------------------------------------


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110 - a pass of the loop is what is timed
        await asyncio.sleep(0)


async def cancel_waiters(tasks: int, order: str) -> tuple[float, int]:
    """Return the seconds to cancel each of many waiters but one, and the entries left over."""
    async with full_pool(1) as pool:
        leases = []

        async def wait() -> None:
            async with pool.lease():
                pass

        async with pool.lease():
            leases = [asyncio.create_task(wait()) for _ in range(tasks)]
            await until(lambda: pool.slots.waiting == tasks)
            victims = leases[1:]
            if order == "newest first":
                victims.reverse()
            elif order == "at random":
                random.Random(1).shuffle(victims)
            gc.collect()
            begin = process_time()
            for task in victims:
                task.cancel()
            await until(lambda: pool.slots.waiting == 1)
            seconds = process_time() - begin
            left = len(pool.slots._queue) - pool.slots.waiting
        await asyncio.gather(*leases, return_exceptions=True)
    return seconds, left


async def waiter_memory(tasks: int) -> float:
    async with full_pool(1) as pool:

        async def wait() -> None:
            async with pool.lease():
                pass

        async with pool.lease():
            gc.collect()
            tracemalloc.start()
            before = tracemalloc.get_traced_memory()[0]
            leases = [asyncio.create_task(wait()) for _ in range(tasks)]
            await until(lambda: pool.slots.waiting == tasks)
            each = (tracemalloc.get_traced_memory()[0] - before) / tasks
            tracemalloc.stop()
        await asyncio.gather(*leases)
    return each


def leaving(quick: bool) -> list[Row]:
    tasks = 10_000
    timings = Timings()
    left = 0
    orders = ("oldest first", "newest first", "at random")
    for _ in range(2 if quick else 6):
        for order in orders:
            seconds, dead = anyio.run(cancel_waiters, tasks, order)
            timings.add(order, seconds)
            left = max(left, dead)
    worst = max(orders[1:], key=timings.best)
    return [
        at_most(f"cancel {tasks:,} waiters: {worst} / oldest", timings.ratio(worst, orders[0]), 2),
        bounded("dead waiters kept", left, 64, ""),
        bounded("a waiter with its task", anyio.run(waiter_memory, tasks) / 1000, 2.2, "kB"),
    ]


def run(quick: bool) -> None:
    """Measure everything and print it."""
    show("A lease of an idle item", uncontended(quick))
    show("More tasks than items", contended(quick))
    show("Size and memory", size_matters(quick))
    show("Waiters that leave", leaving(quick))
