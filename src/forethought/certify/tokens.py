"""`certify_tokens`: from a declared prior and a sequence of tokens to a certified language model.

What is certified is the mean loss of the next token given the contexts that stood in the data (a martingale average),
not the loss on new documents; the tokens need not be independent.

Legend: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from forethought.certify.bounds import freedman_printed
from forethought.certify.certificate import Tokens, as_data, issue
from forethought.certify.compress.phases import Batches, Loss
from forethought.certify.compress.slope import numerical_slope
from forethought.certify.decoder import TokenScoring, plan_of, token_losses
from forethought.certify.decoder.architectures import ARCHITECTURES, GIVEN
from forethought.certify.lint import Finding, lint_behaviour, lint_declaration, lint_module, refuse
from forethought.certify.training import (
    CertifiedModel,
    open_ledger,
    own_copy,
    workplace,
)
from forethought.certify.training_search import Candidate, CertifySpec, Job, search
from forethought.core.errors import ConfigError, DataError, InputError
from forethought.core.rng import generator
from forethought.stats.ngram import KneserNey, unigram_loss

_TYPICAL_SQUARE = 2.0  # nats^2, until a phase has measured the spread of loss around entropy


def certify_tokens(
    model: nn.Module | None,
    tokens: object,
    spec: CertifySpec,
    *,
    test: np.ndarray | None = None,
    directory: Path | str | None = None,
    ledger: Path | str | None = None,
    base: Mapping[str, Tensor] | None = None,
    show: bool = True,
) -> CertifiedModel:
    """Train a short version of a language model on a sequence [N] of token numbers and certify its next-token loss.

    `model` is a module of the user's own ([B, T] to [B, T, V]) for a prior with architecture "given", or None. Test
    tokens are only ever reported: the certified model's own loss on them, beside unigrams and trigrams.

    Raises:
        AssumptionError: an assumption of the bound fails; the findings are named.
        InputError: the tokens, the prior or the ledger are refused.
        InterruptedRunError: interrupted and saved; the same call goes on.
    """
    started = time.perf_counter()
    given = as_data(tokens)
    scoring = spec.prior.recipe.scoring
    if not isinstance(given, Tokens) or not isinstance(scoring, TokenScoring):
        raise InputError("certify_tokens takes one array of token numbers and a prior whose recipe scores tokens")
    own = own_copy(model, spec.prior.recipe)
    findings = _lint(own, given, spec, scoring, base)
    refuse(findings)
    job_batches = (
        windows(given.tokens, spec) if spec.prior.recipe.architecture == "window" else blocks(given.tokens, spec)
    )

    def price(figures: Mapping[str, float], bits: float) -> float:
        def bound(risk: float, length: float) -> float:
            square = figures.get("square", _TYPICAL_SQUARE)
            return freedman_printed(
                risk, square, given.size, length, spec.delta, vocab_size=scoring.vocab_size, exact_g=True
            )

        return numerical_slope(bound, figures["cross_entropy"], bits).risk_per_bit

    with workplace(directory) as place:
        found = search(spec, given, own, base, Job(Path(place), job_batches, token_loss, price, show))
        best = min(found, key=lambda each: each.bound)
        shares = open_ledger(given, spec, directory, ledger)
        extra = _beside(best, given.tokens, test, scoring)
        certificate = issue(
            spec.prior,
            best.recipe,
            best.message,
            given,
            ledger=shares,
            delta=spec.delta,
            purpose=spec.purpose,
            module=copy.deepcopy(own),
            base=base,
            derived=best.derived,
            assumptions=[f"{finding.name}: {finding.message}" for finding in findings],
            reported={name: value for name, value in extra.items() if value is not None},
        )
    rows = tuple(each.to_row() for each in sorted(found, key=lambda each: each.bound))
    seconds = time.perf_counter() - started
    module = best.derived.network.module
    return CertifiedModel(certificate, module, tuple(findings), rows, None, seconds, extra)


def token_loss(price: float) -> Loss:
    """Return cross-entropy in nats a token plus price times bits, and the mean square of entropy minus loss."""

    def loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Mapping[str, Tensor]]:
        inputs, targets = batch
        logits, bits = model(inputs)
        logs = logits.reshape(-1, logits.shape[-1]).log_softmax(-1)
        entropy = functional.nll_loss(logs, targets.reshape(-1))
        with torch.no_grad():
            own = -logs.gather(1, targets.reshape(-1, 1)).squeeze(1)
            square = ((-(logs.exp() * logs).sum(1)) - own).square().mean()
        return entropy + price * bits, {"cross_entropy": entropy.detach(), "square": square, "bits": bits.detach()}

    return loss


def windows(tokens: np.ndarray, spec: CertifySpec) -> Batches:
    """Return batches of (contexts [B, T], next tokens [B]) at uniform places, a function of the step."""
    context = _context(spec)
    sequence = torch.from_numpy(np.asarray(tokens, dtype=np.int64))
    offsets = torch.arange(context)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        starts = _starts(len(sequence) - context, spec, step)
        return sequence[starts[:, None] + offsets], sequence[starts + context]

    return batch


def blocks(tokens: np.ndarray, spec: CertifySpec) -> Batches:
    """Return batches of (tokens [B, T], following tokens [B, T]) at uniform places, a function of the step."""
    context = _context(spec)
    sequence = torch.from_numpy(np.asarray(tokens, dtype=np.int64))
    offsets = torch.arange(context)

    def batch(step: int) -> tuple[Tensor, Tensor]:
        places = _starts(len(sequence) - context, spec, step)[:, None] + offsets
        return sequence[places], sequence[places + 1]

    return batch


def counting_losses(train: np.ndarray, test: np.ndarray, vocab_size: int) -> dict[str, float]:
    """Return the losses in nats a token of unigrams and of a smoothed 3-gram (Kneser-Ney), on the test tokens."""
    return {
        "unigram_loss": unigram_loss(train, test, vocab_size),
        "trigram_loss": KneserNey(vocab_size, order=3).fit(train).loss(test),
    }


def _starts(room: int, spec: CertifySpec, step: int) -> Tensor:
    draw: Callable[..., Any] = generator(spec.training.seed, "certify.windows", step).integers
    return torch.from_numpy(draw(0, room, spec.training.batch_size))


def _context(spec: CertifySpec) -> int:
    scoring = spec.prior.recipe.scoring
    if not isinstance(scoring, TokenScoring):
        raise ConfigError("the prior's recipe does not score tokens")
    return scoring.context


def _beside(
    best: Candidate, tokens: np.ndarray, test: np.ndarray | None, scoring: TokenScoring
) -> dict[str, float | int | None]:
    result = best.derived.result
    extra: dict[str, float | int | None] = {"uniform_loss": math.log(scoring.vocab_size), "test_loss": None}
    if test is not None:
        smoothing = getattr(result, "smoothing", 0.0)
        losses, _ = token_losses(best.derived.network, test, smoothing)
        extra |= {"test_loss": float(losses.mean()), "test_n": len(losses)}
        extra |= counting_losses(tokens, test, scoring.vocab_size)
    return extra


def _lint(
    module: nn.Module | None, data: Tokens, spec: CertifySpec, scoring: TokenScoring, base: Mapping[str, Tensor] | None
) -> list[Finding]:
    findings = lint_declaration(spec.declared, spec.prior.sha256)
    if len(data.tokens) <= scoring.context + 1:
        raise DataError(f"{len(data.tokens)} tokens leave nothing to learn with a context of {scoring.context}")
    recipe = spec.prior.recipe
    if module is not None:
        findings += lint_module(module, initial=dict(module.named_buffers()))
        if not any(finding.severity == "error" for finding in findings):
            rows = torch.from_numpy(np.asarray(data.tokens[: 8 * scoring.context], dtype=np.int64))
            usable = len(rows) // scoring.context * scoring.context
            findings += lint_behaviour(module, rows[:usable].view(-1, scoring.context))
    elif recipe.architecture == "transformer" and getattr(
        ARCHITECTURES["transformer"].settings(**recipe.settings), "tie_embeddings", False
    ):
        findings.append(Finding("tied-parameters", "note", "embedding and output head share one tensor, coded once"))
    if base is not None:
        message = "the base weights are given: the bound holds only if they were made without these tokens"
        findings.append(Finding("given-base-weights", "warning", message))
    if recipe.architecture != GIVEN:
        plan_of(recipe)  # refuses what cannot be built before any training
    return findings
