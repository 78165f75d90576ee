"""Which verdicts to prepare for: what verdicts have been like so far, turned into a fan-out.

Whether a drafted token is kept is counted by its position, for drafts of every length alike; so is the rank of the
bonus token among the draft's guesses, apart after a rejection and after a fully accepted draft, which differ much.
All counts are kept apart by where drafts came from: those of the model, prompt look-ups, and no drafts at all. Until
enough was seen, a prior of 16 counts speaks: an acceptance of 0.7 and misses that fall with the fan-out as 1 / (F + 1)
after a rejection (arXiv 2603.03251, definition 11), and a third of that after a fully accepted draft.

Shape suffixes: G the two cases (rejected, all accepted), R ranks and one for all beyond.
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
_POSITION_PRIOR = 4.0
# A fan-out is reckoned anew when this much more was seen than the last time: it changes slowly, and reckoning it takes
# a few hundred microseconds.
_GROWTH = 1.1


class Foresight:
    """The verdicts of one request (or of several alike), and the fan-out that they suggest."""

    def __init__(self, fan_out: FanOut, budget: int, num_speculative_tokens: int) -> None:
        self._kind: FanOut = fan_out
        self._budget = budget
        self._prior_GR = _rank_prior(budget)
        self._ranks: defaultdict[str, OutcomeHistogram] = defaultdict(lambda: OutcomeHistogram(2, budget))
        self._kept = np.zeros(num_speculative_tokens)
        self._judged = np.zeros(num_speculative_tokens)
        self._num_seen, self._reckon_at = 0, 1
        self._fan_outs: dict[tuple[str, int, int, str], list[int]] = {}

    @property
    def acceptance(self) -> float:
        """The share of the model's judged tokens that were kept, the prior's among them."""
        kept = PRIOR_ACCEPTANCE * PRIOR_COUNT + float(self._kept.sum())
        return kept / (PRIOR_COUNT + float(self._judged.sum()))

    def observe(self, source: str, accepted: int, num_drafted: int, rank: int) -> None:
        """Count a verdict on a proposal from `source`, its bonus token at `rank` among the draft's guesses."""
        kin = _kin(source)
        self._ranks[kin].record(_ALL_ACCEPTED if accepted == num_drafted else _REJECTED, rank)
        if kin == "model":
            self._kept[:accepted] += 1.0
            self._judged[: accepted + (accepted < num_drafted)] += 1.0
        self._num_seen += 1
        if self._num_seen >= self._reckon_at:
            self._reckon_at = max(self._num_seen + 1, int(self._num_seen * _GROWTH))
            self._fan_outs.clear()

    def fan_out(
        self, source: str, num_drafted: int, *, budget: int | None = None, kind: FanOut | None = None
    ) -> list[int]:
        """Return how many guesses to prepare for after 0, 1, ... num_drafted accepted tokens; as many as the budget.

        Budget and kind are those of the constructor unless given; a budget beyond that one gains little.
        """
        size = self._budget if budget is None else budget
        key = (_kin(source), num_drafted, size, self._kind if kind is None else kind)
        if key not in self._fan_outs:
            self._fan_outs[key] = self._reckon(*key)
        return self._fan_outs[key]

    def _reckon(self, kin: str, num_drafted: int, budget: int, kind: str) -> list[int]:
        if kind == "uniform":
            return uniform(num_drafted + 1, budget)
        if kind == "geometric":
            return geometric(self.acceptance, num_drafted, budget)
        groups = [_REJECTED] * num_drafted + [_ALL_ACCEPTED]
        seen = self._ranks[kin]
        ranks = (seen.rank_histograms + PRIOR_COUNT * self._prior_GR[:, :-1])[groups]
        beyond = (seen.beyond + PRIOR_COUNT * self._prior_GR[:, -1])[groups]
        return empirical(self._length_weights(kin, num_drafted), ranks, budget, beyond=beyond)

    def _length_weights(self, kin: str, num_drafted: int) -> list[float]:
        """The probability of each accepted length."""
        overall = self.acceptance
        if kin != "model":
            return capped_geometric(overall, num_drafted)
        weights, reached = [], 1.0
        for kept, judged in zip(self._kept[:num_drafted], self._judged[:num_drafted], strict=True):
            share = (float(kept) + _POSITION_PRIOR * overall) / (float(judged) + _POSITION_PRIOR)
            weights.append(reached * (1.0 - share))
            reached *= share
        return [*weights, reached]


def _kin(source: str) -> str:
    """Drafts of the model are alike whether they were prepared or not."""
    return "model" if source in ("cache", "draft") else source


def _rank_prior(num_ranks: int) -> NDArray[np.float64]:
    """The prior law (2, num_ranks + 1) of the rank, the last place for all beyond."""
    hit = 1.0 - 1.0 / np.arange(1, num_ranks + 2)
    surer = np.where(hit > 0.0, 1.0 - (1.0 - hit) / 3.0, 0.0)
    return np.stack([np.append(np.diff(cumulative), 1.0 - cumulative[-1]) for cumulative in (hit, surer)])
