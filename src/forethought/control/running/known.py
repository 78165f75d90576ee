"""What is known of some environments: where episodes end, and the returns that a normalised score is measured by.

The reference returns are D4RL's (arXiv 2004.07219); scores are 100 (R - random) / (expert - random). They depend on the
version of environment and engine, so a score is only ever given beside both.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Known:
    """The end of an episode as a function of observations (None: never), and the two reference returns."""

    ended: Callable[[Any], Any] | None
    random_return: float
    expert_return: float

    def score(self, total: float) -> float:
        """Return the normalised score of a return."""
        return 100.0 * (total - self.random_return) / (self.expert_return - self.random_return)


def _hopper(observation: Any) -> Any:
    # z and angle only: the bound of 100 on the others is never what ends an episode.
    return (observation[..., 0] <= 0.7) | (abs(observation[..., 1]) >= 0.2)


def _walker2d(observation: Any) -> Any:
    height, angle = observation[..., 0], observation[..., 1]
    return (height <= 0.8) | (height >= 2.0) | (abs(angle) >= 1.0)


KNOWN: dict[str, Known] = {
    "HalfCheetah": Known(None, -280.178953, 12135.0),
    "Hopper": Known(_hopper, -20.272305, 3234.3),
    "Walker2d": Known(_walker2d, 1.629008, 4592.3),
}


def known(env_id: str | None) -> Known | None:
    """Return what is known of an environment id such as Hopper-v5, or None."""
    return None if env_id is None else KNOWN.get(env_id.partition("-")[0])
