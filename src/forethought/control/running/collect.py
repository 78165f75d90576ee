"""Collecting episodes: any Gymnasium environment, any policy, with exploration on top, resumable.

Actions are logged as commanded: a model of a body whose actuator is clamped must learn the clamp.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from forethought.control.running.episodes import run_episodes
from forethought.control.running.policies import Policy
from forethought.core.config import config, to_dict
from forethought.core.progress import track
from forethought.core.rng import generator
from forethought.data.episodes import Episodes
from forethought.data.episodes.writer import EpisodeWriter

Floats = NDArray[np.float32]


@config
class ExploreConfig:
    """What is added to a policy's actions, in units of half the range of each action."""

    noise: float = Field(default=0.0, ge=0.0)
    """Standard deviation of normal noise on every action."""
    uniform: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of the steps at which the action is drawn uniformly from its range instead."""


def collect(
    make: Callable[[], Any],
    policy: Policy,
    out: Path | str,
    *,
    episodes: int,
    explore: ExploreConfig | None = None,
    seed: int = 0,
    env_id: str | None = None,
    settings: Mapping[str, Any] | None = None,
    title: str = "collect",
) -> Episodes:
    """Run episodes, publish them as an artefact directory and return them; what an interruption left is gone on with.

    `settings` are plain JSON that says how the data came about; going on asks for the same.

    Raises:
        RunExistsError: the directory is there already.
        ConfigError: another collection was begun there.
        DataError: the environment returned numbers that are not finite.
    """
    wish = explore or ExploreConfig()
    # One environment only to ask what its actions are.
    asked = make()
    low, high = (np.asarray(bound, np.float32) for bound in (asked.action_space.low, asked.action_space.high))
    asked.close()
    facts = {"seed": seed, "episodes": episodes, "explore": to_dict(wish), **dict(settings or {})}
    with (
        EpisodeWriter(out, settings=facts, env_id=env_id, metadata=facts) as writer,
        track(title, episodes, unit="episodes") as bar,
    ):
        stream = (
            run_episodes(
                make, policy, episodes, seed=seed, first=writer.num_episodes, perturb=_perturb(wish, low, high, seed)
            )
            if writer.num_episodes < episodes
            else iter(())
        )
        for finished in stream:
            writer.append(
                finished.arrays(),
                terminated=finished.terminated,
                truncated=finished.truncated,
                finals={"observations": finished.final},
            )
            bar.update(writer.num_episodes, steps=writer.num_steps)
        return writer.finish()


def _perturb(wish: ExploreConfig, low: Floats, high: Floats, seed: int) -> Callable[[int, int, Floats], Floats] | None:
    if not wish.noise and not wish.uniform:
        return None
    half = (high - low) / 2

    def perturb(episode: int, step: int, action: Floats) -> Floats:
        rng = generator(seed, "control.explore", episode, step)
        if rng.random() < wish.uniform:
            return rng.uniform(low, high).astype(np.float32)
        noisy = action + wish.noise * half * rng.standard_normal(len(action)).astype(np.float32)
        return np.clip(noisy, low, high).astype(np.float32)

    return perturb
