"""Planners against the exact optimum of linear-quadratic problems."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tests.plan.linear import double_integrator, random_problem

from forethought.core.rng import torch_generator
from forethought.plan import CEM, ICEM, MPPI, GradientPlanner, PredictiveSampling

# 100 random stable systems, 3 to 18 unknowns; sizes of the search that reach the optimum of nearly all of them.
THOROUGH = {
    "cem": CEM(num_candidates=500, num_elites=50, num_iterations=50, momentum=0.2),
    "icem": ICEM(noise_beta=0.25, momentum=0.3, num_iterations=60),
    "mppi": MPPI(num_candidates=1000, num_elites=200, num_iterations=60, temperature=1.0),
    "gradient": GradientPlanner(num_candidates=4, num_iterations=150, learning_rate=0.05),
}


def test_the_riccati_optimum_is_the_linear_solve():
    """The yardstick itself: no small change of the Riccati actions lowers the cost."""
    for index in range(10):
        problem = random_problem(index)
        best = problem.riccati()
        lowest = problem.cost(best)
        rng = np.random.default_rng(index)
        for _ in range(20):
            assert problem.cost(best + 1e-3 * rng.standard_normal(best.shape)) > lowest


@pytest.mark.parametrize("name", THOROUGH)
def test_random_problems_within_two_percent(name: str):
    ratios = []
    for index in range(100 if name != "gradient" else 30):
        problem = random_problem(index)
        plan = THOROUGH[name](problem.problem(), torch_generator(0, "lqr-test", index))
        ratios.append(problem.cost(plan.actions_BHA[0].numpy()) / problem.cost(problem.riccati()))
    assert min(ratios) > 1.0 - 1e-9
    assert np.mean(np.array(ratios) <= 1.02) >= 0.95


@pytest.mark.parametrize("planner", [*THOROUGH.values(), PredictiveSampling(num_iterations=40, shrink=0.9)])
def test_double_integrator(planner):
    problem = double_integrator()
    plan = planner(problem.problem(), torch_generator(1, "t"))
    assert problem.cost(plan.actions_BHA[0].numpy()) <= 1.02 * problem.cost(problem.riccati())
    assert plan.cost_B.item() == pytest.approx(problem.cost(plan.best_BHA[0].numpy()), rel=1e-9)


@pytest.mark.parametrize("name", THOROUGH)
def test_bounds_are_never_left(name: str):
    """Every candidate that the dynamics see, and the plan, lie inside the bounds; the optimum is cut off by them."""
    problem = double_integrator()
    seen = []

    def dynamics(start, actions_BNHA):
        seen.append((actions_BNHA.min().item(), actions_BNHA.max().item()))
        return problem.dynamics(start, actions_BNHA)

    assert abs(problem.riccati()).max() > 0.2
    low, high = torch.tensor([-0.1], dtype=torch.float64), torch.tensor([0.2], dtype=torch.float64)
    planner = THOROUGH[name]
    plan = planner(problem.problem(dynamics=dynamics, low=low, high=high), torch_generator(0, "t"))
    assert min(value for value, _ in seen) >= -0.1
    assert max(value for _, value in seen) <= 0.2
    assert plan.actions_BHA.min() >= -0.1
    assert plan.actions_BHA.max() <= 0.2
