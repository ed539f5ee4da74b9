"""The environ of PEP 3333 for an ASGI scope."""

from __future__ import annotations

import sys
from typing import Any
from urllib.parse import unquote, unquote_to_bytes
from wsgiref.util import FileWrapper

from sandboxpool._types import Scope

_PORTS = {"https": "443"}
# Of a file that the app hands over, so much at once: each block goes to the server by itself.
_BLOCK = 64 * 1024


def build_environ(scope: Scope, body: Any) -> dict[str, Any]:
    """Return the environ of a request.

    Args:
        scope: The ASGI scope; it is in the environ, too, as `asgi.scope`.
        body: What the app reads the body from.
    """
    scheme = scope.get("scheme") or "http"
    root, path = _script_and_path(scope)
    # A Unix socket has a path for a name, and no port.
    name, port = scope.get("server") or ("localhost", None)
    environ: dict[str, Any] = {
        "REQUEST_METHOD": scope["method"],
        "SCRIPT_NAME": root,
        "PATH_INFO": path,
        "QUERY_STRING": scope.get("query_string", b"").decode("latin-1"),
        "SERVER_NAME": "localhost" if port is None else name,
        "SERVER_PORT": _PORTS.get(scheme, "80") if port is None else str(port),
        "SERVER_PROTOCOL": f"HTTP/{scope['http_version']}",
        "wsgi.version": (1, 0),
        "wsgi.url_scheme": scheme,
        "wsgi.input": body,
        "wsgi.input_terminated": True,
        "wsgi.errors": sys.stderr,
        "wsgi.multithread": True,
        "wsgi.multiprocess": True,
        "wsgi.run_once": False,
        "wsgi.file_wrapper": LargeBlocks,
        "asgi.scope": scope,
    }
    client = scope.get("client")
    if client:
        environ["REMOTE_ADDR"] = client[0]
        environ["REMOTE_PORT"] = str(client[1])
    lease = scope.get("sandboxpool.lease")
    if lease is not None:
        environ["sandboxpool.lease"] = lease
    for raw_name, raw_value in scope.get("headers", ()):
        header = raw_name.decode("latin-1").upper()
        # `X_User` would become what `X-User` becomes, which a proxy may have filtered; and what
        # `Proxy` becomes is a setting of HTTP clients (CVE-2016-5385).
        if "_" in header or header == "PROXY":
            continue
        value = raw_value.decode("latin-1")
        key = header.replace("-", "_")
        if key not in ("CONTENT_LENGTH", "CONTENT_TYPE"):
            key = "HTTP_" + key
            if key in environ:
                # HTTP/2 splits cookies, and they alone are not joined with a comma.
                value = environ[key] + ("; " if key == "HTTP_COOKIE" else ",") + value
        environ[key] = value
    return environ


def _script_and_path(scope: Scope) -> tuple[str, str]:
    """Return the URL below which the app is, and the rest: bytes in the guise of text."""
    text: str = scope["path"]
    path = text.encode("utf-8", "surrogateescape")
    if "\N{REPLACEMENT CHARACTER}" in text:
        # Perhaps the server's, for bytes that are not UTF-8. If nobody has changed the path
        # since, they are still to be had.
        raw: bytes = (scope.get("raw_path") or b"").partition(b"?")[0]
        if unquote(raw.decode("latin-1")) == text:
            path = unquote_to_bytes(raw)
    root = scope.get("root_path", "").rstrip("/").encode("utf-8", "surrogateescape")
    # Not every server has the root path in the path.
    if root and (path == root or path.startswith(root + b"/")):
        path = path[len(root) :]
    return root.decode("latin-1"), path.decode("latin-1")


class LargeBlocks(FileWrapper):
    """Yields a file in blocks: larger ones than frameworks ask for."""

    def __init__(self, filelike: Any, blksize: int = 8192) -> None:
        super().__init__(filelike, max(blksize, _BLOCK))
