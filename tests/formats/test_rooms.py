"""What the rooms of earlier releases wrote still opens and still says the same (R22)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

import forethought
from forethought.certify import Examples, read_certificate, verify
from forethought.control import load_model
from forethought.core.artefact import LOADERS

RELEASES = sorted(Path(__file__).parent.glob("rooms-*"))
STORED = ("control-agent", "control-model", "episodes", "world-model")


def test_there_are_examples_of_every_kind():
    assert [release.name for release in RELEASES] == ["rooms-0.1.0"]
    # Runs, corpora and language models are in the release's run (test_formats.py).
    assert set(LOADERS) == {*STORED, "run", "corpus", "language-model"}


@pytest.mark.parametrize("release", RELEASES, ids=lambda path: path.name)
@pytest.mark.parametrize("kind", STORED)
def test_what_a_room_wrote_still_opens(release: Path, kind: str):
    opened = forethought.load(release / kind)
    match kind:
        case "episodes":
            assert (opened.num_episodes, opened.num_steps) == (6, 150)
            stored = np.fromfile(release / kind / "steps" / "observations.bin", "<f4").reshape(150, 2)
            assert (np.concatenate([opened.episode(k)["observations"] for k in range(6)]) == stored).all()
        case "world-model":
            frames = torch.zeros(1, 2, 32, 32, 3, dtype=torch.uint8)
            assert opened.encode(frames).shape == (1, 2, 16)
        case "control-model":
            assert opened.horizon == 8
        case _:
            assert np.isfinite(opened.act(np.zeros(2))).all()
            assert opened.fingerprints()["dynamics"] == load_model(release / "control-model").fingerprint()


@pytest.mark.parametrize("release", RELEASES, ids=lambda path: path.name)
def test_a_certificate_of_then_is_derived_again(release: Path):
    with np.load(release / "data.npz", allow_pickle=False) as data:
        examples = Examples(data["inputs"], data["labels"])
    checked = verify(release / "certificate", examples)
    assert checked.bound == read_certificate(release / "certificate").bound
