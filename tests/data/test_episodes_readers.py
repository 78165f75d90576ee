"""Readers of episodes: real data, every format there and back, and every kind of broken file named."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from forethought.core import files
from forethought.core.errors import ArtefactError, DataError, MissingExtraError
from forethought.data import read_episodes, read_lerobot, read_minari, save_episodes, write_minari


def flat(**changes: Any) -> dict[str, np.ndarray]:
    """Three episodes of 3, 4 and 2 steps: terminated, timed out, cut."""
    rng = np.random.default_rng(0)
    terminals, timeouts = np.zeros(9, bool), np.zeros(9, bool)
    terminals[2], timeouts[6] = True, True
    arrays = {
        "observations": rng.normal(size=(9, 4)).astype(np.float32),
        "actions": rng.normal(size=(9, 2)).astype(np.float32),
        "rewards": rng.normal(size=9).astype(np.float32),
        "terminals": terminals,
        "timeouts": timeouts,
    }
    return {name: value for name, value in {**arrays, **changes}.items() if value is not None}


def npz(path: Path, **changes: Any) -> Path:
    np.savez(path, **flat(**changes))
    return path


def test_real_data_has_the_episodes_and_returns_that_its_facts_say(shared_data: Path) -> None:
    for name in ("hopper-medium", "halfcheetah-medium", "walker2d-medium"):
        place = shared_data / "control" / f"{name}.npz"
        episodes, facts = read_episodes(place), json.loads(place.with_suffix(".json").read_text())
        assert (episodes.num_episodes, episodes.num_steps) == (facts["episodes"], facts["transitions"])
        assert episodes.env_id == facts["env_id"]
        assert episodes.returns.mean() == pytest.approx(facts["return_mean"], rel=1e-6)
        assert episodes.returns.std() == pytest.approx(facts["return_std"], rel=1e-5)
        # Everything but a fall ends at the time limit of 1000 steps.
        assert (episodes.lengths[episodes.truncated] == 1000).all()
        assert (episodes.truncated ^ episodes.terminated).all()


def test_npz_is_cut_at_terminals_and_timeouts(tmp_path: Path) -> None:
    episodes = read_episodes(npz(tmp_path / "d.npz"))
    assert episodes.lengths.tolist() == [3, 4, 2]
    assert episodes.terminated.tolist() == [True, False, False]
    assert episodes.truncated.tolist() == [False, True, False]
    assert episodes.metadata == {"cut_last_episode": True}
    assert not episodes.finals


def test_a_terminal_at_the_time_limit_counts_as_terminal(tmp_path: Path) -> None:
    both = np.zeros(9, bool)
    both[[2, 6]] = True
    episodes = read_episodes(npz(tmp_path / "d.npz", timeouts=both))
    assert episodes.terminated.tolist() == [True, False, False]
    assert episodes.truncated.tolist() == [False, True, False]


def test_next_observations_become_finals(tmp_path: Path) -> None:
    following = np.arange(36, dtype=np.float32).reshape(9, 4)
    episodes = read_episodes(npz(tmp_path / "d.npz", next_observations=following))
    assert np.array_equal(episodes.finals["observations"], following[[2, 6, 8]])
    assert "next_observations" not in episodes.arrays


def test_without_timeouts_the_time_limit_is_needed(tmp_path: Path) -> None:
    place = npz(tmp_path / "d.npz", timeouts=None)
    with pytest.raises(DataError, match="give max_steps"):
        read_episodes(place)
    episodes = read_episodes(place, max_steps=4)
    assert episodes.lengths.tolist() == [3, 4, 2]
    assert episodes.truncated.tolist() == [False, True, False]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rewards": None}, "lacks rewards; it has: actions, observations"),
        ({"rewards": np.zeros(8)}, "rows: actions 9, observations 9, rewards 8"),
        ({"rewards": np.zeros((9, 1))}, "rewards of shape"),
        ({"observations": np.zeros(9)}, "observations has shape"),
        ({"terminals": np.full(9, 2.0)}, "terminals must hold 9 flags"),
        ({"actions": np.full((9, 2), np.nan)}, "actions is not finite at step 1 of episode 0"),
        ({"next_observations": np.zeros((9, 5))}, "do not match"),
        ({"bad name": np.zeros(9)}, "cannot be stored"),
        ({"observations": np.array([["a"] * 4] * 9)}, "give arrays of numbers"),
    ],
)
def test_a_bad_npz_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_episodes(npz(tmp_path / "d.npz", **changes))


def test_a_cut_npz_a_pickle_and_a_stranger_are_refused(tmp_path: Path) -> None:
    place = npz(tmp_path / "d.npz")
    data = place.read_bytes()
    for cut in (len(data) // 2, 10, 0):
        place.write_bytes(data[:cut])
        with pytest.raises(DataError, match=r"cannot be read as \.npz"):
            read_episodes(place)
    np.savez(place, allow_pickle=True, **flat(info=np.array([{"a": 1}] * 9, dtype=object)))
    with pytest.raises(DataError, match=r"cannot be read as \.npz .*allow_pickle"):
        read_episodes(place)
    with pytest.raises(DataError, match=r"does not exist; give an \.npz"):
        read_episodes(tmp_path / "nothing.csv")
    (tmp_path / "x.csv").write_text("a,b")
    with pytest.raises(DataError, match="unknown format"):
        read_episodes(tmp_path / "x.csv")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no episodes"):
        read_episodes(tmp_path / "empty")


def d4rl(path: Path, **changes: Any) -> Path:
    with h5py.File(path, "w") as file:
        for name, value in flat(**changes).items():
            file[name] = value
        file["infos/qpos"] = np.zeros((9, 3))
    return path


def test_d4rl_hdf5_reads_like_the_npz(tmp_path: Path) -> None:
    one, two = read_episodes(d4rl(tmp_path / "d.hdf5")), read_episodes(npz(tmp_path / "d.npz"))
    assert one.identity() == two.identity()


def test_hdf5_that_is_cut_or_leads_elsewhere_is_refused(tmp_path: Path) -> None:
    place = d4rl(tmp_path / "d.hdf5")
    data = place.read_bytes()
    place.write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match="cannot be read as HDF5"):
        read_episodes(place)
    secret = d4rl(tmp_path / "secret.hdf5")
    for link in (h5py.ExternalLink(str(secret), "/rewards"), h5py.SoftLink("/actions")):
        d4rl(place, rewards=None)
        with h5py.File(place, "a") as file:
            file["rewards"] = link
        with pytest.raises(DataError, match="rewards is a link"):
            read_episodes(place)
    (tmp_path / "raw").write_bytes(bytes(72))
    d4rl(place, rewards=None)
    with h5py.File(place, "a") as file:
        file.create_dataset("rewards", (9,), "f8", external=[(str(tmp_path / "raw"), 0, 72)])
    with pytest.raises(DataError, match="keeps its data in other files"):
        read_episodes(place)


def minari(directory: Path) -> Path:
    """A Minari set as its own writer leaves it: two episodes, one of them of a Dict space."""
    (directory / "data").mkdir(parents=True)
    with h5py.File(directory / "data" / "main_data.hdf5", "w") as file:
        for index, length in enumerate((3, 5)):
            group = file.create_group(f"episode_{index}")
            group.attrs["id"], group.attrs["total_steps"] = index, length
            group["observations/goal"] = np.full((length + 1, 2), 7.0 + index)
            group["observations/at"] = np.arange(3.0 * (length + 1)).reshape(-1, 3)
            group["actions"] = np.ones((length, 2), np.float32)
            group["rewards"] = np.arange(float(length))
            group["terminations"] = np.arange(length) == (length - 1 if index == 0 else -1)
            group["truncations"] = np.arange(length) == (length - 1 if index == 1 else -1)
            group["infos/success"] = np.zeros(length + 1, bool)
    facts = {"total_episodes": 2, "total_steps": 8, "data_format": "hdf5", "env_spec": '{"id": "PointMaze-v3"}'}
    (directory / "data" / "metadata.json").write_text(json.dumps(facts))
    return directory


def test_minari_gives_the_last_observation_and_both_kinds_of_end(tmp_path: Path) -> None:
    episodes = read_episodes(minari(tmp_path / "m"))
    assert episodes.env_id == "PointMaze-v3"
    assert episodes.lengths.tolist() == [3, 5]
    assert (episodes.terminated.tolist(), episodes.truncated.tolist()) == ([True, False], [False, True])
    assert episodes.observations[0].tolist() == [0, 1, 2, 7, 7]
    assert episodes.finals["observations"].tolist() == [[9, 10, 11, 7, 7], [15, 16, 17, 8, 8]]
    assert episodes.finals["observation_goal"].tolist() == [[7, 7], [8, 8]]


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("rewards", np.zeros(4), "has 5 actions but rewards 4"),
        ("rewards", None, "lacks rewards"),
        ("actions", np.ones((5, 3), np.float32), "differ in the shape"),
        ("terminations", np.arange(5) == 1, "terminations is set at step 1 of 5"),
        ("rewards", np.full(5, np.inf), "rewards is not finite at step 0 of episode 1"),
    ],
)
def test_a_bad_minari_episode_is_named(tmp_path: Path, name: str, value: Any, message: str) -> None:
    place = minari(tmp_path / "m")
    with h5py.File(place / "data" / "main_data.hdf5", "a") as file:
        del file[f"episode_1/{name}"]
        if value is not None:
            file[f"episode_1/{name}"] = value
    with pytest.raises(DataError, match=message):
        read_episodes(place)


def test_missing_minari_episodes_are_told(tmp_path: Path) -> None:
    place = minari(tmp_path / "m")
    with h5py.File(place / "data" / "main_data.hdf5", "a") as file:
        del file["episode_1"]
    with pytest.raises(DataError, match=r"has 1 episodes where metadata.json says 2"):
        read_minari(place)
    with h5py.File(place / "data" / "main_data.hdf5", "a") as file:
        file.move("episode_0", "episode_3")
    with pytest.raises(DataError, match="some are missing"):
        read_minari(place)


def test_minari_is_written_and_read_back(tmp_path: Path) -> None:
    episodes = read_episodes(npz(tmp_path / "d.npz", next_observations=np.ones((9, 4), np.float32)))
    write_minari(episodes, tmp_path / "m", dataset_id="test/three-v0")
    again = read_episodes(tmp_path / "m")
    for name in ("observations", "actions", "rewards"):
        assert np.array_equal(again.array(name), episodes.array(name))
    assert np.array_equal(again.finals["observations"], episodes.finals["observations"])
    assert again.terminated.tolist() == episodes.terminated.tolist()
    assert again.truncated.tolist() == episodes.truncated.tolist()
    assert files.verify(tmp_path / "m")


def picture(value: int) -> dict[str, Any]:
    out = io.BytesIO()
    Image.new("RGB", (5, 4), (value, 0, 255 - value)).save(out, "PNG")
    return {"bytes": out.getvalue(), "path": None}


def lerobot(directory: Path, *, fps: float = 10.0, rates: tuple[float, ...] = (10.0, 10.0), **changes: Any) -> Path:
    """A LeRobot v3 set of two episodes with 4 and 3 frames over two Parquet files."""
    lengths = (4, 3)
    columns: dict[str, list[Any]] = {
        "observation.state": [[float(e), float(t), 0.5] for e in range(2) for t in range(lengths[e])],
        "action": [[float(10 * e + t)] for e in range(2) for t in range(lengths[e])],
        "next.reward": [float(t) for e in range(2) for t in range(lengths[e])],
        "next.success": [e == 1 and t == 2 for e in range(2) for t in range(lengths[e])],
        "timestamp": [t / rates[e] for e in range(2) for t in range(lengths[e])],
        "frame_index": [t for e in range(2) for t in range(lengths[e])],
        "episode_index": [e for e in range(2) for t in range(lengths[e])],
        "observation.images.top": [picture(10 * e + t) for e in range(2) for t in range(lengths[e])],
    }
    features: dict[str, Any] = {
        "observation.state": {"dtype": "float32", "shape": [3]},
        "action": {"dtype": "float32", "shape": [1]},
        "next.reward": {"dtype": "float32", "shape": [1]},
        "next.success": {"dtype": "bool", "shape": [1]},
        "timestamp": {"dtype": "float32", "shape": [1]},
        "observation.images.top": {"dtype": "image", "shape": [4, 5, 3]},
        "observation.images.side": {"dtype": "video", "shape": [4, 5, 3]},
    }
    columns |= changes
    info = {"codebase_version": "v3.0", "fps": fps, "features": features, "total_frames": 7, "total_episodes": 2}
    (directory / "meta").mkdir(parents=True)
    (directory / "meta" / "info.json").write_text(json.dumps(info))
    (directory / "data" / "chunk-000").mkdir(parents=True)
    table = pa.table({name: value for name, value in columns.items() if value is not None})
    for number, (begin, end) in enumerate(((0, 3), (3, 7))):
        pq.write_table(table.slice(begin, end - begin), directory / "data" / "chunk-000" / f"file-{number:03d}.parquet")
    return directory


def test_lerobot_joins_files_and_decodes_images(tmp_path: Path) -> None:
    episodes = read_lerobot(lerobot(tmp_path / "l"), cameras=("observation.images.top",))
    assert episodes.lengths.tolist() == [4, 3]
    assert (episodes.terminated.tolist(), episodes.truncated.tolist()) == ([False, True], [True, False])
    assert episodes.fps == 10.0
    assert episodes.observations[4].tolist() == [1, 0, 0.5]
    assert episodes.actions[:, 0].tolist() == [0, 1, 2, 3, 10, 11, 12]
    assert episodes.rewards.tolist() == [0, 1, 2, 3, 0, 1, 2]
    frames = episodes.array("observation_images_top")
    assert frames.shape == (7, 4, 5, 3)
    assert frames[5, 0, 0].tolist() == [11, 0, 244]
    assert "observation_images_top" not in read_episodes(tmp_path / "l").arrays


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rates": (10.0, 5.0)}, "episode 1 runs at 5 frames a second and the data set at 10"),
        ({"frame_index": [0, 1, 3, 4, 0, 1, 2]}, "episode 0 has frame 3 where 2 is due"),
        ({"episode_index": [0, 0, 0, 0, 1, 1, 2], "frame_index": [0, 1, 2, 3, 0, 1, 0]}, "total_episodes 2"),
        ({"action": None}, "lacks the columns action"),
        ({"action": [[0.0, 1.0]] * 7}, "does not hold float32 of shape"),
        ({"action": [[0.0], [1.0], None, [3.0], [0.0], [0.0], [0.0]]}, "1 empty entries"),
        ({"action": [[float("nan")]] * 7}, "actions is not finite at step 1 of episode 0"),
    ],
)
def test_a_bad_lerobot_set_is_named(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_lerobot(lerobot(tmp_path / "l", **changes))


def test_cameras_that_cannot_be_read_are_told(tmp_path: Path) -> None:
    place = lerobot(tmp_path / "l")
    with pytest.raises(DataError, match=r"stores the camera .* as MP4, which is not decoded"):
        read_lerobot(place, cameras=("observation.images.side",))
    with pytest.raises(DataError, match=r"no camera 'observation.images.tap'.* Did you mean"):
        read_lerobot(place, cameras=("observation.images.tap",))
    broken = lerobot(tmp_path / "b", **{"observation.images.top": [{"bytes": b"\x89PNG", "path": None}] * 7})
    with pytest.raises(DataError, match="cannot be decoded"):
        read_lerobot(broken, cameras=("observation.images.top",))


def test_a_cut_parquet_and_a_missing_description_are_told(tmp_path: Path) -> None:
    place = lerobot(tmp_path / "l")
    target = place / "data" / "chunk-000" / "file-001.parquet"
    target.write_bytes(target.read_bytes()[:-20])
    with pytest.raises(DataError, match="cannot be read as Parquet"):
        read_lerobot(place)
    target.unlink()
    with pytest.raises(DataError, match="total_frames 7"):
        read_lerobot(place)
    (place / "meta" / "info.json").unlink()
    with pytest.raises(ArtefactError, match="does not exist"):
        read_lerobot(place)


def test_a_missing_package_names_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    place = d4rl(tmp_path / "d.hdf5")
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(MissingExtraError, match=r"forethought\[control\]"):
        read_episodes(place)


def test_an_artefact_of_another_kind_is_refused(tmp_path: Path) -> None:
    (tmp_path / "artefact.json").write_text('{"format": 1, "kind": "corpus"}')
    with pytest.raises(DataError, match="is a corpus, not episodes"):
        read_episodes(tmp_path)
    place = save_episodes(read_episodes(npz(tmp_path / "d.npz")), tmp_path / "e")
    assert read_episodes(place).num_steps == 9
