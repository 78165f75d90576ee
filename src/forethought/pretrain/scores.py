"""What an ensemble is worth, from each member's cached probabilities of the right tokens.

Averaging probabilities needs one number a token and a member, so every subset and every weighting is scored after the
fact. Averaging logits needs whole laws and is streamed, for comparison only.

Legend: M members, N tokens, B batch, T time, V vocabulary.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from forethought.core import files, rng
from forethought.core.errors import ArtefactError, ConfigError
from forethought.data import IGNORED_TARGET, TokenDataset, evaluation_batches
from forethought.stats import mean_interval

FACTS = "scores.json"
Logs = NDArray[np.float32]


@torch.no_grad()
def token_log_probabilities(model: nn.Module, dataset: TokenDataset, *, batch_size: int, context: int) -> Logs:
    """Return log p(right token) of every token of a split (N), each predicted once from its window."""
    device = next(model.parameters()).device
    found: list[NDArray[np.float32]] = []
    for batch in evaluation_batches(dataset, batch_size, context):
        logits_BTV = model(torch.from_numpy(batch.tokens_BT).to(device)).float()
        targets_N = torch.from_numpy(batch.targets_BT).to(device).flatten()
        losses_N = functional.cross_entropy(logits_BTV.flatten(0, 1), targets_N, ignore_index=-100, reduction="none")
        found.append(-losses_N.cpu().numpy()[(batch.targets_BT != IGNORED_TARGET).ravel()])
    return np.concatenate(found).astype(np.float32)


def average_loss(logs_MN: Logs, weights_M: Sequence[float] | None = None) -> float:
    """Return the loss in nats a token of the members' averaged (or weighted) probabilities.

    Raises:
        ConfigError: the weights are not one non-negative number a member with a positive sum.
    """
    weights = np.full(len(logs_MN), 1.0) if weights_M is None else np.asarray(weights_M, dtype=np.float64)
    if weights.shape != (len(logs_MN),) or not (weights >= 0).all() or not weights.sum() > 0:
        raise ConfigError(f"{len(logs_MN)} members need as many weights, none negative and not all 0; given {weights}")
    with np.errstate(divide="ignore"):
        shifted_MN = logs_MN.astype(np.float64) + np.log(weights / weights.sum())[:, None]
    highest_N = shifted_MN.max(0)
    return float(-(highest_N + np.log(np.exp(shifted_MN - highest_N).sum(0))).mean())


def loss_interval(logs_N: Logs, window: int) -> tuple[float, float]:
    """Return the 95 % interval of the mean loss over whole windows of so many tokens; infinite below two windows."""
    count = len(logs_N) // window
    if count < 2:
        return -math.inf, math.inf
    spread = mean_interval(-logs_N[: count * window].reshape(count, window).mean(1, dtype=np.float64))
    return spread.low, spread.high


def subset_curve(logs_MN: Logs, *, largest: int | None = None, num_subsets: int = 64, seed: int = 0) -> list[float]:
    """Return the mean loss over subsets of 1, 2, ... members: all of them, or `num_subsets` drawn where there are more.

    Averaging over subsets takes the luck of the members' order out of the curve.
    """
    count = len(logs_MN)
    curve: list[float] = []
    for size in range(1, (largest or count) + 1):
        if math.comb(count, size) <= num_subsets:
            chosen = [list(subset) for subset in itertools.combinations(range(count), size)]
        else:
            draw = rng.generator(seed, "pretrain.subsets", size)
            chosen = [sorted(draw.choice(count, size, replace=False).tolist()) for _ in range(num_subsets)]
        curve.append(float(np.mean([average_loss(logs_MN[subset]) for subset in chosen])))
    return curve


def learned_weights(logs_MN: Logs, *, steps: int = 2000, tolerance: float = 1e-9) -> list[float]:
    """Return the weights of the members' probabilities that lower the loss most on these tokens, summing to 1.

    The loss is convex in the weights; each step w <- w * mean(p_i / sum_j w_j p_j) (EM for mixture weights) lowers it.
    Fit them on a slice that neither tunes nor reports.
    """
    scaled_MN = np.exp(logs_MN.astype(np.float64) - logs_MN.max(0))
    weights = np.full(len(logs_MN), 1.0 / len(logs_MN))
    for _ in range(steps):
        moved = weights * (scaled_MN / (weights @ scaled_MN)).mean(1)
        if np.abs(moved - weights).max() < tolerance:
            break
        weights = moved
    return [float(weight) for weight in weights / weights.sum()]


@torch.no_grad()
def logit_average_loss(models: Sequence[nn.Module], dataset: TokenDataset, *, batch_size: int, context: int) -> float:
    """Return the loss in nats a token of the mean of the members' logits, one softmax at the end (Kim et al. 2025)."""
    device = next(models[0].parameters()).device
    total, count = 0.0, 0
    for batch in evaluation_batches(dataset, batch_size, context):
        tokens = torch.from_numpy(batch.tokens_BT).to(device)
        logits: Tensor = torch.stack([model(tokens).float() for model in models]).mean(0)
        targets_N = torch.from_numpy(batch.targets_BT).to(device).flatten()
        total += float(functional.cross_entropy(logits.flatten(0, 1), targets_N, ignore_index=-100, reduction="sum"))
        count += int((batch.targets_BT != IGNORED_TARGET).sum())
    return total / count


@dataclass(frozen=True)
class Scores:
    """Cached log-probabilities by slice, one row a candidate; `identity` names the held-out text they belong to."""

    names: tuple[str, ...]
    identity: str
    slices: Mapping[str, Logs]

    def rows(self, slice_name: str, names: Sequence[str] | None = None) -> Logs:
        """Return the rows of a slice, all or those of some candidates in the order given.

        Raises:
            ConfigError: no candidate of that name.
        """
        chosen = list(self.names) if names is None else list(names)
        unknown = [name for name in chosen if name not in self.names]
        if unknown:
            raise ConfigError(f"no candidate {unknown[0]!r}; there are {', '.join(self.names)}")
        return self.slices[slice_name][[self.names.index(name) for name in chosen]]


def write_scores(directory: Path, scores: Scores) -> None:
    """Publish scores as float32 rows, replacing those that are there."""
    with files.staged(directory, replace=True) as staging:
        for name, rows_MN in scores.slices.items():
            files.write_bytes(staging / f"{name}.bin", np.ascontiguousarray(rows_MN, dtype="<f4").tobytes())
        lengths = {name: rows.shape[1] for name, rows in scores.slices.items()}
        facts = {"format": 1, "kind": "scores", "names": list(scores.names), "tokens": lengths}
        files.write_json(staging / FACTS, facts | {"identity": scores.identity})


def open_scores(directory: Path | str) -> Scores:
    """Open scores and check every byte against the manifest.

    Raises:
        ArtefactError: the directory holds no scores.
        CheckpointError: a file differs from the manifest.
    """
    directory = Path(directory)
    if not (directory / FACTS).is_file():
        raise ArtefactError(f"{directory} holds no {FACTS}; give a finished run of members")
    files.verify(directory)
    facts = files.read_json(directory / FACTS, what="scores")
    names = tuple(facts["names"])
    slices = {
        name: np.fromfile(directory / f"{name}.bin", dtype="<f4").reshape(len(names), int(length))
        for name, length in facts["tokens"].items()
    }
    return Scores(names, str(facts["identity"]), slices)


def joined(parts: Mapping[str, Scores]) -> Scores:
    """Return the scores of several runs as one, candidates named RUN/NAME.

    Raises:
        ConfigError: nothing was given, or the runs were scored on different text.
    """
    identities = {scores.identity for scores in parts.values()}
    if len(identities) != 1:
        raise ConfigError(
            f"an ensemble is scored on one text; the runs were scored on {len(identities)}: "
            + ", ".join(f"{name} on {scores.identity[:16]}" for name, scores in parts.items())
        )
    first = next(iter(parts.values()))
    names = tuple(f"{run}/{name}" for run, scores in parts.items() for name in scores.names)
    slices = {key: np.concatenate([scores.slices[key] for scores in parts.values()]) for key in first.slices}
    return Scores(names, first.identity, slices)
