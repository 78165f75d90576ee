"""Two gloo processes train the world model that one trains: SIGReg and BatchNorm take the statistics of both."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from forethought.world import load_world_model
from tests.world.dots import dot_episodes

PROGRAM = Path(__file__).parent / "programs" / "fit_on_two.py"
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("two")
    inherited = os.environ.get("PYTHONPATH")
    environment = dict(
        os.environ, OMP_NUM_THREADS="1", PYTHONPATH=os.pathsep.join(filter(None, (str(ROOT), inherited)))
    )
    two = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "2"]
    for launcher, strategy in (([], "none"), (two, "ddp")):
        done = subprocess.run(
            [sys.executable, *launcher, str(PROGRAM), str(place), strategy],
            env=environment, capture_output=True, text=True, timeout=200, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
    return place


def records(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


def test_every_step_has_the_loss_the_sigreg_and_the_gradient_of_one_process(runs: Path) -> None:
    one, two = records(runs / "none"), records(runs / "ddp")
    assert [record["event"] for record in one] == [record["event"] for record in two]
    compared = set()
    for mine, theirs in zip(one, two, strict=True):
        # Biases before a BatchNorm have no gradient but rounding, which AdamW makes large; the function hardly moves.
        close = 1e-6 if mine.get("step") == 1 else 1e-3
        for name, value in mine.items():
            if isinstance(value, float):
                compared.add(name)
                assert theirs[name] == pytest.approx(value, rel=close), (mine.get("step"), name)
    assert {"loss", "prediction_loss", "sigreg", "gradient_norm", "validation_loss"} <= compared


def test_the_models_encode_and_predict_alike(runs: Path) -> None:
    one, two = (load_world_model(runs / name) for name in ("none", "ddp"))
    frames = torch.from_numpy(dot_episodes(1, 30, seed=4).array("frames"))
    with torch.no_grad():
        mine, theirs = one.encode_all(frames), two.encode_all(frames)
        assert float((mine - theirs).abs().max()) < 2e-3
        blocks = torch.zeros(10, 3, 10)
        ahead = one.predict(mine.unflatten(0, (10, 3)), blocks) - two.predict(mine.unflatten(0, (10, 3)), blocks)
    assert float(ahead.abs().max()) < 2e-3
