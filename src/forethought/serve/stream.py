"""Server-sent events exactly as OpenAI's clients read them, over a connection that may go at any moment."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import ExitStack, aclosing
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from forethought.core.faults import fault
from forethought.serve.calls import Call, disconnected
from forethought.serve.errors import ApiError
from forethought.serve.render import Renderer

_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}


def event(value: Any) -> bytes:
    """Return one event: a line of JSON, and the blank line that ends it."""
    return b"data: " + json.dumps(value, separators=(",", ":"), allow_nan=False).encode() + b"\n\n"


async def events(call: Call, renderer: Renderer) -> AsyncGenerator[bytes]:
    """Yield the events of a started call up to [DONE]; an error of the engine is the last event instead."""
    opened: set[int] = set()
    try:
        async with aclosing(call.updates()) as updates:
            waiting = b""
            async for index, update in updates:
                opening = None if index in opened else renderer.opening(index)
                opened.add(index)
                waiting += b"" if opening is None else event(opening)
                if update.text or update.token_ids or update.finish_reason is not None:
                    waiting += event(renderer.chunk(index, update))
                # What a step brought for several choices leaves in one piece.
                if call.is_empty():
                    yield waiting
                    waiting = b""
            if waiting:
                yield waiting
    except ApiError as error:
        yield event(error.body())
        return
    if call.job.include_usage:
        yield event(renderer.usage_chunk())
    yield b"data: [DONE]\n\n"


class EventStream(Response):
    """A stream that ends its source as soon as the client is gone, whether it waits for the source or for the client.

    The body is closed in every case (one that is merely dropped would live, and with it the request, until somebody
    collects it), and then `leave`, with what the request holds.
    """

    media_type = "text/event-stream"

    def __init__(self, body: AsyncGenerator[bytes], leave: ExitStack) -> None:
        super().__init__(headers=_HEADERS)
        del self.headers["content-length"]
        self._body, self._leave = body, leave

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send everything, or as much as the client stays for."""
        with self._leave:
            async with aclosing(self._body):
                await self._run(receive, send)

    async def _run(self, receive: Receive, send: Send) -> None:
        sender = asyncio.ensure_future(self._send(send))
        watcher = asyncio.ensure_future(disconnected(receive))
        try:
            await asyncio.wait({sender, watcher}, return_when=asyncio.FIRST_COMPLETED)
            if sender.done():
                await sender
        finally:
            sender.cancel()
            watcher.cancel()
            await asyncio.gather(sender, watcher, return_exceptions=True)

    async def _send(self, send: Send) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        async for part in self._body:
            fault("serve.write")
            await send({"type": "http.response.body", "body": part, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
