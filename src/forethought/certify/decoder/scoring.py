"""The risk of a rebuilt network: mistakes counted, or token losses with the guesses that a bound subtracts.

Legend: B batch, T tokens, V vocabulary, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from forethought.certify.decoder.architectures import WindowModel, batch_within, num_inputs_of
from forethought.certify.decoder.rebuild import PRECISIONS, Network
from forethought.certify.decoder.recipe import TokenScoring, ZeroOneScoring
from forethought.core.errors import DataError


def count_errors(network: Network, inputs: np.ndarray, labels: np.ndarray) -> int:
    """Return the number of mistakes on inputs [n, ...] with integer labels [n]; a tie or a NaN is a mistake.

    Raises:
        DataError: the arrays do not fit each other or the network.
    """
    return int(wrong_rows(network, inputs, labels).sum())


@torch.no_grad()
def wrong_rows(network: Network, inputs: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return for each example [n] whether it is a mistake, as count_errors counts.

    Raises:
        DataError: the arrays do not fit each other or the network.
    """
    scoring = network.recipe.scoring
    if not isinstance(scoring, ZeroOneScoring):
        raise DataError("this network is scored on tokens; give a sequence of tokens")
    check_examples(inputs, labels)
    expected = num_inputs_of(network.module)
    if expected is not None and math.prod(inputs.shape[1:]) != expected:
        raise DataError(f"inputs have shape {inputs.shape}; the network takes {expected} numbers an example")
    dtype, wrong = PRECISIONS[scoring.precision], np.empty(len(inputs), dtype=bool)
    batch = batch_within(network.recipe.architecture, network.recipe.settings, scoring.batch_size)
    for start in range(0, len(inputs), batch):
        stop = start + batch
        x = torch.from_numpy(np.array(inputs[start:stop])).to(dtype)
        labels_B = torch.from_numpy(np.array(labels[start:stop], dtype=np.int64))
        logits_BK = network.module(x)
        if start == 0 and int(labels.max()) >= logits_BK.shape[1]:
            raise DataError(f"label {int(labels.max())} is outside the {logits_BK.shape[1]} classes of the network")
        wrong[start:stop] = ~right(logits_BK, labels_B).numpy()
    return wrong


def right(logits_BK: Tensor, labels_B: Tensor) -> Tensor:
    """Return for each row whether its label has the one largest logit, and no logit is NaN."""
    own_B = logits_BK.gather(1, labels_B[:, None])
    others_BK = logits_BK.scatter(1, labels_B[:, None], -math.inf)
    right_B = (own_B > others_BK).all(dim=1) & ~logits_BK.isnan().any(dim=1)
    return right_B & False if logits_BK.shape[1] == 1 else right_B


def mistakes(logits_BK: Tensor, labels_B: Tensor) -> int:
    """Return how many rows do not give their label the one largest logit; rows with a NaN count as mistakes."""
    return len(labels_B) - int(right(logits_BK, labels_B).sum())


def token_losses(network: Network, tokens: np.ndarray, smoothing: float) -> tuple[np.ndarray, np.ndarray]:
    """Return (losses, guesses) in nats, one of each a predicted token, of the model mixed with the uniform law.

    The loss is -ln((1 - a) p(token) + a / V); the guess is the entropy of the mixed law, which is known before the
    token. Windows predict every token after the first `context`, blocks every token but the first.

    Raises:
        DataError: the tokens are no sequence of the vocabulary, or too few.
    """
    scoring = network.recipe.scoring
    if not isinstance(scoring, TokenScoring):
        raise DataError("this network is scored on examples; give inputs and labels")
    check_tokens(tokens, scoring.vocab_size)
    losses: list[np.ndarray] = []
    guesses: list[np.ndarray] = []
    for logits_NV, targets_N in _predictions(network, scoring, tokens):
        if logits_NV.shape[1] != scoring.vocab_size:
            raise DataError(f"the network predicts {logits_NV.shape[1]} tokens, the recipe says {scoring.vocab_size}")
        mixed_NV = torch.softmax(logits_NV.double(), dim=-1) * (1.0 - smoothing) + smoothing / scoring.vocab_size
        logs_NV = mixed_NV.log()
        losses.append((-logs_NV.gather(1, targets_N[:, None]).squeeze(1)).numpy())
        guesses.append((-(mixed_NV * logs_NV).sum(dim=1)).numpy())
    return np.concatenate(losses), np.concatenate(guesses)


def num_predictions(network: Network, num_tokens: int) -> int:
    """Return how many tokens of a sequence are predicted, and with that the n of the bound."""
    scoring = network.recipe.scoring
    context = scoring.context if isinstance(scoring, TokenScoring) else 0
    return max(0, num_tokens - (context if isinstance(network.module, WindowModel) else 1))


@torch.no_grad()
def _predictions(network: Network, scoring: TokenScoring, tokens: np.ndarray) -> Iterator[tuple[Tensor, Tensor]]:
    context, recipe = scoring.context, network.recipe
    batch = batch_within(recipe.architecture, recipe.settings, scoring.batch_size, context)
    sequence = torch.from_numpy(np.array(tokens, dtype=np.int64))
    if num_predictions(network, len(sequence)) < 1:
        raise DataError(f"{len(sequence)} tokens leave nothing to predict with a context of {context}")
    if isinstance(network.module, WindowModel):
        windows = sequence.unfold(0, context, 1)[:-1]
        for start in range(0, len(windows), batch):
            yield network.module(windows[start : start + batch]), sequence[context:][start : start + batch]
        return
    num_blocks = (len(sequence) - 1) // context
    inputs, targets = (sequence[i : i + num_blocks * context].view(-1, context) for i in (0, 1))
    for start in range(0, num_blocks, batch):
        yield network.module(inputs[start : start + batch]).flatten(0, 1), targets[start : start + batch].flatten()
    if num_blocks * context < len(sequence) - 1:
        rest = sequence[num_blocks * context :]
        yield network.module(rest[None, :-1]).flatten(0, 1), rest[1:]


def check_examples(inputs: np.ndarray, labels: np.ndarray) -> None:
    """Raise a DataError unless the arrays are finite inputs [n, ...] and whole-number labels [n], not negative."""
    if labels.ndim != 1 or labels.dtype.kind not in "iu" or len(labels) == 0 or labels.min() < 0:
        raise DataError(
            f"labels have type {labels.dtype} and shape {labels.shape}; give class numbers 0, 1, ... of [n]"
        )
    if inputs.ndim < 2 or len(inputs) != len(labels) or inputs.dtype.kind not in "fiu":
        raise DataError(f"inputs have type {inputs.dtype} and shape {inputs.shape} for {len(labels)} labels")
    if inputs.dtype.kind == "f" and not np.isfinite(inputs).all():
        raise DataError("inputs hold NaN or infinite values; a certificate needs finite ones")


def check_tokens(tokens: np.ndarray, vocab_size: int) -> None:
    """Raise a DataError unless tokens is a sequence [N] of whole numbers below vocab_size."""
    if tokens.ndim != 1 or tokens.dtype.kind not in "iu" or len(tokens) < 2:
        raise DataError(
            f"tokens have type {tokens.dtype} and shape {tokens.shape}; give a sequence [N] of token numbers"
        )
    if int(tokens.min()) < 0 or int(tokens.max()) >= vocab_size:
        raise DataError(f"tokens run from {tokens.min()} to {tokens.max()}; the vocabulary has {vocab_size}")
