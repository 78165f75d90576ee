"""Windows, denoiser and loss in the one training loop: a stopped run goes on to the same bits, and it learns."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from forethought.core.config import config
from forethought.core.run import Run
from forethought.data import Episodes, WindowBatch, WindowBatches, WindowConfig, read_episodes, split_by_episode
from forethought.data.episodes import fit_normaliser
from forethought.diffusion import ProcessConfig, SamplerConfig, diffusion_loss, draw_noise, sample, train_times
from forethought.nn import Denoiser, build_denoiser, denoiser_preset
from forethought.train import LoopConfig, OptimiserConfig, Parallel, build_optimisers, train

CPU = Parallel(torch.device("cpu"))
PROCESS = ProcessConfig()


@config
class Settings:
    name: str = "test"


def integrator() -> Episodes:
    """Episodes of a place that actions push about."""
    rng = np.random.default_rng(0)
    actions = rng.uniform(-0.5, 0.5, (40, 12, 1)).astype(np.float32)
    places = np.concatenate((rng.normal(size=(40, 1, 1)), actions), 1).cumsum(1).astype(np.float32)
    return Episodes(
        {"observations": places[:, :-1].reshape(-1, 1), "actions": actions.reshape(-1, 1), "rewards": np.zeros(480)},
        starts=np.arange(40) * 12,
        lengths=np.full(40, 12),
        terminated=np.zeros(40, bool),
        truncated=np.ones(40, bool),
        finals={"observations": places[:, -1]},
    )


def dynamics_loss(module: nn.Module, batch: WindowBatch) -> tuple[Tensor, Mapping[str, Tensor]]:
    context, aligned, x0, mask = (
        torch.from_numpy(np.ascontiguousarray(each, dtype=np.float32))
        for each in (batch.observations[:, None], batch.actions, batch.next_observations, batch.next_mask_BF)
    )
    # Both draw from torch's generator, which the loop seeds for every step.
    times = train_times(PROCESS, len(x0), torch.default_generator)
    values = diffusion_loss(
        lambda x, u: module(x, u, context, aligned),
        x0,
        process=PROCESS,
        noise=torch.randn_like(x0),
        times_B=times,
        mask=mask[..., None],
    )
    return values.mean(), {}


def build(size: int = 1, actions: int = 1) -> Denoiser:
    shape = denoiser_preset("tiny", size=size, horizon=6, context_size=size, num_context=1, aligned_size=actions)
    return build_denoiser(shape, seed=0)


def fit(place: Path, denoiser: Denoiser, episodes: Episodes, *, steps: int, stop: int | None = None) -> Tensor:
    """Train, or train until a step and leave; return the last weights, flat, with their moving average's."""
    loop = LoopConfig(steps=steps, ema_decay=0.9, checkpoint_every=5, log_every=5)
    batches = WindowBatches(episodes, WindowConfig(horizon=6), batch_size=64, seed=0)
    with Run.open(place, config=Settings(), recipe="test", exists="resume") as run:
        records = train(
            denoiser,
            loss=dynamics_loss,
            batches=batches.batch,
            optimisers=build_optimisers(denoiser, OptimiserConfig(lr=2e-3, weight_decay=0.0)),
            run=run,
            settings=loop,
            seed=0,
            parallel=CPU,
        )
        for record in records:
            if record.step == stop:
                break
        records.close()  # pyright: ignore[reportAttributeAccessIssue]
        saved = run.checkpoints.latest()
    assert saved is not None
    average = [value.flatten() for _, value in sorted(saved.tensors("ema").items())]
    assert average
    return torch.cat([*(p.detach().flatten() for p in denoiser.parameters()), *average])


def test_a_stopped_run_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    whole = fit(tmp_path / "whole", build(), integrator(), steps=20)
    # Stopped at step 13, it goes on from the checkpoint at step 10.
    fit(tmp_path / "parts", build(), integrator(), steps=20, stop=13)
    assert torch.equal(fit(tmp_path / "parts", build(), integrator(), steps=20), whole)


def test_a_trained_dynamics_model_predicts_real_bodies(tmp_path: Path, shared_data: Path) -> None:
    """On held-out episodes of Hopper, after seconds of training, it beats the guess that nothing moves."""
    raw = read_episodes(shared_data / "control" / "hopper-medium.npz")
    scales = fit_normaliser(raw.observations), fit_normaliser(raw.actions)
    raw.arrays["observations"], raw.arrays["actions"] = (
        scale.normalise(value) for scale, value in zip(scales, (raw.observations, raw.actions), strict=True)
    )
    parts = split_by_episode(raw, seed=0, fractions={"train": 0.9, "test": 0.1})
    denoiser = build(11, 3)
    fit(tmp_path / "run", denoiser, parts["train"], steps=300)
    held = WindowBatches(parts["test"], WindowConfig(horizon=6, anchors="whole"), batch_size=256, seed=0).batch(0)
    sampler = SamplerConfig(steps=4)
    noise, _ = draw_noise((256, 6, 11), sampler, torch.Generator().manual_seed(0))
    context, aligned = torch.from_numpy(held.observations[:, None]), torch.from_numpy(held.actions)
    guess = sample(denoiser.bind(context, aligned), noise, process=PROCESS, sampler=sampler).numpy()
    error = float(np.sqrt(np.square(guess - held.next_observations).mean()))
    still = float(np.sqrt(np.square(held.observations[:, None] - held.next_observations).mean()))
    assert error < 0.6 * still
