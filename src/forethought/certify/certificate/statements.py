"""The guarantee of a certificate in words, with what it does not say: one sentence a kind, one frame for all."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from forethought.certify.certificate.claims import (
    GroupedResult,
    RequentialResult,
    SampledResult,
    StochasticResult,
    TokenResult,
    ZeroOneResult,
)


def statement_of(document: Any) -> str:
    """Return the guarantee of a document in words, with what it does not say."""
    result, delta = document.result, document.delta
    over, what, besides = _SAID[type(result)](document)
    sure = (
        f"With probability {1.0 - delta.total:.6g} over the draw of {over}, for this certificate and all others of "
        "its ledger,"
    )
    vacuous = result.bound >= result.trivial
    worth = (
        f" This is VACUOUS: the trivial predictor reaches {result.trivial:.4g}."
        if vacuous
        else f" The trivial predictor has {result.trivial:.4g}."
    )
    limits = (
        f" It says nothing of other laws, other measures, single inputs, or {besides}, and it holds only if the prior "
        "was declared without the data."
    )
    return f"{sure} {what}{worth}{limits}"


_Said = tuple[str, str, str]
_PARENT = "the network before compression"


def _zero_one(document: Any) -> _Said:
    result = document.result
    what = (
        f"the error of the decoded network on fresh examples of the same law is at most {result.bound:.4%} "
        f"(it is {result.train_risk:.4%} on the {result.n} independent examples)."
    )
    return "the data", what, _PARENT


def _tokens(document: Any) -> _Said:
    result = document.result
    what = (
        "the mean loss of the decoded, smoothed model on the next token, given the contexts that stood in the data,"
        f" is at most {result.bound:.4f} nats (it is {result.train_risk:.4f} on the {result.n} tokens)."
    )
    return "the data", what, _PARENT


def _grouped(document: Any) -> _Said:
    result = document.result
    what = (
        f"the error of the decoded network, averaged over the examples of a fresh group of the same law, is at most "
        f"{result.bound:.4%} in the mean over groups (it is {result.train_risk:.4%} on the {result.n} independent "
        f"groups of {result.examples} examples)."
    )
    return "the data", what, f"single groups, or {_PARENT}"


def _sampled(document: Any) -> _Said:
    result = document.result
    what = (
        f"the error of the decoded network on fresh examples of the same law is at most {result.bound:.4%} "
        f"(it is {result.train_risk:.4%} on {result.sampled} drawn from the {result.n} independent examples)."
    )
    return "the data and of that sample", what, _PARENT


def _stochastic(document: Any) -> _Said:
    result = document.result
    what = (
        "a network drawn afresh from the posterior for every prediction errs on fresh examples of the same law with "
        f"probability at most {result.bound:.4%} (it is {result.train_risk:.4%} on the {result.n} independent examples "
        "for those drawn)."
    )
    return f"the data and of {document.draws.count} networks", what, "the mean network, or any single draw"


def _requential(document: Any) -> _Said:
    result = document.result
    what = (
        "EXPERIMENTAL: the error of this full-precision network on fresh examples of the same law is at most "
        f"{result.bound:.4%} (it is {result.train_risk:.4%} on the {result.n} independent examples), given that the "
        "pool of unlabelled inputs is independent of them."
    )
    return "the data and of the labels in this run", what, "the teacher"


_SAID: dict[type, Callable[[Any], _Said]] = {
    ZeroOneResult: _zero_one,
    TokenResult: _tokens,
    GroupedResult: _grouped,
    SampledResult: _sampled,
    StochasticResult: _stochastic,
    RequentialResult: _requential,
}
