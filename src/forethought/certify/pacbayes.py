"""PAC-Bayes training: a stochastic network whose training objective is a bound, and the certificate of the result.

Objectives (Perez-Ortiz et al. 2021): `fquad`, `flambda` and `fclassic`, on cross-entropy that is cut at ln(1 / p_min)
and divided by it, so that it lies in [0, 1]. They only steer; the certificate comes from 0-1 errors of fresh draws, and
its file holds the posterior, so that anybody draws the same networks again.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from forethought.certify.certificate import Certificate, StochasticDocument
from forethought.certify.certificate import Examples as ExampleData
from forethought.certify.certificate.claims import DrawsClaim
from forethought.certify.certificate.drawn import derive_stochastic, module_of
from forethought.certify.compress.phases import Examples
from forethought.certify.decoder.posterior import Posterior, drawn_mistakes, posterior_bytes
from forethought.certify.decoder.priors import GaussianPrior, NetworkRecipe
from forethought.certify.stochastic import GaussianNetwork
from forethought.certify.training import CertifiedModel
from forethought.certify.uncoded import common_claims, drawn_share, examples_of, holdout_of, lint_plain, with_weights
from forethought.core.config import config
from forethought.core.errors import ConfigError
from forethought.core.progress import track
from forethought.core.rng import derive_seed, torch_generator
from forethought.core.run import Run
from forethought.train import LoopConfig, Optimisers, Parallel, train

DRAWS_SHARE = 0.2
"""The part of delta that pays for the draws."""


@config
class StochasticConfig:
    """What a stochastic certificate depends on; network, prior deviations and seed are the prior, and fixed here."""

    network: NetworkRecipe = Field(default_factory=NetworkRecipe)
    """A network of the decoder's table, or "given" for a module of one's own."""
    objective: Literal["fquad", "flambda", "fclassic"] = "fquad"
    prior_deviation: float = Field(default=0.3, gt=0.0)
    prior_deviations: tuple[float, ...] = ()
    """All prior deviations that were on the table, with the one above among them: the choice is paid. Empty: one."""
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
    precision: Literal["float32", "float64"] = "float64"
    """In which the drawn networks are scored; in float32 another processor may count a close decision differently."""
    delta: float = Field(default=0.05, gt=0.0, lt=1.0)
    """For sample and draws together; a fifth pays for the draws."""
    total_delta: float | None = Field(default=None, gt=0.0, lt=1.0)
    """For all certificates on these data together; None: that of this one."""
    declared: str | None = None
    """SHA-256 of the prior as it was written down before the data were read."""
    checkpoint_every: int = Field(default=1000, ge=0)

    @property
    def prior(self) -> GaussianPrior:
        """The prior that a certificate of these settings declares."""
        grid = self.prior_deviations or (self.prior_deviation,)
        return GaussianPrior(network=self.network, deviations=grid, seed=self.seed, precision=self.precision)

    def __post_init__(self) -> None:
        if self.prior_deviations and self.prior_deviation not in self.prior_deviations:
            raise ConfigError(f"prior_deviation {self.prior_deviation} is not in its grid {self.prior_deviations}")


def certify_stochastic(
    module: nn.Module | None,
    data: object,
    settings: StochasticConfig,
    directory: Path | str,
    *,
    test: object | None = None,
    ledger: Path | str | None = None,
    show: bool = True,
) -> CertifiedModel:
    """Learn a Gaussian posterior over the weights by minimising a bound, in a resumable run, and certify it.

    `data` and `test` are (inputs, labels). `module` goes with the network "given": its code is used, its weights are
    not. The certificate's file is the posterior; the hold-out scores every example by a network of its own.

    Raises:
        AssumptionError: an assumption fails; the findings are named.
        InputError: the data, the module or the ledger are refused.
        InterruptedRunError: interrupted and saved.
    """
    started = time.perf_counter()
    given, prior = examples_of(data), settings.prior
    findings = lint_plain(module, given, declared=settings.declared, prior_sha256=prior.sha256)
    code, slots = module_of(settings.network, copy.deepcopy(module))
    network = GaussianNetwork(code, prior_deviation=settings.prior_deviation, seed=settings.seed)
    _train(network, given, settings, Path(directory), show)
    posterior = Posterior(_numbers(network.mean), _numbers(network.deviation))
    message, draws = posterior_bytes(posterior), DrawsClaim(count=settings.num_draws, share=DRAWS_SHARE)
    chosen = {"deviations": prior.deviations.index(settings.prior_deviation)}
    delta = drawn_share(given, prior, "stochastic", settings, directory, ledger)
    found = derive_stochastic(prior, chosen, message, given, delta.delta, draws, module=copy.deepcopy(module))
    holdout = None
    if test is not None:
        held, seed = examples_of(test), derive_seed(settings.seed, "certify.holdout")
        pair = (held.inputs, held.labels)
        errors = drawn_mistakes(found.module, slots, posterior, pair, num_draws=held.size, seed=seed, apart=True)
        holdout = holdout_of(errors, held.size, settings.delta)
    claims = common_claims(prior, given, message, found, findings, holdout)
    document = StochasticDocument(**claims, chosen=chosen, delta=delta, draws=draws)
    seconds, extra = time.perf_counter() - started, {"objective": settings.objective}
    certificate = Certificate(document, message)
    return CertifiedModel(certificate, with_weights(found), tuple(findings), (), holdout, seconds, extra)


def _numbers(tensor: Tensor) -> np.ndarray:
    return tensor.detach().float().numpy().astype(np.float64)


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
    network: GaussianNetwork, data: ExampleData, settings: StochasticConfig, directory: Path, show: bool
) -> None:
    learner, n = _Learner(network), data.size
    examples = Examples(
        data.inputs.astype(np.float32), data.labels.astype(np.int64), settings.batch_size, settings.seed
    )
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
        directory, config=_Described(settings, data.sha256), recipe="certify.stochastic", exists="resume"
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
