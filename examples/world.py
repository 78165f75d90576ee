"""A world model from pixels: watch a dot walk through two rooms, then notice when it is somewhere it cannot be.

Usage: python examples/world.py [OUT] [STEPS]     (STEPS 200 and 64 pixels are the recipe of `forethought world demo`)
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

import forethought
from forethought.app.world.recipes import tiny
from forethought.world import SurpriseMonitor, fit_world
from forethought.world.collecting import CollectConfig, collect_episodes

JUMP = 30


def main(out: Path, steps: int) -> None:
    """Collect, train, calibrate on calm episodes, and break the physics of one that was held out."""
    episodes = collect_episodes(CollectConfig(episodes=40, steps=60, image_size=32))
    recipe = tiny()
    settings = replace(recipe, loop=replace(recipe.loop, steps=steps, evaluate_every=steps, checkpoint_every=steps))
    result = fit_world(settings, episodes.select(range(20)), out / "model", exists="resume")
    print(f"prediction error over that of copying: {result['copy_ratio']:.3f}")
    model = forethought.load(out / "model")
    monitor = SurpriseMonitor(model, score="log-z")
    monitor.calibrate(episodes.select(range(20, 38)))
    calm, other = episodes.episode(38), episodes.episode(39)
    # From the jump on the pictures are those of another episode: the dot is suddenly elsewhere.
    frames = np.concatenate([calm["frames"][:JUMP], other["frames"][JUMP : len(calm["frames"])]])
    for name, seen in (("as it was", calm["frames"]), ("with a jump", frames)):
        trace = monitor.trace(seen[: len(calm["actions"])], calm["actions"])
        around = trace.p[JUMP - 3 : JUMP + 8]
        print(
            f"{name}: smallest p around step {JUMP} {np.nanmin(around):.3f}, before it {np.nanmin(trace.p[5:25]):.3f}"
        )


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "runs/examples/world"), int((sys.argv[2:] or ["150"])[0]))
