"""What all conformance kits share: a check is one test, and what it finds names the rule."""

from __future__ import annotations

import inspect
import re
import unittest
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from functools import wraps
from typing import Any, ClassVar, TypeVar

import anyio
import anyio.lowlevel

from sandboxpool._exceptions import ConformanceError

Kit = TypeVar("Kit", bound="Conformance")

# Passes through the ready tasks that are enough for everything that needs no passing of time.
_PASSES = 30


class BrokenRule(Exception):
    """What a check has seen; the check adds which rule that breaks."""


def check(
    test: Callable[[Kit], Awaitable[None]],
) -> Callable[[Kit], Coroutine[Any, Any, None]]:
    """Make a check out of a method: whatever goes wrong in it becomes a `ConformanceError`.

    The first line of the docstring is the rule. What stands in quotes after `Contract:` is the
    sentence of `sandboxpool.abc` that it follows from.
    """
    name = getattr(test, "__name__", "check")

    @wraps(test)
    async def run(self: Kit) -> None:
        try:
            with anyio.fail_after(self.patience):
                await test(self)
        except unittest.SkipTest:
            raise
        except Exception as error:
            cause = _single(error)
            found = ConformanceError(
                name, *_rule_and_contract(test), seen=_seen(cause, self.patience)
            )
            raise found from (None if isinstance(cause, BrokenRule) else cause)

    run.__sandboxpool_check__ = True  # type: ignore[attr-defined]
    return run


def _rule_and_contract(test: object) -> tuple[str, str]:
    text = inspect.getdoc(test) or ""
    quoted = re.search(r'Contract: "(.*?)"\s*$', text, re.DOTALL)
    assert quoted is not None, f"{test} quotes no sentence of the contract"
    return text.partition("\n")[0], " ".join(quoted[1].split())


def _single(error: BaseException) -> BaseException:
    """Return the one error in a group of one, as task groups raise them."""
    inner: tuple[BaseException, ...] = getattr(error, "exceptions", ())
    return _single(inner[0]) if len(inner) == 1 else error


def _seen(error: BaseException, patience: float) -> str:
    if isinstance(error, BrokenRule):
        return str(error)
    if type(error) is TimeoutError:
        return f"nothing happened within {patience} s: something waits for ever"
    return f"{type(error).__name__}: {error}"


class Conformance:
    """The checks of one contract; inherit from a subclass of this, and give it a part of yours.

    Under pytest each check is a test, run on the backends that `anyio_backend` names. Without
    pytest, `await sandboxpool.testing.check(MyKit())` runs them all.

    Attributes:
        patience: Seconds that a check waits before it says that nothing happens any more.
    """

    patience: ClassVar[float] = 10.0

    __sandboxpool_kit__: ClassVar[bool] = True  # for the pytest plugin

    @property
    def short_while(self) -> float:
        """Seconds for what should take no time: a part of the patience of the whole check."""
        return self.patience / 4

    @classmethod
    def names(cls) -> Iterator[str]:
        """Yield the names of the checks, in the order in which they are written."""
        seen = set()
        for base in reversed(cls.__mro__):
            for name in vars(base):
                method = getattr(cls, name)
                if name not in seen and getattr(method, "__sandboxpool_check__", None) is True:
                    seen.add(name)
                    yield name


async def broken_rules(kit: Conformance) -> list[ConformanceError]:
    """Run every check of a kit, in the running event loop.

    Returns:
        What the checks have found, in the order in which they are written.
    """
    found = []
    for name in kit.names():
        try:
            await getattr(kit, name)()
        except ConformanceError as error:
            found.append(error)
        except unittest.SkipTest:
            pass
    return found


async def check_conformance(kit: Conformance) -> None:
    """Run every check of a kit, in the running event loop.

    Raises:
        ConformanceError: The first rule that is broken; its message counts the others.
    """
    found = await broken_rules(kit)
    if found:
        first = found[0]
        if len(found) > 1:
            others = ", ".join(error.check for error in found[1:])
            first.args = (f"{first}\n  and {len(found) - 1} more: {others}",)
        raise first


def expect(condition: object, seen: str) -> None:
    """End the running check with what was *seen*, unless *condition* holds."""
    if not condition:
        raise BrokenRule(seen)


def leave_out(why: str) -> None:
    """End the running check as one that does not apply."""
    raise unittest.SkipTest(why)


async def passes(count: int) -> None:
    """Let the event loop run through its ready tasks *count* times."""
    for _ in range(count):
        await anyio.lowlevel.checkpoint()


async def settle() -> None:
    """Let everything happen that needs no passing of time."""
    await passes(_PASSES)


async def until(condition: Callable[[], object]) -> None:
    """Wait until a condition holds, as long as the check has patience."""
    await settle()
    while not condition():  # noqa: ASYNC110 - nobody tells when it does
        await anyio.sleep(0.001)
