"""Episodes: layout, splits, windows against a plain re-statement, returns, normalisers, the artefact."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from forethought.core import artefact, files
from forethought.core.errors import ArtefactError, CheckpointError, ConfigError, DataError, RunExistsError
from forethought.data import (
    Episodes,
    Normaliser,
    WindowBatches,
    WindowConfig,
    WindowCutter,
    concatenate,
    fit_normaliser,
    open_episodes,
    returns_to_go,
    save_episodes,
    split_by_episode,
)


def make(
    lengths: list[int], *, finals: bool = True, terminated: list[bool] | None = None, seed: int = 0, **more: object
) -> Episodes:
    """Episodes in which every number tells where it stands: observation (episode, step), action 1000 * e + t + 1."""
    ends = np.array([False] * len(lengths) if terminated is None else terminated)
    e = np.repeat(np.arange(len(lengths)), lengths)
    t = np.concatenate([np.arange(length) for length in lengths])
    rewards = np.random.default_rng(seed).normal(size=len(e)).astype(np.float32)
    return Episodes(
        {
            "observations": np.stack((e, t), 1).astype(np.float32),
            "actions": (1000 * e + t + 1).astype(np.float32)[:, None],
            "rewards": rewards,
            "frames": np.broadcast_to(t[:, None, None, None], (len(t), 4, 3, 1)).astype(np.uint8),
        },
        starts=np.cumsum([0, *lengths[:-1]]),
        lengths=lengths,
        terminated=ends,
        truncated=~ends,
        finals={"observations": np.stack((np.arange(len(lengths)), lengths), 1).astype(np.float32)} if finals else None,
        **more,  # pyright: ignore[reportArgumentType]
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lengths": [3, 0]}, "episode 1 has no steps"),
        ({"lengths": [3, 3], "starts": [0, 3]}, "5 rows for 6 steps"),
        ({"starts": [0, 2]}, "leave gaps or overlap"),
        ({"terminated": [True]}, "terminated has shape"),
        ({"arrays": {"observations": np.zeros((4, 2))}}, "4 rows for 5 steps"),
        ({"arrays": {"rewards": np.zeros((5, 1))}}, "one number a step"),
        ({"arrays": {"actions": np.array(["a"] * 5)}}, "give arrays of numbers"),
        ({"arrays": {"../x": np.zeros(5)}}, "cannot be stored"),
        ({"finals": {"observations": np.zeros((2, 3))}}, "matches no array"),
        ({"fps": 0.0}, "fps is 0"),
        ({"starts": [], "lengths": [], "terminated": [], "truncated": []}, "holds no episodes"),
    ],
)
def test_a_bad_layout_is_named(change: dict[str, object], message: str) -> None:
    whole: dict[str, object] = {
        "arrays": {"observations": np.zeros((5, 2))},
        "starts": [0, 3],
        "lengths": [3, 2],
        "terminated": [True, False],
        "truncated": [False, True],
    }
    with pytest.raises(DataError, match=message):
        Episodes(**{**whole, **change})  # pyright: ignore[reportArgumentType]


def test_not_finite_names_episode_and_step() -> None:
    episodes = make([3, 4])
    episodes.arrays["observations"][5, 1] = np.nan
    with pytest.raises(DataError, match="observations is not finite at step 2 of episode 1"):
        episodes.require_finite()


def test_a_missing_array_is_told_with_what_there_is() -> None:
    with pytest.raises(DataError, match="holds no 'pixels'; it holds: actions, frames"):
        make([2]).array("pixels")


@given(
    count=st.integers(2, 40),
    seed=st.integers(0, 5),
    shares=st.lists(st.floats(0.05, 1.0), min_size=1, max_size=3),
)
@settings(deadline=None, max_examples=60)
def test_a_split_keeps_episodes_whole_and_apart(count: int, seed: int, shares: list[float]) -> None:
    if count < len(shares):
        return
    total = sum(shares)
    episodes = make([1 + i % 3 for i in range(count)])
    parts = split_by_episode(episodes, seed=seed, fractions={str(i): s / total for i, s in enumerate(shares)})
    seen = [np.unique(part.observations[:, 0]).tolist() for part in parts.values()]
    assert sorted(each for part in seen for each in part) == list(range(count))
    for part in parts.values():
        for index in range(len(part)):
            rows = part.episode(index)["observations"]
            assert len(np.unique(rows[:, 0])) == 1
            assert np.array_equal(part.finals["observations"][index], [rows[0, 0], len(rows)])


def test_a_split_is_seeded_and_refuses_nonsense() -> None:
    episodes = make([1] * 20)
    split = {"train": 0.5, "test": 0.5}
    first, again, other = (split_by_episode(episodes, seed=s, fractions=split)["train"] for s in (0, 0, 1))
    assert np.array_equal(first.observations, again.observations)
    assert not np.array_equal(first.observations, other.observations)
    with pytest.raises(ConfigError, match="sum to at most 1"):
        split_by_episode(episodes, seed=0, fractions={"a": 0.7, "b": 0.7})
    with pytest.raises(ConfigError, match="cannot be split into 2"):
        split_by_episode(make([5]), seed=0, fractions=split)


def test_joining_refuses_other_rates_and_layouts() -> None:
    joined = concatenate([make([2, 3]), make([4])])
    assert joined.lengths.tolist() == [2, 3, 4]
    assert np.array_equal(joined.finals["observations"], [[0, 2], [1, 3], [0, 4]])
    with pytest.raises(DataError, match=r"frame rate 10\.0 and .* has 20\.0"):
        concatenate([make([2], fps=10.0), make([2], fps=20.0)])
    with pytest.raises(DataError, match="environment"):
        concatenate([make([2], env_id="Hopper-v4"), make([2], env_id="Hopper-v5")])


def restated(episodes: Episodes, row: int, window: WindowConfig) -> dict[str, np.ndarray]:
    """The window at a row, said again with loops."""
    e = int(episodes.episode_of_step[row])
    begin, length = int(episodes.starts[e]), int(episodes.lengths[e])
    t, has_final = row - begin, "observations" in episodes.finals
    last = length if has_final else length - 1

    def state(i: int) -> list[float]:
        return [e, min(max(i, 0), last)]

    def action(i: int) -> list[float]:
        return [1000 * e + i + 1] if 0 <= i < length else [0]

    past, future = range(t - window.history, t), range(t, t + window.horizon)
    return {
        "history_observations": np.array([state(i) for i in past]).reshape(-1, 2),
        "history_actions": np.array([action(i) for i in past]).reshape(-1, 1),
        "history_mask_BH": np.array([i >= 0 for i in past]),
        "observations": np.array(state(t)),
        "actions": np.array([action(i) for i in future]),
        "action_mask_BF": np.array([i < length for i in future]),
        "next_observations": np.array([state(i + 1) for i in future]),
        "next_mask_BF": np.array([i + 1 <= last for i in future]),
        "terminal_BF": np.array([i + 1 == length and episodes.terminated[e] for i in future]),
        "rewards_BF": np.array([episodes.rewards[begin + i] if i < length else 0 for i in future]),
    }


@given(
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=4),
    history=st.integers(0, 3),
    horizon=st.integers(1, 9),
    finals=st.booleans(),
    data=st.data(),
)
@settings(deadline=None, max_examples=80)
def test_windows_are_what_the_rules_say(
    lengths: list[int], history: int, horizon: int, finals: bool, data: st.DataObject
) -> None:
    terminated = data.draw(st.lists(st.booleans(), min_size=len(lengths), max_size=len(lengths)))
    episodes = make(lengths, finals=finals, terminated=terminated)
    window = WindowConfig(history=history, horizon=horizon)
    rows = np.arange(episodes.num_steps)
    batch = WindowCutter(episodes, window).cut(rows)
    for row in rows:
        for name, value in restated(episodes, int(row), window).items():
            assert np.array_equal(getattr(batch, name)[row], value), (name, row)


def test_cutting_changes_no_data() -> None:
    episodes = make([4, 2])
    before = episodes.actions.copy(), episodes.observations.copy(), episodes.rewards.copy()
    WindowCutter(episodes, WindowConfig(history=2, horizon=5)).cut(np.arange(6))
    after = episodes.actions, episodes.observations, episodes.rewards
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_extras_stay_inside_the_episode_at_their_stride() -> None:
    episodes = make([6, 9])
    window = WindowConfig(history=3, horizon=6, extras=("frames",), stride=3)
    assert window.offsets == (-3, 0, 3, 6)
    batch = WindowCutter(episodes, window).cut(np.array([1, 5, 7, 14]))
    # Rows 1 and 5 stand at steps 1 and 5 of the first episode, 7 and 14 at 1 and 8 of the second.
    seen = batch.extras["frames"][..., 0, 0, 0]
    assert seen.dtype == np.uint8
    assert seen.tolist() == [[0, 1, 4, 5], [2, 5, 5, 5], [0, 1, 4, 7], [5, 8, 8, 8]]


def test_whole_anchors_need_no_padding_ahead() -> None:
    for finals in (True, False):
        episodes = make([3, 8, 5], finals=finals)
        cutter = WindowCutter(episodes, WindowConfig(horizon=5, anchors="whole"))
        assert cutter.cut(cutter.anchors).next_mask_BF.all()
        every = WindowCutter(episodes, WindowConfig(horizon=5)).cut(np.arange(16))
        assert len(cutter.anchors) == int(every.next_mask_BF.all(1).sum())
    with pytest.raises(ConfigError, match="no window of horizon 50"):
        WindowCutter(episodes, WindowConfig(horizon=50, anchors="whole"))


def test_batches_are_a_function_of_the_step_and_cover_every_epoch() -> None:
    episodes = make([5, 9, 3])
    window = WindowConfig(horizon=2)
    batches = WindowBatches(episodes, window, batch_size=4, seed=3)
    rows = np.concatenate([batches.batch(step).rows_B for step in range(17)])
    for epoch in range(4):
        assert sorted(rows[17 * epoch : 17 * (epoch + 1)]) == list(range(17))
    resumed = WindowBatches(episodes, window, batch_size=4, seed=3)
    assert np.array_equal(resumed.batch(11).rows_B, rows[44:48])
    assert not np.array_equal(rows[:17], rows[17:34])
    other = WindowBatches(episodes, window, batch_size=4, seed=4)
    assert not np.array_equal(other.batch(0).rows_B, rows[:4])


def test_ranks_share_the_rows_of_one_process() -> None:
    episodes = make([5, 9, 3])
    window = WindowConfig(horizon=2)
    whole = WindowBatches(episodes, window, batch_size=6, seed=0).batch(2)
    parts = [WindowBatches(episodes, window, batch_size=6, seed=0, rank=r, world_size=3).batch(2) for r in range(3)]
    assert np.array_equal(np.concatenate([part.rows_B for part in parts]), whole.rows_B)
    assert np.array_equal(np.concatenate([part.actions for part in parts]), whole.actions)
    with pytest.raises(ConfigError, match="multiple of world_size"):
        WindowBatches(episodes, window, batch_size=5, seed=0, world_size=3)


def test_returns_to_go_against_a_loop() -> None:
    episodes = make([4, 1, 7, 3], terminated=[True, False, False, True])
    tail = np.array([9.0, 8.0, 7.0, 6.0])
    plain = returns_to_go(episodes, discount=0.5, tolerance=0.1)
    full = returns_to_go(episodes, discount=0.5, termination_penalty=100.0, tail_E=tail)
    for e in range(4):
        begin, length = int(episodes.starts[e]), int(episodes.lengths[e])
        for t in range(length):
            rewards = episodes.rewards[begin + t : begin + length].astype(float)
            value = sum(0.5**j * r for j, r in enumerate(rewards))
            left = length - t
            assert plain.values_N[begin + t] == pytest.approx(value, abs=1e-6)
            assert plain.complete_N[begin + t] == (episodes.terminated[e] or 0.5**left <= 0.1)
            more = -100.0 * 0.5 ** (left - 1) if episodes.terminated[e] else tail[e] * 0.5**left
            assert full.values_N[begin + t] == pytest.approx(value + more, rel=1e-5)
    assert full.complete_N.all()


def test_normalisers_go_there_and_back() -> None:
    values = np.random.default_rng(0).normal(3.0, [1.0, 0.1, 20.0], (500, 3)).astype(np.float32)
    for kind in ("mean_std", "min_max"):
        fitted = fit_normaliser(values, kind=kind, clip=None)
        normal = fitted.normalise(values)
        assert np.allclose(fitted.restore(normal), values, atol=1e-4)
        if kind == "mean_std":
            assert np.allclose(normal.mean(0), 0, atol=1e-4)
            assert np.allclose(normal.std(0), 1, atol=1e-4)
        else:
            assert np.allclose((normal.min(0), normal.max(0)), ([-1] * 3, [1] * 3), atol=1e-4)
    again = Normaliser.from_arrays(fitted.arrays())
    assert np.array_equal(again.shift, fitted.shift)
    assert again.clip is None


def test_a_constant_feature_is_floored_and_clipped() -> None:
    values = np.tile(np.array([[5.0, 1.0]], np.float32), (10, 1))
    values[:, 1] += np.arange(10)
    fitted = fit_normaliser(values, floor=0.01, clip=8.0)
    assert fitted.scale[0] == np.float32(0.01)
    assert np.array_equal(fitted.normalise(values)[:, 0], np.zeros(10))
    assert fitted.normalise(np.array([6.0, 1.0]))[0] == 8.0
    assert Normaliser.from_arrays(fitted.arrays()).clip == 8.0


def test_the_variance_survives_a_large_offset() -> None:
    values = 1e6 + np.random.default_rng(0).normal(size=(1000, 1))
    assert fit_normaliser(values).scale[0] == pytest.approx(1.0, rel=0.1)


def test_normalisers_refuse_bad_data() -> None:
    with pytest.raises(DataError, match="NaN"):
        fit_normaliser(np.array([[1.0], [np.nan]]))
    with pytest.raises(DataError, match="do not end in the"):
        fit_normaliser(np.ones((4, 3))).normalise(np.ones((4, 2)))
    with pytest.raises(ConfigError, match="numbers above 0"):
        fit_normaliser(np.ones((4, 3)), floor=0.0)
    with pytest.raises(ArtefactError, match="lacks clip"):
        Normaliser.from_arrays({"shift": [0.0], "scale": [1.0]})


def test_the_artefact_comes_back_memory_mapped_with_its_identity(tmp_path: Path) -> None:
    episodes = make([3, 5], env_id="Hopper-v5", fps=125.0, metadata={"note": "ü"}, terminated=[True, False])
    save_episodes(episodes, tmp_path / "e")
    assert artefact.read_kind(tmp_path / "e") == "episodes"
    opened = artefact.load(tmp_path / "e")
    assert isinstance(opened, Episodes)
    assert isinstance(opened.arrays["frames"], np.memmap)
    for (name, one), (again, two) in zip(episodes.tensors(), opened.tensors(), strict=True):
        assert name == again
        assert one.dtype == two.dtype
        assert np.array_equal(one, two)
    assert (opened.env_id, opened.fps, opened.metadata) == ("Hopper-v5", 125.0, {"note": "ü"})
    assert opened.identity() == episodes.identity()
    assert not isinstance(open_episodes(tmp_path / "e", memory=True).observations, np.memmap)
    changed = make([3, 5], terminated=[True, True])
    assert changed.identity() != episodes.identity()
    with pytest.raises(RunExistsError):
        save_episodes(episodes, tmp_path / "e")
    with pytest.raises(ValueError, match="read-only"):
        opened.observations[0] = 1.0


def test_damage_to_the_artefact_is_told(tmp_path: Path) -> None:
    place = save_episodes(make([3, 5]), tmp_path / "e")
    target = place / "steps" / "actions.bin"
    data = target.read_bytes()
    target.write_bytes(data[:-4])
    with pytest.raises(DataError, match=r"actions.bin has 28 bytes where its facts say 32"):
        open_episodes(place)
    target.write_bytes(data[:-1] + b"\x01")
    open_episodes(place)
    with pytest.raises(CheckpointError, match="damaged"):
        open_episodes(place, verify=True)
    target.unlink()
    target.symlink_to("/etc/passwd")
    with pytest.raises(DataError, match="no regular file"):
        open_episodes(place)


@pytest.mark.parametrize(
    "arrays",
    [
        {"steps/x": ["object", [3]]},
        {"../x": ["float32", [3]]},
        {"steps/../../x": ["float32", [3]]},
        {"steps/x": ["float32", [-3]]},
        {"steps/x": ["float32", ["a"]]},
        {"steps/x": "float32"},
        [],
    ],
)
def test_hostile_facts_are_refused(tmp_path: Path, arrays: object) -> None:
    place = save_episodes(make([3]), tmp_path / "e")
    facts = files.read_json(place / "episodes.json")
    files.write_json(place / "episodes.json", {**facts, "arrays": arrays})
    with pytest.raises(ArtefactError, match="malformed"):
        open_episodes(place)
