"""Receding horizon: blocks, queues, warm starts, shrinking horizons, and why a terminal cost procrastinates."""

from __future__ import annotations

import pytest
import torch

from forethought.core.errors import ConfigError
from forethought.plan import (
    CEM,
    Controller,
    ControllerConfig,
    Problem,
    from_blocks,
    goal_distance,
    over_horizon,
    to_blocks,
)

PLANNER = CEM(num_candidates=128, num_elites=16, num_iterations=8)


def stater(goal=1.0, over="terminal", block=1, log=None, mean_weight=0.0):
    """Return what states the problem of a point that each action moves by at most 0.25."""

    def state(moment):
        if log is not None:
            log.append(moment)

        def dynamics(start, actions):
            return start[:, None, None] + actions.sum(dim=3, keepdim=True).cumsum(dim=2)

        bound = torch.full((block,), 0.25)
        return Problem(
            dynamics,
            over_horizon(goal_distance(torch.tensor([[goal]])), over, mean_weight=mean_weight),
            moment.observation,
            horizon=moment.horizon,
            action_dim=block,
            num_environments=len(moment.observation),
            low=-bound,
            high=bound,
            step=moment.step,
        )

    return state


def run(controller: Controller, steps: int, start: float = 0.0) -> list[float]:
    x, path = torch.tensor([[start]]), []
    for _ in range(steps):
        x = x + controller.act(x)
        path.append(x.item())
    return path


def test_blocks_round_trip():
    actions = torch.arange(24.0).reshape(1, 12, 2)
    blocks = to_blocks(actions, 4)
    assert blocks.shape == (1, 3, 8)
    assert blocks[0, 0].tolist() == actions[0, :4].flatten().tolist()
    assert torch.equal(from_blocks(blocks, 4), actions)
    with pytest.raises(ConfigError, match="multiple"):
        to_blocks(actions, 5)
    with pytest.raises(ConfigError, match="cannot be split"):
        from_blocks(blocks, 3)


def test_executes_the_plan_action_by_action():
    log: list = []
    plans: list = []
    settings = ControllerConfig(horizon=3, execute=2, block=2)
    controller = Controller(PLANNER, stater(block=2, log=log), settings, on_plan=plans.append)
    actions = [controller.act(torch.zeros(1, 1)) for _ in range(6)]
    assert [moment.step for moment in log] == [0, 4]
    assert controller.num_plans == 2
    assert torch.equal(torch.stack(actions[:4], dim=1), from_blocks(plans[0].actions_BHA[:, :2], 2))
    assert torch.equal(log[1].executed_BTA, plans[0].actions_BHA[:, :2])
    assert log[0].executed_BTA is None


def test_same_seed_same_actions_and_reset_begins_again():
    controller = Controller(PLANNER, stater(), ControllerConfig(execute=2), seed=5)
    first = run(controller, 6)
    controller.reset()
    assert run(controller, 6) == first
    assert run(Controller(PLANNER, stater(), ControllerConfig(execute=2), seed=6), 6) != first


def test_warm_start_hands_on_the_tail():
    seen = []

    def planner(problem, generator, *, warm_BHA=None, deadline_s=None):
        seen.append(warm_BHA)
        return PLANNER(problem, generator, warm_BHA=warm_BHA, deadline_s=deadline_s)

    plans: list = []
    controller = Controller(planner, stater(), ControllerConfig(horizon=5, execute=2), on_plan=plans.append)
    run(controller, 4)
    assert seen[0] is None
    assert torch.equal(seen[1], plans[0].actions_BHA[:, 2:])
    seen.clear()
    run(Controller(planner, stater(), ControllerConfig(horizon=5, execute=5)), 10)
    run(Controller(planner, stater(), ControllerConfig(horizon=5, execute=2, warm_start=False)), 4)
    assert seen == [None] * 4


def test_terminal_cost_procrastinates_and_the_cures_do_not():
    """Four steps lead to the goal at full speed; with a terminal cost and horizon 8, replanned at every step, it is
    still far off then; a minimum over the horizon, a sum, or a horizon that shrinks to the budget arrives."""
    lazy = run(Controller(PLANNER, stater(), ControllerConfig(horizon=8, execute=1, warm_start=False)), 5)
    summed = run(Controller(PLANNER, stater(over="sum"), ControllerConfig(horizon=8, execute=1)), 5)
    least = stater(over="min", mean_weight=0.1)
    smallest = run(Controller(PLANNER, least, ControllerConfig(horizon=8, execute=1)), 5)
    shrunk = run(Controller(PLANNER, stater(), ControllerConfig(horizon=8, execute=1, budget=5, shrink=True)), 5)
    assert abs(lazy[-1] - 1.0) > 0.15
    for path in (summed, smallest, shrunk):
        assert abs(path[-1] - 1.0) < 0.05


def test_horizon_shrinks_to_the_budget_in_blocks():
    log: list = []
    settings = ControllerConfig(horizon=5, execute=1, block=2, budget=7, shrink=True)
    controller = Controller(PLANNER, stater(block=2, log=log), settings)
    for _ in range(7):
        controller.act(torch.zeros(1, 1))
    assert [moment.horizon for moment in log] == [4, 3, 2, 1]
    with pytest.raises(ConfigError, match="budget of 7 actions is spent"):
        controller.act(torch.zeros(1, 1))


def test_flush_plans_anew():
    log: list = []
    controller = Controller(PLANNER, stater(log=log), ControllerConfig(horizon=5, execute=5))
    controller.act(torch.zeros(1, 1))
    controller.act(torch.zeros(1, 1))
    controller.flush()
    controller.act(torch.zeros(1, 1))
    assert [moment.step for moment in log] == [0, 2]
    assert log[1].executed_BTA.shape == (1, 2, 1)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"execute": 9}, "execute is at most the horizon"),
        ({"block": 0}, "at least 1"),
        ({"shrink": True}, "needs one"),
        ({"deadline_s": 0.0}, "positive"),
    ],
)
def test_bad_settings_are_named(settings: dict, words: str):
    with pytest.raises(ConfigError, match=words):
        ControllerConfig(**settings)


def test_a_problem_of_another_horizon_is_named():
    controller = Controller(PLANNER, stater(block=3), ControllerConfig(block=2))
    with pytest.raises(ConfigError, match="whole actions"):
        controller.act(torch.zeros(1, 1))
