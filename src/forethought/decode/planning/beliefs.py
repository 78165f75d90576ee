"""What a planner learns from verdicts and from the times of rounds: decayed counts with priors.

A verdict's weight falls with every later one, so that a change of the text is followed; a prior speaks until enough was
seen. Everything here depends on judged drafts and on times only, which is what keeps planning lossless.

Shape suffixes: K positions of a draft, F ranks of a guess.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from forethought.decode.planning.model_of_speed import Beliefs, Costs, Kin, Method, Plan, length_law
from forethought.lookahead import OutcomeHistogram

Floats = NDArray[np.float64]
KINS: tuple[Kin, ...] = ("model", "ngram", "rescue", "none")
LOOKUPS: tuple[Kin, ...] = ("ngram", "rescue")
PRIOR_ACCEPTANCE: dict[Kin, float] = {"model": 0.7, "ngram": 0.5, "rescue": 0.5, "none": 0.0}
PRIOR_FOUND = 0.5
DRAG_BOUNDS, DRAG_STEP = (0.5, 8.0), 0.05
# How far one method's passes depart from another's, as a share: a batch of many texts is no single one with many rows.
PASS_ERROR = 0.08
# In outcomes: a pooled prior that a dozen rounds overrule, and a pull of each position to the pooled rate.
POOLED_WEIGHT, POSITION_WEIGHT, RANK_WEIGHT, MISS_WEIGHT = 8.0, 8.0, 16.0, 4.0
# The short memory spans some 14 verdicts; its alarm is rare by chance (4.5 standard errors) and quick on a real change.
SHORT_DECAY, ALARM, FIRST_ALARM = 0.93, 4.5, 24


@dataclass
class _Acceptance:
    """The acceptance of one kin of drafts: counts by position with a long memory, and a short one that watches it.

    A long memory alone is steady and slow. Where the last dozen verdicts depart from what it expects of them by more
    than chance allows, the text has changed, and the short one takes its place.
    """

    kin: Kin
    max_length: int
    decay: float

    def __post_init__(self) -> None:
        self.tried_K, self.kept_K = np.zeros(self.max_length), np.zeros(self.max_length)
        self._lately_tried_K, self._lately_kept_K = np.zeros(self.max_length), np.zeros(self.max_length)
        self._surplus, self._spread, self._num_since = 0.0, 0.0, 0
        self._expected: dict[int, tuple[float, float]] = {}

    def observe(self, num_judged: int, accepted: int, num_drafted: int) -> bool:
        """Count a verdict and return whether it made the old counts go."""
        mean, variance = self._expectation(num_drafted)
        for tried_K, kept_K, decay in (
            (self.tried_K, self.kept_K, self.decay),
            (self._lately_tried_K, self._lately_kept_K, SHORT_DECAY),
        ):
            tried_K *= decay
            kept_K *= decay
            tried_K[:num_judged] += 1.0
            kept_K[:accepted] += 1.0
        self._surplus = self._surplus * SHORT_DECAY + accepted - mean
        self._spread = self._spread * SHORT_DECAY**2 + variance
        self._num_since += 1
        if self._num_since < FIRST_ALARM or self._surplus**2 <= ALARM**2 * self._spread:
            return False
        self.tried_K, self.kept_K = self._lately_tried_K.copy(), self._lately_kept_K.copy()
        self._surplus, self._spread, self._num_since = 0.0, 0.0, 0
        self._expected.clear()
        return True

    def _expectation(self, num_drafted: int) -> tuple[float, float]:
        """The mean and the variance of the accepted length, by the long memory of a moment ago."""
        if self._num_since % 16 == 0:
            self._expected.clear()
        if num_drafted not in self._expected:
            chances = length_law(self.law(0.0), num_drafted)
            lengths = np.arange(num_drafted + 1)
            mean = float(chances @ lengths)
            # Chances near 0 or 1 are not known well enough for a variance of nothing.
            self._expected[num_drafted] = (mean, max(float(chances @ lengths**2) - mean**2, 0.05))
        return self._expected[num_drafted]

    def pooled(self, prior: float | None = None) -> float:
        """Return the rate over all positions, drawn to what is expected of the kin or to what is given."""
        prior = PRIOR_ACCEPTANCE[self.kin] if prior is None else prior
        return (self.kept_K.sum() + prior * POOLED_WEIGHT) / (self.tried_K.sum() + POOLED_WEIGHT)

    def law(self, optimism: float, prior: float | None = None) -> Floats:
        """Return the chance of each position, drawn to the pooled rate where little was seen of it."""
        pooled = self.pooled(prior)
        rate_K = (self.kept_K + POSITION_WEIGHT * pooled) / (self.tried_K + POSITION_WEIGHT)
        return _hopeful(rate_K, self.tried_K, optimism)


@dataclass
class _Lookups:
    """How often prompt lookup finds something, and how much of the length asked for."""

    looked_up: float = 0.0
    found: float = 0.0
    length: float = 1.0

    def observe(self, num_drafted: int, wanted: int, decay: float) -> None:
        self.looked_up = self.looked_up * decay + 1.0
        self.found = self.found * decay + (num_drafted > 0)
        if num_drafted > 0 and wanted > 0:
            self.length += 0.02 * (min(num_drafted / wanted, 1.0) - self.length)

    def rate(self, optimism: float, prior: float) -> float:
        known = (self.found + prior * POOLED_WEIGHT) / (self.looked_up + POOLED_WEIGHT)
        return float(_hopeful(np.array(known), np.array(self.looked_up), optimism))


class VerdictCounts:
    """How verdicts fell: acceptance by position, ranks of bonus tokens, and foreseen verdicts."""

    def __init__(self, max_length: int, num_ranks: int, decay: float) -> None:
        self._decay, self._num_ranks = decay, num_ranks
        self._acceptance: dict[Kin, _Acceptance] = {kin: _Acceptance(kin, max_length, decay) for kin in KINS}
        self._ranks = {kin: OutcomeHistogram(2, num_ranks, decay) for kin in KINS}
        self._prior_GF = _rank_prior(num_ranks)
        self._lookups: dict[Kin, _Lookups] = {kin: _Lookups() for kin in LOOKUPS}
        self._verdicts, self._missed, self._misses_expected = 0.0, 0.0, 0.0

    def observe(self, kin: Kin, num_drafted: int, accepted: int, wanted: int) -> bool:
        """Count a verdict on a draft for which `wanted` tokens were asked; return whether old counts went for it."""
        counts = self._acceptance[kin]
        judged = min(accepted + 1, num_drafted)
        if kin in self._lookups:
            wanted = min(wanted, counts.max_length)
            self._lookups[kin].observe(num_drafted, wanted, self._decay)
            if num_drafted == 0 or wanted == 0:
                return False
            # Prompt lookup stops because it found no more, which is a failure; a model is cut for outer reasons only.
            judged = min(accepted + 1, max(num_drafted, wanted))
        longest = counts.max_length
        has_changed = counts.observe(min(judged, longest), min(accepted, longest), min(num_drafted, longest))
        if has_changed:
            self._ranks[kin] = OutcomeHistogram(2, self._num_ranks, self._decay)
        return has_changed

    def observe_rank(self, source: str, num_drafted: int, accepted: int, rank: int | None) -> None:
        """Count the rank of a bonus token among the draft's guesses, None for one that no guess would have caught."""
        # Guesses are made where verdicts are foreseen only, and there prompt lookup is what answers a miss.
        kin: Kin = "rescue" if source == "ngram" else "model" if source in ("cache", "draft") else "none"
        self._ranks[kin].record(int(accepted == num_drafted), rank)

    def observe_hit(self, was_foreseen: bool, expected: float) -> None:
        """Count a verdict that was foreseen or not, against the chance that the ranks alone gave it."""
        self._verdicts = self._verdicts * self._decay + 1.0
        self._missed = self._missed * self._decay + (not was_foreseen)
        self._misses_expected = self._misses_expected * self._decay + 1.0 - expected

    def beliefs(self, *, optimism: float = 0.0, by_ranks_alone: bool = False) -> Beliefs:
        """Return what is believed; `optimism` in standard errors leans to what would make speculation pay."""
        laws_K: dict[Kin, Floats] = {kin: counts.law(optimism) for kin, counts in self._acceptance.items()}
        # A rescue that was never seen will do no better than lookup does anywhere.
        laws_K["rescue"] = self._acceptance["rescue"].law(optimism, self._acceptance["ngram"].pooled())
        anywhere = self._lookups["ngram"].rate(0.0, PRIOR_FOUND)
        found: dict[Kin, float] = {
            "ngram": self._lookups["ngram"].rate(optimism, PRIOR_FOUND),
            "rescue": self._lookups["rescue"].rate(optimism, anywhere),
        }
        for kin, rate in found.items():
            laws_K[kin][0] *= rate
        laws_K["none"][:] = 0.0
        ranks_GF: dict[Kin, Floats] = {kin: self._rank_law(kin, optimism, by_ranks_alone) for kin in KINS}
        return Beliefs(laws_K, ranks_GF, found, {kin: lookups.length for kin, lookups in self._lookups.items()})

    def _rank_law(self, kin: Kin, optimism: float, by_ranks_alone: bool) -> Floats:
        seen = self._ranks[kin]
        counts_GF = seen.rank_histograms + RANK_WEIGHT * self._prior_GF[:, :-1]
        total_G1 = (counts_GF.sum(axis=1) + seen.beyond + RANK_WEIGHT * self._prior_GF[:, -1])[:, None]
        # Likelier guesses come first in truth; sorting takes out what chance has put out of order.
        caught_GF = np.cumsum(np.sort(counts_GF, axis=1)[:, ::-1], axis=1) / total_G1
        missed, expected = self._missed + MISS_WEIGHT, self._misses_expected + MISS_WEIGHT
        if not by_ranks_alone and missed <= expected:
            caught_GF = 1.0 - missed / expected * (1.0 - caught_GF)
        elif not by_ranks_alone:
            hits, foreseen = self._verdicts - self._missed, self._verdicts - self._misses_expected
            caught_GF = caught_GF * (hits + MISS_WEIGHT) / (foreseen + MISS_WEIGHT)
        leaning_G1 = np.maximum(1.0 - optimism / np.sqrt(total_G1 - RANK_WEIGHT + 4.0), 0.0)
        return np.diff(1.0 - leaning_G1 * (1.0 - np.clip(caught_GF, 0.0, 1.0)), axis=1, prepend=0.0)


def _hopeful(rate_K: Floats, num_seen_K: Floats, optimism: float) -> Floats:
    """Rates raised by some of their standard errors; what was never seen may be as good as can be."""
    error_K = np.sqrt(rate_K * (1.0 - rate_K) / (np.maximum(num_seen_K, 0.0) + 1.0))
    return np.clip(rate_K + optimism * error_K, 0.0, 1.0)


@dataclass
class _Decayed:
    """A decayed mean."""

    total: float = 0.0
    weight: float = 0.0

    def add(self, value: float, decay: float) -> None:
        self.total = self.total * decay + value
        self.weight = self.weight * decay + 1.0

    def mean(self, prior: float, prior_weight: float) -> float:
        return (self.total + prior * prior_weight) / (self.weight + prior_weight)


class RoundTimes:
    """How the times of rounds depart from what the curves say: passes by a factor, stalls and the host by seconds.

    A method's own departures count by how much was seen of it lately; one that was not seen departs as all do. Seen
    long ago is not seen: a method that had bad luck once is judged anew.
    """

    PRIOR_WEIGHT = 4.0

    def __init__(self, decay: float) -> None:
        self._decay = decay
        self._passes, self._host = _Decayed(), _Decayed()
        self._passes_of: dict[Method, _Decayed] = {}
        self._stall_of: dict[Method, _Decayed] = {}
        self._host_of: dict[Method, _Decayed] = {}
        self._log_drag = 0.0

    def observe(
        self, method: Method, *, passes: float, by_curve: float, stall: float, expected: float, host: float
    ) -> None:
        """Count a round: the measured parts of its time, and what the curves alone say of passes and stall."""
        for tables in (self._passes_of, self._stall_of, self._host_of):
            for name, other in tables.items():
                if name != method:
                    other.total, other.weight = other.total * self._decay, other.weight * self._decay
        # One slow round among fast ones is the machine's, and must not outweigh dozens.
        ratio = float(np.clip(passes / by_curve if by_curve > 0.0 else 1.0, 0.25, 4.0))
        ceiling = 4.0 * (expected + by_curve)
        self._passes.add(ratio, self._decay)
        self._passes_of.setdefault(method, _Decayed()).add(ratio, self._decay)
        self._stall_of.setdefault(method, _Decayed()).add(min(stall, ceiling) - expected, self._decay)
        host = min(max(host, 0.0), 4.0 * by_curve)
        self._host.add(host, self._decay)
        self._host_of.setdefault(method, _Decayed()).add(host, self._decay)

    def observe_depth(self, num_drafted: int, wanted: int, reach: float) -> None:
        """Count a foreseen draft of so many tokens where the draft's own pace would have `reach`ed a depth.

        A whole draft only says that trees grow at least so fast.
        """
        if reach <= 0.0 or num_drafted < 1:
            return
        depth = num_drafted + (0.5 if num_drafted < wanted else 0.0)
        implied = float(np.log(np.clip(reach / depth, *DRAG_BOUNDS)))
        if num_drafted < wanted or implied < self._log_drag:
            # The end of a text cuts drafts too: no single one may say much.
            self._log_drag += DRAG_STEP * float(np.clip(implied - self._log_drag, -0.7, 0.7))

    def costs(self, method: Method, by_curves: Costs, optimism: float = 0.0) -> Costs:
        """Return the costs with what was learned of a method's times.

        `optimism` in standard errors leans to shorter passes where little was seen of the method lately.
        """
        pooled = self._passes.mean(1.0, self.PRIOR_WEIGHT)
        seen = self._passes_of.get(method, _Decayed())
        factor = seen.mean(pooled, self.PRIOR_WEIGHT)
        factor *= 1.0 - min(optimism * PASS_ERROR, 0.5) * self.PRIOR_WEIGHT / (seen.weight + self.PRIOR_WEIGHT)
        return replace(
            by_curves,
            target=by_curves.target.scaled(factor),
            host=self._host_of.get(method, _Decayed()).mean(self._host.mean(by_curves.host, 4.0), self.PRIOR_WEIGHT),
            delay=self._stall_of.get(method, _Decayed()).mean(0.0, self.PRIOR_WEIGHT),
            drag=float(np.exp(self._log_drag)),
        )


def kin_of(source: str, plan: Plan) -> Kin:
    """Return which counts a draft belongs to; an empty one of prompt lookup counts there."""
    if source in ("cache", "draft"):
        return "model"
    if plan.method == "ssd" and (source == "ngram" or plan.fallback == "ngram"):
        return "rescue"
    return "ngram" if source == "ngram" or plan.method == "ngram" else "none"


def _rank_prior(num_ranks: int) -> Floats:
    """The prior (2, num_ranks + 1): misses fall as 1 / (F + 1) after a rejection, a third of that after none."""
    missed = 1.0 / np.arange(1, num_ranks + 2)
    falling = np.append(missed[:-1] - missed[1:], missed[-1])
    surer = falling / 3.0
    surer[0] = 1.0 - surer[1:].sum()
    return np.stack([falling, surer])
