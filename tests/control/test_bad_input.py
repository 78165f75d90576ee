"""Whatever is given or breaks, the message is clear and the robot gets a safe action."""

from __future__ import annotations

import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from forethought.control import Agent, AgentConfig, Constraint, Monitor, Objective, SSRConfig, body_of, fit_part, preset
from forethought.control.training import Data
from forethought.core.errors import DataError, InputError, InterruptedRunError
from forethought.data.episodes import Episodes
from tests.control.integrator import Function, episodes, rollout, towards

HERE = np.array([0.2, 0.1])
REST = 0.25


def _agent(data: Data, *, propose: Any = None, predict: Any = None, **options: Any) -> Agent:
    """An agent of plain functions, the exact dynamics among them."""

    def uniform(start: Any, num: int, generator: torch.Generator) -> torch.Tensor:
        return 2 * torch.rand(len(start.obs_BO), num, 4, 1, generator=generator) - 1

    return Agent(
        Function(propose or uniform, 4),
        Function(predict or (lambda start, actions: rollout(start.obs_BO, actions)), 4),
        body=body_of(data.train),
        rest_action=[REST],
        **({"objective": towards(1.0)} | options),
    )


def _raises(error: Exception) -> Any:
    def function(*_: Any) -> Any:
        raise error

    return function


FAILURES = [
    RuntimeError("mat1 and mat2 shapes cannot be multiplied (64x17 and 18x256)"),
    ValueError("not enough values"),
    TypeError("unsupported operand"),
    KeyError("weights"),
    ZeroDivisionError("division by zero"),
    torch.OutOfMemoryError("out of memory"),
    OSError("the link to the accelerator is down"),
]


@pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("where", ["propose", "predict"])
def test_a_model_that_raises_gives_the_rest_action_and_its_message(data, error: Exception, where: str):
    broken = {where: _raises(error)}
    agent = _agent(data, **broken)
    assert agent.act(HERE).tolist() == [REST]
    assert agent.decision.source == ("rest",)
    said = " ".join(agent.decision.faults)
    assert type(error).__name__ in said
    assert str(error) in said
    strict = _agent(data, **broken, settings=AgentConfig(on_fault="raise"))
    with pytest.raises(InputError, match=type(error).__name__) as caught:
        strict.act(HERE)
    assert caught.value.__cause__ is error


def test_what_is_no_failure_passes_through(data):
    for error in (KeyboardInterrupt(), InterruptedRunError("asked to stop")):
        with pytest.raises(type(error)):
            _agent(data, predict=_raises(error)).act(HERE)  # pyright: ignore


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ({"propose": lambda start, num, generator: torch.zeros(1, num, 3, 1)}, "needs"),
        ({"propose": lambda start, num, generator: torch.full((1, num, 4, 1), torch.nan)}, "finite score"),
        ({"predict": lambda start, actions: rollout(start.obs_BO, actions)[:, :, :2]}, "one state after each"),
        ({"predict": lambda start, actions: torch.zeros(*actions.shape[:3], 5)}, "raised RuntimeError"),
        ({"predict": lambda start, actions: rollout(start.obs_BO, actions) * torch.nan}, "finite score"),
        ({"objective": Objective.of_plan(lambda seen: np.zeros(3))}, "one score each"),
        ({"objective": Objective.of_plan(_raises(OSError("no camera")))}, "no camera"),
        ({"objective": Objective(lambda before, action, after: "high")}, "objective"),
        ({"objective": Objective(lambda before, action, after: None)}, "objective"),
        ({"constraints": [Constraint.hard(_raises(KeyError("map")))]}, "map"),
        ({"ended": lambda after: np.zeros((2, 3))}, "end of the episode"),
    ],
)
def test_parts_that_return_or_raise_what_they_must_not(data, what: dict[str, Any], said: str):
    agent = _agent(data, **what)
    assert agent.act(HERE).tolist() == [REST]
    assert said in " ".join(agent.decision.faults)


@pytest.mark.parametrize("ranking", ["best", "top_k", "soft"])
def test_one_broken_candidate_neither_wins_nor_spoils_the_others(data, ranking: Any):
    def propose(start: Any, num: int, generator: torch.Generator) -> torch.Tensor:
        drawn = 2 * torch.rand(1, num, 4, 1, generator=generator) - 1
        drawn[:, 0] = torch.nan
        return drawn

    settings = AgentConfig(planner=SSRConfig(num_samples=8, ranking=ranking))
    # The broken one has the best score, whatever is foreseen: only its action shows what it is.
    falling = Objective.of_plan(lambda seen: np.arange(8.0)[::-1].copy())
    agent = _agent(data, propose=propose, objective=falling, settings=settings)
    assert np.isfinite(agent.act(HERE)).all()
    assert agent.decision.source == ("plan",)
    assert int(agent.decision.plan.population.chosen_B[0]) == 1


def test_numbers_out_of_all_range_are_named_or_survived(data, models):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        agent = _agent(data)
        agent.act(np.array([1e300, 0.0]))
        assert "not finite at [0]" in agent.decision.faults[0]
        learned = Agent(models["proposal.diffusion"], models["dynamics.diffusion"], objective=towards(1.0))
        monitor = Monitor.calibrate(learned.dynamics, data.validation)
        for reading in (0.2, 1e30, 0.3):
            assert np.abs(learned.act(np.array([reading, 0.0]))).max() <= 1.0
            sign = monitor.update(float(learned.decision.residual_B[0]))
            assert np.isfinite([sign.z, sign.p]).all()


@pytest.mark.parametrize("given", [None, [], {"position": 1.0}, [[0.1], [0.2]], ["a", "b"], 3.0])
def test_what_is_no_observation_is_named(data, given: Any):
    agent = _agent(data)
    assert agent.act(given).ravel().tolist() == [REST]
    assert "the observation has the shape" in agent.decision.faults[0]


def _with_constants(source: Episodes) -> Episodes:
    """The double integrator with a constant sensor and an actuator that never moved."""
    observations, actions = np.asarray(source.observations), np.asarray(source.actions)
    finals = np.asarray(source.finals["observations"])
    return Episodes(
        {
            "observations": np.concatenate([observations, np.full((len(observations), 1), 5.0, np.float32)], 1),
            "actions": np.concatenate([actions, np.zeros((len(actions), 1), np.float32)], 1),
            "rewards": np.asarray(source.array("rewards")),
        },
        starts=source.starts,
        lengths=source.lengths,
        terminated=source.terminated,
        truncated=source.truncated,
        finals={"observations": np.concatenate([finals, np.full((len(finals), 1), 5.0, np.float32)], 1)},
    )


def test_constant_dimensions_are_named_and_do_not_explode(tmp_path):
    data = Data(_with_constants(episodes(20, seed=0)), _with_constants(episodes(4, seed=1)))
    body = body_of(data.train)
    assert body.constant == {"observations": [2], "actions": [1]}
    parts = {}
    for name in ("proposal.diffusion", "dynamics.diffusion"):
        settings = preset("tiny").of(name)
        loop = replace(settings.loop, steps=20, checkpoint_every=20)
        settings = replace(settings, batch_size=64, loop=loop)
        parts[name] = fit_part(name, settings, data, body, tmp_path / name)
    agent = Agent(parts["proposal.diffusion"], parts["dynamics.diffusion"], objective=towards(1.0))
    drawn = []
    for sensor in (5.0, 5.0 + 1e-5):
        agent.reset()
        agent.num_plans = 0
        drawn.append(agent.act(np.array([0.2, 0.1, sensor])))
    # Rounding of a constant says nothing.
    assert np.abs(drawn[0] - drawn[1]).max() < 0.01
    for sensor in (5.0, 5.1, -400.0):
        agent.reset()
        action = agent.act(np.array([0.2, 0.1, sensor]))
        assert agent.decision.source == ("plan",)
        assert np.isfinite(action).all()
        assert abs(action[1]) < 0.5
        states = agent.decision.plan.population.candidates.states_BNHS
        assert states.isfinite().all()
        # The constant itself is foreseen to stay about where it was seen, in its own small unit.
        assert (states[..., 2] - float(np.clip(sensor, 4.92, 5.08))).abs().max() < 1.0


def test_data_that_cannot_be_a_body_is_refused():
    good = episodes(3, seed=0)
    observations = np.array(good.observations)
    observations[7, 1] = np.nan
    arrays = {"observations": observations, "actions": good.actions, "rewards": good.array("rewards")}
    ends = {"starts": good.starts, "lengths": good.lengths, "terminated": good.terminated, "truncated": good.truncated}
    with pytest.raises(DataError, match=r"observations.*step 7"):
        body_of(Episodes(arrays, **ends, finals=good.finals))
