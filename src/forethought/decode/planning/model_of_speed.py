"""Tokens a second of a way to speculate, predicted from what passes cost and how verdicts fall.

A round of SSD takes max(T_v(n) + link, t_glue + d t_d(bB)) and what host and misses add, with d <= K the depth that the
tree has reached; one of classic drafting K t_d(b) + T_v(n); all passes by measured curves.
Shape suffixes: K positions or lengths of a draft, G groups of verdicts (after a rejection, after none), F ranks of a
guess, B budgets, J lengths of a draft made after a miss.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from forethought.core.config import config
from forethought.core.errors import InputError
from forethought.decode.drafter.foresight import FanOut
from forethought.decode.planning.curves import Curve, Timing
from forethought.lookahead import geometric, uniform

Floats = NDArray[np.float64]
Method = Literal["none", "ngram", "draft", "ssd"]
Fallback = Literal["draft", "ngram", "none"]
# Prompt lookup by itself, and as the answer to a verdict that the model did not foresee: a harder place in the text.
Kin = Literal["model", "ngram", "rescue", "none"]


@dataclass(frozen=True)
class Plan:
    """How to speculate: `budget` foreseen verdicts a sequence a round, drafts of `num_speculative_tokens`.

    `jit_length` is the length of a draft that the model makes after a verdict that was not foreseen.
    """

    method: Method = "none"
    num_speculative_tokens: int = 0
    budget: int = 0
    fan_out: FanOut = "empirical"
    fallback: Fallback = "draft"
    jit_length: int = 0

    @property
    def speculate(self) -> bool:
        """Whether any token is drafted."""
        return self.method != "none"


@dataclass(frozen=True)
class Costs:
    """What passes cost at one context, in seconds.

    `link`: a verdict's way to the draft and the draft's way back. `draft_link`: the same where drafting is classic (0
    where it happens beside the target). `host`: everything in a round that is no pass, done
    while the draft's side already works. `extra_forwards`: passes of
    classic drafting beyond one a token. `ngram`: a look-up in one text. `delay`: waits beyond all these, as learned.
    `drag`: how much slower trees grow beside the target's passes than the draft's passes alone.
    """

    target: Timing
    draft: Timing | None = None
    link: float = 0.0
    draft_link: float = 0.0
    host: float = 0.0
    extra_forwards: int = 0
    ngram: float = 0.0
    delay: float = 0.0
    drag: float = 1.0


@config
class CostCurves:
    """What passes cost at any context; the fields are those of `Costs`.

    `contention`: how much longer a pass of the target takes while a draft computes beside it; a simulation knows it, a
    planner learns it.
    """

    target: Curve
    draft: Curve | None = None
    link: float = 0.0
    draft_link: float = 0.0
    host: float = 0.0
    extra_forwards: int = 0
    ngram: float = 0.0
    contention: float = 1.0

    def at(self, context: float = 0.0) -> Costs:
        """Return the costs at one context."""
        draft = None if self.draft is None else self.draft.at(context)
        return Costs(
            self.target.at(context), draft, self.link, self.draft_link, self.host, self.extra_forwards, self.ngram
        )


@dataclass(frozen=True)
class Beliefs:
    """How verdicts fall: by where a draft came from, the chance of each position and the law of the bonus token's rank.

    `acceptance_K` of a kin is the chance that a token is kept when all before it were. `ranks_GF` (2, F) holds, after a
    rejection and after a fully accepted draft, the chance that the bonus token is the draft's guess of each rank, not
    rising. Prompt lookup finds something with the chance `found` of its kin, which is part of its first acceptance too,
    and then proposes the share `length` of the length asked for.
    """

    acceptance_K: dict[Kin, Floats]
    ranks_GF: dict[Kin, Floats]
    found: dict[Kin, float] = field(default_factory=dict[Kin, float])
    length: dict[Kin, float] = field(default_factory=dict[Kin, float])
    _hits: dict[tuple[Kin, int, FanOut], tuple[list[int], Floats]] = field(default_factory=dict, repr=False)

    def hits(self, kin: Kin, length: int, budgets_B: NDArray[np.int64], fan_out: FanOut) -> Floats:
        """Return for each budget the chance that the verdict on a draft of this kin and length was foreseen."""
        known, found = self._hits.get((kin, length, fan_out), ([], np.zeros(0)))
        if known != budgets_B.tolist():
            found = self._reckoned(kin, length, budgets_B, fan_out)
            self._hits[kin, length, fan_out] = (budgets_B.tolist(), found)
        return found

    def _reckoned(self, kin: Kin, length: int, budgets_B: NDArray[np.int64], fan_out: FanOut) -> Floats:
        acceptance_K = self.acceptance_K[kin]
        if kin not in ("ngram", "rescue"):
            return hit_probabilities(length_law(acceptance_K, length), self.ranks_GF[kin], budgets_B, fan_out)
        # A look-up that finds nothing leaves one row to guess for, and is known before the guessing.
        acceptance_K, share = acceptance_K.copy(), self.found.get(kin, 1.0)
        acceptance_K[:1] = np.minimum(acceptance_K[:1] / max(share, 1e-12), 1.0)
        found_B = hit_probabilities(length_law(acceptance_K, length), self.ranks_GF[kin], budgets_B, fan_out)
        return share * found_B + (1.0 - share) * self.hits("none", 0, budgets_B, fan_out)

    def drafted(self, kin: Kin, length: int) -> float:
        """Return how many tokens prompt lookup proposes on average where `length` are asked for."""
        return self.found.get(kin, 1.0) * self.length.get(kin, 1.0) * length


@dataclass(frozen=True)
class Forecast:
    """What one round of a plan is expected to bring over the whole batch: tokens, and where the seconds go.

    `hit` is the share of drafts that were foreseen, `passes` the target's time, `stall` its waiting for drafts, `reach`
    the depth that trees would have by then at the draft's own pace, were they not cut at the length of a draft.
    """

    plan: Plan
    tokens: float
    passes: float
    stall: float
    host: float
    rows: float
    hit: float = 0.0
    reach: float = 0.0

    @property
    def seconds(self) -> float:
        """The time of one round."""
        return self.passes + self.stall + self.host

    @property
    def rate(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds if self.seconds > 0 else 0.0


def expected_tokens(acceptance_K: ArrayLike) -> Floats:
    """Return the tokens of a round, the bonus with them, for drafts of 0, 1, ... K tokens: shape (K + 1,)."""
    return np.concatenate([[1.0], 1.0 + np.cumsum(np.cumprod(np.asarray(acceptance_K, dtype=np.float64)))])


def length_law(acceptance_K: Floats, length: int) -> Floats:
    """Return the chance of 0, 1, ... length accepted tokens."""
    reach = np.concatenate([[1.0], np.cumprod(acceptance_K[:length])])
    return np.append(reach[:-1] - reach[1:], reach[-1])


def hit_probabilities(lengths_K: Floats, ranks_GF: Floats, budgets_B: NDArray[np.int64], fan_out: FanOut) -> Floats:
    """Return for each budget the chance that a verdict was foreseen, by the fan-out that lookahead would allot.

    lengths_K: the law of accepted lengths, the last of them the whole draft. Water-filling takes the largest gains
    first, so that its chance for every budget is one cumulative sum.
    """
    ranks_KF = np.concatenate([np.repeat(ranks_GF[:1], len(lengths_K) - 1, axis=0), ranks_GF[1:]])
    if fan_out == "empirical":
        gains = np.sort((lengths_K[:, None] * ranks_KF).ravel())[::-1]
        return np.concatenate([[0.0], np.cumsum(gains)])[np.minimum(budgets_B, gains.size)]
    caught_KF = np.concatenate([np.zeros((len(lengths_K), 1)), np.cumsum(ranks_KF, axis=1)], axis=1)
    # The one number that the geometric law knows of the lengths: accepted tokens by judged ones.
    accepted = float(lengths_K @ np.arange(len(lengths_K)))
    judged = accepted + 1.0 - float(lengths_K[-1])
    rate = accepted / judged if judged > 0.0 else 1.0
    found: list[float] = []
    for budget in budgets_B.tolist():
        slots = uniform(len(lengths_K), budget) if fan_out == "uniform" else geometric(rate, len(lengths_K) - 1, budget)
        caught = [caught_KF[k, min(count, caught_KF.shape[1] - 1)] for k, count in enumerate(slots)]
        found.append(float(lengths_K @ np.asarray(caught)))
    return np.asarray(found)


def plain(costs: Costs, batch_size: float) -> Forecast:
    """Forecast plain decoding."""
    return Forecast(Plan(), batch_size, float(costs.target(batch_size)), 0.0, costs.host, batch_size)


def from_ngrams(costs: Costs, beliefs: Beliefs, batch_size: float, length: int) -> Forecast:
    """Forecast prompt lookup with drafts of at most `length` tokens."""
    tokens = batch_size * float(expected_tokens(beliefs.acceptance_K["ngram"])[length])
    rows = batch_size * (1.0 + beliefs.drafted("ngram", length))
    stall = max(batch_size * costs.ngram + costs.delay, 0.0)
    plan = Plan("ngram", length, jit_length=length)
    return Forecast(plan, tokens, float(costs.target(rows)), stall, costs.host, rows)


def classic(costs: Costs, beliefs: Beliefs, batch_size: float, length: int) -> Forecast:
    """Forecast drafting that waits for every verdict."""
    draft = _draft_of(costs)
    rows = batch_size * (1.0 + length)
    drafting = (length + costs.extra_forwards) * float(draft(batch_size)) + costs.draft_link
    stall = max(drafting - costs.host + costs.delay, 0.0)
    tokens = batch_size * float(expected_tokens(beliefs.acceptance_K["model"])[length])
    plan = Plan("draft", length, jit_length=length)
    return Forecast(plan, tokens, float(costs.target(rows)), stall, costs.host, rows)


def foreseeing(
    costs: Costs,
    beliefs: Beliefs,
    batch_size: float,
    lengths: Sequence[int],
    budgets: Sequence[int],
    fallback: Fallback,
    fan_out: FanOut = "empirical",
    jit_lengths: Sequence[int] | None = None,
) -> Forecast:
    """Forecast SSD at the best of these lengths and budgets, and of these lengths of the draft after a miss.

    Hits follow a chain of two states: what is foreseen depends on whether the draft being judged was itself foreseen
    or made after a miss, since these have different lengths and ranks. A row that misses holds up the batch only where
    the model drafts for it on the spot.
    """
    draft, kin = _draft_of(costs), _KIN[fallback]
    after_miss = [0] if fallback == "none" else list(lengths if jit_lengths is None else jit_lengths)
    length_K11 = np.asarray(lengths, dtype=np.int64)[:, None, None]
    length_J1 = np.asarray(after_miss, dtype=np.int64)[:, None]
    budgets_B = np.asarray(budgets, dtype=np.int64)
    step_B, places_B = costs.drag * draft(batch_size * budgets_B), np.arange(len(budgets))
    table = np.stack([beliefs.hits("model", k, budgets_B, fan_out) for k in range(int(length_K11.max()) + 1)])
    back_JB = np.stack([beliefs.hits(kin, j, budgets_B, fan_out) for j in after_miss])
    share = beliefs.drafted("rescue", 1) if fallback == "ngram" else 1.0
    depth_KJB, hit_KJB, glue_KJB = length_K11 + 0 * back_JB.astype(np.int64), np.ones(1), np.zeros(1)
    reach_KJB = np.zeros(depth_KJB.shape)
    rows_KJB = batch_size * (1.0 + depth_KJB)
    # Rows, hits and depths hang on one another; from full drafts two rounds of that are enough.
    for _ in range(2):
        glue_KJB = costs.drag * draft(rows_KJB)
        # A verdict that comes before the tree is complete is heard after the pass under way: a hit has that depth.
        reach_KJB = (costs.target(rows_KJB) + costs.link - glue_KJB) / np.maximum(step_B, 1e-12)
        depth_KJB = np.clip(np.ceil(reach_KJB - 1e-9), 0, length_K11).astype(np.int64)
        # The share of rounds answered from the cache is the stationary law of that chain.
        hit_KJB = back_JB / np.maximum(1.0 - table[depth_KJB, places_B] + back_JB, 1e-12) * (depth_KJB > 0)
        hit_KJB = np.clip(hit_KJB, 0.0, 1.0)
        rows_KJB = batch_size * (1.0 + hit_KJB * depth_KJB + (1.0 - hit_KJB) * share * length_J1)
    miss_KJB, passes_KJB = 1.0 - hit_KJB, costs.target(rows_KJB)
    tokens_hit_KJB = expected_tokens(beliefs.acceptance_K["model"])[depth_KJB]
    tokens_J1 = expected_tokens(beliefs.acceptance_K[kin])[length_J1]
    tokens_KJB = batch_size * (hit_KJB * tokens_hit_KJB + miss_KJB * tokens_J1)
    # What the host does goes on while drafts are made, in every round by itself: a mean of waits hides nothing.
    waiting_KJB = np.maximum(glue_KJB + depth_KJB * step_B - passes_KJB, costs.link) - costs.host + costs.delay
    stall_KJB = np.maximum(waiting_KJB, 0.0)
    if fallback == "draft":
        any_miss_KJB = 1.0 - hit_KJB**batch_size
        missing_KJB = batch_size * miss_KJB / np.maximum(any_miss_KJB, 1e-12)
        late_KJB = np.maximum(waiting_KJB + length_J1 * draft(missing_KJB), 0.0)
        stall_KJB = stall_KJB + any_miss_KJB * (late_KJB - stall_KJB)
    elif fallback == "ngram":
        stall_KJB = stall_KJB + batch_size * miss_KJB * costs.ngram
    rates_KJB = tokens_KJB / np.maximum(passes_KJB + stall_KJB + costs.host, 1e-12)
    # Prompt lookup costs nothing a token, so it proposes whatever length is wanted.
    fits_KJ1 = (length_J1 == length_K11) if fallback == "ngram" else (length_J1 <= length_K11)
    rates_KJB = np.where(fits_KJ1, rates_KJB, -1.0)
    best = np.unravel_index(int(rates_KJB.argmax()), rates_KJB.shape)
    k, j, b = (int(place) for place in best)
    plan = Plan("ssd", int(lengths[k]), int(budgets[b]), fan_out, fallback, after_miss[j])
    tokens, passes, stall = (float(values[best]) for values in (tokens_KJB, passes_KJB, stall_KJB))
    reach = float(reach_KJB[best]) * costs.drag
    return Forecast(plan, tokens, passes, stall, costs.host, float(rows_KJB[best]), float(hit_KJB[best]), reach)


def forecast(plan: Plan, costs: Costs, beliefs: Beliefs, batch_size: float) -> Forecast:
    """Forecast one given plan."""
    if plan.method == "none":
        return plain(costs, batch_size)
    if plan.method == "ngram":
        return from_ngrams(costs, beliefs, batch_size, plan.num_speculative_tokens)
    if plan.method == "draft":
        return replace(classic(costs, beliefs, batch_size, plan.num_speculative_tokens), plan=plan)
    return foreseeing(
        costs,
        beliefs,
        batch_size,
        [plan.num_speculative_tokens],
        [plan.budget],
        plan.fallback,
        plan.fan_out,
        [plan.num_speculative_tokens if plan.fallback == "ngram" else plan.jit_length],
    )


_KIN: dict[Fallback, Kin] = {"draft": "model", "ngram": "rescue", "none": "none"}


def _draft_of(costs: Costs) -> Timing:
    if costs.draft is None:
        raise InputError("drafting with a model needs the curve of its passes; give the draft's curve")
    return costs.draft
