"""The answers that the pool gives itself: 503 when nothing is free, 504 when time is up."""

from __future__ import annotations

from ._types import Receive, Scope, Send

TRY_AGAIN_LATER = 1013  # the websocket close code for it, RFC 6455's registry at IANA
INTERNAL_ERROR = 1011


async def answer(
    scope: Scope,
    receive: Receive,
    send: Send,
    status: int,
    text: str,
    *,
    retry_after: int | None = None,
    close_code: int = TRY_AGAIN_LATER,
    connect_seen: bool = False,
) -> None:
    """Answer a request of which nothing has been answered yet.

    A websocket is denied with the same response where the server can send one, and closed
    before it was accepted where it cannot.

    Args:
        scope: The scope of the request.
        receive: The server's.
        send: The server's.
        status: The HTTP status.
        text: What was the matter; sent as plain text.
        retry_after: Seconds for the `Retry-After` header.
        close_code: For a websocket that cannot be denied with a response.
        connect_seen: Whether `websocket.connect` was received already.
    """
    body = f"{text}\n".encode()
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
    ]
    if retry_after is not None:
        headers.append((b"retry-after", str(retry_after).encode()))
    prefix = "http"
    if scope["type"] == "websocket":
        if not connect_seen:
            await receive()
        if "websocket.http.response" not in (scope.get("extensions") or {}):
            await send({"type": "websocket.close", "code": close_code, "reason": text[:120]})
            return
        prefix = "websocket.http"
    await send({"type": f"{prefix}.response.start", "status": status, "headers": headers})
    if scope.get("method") == "HEAD":
        body = b""
    await send({"type": f"{prefix}.response.body", "body": body})
