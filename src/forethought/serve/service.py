"""What the routes do: one service around one bridge, with its gate, its limits and its counts."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import ExitStack, aclosing

from starlette.requests import Request
from starlette.responses import Response

from forethought.core.faults import fault
from forethought.core.rng import derive_seed
from forethought.serve.bridge import Bridge
from forethought.serve.calls import Call, unless_gone
from forethought.serve.errors import ApiError
from forethought.serve.fields import ChatBody, CompletionBody, GenerationBody, read_body
from forethought.serve.jobs import JobMaker
from forethought.serve.limits import Gate
from forethought.serve.metrics import ServerMetrics
from forethought.serve.render import ChatRenderer, CompletionRenderer, Renderer
from forethought.serve.settings import ServerConfig
from forethought.serve.stream import EventStream, events

# Told to nobody: a client that has hung up reads no answer.
_GONE = 499


class Service:
    """Carries out calls; everything that a request holds is given back when it ends, however it ends."""

    def __init__(self, bridge: Bridge, config: ServerConfig) -> None:
        self.bridge, self.config = bridge, config
        self.gate = Gate(config.limits.open_requests)
        self.metrics = ServerMetrics(
            num_open=lambda: float(self.gate.num_open), num_restarts=lambda: float(bridge.num_restarts)
        )
        self.created = int(time.time())
        self._seed = secrets.randbits(63) if config.seed is None else config.seed
        self._num_seeds = 0
        self._jobs = JobMaker(config.limits, config.chat_template, self._next_seed)

    @property
    def name(self) -> str:
        """What clients give as `model`."""
        return self.config.name or self.bridge.model.name

    @property
    def status(self) -> str:
        """Whether requests are taken: "ready", or why not."""
        return "draining" if self.gate.is_draining else self.bridge.state.value

    async def complete(self, request: Request) -> Response:
        """Answer POST /v1/completions."""
        return await self._counted(request, "completions", CompletionBody, CompletionRenderer)

    async def chat(self, request: Request) -> Response:
        """Answer POST /v1/chat/completions."""
        return await self._counted(request, "chat", ChatBody, ChatRenderer)

    async def _counted(
        self,
        request: Request,
        route: str,
        shape: type[GenerationBody],
        renderer: Callable[[Call, str, int, str], Renderer],
    ) -> Response:
        """Run a call and count how it ended; a stream is counted when it ends, not when it begins."""
        visit = _Visit(self.metrics, route)
        with ExitStack() as stack:
            stack.enter_context(visit)
            body = self._read(request, shape)
            self._jobs.check(body)
            stack.enter_context(self.gate.admit(body.num_samples))
            work = asyncio.ensure_future(self._begin(body, visit))
            call = await unless_gone(work, request.receive)
            if call is None:
                visit.outcome = "gone"
                return Response(status_code=_GONE)
            stack.callback(call.close)
            form = renderer(call, secrets.token_hex(12), int(time.time()), self.config.name or call.model.name)
            if call.job.stream:
                return EventStream(visit.watched(events(call, form), call), stack.pop_all())
            finished = await unless_gone(asyncio.ensure_future(_finish(call)), request.receive)
            if finished is None:
                visit.outcome = "gone"
                return Response(status_code=_GONE)
            visit.outcome = _outcome(call)
            fault("serve.write")
            content = json.dumps(form.answer(), separators=(",", ":"), allow_nan=False)
            return Response(content, media_type="application/json")

    def _read(self, request: Request, shape: type[GenerationBody]) -> GenerationBody:
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            # A web page elsewhere can send other types without asking; this one its browser asks us about first.
            raise ApiError(415, "send the body as application/json", param="content-type", code="unsupported_type")
        body = read_body(shape, request.scope["forethought.body"], depth=self.config.limits.json_depth)
        if body.model != self.name:
            raise ApiError(
                404,
                "there is no model of that name here; GET /v1/models lists the one there is",
                param="model",
                code="model_not_found",
            )
        return body

    async def _begin(self, body: GenerationBody, visit: _Visit) -> Call:
        model = self.bridge.model
        job = await self._jobs.make(body, model)
        call = Call(job, self.bridge, model, self.metrics, visit.began)
        await call.start()
        return call

    def _next_seed(self) -> int:
        self._num_seeds += 1
        return derive_seed(self._seed, "serve.request", index=self._num_seeds)


class _Visit:
    """One request's place in the counts."""

    def __init__(self, metrics: ServerMetrics, route: str) -> None:
        self.began = time.monotonic()
        self.outcome: str | None = None
        self._metrics, self._route = metrics, route

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, ApiError):
            self.outcome = str(error.status)
        outcome = self.outcome or ("gone" if isinstance(error, asyncio.CancelledError) else "error")
        self._metrics.ended(self._route, outcome, time.monotonic() - self.began)

    async def watched(self, source: AsyncGenerator[bytes], call: Call) -> AsyncGenerator[bytes]:
        """Yield a stream's parts and note how it ended; one that is closed before its end was left by its client."""
        self.outcome = "gone"
        async with aclosing(source) as parts:
            async for part in parts:
                yield part
        self.outcome = _outcome(call)


async def _finish(call: Call) -> Call:
    async with aclosing(call.updates()) as updates:
        async for _ in updates:
            pass
    return call


def _outcome(call: Call) -> str:
    reasons = {choice.finish_reason for choice in call.choices}
    return "error" if None in reasons else "aborted" if "abort" in reasons else "ok"
