"""What either side of a draft that lives elsewhere may be told."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from forethought.core.config import config
from forethought.decode.wire.protocol import MAX_TOKENS


@config
class SpeculatorOptions:
    """What the draft's side may do; how much it does for a request is asked for with every verdict.

    `num_speculative_tokens` and `budget` are the most that can be asked for, and what is prepared for before anything
    was. `saguaro` is the constant C of Saguaro sampling (1 is off). `extend` lets a branch that was not complete when
    its verdict came be drafted to the wanted length before it is sent. `defer` leaves drafts that are made on the spot
    to `work`, so that those of several requests are made together and delay no prepared one; `replies` then has them.
    `stride` is how many depths of greedy trees a unit of work grows: more cost less each, and a verdict waits longer.
    `prefill_chunk` is how many tokens of new texts a pass reads, `max_requests` how many are followed at a time.

    For tests of losslessness: `forced` turns every verdict, or every other one of a request, into one that was foreseen
    or not, and `max_depth` ends every tree early, as if it were late.

    Raises:
        ConfigError: a field is unknown or out of range.
    """

    num_speculative_tokens: Annotated[int, Field(ge=1, le=MAX_TOKENS)] = 7
    budget: Annotated[int, Field(ge=0, le=256)] = 16
    saguaro: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    extend: bool = False
    defer: bool = False
    stride: Annotated[int, Field(ge=1, le=MAX_TOKENS)] = 1
    prefill_chunk: Annotated[int, Field(ge=1)] = 256
    max_requests: Annotated[int, Field(ge=1)] = 256
    forced: Literal["hit", "miss", "alternating"] | None = None
    max_depth: Annotated[int, Field(ge=0)] | None = None


@config
class RemoteOptions:
    """How long the target waits for drafts, in seconds, and what it does without.

    `patience` is the longest wait of one step, `silence` how long, in steps together, nothing at all may come before
    the draft is given up, `opening` the longest wait for its first word. `late` is the draft of a request whose answer
    did not come. `draft_temperature` is that of the draft, the request's own unless given.

    Raises:
        ConfigError: a field is unknown or out of range.
    """

    patience: Annotated[float, Field(ge=0.0)] = 0.5
    silence: Annotated[float, Field(gt=0.0)] = 2.0
    opening: Annotated[float, Field(gt=0.0)] = 10.0
    late: Literal["ngram", "none"] = "ngram"
    draft_temperature: Annotated[float, Field(ge=0.0)] | None = None
