"""Episodes from elsewhere through `forethought world`: every format trains, and what is wrong is named at no loss."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from forethought.app.cli import main
from forethought.data import save_episodes
from tests.world.dots import dot_episodes

COUNT, STEPS = 8, 30
TRAIN = ("--recipe", "tiny", "--steps", "2", "--held-out", "0.4", "--batch-size", "8", "--calibration-windows", "16",
         "--evaluation-windows", "16", "--regulariser.num-projections", "16")  # fmt: skip


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    assert main(["world", *arguments, "--json"]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out.splitlines()[-1])


def arrays(**changes: Any) -> dict[str, np.ndarray]:
    dots = dot_episodes(COUNT, STEPS)
    ends = np.zeros(COUNT * STEPS, bool)
    ends[STEPS - 1 :: STEPS] = True
    values = {**dots.arrays, "rewards": np.zeros(len(ends), np.float32), "terminals": ends & False, "timeouts": ends}
    return {name: value for name, value in {**values, **changes}.items() if value is not None}


def npz(place: Path, **changes: Any) -> Path:
    np.savez(place.with_suffix(".npz"), **arrays(**changes))
    return place.with_suffix(".npz")


def hdf5(place: Path, **changes: Any) -> Path:
    with h5py.File(place.with_suffix(".hdf5"), "w") as file:
        for name, value in arrays(**changes).items():
            file[name] = value
    return place.with_suffix(".hdf5")


def lerobot(
    place: Path, *, rates: tuple[float, ...] = (10.0,) * COUNT, size: int = 48, skip: int | None = None
) -> Path:
    """A LeRobot v3 set with a camera whose pictures are larger than the model's."""
    dots = dot_episodes(COUNT, STEPS, size=size)
    rows = [(e, t) for e in range(COUNT) for t in range(STEPS) if (e, t) != (3, skip)]
    chosen = [e * STEPS + t for e, t in rows]
    table = pa.table(
        {
            "observation.state": dots.observations[chosen].tolist(),
            "action": dots.actions[chosen].tolist(),
            "timestamp": [t / rates[e] for e, t in rows],
            "frame_index": [t for _, t in rows],
            "episode_index": [e for e, _ in rows],
            "observation.images.top": [_png(frame) for frame in dots.array("frames")[chosen]],
        }
    )
    shapes = {"observation.state": [2], "action": [2], "timestamp": [1]}
    features: dict[str, Any] = {name: {"dtype": "float32", "shape": shape} for name, shape in shapes.items()}
    features["observation.images.top"] = {"dtype": "image", "shape": [size, size, 3]}
    info = {"fps": 10.0, "features": features, "total_frames": len(rows), "total_episodes": COUNT}
    (place / "meta").mkdir(parents=True)
    (place / "meta" / "info.json").write_text(json.dumps(info))
    (place / "data" / "chunk-000").mkdir(parents=True)
    pq.write_table(table, place / "data" / "chunk-000" / "file-000.parquet")
    return place


def _png(frame: np.ndarray) -> dict[str, Any]:
    out = io.BytesIO()
    Image.fromarray(frame).save(out, "PNG")
    return {"bytes": out.getvalue(), "path": None}


def own(place: Path, **changes: Any) -> Path:
    save_episodes(dot_episodes(COUNT, STEPS), place)
    return place


CAMERA = ("--camera", "observation.images.top")


@pytest.mark.parametrize(
    ("write", "flags"),
    [
        (npz, ()),
        (hdf5, ()),
        (own, ()),
        (lambda place: npz(place, frames=None, pixels=arrays()["frames"]), ()),
        (lerobot, (*CAMERA, "--image-size", "32")),
    ],
)
def test_every_format_trains_and_is_inspected(
    write: Callable[[Path], Path], flags: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = write(tmp_path / "data")
    facts = call(capsys, "inspect", str(place), "--gif", str(tmp_path / "one.gif"), *flags)
    assert (facts["episodes"], facts["steps"], facts["lengths"]) == (COUNT, COUNT * STEPS, [STEPS] * 3)
    assert facts["arrays"]["frames"] == "uint8 [32, 32, 3]"
    assert facts["windows"] == COUNT * (STEPS - 15)
    assert facts["readable"] is None
    assert (tmp_path / "one.gif").read_bytes().startswith(b"GIF8")
    result = call(capsys, "train", str(place), "--out", str(tmp_path / "run"), *TRAIN, *flags)
    assert result["steps"] == 2
    assert result["data"]["nan_action_rows"] == 0
    assert sum(part["steps"] for part in (result["data"]["train"], result["data"]["held_out"])) == COUNT * STEPS


def test_nan_actions_after_a_reset_are_the_mean_and_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    actions = arrays()["actions"].copy()
    actions[::STEPS] = np.nan
    place = str(npz(tmp_path / "data", actions=actions))
    assert call(capsys, "inspect", place)["nan_action_rows"] == COUNT
    result = call(capsys, "train", place, "--out", str(tmp_path / "run"), *TRAIN)
    assert 0 < result["data"]["nan_action_rows"] <= COUNT
    assert np.isfinite(result["validation_loss"])


def _cut(path: Path) -> Path:
    file = path if path.is_file() else max(path.rglob("*"), key=lambda each: each.stat().st_size * each.is_file())
    file.write_bytes(file.read_bytes()[: file.stat().st_size * 2 // 3])
    return path


def _nan_inside() -> np.ndarray:
    actions = arrays()["actions"].copy()
    actions[3 * STEPS + 7] = np.nan
    return actions


def _infinite() -> np.ndarray:
    actions = arrays()["actions"].copy()
    actions[2 * STEPS] = np.inf
    return actions


FRAMES = arrays()["frames"]
BAD: dict[str, tuple[Callable[[Path], Path], tuple[str, ...], str]] = {
    "no frames": (lambda p: npz(p, frames=None), (), "holds no 'frames'"),
    "two cameras": (
        lambda p: npz(p, frames=None, left=FRAMES, right=FRAMES), (), "left, right; say which with --camera",
    ),
    "no such camera": (lambda p: npz(p), ("--camera", "wrist"), "holds no 'wrist'; pictures are under: frames"),
    "not square": (lambda p: npz(p, frames=FRAMES[:, :20]), (), "reads square frames"),
    "not bytes": (lambda p: npz(p, frames=FRAMES.astype(np.float32)), (), "reads uint8"),
    "grey": (lambda p: npz(p, frames=FRAMES[..., :1]), (), "reads uint8"),
    "flat actions": (lambda p: npz(p, actions=np.zeros((COUNT * STEPS, 0), np.float32)), (), "action"),
    "infinite at an edge": (lambda p: npz(p, actions=_infinite()), (), "not finite at step 0 of episode 2"),
    "fewer frames": (lambda p: npz(p, frames=FRAMES[:-3]), (), "frames"),
    "NaN inside": (lambda p: npz(p, actions=_nan_inside()), (), "not finite at step 7 of episode 3"),
    "short episodes": (lambda p: npz(p, timeouts=np.arange(COUNT * STEPS) % 10 == 9), (), "at most 10 steps"),
    "mixed rates": (lambda p: lerobot(p, rates=(10.0, 30.0) * (COUNT // 2)), CAMERA, "rate"),
    "a frame is missing": (lambda p: lerobot(p, skip=4), CAMERA, "missing"),
    "cut npz": (lambda p: _cut(npz(p)), (), "cannot be read as .npz"),
    "cut HDF5": (lambda p: _cut(hdf5(p)), (), "HDF5"),
    "cut Parquet": (lambda p: _cut(lerobot(p)), CAMERA, "parquet"),
    "cut own format": (lambda p: _cut(own(p)), (), "damaged"),
}  # fmt: skip


# Found after the file was read, in the settings that the data imply: the message names those.
NAMELESS = ("short episodes",)


@pytest.fixture(scope="module")
def earlier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("earlier")
    assert main(["world", "train", str(npz(folder / "good")), "--out", str(folder / "run"), *TRAIN]) == 0
    return folder / "run"


@pytest.mark.parametrize("name", BAD)
def test_bad_data_is_named_and_costs_nothing(
    name: str, earlier: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Neither an empty run is left behind, nor the run lost that was to be replaced."""
    write, flags, words = BAD[name]
    place = str(write(tmp_path / "data"))
    kept = {file: file.read_bytes() for file in earlier.rglob("*") if file.is_file()}
    capsys.readouterr()
    assert main(["world", "train", place, "--out", str(tmp_path / "run"), *TRAIN, *flags]) == 2
    said = capsys.readouterr().err
    assert words in said
    assert name in NAMELESS or "data" in said
    assert not (tmp_path / "run").exists()
    assert main(["world", "train", place, "--out", str(earlier), "--exists", "replace", *TRAIN, *flags]) == 2
    assert {file: file.read_bytes() for file in earlier.rglob("*") if file.is_file()} == kept
