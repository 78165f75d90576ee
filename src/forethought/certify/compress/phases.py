"""Training in phases, each a resumable run of its own: the numbers first, then numbers and codebooks under the rate.

Nothing that is set here reaches the decoder, so nothing here costs bits: steps, rates and seeds of training may be
tried as often as one likes. What the decoder sees stands in the prior and is paid for there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from forethought.certify.compress.network import CompressibleNetwork
from forethought.certify.decoder.recipe import Recipe
from forethought.core.config import config
from forethought.core.progress import track
from forethought.core.rng import generator
from forethought.core.run import Run
from forethought.train import LoopConfig, Optimisers, Parallel, ScheduleConfig, train

Batches = Callable[[int], tuple[Tensor, Tensor]]
Loss = Callable[[nn.Module, tuple[Tensor, Tensor]], tuple[Tensor, Mapping[str, Tensor]]]


@config
class CompressionConfig:
    """How to train; free of charge, since the decoder knows none of it."""

    steps: int = Field(default=2800, ge=1)
    """Steps of plain training in the subspace."""
    quantise_steps: int = Field(default=1200, ge=1)
    """Steps of training with quantised numbers under the rate."""
    batch_size: int = Field(default=256, ge=1)
    lr: float = Field(default=2e-2, gt=0.0)
    """Peak rate of Adam."""
    quantise_lr: float = Field(default=0.1, gt=0.0)
    """Rate of the numbers while quantised, as a share of lr; above about 0.3 the code is destroyed."""
    codebook_lr: float = Field(default=0.01, gt=0.0)
    """Rate of the codebooks, as a share of lr."""
    rate: float = Field(default=1.0, ge=0.0)
    """Factor on the weight of the bits; 1 is the derivative of the bound itself, 0 trains without a rate."""
    thrift: tuple[float, ...] = (0.0, 0.02, 0.05)
    """Assignments tried at the end: how far, in squared gaps a bit, a cheaper level may be preferred."""
    seed: int = Field(default=0, ge=0)
    """Order of the examples."""
    checkpoint_every: int = Field(default=500, ge=0)


@config
class Phase:
    """What one phase depends on, for its run directory."""

    name: str
    recipe: Recipe
    training: CompressionConfig
    data_sha256: str
    price: float = 0.0
    """Loss a bit."""


class Examples:
    """Batches of (inputs, labels) by step: every epoch a fresh permutation, a function of the seed."""

    def __init__(self, inputs: NDArray[Any], labels: NDArray[np.int64], batch_size: int, seed: int) -> None:
        self.inputs, self.labels = torch.from_numpy(np.ascontiguousarray(inputs)), torch.from_numpy(labels)
        self.batch_size, self.seed = min(batch_size, len(labels)), seed
        self.per_epoch = len(labels) // self.batch_size
        self._epoch, self._order = -1, np.empty(0, dtype=np.int64)

    def __call__(self, step: int) -> tuple[Tensor, Tensor]:
        """Return the batch of one step."""
        epoch, place = divmod(step, self.per_epoch)
        if epoch != self._epoch:
            self._epoch = epoch
            self._order = generator(self.seed, "certify.order", epoch).permutation(len(self.labels))
        rows = torch.from_numpy(self._order[place * self.batch_size : (place + 1) * self.batch_size])
        return self.inputs[rows], self.labels[rows]


def class_loss(price: float) -> Loss:
    """Return cross-entropy in nats plus price times bits, with error rate and bits as figures."""

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Mapping[str, Tensor]]:
        inputs, labels = batch
        logits, bits = model(inputs)
        entropy = functional.cross_entropy(logits, labels)
        errors = (logits.detach().argmax(1) != labels).float().mean()
        return entropy + price * bits, {"cross_entropy": entropy.detach(), "error": errors, "bits": bits.detach()}

    return loss


def run_phase(
    network: CompressibleNetwork, phase: Phase, batches: Batches, loss: Loss, directory: Path, *, show: bool = True
) -> Mapping[str, float]:
    """Train one phase in a run directory, or resume it, and return the means of its last records' figures.

    Raises:
        InterruptedRunError: interrupted and saved; the same call goes on.
        TrainingError: the loss is no longer finite.
    """
    training, quantised = phase.training, network.quantiser is not None
    steps = training.quantise_steps if quantised else training.steps
    settings = LoopConfig(
        steps=steps,
        clip_norm=None,
        log_every=20,
        checkpoint_every=training.checkpoint_every,
        schedule=ScheduleConfig(warmup=0.0 if quantised else 0.1),
    )
    with Run.open(directory, config=phase, recipe="certify.phase", exists="resume", keep=1) as run:
        records = train(
            network,
            loss=loss,
            batches=batches,
            optimisers=_optimisers(network, training),
            run=run,
            settings=settings,
            seed=training.seed,
            parallel=Parallel(torch.device("cpu")),
        )
        if show:
            with track(phase.name, steps) as progress:
                for record in records:
                    progress.update(record.step, **record.metrics)
        else:
            for _ in records:
                pass
        return _last_figures(run.metrics("train"))


def _optimisers(network: CompressibleNetwork, training: CompressionConfig) -> Optimisers:
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    if network.quantiser is None:
        groups = [{"params": [network.numbers], "lr": training.lr}]
    else:
        groups = [
            {"params": [network.numbers], "lr": training.lr * training.quantise_lr},
            {"params": [network.quantiser.values], "lr": training.lr * training.codebook_lr},
        ]
    return Optimisers([torch.optim.Adam(groups)], names)


def _last_figures(records: list[dict[str, Any]]) -> dict[str, float]:
    """Return means over the last tenth of the records."""
    tail = records[-max(1, len(records) // 10) :]
    names = set.intersection(*(set(record) for record in tail)) - {"event", "step"}
    return {name: float(np.mean([record[name] for record in tail])) for name in sorted(names)}
