"""Which latents know how the block of Push-T is turned: short trainings under a weaker and a stronger SIGReg.

    python benchmarks/studies/world_angle.py [--work DIR] [--quick --out FILE]

Every cell trains a model of the recipe `push-t` anew for 300 steps, on the data of `world_pusht.py` (give
the same --work to share them), with one setting changed, and asks frozen latents for the places of pusher and block and
for the block's angle, as sine and cosine.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from world_common import Row, Study, open_study
from world_pusht import episodes_of, probed, varied

from forethought.app.world.recipes import push_t
from forethought.core.run import open_run
from forethought.data import Episodes
from forethought.train import ScheduleConfig
from forethought.world import WorldFitConfig, fit_world, load_world_model
from forethought.world.collecting import CollectConfig

NAME = "world_angle"


@dataclass(frozen=True)
class Settings:
    """What is trained: strength of SIGReg (lambda times batch), dropout of the predictor, training seed."""

    episodes: int = 1200
    probe_poses: int = 3000
    steps: int = 300
    trials: tuple[tuple[float, float, int], ...] = tuple((s, 0.0, seed) for seed in range(3) for s in (6.4, 40.0))


def settings(quick: bool) -> Settings:
    """Return the sizes of the study."""
    return Settings(24, 40, 20, ((6.4, 0.0, 0), (16.0, 0.0, 0))) if quick else Settings()


def main() -> None:
    """Run every trial that is not there yet, and summarise."""
    torch.set_num_threads(1)
    study, work, chosen, _ = open_study(NAME, main.__doc__ or "", settings)
    data = episodes_of(work / "data", CollectConfig(environment="push-t", episodes=chosen.episodes, seed=0))
    poses = CollectConfig(environment="push-t", episodes=chosen.probe_poses, steps=2, seed=3003)
    shown = episodes_of(work / "probe", poses)
    for strength, dropout, seed in chosen.trials:
        recipe = recipe_of(strength, dropout, seed, chosen.steps)
        out = work / f"trial-{strength:g}-{dropout:g}-{seed}"
        key = {"cell": "trial", "steps": chosen.steps, "seed": seed, **varied(recipe)}
        study.cell(key, lambda recipe=recipe, out=out: trial(recipe, data, shown, out))
        study.write(summary(study))
    print(f"{study.path}: {len(study.rows)} rows")


def recipe_of(strength: float, dropout: float, seed: int, steps: int) -> WorldFitConfig:
    """Return the recipe for Push-T with the settings of a trial, its schedule shortened with it."""
    recipe = push_t()
    return replace(
        recipe,
        seed=seed,
        regulariser=replace(recipe.regulariser, strength=strength),
        model=replace(recipe.model, predictor=replace(recipe.model.predictor, dropout=dropout)),
        loop=replace(
            recipe.loop, steps=steps, evaluate_every=steps, checkpoint_every=steps, schedule=ScheduleConfig(warmup=0.1)
        ),
    )


def trial(recipe: WorldFitConfig, data: Episodes, shown: Episodes, out: Path) -> Row:
    """Train and probe."""
    fit_world(recipe, data, out, recipe="world.push-t", exists="resume")
    result = open_run(out)["result"] or {}
    figures = {name: result[name] for name in ("frames_seen", "copy_ratio", "effective_rank", "sigreg_over_floor")}
    known = probed(load_world_model(out), shown)["quantities"]
    return figures | {name: {kind: each[kind]["r"] for kind in ("linear", "mlp")} for name, each in known.items()}


def summary(study: Study) -> Row:
    """Return, by strength and dropout, r of the angle by an MLP and of the pusher linearly, one number a seed."""
    found: Row = {}
    for row in study.rows:
        each = found.setdefault(
            f"strength {row['strength']:g}, dropout {row['dropout']:g}", {"angle": [], "pusher": []}
        )
        each["angle"].append(row["block_angle"]["mlp"])
        each["pusher"].append(row["pusher"]["linear"])
    return found


if __name__ == "__main__":
    main()
