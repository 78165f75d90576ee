"""Fit a small world model to dots under the strategies named; runs under torchrun and, for one process, without."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import torch
from tests.world.conftest import settings
from tests.world.dots import dot_episodes

from forethought.world import fit_world


def main(place: str, *strategies: str) -> None:
    """Fit into a directory of the place, named by the strategy."""
    torch.set_num_threads(1)
    chosen = settings(6, batch_size=16, calibration_windows=32, evaluation_windows=32)
    loop = dataclasses.replace(chosen.loop, evaluate_every=3, checkpoint_every=3, log_every=1)
    for strategy in strategies:
        given = dataclasses.replace(chosen, loop=loop, parallel=strategy)
        fit_world(given, dot_episodes(12, 40), Path(place) / strategy)


if __name__ == "__main__":
    main(*sys.argv[1:])
