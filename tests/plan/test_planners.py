"""What every planner promises: determinism, independence of environments, bad costs, deadlines, exact updates."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from tests.plan.linear import double_integrator

from forethought.core.errors import ConfigError
from forethought.core.rng import torch_generator
from forethought.plan import (
    CEM,
    ICEM,
    MPPI,
    PLANNERS,
    Categorical,
    GradientPlanner,
    PredictiveSampling,
    Problem,
    SampleScoreRank,
    coloured_noise,
    goal_distance,
    over_horizon,
)
from forethought.plan.search import search

QUICK = {
    "cem": CEM(num_candidates=40, num_elites=8, num_iterations=4),
    "icem": ICEM(num_candidates=40, num_elites=8, num_iterations=4, decay=1.25),
    "mppi": MPPI(num_candidates=40, num_elites=8, num_iterations=4),
    "predictive": PredictiveSampling(num_candidates=40, num_iterations=4),
    "gradient": GradientPlanner(num_candidates=6, num_iterations=4),
    "categorical": Categorical(num_candidates=40, num_elites=8, num_iterations=4),
}


def point_problem(num_environments: int = 1, **changes) -> Problem:
    """A point that moves by its actions; the goal differs from environment to environment."""
    goal = torch.arange(1.0, num_environments + 1.0)[:, None].expand(-1, 3) * torch.tensor([0.5, -0.3, 0.1])

    def dynamics(start, actions):
        return start[:, None, None] + actions.cumsum(dim=2)

    values = {
        "dynamics": dynamics,
        "objective": over_horizon(goal_distance(goal)),
        "start": torch.zeros(num_environments, 3),
        "horizon": 4,
        "action_dim": 3,
        "num_environments": num_environments,
    }
    return Problem(**(values | changes))


def test_registry_is_covered():
    assert QUICK.keys() == PLANNERS.keys()
    assert all(isinstance(QUICK[name], PLANNERS[name]) for name in PLANNERS)


@pytest.mark.parametrize("name", QUICK)
def test_same_seed_same_plan_and_no_global_state(name: str):
    before = torch.get_rng_state()
    plans = [QUICK[name](point_problem(2), torch_generator(seed, "p")) for seed in (3, 3, 4)]
    assert torch.equal(plans[0].actions_BHA, plans[1].actions_BHA)
    assert not torch.equal(plans[0].population.candidates.actions_BNHA, plans[2].population.candidates.actions_BNHA)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", QUICK)
def test_environments_do_not_mix(name: str):
    """Another goal for environment 1 leaves the plan of environment 0 as it was, to the bit."""
    near, far = point_problem(2), point_problem(2)
    far = dataclasses.replace(
        far, objective=over_horizon(goal_distance(torch.tensor([[0.5, -0.3, 0.1], [-9.0, 9, 9]])))
    )
    one, other = (QUICK[name](problem, torch_generator(0, "p")) for problem in (near, far))
    assert torch.equal(one.actions_BHA[0], other.actions_BHA[0])
    assert not torch.equal(one.actions_BHA[1], other.actions_BHA[1])


@pytest.mark.parametrize("name", QUICK)
def test_best_is_the_lowest_cost_ever_seen(name: str):
    plan = QUICK[name](point_problem(2), torch_generator(0, "p"))
    lowest = torch.stack([record.best_B for record in plan.iterations]).amin(dim=0)
    assert torch.equal(plan.cost_B, lowest)
    problem = point_problem(2)
    states = problem.dynamics(problem.start, plan.best_BHA[:, None])
    again = problem.objective(dataclasses.replace(plan.population.candidates, states_BNHS=states,
                                                  actions_BNHA=plan.best_BHA[:, None]))  # fmt: skip
    torch.testing.assert_close(again[:, 0], plan.cost_B)


@pytest.mark.parametrize("name", QUICK)
def test_costs_that_are_not_finite_lose_and_do_not_spread(name: str):
    def objective(candidates):
        costs = over_horizon(goal_distance(torch.full((1, 3), 0.4)))(candidates)
        bad = candidates.actions_BNHA[:, :, 0, 0] > 0.0
        return torch.where(bad, torch.nan, costs)

    plan = QUICK[name](point_problem(objective=objective), torch_generator(0, "p"))
    assert torch.isfinite(plan.actions_BHA).all()
    assert plan.best_BHA[0, 0, 0] <= 0.0
    assert torch.isfinite(plan.cost_B).all()
    # The gradient planner's first population holds finite and bad starts alike.
    assert sum(record.num_rejected for record in plan.iterations) > 0


@pytest.mark.parametrize("name", QUICK)
def test_no_finite_cost_at_all(name: str):
    def objective(candidates):
        return candidates.states_BNHS.sum(dim=(2, 3)) * torch.nan

    plan = QUICK[name](point_problem(objective=objective), torch_generator(0, "p"))
    assert torch.isfinite(plan.actions_BHA).all()
    assert torch.isinf(plan.cost_B).all()
    assert all(record.num_rejected == len(plan.population.costs_BN[0]) for record in plan.iterations[-1:])


@pytest.mark.parametrize("name", QUICK)
def test_the_deadline_returns_the_best_so_far(name: str):
    """A clock that ticks one second a look: four iterations take more than the 2.5 s allowed, one always runs."""
    ticks = iter(range(1000))
    plan = search(
        QUICK[name], point_problem(), torch_generator(0, "p"), deadline_s=2.5, clock=lambda: float(next(ticks))
    )
    assert plan.timed_out
    assert plan.num_iterations == 2
    short = search(QUICK[name], point_problem(), torch_generator(0, "p"), deadline_s=1e-9)
    assert short.num_iterations == 1
    assert torch.isfinite(short.cost_B).all()
    assert not QUICK[name](point_problem(), torch_generator(0, "p")).timed_out


def test_cem_follows_the_published_update_exactly():
    """Candidate 0 is the mean, elites' mean and unbiased std, final mean returned: replayed by hand."""
    problem, planner = point_problem(2), CEM(num_candidates=20, num_elites=5, num_iterations=3)
    plan = planner(problem, torch_generator(7, "p"))
    generator = torch_generator(7, "p")
    mean, std = torch.zeros(2, 4, 3), torch.ones(2, 4, 3)
    for _ in range(3):
        actions = mean[:, None] + std[:, None] * torch.randn(2, 20, 4, 3, generator=generator)
        actions[:, 0] = mean
        goal = torch.tensor([[0.5, -0.3, 0.1], [1.0, -0.6, 0.2]])
        costs = (actions.sum(dim=2) - goal[:, None]).square().sum(dim=2)
        index = costs.argsort(dim=1)[:, :5]
        elites = torch.stack([actions[b, index[b]] for b in range(2)])
        mean, std = elites.mean(dim=1), elites.std(dim=1)
    torch.testing.assert_close(plan.actions_BHA, mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(plan.std_BHA, std, rtol=1e-4, atol=1e-5)


def test_defaults_are_the_published_settings():
    planner = CEM()
    assert (planner.num_candidates, planner.num_elites, planner.num_iterations) == (300, 30, 30)
    assert (planner.initial_std, planner.min_std, planner.momentum, planner.output) == (1.0, 0.0, 0.0, "mean")


def test_mppi_weights_are_the_softmax():
    costs = torch.tensor([[1.0, 2.0, 4.0, torch.inf]])
    weights = MPPI(temperature=0.5, relative=False).weights(costs)
    torch.testing.assert_close(weights, torch.softmax(-costs / 0.5, dim=1))
    scaled = MPPI(temperature=0.5).weights(costs * 1000.0)
    torch.testing.assert_close(scaled, MPPI(temperature=0.5).weights(costs))


@pytest.mark.parametrize("beta", [0.0, 1.0, 2.0])
@pytest.mark.parametrize("horizon", [1, 2, 5, 8])
def test_coloured_noise_has_unit_variance_and_the_right_colour(beta: float, horizon: int):
    noise = coloured_noise((20_000, horizon, 1), beta, torch_generator(0, "n"), torch.zeros(1, dtype=torch.float64))
    torch.testing.assert_close(noise.var(dim=0)[:, 0], torch.ones(horizon, dtype=torch.float64), rtol=0.06, atol=0.0)
    if horizon == 8:
        power = torch.fft.rfft(noise, dim=1).abs().square().mean(dim=0)[:, 0]
        measured = torch.log2(power[1] / power[2]).item()
        assert measured == pytest.approx(beta, abs=0.1)


def test_icem_keeps_elites_and_shrinks_its_population():
    sizes, populations = [], []

    def dynamics(start, actions):
        sizes.append(actions.shape[1])
        populations.append(actions)
        return actions.cumsum(dim=2)

    problem = point_problem(dynamics=dynamics)
    ICEM(num_candidates=60, num_elites=6, num_iterations=4, num_kept=3, decay=2.0)(problem, torch_generator(0, "p"))
    assert sizes == [60, 33, 18, 15]
    costs = (populations[0].sum(dim=2) - torch.tensor([0.5, -0.3, 0.1])).square().sum(dim=2)
    kept = populations[0][0, costs[0].argsort()[:3]]
    assert torch.equal(populations[1][0, -3:], kept)


def test_gradient_needs_gradients_to_flow():
    problem = point_problem(dynamics=lambda start, actions: actions.detach().cumsum(dim=2))
    with pytest.raises(ConfigError, match="no gradient flows"):
        GradientPlanner()(problem, torch_generator(0, "p"))


def test_sampling_planners_build_no_graph():
    def dynamics(start, actions):
        assert not torch.is_grad_enabled()
        return actions.cumsum(dim=2)

    CEM(num_candidates=8, num_elites=2, num_iterations=1)(point_problem(dynamics=dynamics), torch_generator(0, "p"))


def test_categorical_finds_the_best_sequence():
    """Five steps of three choices: the one sequence in 243 that lands on the goal."""
    table = torch.tensor([1.0, -2.0, 5.0])

    def dynamics(start, actions):
        return (actions @ table).cumsum(dim=2)[..., None]

    goal = torch.tensor([[1.0, -1.0, 4.0, 5.0, 3.0]])

    def objective(candidates):
        return (candidates.states_BNHS[..., 0] - goal).square().sum(dim=2)

    problem = Problem(dynamics, objective, None, horizon=5, action_dim=3)
    plan = Categorical()(problem, torch_generator(0, "p"))
    assert plan.cost_B.item() == 0.0
    assert plan.actions_BHA[0].argmax(dim=1).tolist() == [0, 1, 2, 0, 1]


def propose(start, num_candidates, generator):
    return torch.randn(start.shape[0], num_candidates, 4, 3, generator=generator)


def test_sample_score_rank_takes_the_best():
    problem = point_problem(2)
    plan = SampleScoreRank(propose, 32)(problem, torch_generator(0, "p"))
    actions = propose(problem.start, 32, torch_generator(0, "p"))
    goal = torch.tensor([[0.5, -0.3, 0.1], [1.0, -0.6, 0.2]])
    costs = (actions.sum(dim=2) - goal[:, None]).square().sum(dim=2)
    for b in range(2):
        assert torch.equal(plan.actions_BHA[b], actions[b, costs[b].argmin()])
    torch.testing.assert_close(plan.population.costs_BN, costs)


def test_sample_score_rank_in_chunks_is_the_same_plan():
    whole = SampleScoreRank(propose, 32)(point_problem(2), torch_generator(0, "p"))
    chunks = SampleScoreRank(propose, 32, chunk=5)(point_problem(2), torch_generator(0, "p"))
    assert torch.equal(whole.actions_BHA, chunks.actions_BHA)
    assert torch.equal(whole.population.costs_BN, chunks.population.costs_BN)


def test_sample_score_rank_keeps_a_good_warm_start():
    problem = point_problem(1)
    perfect = torch.tensor([[[0.5, -0.3, 0.1], [0, 0, 0], [0, 0, 0]]])
    plan = SampleScoreRank(propose, 32)(problem, torch_generator(0, "p"), warm_BHA=perfect)
    assert torch.equal(plan.actions_BHA[0, :3], perfect[0])
    assert plan.cost_B.item() == pytest.approx(0.0, abs=1e-12)
    without = SampleScoreRank(propose, 32, keep_warm=False)(problem, torch_generator(0, "p"), warm_BHA=perfect)
    assert without.cost_B.item() > 1e-3


def test_sample_score_rank_averages_the_top():
    plan = SampleScoreRank(propose, 32, top_k=3)(point_problem(1), torch_generator(0, "p"))
    best = plan.population.costs_BN[0].argsort()[:3]
    torch.testing.assert_close(plan.actions_BHA[0], plan.population.candidates.actions_BNHA[0, best].mean(dim=0))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: CEM(num_elites=400), "num_elites is 400"),
        (lambda: CEM(num_iterations=0), "both are at least 1"),
        (lambda: ICEM(decay=0.5), "decay at least 1"),
        (lambda: MPPI(temperature=0.0), "positive"),
        (lambda: GradientPlanner(learning_rate=-1.0), "rate is positive"),
        (lambda: SampleScoreRank(propose, 4, top_k=9), "top_k at most"),
        (lambda: point_problem(low=torch.zeros(2)), r"must be \(A,\) = \(3,\)"),
        (lambda: point_problem(low=torch.ones(3), high=torch.zeros(3)), "lower bound lies above"),
        (lambda: point_problem(horizon=0), "at least 1"),
        (lambda: over_horizon(lambda c: c.states_BNHS, "best"), "min, sum, terminal"),  # pyright: ignore[reportArgumentType]
    ],
)
def test_bad_settings_are_named(make, words: str):
    with pytest.raises(ConfigError, match=words):
        make()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"dynamics": lambda start, actions: actions[:, :, :2]}, "one state after each action"),
        ({"objective": lambda candidates: candidates.states_BNHS.sum()}, "one cost a candidate"),
        ({"objective": over_horizon(lambda candidates: candidates.states_BNHS)}, "one cost|must return"),
    ],
)
def test_functions_of_the_wrong_shape_are_named(changes: dict, words: str):
    with pytest.raises(ConfigError, match=words):
        CEM(num_candidates=8, num_elites=2, num_iterations=1)(point_problem(**changes), torch_generator(0, "p"))


def test_warm_start_of_another_size_is_named():
    with pytest.raises(ConfigError, match="warm start has the shape"):
        CEM()(point_problem(), torch_generator(0, "p"), warm_BHA=torch.zeros(2, 4, 3))


def test_prior_moves_the_search():
    problem = point_problem(prior_mean=torch.tensor([5.0, 0.0, 0.0]), prior_std=torch.tensor([0.1, 1.0, 1.0]))
    plan = CEM(num_candidates=200, num_elites=200, num_iterations=1)(problem, torch_generator(0, "p"))
    assert plan.mean_BHA[0, :, 0].tolist() == pytest.approx([5.0] * 4, abs=0.05)
    assert plan.std_BHA[0, :, 0].tolist() == pytest.approx([0.1] * 4, abs=0.02)


def test_a_planner_leaves_its_arguments_alone():
    problem = double_integrator().problem(low=torch.tensor([-1.0]), high=torch.tensor([1.0]))
    warm = torch.full((1, 3, 1), 5.0, dtype=torch.float64)
    start = problem.start.clone()
    CEM(num_candidates=8, num_elites=2, num_iterations=2)(problem, torch_generator(0, "p"), warm_BHA=warm)
    assert torch.equal(problem.start, start)
    assert (warm == 5.0).all()
