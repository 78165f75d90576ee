"""What a checkpoint store keeps, finds and refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from forethought.core import files
from forethought.core.checkpoint import CheckpointStore
from forethought.core.errors import CheckpointError


def save(store: CheckpointStore, step: int, best: int | None = None) -> None:
    store.save(step, {"model": {"w": torch.full((3,), float(step))}}, {"note": step}, best_step=best)


def test_what_was_saved_comes_back_with_its_types_shapes_and_state(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {"turned": base.T, "half": base.bfloat16(), "scalar": torch.tensor(3), "empty": torch.zeros(0, 2)}
    place = store.save(7, {"model": tensors, "optimizer": {}}, {"best_value": None, "name": "ü"})
    found = store.load(7)
    assert place == found.directory
    back = found.tensors("model")
    assert all(torch.equal(back[name], tensor) and back[name].dtype == tensor.dtype for name, tensor in tensors.items())
    assert found.tensors("optimizer") == {}
    assert found.state == {"format": 1, "step": 7, "best_value": None, "name": "ü"}


def test_the_newest_two_and_the_best_stay(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    for step in range(1, 8):
        save(store, step, best=3 if step >= 3 else None)
    assert store.steps() == [3, 6, 7]
    save(store, 8, best=8)
    assert store.steps() == [7, 8]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["step-00000007", "step-00000008"]


@pytest.mark.parametrize(("keep", "left"), [(1, [5]), (3, [3, 4, 5])])
def test_keep_says_how_many_stay(tmp_path: Path, keep: int, left: list[int]) -> None:
    store = CheckpointStore(tmp_path, keep=keep)
    for step in range(1, 6):
        save(store, step)
    assert store.steps() == left


def test_saving_an_intact_step_again_changes_nothing(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    save(store, 1)
    before = (tmp_path / "step-00000001").stat().st_ino
    save(store, 1)
    assert (tmp_path / "step-00000001").stat().st_ino == before


def test_no_checkpoint_is_none_and_steps_sort_by_number(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path / "missing")
    assert store.latest() is None
    assert store.steps() == []
    store = CheckpointStore(tmp_path, keep=9)
    for step in (99_999_999, 100_000_000, 123_456_789):
        save(store, step)
    assert store.steps() == [99_999_999, 100_000_000, 123_456_789]


def test_other_names_are_passed_over(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    save(store, 5)
    for name in ("step-5", "step-00000009\n", "step-0000000007", "step-٠٠٠٠٠٠٠٩", "astep-00000009", "step-00000010"):
        (tmp_path / name).mkdir()
        if name != "step-00000010":
            (tmp_path / name / files.MANIFEST).write_bytes(b"{}")
    assert store.steps() == [5]
    assert store.latest() is not None


def test_a_checkpoint_renamed_by_hand_is_refused(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    save(store, 5)
    (tmp_path / "step-00000005").rename(tmp_path / "step-00000009")
    with pytest.raises(CheckpointError, match="says it is step 5; its name was changed by hand"):
        store.latest()


def test_a_missing_step_and_a_missing_group_are_named(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    save(store, 5)
    with pytest.raises(CheckpointError, match=r"step-00000006.*never published whole"):
        store.load(6)
    with pytest.raises(CheckpointError, match="has no tensors 'ema'; it holds: model"):
        store.load(5).tensors("ema")


def test_directories_that_are_no_checkpoints_are_refused(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    files.publish(tmp_path / "step-00000001", {"a": b"1"})
    with pytest.raises(CheckpointError, match=r"holds no state\.json"):
        store.load(1)
    files.publish(tmp_path / "step-00000002", {"state.json": files.dump_json({"format": 99, "step": 2})})
    with pytest.raises(CheckpointError, match="has format 99; this version reads 1 to 1"):
        store.load(2)
    files.publish(tmp_path / "step-00000003", {"state.json": b"[" * 100_000})
    with pytest.raises(CheckpointError, match=r"state\.json is not valid JSON"):
        store.load(3)


def test_a_well_signed_file_that_is_no_safetensors_is_refused(tmp_path: Path) -> None:
    store = CheckpointStore(tmp_path)
    state = files.dump_json({"format": 1, "step": 1})
    forged = (2**63).to_bytes(8, "little") + b"{}"
    files.publish(tmp_path / "step-00000001", {"state.json": state, "model.safetensors": forged})
    with pytest.raises(CheckpointError, match=r"model\.safetensors is no readable safetensors file"):
        store.load(1).tensors("model")
