"""Adaptation to a changed body: only the dynamics learn, from reward-free play; proposal and value stay as they are.

The units stay those of the first data, or proposal and value would see others. The report says what was won on the new
body and what was lost on the old one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from forethought.control.models import ControlModel
from forethought.control.training import Data, PartConfig, RolloutError, fit_part, rollout_error
from forethought.core.config import config
from forethought.core.errors import ConfigError, DataError
from forethought.core.rng import generator
from forethought.core.run import Exists
from forethought.data.episodes import Episodes, concatenate, split_by_episode
from forethought.train import LoopConfig, OptimiserConfig


@config
class AdaptConfig:
    """How the dynamics are fine-tuned."""

    steps: int = Field(default=2000, ge=1)
    lr: float = Field(default=3e-4, gt=0.0)
    batch_size: int = Field(default=256, ge=1)
    mix_original: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of the training steps' windows that come from the original data, against forgetting."""
    validation: float = Field(default=0.1, gt=0.0, lt=1.0)
    """Share of the play episodes that nothing is trained on."""
    early_stop: bool = True
    """End with the weights that did best on held-out play, looked at twenty times."""
    seed: int = Field(default=0, ge=0)


@dataclass(frozen=True)
class AdaptationReport:
    """Errors by steps ahead on held-out play of the new body and on original data, before and after, and the model."""

    dynamics: ControlModel
    new_before: RolloutError
    new_after: RolloutError
    old_before: RolloutError | None
    old_after: RolloutError | None

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, the errors only."""
        named = {
            "new_before": self.new_before,
            "new_after": self.new_after,
            "old_before": self.old_before,
            "old_after": self.old_after,
        }
        return {name: None if error is None else error.to_dict() for name, error in named.items()}


def adapt(
    dynamics: ControlModel,
    play: Episodes,
    out: Path | str,
    *,
    original: Episodes | None = None,
    settings: AdaptConfig | None = None,
    exists: Exists = "refuse",
    facts: Mapping[str, Any] | None = None,
) -> AdaptationReport:
    """Fine-tune a copy of the dynamics on play data in a run directory and report before and after.

    Any model can be given that `train` knows (a joint model, for comparison); only dynamics have rollout errors.
    `Agent.swap_dynamics(report.dynamics)` puts it to work.

    Raises:
        ConfigError: mix_original is asked for without original data.
        DataError: the play data is of another body.
        InterruptedRunError: interrupted and saved.
    """
    wish = settings or AdaptConfig()
    if wish.mix_original and original is None:
        raise ConfigError(f"mix_original {wish.mix_original} needs the original episodes; give them, or 0")
    check_play(dynamics, play)
    parts = split_by_episode(
        play, seed=wish.seed, fractions={"train": 1.0 - wish.validation, "validation": wish.validation}
    )
    train = _mixed(parts["train"], original, wish)
    new_before, old_before = _errors(dynamics, parts["validation"], original)
    adapted = fit_part(
        f"{dynamics.part}.{dynamics.kind}",
        part_config(dynamics, wish),
        Data(train, parts["validation"]),
        dynamics.body,
        out,
        seed=wish.seed,
        start=dynamics,
        exists=exists,
        recipe="control.adapt",
        facts={"parent": dynamics.fingerprint(), "play_steps": play.num_steps, **dict(facts or {})},
    )
    new_after, old_after = _errors(adapted, parts["validation"], original)
    return AdaptationReport(adapted, new_before, new_after, old_before, old_after)


def part_config(model: ControlModel, wish: AdaptConfig) -> PartConfig:
    """Return the training settings of a fine-tuning run."""
    every = max(1, wish.steps // 20) if wish.early_stop else 0
    loop = LoopConfig(
        steps=wish.steps,
        evaluate_every=every,
        checkpoint_every=max(200, every),
        log_every=min(50, wish.steps),
        final="best" if wish.early_stop else "last",
    )
    optimiser = OptimiserConfig(lr=wish.lr, weight_decay=1e-4, beta2=0.99)
    return PartConfig(model=model.settings, batch_size=wish.batch_size, loop=loop, optimiser=optimiser)


def check_play(model: ControlModel, play: Episodes) -> None:
    """Check that play data is of the body that a model is for.

    Raises:
        DataError: the sizes differ, or numbers are not finite.
    """
    sizes = (model.body.obs_dim, model.body.act_dim)
    given = (play.observations.shape[1:], play.actions.shape[1:])
    if given != ((sizes[0],), (sizes[1],)):
        raise DataError(
            f"{play.source} has observations of {given[0]} and actions of {given[1]}; the model's body has {sizes}. "
            "Adaptation is for a changed body of the same sensors and actuators; train anew for another one"
        )
    play.require_finite(("observations", "actions"))


def _mixed(play: Episodes, original: Episodes | None, wish: AdaptConfig) -> Episodes:
    if not wish.mix_original or original is None:
        return play
    wanted = play.num_steps * wish.mix_original / (1.0 - wish.mix_original)
    order = generator(wish.seed, "control.mix").permutation(original.num_episodes)
    total = np.cumsum(original.lengths[order])
    chosen = np.sort(order[: int(np.searchsorted(total, wanted)) + 1])
    return concatenate([_plain(play), _plain(original.select(chosen))])


def _plain(episodes: Episodes) -> Episodes:
    """Return only what dynamics learn from, so that data of another source can be joined to it."""
    return Episodes(
        {name: np.asarray(episodes.array(name), np.float32) for name in ("observations", "actions")},
        starts=episodes.starts,
        lengths=episodes.lengths,
        terminated=episodes.terminated,
        truncated=episodes.truncated,
        finals={name: value for name, value in episodes.finals.items() if name == "observations"},
        source=episodes.source,
    )


def _errors(model: ControlModel, play: Episodes, original: Episodes | None) -> tuple[Any, Any]:
    if model.part != "dynamics":
        none = RolloutError(np.zeros(0), np.zeros(0))
        return none, None
    return rollout_error(model, play), None if original is None else rollout_error(model, original)
