"""Planners under broken costs and degenerate problems (R26): the action is finite and inside the bounds, always."""

from __future__ import annotations

import pytest
import torch
from tests.plan.test_planners import QUICK, point_problem

from forethought.core.rng import torch_generator
from forethought.plan import goal_distance, over_horizon

BOX = (torch.tensor([-0.3, -0.3, -0.3]), torch.tensor([0.4, 0.4, 0.4]))


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")], ids=str)
@pytest.mark.parametrize("share", [0.5, 0.9])
@pytest.mark.parametrize("name", QUICK)
def test_most_candidates_may_be_broken(name: str, share: float, bad: float):
    draws = torch_generator(0, "broken")

    def objective(candidates):
        costs = over_horizon(goal_distance(torch.full((1, 3), 0.2)))(candidates)
        broken = torch.rand(costs.shape, generator=draws) < share
        broken[..., 0] = False
        return torch.where(broken, bad, costs)

    problem = point_problem(objective=objective, low=BOX[0], high=BOX[1])
    for seed in range(5):
        plan = QUICK[name](problem, torch_generator(seed, "p"))
        assert torch.isfinite(plan.actions_BHA).all()
        assert torch.isfinite(plan.cost_B).all()
        assert (plan.actions_BHA >= BOX[0] - 1e-6).all()
        assert (plan.actions_BHA <= BOX[1] + 1e-6).all()


@pytest.mark.parametrize("name", [name for name in QUICK if name != "categorical"])
def test_bounds_without_width_and_a_horizon_of_one(name: str):
    """There is one action that is allowed in two of three dimensions, and one step to plan."""
    low, high = torch.tensor([-0.1, 0.2, -1.0]), torch.tensor([-0.1, 0.2, 1.0])
    plan = QUICK[name](point_problem(horizon=1, low=low, high=high), torch_generator(0, "p"))
    assert plan.actions_BHA.shape == (1, 1, 3)
    torch.testing.assert_close(plan.actions_BHA[0, 0, :2], low[:2])
    assert torch.isfinite(plan.cost_B).all()
