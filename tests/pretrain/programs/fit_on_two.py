"""Fit the config of a JSON file under each of the strategies named after it; runs under torchrun.

A strategy followed by "-budget" is planned for an hour, which affords all of a small config.
"""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path

import torch

from forethought.core.config import from_dict
from forethought.pretrain import FitConfig, fit


def main(file: str, *strategies: str) -> None:
    """Fit into a directory beside the file, named by the strategy."""
    torch.set_num_threads(1)
    settings = from_dict(FitConfig, json.loads(Path(file).read_text()))
    for name in strategies:
        strategy, _, budget = name.partition("-")
        seconds = 3600.0 if budget else None
        fit(replace(settings, parallel=strategy), Path(file).parent / name, recipe="test", seconds=seconds)


if __name__ == "__main__":
    main(*sys.argv[1:])
