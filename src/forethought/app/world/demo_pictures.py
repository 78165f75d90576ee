"""The pictures of the demo's page, drawn once and kept as SVG text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from forethought.app.world.measuring import TELEPORT, benchmark_settings
from forethought.app.world.pictures import film_strip, paths_over, trace_under_film
from forethought.data import Episodes, split_by_episode
from forethought.envs import System
from forethought.world import SurpriseMonitor, WorldModel
from forethought.world.collecting import environment_of
from forethought.world.decoder import DecoderConfig, fit_decoder
from forethought.world.planning import (
    EvaluationConfig,
    GoalConfig,
    GoalPolicy,
    SubgoalGraph,
    SubgoalPolicy,
    SystemArena,
    choose_pairs,
)
from forethought.world.planning.evaluate import run_policy
from forethought.world.surprise import perturbation
from forethought.world.surprise.benchmark import choose_runs, play

Array = NDArray[Any]
DECODER = DecoderConfig(steps=200, width=8)
IMAGINED = 6


def draw_pictures(model: WorldModel, parts: Mapping[str, Episodes], goal: GoalConfig) -> dict[str, str]:
    """Return every picture as SVG text, by name."""
    system = environment_of(parts["held_out"])
    arena = SystemArena(system, model.config.image_size)
    return {
        "imagined": imagined(model, parts),
        "path": path_picture(model, parts, arena, goal, system),
        "trace": trace_picture(model, parts, arena, system),
    }


def imagined(model: WorldModel, parts: Mapping[str, Episodes]) -> str:
    """Return what happened over what the model imagined from the first frame and the actions alone, decoded."""
    decoder, _ = fit_decoder(model, parts["train"], DECODER)
    episode, skip = parts["held_out"].episode(0), model.config.frame_skip
    count = min(IMAGINED, (len(episode["frames"]) - 1) // skip)
    frames = np.ascontiguousarray(episode["frames"][: count * skip + 1 : skip])
    actions = torch.from_numpy(np.asarray(episode["actions"][: count * skip], np.float32))
    with torch.no_grad():
        start = model.encode_all(torch.from_numpy(frames))
        rolled = model.rollout(start[:1, None], model.normalise_blocks(actions)[None])[0]
        rows = {
            "what happened": frames,
            "seen, decoded": decoder.pictures(start),
            "imagined": decoder.pictures(torch.cat([start[:1], rolled])),
        }
    return film_strip(rows, description="Frames of a held-out episode over the model's imagination of it")


def path_picture(
    model: WorldModel, parts: Mapping[str, Episodes], arena: SystemArena, goal: GoalConfig, system: System
) -> str:
    """Return the paths to one far goal with and without sub-goals, over the goal image."""
    longest = int(parts["held_out"].lengths.max()) - 1
    settings = EvaluationConfig(offset=min(90, longest), budget=120, num_pairs=12, num_seeds=1)
    pairs = choose_pairs(parts["held_out"], arena, settings, 3)
    far = int(np.abs(pairs.starts_BS - pairs.goals_BS)[:, 0].argmax())
    one = replace(
        pairs,
        starts_BS=pairs.starts_BS[far : far + 1],
        goals_BS=pairs.goals_BS[far : far + 1],
        goal_frames_BHWC=pairs.goal_frames_BHWC[far : far + 1],
    )
    policies = {
        "through sub-goals": SubgoalPolicy(model, SubgoalGraph(model, parts["train"]), goal),
        "straight planning": GoalPolicy(model, goal),
    }
    paths = {
        name: run_policy(policy, one, arena, settings.budget, 0)["path_TBS"][:, 0, :2]
        for name, policy in policies.items()
    }
    text = "Paths to a far goal, with sub-goals and without, over the image of the goal"
    return paths_over(one.goal_frames_BHWC[0], paths, span=float(system.state_high[0]), description=text)


def trace_picture(model: WorldModel, parts: Mapping[str, Episodes], arena: SystemArena, system: System) -> str:
    """Return the trace of surprise of a teleport, of a recolouring and of nothing, under the teleport's film strip."""
    halves = split_by_episode(parts["held_out"], seed=0, fractions={"calibrate": 0.6, "judge": 0.4})
    monitor = SurpriseMonitor(model, "log-z")
    monitor.calibrate(halves["calibrate"])
    settings = replace(benchmark_settings(system, int(halves["judge"].lengths.max()), 4), seed=1)
    runs = choose_runs(halves["judge"], settings)
    teleport = perturbation("teleport", distance=TELEPORT * (settings.high - settings.low) * 1.5)
    shown = {"teleport": teleport, "recolour": perturbation("recolour"), "nominal": None}
    films = {name: play(arena, runs, settings, broken) for name, broken in shown.items()}
    actions_BTA = runs.actions_TBA.swapaxes(0, 1)
    traces = {name: monitor.traces(film[:1], actions_BTA[:1])[0].z.tolist() for name, film in films.items()}
    text = "Surprise of every frame, in standard deviations, under the frames of the teleport"
    return trace_under_film(films["teleport"][0], traces, event=settings.event, threshold=3.0, description=text)
