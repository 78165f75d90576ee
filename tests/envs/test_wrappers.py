"""Defects and events around environments, and foreign environments as ones of pictures and states."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from forethought.core.errors import ConfigError, InputError
from forethought.envs import IDENTIFIERS
from forethought.envs.wrappers import (
    ActionDelay,
    ActionGain,
    ActuatorDisabled,
    ActuatorLimit,
    Freeze,
    PixelsAndState,
    RecolouredObservation,
    Teleport,
    resize,
)

START = {"state": [60.0, 120.0], "goal": [180.0, 60.0]}


def rooms(**arguments):
    return gymnasium.make(IDENTIFIERS["two-rooms"], **({"observation": "state"} | arguments))


def path(env, actions) -> list[list[float]]:
    env.reset(seed=0, options=START)
    return [env.step(np.array(action, dtype=np.float32))[0].tolist() for action in actions]


def test_a_limited_actuator():
    env = ActuatorLimit(rooms(), 0, -0.5, 0.5)
    assert path(env, [[1, 1], [-1, 0]]) == [[62.5, 125.0], [60.0, 125.0]]
    assert env.action_space == rooms().action_space
    env.reset(seed=0)
    assert env.step(np.array([1.0, 1.0], dtype=np.float32))[4]["executed_action"].tolist() == [0.5, 1.0]


def test_a_disabled_actuator():
    assert path(ActuatorDisabled(rooms(), 1), [[1, 1]]) == [[65.0, 120.0]]


def test_a_changed_gain():
    assert path(ActionGain(rooms(), -1.0), [[1, 0.5]]) == [[55.0, 117.5]]
    assert path(ActionGain(rooms(), [0.5, 2.0]), [[1, 0.25]]) == [[62.5, 122.5]]
    assert path(ActionGain(rooms(), 3.0), [[1, 1]]) == [[65.0, 125.0]]


def test_a_delay():
    env = ActionDelay(rooms(), 2)
    expected = [[60.0, 120.0], [60.0, 120.0], [65.0, 120.0], [65.0, 125.0]]
    for _ in range(2):
        assert path(env, [[1, 0], [0, 1], [-1, -1], [0, 0]]) == expected
    assert path(ActionDelay(rooms(), 0), [[1, 0]]) == [[65.0, 120.0]]


def test_a_right_foot():
    """The limit of the control room's benchmark on a real robot, where MuJoCo is installed."""
    pytest.importorskip("mujoco")
    walker = gymnasium.make("Walker2d-v5")
    plain = walker.unwrapped
    assert plain.model.joint(plain.model.actuator_trnid[2, 0]).name == "foot_joint"
    env = ActuatorLimit(walker, index=2)
    env.reset(seed=0)
    *_, info = env.step(np.ones(6, dtype=np.float32))
    assert info["executed_action"].tolist() == [1.0, 1.0, 0.5, 1.0, 1.0, 1.0]
    assert plain.data.ctrl.tolist() == [1.0, 1.0, 0.5, 1.0, 1.0, 1.0]


def test_a_recoloured_view():
    plain, seen = rooms(observation="pixels"), RecolouredObservation(rooms(observation="pixels"), at=2)
    for env in (plain, seen):
        env.reset(seed=0, options=START)
    rest = np.zeros(2, dtype=np.float32)
    assert np.array_equal(plain.step(rest)[0], seen.step(rest)[0])
    original, other = plain.step(rest)[0], seen.step(rest)[0]
    assert np.array_equal(other, np.roll(original, 1, axis=-1))
    assert not np.array_equal(other, original)
    seen.reset(seed=0, options=START)
    assert np.array_equal(seen.step(rest)[0], original)


def test_a_teleport():
    env = Teleport(rooms(), at=2, change=[30.0, -40.0])
    for _ in range(2):
        assert path(env, [[1, 0], [1, 0], [1, 0]]) == [[65.0, 120.0], [100.0, 80.0], [100.0, 80.0]]
    mirrored = Teleport(rooms(), at=1, change=lambda state: 224.0 - state)
    assert path(mirrored, [[0, 0]]) == [[164.0, 104.0]]


def test_a_freeze():
    env = Freeze(rooms(), at=2, num_steps=2)
    assert path(env, [[1, 1]] * 4) == [[65.0, 125.0], [65.0, 125.0], [65.0, 125.0], [70.0, 130.0]]
    part = Freeze(rooms(), at=1, num_steps=2, which=[1])
    assert path(part, [[1, 1]] * 3) == [[65.0, 120.0], [70.0, 120.0], [75.0, 125.0]]


def test_push_t_can_be_teleported_and_its_block_frozen():
    env = Freeze(gymnasium.make(IDENTIFIERS["push-t"], observation="state"), at=1, num_steps=20, which=[2, 3, 4])
    env.reset(seed=0, options={"state": [200, 300, 300, 300, 0.0]})
    for _ in range(15):
        state = env.step(np.array([1.0, 0.1], dtype=np.float32))[0]
    assert state[2:5].tolist() == [300, 300, 0.0]
    assert state[0] > 300


def test_resize_takes_exact_means():
    image = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    small = resize(image, 2)
    expected = image.astype(float).reshape(2, 2, 2, 3, 3).mean(axis=(1, 3))
    assert np.abs(small - expected).max() <= 0.5
    assert np.array_equal(resize(image[:, :4], 4), image[:, :4])
    flat = np.full((50, 70, 3), 93, dtype=np.uint8)
    assert (resize(flat, 64) == 93).all()


def test_a_foreign_environment_with_a_state_of_its_own():
    pytest.importorskip("pygame", reason="CartPole draws with pygame")
    env = PixelsAndState(gymnasium.make("CartPole-v1", render_mode="rgb_array"), size=32)
    _check_foreign(env, np.array([0.1, 0.2, 0.03, -0.1]), 1)


def test_a_mujoco_environment():
    pytest.importorskip("mujoco")
    env = gymnasium.make("InvertedPendulum-v5", render_mode="rgb_array", width=96, height=96)
    env.unwrapped.render = lambda: np.full((96, 96, 3), 7, np.uint8)  # states are the subject; not every machine draws
    _check_foreign(PixelsAndState(env, size=32), np.array([0.1, 0.05, 0.2, -0.3]), np.array([0.5], np.float32))


def _check_foreign(env: PixelsAndState, state: np.ndarray, action) -> None:
    observation, _ = env.reset(seed=0, options={"state": state})
    assert env.observation_space.contains(observation)
    np.testing.assert_allclose(observation["state"], state)
    first = env.step(action)[0]
    env.reset(seed=1, options={"state": state})
    np.testing.assert_allclose(env.step(action)[0]["state"], first["state"], rtol=1e-9)
    assert not np.array_equal(first["state"], state)
    env.set_state(state)
    np.testing.assert_allclose(env.observe()["state"], state)
    with pytest.raises(InputError, match="finite numbers"):
        env.set_state(state[:2])


class Bare(gymnasium.Env):
    """An environment that says nothing about its state and draws a grey square."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, render_mode=None):
        self.render_mode = render_mode
        self.observation_space = gymnasium.spaces.Box(-9, 9, (2,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._x = np.zeros(2, np.float32)
        return self._x.copy(), {}

    def step(self, action):
        self._x[0] += float(action)
        return self._x.copy(), 0.0, bool(self._x[0] > 5), False, {}

    def render(self):
        return np.full((40, 50, 3), int(20 * self._x[0]), np.uint8)


@pytest.mark.filterwarnings("ignore:.*WARN")
def test_an_environment_without_a_state_gives_its_observation():
    env = PixelsAndState(Bare("rgb_array"), size=16)
    check_env(env, skip_render_check=True)
    env.reset(seed=0)
    observation = env.step(1)[0]
    assert observation["state"].tolist() == [1.0, 0.0]
    assert (observation["pixels"] == 20).all()
    with pytest.raises(InputError, match="cannot be put into a state"):
        env.set_state([0.0, 0.0])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: ActuatorLimit(rooms(), 5), "actuators 0 to 1"),
        (lambda: ActuatorLimit(rooms(), 0, 1.0, -1.0), "low must not"),
        (lambda: ActionGain(rooms(), [1.0, 2.0, 3.0]), "one for each actuator"),
        (lambda: ActionDelay(rooms(), -1), "at least 0"),
        (lambda: ActionGain(Bare(), 2.0), "one row of numbers"),
        (lambda: RecolouredObservation(rooms()), "uint8 pictures"),
        (lambda: Teleport(Bare(), 1, [0.0]), "set_state, observe"),
        (lambda: Teleport(rooms(), 0, [0.0]), "first step is 1"),
        (lambda: Freeze(rooms(), 1, 0), "at least one step"),
        (lambda: PixelsAndState(Bare()), "render_mode='rgb_array'"),
    ],
)
def test_bad_input_is_named(make, words: str):
    with pytest.raises(ConfigError, match=words):
        make()
