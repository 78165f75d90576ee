"""Training: history and padding, resumption to the same bits, constant numbers, returns that a time limit cut."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from forethought.control import body_of, load_model, preset, train_agent
from forethought.control.models import ActionProposal, DiffusionDynamics, ModelConfig, NetworkConfig, situation_of
from forethought.control.models.stepwise import advanced
from forethought.control.situation import History
from forethought.core.errors import ConfigError, DataError
from forethought.data.episodes import Episodes, WindowConfig, WindowCutter
from forethought.diffusion import SamplerConfig
from tests.control.integrator import episodes


def test_the_history_of_a_robot_is_that_of_the_training_windows():
    logged = episodes(2, seed=0, length=6)
    cutter = WindowCutter(logged, WindowConfig(history=3, horizon=2))
    history = History(1, 2, 1, 3)
    for step in range(6):
        if step == 0:
            history.begin(0, logged.observations[0])
        else:
            history.step(0, logged.actions[step - 1], logged.observations[step])
        live, cut = history.situation([0]), situation_of(cutter.cut(np.array([step])))
        for name in ("obs_BO", "history_obs_BKO", "history_act_BKA", "history_mask_BK"):
            assert torch.equal(getattr(live, name), getattr(cut, name)), (step, name)
        assert live.time_B.item() == step
    rolled = advanced(
        situation_of(cutter.cut(np.array([3]))),
        torch.tensor(logged.actions[3:4]),
        torch.tensor(logged.observations[4:5]),
    )
    wanted = situation_of(cutter.cut(np.array([4])))
    assert torch.equal(rolled.history_obs_BKO, wanted.history_obs_BKO)
    assert torch.equal(rolled.history_act_BKA, wanted.history_act_BKA)


def test_a_history_changes_what_is_predicted_and_a_short_one_is_refused():
    body = body_of(episodes(3, seed=0))
    settings = ModelConfig(history=2, horizon=4, network=NetworkConfig("tiny"))
    proposal = ActionProposal(body, settings, seed=1)
    history = History(1, 2, 1, 1)
    history.begin(0, np.zeros(2, np.float32))
    with pytest.raises(ConfigError, match="history of 2"):
        proposal.context(history.situation([0]))
    longer = History(1, 2, 1, 5)
    longer.begin(0, np.zeros(2, np.float32))
    assert proposal.context(longer.situation([0])).shape == (1, 3, 4)


def test_a_killed_training_goes_on_to_the_same_bits(train_part, tmp_path):
    whole = train_part("dynamics.diffusion", steps=30)
    settings = preset("tiny").of("dynamics.diffusion")
    assert settings.loop.steps != 30
    import forethought.control.training.fit as fit_module
    from forethought.core.errors import TrainingError

    original, calls = fit_module._model_loss, []

    def dying(model, batch):
        calls.append(1)
        if len(calls) == 20:
            raise TrainingError("killed here")
        return original(model, batch)

    out = tmp_path / "run"
    fit_module._model_loss = dying
    try:
        with pytest.raises(TrainingError, match="killed"):
            train_part("dynamics.diffusion", steps=30, out=out)
    finally:
        fit_module._model_loss = original
    resumed = train_part("dynamics.diffusion", steps=30, out=out, exists="resume")
    assert resumed.fingerprint() == whole.fingerprint()
    assert load_model(out / "model").fingerprint() == whole.fingerprint()
    # Finished, it is opened and not trained again.
    assert train_part("dynamics.diffusion", steps=30, out=out, exists="resume").fingerprint() == whole.fingerprint()


def test_resuming_on_other_data_is_refused(train_part, data, tmp_path):
    from forethought.control import Data, fit_part

    settings = preset("tiny").of("policy.cloning")
    settings = replace(settings, loop=replace(settings.loop, steps=4))
    out = tmp_path / "run"
    fit_part("policy.cloning", settings, data, body_of(data.train), out)
    (out / "result.json").unlink()
    other = Data(episodes(5, seed=8), data.validation)
    with pytest.raises(ConfigError, match="episodes differ"):
        fit_part("policy.cloning", settings, other, body_of(data.train), out, exists="resume")


def test_constant_numbers_do_no_harm(tmp_path):
    logged = episodes(30, seed=0)
    flat = np.concatenate([logged.observations, np.full((logged.num_steps, 1), 7.0, np.float32)], 1)
    finals = np.concatenate([logged.finals["observations"], np.full((30, 1), 7.0, np.float32)], 1)
    constant = Episodes(
        {**logged.arrays, "observations": flat},
        starts=logged.starts,
        lengths=logged.lengths,
        terminated=logged.terminated,
        truncated=logged.truncated,
        finals={"observations": finals},
    )
    settings = replace(preset("tiny"), discount=0.85)
    settings = replace(
        settings,
        **{
            name: replace(getattr(settings, name), loop=replace(getattr(settings, name).loop, steps=20))
            for name in ("proposal", "dynamics", "value")
        },
    )
    result = train_agent(constant, settings, tmp_path / "run")
    assert np.isfinite(result["parts"]["dynamics.diffusion"]["rollout_error"]["model"]).all()
    import forethought

    agent = forethought.load(tmp_path / "run")
    assert np.isfinite(agent.act(np.array([0.0, 0.0, 7.0]))).all()
    assert agent.decision.source == ("plan",)
    assert train_agent(constant, settings, tmp_path / "run", exists="resume") == result


def test_returns_that_a_limit_cut_are_said_before_anything_is_trained(tmp_path):
    with pytest.raises(ConfigError, match="cut by a time limit"):
        train_agent(episodes(10, seed=0), replace(preset("tiny"), discount=0.999), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_value_learns_the_return_to_go(models, data):
    from forethought.control.training import value_calibration

    figures = value_calibration(models["value.regression"], data.validation, discount=0.85)
    assert figures["r2"] > 0.8
    assert 0.7 < figures["slope"] < 1.3


def test_proposals_stay_in_bounds_and_differ(models, data):
    from forethought.control.training import coverage, proposal_diversity

    figures = proposal_diversity(models["proposal.diffusion"], data.validation)
    assert 0.3 < figures["within"] < 2.0
    reached = torch.tensor([[[0.0, 1.0], [0.0, 3.0]]])
    assert coverage(reached, 2.5) == {"best_distance": 0.5, "median_distance": 0.5, "highest": 3.0, "lowest": 0.0}


def test_bad_models_and_data_are_refused():
    logged = episodes(3, seed=0)
    with pytest.raises(ConfigError, match="bound"):
        body_of(logged, low=[1.0], high=[-1.0])
    broken = np.array(logged.observations)
    broken[4, 1] = np.nan
    bad = Episodes(
        {**logged.arrays, "observations": broken},
        starts=logged.starts,
        lengths=logged.lengths,
        terminated=logged.terminated,
        truncated=logged.truncated,
    )
    with pytest.raises(DataError, match="not finite at step 4 of episode 0"):
        body_of(bad)
    with pytest.raises(ConfigError, match="draws noise"):
        DiffusionDynamics(body_of(logged), ModelConfig(sampler=SamplerConfig(name="ddpm", steps=2)))
    with pytest.raises(ConfigError, match="Did you mean 'paper'"):
        NetworkConfig("papr")
