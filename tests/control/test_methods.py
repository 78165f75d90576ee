"""The methods that D-MPC is measured against, and the value of states."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from forethought.app.cli import BAD_INPUT, DONE, main
from forethought.control import body_of
from forethought.control.models import ModelConfig, NetworkConfig, StateValue, load_model, save_model
from forethought.control.running.methods import METHODS, method
from forethought.control.situation import Situation
from forethought.control.training import Data
from forethought.core.errors import ConfigError
from forethought.data.episodes import Episodes, episodes_from_flat, returns_to_go
from forethought.plan import Candidates

TINY = ModelConfig(horizon=4, network=NetworkConfig(preset="tiny", hidden_size=32), members=2)


def _episodes(*, terminated: bool = True, length: int = 30) -> Episodes:
    rng = np.random.default_rng(0)
    count = 4 * length
    last = np.arange(count) % length == length - 1
    return episodes_from_flat(
        {
            "observations": rng.normal(size=(count, 3)).astype(np.float32),
            "actions": rng.uniform(-1, 1, (count, 2)).astype(np.float32),
            "rewards": np.ones(count, np.float32),
            "terminals": last & terminated,
            "timeouts": last & (not terminated),
        }
    )


def _value(*, pessimism: float = 0.0) -> StateValue:
    episodes = _episodes()
    value = StateValue(body_of(episodes), replace(TINY, pessimism=pessimism))
    value.learn_from(returns_to_go(episodes, discount=0.9), discount=0.9)
    return value.eval()


def _candidates(states: torch.Tensor, actions: torch.Tensor) -> Candidates:
    return Candidates(Situation.first(torch.zeros(len(states), 3), 2, 0), actions, states, 0)


def test_a_plan_is_worth_its_rewards_and_the_value_of_its_last_state():
    value = _value()
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(2, 5, 4, 3, generator=generator)
    actions = torch.randn(2, 5, 4, 2, generator=generator).clamp(-1, 1)
    scores = value(_candidates(states, actions))
    with torch.no_grad():
        wanted = torch.zeros(2, 5)
        before = torch.zeros(2, 5, 3)
        for step in range(4):
            rows = [before.flatten(0, 1), actions[:, :, step].flatten(0, 1), states[:, :, step].flatten(0, 1)]
            normal = [value.observation.normalise(rows[0]), value.action.normalise(rows[1])]
            normal.append(value.observation.normalise(rows[2]))
            reward = value.reward(torch.cat(normal, -1)[:, None])[:, 0] * value.rewards_2[1] + value.rewards_2[0]
            wanted += 0.9**step * reward.view(2, 5)
            before = states[:, :, step]
        last = value.observation.normalise(states[:, :, -1].flatten(0, 1))
        wanted += 0.9**4 * value.of_states(last).view(2, 5)
    torch.testing.assert_close(scores, wanted, rtol=1e-4, atol=1e-4)


def test_after_an_end_there_is_neither_reward_nor_value():
    value = _value()
    states = torch.randn(1, 2, 4, 3, generator=torch.Generator().manual_seed(0))
    actions = torch.full((1, 2, 4, 2), 0.3)
    # Candidate 1 ends with its second step: the state is held, the actions are zero, as `freeze` shows an end.
    states[:, 1, :2], actions[:, 1, :2] = states[:, 0, :2], actions[:, 0, :2]
    states[:, 1, 2:], actions[:, 1, 2:] = states[:, 1, 1:2], 0.0
    full = value(_candidates(states, actions))
    value.units_2[0] += 1000.0
    raised = value(_candidates(states, actions))
    assert raised[0, 0] - full[0, 0] == pytest.approx(0.9**4 * 1000.0, rel=1e-3)
    assert raised[0, 1] == full[0, 1]
    value.rewards_2[0] += 10.0
    steps = value(_candidates(states, actions)) - raised
    assert steps[0].tolist() == pytest.approx([10 * (1 + 0.9 + 0.81 + 0.729), 19.0], rel=1e-3)


def test_pessimism_takes_the_members_disagreement_off():
    value = _value()
    states = torch.randn(64, 3, generator=torch.Generator().manual_seed(1))
    wary = _value(pessimism=2.0)
    wary.load_state_dict(value.state_dict())
    with torch.no_grad():
        loss = value.of_states(states) - wary.of_states(states)
    assert (loss > 0).all()


def test_members_differ_and_are_saved(tmp_path: Path):
    value = _value()
    first, second = (member.state_dict()["output.weight"] for member in value.network)
    assert not torch.equal(first, second)
    save_model(value, tmp_path / "value")
    loaded = load_model(tmp_path / "value")
    assert isinstance(loaded, StateValue)
    assert loaded.fingerprint() == value.fingerprint()
    assert float(loaded.discount) == pytest.approx(0.9)


def test_a_steady_return_goes_on_where_the_time_limit_cut():
    cut = _episodes(terminated=False)
    found = Data(cut, cut, discount=0.9, steady=True).returns(cut)
    assert found.complete_N.all()
    np.testing.assert_allclose(found.values_N, 10.0, rtol=1e-5)
    ended = _episodes()
    short = Data(ended, ended, discount=0.9, steady=True).returns(ended)
    assert short.values_N[29] == pytest.approx(1.0)
    with pytest.raises(ConfigError, match="discount below 1"):
        Data(cut, cut, discount=1.0, steady=True).returns(cut)


def test_a_value_of_states_refuses_a_history():
    with pytest.raises(ConfigError, match="history"):
        StateValue(body_of(_episodes()), ModelConfig(history=1, horizon=4))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("methods")
    common = ["--env", "Pendulum-v1"]
    assert main(["control", "collect", str(folder / "data"), *common, "--episodes", "4"]) == DONE
    train = ["control", "train", str(folder / "data"), *common, "--out", str(folder / "agent"), "--recipe", "tiny"]
    assert main([*train, "--steps", "8", "--baselines"]) == DONE
    return folder / "agent"


@pytest.mark.parametrize("name", [name for name in METHODS if name != "dmpc"])
def test_every_method_runs_as_a_verb(name: str, trained: Path, capsys: pytest.CaptureFixture[str]):
    flags = ["--env", "Pendulum-v1", "--episodes", "1", "--samples", "3", "--execute", "8", "--method", name, "--json"]
    capsys.readouterr()
    assert main(["control", "run", str(trained), *flags]) == DONE
    result = json.loads(capsys.readouterr().out.strip().splitlines()[-1])
    assert result["episodes"] == 1
    assert result["faults"] == 0
    assert result["num_plans"] == (0 if name == "cloned" else 25)


def test_an_unknown_method_and_a_missing_part_are_told(trained: Path):
    run = ["control", "run", str(trained), "--env", "Pendulum-v1", "--episodes", "1"]
    assert main([*run, "--method", "bmop"]) == BAD_INPUT
    with pytest.raises(ConfigError, match=r"joint\.diffusion, which was not trained"):
        method("joint", {})


def test_mbop_predicts_what_it_rolled(trained: Path):
    parts = {path.parent.name: load_model(path) for path in (trained / "parts").glob("*/model")}
    agent = method("mbop", parts)
    start = Situation.first(torch.zeros(2, 3), 1, 0)
    actions = agent.proposal(start, 3, torch.Generator().manual_seed(0))  # pyright: ignore
    rolled = agent.dynamics(start, actions)  # pyright: ignore
    again = parts["dynamics.one-step"](start, actions)
    torch.testing.assert_close(rolled, again)
    other = agent.dynamics(start, actions + 0.1)  # pyright: ignore
    torch.testing.assert_close(other, parts["dynamics.one-step"](start, actions + 0.1))
