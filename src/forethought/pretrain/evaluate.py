"""Held-out loss with its interval, in nats a token and bits a byte, and the classical baselines beside it.

Legend: B batch, T time, V vocabulary.
"""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as functional
from torch import nn

from forethought.data import IGNORED_TARGET, TokenDataset, evaluation_batches
from forethought.pretrain.config import FitConfig
from forethought.pretrain.objective import logits_of
from forethought.stats import KneserNey, mean_interval, unigram_loss


@torch.no_grad()
def window_losses(
    model: nn.Module, dataset: TokenDataset, settings: FitConfig, device: torch.device, *, limit_tokens: int = 0
) -> tuple[np.ndarray, np.ndarray]:
    """Return the summed loss in nats and the number of tokens of every evaluation window, each token counted once."""
    losses: list[np.ndarray] = []
    counts: list[np.ndarray] = []
    batches = evaluation_batches(
        dataset, settings.batch_size, settings.context, limit_tokens, document_mask=settings.document_mask
    )
    for batch in batches:
        logits_NV, targets_N = logits_of(model, batch, device)
        each_N = functional.cross_entropy(logits_NV, targets_N, ignore_index=IGNORED_TARGET, reduction="none")
        losses.append(each_N.view(batch.targets_BT.shape).double().sum(1).cpu().numpy())
        counts.append((batch.targets_BT != IGNORED_TARGET).sum(1))
    return np.concatenate(losses), np.concatenate(counts)


def mean_loss(model: nn.Module, dataset: TokenDataset, settings: FitConfig, device: torch.device) -> float:
    """Return the mean loss in nats a token over the first `settings.evaluation_tokens` of a split."""
    losses, counts = window_losses(model, dataset, settings, device, limit_tokens=settings.evaluation_tokens)
    return float(losses.sum() / counts.sum())


def measure(
    model: nn.Module, dataset: TokenDataset, name: str, settings: FitConfig, device: torch.device
) -> dict[str, object]:
    """Return a split's loss, its 95 % interval over windows, and bits a byte, keyed by the split's name.

    At most `settings.final_tokens` are measured, from the front of the split.
    """
    was_training = model.training
    model.eval()
    losses, counts = window_losses(model, dataset, settings, device, limit_tokens=settings.final_tokens)
    model.train(was_training)
    loss = float(losses.sum() / counts.sum())
    full = counts == counts.max()
    spread = mean_interval(losses[full] / counts[full]) if full.sum() > 1 else None
    return {
        f"{name}_loss": loss,
        f"{name}_loss_interval": None if spread is None else [spread.low, spread.high],
        f"{name}_bits_per_byte": bits_per_byte(loss, dataset),
        f"{name}_tokens": int(counts.sum()),
    }


def bits_per_byte(nats_per_token: float, dataset: TokenDataset) -> float:
    """Return a loss in bits a byte of text, which does not depend on the tokenizer, at the split's bytes a token."""
    return nats_per_token * dataset.num_tokens / dataset.num_bytes / math.log(2.0)


def ngram_baselines(
    train: TokenDataset, held_out: TokenDataset, vocab_size: int, *, train_limit: int, evaluation_limit: int = 0
) -> dict[str, float]:
    """Return the held-out loss in nats a token of a unigram and of a 5-gram modified Kneser-Ney model.

    Only the first `train_limit` training tokens are counted, so that memory stays bounded; the figure says how many.
    The first `evaluation_limit` held-out tokens are predicted, all of them where it is 0.
    """
    tokens, starts = _front(train, train_limit)
    evaluation, evaluation_starts = _front(held_out, evaluation_limit)
    model = KneserNey(order=5, vocab_size=vocab_size).fit(tokens, starts)
    return {
        "unigram_loss": unigram_loss(tokens, evaluation, vocab_size),
        "kneser_ney_5_loss": model.loss(evaluation, evaluation_starts),
        "baseline_train_tokens": len(tokens),
    }


def _front(dataset: TokenDataset, limit: int) -> tuple[np.ndarray, np.ndarray]:
    end = min(limit or dataset.num_tokens, dataset.num_tokens)
    starts = np.asarray(dataset.document_starts)
    return np.asarray(dataset.tokens[:end]), starts[starts < end]
