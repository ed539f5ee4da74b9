"""The environ that a WSGI app gets for an ASGI scope."""

from __future__ import annotations

import io
import sys
import warnings
from typing import Any
from wsgiref.validate import validator

import pytest

from sandboxpool.adapters._wsgi_environ import build_environ

from .served import StartResponse, ask, each_way


def environ(**scope: Any) -> dict[str, Any]:
    """Return the environ for a scope that is given in part."""
    plain = {
        "type": "http",
        "http_version": "1.1",
        "method": "GET",
        "scheme": "http",
        "path": "/",
        "raw_path": b"/",
        "query_string": b"",
        "root_path": "",
        "headers": [],
        "client": ("192.0.2.7", 5000),
        "server": ("shop.example", 8000),
    }
    return build_environ({**plain, **scope}, io.BytesIO())


def test_a_plain_request() -> None:
    """Everything that PEP 3333 asks for is there, and what it means."""
    scope: dict[str, Any] = {
        "type": "http",
        "http_version": "1.1",
        "method": "POST",
        "scheme": "https",
        "path": "/cart",
        "raw_path": b"/cart",
        "query_string": b"id=1&name=%C3%A9",
        "root_path": "",
        "headers": [
            (b"host", b"shop.example"),
            (b"content-type", b"text/plain"),
            (b"content-length", b"3"),
            (b"x-request-id", b"7"),
        ],
        "client": ("192.0.2.7", 5000),
        "server": ("shop.example", 8000),
    }
    body = io.BytesIO(b"abc")
    found = build_environ(scope, body)
    file_wrapper = found.pop("wsgi.file_wrapper")
    assert callable(file_wrapper)
    assert found == {
        "REQUEST_METHOD": "POST",
        "SCRIPT_NAME": "",
        "PATH_INFO": "/cart",
        "QUERY_STRING": "id=1&name=%C3%A9",
        "SERVER_NAME": "shop.example",
        "SERVER_PORT": "8000",
        "SERVER_PROTOCOL": "HTTP/1.1",
        "REMOTE_ADDR": "192.0.2.7",
        "REMOTE_PORT": "5000",
        "CONTENT_TYPE": "text/plain",
        "CONTENT_LENGTH": "3",
        "HTTP_HOST": "shop.example",
        "HTTP_X_REQUEST_ID": "7",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": "https",
        "wsgi.input": body,
        "wsgi.input_terminated": True,
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        "asgi.scope": scope,
    }


@pytest.mark.parametrize(
    ("path", "raw_path", "path_info"),
    [
        ("/caf\xe9", b"/caf%C3%A9", "/caf\xc3\xa9"),
        ("/\u2603", b"/%E2%98%83", "/\xe2\x98\x83"),
        # Bytes that are not UTF-8, of which the server's text has lost what they were.
        ("/caf\ufffd", b"/caf%e9", "/caf\xe9"),
        ("/caf\ufffd", b"/caf%E9?q=1", "/caf\xe9"),
        # The text alone, if it is not what the raw path says.
        ("/other\ufffd", b"/caf%E9", "/other\xef\xbf\xbd"),
        ("/caf\ufffd", None, "/caf\xef\xbf\xbd"),
        ("/caf\udce9", b"/caf\xe9", "/caf\xe9"),
        ("/a b/c%d", b"/a%20b/c%25d", "/a b/c%d"),
        ("/rewritten", b"/original", "/rewritten"),
        ("", b"", ""),
    ],
)
def test_path(path: str, raw_path: bytes | None, path_info: str) -> None:
    """The path is bytes in the guise of text, the client's own ones wherever they are known."""
    assert environ(path=path, raw_path=raw_path)["PATH_INFO"] == path_info


@pytest.mark.parametrize(
    ("root_path", "path", "script_name", "path_info"),
    [
        ("", "/x", "", "/x"),
        ("/api", "/api/x", "/api", "/x"),
        ("/api", "/api", "/api", ""),
        ("/api", "/api/", "/api", "/"),
        ("/api/", "/api/x", "/api", "/x"),
        ("/", "/x", "", "/x"),
        # Some servers have no root path in the path.
        ("/api", "/x", "/api", "/x"),
        ("/api", "/apix", "/api", "/apix"),
        ("/caf\xe9", "/caf\xe9/x", "/caf\xc3\xa9", "/x"),
    ],
)
def test_root_path(root_path: str, path: str, script_name: str, path_info: str) -> None:
    """The root path is the script's name, and no part of the path; a prefix of a word is not."""
    found = environ(root_path=root_path, path=path)
    assert (found["SCRIPT_NAME"], found["PATH_INFO"]) == (script_name, path_info)


@pytest.mark.parametrize(
    ("scope", "name", "port"),
    [
        ({"server": None}, "localhost", "80"),
        ({"server": None, "scheme": "https"}, "localhost", "443"),
        ({"server": ("/run/shop.sock", None)}, "localhost", "80"),
        ({"server": ("::1", 8000)}, "::1", "8000"),
    ],
)
def test_server(scope: dict[str, Any], name: str, port: str) -> None:
    """There is a name and a port, also behind a socket of Unix."""
    found = environ(**scope)
    assert (found["SERVER_NAME"], found["SERVER_PORT"]) == (name, port)


def test_no_client() -> None:
    """An unknown client has no address."""
    assert "REMOTE_ADDR" not in environ(client=None)


def test_what_a_scope_may_leave_out() -> None:
    """A scope with only what ASGI demands is enough."""
    found = build_environ({"http_version": "2", "method": "GET", "path": "/"}, io.BytesIO())
    assert (found["SERVER_PROTOCOL"], found["wsgi.url_scheme"]) == ("HTTP/2", "http")


def test_repeated_headers() -> None:
    """A header that comes twice is joined with a comma, and a cookie as cookies are."""
    found = environ(
        headers=[
            (b"accept", b"text/html"),
            (b"cookie", b"a=1"),
            (b"Accept", b"text/plain"),
            (b"cookie", b"b=2"),
        ]
    )
    assert found["HTTP_ACCEPT"] == "text/html,text/plain"
    assert found["HTTP_COOKIE"] == "a=1; b=2"


def test_headers_are_latin_1() -> None:
    """The bytes of a header are text of the same numbers."""
    assert environ(headers=[(b"x-name", b"Jos\xe9")])["HTTP_X_NAME"] == "Jos\xe9"


@pytest.mark.parametrize("name", [b"x_user", b"x-us_er", b"proxy", b"PROXY"])
def test_dangerous_headers(name: bytes) -> None:
    """A header that would pass for another one, or for a setting of the process, is dropped."""
    found = environ(headers=[(name, b"evil"), (b"x-user", b"ada")])
    assert found["HTTP_X_USER"] == "ada"
    assert "evil" not in found.values()


@each_way
async def test_lease_in_the_environ(run_in: str) -> None:
    """Code that knows only the environ finds the lease of its request."""

    def app(environ: dict[str, Any], start_response: StartResponse) -> list[bytes]:
        start_response("200 OK", [])
        lease = environ["sandboxpool.lease"]
        return [f"{lease.path} {lease.sandbox.app.wsgi_app is app}".encode()]

    assert (await ask(app, run_in, "/here")).body == b"/here True"


@each_way
@pytest.mark.parametrize("method", ["GET", "POST", "HEAD"])
async def test_validator(run_in: str, method: str) -> None:
    """The validator of the standard library has no complaint."""

    def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
        body = environ["wsgi.input"]
        parts = [body.readline(), body.read(2), *body.readlines()]
        environ["wsgi.errors"].write("")
        start_response("200 OK", [("Content-Type", "text/plain"), ("Content-Length", "11")])
        return [b"", b"|".join(parts)]

    with warnings.catch_warnings(record=True) as complaints:
        got = await ask(
            validator(app),
            run_in,
            method=method,
            body=[b"a", b"\nb", b"cd\ne\n"],
            query_string=b"a=1",
            headers=[(b"content-length", b"9"), (b"content-type", b"text/plain")],
        )
    assert got.body == (b"" if method == "HEAD" else b"a\n|bc|d\n|e\n")
    assert complaints == []
