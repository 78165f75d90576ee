"""One call while it runs: its requests in the engine, and their updates as one stream, whatever the client does."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from forethought.decode.draft import TokenLogprobs
from forethought.decode.law.constraint import Constraint
from forethought.decode.law.sampling import SamplingParams
from forethought.decode.outputs import Update
from forethought.serve.bridge import Bridge
from forethought.serve.engine import ServedModel
from forethought.serve.errors import ApiError, engine_failed
from forethought.serve.guard import Receive
from forethought.serve.jobs import Job, constraint_for, single_samples
from forethought.serve.metrics import ServerMetrics
from forethought.serve.worker import Ticket

T = TypeVar("T")


@dataclass
class Choice:
    """One text as far as it has come."""

    text: str = ""
    token_ids: list[int] = field(default_factory=list[int])
    logprobs: list[TokenLogprobs] = field(default_factory=list[TokenLogprobs])
    finish_reason: str | None = None
    stop_reason: str | int | None = None
    num_cached_tokens: int = 0


class Call:
    """A job's requests in the engine; `updates` yields (choice, update) until every choice has ended.

    Close the generator (`contextlib.aclosing`) however it ends: what is still in the engine is taken out then.
    """

    def __init__(self, job: Job, bridge: Bridge, model: ServedModel, metrics: ServerMetrics, arrived: float) -> None:
        self.job, self.model = job, model
        self.choices = [Choice() for _ in range(job.num_choices)]
        self._bridge, self._metrics = bridge, metrics
        self._arrived = arrived
        self._last_at: dict[int, float] = {}
        self._queue: asyncio.Queue[tuple[int, Update | ApiError]] = asyncio.Queue()
        self._tickets: list[Ticket] = []

    @property
    def num_generated(self) -> int:
        """Tokens generated so far."""
        return sum(len(choice.token_ids) for choice in self.choices)

    @property
    def num_cached(self) -> int:
        """Tokens of the prompts that did not have to be read, as their first samples found it."""
        return sum(choice.num_cached_tokens for choice in self.choices[:: self.job.params.n])

    async def start(self) -> None:
        """Hand all requests to the engine.

        Raises:
            ApiError: the engine refuses one; none runs then.
        """
        try:
            for place, prompt in enumerate(self.job.prompts):
                first = place * self.job.params.n
                if self.job.schema is None:
                    await self._submit(first, prompt, self.job.params, None)
                    continue
                for offset, params in enumerate(single_samples(self.job)):
                    await self._submit(first + offset, prompt, params, await constraint_for(self.job, self.model))
        except BaseException:
            self.close()
            raise

    async def updates(self) -> AsyncGenerator[tuple[int, Update]]:
        """Yield what the engine brings.

        Raises:
            ApiError: the engine failed.
        """
        try:
            left = len(self.choices)
            while left:
                place, item = await self._queue.get()
                if isinstance(item, ApiError):
                    raise item
                if item.finish_reason == "error":
                    raise engine_failed()
                self._note(place, item)
                left -= item.finish_reason is not None
                yield place, item
        finally:
            self.close()

    def close(self) -> None:
        """Take out of the engine what is still there."""
        for ticket in self._tickets:
            if not ticket.is_over:
                self._bridge.abort(ticket)

    def is_empty(self) -> bool:
        """Whether nothing more is at hand just now."""
        return self._queue.empty()

    async def _submit(
        self, first: int, prompt: Sequence[int], params: SamplingParams, constraint: Constraint | None
    ) -> None:
        def take(item: Update | ApiError) -> None:
            self._queue.put_nowait((first if isinstance(item, ApiError) else first + item.index, item))

        ticket = Ticket(prompt, params, take, constraint)
        self._tickets.append(ticket)
        await self._bridge.submit(ticket)

    def _note(self, place: int, update: Update) -> None:
        choice = self.choices[place]
        choice.text += update.text
        choice.token_ids += update.token_ids
        choice.logprobs += update.logprobs or []
        choice.finish_reason, choice.stop_reason = update.finish_reason, update.stop_reason
        choice.num_cached_tokens = max(choice.num_cached_tokens, update.num_cached_tokens)
        if update.token_ids:
            now = time.monotonic()
            if place in self._last_at:
                self._metrics.later_tokens(now - self._last_at[place], len(update.token_ids))
            else:
                self._metrics.first_token(now - self._arrived, len(update.token_ids))
            self._last_at[place] = now


async def unless_gone(work: asyncio.Task[T], receive: Receive) -> T | None:
    """Return what a task brings, or None, the task cancelled, if the client hangs up before."""
    watcher = asyncio.ensure_future(disconnected(receive))
    try:
        await asyncio.wait({work, watcher}, return_when=asyncio.FIRST_COMPLETED)
        return await work if work.done() else None
    finally:
        for task in (work, watcher):
            task.cancel()
        await asyncio.gather(work, watcher, return_exceptions=True)


async def disconnected(receive: Receive) -> None:
    """Return once the client has hung up."""
    while (await receive())["type"] != "http.disconnect":
        pass
