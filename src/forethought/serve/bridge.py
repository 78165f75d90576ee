"""The event loop's side of the engine: requests go in, updates come back, and a crash or a stall ends what is open."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from forethought.decode.outputs import Update
from forethought.serve.engine import ServedModel
from forethought.serve.errors import ApiError, engine_failed, unavailable
from forethought.serve.worker import Delivery, EngineThread, State, Ticket, log

_WATCH_SECONDS = 0.1


class Bridge:
    """Owns the engine's thread; all methods but `open` are for the event loop's thread.

    `open_model` makes the model, at the start and after a crash. A step longer than `step_seconds` is a stall: what is
    open ends with an error, and the server is unhealthy until the step comes back.
    """

    def __init__(
        self, open_model: Callable[[], ServedModel], *, step_seconds: float = 60.0, max_restarts: int = 5
    ) -> None:
        self._open_model = open_model
        self._step_seconds, self._max_restarts = step_seconds, max_restarts
        self._thread: EngineThread | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._open: set[Ticket] = set()
        self._is_stalled = self._is_closed = False

    @property
    def state(self) -> State:
        """Whether requests can be taken."""
        if self._is_closed:
            return State.STOPPED
        if self._thread is None:
            return State.STARTING
        return State.STALLED if self._is_stalled and self._thread.state is State.READY else self._thread.state

    @property
    def num_restarts(self) -> int:
        """How often the engine was opened anew."""
        return 0 if self._thread is None else self._thread.num_restarts

    @property
    def num_open(self) -> int:
        """How many requests are with the engine."""
        return len(self._open)

    @property
    def model(self) -> ServedModel:
        """The model that is open now.

        Raises:
            ApiError: there is none.
        """
        model = None if self._thread is None else self._thread.model
        if model is None:
            raise unavailable(f"the engine is {self.state.value}", 1)
        return model

    def open(self) -> ServedModel:
        """Start the thread, wait until the model is open, and return it.

        Raises:
            ForethoughtError: whatever opening the model raised.
        """
        self._thread = EngineThread(
            self._open_model,
            deliver=lambda items: self._post(lambda: self._deliver(items)),
            crashed=lambda: self._post(lambda: self._fail_open(engine_failed())),
            max_restarts=self._max_restarts,
        )
        return self._thread.start()

    def attach(self) -> None:
        """Begin to serve the running event loop."""
        self._loop = asyncio.get_running_loop()
        self._watcher = self._loop.create_task(self._watch())

    async def close(self, seconds: float = 1.0) -> None:
        """End all open requests, the model and the thread; a thread that hangs in a step is left behind."""
        self._is_closed = True
        if self._watcher is not None:
            self._watcher.cancel()
        self._fail_open(unavailable("the server is closing", 1))
        if self._thread is not None:
            self._thread.stop()
            await asyncio.to_thread(self._thread.join, seconds)

    async def submit(self, ticket: Ticket) -> None:
        """Hand a request to the engine and return once it has been taken.

        Raises:
            ApiError: 400 where the engine refuses the request, 5xx where it cannot work.
        """
        if self._thread is None or self.state is not State.READY:
            raise unavailable(f"the engine is {self.state.value}", 1)
        self._open.add(ticket)
        self._thread.add(ticket)
        await ticket.accepted

    def abort(self, ticket: Ticket) -> None:
        """End a request, whether it was taken or not; nothing more comes from it. Ended already is no error."""
        self._forget(ticket)
        if self._thread is not None:
            self._thread.abort(ticket)

    def abort_all(self) -> None:
        """Let the engine end every open request, so that each of them still gets its last update."""
        for ticket in self._open:
            if self._thread is not None:
                self._thread.abort(ticket)

    async def metrics(self, seconds: float = 1.0) -> Mapping[str, Any]:
        """Return the engine's metrics, those of a moment ago where it is busy in a long step."""
        if self._thread is None:
            return {}
        if self.state is State.READY:
            fresh = asyncio.Event()
            self._thread.refresh(lambda: self._post(fresh.set))
            try:
                await asyncio.wait_for(fresh.wait(), seconds)
            except TimeoutError:
                log.warning("the metrics are those of a moment ago: the engine is in a long step")
        return self._thread.snapshot

    def _post(self, call: Callable[[], None]) -> None:
        """Run a function in the loop's thread; without a loop, or after its end, there is nobody to tell."""
        if self._loop is not None and not self._loop.is_closed():
            try:
                self._loop.call_soon_threadsafe(call)
            except RuntimeError:
                log.debug("the event loop ended")

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(_WATCH_SECONDS)
            began = None if self._thread is None else self._thread.step_began
            is_stalled = began is not None and time.monotonic() - began > self._step_seconds
            if is_stalled and not self._is_stalled:
                log.error("a step of the engine takes longer than %s s", self._step_seconds)
            self._is_stalled = is_stalled
            if is_stalled:
                self._fail_open(engine_failed())

    def _fail_open(self, error: ApiError) -> None:
        for ticket in list(self._open):
            self._deliver([(ticket, error)])
            if self._thread is not None:
                self._thread.abort(ticket)

    def _deliver(self, items: Sequence[Delivery]) -> None:
        for ticket, item in items:
            if ticket.is_over:
                continue
            if not ticket.accepted.done():
                # The first thing that is said of a request is whether it was taken.
                if isinstance(item, ApiError):
                    self._forget(ticket)
                    ticket.accepted.set_exception(item)
                else:
                    ticket.accepted.set_result(None)
                continue
            ticket.unfinished -= isinstance(item, Update) and item.finish_reason is not None
            if isinstance(item, ApiError) or ticket.unfinished == 0:
                self._forget(ticket)
            ticket.sink(item)

    def _forget(self, ticket: Ticket) -> None:
        ticket.is_over = True
        self._open.discard(ticket)
