"""What every request of the page passes first: host, origin, size and token. Plain ASGI."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from flawline.runtime.outputs.web.access import Access

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Message, Receive, Send], Awaitable[None]]

LARGEST_BODY = 16_384  # bytes
SAFE = ("GET", "HEAD", "OPTIONS")
LOGIN = "/login"
# Without a token: the form for it with its files, and a probe that shows no image and no score.
OPEN = (LOGIN, "/healthz")
OPEN_BELOW = "/static/"
# Scripts and styles come from this server alone, and none is in the HTML. `same-origin` is needed
# so that browsers send the Origin of a form.
HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; "
        b"connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"x-frame-options", b"DENY"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), microphone=(), geolocation=()"),
)
NO_STORE = (b"cache-control", b"no-store")


class TooLargeError(Exception):
    """The body of a request is longer than LARGEST_BODY, whatever its length was said to be."""


class Guard:
    """Answers requests that may not pass, and adds headers to all answers."""

    def __init__(self, app: App, access: Access) -> None:
        self._app = app
        self._access = access

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = _headers(scope)

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                given = list(message.get("headers", []))
                extra = list(HEADERS)
                if not any(name == b"cache-control" for name, _value in given):
                    extra.append(NO_STORE)
                message = {**message, "headers": [*given, *extra]}
            await send(message)

        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await _answer(send_with_headers, *refusal)
            return
        await self._app(scope, _limited(receive), send_with_headers)

    def _refusal(
        self, scope: Message, headers: MutableMapping[str, str]
    ) -> tuple[int, str, tuple[tuple[bytes, bytes], ...]] | None:
        """Return status, reason and headers for a request that may not pass, or None."""
        access = self._access
        host = headers.get("host", "")
        if not access.allows_host(host):
            return 421, "this name is not one of the station's; see the option names", ()
        if scope["method"] not in SAFE:
            origin = headers.get("origin")
            if not access.is_same_origin(origin, host, headers.get("sec-fetch-site")):
                return 403, "the request comes from the page of another site", ()
            length = headers.get("content-length", "0")
            if not length.isdecimal() or len(length) > 9 or int(length) > LARGEST_BODY:
                return 413, "the request is too large", ()
        path = scope["path"]
        if path in OPEN or path.startswith(OPEN_BELOW):
            return None
        if access.is_known(headers.get("authorization"), headers.get("cookie")):
            return None
        if scope["method"] == "GET" and "text/html" in headers.get("accept", ""):
            return 303, "log in", ((b"location", LOGIN.encode()),)
        challenge = ((b"www-authenticate", b"Bearer"),)
        return 401, "the token is missing or wrong", challenge


def _headers(scope: Message) -> MutableMapping[str, str]:
    headers: dict[str, str] = {}
    for name, value in scope["headers"]:
        key = name.decode("latin-1").lower()
        text = value.decode("latin-1")
        # Browsers that speak HTTP/2 to a proxy split their cookies.
        headers[key] = f"{headers[key]}; {text}" if key in headers else text
    return headers


def _limited(receive: Receive) -> Receive:
    """Return a `receive` that gives at most LARGEST_BODY bytes of a body."""
    left = LARGEST_BODY

    async def limited() -> Message:
        nonlocal left
        message = await receive()
        if message["type"] == "http.request":
            left -= len(message.get("body", b""))
            if left < 0:
                raise TooLargeError
        return message

    return limited


async def _answer(
    send: Send, status: int, reason: str, headers: tuple[tuple[bytes, bytes], ...] = ()
) -> None:
    body = json.dumps({"detail": reason}).encode()
    kind = (b"content-type", b"application/json")
    length = (b"content-length", str(len(body)).encode())
    start = {"type": "http.response.start", "status": status, "headers": [kind, length, *headers]}
    await send(start)
    await send({"type": "http.response.body", "body": body})
