"""What a pool refuses to be made of: each error names the option, what was given, the remedy."""

from __future__ import annotations

from math import inf, nan
from typing import Any

import pytest

from sandboxpool import FunctionFactory, OptionError, SandboxPoolError
from sandboxpool._pool import Pool
from tests.pool.rig import Item, Maker, all_acquirable, settle

COUNT = "give a whole number of at least {least}"
OPTIONAL = ", or None for no limit."
SECONDS = "give a number of seconds, {least}"

WRONG: list[tuple[str, Any, str]] = [
    *(("min_size", value, COUNT.format(least=0) + ".") for value in (-1, True, 1.0, "1", None)),
    *(("max_size", value, COUNT.format(least=1) + ".") for value in (0, -1, True, 2.5, None)),
    *(("max_waiting", value, COUNT.format(least=0) + OPTIONAL) for value in (-1, True, 0.5, "x")),
    *(("max_uses", value, COUNT.format(least=1) + OPTIONAL) for value in (0, -1, True, 1.5)),
    *(("max_creating", value, COUNT.format(least=1) + ".") for value in (0, -1, True, None)),
    *(
        (name, value, SECONDS.format(least="0 or more") + OPTIONAL)
        for name in ("acquire_timeout", "check_after")
        for value in (-0.1, nan, -inf, True, "30")
    ),
    *(
        (name, value, SECONDS.format(least="more than 0") + OPTIONAL)
        for name in (
            "max_lifetime",
            "max_idle",
            "create_timeout",
            "check_timeout",
            "reset_timeout",
            "destroy_timeout",
        )
        for value in (0, -1, nan, False, "1")
    ),
    *(
        (name, value, SECONDS.format(least="more than 0") + ".")
        for name in ("create_backoff", "max_create_backoff")
        for value in (0, -1, nan, True, None)
    ),
    *(
        ("name", value, "give a text that errors and logs can call the pool.")
        for value in ("", None, 5)
    ),
    ("on_acquire", 5, "give a function of one item, or None."),
    ("clock", None, "give a function that returns seconds, like time.monotonic."),
    ("clock", 5.0, "give a function that returns seconds, like time.monotonic."),
    *(("jitter", value, "give a share from 0 to less than 1.") for value in (-0.1, 1, nan, True)),
]


@pytest.mark.parametrize(
    ("option", "value", "remedy"), WRONG, ids=[f"{name}={value!r}" for name, value, _ in WRONG]
)
def test_wrong_values(option: str, value: Any, remedy: str) -> None:
    """A value that cannot work is refused when the pool is made, as a `ValueError` of ours."""
    with pytest.raises(OptionError) as caught:
        Pool(Maker(), **{option: value})
    assert str(caught.value) == f"{option}={value!r}: {remedy}"
    assert isinstance(caught.value, ValueError)
    assert isinstance(caught.value, SandboxPoolError)


def test_min_above_max() -> None:
    """Bounds that exclude each other are named both."""
    with pytest.raises(OptionError) as caught:
        Pool(Maker(), min_size=5, max_size=3)
    assert str(caught.value) == (
        "min_size=5 is more than max_size=3: raise max_size, or lower min_size."
    )


@pytest.mark.parametrize(
    "options",
    [
        {"acquire_timeout": None},
        {"acquire_timeout": 0},
        {"acquire_timeout": inf},
        {"max_waiting": 0},
        {"max_uses": 1},
        {"check_after": 0},
        {"jitter": 0},
        {"max_lifetime": inf, "max_idle": inf},
        {"min_size": 2, "max_size": 2},
    ],
    ids=str,
)
async def test_values_at_the_edge(options: dict[str, Any]) -> None:
    """The smallest and the largest values that are allowed work."""
    async with Pool(Maker(), **{"min_size": 2, "max_size": 2, **options}) as pool:
        await all_acquirable(pool)


def test_first_backoff_above_the_last() -> None:
    """Pauses that would have to shrink are refused, both being named."""
    with pytest.raises(OptionError) as caught:
        Pool(Maker(), create_backoff=6)
    assert str(caught.value) == (
        "create_backoff=6 is more than max_create_backoff=5.0: "
        "raise max_create_backoff, or lower create_backoff."
    )


def test_unknown_option() -> None:
    """A misspelt option is a `TypeError` that names it; nothing is ignored."""
    with pytest.raises(TypeError, match="max_sise"):
        Pool(Maker(), max_sise=3)  # type: ignore[call-arg]
    with pytest.raises(TypeError):
        Pool(Maker(), 1, 3)  # type: ignore[call-arg]


class Half:
    async def create(self) -> Item:
        return Item(0)

    def __repr__(self) -> str:
        return "<Half>"


@pytest.mark.parametrize(
    ("factory", "named"),
    [
        (Maker, "got the class Maker: pass"),
        (Half, r"got the class Half \(it lacks reset, destroy\): pass"),
        (Half(), r"got <Half> \(it lacks reset, destroy\): pass"),
        (None, r"got None \(it lacks create, reset, destroy\): pass"),
        (len, r"got <built-in function len> \(it lacks create, reset, destroy\): pass"),
    ],
)
def test_what_is_no_factory(factory: Any, named: str) -> None:
    """A class, half a factory or something else: told what is missing and what to pass."""
    with pytest.raises(TypeError, match=named) as caught:
        Pool(factory)
    assert str(caught.value).startswith("a Pool takes a factory with create, reset and destroy")
    assert "pass an object of such a class, or sandboxpool.FunctionFactory(create=...)." in str(
        caught.value
    )


@pytest.mark.parametrize("timeout", [-1, nan, "1", True])
async def test_timeout_of_a_lease(timeout: Any) -> None:
    """A timeout that cannot work is refused when it comes to a wait."""
    async with Pool(Maker(), min_size=1, max_size=1) as pool:
        async with pool.lease():
            with pytest.raises(OptionError) as caught:
                await pool.lease(timeout=timeout).__aenter__()
            assert str(caught.value) == (
                f"timeout={timeout!r}: give a number of seconds, 0 or more, or None for no limit."
            )
        await all_acquirable(pool)


@pytest.mark.parametrize("timeout", [-1, nan, "1", True])
async def test_timeout_of_drain_and_aclose(timeout: Any) -> None:
    """A timeout that cannot work is refused before anything is drained or closed."""
    async with Pool(Maker(), min_size=1, max_size=1) as pool:
        for end in (pool.drain, pool.aclose):
            with pytest.raises(OptionError) as caught:
                await end(timeout)
            assert str(caught.value) == (
                f"timeout={timeout!r}: give a number of seconds, 0 or more, or None for no limit."
            )
        await all_acquirable(pool)
        assert pool.statistics().created == 1


async def test_resize_refuses_what_the_constructor_refuses() -> None:
    """Wrong bounds change nothing."""
    async with Pool(Maker(), min_size=1, max_size=2) as pool:
        for sizes, text in (
            ({"max_size": 0}, "max_size=0: give a whole number of at least 1."),
            ({"min_size": -1}, "min_size=-1: give a whole number of at least 0."),
            ({"min_size": 3}, "min_size=3 is more than max_size=2"),
        ):
            with pytest.raises(OptionError) as caught:
                await pool.resize(**sizes)
            assert str(caught.value).startswith(text)
        assert (pool.slots.min_size, pool.slots.max_size) == (1, 2)
        await all_acquirable(pool)


@pytest.mark.parametrize("sync", [True, False], ids=["sync", "async"])
async def test_function_factory(sync: bool) -> None:
    """Functions, sync or async, make a factory; what is left out does nothing."""
    seen: list[str] = []

    def note(what: str) -> Any:
        def hook(*_: object) -> Any:
            seen.append(what)
            return True if what == "check" else None

        async def ahook(*_: object) -> Any:
            return hook()

        return hook if sync else ahook

    def make() -> Any:
        seen.append("create")
        return object() if sync else amake()

    async def amake() -> object:
        return object()

    full = FunctionFactory(make, reset=note("reset"), destroy=note("destroy"), check=note("check"))
    async with Pool(full, max_size=1, check_after=0) as pool:
        for _ in range(2):
            async with pool.lease():
                pass
            await settle()
    assert seen == ["create", "reset", "check", "reset", "destroy"]
    async with Pool(FunctionFactory(object), max_size=1, check_after=0) as bare:
        for _ in range(2):
            async with bare.lease():
                pass
        assert bare.statistics().resets == 2
        await all_acquirable(bare)


class Connection:
    """What has methods that return values, and a `close()` that a reset must not call."""

    closed = False

    def rollback(self) -> Connection:
        return self

    def close(self) -> str:
        assert not self.closed
        self.closed = True
        return "closed"


@pytest.mark.parametrize("ends", ["released", "retired", "drained in its reset"])
@pytest.mark.parametrize("slow", [False, True], ids=["inlined", "rules"])
async def test_a_hook_that_returns_a_value(
    ends: str, slow: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """What a plain reset or destroy returns, if it cannot be awaited, means that it is done."""

    def reset(item: Connection) -> Connection:
        if ends == "drained in its reset":
            pool.slots.drain(0.0)
        return item.rollback()

    made: list[Connection] = []

    def create() -> Connection:
        made.append(Connection())
        return made[-1]

    factory = FunctionFactory(create, reset=reset, destroy=lambda item: item.close())
    async with Pool(factory, max_size=1, record_holders=slow) as pool:
        lease = pool.lease()
        async with lease:
            if ends == "retired":
                lease.retire()
        stats = pool.statistics()
        assert made[0].closed is (ends != "released")
        assert (stats.resets, stats.reset_failures) == (1 if ends == "released" else 0, 0)
        assert (stats.idle, stats.size) == ((1, 1) if ends == "released" else (0, 0))
        await all_acquirable(pool)
    assert all(item.closed for item in made)
    assert not caplog.records
