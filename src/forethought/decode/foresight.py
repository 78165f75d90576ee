"""Which verdicts to prepare for: what verdicts have been like so far, turned into a fan-out.

The likelihood of accepted lengths and of the bonus token's rank among the draft's guesses are counted apart: ranks
after a rejection and after a fully accepted draft differ much, and both differ between drafts of the model and others.
Until enough was seen, a prior of 16 counts speaks: an acceptance of 0.7 and misses that fall with the fan-out F as
1 / (F + 1) after a rejection (arXiv 2603.03251, definition 11), and a third of that after a fully accepted draft.
"""

from __future__ import annotations

from collections import defaultdict
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from forethought.lookahead import OutcomeHistogram, capped_geometric, empirical, geometric, uniform

FanOut = Literal["uniform", "geometric", "empirical"]

PRIOR_ACCEPTANCE, PRIOR_COUNT = 0.7, 16.0
_REJECTED, _ALL_ACCEPTED = 0, 1


class Foresight:
    """The verdicts of one request (or of several alike), and the fan-out that they suggest."""

    def __init__(self, fan_out: FanOut, budget: int, num_speculative_tokens: int) -> None:
        self._kind: FanOut = fan_out
        self._budget = budget
        self._k = num_speculative_tokens
        self._prior_GR = _rank_prior(budget)
        self._ranks: defaultdict[str, OutcomeHistogram] = defaultdict(lambda: OutcomeHistogram(2, budget))
        self._lengths = {k: 0.0 for k in range(num_speculative_tokens + 1)}
        self._accepted, self._judged = PRIOR_ACCEPTANCE * PRIOR_COUNT, PRIOR_COUNT

    def observe(self, source: str, accepted: int, num_drafted: int, rank: int) -> None:
        """Count a verdict on a proposal from `source`, its bonus token at `rank` among the draft's guesses."""
        self._ranks[_kin(source)].record(_ALL_ACCEPTED if accepted == num_drafted else _REJECTED, rank)
        if _kin(source) == "model":
            self._accepted += accepted
            self._judged += accepted + (accepted < num_drafted)
            if num_drafted == self._k:
                self._lengths[accepted] += 1

    def fan_out(self, source: str, num_drafted: int) -> list[int]:
        """Return how many guesses to prepare for after 0, 1, ... num_drafted accepted tokens; as many as the budget."""
        if self._kind == "uniform":
            return uniform(num_drafted + 1, self._budget)
        if self._kind == "geometric":
            return geometric(self._accepted / self._judged, num_drafted, self._budget)
        groups = [_REJECTED] * num_drafted + [_ALL_ACCEPTED]
        seen = self._ranks[_kin(source)]
        ranks = (seen.rank_histograms + PRIOR_COUNT * self._prior_GR[:, :-1])[groups]
        beyond = (seen.beyond + PRIOR_COUNT * self._prior_GR[:, -1])[groups]
        return empirical(self._length_weights(num_drafted), ranks, self._budget, beyond=beyond)

    def _length_weights(self, num_drafted: int) -> list[float]:
        """The weight of each accepted length; longer ones than can be had now count as the longest."""
        prior = capped_geometric(self._accepted / self._judged, self._k)
        weights = [PRIOR_COUNT * p + self._lengths[k] for k, p in enumerate(prior)]
        return [*weights[:num_drafted], sum(weights[num_drafted:])]


def _kin(source: str) -> str:
    """Drafts of the model are alike whether they were prepared or not."""
    return "model" if source in ("cache", "draft") else source


def _rank_prior(num_ranks: int) -> NDArray[np.float64]:
    """The prior law (2, num_ranks + 1) of the rank, the last place for all beyond."""
    hit = 1.0 - 1.0 / np.arange(1, num_ranks + 2)
    surer = np.where(hit > 0.0, 1.0 - (1.0 - hit) / 3.0, 0.0)
    return np.stack([np.append(np.diff(cumulative), 1.0 - cumulative[-1]) for cumulative in (hit, surer)])
