"""The derivation of a certificate from a prior, a message and data: the maker runs it once, every verifier again."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor, nn

from forethought.certify.bounds.occam import hoeffding, occam_binomial, occam_kl
from forethought.certify.bounds.subsample import subsampled_hoeffding, subsampled_kl, subsampled_zero_one
from forethought.certify.bounds.tokens import azuma, freedman, freedman_closed, smoothing_range, smoothing_weight
from forethought.certify.certificate.claims import (
    BitClaim,
    GroupedResult,
    SampleClaim,
    SampledResult,
    TokenResult,
    WeightClaim,
    ZeroOneResult,
    word_of,
)
from forethought.certify.certificate.data import Data, Examples, Tokens
from forethought.certify.codes.codebook import GridCodebook
from forethought.certify.codes.message import Message, canonical_json, decode_message
from forethought.certify.decoder.base import raw_words, signs
from forethought.certify.decoder.rebuild import Network, Plan, network_of, plan_of
from forethought.certify.decoder.recipe import Prior, Recipe, TokenScoring
from forethought.certify.decoder.scoring import count_errors, num_predictions, token_losses, wrong_rows
from forethought.certify.given import all_bounds
from forethought.certify.ledger import BitLedger
from forethought.core.config import to_dict
from forethought.core.errors import ArtefactError, DataError

_NUM_PROBES = 8

Result = ZeroOneResult | TokenResult | GroupedResult | SampledResult


@dataclass(frozen=True)
class Derived:
    """What follows from a prior, the choices, a message, the data and a delta."""

    network: Network
    bits: BitClaim
    weights: WeightClaim
    result: Result
    delta: float
    sample: SampleClaim | None = None


def derive(
    prior: Prior,
    chosen: Mapping[str, int],
    message: bytes,
    data: Data,
    delta: float,
    *,
    module: nn.Module | None = None,
    base: Mapping[str, Tensor] | None = None,
    sample: SampleClaim | None = None,
    audit_seed: int | None = None,
) -> Derived:
    """Decode a message under a declared prior, rebuild its network, score it on the data, and bound its risk.

    With a `sample`, the risk is counted on so many examples, drawn by a number that message and data decide; an
    `audit_seed` draws others in their place.

    Raises:
        InputError: the message, the choices, the data or the base weights are refused; the message says why.
    """
    recipe = prior.resolve(chosen)
    decoded = decode_for(recipe, message, module)
    ledger = decoded.ledger(prior.choice_bits)
    network = network_of(recipe, decoded.numbers, buffers=decoded.buffers, module=module, base=base)
    if isinstance(recipe.scoring, TokenScoring):
        if not isinstance(data, Tokens) or sample is not None:
            raise DataError("this certificate is about tokens, all of them; give one array of token numbers")
        result: Result = _token_result(network, data, ledger, delta)
    else:
        if not isinstance(data, Examples):
            raise DataError("this certificate is about labelled examples; give inputs and labels")
        if sample is not None:
            seed = word_of("certificate sample", data.sha256, message) if audit_seed is None else audit_seed
            result = _sampled_result(network, data, ledger, delta, sample.size, seed)
        else:
            score = _zero_one_result if data.groups is None else _grouped_result
            result = score(network, data, ledger, delta)
    return Derived(network, BitClaim(**ledger.to_dict()), weight_claim(network.weights), result, delta, sample)


def decode_for(recipe: Recipe, message: bytes, module: nn.Module | None = None) -> Message:
    """Return a message decoded under the limits of a recipe, after a check that it is a message for this recipe.

    Raises:
        ArtefactError: it is no message, or one for another recipe, or its segments are not those the recipe calls for.
    """
    plan = plan_of(recipe, module)
    decoded = decode_message(message, max_symbols=plan.dimension)
    if canonical_json(decoded.recipe) != canonical_json(to_dict(recipe)):
        raise ArtefactError("the recipe in the message is not the one that the declared prior and the choices give")
    if len(decoded.buffers) != recipe.num_buffers:
        raise ArtefactError(
            f"the message holds {len(decoded.buffers)} buffer values; the recipe says {recipe.num_buffers}"
        )
    _check_segments(recipe, plan, decoded)
    return decoded


def weight_claim(weights: Mapping[str, Tensor]) -> WeightClaim:
    """Return the fingerprint of weights by name: eight sums under fixed random signs."""
    flat = np.concatenate([weights[name].detach().double().numpy().ravel() for name in sorted(weights)])
    probes = tuple(math.fsum(flat * signs(0, "certify.probe", len(flat), step=index)) for index in range(_NUM_PROBES))
    return WeightClaim(count=len(flat), absolute_sum=math.fsum(np.abs(flat)), probes=probes)


def _check_segments(recipe: Recipe, plan: Plan, decoded: Message) -> None:
    counts = tuple(len(segment.symbols) for segment in decoded.segments)
    if counts != plan.segments:
        raise ArtefactError(
            f"the message holds {len(counts)} segments of {sum(counts)} symbols; the recipe wants others"
        )
    for segment in decoded.segments:
        kind = "grid" if isinstance(segment.codebook, GridCodebook) else "table"
        if (kind, segment.codebook.num_levels) != (recipe.codebook.kind, recipe.codebook.levels):
            raise ArtefactError(
                f"a segment has a {kind} of {segment.codebook.num_levels} levels; the recipe says a "
                f"{recipe.codebook.kind} of {recipe.codebook.levels}"
            )


def _zero_one_result(network: Network, data: Examples, ledger: BitLedger, delta: float) -> ZeroOneResult:
    errors, n = count_errors(network, data.inputs, data.labels), data.size
    return ZeroOneResult(
        errors=errors,
        n=n,
        train_risk=errors / n,
        bound=occam_binomial(errors, n, ledger.total, delta),
        trivial=trivial_error(data.labels),
        bounds=all_bounds(errors, n, ledger.total, delta),
    )


def trivial_error(labels: np.ndarray, weights: np.ndarray | None = None) -> float:
    """Return the error of naming the most frequent class of the data at hand, by weights that sum to 1 where given."""
    counts = np.bincount(labels.astype(np.int64), weights=weights)
    return max(0.0, 1.0 - float(counts.max()) / (len(labels) if weights is None else 1.0))


def _grouped_result(network: Network, data: Examples, ledger: BitLedger, delta: float) -> GroupedResult:
    """Groups are drawn independently and the loss of one is its mean error, in [0, 1]: the Chernoff-kl form holds."""
    wrong = wrong_rows(network, data.inputs, data.labels)
    _, places = np.unique(np.asarray(data.groups), return_inverse=True)
    sizes = np.bincount(places)
    losses, n, bits = np.bincount(places, weights=wrong) / sizes, len(sizes), ledger.total
    risk = min(1.0, math.fsum(losses) / n)
    return GroupedResult(
        errors=int(wrong.sum()),
        examples=data.size,
        n=n,
        train_risk=risk,
        bound=occam_kl(risk, n, bits, delta),
        trivial=trivial_error(data.labels, 1.0 / (n * sizes[places])),
        bounds={"chernoff_kl": occam_kl(risk, n, bits, delta), "hoeffding": hoeffding(risk, n, bits, delta)},
    )


def _sampled_result(
    network: Network, data: Examples, ledger: BitLedger, delta: float, size: int, seed: int
) -> SampledResult:
    """Rows are drawn with replacement after the message is fixed, and a part of delta pays for the draw."""
    if data.groups is not None:
        raise DataError("a risk counted on a sample is not combined with groups; leave one of the two out")
    rows = (raw_words(seed, "certify.sample", size) % np.uint64(data.size)).astype(np.int64)
    errors, n, bits = count_errors(network, data.inputs[rows], data.labels[rows]), data.size, ledger.total
    bounds = {
        "binomial": subsampled_zero_one(errors, size, n, bits, delta),
        "chernoff_kl": subsampled_kl(errors / size, size, n, bits, delta),
        "hoeffding": subsampled_hoeffding(errors / size, size, n, bits, delta),
    }
    return SampledResult(
        errors=errors,
        sampled=size,
        n=n,
        train_risk=errors / size,
        bound=bounds["binomial"],
        trivial=trivial_error(data.labels),
        bounds=bounds,
    )


def _token_result(network: Network, data: Tokens, ledger: BitLedger, delta: float) -> TokenResult:
    scoring = network.recipe.scoring
    if not isinstance(scoring, TokenScoring):
        raise ArtefactError("the recipe does not score tokens")
    n, bits = num_predictions(network, data.size), ledger.total
    if n < 1:
        raise DataError(f"{data.size} tokens leave nothing to predict with a context of {scoring.context}")
    smoothing = smoothing_weight(n, bits, delta) if scoring.smoothing is None else scoring.smoothing
    loss_range = smoothing_range(scoring.vocab_size, smoothing)
    losses, guesses = token_losses(network, data.tokens, smoothing)
    risk = math.fsum(losses) / n
    mean_square = math.fsum(np.square(guesses - losses)) / n
    bound = freedman(losses, guesses, bits, delta, loss_range=loss_range)
    return TokenResult(
        n=n,
        train_risk=risk,
        bound=bound,
        trivial=math.log(scoring.vocab_size),
        smoothing=smoothing,
        loss_range=loss_range,
        mean_square=mean_square,
        bounds={
            "freedman": bound,
            "freedman_closed": freedman_closed(risk, mean_square, n, bits, delta, loss_range=loss_range),
            "azuma": azuma(risk, n, bits, delta, width=loss_range),
        },
    )
