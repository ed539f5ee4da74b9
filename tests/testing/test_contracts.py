"""The kits quote the contracts as they are."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys

import pytest

import sandboxpool.abc
from sandboxpool import testing

KITS = [getattr(testing, name) for name in testing.__all__ if name.endswith("Conformance")]


@pytest.mark.parametrize(
    ("kit", "name"),
    [pytest.param(kit, name, id=f"{kit.__name__}-{name}") for kit in KITS for name in kit.names()],
)
def test_checks_quote_the_contract(kit: type[testing.Conformance], name: str) -> None:
    """The sentence that a check quotes stands in `sandboxpool.abc`, word for word."""
    text = inspect.getdoc(getattr(kit, name)) or ""
    quoted = re.search(r'Contract: "(.*?)"\s*$', text, re.DOTALL)
    assert quoted is not None
    assert " ".join(quoted[1].split()) in " ".join(inspect.getsource(sandboxpool.abc).split())


def test_names_of_the_package() -> None:
    """Each name of `sandboxpool.testing` is there, `dir()` has it, and others are not."""
    assert {*testing.__all__} <= {*dir(testing)}
    assert all(getattr(testing, name).__doc__ for name in testing.__all__)
    with pytest.raises(AttributeError, match="has no attribute 'check_all'"):
        testing.check_all  # noqa: B018


def test_kits_need_no_pytest() -> None:
    """`import sandboxpool.testing` loads neither pytest nor Trio nor a framework."""
    code = (
        "from sandboxpool.testing import *; import sys; "
        "print(*[m for m in ('pytest', 'trio', 'starlette', 'fastapi') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.split() == []
