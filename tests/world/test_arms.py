"""Ways to act beside the plain planner: a guided search, scripted behaviour, cheaper arithmetic; and their data."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from forethought.app.world.measuring import measure_probe
from forethought.data import Episodes
from forethought.envs import make_system
from forethought.envs.behaviour import make_policy
from forethought.world import WorldModel, preset
from forethought.world.collecting import CollectConfig, collect_episodes
from forethought.world.config import WorldConfig
from forethought.world.data import encode_rows
from forethought.world.planning import (
    EvaluationConfig,
    GoalConfig,
    GuidedPolicy,
    LatentDynamics,
    NoOpPolicy,
    ScriptedPolicy,
    SystemArena,
    choose_pairs,
    fit_inverse,
)
from forethought.world.planning.amortised import InverseConfig
from forethought.world.planning.dynamics import LatentStart
from forethought.world.planning.evaluate import run_policy
from forethought.world.probe import ProbeConfig
from tests.world.conftest import Dots
from tests.world.dots import dot_episodes


def test_a_guided_search_begins_at_the_guess_and_reaches_goals(trained: WorldModel, episodes: Episodes) -> None:
    network = fit_inverse(trained, episodes, InverseConfig(steps=300))
    held_out, arena = dot_episodes(8, 60, seed=9), Dots()
    pairs = choose_pairs(held_out, arena, EvaluationConfig(num_pairs=10), 3)
    # With no spread every candidate is the guess, so the plan is it.
    plans: list[torch.Tensor] = []
    still = GuidedPolicy(
        trained, network, GoalConfig(num_candidates=4, num_elites=2, num_iterations=1), spread=1e-9,
        on_plan=lambda plan: plans.append(plan.actions_BHA),
    )  # fmt: skip
    arena.reset(pairs.starts_BS)
    still.begin(pairs.goal_frames_BHWC, 0)
    still.act(arena.frames())
    start = trained.encode_all(torch.from_numpy(arena.frames()))
    torch.testing.assert_close(plans[0], still.guess(start[:, None], 5), atol=1e-5, rtol=0)
    guided = GuidedPolicy(trained, network, GoalConfig(execute=3, over="min", num_candidates=32, num_elites=4))
    assert np.mean(run_policy(guided, pairs, arena, 40, 0)["any_time"]) > 0.6


def test_half_precision_ranks_candidates_as_full_does() -> None:
    model = WorldModel(preset("small"), seed=1).eval().requires_grad_(False)
    draws = torch.Generator().manual_seed(0)
    start = LatentStart(torch.randn(2, 1, 192, generator=draws), torch.zeros(2, 0, 10))
    actions = torch.randn(2, 64, 3, 10, generator=draws)
    full, half = (LatentDynamics(model, 1, precision)(start, actions) for precision in ("fp32", "bf16"))
    assert half.dtype == full.dtype == torch.float32
    assert 0 < float((half - full).norm() / full.norm()) < 0.02
    goal = full[:, :1, -1:]
    first, second = ((each - goal).square().sum(-1)[:, 1:, -1].argsort(dim=1) for each in (full, half))
    shared = [len(set(a.tolist()) & set(b.tolist())) for a, b in zip(first[:, :12], second[:, :12], strict=True)]
    assert min(shared) >= 10


def test_scripted_behaviour_sees_states_and_is_told_goals() -> None:
    system = make_system("push-t")
    held = collect_episodes(CollectConfig(environment="push-t", behaviour="noisy", episodes=6, steps=60, image_size=16))
    arena = SystemArena(system, 16)
    protocol = EvaluationConfig(num_pairs=12, budget=60)
    pairs = choose_pairs(held, arena, protocol, 0)
    pusher = ScriptedPolicy(system, make_policy("push-t", "expert"))
    reached, again = (run_policy(pusher, pairs, arena, protocol.budget, 0) for _ in range(2))
    still = run_policy(NoOpPolicy(np.zeros(2)), pairs, arena, protocol.budget, 0)
    assert np.mean(reached["any_time"]) > np.mean(still["any_time"]) + 0.3
    assert np.array_equal(reached["path_TBS"], again["path_TBS"])


@pytest.mark.parametrize("environment", ["push-t", "reacher"])
def test_data_of_every_system_move_and_are_a_function_of_the_seed(environment: str) -> None:
    chosen = CollectConfig(environment=environment, episodes=12, steps=30, image_size=16)
    first, again = collect_episodes(chosen), collect_episodes(chosen)
    assert first.identity() == again.identity()
    assert first.metadata["behaviour"] == "data"
    assert (np.abs(first.array("actions")).max(axis=0) > 0.3).all()
    moved = first.observations.reshape(12, 30, -1)[:, -1] - first.observations.reshape(12, 30, -1)[:, 0]
    assert (np.abs(moved[:, :2]).max(axis=1) > 1e-3).all()


def test_angles_are_probed_as_directions_and_rows_are_encoded_as_they_are() -> None:
    held = collect_episodes(CollectConfig(environment="push-t", episodes=6, steps=30, image_size=16))
    model = WorldModel(WorldConfig(image_size=16, latent_size=32, projector_size=32)).eval()
    observations = held.observations.copy()
    # Whole turns change no picture and no direction.
    observations[:, 4] += 2 * np.pi * np.random.default_rng(0).integers(-3, 4, len(observations))
    turned = Episodes(
        {**held.arrays, "observations": observations}, starts=held.starts, lengths=held.lengths,
        terminated=held.terminated, truncated=held.truncated, env_id=held.env_id, source=held.source,
    )  # fmt: skip
    plain, other = (
        measure_probe(model, each, ProbeConfig(mlp_steps=1))["quantities"]["block_angle"]["linear"]
        for each in (held, turned)
    )
    assert other["mse"] == pytest.approx(plain["mse"], rel=1e-3)
    rows = np.array([5, 2, 170])
    frames = torch.from_numpy(np.ascontiguousarray(held.array("frames")[rows]))
    assert torch.equal(encode_rows(model, held, rows, batch=2), model.encode_all(frames, batch=2))
