"""`--sandboxpool-leaks`, by running pytest in pytest."""

from __future__ import annotations

import re
from textwrap import dedent

import fastapi.testclient  # noqa: F401 - imported once, not by each run in this process
import pytest

pytest_plugins = ["pytester"]

SHOP = """
    from fastapi import FastAPI

    class User:
        def __init__(self, name):
            self.name = name

    current_user = None
    client = None
    password = "none"
    cart = ["bread"]
    hits = {}

    def get_user():
        return "somebody"

    app = FastAPI()
    app.state.greeting = "Hello"

    @app.get("/add/{item}")
    async def add(item: str):
        cart.append(item)
        app.state.last = item
        return cart

    @app.get("/greet")
    async def greet():
        return app.state.greeting
"""

INI = """
    [pytest]
    addopts = -p no:cacheprovider -p no:asyncio -p no:xdist -p no:hypothesispytest
    pythonpath = .
    sandboxpool_app = shop:app
"""


@pytest.fixture
def shop(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A directory with an app of somebody."""
    # With these, pytest shows a report a second time, in its summary.
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("BUILD_NUMBER", raising=False)
    (pytester.path / "shop.py").write_text(dedent(SHOP))
    pytester.makeini(INI)
    return pytester


def leaks(result: pytest.RunResult) -> list[str]:
    """Return the lines of a report that name leaks."""
    lines = [line[4:] if line.startswith("E   ") else line for line in result.outlines]
    return [line.strip() for line in lines if re.match(r"  \S.* (was|changed|grows)", line)]


def test_everything_that_a_test_leaves(shop: pytest.Pytester) -> None:
    """A test that changes globals, containers, states or overrides fails, and each is named."""
    shop.makepyfile(
        """
        import shop

        def test_leaves_much():
            shop.current_user = shop.User("ada")
            shop.cart.append("apple")
            shop.hits["/"] = 1
            shop.password = "hunter2"
            shop.User.table = "users"
            shop.app.state.greeting = "Bye"
            shop.app.state.extra = [1]
            shop.app.dependency_overrides[shop.get_user] = lambda: "ada"

        def test_leaves_nothing():
            assert shop.cart == ["bread", "apple"]

        def test_takes_away():
            del shop.cart[:]
        """
    )
    result = shop.runpytest_inprocess("--sandboxpool-leaks")
    result.assert_outcomes(passed=3, errors=2)
    assert leaks(result) == [
        "shop.current_user changed from None to <shop.User name='ada'>",
        "shop.password changed from <hidden> to <hidden>",
        "shop.User.table was added: 'users'",
        "shop.cart[1] was added: 'apple'",
        'shop.hits["/"] was added: 1',
        "shop.app.state.greeting changed from 'Hello' to 'Bye'",
        "shop.app.state.extra was added: [1]",
        "shop.app.dependency_overrides[get_user] was added: "
        "<function test_leaves_much.<locals>.<lambda>>",
        "shop.cart[0] was removed: 'bread'",
        "shop.cart[1] was removed: 'apple'",
    ]
    result.stdout.fnmatch_lines(
        [
            "*ERROR at teardown of test_leaves_much*",
            "what all tests share is not as it was before this one:",
            "Undo it in the test: in a fixture with `yield`, or with monkeypatch.*",
        ]
    )
    result.stdout.no_fnmatch_line("*hunter2*")


def test_what_is_undone(shop: pytest.Pytester) -> None:
    """What a test, or a fixture of it, puts back is no leak, nor what a module imports or makes."""
    (shop.path / "late.py").write_text("")
    shop.makepyfile(
        """
        import pytest
        import shop

        @pytest.fixture
        def overridden():
            shop.app.dependency_overrides[shop.get_user] = lambda: "ada"
            yield
            shop.app.dependency_overrides.clear()

        @pytest.fixture(autouse=True)
        def everywhere():
            shop.hits["/"] = 1
            yield
            shop.hits.clear()

        def test_undoes(overridden, monkeypatch):
            monkeypatch.setattr(shop, "current_user", "ada")
            monkeypatch.setitem(shop.hits, "/", 1)

        def test_first_use():
            import late
            shop.client = iter([])
            shop.late = late
        """
    )
    shop.runpytest_inprocess("--sandboxpool-leaks").assert_outcomes(passed=2)


def test_fixtures_of_wider_scopes(shop: pytest.Pytester) -> None:
    """What a fixture of a module, a class or the run sets up and tears down is no test's leak."""
    shop.makepyfile(
        """
        import pytest
        import shop

        @pytest.fixture(scope="module", autouse=True)
        def user():
            shop.current_user = "ada"
            yield
            shop.current_user = None

        @pytest.fixture(scope="session")
        def cart():
            shop.cart.append("of the run")
            yield
            shop.cart.pop()

        def test_one(cart):
            assert shop.current_user == "ada"

        def test_two():
            assert shop.cart == ["bread", "of the run"]
        """
    )
    shop.runpytest_inprocess("--sandboxpool-leaks").assert_outcomes(passed=2)


@pytest.mark.parametrize("isolation", ["clone", "module"])
def test_requests_in_a_sandbox(shop: pytest.Pytester, isolation: str) -> None:
    """What requests leave in their sandbox is told, and what the test itself does there is not."""
    shop.makepyfile(
        f"""
        import pytest
        import shop
        from fastapi.testclient import TestClient

        pytestmark = pytest.mark.sandboxpool(isolation="{isolation}")

        def test_leaves(sandbox):
            sandbox.app.state.greeting = "Hi"
            sandbox.app.dependency_overrides[len] = len
            client = TestClient(sandbox)
            assert client.get("/greet").json() == "Hi"
            client.get("/add/apple")

        def test_leaves_nothing(sandbox):
            assert TestClient(sandbox).get("/greet").json() == "Hello"
        """
    )
    result = shop.runpytest_inprocess("--sandboxpool-leaks")
    result.assert_outcomes(passed=2, errors=1)
    assert sorted(leaks(result)) == [
        "app.state.last was added: 'apple'",
        "shop.cart[1] was added: 'apple'",
    ]
    result.stdout.fnmatch_lines(
        "its requests have left in their sandbox, for whoever comes without one:"
    )


def test_warn(shop: pytest.Pytester) -> None:
    """With `warn` a test that leaves something behind passes, and a warning names it."""
    shop.makepyfile("import shop\ndef test_leaves(): shop.cart.append('apple')")
    # In a process of its own: here, warnings are errors.
    result = shop.runpytest_subprocess("--sandboxpool-leaks=warn")
    result.assert_outcomes(passed=1, warnings=1)
    result.stdout.fnmatch_lines(
        ["*PytestWarning: what all tests share is not as it was *", "*shop.cart[[]1] was added: *"]
    )


@pytest.mark.parametrize(
    ("line", "options", "errors"),
    [
        ("", (), 0),
        ("sandboxpool_leaks = fail", (), 1),
        ("sandboxpool_leaks = fail", ("--sandboxpool-leaks=off",), 0),
        ("", ("--sandboxpool-leaks=fail",), 1),
        ("sandboxpool_leaks = fail\nsandboxpool_ignore =\n    shop.nothing\n    shop.c*t", (), 0),
        ("sandboxpool_leaks = fail\nsandboxpool_ignore = shop.hits", (), 1),
    ],
)
def test_switches(shop: pytest.Pytester, line: str, options: tuple[str, ...], errors: int) -> None:
    """The command line counts more than the configuration, and ignored names are no leaks."""
    ini = shop.path / "tox.ini"
    ini.write_text(ini.read_text().rstrip() + "\n" + line + "\n")
    shop.makepyfile("import shop\ndef test_leaves(): shop.cart.append('apple')")
    shop.runpytest_inprocess(*options).assert_outcomes(passed=1, errors=errors)


def test_marker(shop: pytest.Pytester) -> None:
    """A marker switches it off for a test, or names what is no leak there."""
    shop.makepyfile(
        """
        import pytest
        import shop

        @pytest.mark.sandboxpool(leaks="off")
        def test_off():
            shop.cart.append("apple")

        @pytest.mark.sandboxpool(ignore=["shop.cart"])
        def test_ignored(sandbox):
            shop.cart.append("pear")

        @pytest.mark.sandboxpool(leaks="no")
        def test_wrong():
            pass
        """
    )
    result = shop.runpytest_inprocess("--sandboxpool-leaks")
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines("sandbox: leaks='no': give one of 'off', 'warn', 'fail'.")


def test_private_modules_leave_the_plain_ones_alone(shop: pytest.Pytester) -> None:
    """With private modules, those that the tests import are looked at as ever."""
    shop.makepyfile(
        """
        import pytest
        import shop

        @pytest.mark.sandboxpool(isolation="module")
        def test_leaves(sandbox):
            shop.cart.append("apple")

        def test_after_that():
            shop.cart.append("pear")
        """
    )
    result = shop.runpytest_inprocess("--sandboxpool-leaks")
    result.assert_outcomes(passed=2, errors=2)
    assert leaks(result) == ["shop.cart[1] was added: 'apple'", "shop.cart[2] was added: 'pear'"]


def test_many_leaks_are_counted(shop: pytest.Pytester) -> None:
    """A test that leaves very much behind is told the first twenty things."""
    shop.makepyfile("import shop\ndef test_leaves(): shop.cart.extend(map(str, range(50)))")
    result = shop.runpytest_inprocess("--sandboxpool-leaks")
    assert len(leaks(result)) == 20
    result.stdout.fnmatch_lines("*  and 30 more")


def test_without_an_app(shop: pytest.Pytester) -> None:
    """Who does not say which app is told so before any test runs; packages do as well."""
    shop.makeini(INI.replace("sandboxpool_app = shop:app", ""))
    shop.makepyfile("import shop\ndef test_leaves(): shop.cart.append('apple')")
    result = shop.runpytest_inprocess("--sandboxpool-leaks")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        "ERROR: sandboxpool-leaks=fail: say whose state is looked at, with `sandboxpool_app = *"
    )
    result = shop.runpytest_inprocess("--sandboxpool-leaks", "-o", "sandboxpool_packages=shop")
    result.assert_outcomes(passed=1, errors=1)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            ["--sandboxpool-leaks", "test_shop.py"],
            "*argument --sandboxpool-leaks: give one of off, warn, fail, not 'test_shop.py'. "
            "Before a path, write --sandboxpool-leaks=fail.",
        ),
        (["-o", "sandboxpool_leaks=yes"], "ERROR: sandboxpool_leaks = yes: give one of off, *"),
    ],
)
def test_wrong_values(shop: pytest.Pytester, options: list[str], text: str) -> None:
    """A value that it does not know is refused, and so is a path that was taken for one."""
    shop.makepyfile("def test(): pass")
    result = shop.runpytest_subprocess(*options)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(text)
