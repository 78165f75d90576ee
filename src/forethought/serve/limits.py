"""What one client may cost: deadlines, sizes, the price of a request before it starts, and a bounded queue."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Generator
from contextlib import contextmanager
from math import ceil
from typing import Annotated

from pydantic import Field

from forethought.core.config import config
from forethought.serve.errors import ApiError, unavailable

Seconds = Annotated[float, Field(gt=0.0, le=86400.0)]
Count = Annotated[int, Field(ge=1, le=1 << 40)]

_RATE_WINDOW = 64
_MAX_RETRY_AFTER = 60


@config
class Limits:
    """Every bound that a client meets.

    Deadlines, in seconds: `header` for a whole request header, `body` for the whole body after it, `idle` for a
    connection without a request, `write` for a client to make room for more, `step` for one step of the engine before
    the server calls itself unhealthy, `grace` for open requests once the server is asked to stop.
    A request costs prompt tokens + n * max_tokens * (1 + logprobs), at most `cost`; `open_requests` samples at most are
    admitted and not yet finished, whether they run or wait.

    Raises:
        ConfigError: a field is unknown or out of range.
    """

    header: Seconds = 10.0
    body: Seconds = 30.0
    idle: Seconds = 60.0
    write: Seconds = 30.0
    step: Seconds = 60.0
    grace: Seconds = 30.0
    header_bytes: Count = 32 << 10
    body_bytes: Count = 1 << 20
    buffered_bytes: Count = 64 << 20
    json_depth: Count = 64
    connections: Count = 1024
    cost: Count = 1 << 18
    open_requests: Count = 256
    n: Count = 16
    prompts: Count = 16
    logprobs: Count = 20
    template_characters: Count = 4 << 20


def request_cost(num_prompt_tokens: int, samples: int, max_tokens: int, logprobs: int | None) -> int:
    """Return the price of a request: the tokens it reads, and those it may write with the numbers wanted for each."""
    return num_prompt_tokens + samples * max_tokens * (1 + (logprobs or 0))


class Gate:
    """Who is inside: admits requests until the house is full or closing, and says when to come again."""

    def __init__(self, open_requests: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.num_open = 0
        self.num_refused = 0
        self.is_draining = False
        self._limit = open_requests
        self._clock = clock
        self._left: deque[tuple[float, int]] = deque(maxlen=_RATE_WINDOW)

    @contextmanager
    def admit(self, samples: int) -> Generator[None]:
        """Hold places for the samples of one request for the length of a block.

        Raises:
            ApiError: 429 where there is no room now, 503 while the server is closing.
        """
        if self.is_draining:
            raise unavailable("the server is closing and takes no new requests", 1)
        if self.num_open + samples > self._limit:
            self.num_refused += 1
            raise ApiError(
                429,
                f"the queue is full ({self._limit} samples); come again after the time in Retry-After",
                code="queue_full",
                headers={"Retry-After": str(self.retry_after(samples))},
            )
        self.num_open += samples
        try:
            yield
        finally:
            self.num_open -= samples
            self._left.append((self._clock(), samples))

    def retry_after(self, samples: int) -> int:
        """Return whole seconds until, at the rate of late, so many places may be free."""
        if len(self._left) < 2:
            return 1
        wanted = max(1, self.num_open + samples - self._limit)
        span = self._clock() - self._left[0][0]
        rate = sum(count for _, count in self._left) / max(span, 1e-3)
        return min(_MAX_RETRY_AFTER, max(1, ceil(wanted / rate)))
