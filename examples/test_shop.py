"""
Test a shop with a private app for each test.

What it shows: this app keeps a cart in a module global and a user on `app.state`, and its tests
put a fake in place of the database. With the fixture `sandbox` each test has all of that for
itself, for the price of a lease: no test cleans up, and their order does not matter. The last two
tests are the control: on the app itself, what the first one leaves the second one finds.

Install:  pip install "sandboxpool[fastapi]" pytest httpx2
Run:      python examples/test_shop.py       or, as any file of tests, pytest examples/test_shop.py

You see:

    test_cart_of_ada PASSED
    test_cart_of_bob PASSED
    test_fake_database PASSED
    test_real_database PASSED
    test_two_shops_in_one_test PASSED
    test_shared_app_is_written_to PASSED
    test_shared_app_has_not_forgotten PASSED
"""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Annotated

import pytest
from fastapi import Depends, FastAPI
from fastapi.testclient import TestClient

from sandboxpool.testing import LeasedSandbox, SandboxPool

# --- the app; in real life `shop/main.py`, and `sandboxpool_app = shop.main:app` in pytest.ini ----

app = FastAPI()
cart: list[str] = []


def get_price() -> int:
    """Ask a database that no test has."""
    raise ConnectionError("there is no database")


@app.post("/cart/{user}/{item}")
async def add(user: str, item: str) -> list[str]:
    app.state.user = user
    cart.append(item)
    return cart


@app.get("/user")
async def user() -> str | None:
    return getattr(app.state, "user", None)


@app.get("/price")
async def price(price: Annotated[int, Depends(get_price)]) -> int:
    return price


# --- the tests --------------------------------------------------------------------------------

# A module of its own for each test. The module of a larger app has a dot in its name, or several.
pytestmark = pytest.mark.sandboxpool(f"{__name__}:app", isolation="module")


def test_cart_of_ada(sandbox: LeasedSandbox) -> None:
    assert TestClient(sandbox).post("/cart/ada/apple").json() == ["apple"]
    assert sandbox.app.state.user == "ada"


def test_cart_of_bob(sandbox: LeasedSandbox) -> None:
    client = TestClient(sandbox)
    assert client.get("/user").json() is None
    assert client.post("/cart/bob/pear").json() == ["pear"]
    assert cart == []  # that of this module, which no request has touched


def test_fake_database(sandbox: LeasedSandbox) -> None:
    sandbox.app.dependency_overrides[sandbox.own(get_price)] = lambda: 5
    assert TestClient(sandbox).get("/price").json() == 5


def test_real_database(sandbox: LeasedSandbox) -> None:
    with pytest.raises(ConnectionError):
        TestClient(sandbox).get("/price")


def test_two_shops_in_one_test(sandbox_pool: SandboxPool) -> None:
    here = f"{__name__}:app"
    with (
        sandbox_pool.lease(here, isolation="module") as one,
        sandbox_pool.lease(here, isolation="module") as other,
    ):
        assert TestClient(one).post("/cart/ada/apple").json() == ["apple"]
        assert TestClient(other).post("/cart/bob/pear").json() == ["pear"]


def test_shared_app_is_written_to() -> None:
    assert TestClient(app).post("/cart/ada/apple").json() == ["apple"]


def test_shared_app_has_not_forgotten() -> None:
    assert TestClient(app).post("/cart/bob/pear").json() == ["apple", "pear"]


if __name__ == "__main__":
    run = [sys.executable, "-m", "pytest", "-v", "-p", "no:cacheprovider", __file__]
    done = subprocess.run(run, capture_output=True, text=True, check=False)
    for name, outcome in re.findall(r"::(\w+) ([A-Z]+)", done.stdout):
        print(name, outcome)
    raise SystemExit(done.returncode)
