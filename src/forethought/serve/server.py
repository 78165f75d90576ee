"""uvicorn with our protocol, and an end that keeps its word: nothing new, what is open finishes, then it is over."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from types import FrameType
from typing import cast

import uvicorn
from fastapi import FastAPI

from forethought.serve.protocol import guarded_protocol
from forethought.serve.service import Service
from forethought.serve.settings import ServerConfig

_log = logging.getLogger("forethought.serve")

_POLL = 0.02
# What is left of the grace for last chunks to be written, once everything open was told to end.
_LAST_WORDS = 0.4
_CUT_AFTER = 0.3


class GracefulServer(uvicorn.Server):
    """Serves until SIGTERM or SIGINT; then open requests have `grace` seconds, a second signal cuts that short."""

    def __init__(self, config: uvicorn.Config, service: Service, grace: float) -> None:
        super().__init__(config)
        self._service, self._grace = service, grace

    @property
    def service(self) -> Service:
        """What is served."""
        return self._service

    def run_announced(self, announce: Callable[[int], None]) -> None:
        """Serve, calling `announce` with the port as soon as it is listened on.

        Raises:
            OSError: the address cannot be had.
        """
        listener = socket.create_server(
            (self.config.host, self.config.port),
            family=socket.AF_INET6 if ":" in self.config.host else socket.AF_INET,
            backlog=self.config.backlog,
        )
        announce(listener.getsockname()[1])
        self.run(sockets=[listener])

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin to close, or be quick about it."""
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Refuse new requests, wait for open ones, and end those that take longer, each with its last chunk."""
        _log.info("closing: %d samples are open", self._service.gate.num_open)
        self._service.gate.is_draining = True
        patience = max(self._grace / 2, self._grace - 2 * _LAST_WORDS)
        await self._emptied(patience)
        if self._service.gate.num_open:
            _log.warning("ending %d samples at the end of the grace", self._service.gate.num_open)
            self._service.bridge.abort_all()
            await self._emptied(min(_LAST_WORDS, self._grace))
        # A second signal has cut the grace short; what is left takes no time worth cutting.
        self.force_exit = False
        await super().shutdown(sockets)

    async def _emptied(self, seconds: float) -> None:
        clock = asyncio.get_running_loop().time
        end = clock() + seconds
        while self._service.gate.num_open and clock() < end and not self.force_exit:
            await asyncio.sleep(_POLL)


def make_server(application: FastAPI, config: ServerConfig) -> GracefulServer:
    """Return a server for an application made from the same config."""
    limits = config.limits
    settings = uvicorn.Config(
        application,
        host=config.host,
        port=config.port,
        http=guarded_protocol(limits),
        ws="none",
        loop="asyncio",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=int(max(1.0, limits.idle)),
        h11_max_incomplete_event_size=limits.header_bytes,
        # What is still being written when the grace is over is cut soon; fractions work, though they are not declared.
        timeout_graceful_shutdown=cast(int, _CUT_AFTER),
        backlog=2048,
    )
    return GracefulServer(settings, application.state.service, limits.grace)
