"""Data of every format through `control train`: the same episodes make the same models, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from forethought.app.cli import BAD_INPUT, DONE, main
from forethought.data import Episodes
from forethought.data.episodes import WindowConfig, WindowCutter
from forethought.data.episodes.reading import read_episodes

h5py = pytest.importorskip("h5py")
pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")

NUM, LIMIT = 16, 12


def _flat(*, following: bool = True, timeouts: bool = True) -> dict[str, np.ndarray]:
    """Sixteen episodes of a double integrator: odd ones fall after 9 steps, even ones reach the limit of 12."""
    rng = np.random.default_rng(0)
    rows: dict[str, list[Any]] = {name: [] for name in ("observations", "actions", "rewards", "terminals", "timeouts")}
    rows["next_observations"] = []
    for episode in range(NUM):
        state, length = rng.uniform(-1, 1, 2).astype(np.float32), 9 if episode % 2 else LIMIT
        for step in range(length):
            action = rng.uniform(-1, 1, 1).astype(np.float32)
            after = np.array([state[0] + 0.2 * state[1], state[1] + 0.2 * action[0]], np.float32)
            for name, value in (("observations", state), ("actions", action), ("next_observations", after)):
                rows[name].append(value)
            rows["rewards"].append(np.float32(-(state[0] ** 2)))
            rows["terminals"].append(episode % 2 == 1 and step == length - 1)
            rows["timeouts"].append(episode % 2 == 0 and step == length - 1)
            state = after
    left_out = {"next_observations": not following, "timeouts": not timeouts}
    return {name: np.array(value) for name, value in rows.items() if not left_out.get(name)}


def _d4rl(path: Path, **parts: bool) -> Path:
    with h5py.File(path, "w") as file:
        for name, value in _flat(**parts).items():
            file[name] = value
    return path


def _npz(path: Path, **parts: bool) -> Path:
    np.savez(path, **_flat(**parts))
    return path


def _minari(path: Path) -> Path:
    """The layout of Minari's own files, written without Minari."""
    flat, begin = _flat(), 0
    (path / "data").mkdir(parents=True)
    with h5py.File(path / "data" / "main_data.hdf5", "w") as file:
        for episode, end in enumerate(np.flatnonzero(flat["terminals"] | flat["timeouts"]) + 1):
            group = file.create_group(f"episode_{episode}")
            seen = np.concatenate([flat["observations"][begin:end], flat["next_observations"][end - 1 : end]])
            group["observations"], group["actions"] = seen, flat["actions"][begin:end]
            group["rewards"] = flat["rewards"][begin:end].astype(np.float64)
            group["terminations"], group["truncations"] = flat["terminals"][begin:end], flat["timeouts"][begin:end]
            begin = end
    return path


def _lerobot(path: Path, *, rewards: bool = True) -> Path:
    """A LeRobot v3 set over two Parquet files; what LeRobot calls success is the end that is no time limit."""
    flat = _flat(following=False)
    ends = flat["terminals"] | flat["timeouts"]
    number = np.concatenate([[0], np.cumsum(ends)[:-1]])
    frame = np.arange(len(ends)) - np.concatenate([[0], np.flatnonzero(ends) + 1])[number]
    columns = {
        "observation.state": flat["observations"].tolist(),
        "action": flat["actions"].tolist(),
        "next.reward": flat["rewards"],
        "next.success": flat["terminals"],
        "timestamp": (frame / 10).astype(np.float32),
        "frame_index": frame,
        "episode_index": number,
    }
    sizes = {"observation.state": 2, "action": 1, "next.reward": 1, "timestamp": 1}
    features: dict[str, Any] = {name: {"dtype": "float32", "shape": [size]} for name, size in sizes.items()}
    features["next.success"] = {"dtype": "bool", "shape": [1]}
    if not rewards:
        del columns["next.reward"], features["next.reward"]
    info = {"codebase_version": "v3.0", "fps": 10, "features": features}
    info |= {"total_frames": len(ends), "total_episodes": int(ends.sum())}
    (path / "meta").mkdir(parents=True)
    (path / "meta" / "info.json").write_text(json.dumps(info))
    (path / "data" / "chunk-000").mkdir(parents=True)
    types = {"observation.state": pa.list_(pa.float32()), "action": pa.list_(pa.float32())}
    table = pa.table({name: pa.array(value, type=types.get(name)) for name, value in columns.items()})
    for index, (begin, end) in enumerate(((0, 100), (100, len(ends)))):
        place = path / "data" / "chunk-000" / f"file-{index:03d}.parquet"
        pq.write_table(table.slice(begin, end - begin), place)
    return path


def _trained(data: Path, out: Path, *flags: str) -> dict[str, str]:
    arguments = ("--out", str(out), "--recipe", "tiny", "--steps", "3", "--discount", "0.5", *flags)
    assert main(["control", "train", str(data), *arguments]) == DONE
    result = json.loads((out / "result.json").read_text())
    assert result["train_episodes"] + result["validation_episodes"] == NUM
    return {name: part["fingerprint"] for name, part in result["parts"].items()}


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """The models of the .npz files, with and without the observation after each episode's last action."""
    folder = tmp_path_factory.mktemp("known")
    return {
        name: _trained(_npz(folder / f"{name}.npz", following=name == "whole"), folder / name)
        for name in ("whole", "cut")
    }


def test_d4rl_and_minari_train_what_the_npz_trains(known, tmp_path: Path):
    assert _trained(_d4rl(tmp_path / "d.hdf5"), tmp_path / "d4rl") == known["whole"]
    assert _trained(_minari(tmp_path / "m"), tmp_path / "minari") == known["whole"]


def test_lerobot_trains_what_the_npz_trains_that_knows_as_much(known, tmp_path: Path):
    assert _trained(_lerobot(tmp_path / "l"), tmp_path / "lerobot") == known["cut"]
    # What comes after an episode's last action is something that dynamics learn from, and only they and the value.
    assert known["cut"]["dynamics.diffusion"] != known["whole"]["dynamics.diffusion"]
    assert known["cut"]["proposal.diffusion"] == known["whole"]["proposal.diffusion"]


def test_a_time_limit_can_be_given_where_the_file_marks_none(known, tmp_path: Path, capsys):
    unmarked = _d4rl(tmp_path / "d.hdf5", timeouts=False)
    assert main(["control", "train", str(unmarked), "--out", str(tmp_path / "x"), "--recipe", "tiny"]) == BAD_INPUT
    assert "max_steps" in capsys.readouterr().err
    assert _trained(unmarked, tmp_path / "limited", "--max-steps", str(LIMIT)) == known["whole"]


def test_termination_and_truncation_are_told_apart(known, tmp_path: Path):
    flat = _flat()
    swapped = {**flat, "terminals": flat["timeouts"], "timeouts": flat["terminals"]}
    np.savez(tmp_path / "swapped.npz", **swapped)  # pyright: ignore[reportArgumentType]
    other = _trained(tmp_path / "swapped.npz", tmp_path / "out")
    assert other["value.regression"] != known["whole"]["value.regression"]


def test_no_window_of_any_format_crosses_an_episode(tmp_path: Path):
    places = (_npz(tmp_path / "n.npz"), _d4rl(tmp_path / "d.h5"), _minari(tmp_path / "m"), _lerobot(tmp_path / "l"))
    for place in places:
        episodes: Episodes = read_episodes(place)
        assert episodes.lengths.tolist() == [LIMIT, 9] * (NUM // 2)
        assert episodes.terminated.tolist() == [False, True] * (NUM // 2)
        assert episodes.truncated.tolist() == [True, False] * (NUM // 2)
        cutter = WindowCutter(episodes, WindowConfig(history=2, horizon=4))
        batch = cutter.cut(cutter.anchors)
        velocity = np.concatenate([batch.observations[:, None, 1], batch.next_observations[..., 1]], 1)
        foreseen = velocity[:, :-1] + 0.2 * batch.actions[..., 0]
        wrong = np.abs(velocity[:, 1:] - foreseen) * batch.next_mask_BF
        assert wrong.max() < 1e-5, place


def test_data_without_rewards_trains_what_needs_none(tmp_path: Path, capsys):
    data = _lerobot(tmp_path / "l", rewards=False)
    assert main(["control", "train", str(data), "--out", str(tmp_path / "x"), "--recipe", "tiny"]) == BAD_INPUT
    said = capsys.readouterr().err
    assert "rewards" in said
    assert "Traceback" not in said
    parts = _trained(data, tmp_path / "out", "--parts", "proposal.diffusion", "dynamics.diffusion")
    assert sorted(parts) == ["dynamics.diffusion", "proposal.diffusion"]
