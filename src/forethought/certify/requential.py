"""Single-draw requential certificates: a bound for a full-precision network, from one training run and no code.

EXPERIMENTAL: the derivation is ours (docs/requential.md) and has not been reviewed elsewhere.

A student learns nothing but labels that a teacher draws, on inputs that are independent of the sample S. Had it
drawn the labels itself, its weights would be independent of S; the log-ratio of the two laws of the labels, summed over
the run, is therefore what the student knows of S, and enters a disintegrated PAC-Bayes bound in place of bits.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional

from forethought.certify.bounds import maurer_seeger
from forethought.certify.decoder.base import draw, slots_of
from forethought.certify.decoder.scoring import mistakes
from forethought.certify.lint import Finding, lint_behaviour, lint_data, lint_module, refuse
from forethought.core.config import config
from forethought.core.errors import ConfigError
from forethought.core.progress import track
from forethought.core.rng import generator, torch_generator
from forethought.data.images import LabelledImages


@config
class RequentialConfig:
    """How teacher and student learn. The student's side is the prior: it is fixed here, before the sample is seen."""

    steps: int = Field(default=600, ge=1)
    num_checkpoints: int = Field(default=12, ge=1)
    """Evenly spaced steps at which the student may be taken; the union over them is paid."""
    student_batch: int = Field(default=100, ge=1)
    student_lr: float = Field(default=3e-3, gt=0.0)
    student_seed: int = Field(default=0, ge=0)
    teacher_batch: int = Field(default=500, ge=1)
    teacher_lr: float = Field(default=5e-4, gt=0.0)
    pause_above: float | None = Field(default=0.05, gt=0.0)
    """The teacher waits while the last mean log-ratio a label exceeds this; None: never. Free."""
    seed: int = Field(default=0, ge=0)
    """Of the drawn labels and the teacher."""
    delta: float = Field(default=0.05, gt=0.0, lt=1.0)
    pool_is_independent: bool = False
    """The user's word that the pool's inputs are independent of the sample; without it there is no certificate."""

    def __post_init__(self) -> None:
        if self.num_checkpoints > self.steps:
            raise ConfigError(f"num_checkpoints {self.num_checkpoints} exceeds steps {self.steps}; give fewer")


@dataclass(frozen=True)
class RequentialStep:
    """One inspected checkpoint."""

    step: int
    bits: float
    expected_bits: float
    train_risk: float
    bound: float


@dataclass(frozen=True)
class RequentialCertificate:
    """A bound on the error of one deterministic, uncompressed student; EXPERIMENTAL."""

    n: int
    delta: float
    bits: float
    choice_bits: float
    train_risk: float
    bound: float
    step: int
    trivial: float
    test_risk: float | None
    path: tuple[RequentialStep, ...]
    findings: tuple[Finding, ...]
    experimental: bool = True

    @property
    def vacuous(self) -> bool:
        """Whether the bound says no more than the trivial predictor's error."""
        return self.bound >= self.trivial

    @property
    def statement(self) -> str:
        """What is guaranteed, in words."""
        state = " (vacuous)" if self.vacuous else ""
        return (
            f"EXPERIMENTAL. With probability {1.0 - self.delta:.6g} over the draw of {self.n} examples "
            f"and of the labels in "
            f"this run, the error of this full-precision network on fresh examples of the same law is at most "
            f"{self.bound:.4%}{state}, given that the pool of unlabelled inputs is independent of the examples."
        )

    def to_dict(self) -> dict[str, Any]:
        """Return all figures as JSON values."""
        return {**asdict(self), "vacuous": self.vacuous, "statement": self.statement}


def certify_requential(
    module: nn.Module,
    data: LabelledImages,
    pool: np.ndarray,
    settings: RequentialConfig,
    *,
    test: LabelledImages | None = None,
    show: bool = True,
) -> tuple[RequentialCertificate, dict[str, Tensor]]:
    """Train teacher and student and return the certificate of the best inspected student, and its weights.

    kl(train risk || risk) <= (sum_t ln Q_t(y_t) / P_t(y_t) + ln(2 sqrt(n) / delta) + ln(checkpoints)) / n.

    Raises:
        AssumptionError: an assumption fails, or the pool was not declared independent of the sample.
    """
    refuse(lint_module(module))
    findings = [
        *lint_module(module),
        *lint_behaviour(module, torch.from_numpy(data.inputs)),
        *lint_data(data.inputs, data.labels, data.num_classes),
        *_lint_pool(data, pool, settings),
    ]
    refuse(findings)
    session = _Session(module, data, pool, settings)
    every = {round((i + 1) * settings.steps / settings.num_checkpoints) for i in range(settings.num_checkpoints)}
    path: list[RequentialStep] = []
    best: tuple[float, dict[str, Tensor]] | None = None
    choice_bits = math.log2(settings.num_checkpoints)
    with track("requential", settings.steps) if show else _Silent() as progress:
        for step in range(1, settings.steps + 1):
            session.advance(step)
            if step in every:
                risk = session.risk(data)
                # Below 0 the ratio would be a credit; 0 is the safe side.
                bits = max(0.0, session.nats) * (1.0 + 1e-9) / math.log(2.0)
                bound = maurer_seeger(risk, len(data), bits + choice_bits, settings.delta)
                path.append(RequentialStep(step, bits, session.expected / math.log(2.0), risk, bound))
                if best is None or bound < best[0]:
                    best = (bound, {name: value.detach().clone() for name, value in session.student.items()})
            progress.update(step, bits=session.nats / math.log(2.0))
    chosen = min(path, key=lambda each: each.bound)
    weights = best[1] if best else {}
    test_risk = None if test is None else session.risk(test, weights)
    certificate = RequentialCertificate(
        len(data),
        settings.delta,
        chosen.bits,
        choice_bits,
        chosen.train_risk,
        chosen.bound,
        chosen.step,
        1.0 - 1.0 / data.num_classes,
        test_risk,
        tuple(path),
        tuple(findings),
    )
    return certificate, weights


class _Session:
    """Teacher and student side by side, with the log-ratio so far."""

    def __init__(self, module: nn.Module, data: LabelledImages, pool: np.ndarray, settings: RequentialConfig) -> None:
        self.module, self.settings = module.eval(), settings
        self.inputs, self.labels = torch.from_numpy(data.inputs), torch.from_numpy(data.labels)
        self.pool = torch.from_numpy(pool)
        self.student, self.teacher = self._first(settings.student_seed), self._first(settings.student_seed)
        self.student_optimiser = torch.optim.Adam(self.student.values(), lr=settings.student_lr)
        self.teacher_optimiser = torch.optim.Adam(self.teacher.values(), lr=settings.teacher_lr)
        self.nats, self.expected, self._last = 0.0, 0.0, 0.0

    def advance(self, step: int) -> None:
        settings = self.settings
        if settings.pause_above is None or self._last <= settings.pause_above:
            rows = generator(settings.seed, "requential.teacher", step).choice(
                len(self.labels), min(settings.teacher_batch, len(self.labels)), replace=False
            )
            chosen = torch.from_numpy(rows)
            self._learn(self.teacher, self.teacher_optimiser, self.inputs[chosen], self.labels[chosen])
        # The student's inputs are a function of its own seed and the pool: the sample has no say in them.
        rows = generator(settings.student_seed, "requential.student", step).choice(
            len(self.pool), settings.student_batch
        )
        inputs = self.pool[torch.from_numpy(rows)]
        with torch.no_grad():
            teacher = self._scores(self.teacher, inputs).double().log_softmax(1)
            student = self._scores(self.student, inputs).double().log_softmax(1)
            draw = torch_generator(settings.seed, "requential.labels", step)
            drawn = torch.multinomial(teacher.exp(), 1, generator=draw)
            ratio = float((teacher - student).gather(1, drawn).sum())
            self.expected += float((teacher.exp() * (teacher - student)).sum())
            self._last = float((teacher.exp() * (teacher - student)).sum(1).mean())
        self.nats += ratio if math.isfinite(ratio) else math.inf
        self._learn(self.student, self.student_optimiser, inputs, drawn.squeeze(1))

    @torch.no_grad()
    def risk(self, data: LabelledImages, weights: dict[str, Tensor] | None = None) -> float:
        used = self.student if weights is None else weights
        wrong = 0
        for start in range(0, len(data), 1000):
            scores = self._scores(used, torch.from_numpy(data.inputs[start : start + 1000]))
            wrong += mistakes(scores, torch.from_numpy(data.labels[start : start + 1000]))
        return wrong / len(data)

    def _scores(self, weights: dict[str, Tensor], inputs: Tensor) -> Tensor:
        return functional_call(self.module, weights, (inputs,))

    def _learn(
        self, weights: dict[str, Tensor], optimiser: torch.optim.Optimizer, inputs: Tensor, labels: Tensor
    ) -> None:
        loss = functional.cross_entropy(self._scores(weights, inputs), labels)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()

    def _first(self, seed: int) -> dict[str, Tensor]:
        return {
            slot.name: torch.from_numpy(draw(slot, seed)).float().view(slot.shape).requires_grad_(True)
            for slot in slots_of(self.module)
        }


class _Silent:
    """A progress display that shows nothing."""

    def __enter__(self) -> _Silent:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def update(self, _done: float, **_facts: object) -> None:
        return None


def _lint_pool(data: LabelledImages, pool: np.ndarray, settings: RequentialConfig) -> list[Finding]:
    findings: list[Finding] = []
    if not settings.pool_is_independent:
        findings.append(
            Finding(
                "pool-not-independent",
                "error",
                "the bound needs unlabelled inputs that are independent of the sample (a public pool, or a split made "
                "beforehand); say pool_is_independent=True if that is so",
            )
        )
    if pool.shape[1:] != data.inputs.shape[1:] or not len(pool):
        message = f"the pool has shape {pool.shape}; give rows of shape {data.inputs.shape[1:]}, at least one"
        findings.append(Finding("pool-shape", "error", message))
        return findings
    mine = {row.tobytes() for row in np.ascontiguousarray(data.inputs)}
    shared = sum(row.tobytes() in mine for row in np.ascontiguousarray(pool.astype(data.inputs.dtype)))
    if shared:
        message = f"{shared} inputs of the pool are in the sample bit for bit, so the pool is not independent of it"
        findings.append(Finding("pool-overlaps-sample", "error", message))
    return findings
