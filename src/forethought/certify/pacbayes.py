"""PAC-Bayes training: a stochastic network whose training objective is a bound, and the certificate of the result.

Objectives (Perez-Ortiz et al. 2021): `fquad`, `flambda` and `fclassic`, on cross-entropy that is cut at ln(1 / p_min)
and divided by it, so that it lies in [0, 1]. They only steer; the certificate comes from 0-1 errors of fresh draws.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from forethought.certify.bounds import monte_carlo_pac_bayes
from forethought.certify.compress.phases import Examples
from forethought.certify.lint import Finding, lint_behaviour, lint_data, lint_module, refuse
from forethought.certify.stochastic import GaussianNetwork
from forethought.core.config import config, digest
from forethought.core.progress import track
from forethought.core.rng import derive_seed, torch_generator
from forethought.core.run import Run
from forethought.data.images import LabelledImages
from forethought.train import LoopConfig, Optimisers, Parallel, train

_LOG_2 = math.log(2.0)


@config
class StochasticConfig:
    """What a stochastic certificate depends on; prior_deviation and seed belong to the prior and are fixed here."""

    objective: Literal["fquad", "flambda", "fclassic"] = "fquad"
    prior_deviation: float = Field(default=0.3, gt=0.0)
    seed: int = Field(default=0, ge=0)
    steps: int = Field(default=3000, ge=1)
    batch_size: int = Field(default=100, ge=1)
    lr: float = Field(default=1e-2, gt=0.0)
    ramp: float = Field(default=0.5, ge=0.0, lt=1.0)
    """Share of the steps in which the divergence counts less, rising to its full weight: at full weight from the start
    a network on few data never leaves its prior. Free, since only the posterior's making changes."""
    least_probability: float = Field(default=1e-2, gt=0.0, lt=1.0)
    """p_min: smaller probabilities count as this one."""
    num_draws: int = Field(default=1000, ge=1)
    """Networks drawn for the certificate, each scored on all examples."""
    delta: float = Field(default=0.05, gt=0.0, lt=1.0)
    """For sample and draws together; a fifth pays for the draws."""
    checkpoint_every: int = Field(default=1000, ge=0)


@dataclass(frozen=True)
class StochasticCertificate:
    """A bound on the mean error of networks drawn afresh from Q for every prediction."""

    objective: str
    n: int
    delta: float
    num_draws: int
    divergence_bits: float
    train_risk: float
    bound: float
    trivial: float
    test_risk: float | None
    findings: tuple[Finding, ...]

    @property
    def vacuous(self) -> bool:
        """Whether the bound says no more than the trivial predictor's error."""
        return self.bound >= self.trivial

    @property
    def statement(self) -> str:
        """What is guaranteed, in words."""
        state = " (vacuous)" if self.vacuous else ""
        return (
            f"With probability {1.0 - self.delta:.6g} over the draw of {self.n} examples and of "
            f"{self.num_draws} networks, "
            f"a network drawn afresh from the posterior errs on fresh examples of the same law with "
            f"probability at most "
            f"{self.bound:.4%}{state}. Nothing is said of the mean network or of any single draw."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return all figures as JSON values."""
        return {**asdict(self), "vacuous": self.vacuous, "statement": self.statement}


def certify_stochastic(
    module: nn.Module,
    data: LabelledImages,
    settings: StochasticConfig,
    directory: Path | str,
    *,
    test: LabelledImages | None = None,
    show: bool = True,
) -> StochasticCertificate:
    """Learn a Gaussian posterior over the weights by minimising a bound, in a resumable run, and certify it.

    Raises:
        AssumptionError: an assumption fails; the findings are named.
        InterruptedRunError: interrupted and saved.
    """
    refuse(lint_module(module))
    findings = [
        *lint_module(module),
        *lint_behaviour(module, torch.from_numpy(data.inputs)),
        *lint_data(data.inputs, data.labels, data.num_classes),
    ]
    refuse(findings)
    network = GaussianNetwork(module, prior_deviation=settings.prior_deviation, seed=settings.seed)
    _train(network, data, settings, Path(directory), show)
    inputs, labels = torch.from_numpy(data.inputs), torch.from_numpy(data.labels)
    draws = settings.num_draws
    seed = derive_seed(settings.seed, "certify.evaluation")
    risk = network.mean_error(inputs, labels, num_draws=draws, seed=seed)
    # A few units in the last place cover the rounding of a sum of D terms in float64.
    bits = float(network.divergence().detach()) * (1.0 + 1e-9) / _LOG_2
    test_risk = None
    if test is not None:
        test_inputs, test_labels = torch.from_numpy(test.inputs), torch.from_numpy(test.labels)
        test_risk = network.mean_error(test_inputs, test_labels, num_draws=min(draws, 100), seed=seed)
    bound = monte_carlo_pac_bayes(risk, draws, len(data), bits, settings.delta)
    trivial = 1.0 - 1.0 / data.num_classes
    return StochasticCertificate(
        settings.objective, len(data), settings.delta, draws, bits, risk, bound, trivial, test_risk, tuple(findings)
    )


def _fquad(risk: Tensor, complexity: Tensor, weight: Tensor) -> Tensor:
    half = complexity / 2.0
    return ((risk + half).sqrt() + half.sqrt()).square() + 0.0 * weight


def _flambda(risk: Tensor, complexity: Tensor, weight: Tensor) -> Tensor:
    shrink = 1.0 - weight / 2.0
    return risk / shrink + complexity / (weight * shrink)


def _fclassic(risk: Tensor, complexity: Tensor, weight: Tensor) -> Tensor:
    return risk + (complexity / 2.0).sqrt() + 0.0 * weight


OBJECTIVES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "fquad": _fquad,
    "flambda": _flambda,
    "fclassic": _fclassic,
}


class _Learner(nn.Module):
    """The network with the trainable weight of flambda beside it."""

    def __init__(self, network: GaussianNetwork) -> None:
        super().__init__()
        self.network = network
        self.raw_weight = nn.Parameter(torch.zeros(()))


def _train(
    network: GaussianNetwork, data: LabelledImages, settings: StochasticConfig, directory: Path, show: bool
) -> None:
    learner, n = _Learner(network), len(data)
    examples = Examples(data.inputs, data.labels, settings.batch_size, settings.seed)
    objective = OBJECTIVES[settings.objective]
    ceiling = math.log(1.0 / settings.least_probability)
    fixed = math.log(2.0 * math.sqrt(n) / settings.delta)

    def loss(model: nn.Module, batch: tuple[int, Tensor, Tensor]) -> tuple[Tensor, Mapping[str, Tensor]]:
        step, inputs, labels = batch
        scores = network(inputs, torch_generator(settings.seed, "certify.noise", step))
        logs = scores.log_softmax(1).clamp_min(-ceiling)
        risk = functional.nll_loss(logs, labels) / ceiling
        divergence = network.divergence().float()
        share = min(1.0, (step + 1) / (settings.ramp * settings.steps)) if settings.ramp else 1.0
        weight = 2.0 * torch.sigmoid(learner.raw_weight)
        value = objective(risk, (share**2 * divergence + fixed) / n, weight)
        return value, {"risk": risk.detach(), "divergence_nats": divergence.detach()}

    def batches(step: int) -> tuple[int, Tensor, Tensor]:
        return (step, *examples(step))

    groups = [
        {"params": [network.mean, network.raw_deviation], "lr": settings.lr},
        {"params": [learner.raw_weight], "lr": 1e-2},
    ]
    names = {id(parameter): name for name, parameter in learner.named_parameters()}
    loop = LoopConfig(steps=settings.steps, clip_norm=None, log_every=20, checkpoint_every=settings.checkpoint_every)
    with Run.open(
        directory, config=_Described(settings, _digest(data)), recipe="certify.stochastic", exists="resume"
    ) as run:
        records = train(
            learner,
            loss=loss,
            batches=batches,
            optimisers=Optimisers([torch.optim.Adam(groups)], names),
            run=run,
            settings=loop,
            seed=settings.seed,
            parallel=Parallel(torch.device("cpu")),
        )
        if not show:
            for _ in records:
                pass
            return
        with track("stochastic", settings.steps) as progress:
            for record in records:
                progress.update(record.step, **record.metrics)


@config
class _Described:
    settings: StochasticConfig
    data_sha256: str


def _digest(data: LabelledImages) -> str:
    return digest(
        {"n": len(data), "inputs": float(np.sum(data.inputs, dtype=np.float64)), "labels": data.labels.tolist()}
    )
