"""The accounts of one request: what was drafted, and what became of every drafted token."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from forethought.decode.law.verify import Verdict


@dataclass
class Statistics:
    """Counts of one request; drafted = accepted + rejected + discarded, exactly and at any moment.

    accepted: drafted tokens that left the request. rejected: drafted tokens that the target replaced. discarded: those
    behind a rejection or behind the end of the request, which were never judged. target_forwards counts the rounds, one
    target forward each, the first of which reads the prompt along. lookups are verdicts for which SSD was asked for
    prepared work, hits those that it had foreseen, prepared the tokens that it drafted for verdicts to come.
    """

    emitted: int = 0
    target_forwards: int = 0
    draft_forwards: int = 0
    drafted: int = 0
    accepted: int = 0
    rejected: int = 0
    discarded: int = 0
    lookups: int = 0
    hits: int = 0
    prepared: int = 0

    @property
    def acceptance_rate(self) -> float | None:
        """Accepted tokens by judged ones, or None where none was judged."""
        judged = self.accepted + self.rejected
        return self.accepted / judged if judged else None

    @property
    def tokens_per_target_forward(self) -> float | None:
        """Emitted tokens by target forwards, or None before the first."""
        return self.emitted / self.target_forwards if self.target_forwards else None

    @property
    def cache_hit_rate(self) -> float | None:
        """Foreseen verdicts by all asked for, or None where SSD was not used."""
        return self.hits / self.lookups if self.lookups else None

    def count_round(self, num_drafted: int, verdict: Verdict, num_emitted: int) -> None:
        """Account for one round in which the first num_emitted of the kept tokens and the bonus token left."""
        accepted = min(verdict.accepted, num_emitted)
        rejected = int(verdict.accepted < num_drafted and num_emitted > verdict.accepted)
        self.target_forwards += 1
        self.emitted += num_emitted
        self.drafted += num_drafted
        self.accepted += accepted
        self.rejected += rejected
        self.discarded += num_drafted - accepted - rejected

    def to_dict(self) -> dict[str, Any]:
        """Return counts and rates as plain JSON values."""
        return {
            **asdict(self),
            "acceptance_rate": self.acceptance_rate,
            "tokens_per_target_forward": self.tokens_per_target_forward,
            "cache_hit_rate": self.cache_hit_rate,
        }
