"""SSR: the best of what was proposed, rankings, warm start, the budget of time, refinement."""

from __future__ import annotations

import pytest
import torch

from forethought.control import Constraint, Objective, SSRConfig, SSRPlanner
from forethought.control.objectives.judge import Judge
from forethought.control.planning import Budget, Level, rank, shift
from forethought.control.planning.budget import ladder
from forethought.core.errors import ConfigError
from forethought.core.rng import torch_generator
from forethought.plan import CEM, Candidates, Problem


def _propose(start, num, generator):
    return torch.randn(len(start), num, 4, 1, generator=generator)


def _problem(objective=None, dynamics=None, **options):
    chosen = objective or Objective(lambda s, a, s2: -((s2[..., 0] - 0.3) ** 2))
    return Problem(
        dynamics=dynamics or (lambda start, actions: actions.cumsum(2) + start[:, None, None]),
        objective=chosen if isinstance(chosen, Judge) else Judge(chosen),
        start=torch.zeros(2, 1),
        horizon=4,
        action_dim=1,
        num_environments=2,
        **options,
    )


def test_it_takes_the_best_of_its_own_candidates():
    problem = _problem()
    plan = SSRPlanner(_propose, SSRConfig(num_samples=32))(problem, torch_generator(0, "t"))
    candidates = _propose(problem.start, 32, torch_generator(0, "t"))
    costs = ((candidates.cumsum(2)[..., 0] - 0.3) ** 2).sum(2)
    for robot in range(2):
        assert torch.equal(plan.actions_BHA[robot], candidates[robot, costs[robot].argmin()])
    assert torch.allclose(plan.cost_B, costs.min(1).values, atol=1e-5)


def test_the_order_of_candidates_does_not_matter():
    actions, costs = torch.randn(1, 6, 4, 1), torch.tensor([[3.0, 1.0, 2.0, 9.0, 5.0, 4.0]])
    order = torch.randperm(6, generator=torch_generator(0, "order"))
    for name in ("best", "top_k", "soft"):
        one = rank(name, actions, costs, top_k=3, temperature=0.3)
        assert torch.allclose(one, rank(name, actions[:, order], costs[:, order], top_k=3, temperature=0.3), atol=1e-6)


def test_rankings_average_what_they_say():
    actions, costs = torch.arange(4.0).reshape(1, 4, 1, 1), torch.tensor([[1.0, 2.0, torch.inf, 3.0]])
    assert rank("best", actions, costs, top_k=1, temperature=1.0).item() == 0.0
    assert rank("top_k", actions, costs, top_k=2, temperature=1.0).item() == pytest.approx(0.5)
    assert rank("top_k", actions, costs, top_k=4, temperature=1.0).item() == pytest.approx(4 / 3)
    assert rank("soft", actions, costs, top_k=1, temperature=1e-3).item() == pytest.approx(0.0, abs=1e-5)
    assert rank("soft", actions, costs, top_k=1, temperature=1e6).item() == pytest.approx(4 / 3, abs=1e-3)


def test_one_candidate_is_enough_and_the_bounds_hold_before_the_dynamics():
    seen = []

    def dynamics(start, actions):
        seen.append(actions.abs().max().item())
        return actions

    bound = torch.tensor([0.1])
    plan = SSRPlanner(_propose, SSRConfig(num_samples=1))(
        _problem(dynamics=dynamics, low=-bound, high=bound), torch_generator(0, "t")
    )
    assert plan.actions_BHA.abs().max() <= 0.1 + 1e-6
    assert max(seen) <= 0.1 + 1e-6


def test_the_last_plan_competes_and_wins_when_it_is_better():
    problem, perfect = _problem(), torch.tensor([0.3, 0.0, 0.0, 0.0]).reshape(1, 4, 1).expand(2, -1, -1)
    planner = SSRPlanner(_propose, SSRConfig(num_samples=8, warm_start=True))
    assert torch.equal(planner(problem, torch_generator(0, "t"), warm_BHA=perfect).actions_BHA, perfect)
    cold = SSRPlanner(_propose, SSRConfig(num_samples=8, warm_start=False))
    assert not torch.equal(cold(problem, torch_generator(0, "t"), warm_BHA=perfect).actions_BHA, perfect)
    assert shift(torch.arange(4.0).reshape(1, 4, 1), 2).flatten().tolist() == [2.0, 3.0, 3.0, 3.0]


def test_a_planner_of_plan_refines_the_answer():
    problem = _problem(low=-torch.ones(1), high=torch.ones(1))
    plain = SSRPlanner(_propose, SSRConfig(num_samples=4))(problem, torch_generator(0, "t"))
    refined = SSRPlanner(_propose, SSRConfig(num_samples=4), refine=CEM())(problem, torch_generator(0, "t"))
    assert (refined.cost_B < plain.cost_B).all()
    assert torch.allclose(problem.objective(_candidates(problem, refined)), refined.cost_B[:, None], atol=1e-5)


def _candidates(problem, plan):
    from forethought.plan import Candidates

    actions = plan.actions_BHA[:, None]
    return Candidates(problem.start, actions, problem.dynamics(problem.start, actions))


def test_a_late_planner_gives_up_steps_then_candidates_and_counts_what_was_late():
    clock = iter(range(100_000))
    planner = SSRPlanner(_propose, SSRConfig(num_samples=64, budget_ms=500.0), clock=lambda: next(clock) * 1.0)
    for index in range(8):
        plan = planner(_problem(), torch_generator(0, "t", index))
        assert plan.timed_out
    assert planner.budget.num_misses == planner.budget.num_plans == 8
    assert plan.population.costs_BN.shape[1] == 4


def test_the_budget_goes_down_and_comes_back_up():
    budget = Budget(ladder(Level(64, 8, 8)), 0.02)
    assert [(level.num_samples, level.proposal_steps) for level in budget.levels][:4] == [
        (64, 8),
        (64, 4),
        (64, 2),
        (32, 2),
    ]
    for _ in range(20):
        level = budget.choose()
        budget.record(1e-4 * level.num_samples * level.proposal_steps)
    slow = budget.choose()
    assert slow.num_samples * slow.proposal_steps * 1e-4 <= 0.02
    assert 1 <= budget.num_misses < 10
    for _ in range(60):
        budget.choose()
        budget.record(1e-6)
    assert budget.choose().proposal_steps > slow.proposal_steps or budget.choose().num_samples > slow.num_samples
    assert Budget(ladder(Level(64, 8, 8))).choose() == Level(64, 8, 8)


def test_steps_are_handed_to_models_that_have_them(models):
    proposal = models["proposal.diffusion"]
    fewer = proposal.with_steps(1)
    assert fewer.num_steps == 1
    assert proposal.num_steps == 2
    assert fewer.fingerprint() == proposal.fingerprint()


def test_bad_settings_are_refused():
    with pytest.raises(ConfigError, match="proposal returned"):
        SSRPlanner(lambda *_: torch.zeros(2, 8, 3, 1))(_problem(), torch_generator(0, "t"))
    with pytest.raises(ConfigError, match="num_samples"):
        SSRConfig(num_samples=0)
    with pytest.raises(ConfigError, match="weight"):
        Constraint.soft(lambda s, a, s2: 0.0, limit=1.0, weight=-1.0)


def test_where_all_are_rejected_the_cheapest_of_those_with_fewest_violations_wins():
    # Candidate 0 breaks the constraint twice; 1 and 2 once, and 2 is the cheaper of them.
    states = torch.tensor([[[1.0, 1.0], [1.0, 0.2], [1.0, 0.1]]])[..., None]
    judge = Judge(
        Objective(lambda before, action, after: -after[..., 0]),
        [Constraint.hard(lambda before, action, after: after[..., 0] < 0.5)],
    )
    verdict = judge.verdict(Candidates(torch.zeros(1, 1), torch.zeros(1, 3, 2, 1), states, 0))
    assert verdict.all_rejected_B.tolist() == [True]
    assert verdict.costs_BN.argsort(1).tolist() == [[2, 1, 0]]
    assert verdict.costs_BN.unique().numel() == 3
