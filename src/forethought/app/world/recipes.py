"""Named configs of world-model training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from forethought.train import LoopConfig, ScheduleConfig
from forethought.world.config import RegulariserConfig, WorldFitConfig, paper, preset


def small() -> WorldFitConfig:
    """Convolutions at 64 px, 2.9 M parameters, 200 steps of 64 windows: under two minutes on one core."""
    return WorldFitConfig(
        regulariser=RegulariserConfig(strength=6.4, num_projections=256),
        loop=LoopConfig(steps=200, evaluate_every=50, checkpoint_every=100, schedule=ScheduleConfig(warmup=0.25)),
    )


def push_t() -> WorldFitConfig:
    """Wider convolutions, a stronger SIGReg and 3,000 steps in bfloat16 for Push-T: eight minutes on one core."""
    base = small()
    predictor = replace(base.model.predictor, dropout=0.0)
    return replace(
        base,
        model=replace(base.model, encoder=replace(base.model.encoder, width=24), predictor=predictor),
        # The weaker SIGReg is, the more the latents take up the pusher before the block (results/studies/world_angle).
        regulariser=replace(base.regulariser, strength=16.0),
        optimiser=replace(base.optimiser, lr=1e-3),
        loop=LoopConfig(
            steps=3000,
            precision="bf16",
            log_every=10,
            evaluate_every=500,
            checkpoint_every=500,
            schedule=ScheduleConfig(warmup=0.05),
        ),
    )


def tiny() -> WorldFitConfig:
    """32 px and latents of 64, 0.2 M parameters: seconds, to see that everything works."""
    return replace(small(), model=preset("tiny"), batch_size=32, calibration_windows=128, evaluation_windows=128)


def lewm() -> WorldFitConfig:
    """The published shape and training at 224 px, about 18 M parameters: for a GPU."""
    return paper()


WORLD_RECIPES: dict[str, Callable[[], WorldFitConfig]] = {
    "lewm": lewm,
    "push-t": push_t,
    "small": small,
    "tiny": tiny,
}
