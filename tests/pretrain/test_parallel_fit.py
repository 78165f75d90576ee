"""A fit on two real gloo processes is the fit of a single one, exported model included."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from forethought.core.config import to_dict
from forethought.data import open_corpus
from forethought.nn import load_language_model
from forethought.pretrain import FitConfig, fit
from forethought.train import LoopConfig, OptimiserConfig
from tests.app.workshop import small_config, small_text
from tests.pretrain.golden import losses_of

PROGRAM = Path(__file__).parent / "programs" / "fit_on_two.py"
STRATEGIES = ("ddp", "fsdp", "ddp-budget")


@pytest.fixture(scope="module")
def fits(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One run for each strategy and "none", over more than one epoch, so that short windows come too."""
    root = tmp_path_factory.mktemp("fits")
    settings = small_config(small_text(root / "text.jsonl", 12))
    loop = LoopConfig(steps=24, evaluate_every=12, checkpoint_every=12)
    settings = replace(settings, loop=loop, optimiser=OptimiserConfig(lr=1e-3), baselines=False)
    fit(settings, root / "none", recipe="test")
    prepared: FitConfig = replace(settings, sources=(str(root / "none" / "corpus"),))
    (root / "config.json").write_text(json.dumps(to_dict(prepared)))
    launch = ["-m", "torch.distributed.run", "--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "2"]
    done = subprocess.run(
        [sys.executable, *launch, str(PROGRAM), str(root / "config.json"), *STRATEGIES],
        env=os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return root


def test_the_epoch_ends_within_the_runs(fits: Path):
    corpus = open_corpus(fits / "none" / "corpus")
    settings = small_config(fits / "text.jsonl")
    assert corpus.train.num_tokens % settings.context, "no window is short"
    assert corpus.train.num_tokens < 24 * settings.batch_size * settings.context, "the short window does not come"


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_losses_are_those_of_a_single_process_also_where_a_window_is_short(strategy: str, fits: Path):
    assert np.abs(np.subtract(losses_of(fits / strategy), losses_of(fits / "none"))).max() <= 1e-5


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_the_exported_model_is_whole(strategy: str, fits: Path):
    one, other = (load_language_model(fits / name).state_dict() for name in ("none", strategy))
    assert one.keys() == other.keys()
    assert max(float((one[name] - other[name]).abs().max()) for name in one) < 1e-4
    assert all(tensor.shape == other[name].shape and other[name].dtype == torch.float32 for name, tensor in one.items())
