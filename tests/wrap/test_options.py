"""The options of `wrap()`: each wrong value is refused at once, with the remedy."""

from __future__ import annotations

import gc
import inspect
import re
from typing import Any, get_type_hints

import pytest

from sandboxpool import AppTypeError, OptionError, wrap
from sandboxpool._app_options import WrapOptions

from .test_load import make_starlette, raw


class HalfFactory:
    """Lacks what a sandbox factory has."""

    def create(self) -> None: ...


class WholeFactory:
    """Has everything that a sandbox factory has."""

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def create(self) -> Any: ...

    def reset(self, sandbox: Any) -> None: ...

    def destroy(self, sandbox: Any) -> None: ...


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"isolation": "clown"}, "isolation='clown': give one of 'auto', 'clone', 'factory'"),
        ({"isolation": None}, "isolation=None: give one of 'auto'"),
        ({"isolation": HalfFactory()}, "this one lacks start, stop, reset, destroy"),
        ({"isolation": "factory"}, "pass the function that makes it, with factory=True"),
        ({"lifespan": "twice"}, "lifespan='twice': give one of 'auto', 'once', 'each', 'off'"),
        ({"lifespan": ["once"]}, "lifespan=['once']: give one of"),
        ({"reset": "never"}, "reset='never': give one of 'restore', 'fresh', 'keep', or a funct"),
        ({"reset": None}, "reset=None: give one of"),
        ({"stats": "stats"}, "stats='stats': give a path like '/stats', or None"),
        ({"stats": True}, "stats=True: give a path"),
        ({"isolate_context": 1}, "isolate_context=1: give True or False"),
        ({"execution_timeout": 0}, "execution_timeout=0: give a number of seconds, more than 0"),
        ({"execution_timeout": "5"}, "execution_timeout='5': give a number"),
        ({"slow_after": -1}, "slow_after=-1: give a number of seconds, more than 0"),
        ({"stall_after": float("nan")}, "stall_after=nan: give a number"),
        ({"drain_timeout": -1}, "drain_timeout=-1: give a number of seconds, 0 or more"),
        ({"defer_timeout": True}, "defer_timeout=True: give a number"),
        ({"min_size": -1}, "min_size=-1: give a whole number of at least 0"),
        ({"max_size": 0}, "max_size=0: give a whole number of at least 1"),
        ({"max_size": 2.5}, "max_size=2.5: give a whole number"),
        ({"min_size": 3, "max_size": 2}, "min_size=3 is more than max_size=2: raise max_size"),
        ({"max_waiting": -1}, "max_waiting=-1: give a whole number of at least 0, or None"),
        ({"max_uses": 0}, "max_uses=0: give a whole number of at least 1, or None"),
        ({"max_creating": 0}, "max_creating=0: give a whole number"),
        ({"max_creating": None}, "max_creating=None: give a whole number"),
        ({"acquire_timeout": -1}, "acquire_timeout=-1: give a number of seconds, 0 or more"),
        ({"max_lifetime": 0}, "max_lifetime=0: give a number of seconds, more than 0"),
        ({"max_idle": "x"}, "max_idle='x': give a number"),
        ({"create_timeout": 0}, "create_timeout=0: give a number"),
        ({"reset_timeout": 0}, "reset_timeout=0: give a number"),
        ({"destroy_timeout": 0}, "destroy_timeout=0: give a number"),
        ({"keep": "state.cache"}, "keep='state.cache': give several names, as in keep=('state.cac"),
        ({"share": "state.x"}, "share='state.x': give several names"),
        ({"name": 3}, "name=3: give a string"),
        ({"factory": "yes"}, "factory='yes': give True or False"),
        ({"isolation": "module"}, "pass an import string, like 'shop.main:app'"),
        ({"packages": ("shop",)}, "is what isolation='module' does, but isolation='auto'"),
        ({"shared": ("shop.db",)}, "packages= and shared= say which modules each sandbox has"),
        ({"packages": "shop"}, "packages='shop': give several names, as in packages=('shop',)"),
        ({"leaks": "warn"}, "leaks='warn': give one of 'ignore', 'log', 'retire', 'raise'"),
        ({"ignore": "x"}, "ignore='x': give several names"),
        ({"ignore": (3,)}, "ignore has 3: give names of leaks, like 'shop.state.hits'"),
        ({"ignore": ("",)}, "ignore has '', which can be the name of no leak: give one as reports"),
        ({"ignore": (" shop.hits",)}, "ignore has ' shop.hits', which can be the name of no leak"),
        ({"ignore": (".hits",)}, "ignore has '.hits', which can be the name of no leak"),
        ({"ignore": ("shop..hits",)}, "ignore has 'shop..hits', which can be the name of no leak"),
        ({"ignore": ("shop['x",)}, "which can be the name of no leak"),
        ({"ignore": ("shop]",)}, "ignore has 'shop]', which can be the name of no leak"),
        ({"hide_secrets": "no"}, "hide_secrets='no': give True or False"),
        ({"verify": 1.5}, "verify=1.5: give the share of the requests, from 0.0 to 1.0"),
        ({"verify": True}, "verify=True: give the share"),
        ({"verify": "all"}, "verify='all': give the share"),
        ({"watchdog": object()}, "lacks started, ended, changed, stop"),
    ],
)
def test_refused(options: dict[str, Any], text: str) -> None:
    """A wrong value is refused when the app is wrapped; the error names it and the remedy."""
    with pytest.raises(OptionError, match=re.escape(text)) as info:
        wrap(raw, **options)
    assert isinstance(info.value, ValueError)


def test_refused_with_factory() -> None:
    """A factory has no use for a policy on middleware."""
    with pytest.raises(OptionError, match="middleware= is for isolation='clone'"):
        wrap(make_starlette, factory=True, middleware={"X": "share"})


@pytest.mark.parametrize(
    "option", [{"keep": ["x"]}, {"share": ["x"]}, {"middleware": {"X": "copy"}}]
)
def test_refused_with_custom(option: dict[str, Any]) -> None:
    """An isolation of the user's decides for itself what is private."""
    with pytest.raises(OptionError, match="decides for itself what is private"):
        wrap(raw, isolation=WholeFactory(), **option)


@pytest.mark.parametrize("typo", ["max_sizes", "timeout", "isolaton"])
def test_typos(typo: str) -> None:
    """An option that does not exist is no silent default."""
    with pytest.raises(TypeError, match=typo):
        wrap(raw, **{typo: 3})  # type: ignore[call-overload]


def test_positional() -> None:
    """Nothing but the app can be given by position."""
    with pytest.raises(TypeError):
        wrap(raw, True)  # type: ignore[call-overload]


def test_sizes() -> None:
    """Defaults give way to what is asked for: a single size never contradicts the other one."""
    for options, sizes in [
        ({}, (16, 1000)),
        ({"max_size": 5}, (5, 5)),
        ({"min_size": 2000}, (2000, 2000)),
        ({"min_size": 0}, (0, 1000)),
    ]:
        pool = wrap(raw, **options).wrap_options.pool  # type: ignore[call-overload]
        assert (pool["min_size"], pool["max_size"]) == sizes
    pool = wrap(make_starlette, factory=True).wrap_options.pool
    assert (pool["min_size"], pool["max_size"]) == (1, 40)


def test_fresh() -> None:
    """`reset="fresh"` is one use for each sandbox, whatever `max_uses` says."""
    assert wrap(raw, reset="fresh", max_uses=1).wrap_options.pool["max_uses"] == 1


def test_types_match() -> None:
    """What the type checker knows of options is what `wrap()` takes and documents."""
    parameters = inspect.signature(wrap).parameters
    typed = set(get_type_hints(WrapOptions)) | {"app", "factory", "isolation", "wsgi"}
    assert set(parameters) == typed
    documented = inspect.getdoc(wrap) or ""
    missing = [name for name in parameters if f"    {name}: " not in documented]
    assert missing == []


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"keep": 5}, r"keep=5: give names, as in keep=\('state\.cache',\)"),
        ({"middleware": [1]}, r"middleware=\[1\]: give a policy for each class of middleware"),
        (
            {"reset": "fresh", "max_uses": 5},
            r"max_uses=5 cannot go with reset='fresh', which uses no sandbox twice",
        ),
    ],
)
def test_what_cannot_be_taken(options: dict[str, Any], text: str) -> None:
    """A value of the wrong kind, or one that contradicts another, is refused by name."""
    with pytest.raises(OptionError, match=text):
        wrap(make_starlette(), **options)


def test_an_async_factory_of_a_template() -> None:
    """An async factory cannot make a template; the error says what to leave out."""

    async def make() -> Any: ...

    with pytest.raises(AppTypeError, match=r"is an async factory.*leave out isolation="):
        wrap(make, factory=True, isolation="clone")


async def test_keep_state() -> None:
    """`keep=("state",)` is refused, with what to write instead."""
    with pytest.raises(OptionError, match=r"keep='state': name what shall survive below it"):
        await wrap(make_starlette(), keep=("state",), stall_after=None).open()


async def test_gc_freeze() -> None:
    """The first sandboxes are frozen, and new objects are collected less often than before."""
    before = gc.get_threshold()
    frozen = gc.get_freeze_count()
    try:
        async with wrap(make_starlette(), min_size=20, gc_freeze=True):
            assert gc.isenabled()
            assert gc.get_freeze_count() > frozen
            assert gc.get_threshold()[0] == 10_000
    finally:
        gc.unfreeze()
        gc.set_threshold(*before)
