"""HTTP/1.1 with deadlines on everything that a client can delay: headers, the rest of a body, and reading answers."""

from __future__ import annotations

import asyncio
import socket
import sys
from functools import partial
from typing import Any, cast

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import STATUS_PHRASES, H11Protocol, RequestResponseCycle
from uvicorn.server import ServerState

from forethought.serve.errors import encoded, error_body
from forethought.serve.limits import Limits

# How long a connection that we close may take to flush before it is cut.
_LINGER = 1.0
_SEND_BUFFER = 256 << 10
_MESSAGES = {
    400: "this is not a valid HTTP request",
    408: "the request header did not arrive in time",
    431: "the request header is too large",
}


class GuardedProtocol(H11Protocol):
    """uvicorn's protocol, which by itself waits for a header and for a slow reader for ever.

    `waiting` holds the connections without a request, oldest first; when there are too many connections, the oldest of
    these goes, so that idle clients cannot lock out honest ones.
    """

    def __init__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
        *,
        limits: Limits,
        waiting: dict[GuardedProtocol, None],
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._limits, self._waiting = limits, waiting
        self._header_timer: asyncio.TimerHandle | None = None
        self._write_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock of the first header, and make room if there are too many connections."""
        super().connection_made(transport)
        found = transport.get_extra_info("socket")
        if found is not None:
            found.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            # What a slow reader leaves in the kernel is bounded too; untold, the kernel takes megabytes for each.
            found.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
            # asyncio does this only for sockets that it made itself; without it every answer waits 40 ms.
            found.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._watch_header()
        if len(self.connections) > self._limits.connections:
            next(iter(self._waiting)).cut()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget all clocks."""
        self._waiting.pop(self, None)
        self._header_timer = _cancelled(self._header_timer)
        self._write_timer = _cancelled(self._write_timer)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Take bytes; a header that has begun must be whole in time, however often another byte of it comes."""
        super().data_received(data)
        self._watch_header()

    def on_response_complete(self) -> None:
        """Start the clock of what the client has yet to read, and of the body that it has yet to send."""
        super().on_response_complete()
        if self.transport.get_write_buffer_size() > 0:
            self._watch_writing()
        self._watch_header()

    def pause_writing(self) -> None:
        """Start the clock of a client that does not read."""
        super().pause_writing()
        self._watch_writing()

    def resume_writing(self) -> None:
        """Stop it: the client reads again."""
        super().resume_writing()
        self._write_timer = _cancelled(self._write_timer)

    def send_400_response(self, msg: str) -> None:
        """Answer a malformed request with the status that fits, where an answer can still be sent, and hang up."""
        error = sys.exc_info()[1]
        self._refuse(error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400)

    def cut(self) -> None:
        """Hang up at once."""
        self._waiting.pop(self, None)
        self.transport.abort()

    @property
    def _current(self) -> RequestResponseCycle | None:
        # Declared without None, and None until the first request.
        return self.cycle

    def _is_waiting(self) -> bool:
        return self._current is None or self._current.response_complete

    def _watch_header(self) -> None:
        """Run the header's clock exactly while a header (or a body that nobody wants) is being awaited."""
        if self.transport.is_closing():
            return
        if not self._is_waiting():
            self._waiting.pop(self, None)
            self._header_timer = _cancelled(self._header_timer)
            return
        self._waiting.setdefault(self)
        if self._header_timer is None and self.timeout_keep_alive_task is None:
            self._header_timer = self.loop.call_later(self._limits.header, self._header_late)

    def _header_late(self) -> None:
        self._header_timer = None
        if self._is_waiting() and not self.transport.is_closing():
            self._refuse(408)

    def _watch_writing(self) -> None:
        if self._write_timer is None:
            self._write_timer = self.loop.call_later(self._limits.write, self._write_late)

    def _write_late(self) -> None:
        self._write_timer = None
        if self.transport.get_write_buffer_size() > 0:
            self.cut()

    def _refuse(self, status: int) -> None:
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            body = encoded(error_body(status, _MESSAGES.get(status, _MESSAGES[400])))
            headers = [
                ("content-type", "application/json"),
                ("content-length", str(len(body))),
                ("connection", "close"),
            ]
            response = h11.Response(status_code=status, headers=headers, reason=STATUS_PHRASES[status])
            for event in (response, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        if self._current is not None and not self._current.response_complete:
            self._current.disconnected = True
            self._current.message_event.set()
        self.transport.close()
        self.loop.call_later(_LINGER, self.cut)


def guarded_protocol(limits: Limits) -> type[asyncio.Protocol]:
    """Return what makes uvicorn's connections, all sharing one list of those that wait."""
    return cast("type[asyncio.Protocol]", partial(GuardedProtocol, limits=limits, waiting={}))


def _cancelled(timer: asyncio.TimerHandle | None) -> None:
    if timer is not None:
        timer.cancel()
