"""The engine's thread: carries out commands between steps, and opens the model anew when the engine crashes."""

from __future__ import annotations

import asyncio
import contextvars
import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from forethought.core.errors import ForethoughtError, InputError
from forethought.core.faults import fault
from forethought.decode.law.constraint import Constraint
from forethought.decode.law.sampling import SamplingParams
from forethought.decode.outputs import Update
from forethought.serve.engine import Engine, ServedModel
from forethought.serve.errors import ApiError, engine_failed

log = logging.getLogger("forethought.serve")

Delivery = tuple["Ticket", Update | ApiError]

_FIRST_PAUSE, _LONGEST_PAUSE = 0.1, 10.0
_LONGEST_MESSAGE = 400


class State(Enum):
    """Whether requests can be taken."""

    STARTING = "starting"
    READY = "ready"
    STALLED = "stalled"
    RESTARTING = "restarting"
    FAILED = "failed"
    STOPPED = "stopped"


@dataclass(eq=False)
class Ticket:
    """One request; `sink` takes its updates in the event loop's thread, and at most one error, the last.

    `unfinished` (samples) and `is_over` (nothing more is wanted) belong to the loop's side, `request_id` and
    `samples_left` to the engine's.
    """

    prompt: Sequence[int]
    params: SamplingParams
    sink: Callable[[Update | ApiError], None]
    constraint: Constraint | None = None
    accepted: asyncio.Future[None] = field(default_factory=lambda: asyncio.get_running_loop().create_future())
    is_over: bool = False
    unfinished: int = field(init=False)
    request_id: int | None = None
    samples_left: int = 0

    def __post_init__(self) -> None:
        self.unfinished = self.params.n


class EngineThread:
    """Runs the engine that `open_model` gives until told to stop.

    What happens is told through `deliver` (updates of one step) and `crashed` (all that was open is lost), both called
    in this thread. After `max_restarts` crashes without a request ended well in between it gives up.
    """

    def __init__(
        self,
        open_model: Callable[[], ServedModel],
        *,
        deliver: Callable[[list[Delivery]], None],
        crashed: Callable[[], None],
        max_restarts: int,
    ) -> None:
        self.state = State.STARTING
        self.model: ServedModel | None = None
        self.step_began: float | None = None
        self.snapshot: Mapping[str, Any] = {}
        self.num_restarts = 0
        self._open_model, self._deliver, self._crashed = open_model, deliver, crashed
        self._max_restarts, self._crashes_in_a_row = max_restarts, 0
        self._commands: queue.SimpleQueue[Callable[[ServedModel], None] | None] = queue.SimpleQueue()
        self._tickets: dict[int, Ticket] = {}
        self._opened = threading.Event()
        self._opening_error: Exception | None = None
        # The thread works in its maker's context, so that a fault table installed there holds in it too.
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._run,), name="forethought-engine", daemon=True)

    def start(self) -> ServedModel:
        """Open the model and return it.

        Raises:
            ForethoughtError: whatever opening it raised.
        """
        self._thread.start()
        self._opened.wait()
        if self._opening_error is not None:
            raise self._opening_error
        if self.model is None:
            raise ForethoughtError("the engine ended before it served anything")
        return self.model

    def stop(self) -> None:
        """Let the thread end after the step that it is in."""
        self._commands.put(None)

    def join(self, seconds: float) -> None:
        """Wait for the thread, but not for one that hangs."""
        self._thread.join(seconds)

    def add(self, ticket: Ticket) -> None:
        """Hand a request to the engine."""
        self._commands.put(lambda model: self._add(model.engine, ticket))

    def abort(self, ticket: Ticket) -> None:
        """End a request after the step that is running."""
        self._commands.put(lambda model: self._abort(model.engine, ticket))

    def refresh(self, done: Callable[[], None]) -> None:
        """Renew `snapshot` and call `done`."""

        def renew(model: ServedModel) -> None:
            try:
                self.snapshot = model.metrics()
            except Exception:
                log.exception("the engine's metrics cannot be had; those of before stand")
            done()

        self._commands.put(renew)

    def _run(self) -> None:
        while True:
            try:
                model = self.model = self._open_model()
                self.state = State.READY
                self._opened.set()
                self._serve(model)
            except Exception as error:
                if not self._opened.is_set():
                    self.state, self._opening_error = State.FAILED, error
                    self._opened.set()
                    return
                log.exception("the engine crashed")
                if not self._recover():
                    return
            else:
                return

    def _recover(self) -> bool:
        """Give up what was open and pause before another try; return whether there is to be one."""
        # The state first: a request that comes now is refused, one that came before is among those that are told.
        self.state = State.RESTARTING
        self.step_began = None
        self._tickets.clear()
        self._crashed()
        model, self.model = self.model, None
        self._dispose(model)
        del model
        self._crashes_in_a_row += 1
        if self._crashes_in_a_row > self._max_restarts:
            self.state = State.FAILED
            log.error("the engine crashed %d times in a row; giving up", self._crashes_in_a_row)
            return False
        self.num_restarts += 1
        time.sleep(min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** (self._crashes_in_a_row - 1)))
        return True

    def _dispose(self, model: ServedModel | None) -> None:
        try:
            if model is not None:
                model.close()
        except Exception:
            log.exception("the engine could not be closed")

    def _serve(self, model: ServedModel) -> None:
        engine = model.engine
        while self._obey(model, wait=not engine.has_work):
            if not engine.has_work:
                continue
            self.step_began = time.monotonic()
            fault("serve.step")
            updates = engine.step()
            self.step_began = None
            self._pass_on(updates)
        self._dispose(model)

    def _obey(self, model: ServedModel, *, wait: bool) -> bool:
        """Carry out the commands at hand, waiting for one if there is nothing else to do; False ends the thread."""
        try:
            while (command := self._commands.get(block=wait)) is not None:
                command(model)
                wait = False
        except queue.Empty:
            return True
        return False

    def _add(self, engine: Engine, ticket: Ticket) -> None:
        if ticket.is_over:
            return
        try:
            fault("serve.admit")
            request_id = engine.add(ticket.prompt, ticket.params, constraint=ticket.constraint)
        except InputError as error:
            self._deliver([(ticket, ApiError(400, str(error)[:_LONGEST_MESSAGE], code="invalid_value"))])
        except Exception:
            log.exception("a request could not be taken")
            self._deliver([(ticket, engine_failed())])
        else:
            ticket.request_id, ticket.samples_left = request_id, ticket.params.n
            self._tickets[request_id] = ticket
            self._deliver([(ticket, Update(request_id, 0, []))])

    def _abort(self, engine: Engine, ticket: Ticket) -> None:
        # Ids begin anew after a crash: an old ticket must not end another's request.
        if ticket.request_id is not None and self._tickets.get(ticket.request_id) is ticket:
            engine.abort(ticket.request_id)

    def _pass_on(self, updates: Sequence[Update]) -> None:
        items: list[Delivery] = []
        for update in updates:
            ticket = self._tickets.get(update.request_id)
            if ticket is None:
                continue
            items.append((ticket, update))
            if update.finish_reason is None:
                continue
            ticket.samples_left -= 1
            if ticket.samples_left == 0:
                del self._tickets[update.request_id]
            if update.finish_reason == "error":
                log.error("request %d failed: %s", update.request_id, update.error)
            else:
                self._crashes_in_a_row = 0
        if items:
            self._deliver(items)
