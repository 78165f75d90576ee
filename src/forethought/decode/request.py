"""A request while the engine works on it, and one request's share of a step. No tensor is in sight here."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from forethought.decode.law.sampling import SamplingParams


class Status(Enum):
    """Where a request stands; an aborted one is finished."""

    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


@dataclass(eq=False)
class Request:
    """One sequence being continued.

    `tokens` is the prompt and every token committed since. The keys and values of the leading `num_computed` of them
    lie in `pages`; while decoding exactly the last token is not yet computed. `epoch` counts pre-emptions and `round`
    verdicts. `parent` is a request whose prompt must be computed before this one starts (the samples of `n`).
    """

    id: int
    prompt: list[int]
    params: SamplingParams
    max_length: int
    tokens: list[int] = field(default_factory=list[int])
    num_computed: int = 0
    pages: list[int] = field(default_factory=list[int])
    status: Status = Status.WAITING
    epoch: int = 0
    round: int = 0
    parent: Request | None = None

    def __post_init__(self) -> None:
        if not self.tokens:
            self.tokens = list(self.prompt)

    @property
    def is_decoding(self) -> bool:
        """Whether only the last token is left to compute, so that drafts may follow it."""
        return self.status is Status.RUNNING and len(self.tokens) - self.num_computed == 1

    @property
    def remaining(self) -> int:
        """How many more tokens may be committed."""
        return self.max_length - len(self.tokens)


@dataclass(frozen=True)
class Work:
    """What one request computes in a step: `tokens` at positions `start`, `start` + 1, ...

    The last `num_draft` of them are drafted and not yet judged. `decides` is false for a chunk of a prompt that is not
    the last one: nothing is sampled after it. A chunk that decides wants the logits of its last num_draft + 1 rows.
    """

    request: Request
    start: int
    tokens: list[int]
    num_draft: int
    decides: bool
