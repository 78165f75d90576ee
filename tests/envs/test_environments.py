"""The built-in environments through Gymnasium: its checker, spaces, exact reset, factors, determinism."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from forethought.core.errors import ConfigError, InputError
from forethought.envs import IDENTIFIERS, SYSTEMS, make_system

NAMES = list(SYSTEMS)


def make(name: str, **arguments):
    return gymnasium.make(IDENTIFIERS[name], **arguments)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("observation", ["pixels", "state", "both"])
@pytest.mark.filterwarnings("ignore:.*CUDA initialization.*")
def test_gymnasium_checker_passes(name: str, observation: str):
    check_env(make(name, observation=observation, render_mode="rgb_array").unwrapped)


def test_identifiers_are_the_promised_ones():
    assert set(IDENTIFIERS.values()) == {"forethought/TwoRooms-v0", "forethought/PushT-v0", "forethought/Reacher-v0"}


@pytest.mark.parametrize("name", NAMES)
def test_long_random_play_stays_in_the_spaces(name: str):
    env = make(name, observation="state")
    env.action_space.seed(0)
    observation, _ = env.reset(seed=0)
    for _ in range(3000):
        observation, reward, terminated, truncated, _ = env.step(env.action_space.sample())
        assert env.observation_space.contains(observation)
        assert np.isfinite(reward)
        if terminated or truncated:
            observation, _ = env.reset()


@pytest.mark.parametrize("name", NAMES)
def test_exact_reset_and_replay(name: str):
    """A reset to a state is that state to the bit, and the same actions lead along the same path to the bit."""
    env = make(name, observation="state").unwrapped
    env.reset(seed=3)
    start, goal = env.state, env.goal
    actions = np.random.default_rng(0).uniform(-1, 1, (30, env.action_space.shape[0]))
    paths = []
    for _ in range(2):
        observation, info = env.reset(options={"state": start, "goal": goal})
        assert np.array_equal(observation, start)
        assert np.array_equal(info["goal"], goal)
        paths.append([env.step(action)[0] for action in actions])
    assert np.array_equal(*paths)
    assert not np.array_equal(paths[0][0], paths[0][-1])


@pytest.mark.parametrize("name", NAMES)
def test_reaching_the_goal_ends_the_episode(name: str):
    env = make(name, observation="state").unwrapped
    env.reset(seed=1)
    goal = env.state
    env.reset(options={"state": goal, "goal": goal})
    rest = np.zeros(env.action_space.shape)
    _, reward, terminated, _, info = env.step(rest)
    assert terminated
    assert info["is_success"]
    assert reward == 1.0
    far = goal.copy()
    far[0] += 40.0 if name != "reacher" else -1.0
    env.reset(options={"state": goal, "goal": far})
    assert not env.step(rest)[2]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("size", [32, 64, 96, 224])
def test_pictures_of_all_sizes(name: str, size: int):
    env = make(name, size=size, render_mode="rgb_array", render_size=size)
    pixels, info = env.reset(seed=0)
    assert pixels.shape == (size, size, 3)
    assert pixels.dtype == np.uint8
    assert np.array_equal(pixels, env.render())
    again = env.unwrapped.render_batch(info["state"], size)[0]
    assert np.array_equal(pixels, again)
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 3


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_is_its_rows(name: str):
    """Drawing and moving many at once gives, row by row, what one alone gives; factors may differ by row."""
    system, rng = make_system(name), np.random.default_rng(5)
    factors = system.complete(system.vary(["all"], rng, 6), 6)
    states = system.draw_states(rng, factors)
    actions = rng.uniform(system.action_low, system.action_high, (6, system.action_dim))
    together = system.begin(states, factors).step(actions)
    pictures = system.render_batch(states, 64, factors)
    for row in range(6):
        own = {key: values[row : row + 1] for key, values in factors.items()}
        alone = system.begin(states[row : row + 1], own).step(actions[row : row + 1])
        np.testing.assert_allclose(alone[0], together[row], rtol=1e-12, atol=1e-12)
        picture = system.render_batch(states[row], 64, own)[0]
        assert np.abs(picture.astype(int) - pictures[row]).max() <= 1


@pytest.mark.parametrize("name", NAMES)
def test_every_factor_shows_or_moves(name: str):
    """Each factor changes the picture or the dynamics, as it says."""
    system = make_system(name)
    base = system.complete(None, 8)
    rng = np.random.default_rng(2)
    states = system.draw_states(rng, base)
    if name == "reacher":
        states[:, 2:] = 1.0
    if name == "push-t":
        states[:, :2] = states[:, 2:4] + 5.0
    actions = np.sign(rng.uniform(-1, 1, (8, 2)))
    for factor in system.factors:
        other = np.array(factor.high if factor.default != factor.high else factor.low)
        changed = system.complete({factor.name: other}, 8)
        seen = not np.array_equal(system.paint(states, 64, base), system.paint(states, 64, changed))
        moved = False
        for push in (1.0, -1.0):
            simulations = [system.begin(states, factors) for factors in (base, changed)]
            for _ in range(12):
                for simulation in simulations:
                    simulation.step(push * actions)
            moved |= not np.array_equal(simulations[0].states_BS, simulations[1].states_BS)
        assert moved == factor.changes_dynamics, factor.name
        assert seen or moved, factor.name


def test_factors_through_reset():
    env = make("two-rooms", observation="pixels").unwrapped
    plain, _ = env.reset(seed=0, options={"state": [60.0, 60.0]})
    blue, info = env.reset(seed=0, options={"state": [60.0, 60.0], "factors": {"agent_colour": [0, 0, 255]}})
    assert info["factors"]["agent_colour"].tolist() == [0, 0, 255]
    dot = (plain != blue).any(axis=-1)
    assert 0 < dot.sum() < 40
    drawn = [env.reset(seed=seed, options={"vary": ["floor_colour"]})[1]["factors"] for seed in (1, 2)]
    assert not np.array_equal(drawn[0]["floor_colour"], drawn[1]["floor_colour"])
    one, two = (env.reset(seed=4, options={"vary": "all"})[1]["factors"] for _ in range(2))
    assert all(np.array_equal(one[key], two[key]) for key in one)


def test_set_state_and_set_factors_in_the_middle_of_an_episode():
    env = make("push-t", observation="both").unwrapped
    env.reset(seed=0)
    env.step(env.action_space.sample() * 0)
    env.set_state([100, 100, 300, 300, 1.0])
    assert env.state[:5].tolist() == [100, 100, 300, 300, 1.0]
    before = env.observe()["pixels"]
    env.set_factors({"block_colour": [255, 0, 0]})
    assert not np.array_equal(before, env.observe()["pixels"])
    assert env.state[:5].tolist() == [100, 100, 300, 300, 1.0]


@pytest.mark.parametrize("name", NAMES)
def test_vector_environment(name: str):
    arguments = {"num_envs": 4, "vectorization_mode": "vector_entry_point", "observation": "both"}
    env = gymnasium.make_vec(IDENTIFIERS[name], **arguments)
    env.action_space.seed(0)
    observation, info = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    actions = env.action_space.sample()
    single = make(name, observation="state").unwrapped
    moved, *_ = env.step(actions)
    for row in range(4):
        single.reset(options={"state": info["state"][row], "goal": info["goal"][row]})
        np.testing.assert_allclose(single.step(actions[row])[0], moved["state"][row], rtol=1e-12)


def test_vector_environment_resets_what_ended_and_only_that():
    env = gymnasium.make_vec(
        IDENTIFIERS["two-rooms"], num_envs=2, vectorization_mode="vector_entry_point", observation="state"
    )
    near, far = [60.0, 60.0], [180.0, 180.0]
    env.reset(seed=0, options={"state": [near, near], "goal": [near, far]})
    rest = np.zeros((2, 2))
    _, rewards, terminated, *_ = env.step(rest + 0.5)
    assert terminated.tolist() == [True, False]
    assert rewards.tolist() == [1.0, 0.0]
    again, rewards, terminated, *_ = env.step(rest + 0.5)
    assert again[0].tolist() == near
    assert again[1].tolist() == [65.0, 65.0]
    assert not terminated.any()
    assert rewards.tolist() == [0.0, 0.0]


def test_vector_environment_truncates():
    env = gymnasium.make_vec(
        IDENTIFIERS["two-rooms"], num_envs=2, vectorization_mode="vector_entry_point", observation="state", step_limit=3
    )
    env.reset(seed=0, options={"state": [60.0, 60.0], "goal": [180.0, 180.0]})
    ends = [env.step(np.zeros((2, 2)))[3].tolist() for _ in range(5)]
    assert ends == [[False] * 2, [False] * 2, [True] * 2, [False] * 2, [False] * 2]


def test_no_global_randomness():
    before = np.random.get_state()[1].copy()
    for name in NAMES:
        make(name).reset(seed=0)
    assert np.array_equal(np.random.get_state()[1], before)


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: make("two-rooms", observation="rgb"), ConfigError, "both, pixels, state"),
        (lambda: make("two-rooms", size=8), ConfigError, "16 to 1024"),
        (lambda: make_system("pusht"), ConfigError, "push-t"),
        (lambda: make_system("push-t", actions="velocity"), ConfigError, "'relative' or 'absolute'"),
        (lambda: make("two-rooms").unwrapped.step(np.zeros(2)), InputError, "call reset"),
        (lambda: make("reacher").unwrapped.reset(options={"start": 1}), ConfigError, "goal, state"),
        (lambda: make("reacher").unwrapped.reset(options={"state": [1.0]}), InputError, "shoulder, wrist"),
        (lambda: make("two-rooms").unwrapped.reset(options={"state": [np.nan, 1.0]}), InputError, "not finite"),
        (lambda: make("two-rooms").unwrapped.reset(options={"state": [900.0, 1.0]}), InputError, "outside"),
        (lambda: make("two-rooms").unwrapped.reset(options={"factors": {"color": 1}}), ConfigError, "agent_colour"),
        (
            lambda: make("two-rooms").unwrapped.reset(options={"factors": {"speed": 99.0}}),
            ConfigError,
            "allowed",
        ),
        (lambda: make("two-rooms").unwrapped.reset(options={"vary": ["nothing"]}), ConfigError, "unknown factor"),
        (lambda: make_system("two-rooms").render_batch(np.zeros((3, 5))), InputError, "x, y"),
        (lambda: make_system("two-rooms").render_batch(np.zeros((3, 2)), 4), InputError, "4 px"),
    ],
)
def test_bad_input_is_named(call, error, words: str):
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize("bad", [np.zeros(3), np.array([np.nan, 0.0])])
def test_bad_actions_are_named(bad):
    env = make("two-rooms").unwrapped
    env.reset(seed=0)
    with pytest.raises(InputError, match="finite actions of shape"):
        env.step(bad)
