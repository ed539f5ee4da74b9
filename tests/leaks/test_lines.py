"""Names of leaks, and the lines that may have made them."""

from __future__ import annotations

import importlib
import textwrap
from pathlib import Path

import pytest

from sandboxpool.leaks._lines import Lines
from sandboxpool.leaks._names import Names, family_of

MODULE = """
import os, warnings, logging, random, signal

user = None
users = []
settings = {}

class Shop:
    def __init__(self):
        self.visitor = None
        self.cart = {}

    def visit(self, name):
        self.visitor = name
        self.cart["last"] = name
        self.cart["first"] = name

    @property
    def late(self):
        self.looked = True

    @staticmethod
    def close(app):
        del app.state.session

def login(name):
    global user
    user = name
    users.append(name)

def logout():
    global user
    user = None

def by_name(shop):
    setattr(shop, "discount", 3)

def outer():
    count = 0
    def inner():
        nonlocal count
        count += 1
    return inner

def process():
    os.environ["LANG"] = "C"
    os.chdir("/")
    warnings.simplefilter("ignore")
    logging.getLogger("x").addHandler(None)
    random.seed(1)
    signal.signal(15, None)

def reads():
    print(user, users, settings, os.environ)
"""


@pytest.fixture(scope="module")
def lines(tmp_path_factory: pytest.TempPathFactory) -> Lines:
    folder = tmp_path_factory.mktemp("lines")
    (folder / "lines_of_shop.py").write_text(textwrap.dedent(MODULE))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        module = importlib.import_module("lines_of_shop")
        found = Lines()
        found.add({"lines_of_shop": module})
        found.of("nothing")  # reads them while the folder is known
    return found


def line_of(text: str) -> int:
    (number,) = [n for n, line in enumerate(MODULE.splitlines(), 1) if line.strip() == text]
    return number


@pytest.mark.parametrize(
    ("path", "texts"),
    [
        ("shop.user", ["user = name", "user = None #2"]),
        ("shop.users[0]", ["users.append(name)"]),
        ("shop.users", ["users.append(name)"]),
        ("shop.shop.visitor", ["self.visitor = name"]),
        ('shop.shop.cart["last"]', ['self.cart["last"] = name']),
        (
            'shop.shop.cart["other"]',
            ['self.cart["last"] = name', 'self.cart["first"] = name'],
        ),
        ("shop.shop.looked", ["self.looked = True"]),
        ("app.state.session", ["del app.state.session"]),
        ("shop.shop.discount", ['setattr(shop, "discount", 3)']),
        ("shop.outer.<locals>.inner.<nonlocal>.count", ["count += 1"]),
        ("os.environ['LANG']", ['os.environ["LANG"] = "C"']),
        ("os.getcwd()", ['os.chdir("/")']),
        ("warnings.filters", ['warnings.simplefilter("ignore")']),
        ("logging.getLogger('x').handlers", ['logging.getLogger("x").addHandler(None)']),
        ("random.seed()", ["random.seed(1)"]),
        ("signal.getsignal(SIGTERM)", ["signal.signal(15, None)"]),
        ("shop.settings", []),
        ("nowhere.at_all", []),
    ],
)
def test_lines(lines: Lines, path: str, texts: list[str]) -> None:
    """The lines that write what a path names are found, and those that only read it are not."""
    found = {int(place.split(":")[1].split()[0]) for place in lines.of(path)}
    last = max(n for n, line in enumerate(MODULE.splitlines(), 1) if line.strip() == "user = None")
    first = {line_of(text) if "#" not in text else last for text in texts}
    if "count += 1" in texts:
        found -= {line_of("count = 0")}
    assert found == first


def test_the_endpoint_comes_first(lines: Lines) -> None:
    """Of several lines, that of the function that has served the request is the likeliest."""
    module = importlib.import_module("lines_of_shop")
    (place,) = lines.of("shop.user", module.login)
    assert place.endswith(" in login")
    (place,) = lines.of("shop.user", module.logout)
    assert place.endswith(" in logout")


def test_endpoint_that_no_module_has(lines: Lines) -> None:
    """An endpoint that was defined in a function is read when it has served a request."""

    def endpoint(request: object) -> None:
        request.app.state.unheard_of = 1  # type: ignore[attr-defined]

    (place,) = lines.of("app.state.unheard_of", endpoint)
    assert Path(__file__).name in place
    assert lines.of("app.state.unheard_of", 3) == (place,)


@pytest.mark.parametrize(
    ("pattern", "path", "matches"),
    [
        ("shop.hits", "shop.hits", True),
        ("shop.hits", "shop.hits.all", True),
        ("shop.hits", 'shop.hits["all"]', True),
        ("shop.hits", "shop.hitsparade", False),
        ("shop.hits", "my.shop.hits", False),
        ("shop.*", "shop.a.b[0]", True),
        ("shop.*.hits", "shop.a.b.hits", True),
        ("shop.*.hits", "shop.hits", False),
        ("*", "anything at all", True),
        ("os.environ['A']", "os.environ['A']", True),
        ('os.environ["A"]', "os.environ['A']", True),
        ("os.environ['A']", "os.environ['B']", False),
        ("os.environ[*]", "os.environ['B']", True),
        ("os.environ", "os.environ['B']", True),
        ("shop.a[0]", "shop.a0", False),
        ("socket to 127.0.0.1:*", "socket to 127.0.0.1:5432", True),
        ("file /tmp/*.db", "file /tmp/x.db", True),
        ("task shop.mail.*", "task shop.mail.send", True),
    ],
)
def test_names(pattern: str, path: str, matches: bool) -> None:
    """A pattern is a path and what is below it, and nothing in it but `*` is special."""
    names = Names([pattern])
    assert (path in names) is matches
    assert names.unused == ([] if matches else [pattern])


def test_families() -> None:
    """Items of a container are one family, whatever their keys look like."""
    assert family_of("shop.a[\"x]y\"].b[0]['z']") == "shop.a[*].b[*][*]"
    assert family_of("os.environ['A']") == "os.environ[*]"
    assert family_of("shop.user") == "shop.user"
