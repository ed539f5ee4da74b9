"""The pytest plugin, by running pytest in pytest."""

from __future__ import annotations

import fastapi.testclient  # noqa: F401 - imported once, not by each run in this process
import pytest

pytest_plugins = ["pytester"]

SHOP = {
    "shop/__init__.py": "",
    "shop/state.py": """
        cart = []

        def get_user():
            return "a real user"
    """,
    "shop/main.py": """
        import sys
        from contextlib import asynccontextmanager

        from fastapi import Depends, FastAPI, Request, WebSocket

        from shop import state
        from shop.state import get_user

        @asynccontextmanager
        async def lifespan(app):
            print("shop starts", file=sys.stderr)
            yield {"from_lifespan": [1]}
            print("shop stops", file=sys.stderr)

        app = FastAPI(lifespan=lifespan)

        @app.post("/cart")
        async def add(request: Request, user: str = Depends(get_user)):
            state.cart.append(user)
            app.state.last = user
            return {"cart": state.cart, "from_lifespan": request.state.from_lifespan}

        @app.get("/last")
        async def last():
            return getattr(app.state, "last", None)

        @app.websocket("/echo")
        async def echo(socket: WebSocket):
            await socket.accept()
            await socket.send_text(await socket.receive_text())
            await socket.close()
    """,
}

TESTS = """
    from fastapi.testclient import TestClient
    from shop.state import get_user

    def add(app):
        return TestClient(app).post("/cart").json()["cart"]

    def test_with_override(sandbox):
        sandbox.app.dependency_overrides[sandbox.own(get_user)] = lambda: "a test user"
        assert add(sandbox) == ["a test user"]
        assert add(sandbox) == ["a test user", "a test user"]
        assert sandbox.app.state.last == "a test user"

    def test_without_override(sandbox):
        assert TestClient(sandbox).get("/last").json() is None
        assert add(sandbox) == ["a real user"]
"""

INI = """
    [pytest]
    addopts = -p no:cacheprovider -p no:asyncio -p no:xdist -p no:hypothesispytest
    pythonpath = .
    sandboxpool_app = shop.main:app
    filterwarnings = error
"""


@pytest.fixture
def shop(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> pytest.Pytester:
    """A directory with an app of somebody, and a configuration that names it."""
    # With these, pytest shows a report a second time, in its summary.
    monkeypatch.delenv("CI", raising=False)
    monkeypatch.delenv("BUILD_NUMBER", raising=False)
    for name, text in SHOP.items():
        path = pytester.path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text("\n".join(line[8:] for line in text.splitlines()))
    pytester.makeini(INI)
    return pytester


def configure(shop: pytest.Pytester, *lines: str) -> None:
    """Add lines to the configuration."""
    ini = shop.path / "tox.ini"
    ini.write_text("\n".join([ini.read_text().rstrip(), *lines, ""]))


# --- what it is for ---------------------------------------------------------------------------


def test_private_modules(shop: pytest.Pytester) -> None:
    """With `isolation=module` each test has overrides, state and module globals of its own."""
    configure(shop, "sandboxpool_isolation = module")
    shop.makepyfile(TESTS)
    shop.runpytest_inprocess().assert_outcomes(passed=2)


def test_shared_app_is_not_private(shop: pytest.Pytester) -> None:
    """The control: the same tests on the app itself see each other."""
    shop.makepyfile(
        "import pytest\n"
        "@pytest.fixture\n"
        "def sandbox():\n"
        "    import shop.main\n"
        "    class Shared:\n"
        "        app, own = shop.main.app, staticmethod(lambda original: original)\n"
        "        async def __call__(self, *args):\n"
        "            await shop.main.app(*args)\n"
        "    with TestClient(shop.main.app):\n"
        "        shop.main.app.state.from_lifespan = [1]\n"
        "        yield Shared()\n"
        + "\n".join(line[4:] for line in TESTS.replace("request.state", "app.state").splitlines())
    )
    main = shop.path / "shop/main.py"
    main.write_text(main.read_text().replace("request.state.from_lifespan", "None"))
    shop.runpytest_inprocess().assert_outcomes(passed=1, failed=1)


def test_clones(shop: pytest.Pytester) -> None:
    """With clones, the app and its state are private, and modules are shared."""
    shop.makepyfile(TESTS.replace("assert add(sandbox) ==", "assert add(sandbox)[-1:] == ['a'] or"))
    shop.runpytest_inprocess().assert_outcomes(passed=2)


def test_lifespan_runs_once(shop: pytest.Pytester) -> None:
    """The app starts before the first test that wants it, and stops after the last."""
    shop.makepyfile(
        """
        from fastapi.testclient import TestClient

        def test_none():
            pass

        def test_one(sandbox):
            with TestClient(sandbox) as client:
                assert client.app_state == {"from_lifespan": [1]}
                client.post("/cart").json()["from_lifespan"].append(2)

        def test_two(sandbox):
            with TestClient(sandbox) as client:
                assert client.post("/cart").json()["from_lifespan"] == [1]
        """
    )
    result = shop.runpytest_subprocess("-s")
    result.assert_outcomes(passed=3)
    assert result.errlines == ["shop starts", "shop stops"]


def test_websocket(shop: pytest.Pytester) -> None:
    """A websocket goes through to the private app and back."""
    shop.makepyfile(
        """
        from fastapi.testclient import TestClient

        def test_echo(sandbox):
            with TestClient(sandbox).websocket_connect("/echo") as socket:
                socket.send_text("hello")
                assert socket.receive_text() == "hello"
        """
    )
    shop.runpytest_inprocess().assert_outcomes(passed=1)


def test_error_of_an_endpoint(shop: pytest.Pytester) -> None:
    """What an endpoint raises reaches the test, as it does with the app itself."""
    shop.makepyfile(
        """
        import pytest
        from fastapi.testclient import TestClient

        def test_error(sandbox):
            @sandbox.app.get("/fail")
            async def fail():
                raise ZeroDivisionError("of the endpoint")
            with pytest.raises(ZeroDivisionError, match="of the endpoint"):
                TestClient(sandbox).get("/fail")

        def test_route_is_gone(sandbox):
            assert TestClient(sandbox).get("/fail").status_code == 404
        """
    )
    shop.runpytest_inprocess().assert_outcomes(passed=2)


def test_context_of_a_request(shop: pytest.Pytester) -> None:
    """Inside of a request, `current_lease()`, its context and what is deferred work as ever."""
    shop.makepyfile(
        """
        import sandboxpool
        from fastapi.testclient import TestClient

        def test_context(sandbox):
            seen = []
            @sandbox.app.get("/context")
            async def context():
                seen.append(sandboxpool.context.get_or_set("key", lambda: len(seen)))
                sandboxpool.context.defer(seen.append, "deferred")
                return sandboxpool.current_lease().path
            client = TestClient(sandbox)
            assert [client.get("/context").json() for _ in range(2)] == ["/context"] * 2
            assert seen == [0, "deferred", 2, "deferred"]
        """
    )
    shop.runpytest_inprocess().assert_outcomes(passed=1)


def test_monkeypatch(shop: pytest.Pytester) -> None:
    """`import_module()` returns the private copy, and a patch of it is gone with the test."""
    configure(shop, "sandboxpool_isolation = module")
    shop.makepyfile(
        """
        import pytest
        import sandboxpool
        from fastapi.testclient import TestClient
        import shop.main
        import shop.state

        def test_patched(sandbox, monkeypatch):
            state = sandbox.import_module("shop.state")
            assert sorted(sandbox.modules) == ["shop", "shop.main", "shop.state"]
            assert state is sandbox.modules["shop.state"] is not shop.state
            monkeypatch.setattr(state, "cart", ["patched"])
            cart = TestClient(sandbox).post("/cart").json()["cart"]
            assert cart == ["patched", "a real user"]
            assert shop.state.cart == []
            assert sandbox.own(shop.state.get_user) is state.get_user
            assert sandbox.own(len) is len

        def test_not_patched(sandbox):
            assert TestClient(sandbox).post("/cart").json()["cart"] == ["a real user"]

        def test_module_of_others(sandbox):
            with pytest.raises(sandboxpool.OptionError, match="no module 'json' of its own"):
                sandbox.import_module("json")

        @pytest.mark.sandboxpool(isolation="clone")
        def test_shared_modules(sandbox):
            assert sandbox.modules == {}
            assert sandbox.own(shop.state.get_user) is shop.state.get_user
            with pytest.raises(sandboxpool.OptionError, match="'clone', which shares modules"):
                sandbox.import_module("shop.state")
        """
    )
    shop.runpytest_inprocess().assert_outcomes(passed=4)


# --- async tests, other plugins ---------------------------------------------------------------

ASYNC = """
    import httpx2
    import pytest

    async def get(app, path):
        transport = httpx2.ASGITransport(app)
        async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
            return (await client.get(path)).json()

    @pytest.mark.MARK
    @pytest.mark.parametrize("name", ["ada", "bob"])
    async def test_last(sandbox, name):
        assert await get(sandbox, "/last") is None
        sandbox.app.state.last = name
        assert await get(sandbox, "/last") == name
"""


def test_anyio(shop: pytest.Pytester) -> None:
    """Async tests of anyio's plugin run on asyncio and Trio, and so does the app."""
    shop.makepyfile(
        ASYNC.replace("MARK", "anyio")
        + """
    import sniffio

    @pytest.mark.anyio
    async def test_backend(sandbox, anyio_backend_name):
        @sandbox.app.get("/backend")
        async def backend():
            return sniffio.current_async_library()
        assert await get(sandbox, "/backend") == anyio_backend_name
        """
    )
    shop.runpytest_subprocess("-k", "asyncio or trio").assert_outcomes(passed=6)


@pytest.mark.slow
def test_pytest_asyncio(shop: pytest.Pytester) -> None:
    """Async tests of pytest-asyncio work, in its strict and in its auto mode."""
    shop.makeini(INI.replace(" -p no:asyncio", ""))
    configure(shop, "asyncio_default_fixture_loop_scope = function")
    shop.makepyfile(ASYNC.replace("MARK", "asyncio"))
    shop.runpytest_subprocess("--asyncio-mode=strict").assert_outcomes(passed=2)
    shop.runpytest_subprocess("--asyncio-mode=auto").assert_outcomes(passed=2)


def test_loop_of_the_test(shop: pytest.Pytester) -> None:
    """With `loop="test"` the app runs in the test's own loop, where what a test injects works."""
    shop.makepyfile(
        """
        import anyio
        import httpx2
        import pytest

        async def wait(sandbox):
            gate = anyio.Event()
            @sandbox.app.get("/wait")
            async def wait():
                await gate.wait()
            transport = httpx2.ASGITransport(sandbox)
            async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(client.get, "/wait")
                    await anyio.wait_all_tasks_blocked()
                    gate.set()

        @pytest.mark.anyio
        @pytest.mark.sandboxpool(loop="test")
        async def test_wait(sandbox):
            with anyio.fail_after(5):
                await wait(sandbox)
        """
    )
    shop.runpytest_subprocess("-k", "asyncio or trio").assert_outcomes(passed=2)


@pytest.mark.slow
def test_xdist(shop: pytest.Pytester) -> None:
    """With pytest-xdist each worker has sandboxes of its own."""
    shop.makeini(INI.replace(" -p no:xdist", ""))
    configure(shop, "sandboxpool_isolation = module")
    shop.makepyfile(TESTS)
    shop.runpytest_subprocess("-n", "2").assert_outcomes(passed=2)


@pytest.mark.slow
def test_coverage(shop: pytest.Pytester) -> None:
    """pytest-cov sees the lines that run in private modules, under their own names."""
    configure(shop, "sandboxpool_isolation = module")
    shop.makepyfile(TESTS)
    result = shop.runpytest_subprocess("--cov=shop", "--cov-report=term")
    result.assert_outcomes(passed=2)
    result.stdout.re_match_lines(
        [r"shop/main\.py +\d+ +[0-4] +8\d%|shop/main\.py +\d+ +\d+ +\d\d%"]
    )
    result.stdout.re_match_lines([r"shop/state\.py +\d+ +0 +100%"])


def test_plugin_switched_off(shop: pytest.Pytester) -> None:
    """With `-p no:sandboxpool` nothing of it is there, and other tests run."""
    shop.makeini("[pytest]\naddopts = -p no:asyncio -p no:xdist\n")
    shop.makepyfile("def test_one(): pass\ndef test_two(sandbox): pass")
    result = shop.runpytest_subprocess("-p", "no:sandboxpool")
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines("*fixture 'sandbox' not found*")


def test_plugin_costs_nothing_unused(shop: pytest.Pytester) -> None:
    """A run that uses nothing of the plugin loads no framework, no Trio, and starts no thread."""
    shop.makepyfile(
        """
        import sys, threading

        def test_one():
            loaded = [m for m in ("fastapi", "starlette", "trio", "pydantic") if m in sys.modules]
            assert loaded == []
            assert "sandboxpool.testing._sandbox_pool" not in sys.modules
            assert threading.active_count() == 1
        """
    )
    shop.makeini(
        "[pytest]\naddopts = -p no:asyncio -p no:xdist -p no:anyio -p no:hypothesispytest\n"
    )
    shop.runpytest_subprocess().assert_outcomes(passed=1)


# --- more than one, wider scopes --------------------------------------------------------------


def test_several_at_once(shop: pytest.Pytester) -> None:
    """`sandbox_pool` leases several sandboxes to one test."""
    shop.makepyfile(
        """
        from fastapi.testclient import TestClient

        def test_two(sandbox_pool):
            with sandbox_pool.lease() as one, sandbox_pool.lease() as other:
                one.app.state.last = "ada"
                assert TestClient(one).get("/last").json() == "ada"
                assert TestClient(other).get("/last").json() is None
        """
    )
    shop.runpytest_inprocess().assert_outcomes(passed=1)


def test_wider_scopes(shop: pytest.Pytester) -> None:
    """A fixture of a module leases for itself; one that asks for `sandbox` is told why not."""
    shop.makepyfile(
        """
        import pytest
        from fastapi.testclient import TestClient

        @pytest.fixture(scope="module")
        def shop(sandbox_pool):
            with sandbox_pool.lease() as sandbox:
                yield sandbox

        def test_one(shop):
            shop.app.state.last = "ada"

        def test_two(shop):
            assert TestClient(shop).get("/last").json() == "ada"

        @pytest.fixture(scope="class")
        def wrong(sandbox):
            pass

        def test_three(wrong):
            pass
        """
    )
    result = shop.runpytest_inprocess()
    result.assert_outcomes(passed=2, errors=1)
    result.stdout.fnmatch_lines("*ScopeMismatch: *function scoped fixture sandbox*")


def test_after_the_end(shop: pytest.Pytester) -> None:
    """A sandbox that a test has kept says that its lease is over."""
    shop.makepyfile(
        """
        import pytest
        import sandboxpool
        from fastapi.testclient import TestClient

        kept = []

        def test_one(sandbox):
            kept.append(sandbox)
            assert "open" in repr(sandbox)

        def test_two():
            with pytest.raises(sandboxpool.LeaseEndedError, match="that leased it is over"):
                TestClient(kept[0]).get("/last")
            with pytest.raises(sandboxpool.LeaseEndedError, match="shop.main:app ended"):
                kept[0].app
        """
    )
    shop.runpytest_inprocess().assert_outcomes(passed=2)


# --- which app --------------------------------------------------------------------------------


def test_factory(shop: pytest.Pytester) -> None:
    """The app may come from a function, called once for each sandbox, not for each test."""
    (shop.path / "shop/factory.py").write_text(
        "from fastapi import FastAPI\n"
        "made = []\n"
        "def create_app():\n"
        "    made.append(1)\n"
        "    app = FastAPI()\n"
        "    app.state.number = len(made)\n"
        "    return app\n"
    )
    shop.makeini(INI.replace("shop.main:app", "shop.factory:create_app"))
    configure(shop, "sandboxpool_factory = true")
    shop.makepyfile(
        """
        import pytest

        @pytest.mark.parametrize("number", range(3))
        def test_app(sandbox, number):
            assert sandbox.app.state.number == 1
            sandbox.app.state.number = 5
        """
    )
    shop.runpytest_inprocess().assert_outcomes(passed=3)


def test_marker(shop: pytest.Pytester) -> None:
    """A marker says which app, the nearest one counts, and what it says not is as configured."""
    shop.makepyfile(
        """
        import pytest
        from fastapi import FastAPI

        other = FastAPI(title="other")
        pytestmark = pytest.mark.sandboxpool(other)

        def test_object(sandbox):
            assert sandbox.app.title == "other" and sandbox.app is not other

        @pytest.mark.sandboxpool(app=lambda: FastAPI(title="made"), factory=True)
        def test_factory(sandbox):
            assert sandbox.app.title == "made"

        @pytest.mark.sandboxpool("shop.main:app")
        def test_import_string(sandbox):
            assert sandbox.app.title == "FastAPI"
        """
    )
    shop.runpytest_inprocess().assert_outcomes(passed=3)


def test_app_that_is_wrapped(shop: pytest.Pytester) -> None:
    """An app that its module wraps already is leased as its own options say."""
    (shop.path / "shop/wrapped.py").write_text(
        "import sandboxpool\nfrom shop.main import app\n"
        "app = sandboxpool.wrap(app, share=['state.shared'])\n"
        "app.state.shared = []\n"
        "app.state.private = []\n"
    )
    shop.makeini(INI.replace("shop.main", "shop.wrapped"))
    shop.makepyfile(
        """
        import pytest

        @pytest.mark.parametrize("number", range(2))
        def test_app(sandbox, number):
            sandbox.app.state.shared.append(number)
            sandbox.app.state.private.append(number)
            assert sandbox.app.state.private == [number]
            assert len(sandbox.app.state.shared) == number + 1
        """
    )
    shop.runpytest_inprocess().assert_outcomes(passed=2)


# --- errors -----------------------------------------------------------------------------------

ERRORS = [
    pytest.param(
        "def test(sandbox): pass",
        ["sandboxpool_app = "],
        "sandbox: no app: say which one is tested with `sandboxpool_app = shop.main:app` in the "
        'configuration of pytest, or with @pytest.mark.sandboxpool(app="shop.main:app").',
        id="no app",
    ),
    pytest.param(
        "def test(sandbox): pass",
        ["sandboxpool_app = shop.nothing:app"],
        "sandbox: import string 'shop.nothing:app': there is no module 'shop.nothing'.*",
        id="no module",
    ),
    pytest.param(
        "def test(sandbox): pass",
        ["sandboxpool_app = shop.state:app"],
        "sandbox: import string 'shop.state:app': module 'shop.state' has no attribute 'app'.*",
        id="no attribute",
    ),
    pytest.param(
        "def test(sandbox): pass",
        ["sandboxpool_app = shop.state:cart"],
        "sandbox: wrap() takes an ASGI app, got shop.state:cart of type list*",
        id="no app at all",
    ),
    pytest.param(
        "import pytest\n@pytest.mark.sandboxpool(isolaton='module')\ndef test(sandbox): pass",
        [],
        "sandbox: isolaton='module': the options are app, backend, factory, isolation, keep, "
        "lifespan, loop, middleware, packages, share, shared.",
        id="typo",
    ),
    pytest.param(
        "import pytest\n@pytest.mark.sandboxpool(isolation='copy')\ndef test(sandbox): pass",
        [],
        "sandbox: isolation='copy': give one of 'auto', 'clone', 'factory', 'module'*",
        id="isolation",
    ),
    pytest.param(
        "import pytest\n@pytest.mark.sandboxpool(loop='mine')\ndef test(sandbox): pass",
        [],
        "sandbox: loop='mine': give one of 'session', 'test'.",
        id="loop",
    ),
    pytest.param(
        "import pytest\n@pytest.mark.sandboxpool(backend='twisted')\ndef test(sandbox): pass",
        [],
        "sandbox: backend='twisted': give one of 'asyncio', 'trio', 'uvloop'.",
        id="backend",
    ),
    pytest.param(
        "import pytest\n@pytest.mark.sandboxpool('a:b', 'c')\ndef test(sandbox): pass",
        [],
        "sandbox: @pytest.mark.sandboxpool takes one app, and names for the rest, not *",
        id="two apps",
    ),
]


@pytest.mark.parametrize(("test", "lines", "text"), ERRORS)
def test_clear_errors(shop: pytest.Pytester, test: str, lines: list[str], text: str) -> None:
    """What cannot work is said in a line or two, without a traceback."""
    ini = shop.path / "tox.ini"
    if lines:
        ini.write_text(ini.read_text().replace("sandboxpool_app = shop.main:app", ""))
        configure(shop, *lines)
    shop.makepyfile(test)
    result = shop.runpytest_inprocess()
    result.assert_outcomes(errors=1)
    escaped = text.replace("[", "[[]")
    result.stdout.fnmatch_lines(f"*{escaped}")
    result.stdout.no_fnmatch_line("*Traceback*")
    result.stdout.no_fnmatch_line("*During handling*")


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (
            "sandboxpool_isolation = copy",
            "ERROR: sandboxpool_isolation = copy: give one of auto, clone, factory, module.",
        ),
        (
            "sandboxpool_backend = twisted",
            "ERROR: sandboxpool_backend = twisted: give one of asyncio, trio, uvloop.",
        ),
        (
            "sandboxpool_loop = mine",
            "ERROR: sandboxpool_loop = mine: give one of session, test.",
        ),
    ],
)
def test_wrong_configuration(shop: pytest.Pytester, line: str, text: str) -> None:
    """A configuration that cannot work is refused before any test runs."""
    configure(shop, line)
    shop.makepyfile("def test(): pass")
    result = shop.runpytest_inprocess()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(text)


def test_app_that_is_no_import_string(shop: pytest.Pytester) -> None:
    """An app without a colon is refused before any test runs."""
    shop.makeini("[pytest]\nsandboxpool_app = shop.main\naddopts = -p no:asyncio\n")
    shop.makepyfile("def test(): pass")
    result = shop.runpytest_inprocess()
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        'ERROR: sandboxpool_app = shop.main: give an import string, like "shop.main:app".'
    )


def test_app_that_only_sandboxes_have(shop: pytest.Pytester) -> None:
    """An app whose modules are private already, and that nobody imported plainly, is no mystery."""
    shop.makepyfile(
        """
        import pytest

        @pytest.mark.sandboxpool(isolation="module")
        def test_private(sandbox):
            pass

        def test_shared(sandbox):
            pass
        """
    )
    result = shop.runpytest_inprocess()
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines(
        "*sandbox: 'shop.main:app': module 'shop.main' is private: each sandbox has its own, *"
    )


@pytest.mark.parametrize("where", ["import", "lifespan"])
@pytest.mark.parametrize("isolation", ["clone", "module"])
def test_app_that_fails(shop: pytest.Pytester, where: str, isolation: str) -> None:
    """What the app raises when it is imported or started is shown, with its own traceback."""
    main = shop.path / "shop/main.py"
    text = main.read_text()
    place = 'print("shop starts", file=sys.stderr)' if where == "lifespan" else "app = FastAPI("
    main.write_text(text.replace(place, f'raise LookupError("no key"); {place}'))
    if where == "import":
        main.write_text(text.replace(place, f'{{}}["no key"]\n{place}'))
    configure(shop, f"sandboxpool_isolation = {isolation}")
    shop.makepyfile("def test(sandbox): pass\ndef test_again(sandbox): pass")
    result = shop.runpytest_inprocess()
    result.assert_outcomes(errors=2)
    result.stdout.fnmatch_lines(["*shop/main.py:*", "*Error: *no key*"])


def test_app_that_does_not_stop(shop: pytest.Pytester) -> None:
    """An app that fails to stop is an error at the end of the run, and nothing hangs."""
    main = shop.path / "shop/main.py"
    main.write_text(main.read_text().replace('print("shop stops", file=sys.stderr)', "1 / 0"))
    shop.makepyfile("def test(sandbox): pass")
    result = shop.runpytest_inprocess()
    result.assert_outcomes(passed=1, errors=1)
    result.stdout.fnmatch_lines("*LifespanShutdownError: shop.main:app failed to stop: *")


def test_request_that_blocks(shop: pytest.Pytester) -> None:
    """A request that blocks the app's loop when it is cancelled holds up no test."""
    shop.makepyfile(
        """
        import threading
        import anyio
        import httpx2
        import pytest

        gate = threading.Event()

        @pytest.mark.anyio
        async def test_blocks(sandbox, caplog):
            @sandbox.app.get("/block")
            async def block():
                gate.wait(60)
            transport = httpx2.ASGITransport(sandbox)
            async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
                with anyio.move_on_after(0.1):
                    await client.get("/block")
            assert "was cancelled and blocks its event loop" in caplog.text

        @pytest.mark.anyio
        async def test_goes_on(sandbox):
            transport = httpx2.ASGITransport(sandbox)
            async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
                assert (await client.get("/last")).json() is None
            gate.set()
        """
    )
    shop.runpytest_subprocess("-k", "asyncio").assert_outcomes(passed=2, deselected=2)


# --- kits -------------------------------------------------------------------------------------


@pytest.mark.parametrize("asyncio", [False, True], ids=["alone", "beside pytest-asyncio"])
def test_kits_run_by_themselves(shop: pytest.Pytester, asyncio: bool) -> None:
    """A kit's checks run on asyncio and on Trio, without a marker or a mode."""
    if asyncio:
        shop.makeini(INI.replace(" -p no:asyncio", ""))
        configure(shop, "asyncio_default_fixture_loop_scope = function")
    shop.makepyfile(
        """
        from sandboxpool import Pool
        from sandboxpool.testing import PoolConformance

        class TestMyPool(PoolConformance):
            async def make_pool(self, factory, **options):
                pool = Pool(factory, **options)
                await pool.open()
                return pool
        """
    )
    result = shop.runpytest_subprocess("-k", "first_come or close_in_time")
    result.assert_outcomes(passed=4, deselected=80)


def test_proxies_in_test_modules(shop: pytest.Pytester) -> None:
    """A name in a test module that raises when asked, as proxies of Flask do, harms nothing."""
    shop.makepyfile(
        """
        from flask import current_app

        def test_one():
            pass
        """
    )
    shop.runpytest_subprocess().assert_outcomes(passed=1)
