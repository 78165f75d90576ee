"""The door in front of every route: who may come in, and a whole body of bounded size before anything else runs.

One ASGI layer around the application, so that a route that is added later is behind it too.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, TypeAlias

from forethought.serve.errors import ApiError, encoded
from forethought.serve.limits import Limits

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Application: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

OPEN_PATHS = frozenset({"/health"})
# A client in the middle of a refused body gets the answer only if its bytes are still read for a while.
_DRAIN_SECONDS = 1.0
_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "[::1]"})


class KeyCheck:
    """Whether a request shows the key, as `Authorization: Bearer KEY` or, for browsers, as the password of Basic.

    Digests are compared, in a time that depends neither on where two keys differ nor on their lengths.
    """

    def __init__(self, key: str) -> None:
        self._digest = hashlib.sha256(key.encode()).digest()

    def __call__(self, authorization: bytes) -> bool:
        """Return whether the header's value holds the key."""
        scheme, _, credentials = authorization.partition(b" ")
        shown = credentials.strip()
        if scheme.lower() == b"basic":
            shown = _password(shown)
        elif scheme.lower() != b"bearer":
            shown = b""
        return hmac.compare_digest(hashlib.sha256(shown).digest(), self._digest)


class Guard:
    """The layer itself; `key` None lets everyone in, `local_only` refuses host names that are not this machine's.

    The latter keeps a web page elsewhere from reaching a server without a key through a name that it controls.
    """

    def __init__(self, application: Application, limits: Limits, *, key: str | None, local_only: bool) -> None:
        self._application, self._limits = application, limits
        self._check = None if key is None else KeyCheck(key)
        self._local_only = local_only
        self._buffered = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on with its body read, or answer it here."""
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        headers = {name: value for name, value in reversed(scope["headers"])}
        try:
            self._check_header_size(scope)
            self._enter(scope, headers)
            self._check_body_headers(scope, headers)
        except ApiError as error:
            await _refuse(error, receive, send)
            return
        body = bytearray()
        try:
            await self._read(body, receive)
            self._application_receive(scope, bytes(body))
            await self._application(scope, _replay(bytes(body), receive), send)
        except ApiError as error:
            await _refuse(error, receive, send)
        except _GoneError:
            pass
        finally:
            self._buffered -= len(body)

    def _check_header_size(self, scope: Scope) -> None:
        # The parser bounds a header that trickles in; one that came whole it passes on whatever its size.
        size = len(scope["raw_path"]) + len(scope["query_string"])
        if size + sum(len(name) + len(value) for name, value in scope["headers"]) > self._limits.header_bytes:
            raise ApiError(431, "the request header is too large")

    def _enter(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        if scope["path"] in OPEN_PATHS:
            return
        if self._check is not None and not self._check(headers.get(b"authorization", b"")):
            # A browser asks for a password only where a person opens the page, never behind a script's call.
            offer = 'Basic realm="forethought", charset="UTF-8"' if scope["path"] == "/" else "Bearer"
            raise ApiError(
                401,
                "this server needs its key: send Authorization: Bearer KEY",
                code="invalid_api_key",
                headers={"WWW-Authenticate": offer},
            )
        if self._local_only and _host_name(headers.get(b"host", b"localhost")) not in _LOCAL_NAMES:
            raise ApiError(403, "a server without a key answers to the names of this machine only; use localhost")

    def _check_body_headers(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise ApiError(415, "compressed bodies are not taken; send plain JSON", param="content-encoding")
        declared = headers.get(b"content-length", b"0")
        if len(declared) > 20 or int(declared) > self._limits.body_bytes:
            raise self._too_large()

    def _too_large(self) -> ApiError:
        return ApiError(413, f"the body is larger than the {self._limits.body_bytes} bytes that this server takes")

    async def _read(self, body: bytearray, receive: Receive) -> None:
        """Take the whole body; what all clients together have in the air is bounded as well."""
        try:
            async with asyncio.timeout(self._limits.body):
                more = True
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        raise _GoneError
                    part = message.get("body", b"")
                    more = message.get("more_body", False)
                    body += part
                    self._buffered += len(part)
                    if len(body) > self._limits.body_bytes:
                        raise self._too_large()
                    if self._buffered > self._limits.buffered_bytes:
                        raise ApiError(503, "too many bodies are being read", headers={"Retry-After": "1"})
        except TimeoutError:
            raise ApiError(408, "the body did not arrive in time") from None

    @staticmethod
    def _application_receive(scope: Scope, body: bytes) -> None:
        scope["forethought.body"] = body


class _GoneError(Exception):
    pass


def _replay(body: bytes, receive: Receive) -> Receive:
    pending: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def next_message() -> Message:
        return pending.pop() if pending else await receive()

    return next_message


async def _refuse(error: ApiError, receive: Receive, send: Send) -> None:
    """Answer and hang up, reading on for a moment: closing on unread bytes would take the answer away again."""
    body = encoded(error.body())
    headers = {"content-type": "application/json", "content-length": str(len(body)), "connection": "close"}
    lines = [(name.lower().encode(), value.encode()) for name, value in (headers | error.headers).items()]
    await send({"type": "http.response.start", "status": error.status, "headers": lines})
    await send({"type": "http.response.body", "body": body, "more_body": True})
    try:
        async with asyncio.timeout(_DRAIN_SECONDS):
            while (message := await receive())["type"] == "http.request" and message.get("more_body", False):
                pass
    except TimeoutError:
        pass
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _password(credentials: bytes) -> bytes:
    try:
        return base64.b64decode(credentials, validate=True).partition(b":")[2]
    except (binascii.Error, ValueError):
        return b""


def _host_name(host: bytes) -> str:
    name = host.decode("latin-1").lower()
    return name.partition("]")[0] + "]" if name.startswith("[") else name.partition(":")[0]
