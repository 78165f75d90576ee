"""Objectives, constraints and ends as plain Python: dialects, shapes, sums, and what goes wrong with them."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from forethought.control import Constraint, Objective, ObjectiveError
from forethought.control.objectives import freeze
from forethought.control.objectives.judge import Judge
from forethought.core.errors import ConfigError
from forethought.plan import Candidates


def _candidates(B: int = 2, N: int = 5, H: int = 3, O: int = 2) -> Candidates:  # noqa: E741
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    return Candidates(draw(B, O), draw(B, N, H, 1), draw(B, N, H, O))


WRITTEN = {
    "numpy rows": lambda s, a, s2: np.exp(s2[..., 0]) - a[..., 0] ** 2 + s[..., 1],
    "torch rows": lambda s, a, s2: torch.exp(s2[..., 0]) - a[..., 0].square() + s[..., 1],
    "one step of floats": lambda s, a, s2: math.exp(s2[0]) - float(a[0]) ** 2 + s[1],
    "one step of torch": lambda s, a, s2: (torch.exp(s2[0]) - a[0] ** 2 + s[1]).item(),
}


@pytest.mark.parametrize("name", WRITTEN)
def test_every_way_of_writing_a_step_gives_the_same_scores(name: str):
    given = _candidates()
    before = torch.cat([given.start[:, None, None].expand(-1, 5, 1, -1), given.states_BNHS[:, :, :-1]], 2)
    wanted = (given.states_BNHS[..., 0].exp() - given.actions_BNHA[..., 0] ** 2 + before[..., 1]).sum(2)
    assert torch.allclose(Objective(WRITTEN[name]).scores(given), wanted, atol=1e-5)
    assert torch.allclose(Objective(WRITTEN[name])(given), -wanted, atol=1e-5)


def test_a_function_of_one_step_is_not_taken_for_one_of_many():
    # Four rows of four numbers each: only the probe's own size tells s2[0] from s2[..., 0].
    given = Candidates(torch.randn(1, 4), torch.randn(1, 2, 2, 4), torch.randn(1, 2, 2, 4))
    scores = Objective(lambda s, a, s2: s2[0]).scores(given)
    assert torch.allclose(scores, given.states_BNHS[..., 0].sum(2), atol=1e-6)


def test_whole_plans_discount_sums_and_weights():
    given = _candidates()
    last = Objective.of_plan(lambda seen: seen.after[:, -1, 0] + seen.now[0])
    assert torch.allclose(last.scores(given), given.states_BNHS[:, :, -1, 0] + given.start[:, None, 0], atol=1e-6)
    faded = Objective.of_step(lambda s, a, s2: s2[..., 0], discount=0.5)
    weights = torch.tensor([1.0, 0.5, 0.25])
    assert torch.allclose(faded.scores(given), (given.states_BNHS[..., 0] * weights).sum(2), atol=1e-6)
    total = 2.0 * last + 0.5 * faded - last
    assert torch.allclose(total.scores(given), last.scores(given) + 0.5 * faded.scores(given), atol=1e-5)


def test_normalised_terms_have_one_scale_and_ties_stay_ties():
    given = _candidates()
    huge = Objective(lambda s, a, s2: 1e6 * s2[..., 0]).normalised()
    scores = huge.scores(given)
    assert torch.allclose(scores.mean(1), torch.zeros(2), atol=1e-5)
    assert torch.allclose(scores.std(1, correction=0), torch.ones(2), atol=1e-4)
    assert torch.equal(Objective(lambda s, a, s2: 0 * s2[..., 0] + 7).normalised().scores(given), torch.zeros(2, 5))


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (lambda s, a, s2: np.zeros((3, 7, 2)), "one number a step"),
        (lambda s, a, s2: "high", "must take|returned"),
        (lambda s: 0.0, "raised TypeError"),
        (lambda s, a, s2: 1 / 0, "ZeroDivisionError"),
    ],
)
def test_a_bad_objective_is_one_clear_error(function, said: str):
    with pytest.raises(ObjectiveError, match=said):
        Objective(function).scores(_candidates())


def test_a_plan_function_of_the_wrong_shape_is_refused():
    with pytest.raises(ObjectiveError, match=r"\(5,\)"):
        Objective.of_plan(lambda seen: seen.after[..., 0]).scores(_candidates())


def test_an_objective_needs_something_to_score():
    with pytest.raises(ConfigError, match="needs something"):
        Objective()
    with pytest.raises(ConfigError, match="finite"):
        Objective(WRITTEN["numpy rows"]) * float("nan")


def test_nan_scores_lose_and_never_spread():
    given = _candidates()
    objective = Objective(lambda s, a, s2: np.where(s2[..., 0] > 0, np.nan, s2[..., 0]))
    costs = Judge(objective)(given)
    bad = (given.states_BNHS[..., 0] > 0).any(2)
    assert torch.equal(costs.isinf(), bad)
    assert not costs.isnan().any()
    assert Judge(Objective(lambda s, a, s2: np.inf + s2[..., 0]))(given).isposinf().all()


def test_what_comes_after_a_predicted_end_counts_nothing():
    states = torch.tensor([1.0, 5.0, 2.0, 9.0]).reshape(1, 1, 4, 1)
    given = Candidates(torch.zeros(1, 1), torch.ones(1, 1, 4, 1), states)
    fallen = lambda seen: seen[..., 0] > 4  # noqa: E731
    assert Objective(lambda s, a, s2: s2[..., 0]).scores(given, fallen).item() == 6.0
    frozen, alive = freeze(given, fallen)
    assert frozen.states_BNHS.flatten().tolist() == [1.0, 5.0, 5.0, 5.0]
    assert frozen.actions_BNHA.flatten().tolist() == [1.0, 1.0, 0.0, 0.0]
    assert alive.flatten().tolist() == [1.0, 1.0, 0.0, 0.0]


def test_hard_and_soft_constraints():
    given = _candidates()
    objective = Objective(lambda s, a, s2: s2[..., 0])
    low = Constraint.hard(lambda s, a, s2: s2[..., 0] < 0.5)
    verdict = Judge(objective, [low]).verdict(given)
    broken = (given.states_BNHS[..., 0] >= 0.5).any(2)
    assert torch.equal(verdict.rejected_BN, broken)
    assert (~verdict.all_rejected_B).any()
    usable = ~verdict.all_rejected_B
    assert torch.equal(verdict.costs_BN[usable].isinf(), broken[usable])
    soft = Constraint.soft(lambda s, a, s2: abs(a[..., 0]), limit=1.0, weight=3.0)
    excess = (given.actions_BNHA[..., 0].abs().sum(2) - 1.0).clamp(min=0)
    assert torch.allclose(Judge(objective, [soft])(given) - Judge(objective)(given), 3.0 * excess, atol=1e-4)


def test_where_all_are_rejected_the_least_violation_wins():
    states = torch.tensor([[9.0, 9.0, 9.0], [9.0, 0.0, 0.0], [9.0, 9.0, 0.0]]).reshape(1, 3, 3, 1)
    given = Candidates(torch.zeros(1, 1), torch.zeros(1, 3, 3, 1), states)
    judge = Judge(Objective(lambda s, a, s2: s2[..., 0]), [Constraint.hard(lambda s, a, s2: s2[..., 0] < 1)])
    verdict = judge.verdict(given)
    assert verdict.all_rejected_B.tolist() == [True]
    assert verdict.costs_BN.argmin(1).item() == 1
    assert verdict.costs_BN.isfinite().all()
