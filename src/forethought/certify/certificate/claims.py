"""The claims that certificates are made of: which data, which share of delta, what it cost, and what came out."""

from __future__ import annotations

import hashlib
import math
from typing import Annotated, Literal

from pydantic import Field

from forethought.certify.codes.message import MAX_MESSAGE_BYTES
from forethought.core.config import config
from forethought.core.errors import ConfigError

Hash = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
Count = Annotated[int, Field(ge=0, le=1 << 53)]
NotNegative = Annotated[float, Field(ge=0)]
Probability = Annotated[float, Field(gt=0, lt=1)]
Text = Annotated[str, Field(max_length=4000)]


@config
class DataClaim:
    """Which data: their kind, fingerprint and number."""

    kind: Literal["examples", "tokens"]
    sha256: Hash
    size: Annotated[int, Field(ge=1, le=1 << 53)]


@config
class DeltaClaim:
    """The share of the data set's failure probability that this certificate took, and what others had taken before."""

    purpose: Text
    delta: Probability
    total: Probability
    spent_before: NotNegative = 0.0

    def __post_init__(self) -> None:
        if math.fsum((self.delta, self.spent_before)) > self.total * (1.0 + 1e-12):
            raise ConfigError(f"delta {self.delta} after {self.spent_before} exceeds the total {self.total}")


@config
class BitClaim:
    """The ledger in bits."""

    symbols: NotNegative
    codebook: NotNegative
    choices: NotNegative
    buffers: NotNegative
    total: NotNegative


@config
class MessageClaim:
    """The file that carries the message."""

    bytes: Annotated[int, Field(ge=1, le=MAX_MESSAGE_BYTES)]
    sha256: Hash


@config
class WeightClaim:
    """A fingerprint of the weights that tolerates the last digits: their number, sum of sizes, and signed sums."""

    count: Annotated[int, Field(ge=1)]
    absolute_sum: NotNegative
    probes: Annotated[tuple[float, ...], Field(min_length=8, max_length=8)]


@config
class ZeroOneResult:
    """The risk of a classifier and its bound; `bounds` are others for comparison, `bound` is the exact binomial one."""

    errors: Count
    n: Annotated[int, Field(ge=1, le=1 << 53)]
    train_risk: NotNegative
    bound: NotNegative
    trivial: NotNegative
    bounds: dict[str, float]
    loss: Literal["zero_one"] = "zero_one"


@config
class TokenResult:
    """The loss in nats a token of the model mixed with the uniform law, and its bound: the exact Freedman form."""

    n: Annotated[int, Field(ge=1, le=1 << 53)]
    train_risk: NotNegative
    bound: NotNegative
    trivial: NotNegative
    smoothing: Probability
    loss_range: NotNegative
    mean_square: NotNegative
    bounds: dict[str, float]
    loss: Literal["token"] = "token"


@config
class SampleClaim:
    """The risk was measured on so many examples, drawn with replacement; the draw is a function of message and data."""

    size: Annotated[int, Field(ge=1, le=1 << 53)]


@config
class GroupedResult:
    """The error of a classifier averaged within groups and then over them; the groups are the independent units.

    `n` is the number of groups, and the risk is that of a fresh group: the mean error over its examples.
    """

    errors: Count
    examples: Annotated[int, Field(ge=1, le=1 << 53)]
    n: Annotated[int, Field(ge=1, le=1 << 53)]
    train_risk: NotNegative
    bound: NotNegative
    trivial: NotNegative
    bounds: dict[str, float]
    loss: Literal["grouped_zero_one"] = "grouped_zero_one"


@config
class SampledResult:
    """A classifier's mistakes on `sampled` examples drawn from the n, and the bound that pays for that draw too."""

    errors: Count
    sampled: Annotated[int, Field(ge=1, le=1 << 53)]
    n: Annotated[int, Field(ge=1, le=1 << 53)]
    train_risk: NotNegative
    bound: NotNegative
    trivial: NotNegative
    bounds: dict[str, float]
    loss: Literal["sampled_zero_one"] = "sampled_zero_one"


@config
class DivergenceClaim:
    """The ledger in bits where no message is coded: KL(Q || P), or ln dQ/dP of the one run, and the choices."""

    divergence: NotNegative
    choices: NotNegative
    total: NotNegative


@config
class DrawsClaim:
    """How the risk of a stochastic predictor was found: networks drawn, and the part of delta that pays for them."""

    count: Annotated[int, Field(ge=1, le=1 << 24)]
    share: Annotated[float, Field(gt=0, lt=1)]


@config
class StochasticResult:
    """Mistakes of all networks drawn, each on all n examples; `risk_bound` is for the mean over all draws there are."""

    errors: Count
    n: Annotated[int, Field(ge=1, le=1 << 53)]
    train_risk: NotNegative
    risk_bound: NotNegative
    bound: NotNegative
    trivial: NotNegative
    bounds: dict[str, float]
    loss: Literal["stochastic_zero_one"] = "stochastic_zero_one"


@config
class TeacherClaim:
    """The side of a requential run that may depend on the data: it costs nothing but what it says to the student."""

    batch: Annotated[int, Field(ge=1, le=1 << 24)]
    lr: Annotated[float, Field(gt=0, le=1e3)]
    seed: Annotated[int, Field(ge=0, le=(1 << 63) - 1)]
    attempts: Annotated[int, Field(ge=1, le=1 << 20)]
    pause_above: Annotated[float, Field(gt=0)] | None


@config
class PoolClaim:
    """The unlabelled inputs of a student: the first `leading` rows of the data, or (0) a file of its own."""

    sha256: Hash
    size: Annotated[int, Field(ge=1, le=1 << 53)]
    leading: Annotated[int, Field(ge=0, le=1 << 53)]


@config
class RequentialResult:
    """The mistakes of the student after `steps`, and the bound on its error; EXPERIMENTAL."""

    errors: Count
    n: Annotated[int, Field(ge=1, le=1 << 53)]
    steps: Annotated[int, Field(ge=1, le=1 << 32)]
    train_risk: NotNegative
    expected_bits: NotNegative
    bound: NotNegative
    trivial: NotNegative
    bounds: dict[str, float]
    loss: Literal["requential_zero_one"] = "requential_zero_one"


def word_of(*parts: str | bytes) -> int:
    """Return a number below 2^63 that all the parts decide: nobody chooses a draw's seed without another message."""
    state = hashlib.sha256()
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        state.update(len(raw).to_bytes(8, "little") + raw)
    return int.from_bytes(state.digest()[:8], "little") >> 1
