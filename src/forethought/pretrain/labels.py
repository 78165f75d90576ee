"""Soft labels: a teacher's laws over the windows of a text, computed once, kept as the top entries and their tail.

Whole laws are kept where they fit (2 bytes a token of the vocabulary and position). Where they do not, a position keeps
its J most probable tokens and the probability of all others together, which the student is asked to spread as the
text's own frequencies do. A small teacher's tail is heavy: with 64 of 1,024 tokens kept, 30 % of the probability was
tail, students came within 0.04 nats of the completed law and stayed 0.17 from the true one (docs/pretraining.md).

Legend: W windows, T time, V vocabulary, J kept entries, K students, B batch, N = B*T.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from forethought.core import files
from forethought.core.errors import ArtefactError, ConfigError
from forethought.data import IGNORED_TARGET
from forethought.nn import LanguageModel
from forethought.pretrain.batching import Windows

FACTS, TOKENS, LOGS, PRIOR = "labels.json", "tokens.bin", "logs.bin", "prior.bin"
_SMALLEST = 1e-8
_MAX_BYTES, _TOP = 2 << 30, 256


@dataclass(frozen=True)
class SoftLabels:
    """Cached laws: kept tokens and their log-probabilities [W, T, J], and the law [V] that spreads what they leave.

    Without `tokens_WTJ` the laws are whole and in the vocabulary's order.
    """

    tokens_WTJ: NDArray[np.uint16] | NDArray[np.uint32] | None
    logs_WTJ: NDArray[np.float16]
    prior_V: NDArray[np.float32]
    temperature: float
    identity: str

    def divergence(self, logits_KNV: Tensor, targets_KN: Tensor, windows_KB: NDArray[np.int64]) -> Tensor:
        """Return KL(teacher || student) of each student (K), over positions that count, at the cached temperature."""
        shape = (*targets_KN.shape, self.logs_WTJ.shape[-1])
        logs_KNJ = torch.from_numpy(self.logs_WTJ[windows_KB].astype(np.float32)).to(logits_KNV.device).view(shape)
        student_KNV = torch.log_softmax(logits_KNV.float() / self.temperature, dim=-1)
        probability_KNJ = logs_KNJ.exp()
        if self.tokens_WTJ is None:
            each_KN = (probability_KNJ * (logs_KNJ - student_KNV)).sum(-1)
        else:
            kept_KNJ = torch.from_numpy(self.tokens_WTJ[windows_KB].astype(np.int64)).to(logits_KNV.device).view(shape)
            student_KNJ = student_KNV.gather(-1, kept_KNJ)
            prior_V = torch.from_numpy(self.prior_V).to(logits_KNV.device)
            each_KN = (probability_KNJ * (logs_KNJ - student_KNJ)).sum(-1)
            each_KN = each_KN + _tail(probability_KNJ, student_KNV, student_KNJ, kept_KNJ, prior_V)
        counts_KN = targets_KN != IGNORED_TARGET
        return (each_KN * counts_KN).sum(1) / counts_KN.sum(1).clamp_min(1)


def _tail(
    probability_KNJ: Tensor, student_KNV: Tensor, student_KNJ: Tensor, kept_KNJ: Tensor, prior_V: Tensor
) -> Tensor:
    """The part of the divergence outside the kept tokens, where the teacher's law is rest * prior / (its sum there)."""
    prior_KNJ = prior_V[kept_KNJ]
    rest_KN = (1.0 - probability_KNJ.sum(-1)).clamp_min(0.0)
    outside_KN = (1.0 - prior_KNJ.sum(-1)).clamp_min(_SMALLEST)
    share_KN = rest_KN / outside_KN
    # Sums over the outside are those over everything less those over the kept, so no table of [N, V] is made for it.
    own_KN = (prior_V * prior_V.log()).sum() - (prior_KNJ * prior_KNJ.log()).sum(-1)
    cross_KN = student_KNV @ prior_V - (prior_KNJ * student_KNJ).sum(-1)
    return rest_KN * share_KN.clamp_min(_SMALLEST).log() + share_KN * (own_KN - cross_KN)


def write_labels(
    directory: Path,
    teachers: Sequence[LanguageModel],
    windows: Windows,
    *,
    top: int,
    temperature: float,
    identity: str,
    batch_size: int = 16,
) -> SoftLabels:
    """Cache the averaged probabilities of the teachers over fixed windows and publish them; what is there is opened.

    `top` is how many tokens a position keeps; 0: all, or 256 where whole laws would take more than 2 GiB.

    Raises:
        ConfigError: no teacher, teachers of different vocabularies, or top is negative.
        ArtefactError: the directory holds labels of something else.
    """
    if directory.exists():
        return open_labels(directory, identity)
    sizes = {teacher.config.vocab_size for teacher in teachers}
    if len(sizes) != 1 or top < 0:
        raise ConfigError(f"soft labels need teachers of one vocabulary and top of at least 0; given {sizes}, {top}")
    vocab_size = sizes.pop()
    num_positions = windows.tokens_WT.size
    top = min(top or (vocab_size if 2 * num_positions * vocab_size <= _MAX_BYTES else _TOP), vocab_size)
    kind = np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")
    shape = (*windows.tokens_WT.shape, top)
    with files.staged(directory) as staging:
        with files.open_write(staging / TOKENS) as tokens, files.open_write(staging / LOGS) as logs:
            for first in range(0, len(windows.tokens_WT), batch_size):
                law = averaged_law(teachers, windows.tokens_WT[first : first + batch_size], temperature)
                if top < vocab_size:
                    law, kept = law.topk(top, dim=-1)
                    tokens.write(kept.cpu().numpy().astype(kind).tobytes())
                logs.write(law.clamp_min(_SMALLEST).log().cpu().numpy().astype("<f2").tobytes())
        files.write_bytes(staging / PRIOR, _frequencies(windows, vocab_size).tobytes())
        facts = {"format": 1, "kind": "soft-labels", "shape": list(shape), "dtype": kind.str, "identity": identity}
        files.write_json(staging / FACTS, facts | {"temperature": temperature, "teachers": len(teachers)})
    return open_labels(directory, identity)


def open_labels(directory: Path, identity: str | None = None) -> SoftLabels:
    """Open cached labels and check every byte against the manifest.

    Raises:
        ArtefactError: these are no labels, or labels of other windows or another teacher than `identity`.
    """
    files.verify(directory)
    facts = files.read_json(directory / FACTS, what="soft labels")
    found = str(facts.get("identity"))
    if facts.get("kind") != "soft-labels" or (identity is not None and found != identity):
        raise ArtefactError(
            f"{directory} holds the labels {found[:16]}, not {str(identity)[:16]}; the text or the teachers changed: "
            "remove it or give another directory"
        )
    shape = tuple(facts["shape"])
    has_tokens = (directory / TOKENS).stat().st_size > 0
    return SoftLabels(
        np.memmap(directory / TOKENS, dtype=facts["dtype"], mode="r", shape=shape) if has_tokens else None,
        np.memmap(directory / LOGS, dtype="<f2", mode="r", shape=shape),
        np.fromfile(directory / PRIOR, dtype="<f4"),
        float(facts["temperature"]),
        found,
    )


def _frequencies(windows: Windows, vocab_size: int) -> NDArray[np.float32]:
    targets = windows.targets_WT[windows.targets_WT != IGNORED_TARGET]
    counts = np.bincount(targets, minlength=vocab_size) + 1.0
    return (counts / counts.sum()).astype("<f4")


@torch.no_grad()
def averaged_law(teachers: Sequence[nn.Module], tokens_BT: NDArray[np.int64], temperature: float) -> Tensor:
    """Return the mean of the teachers' probabilities [B, T, V], each softened by the temperature."""
    device = next(teachers[0].parameters()).device
    tokens = torch.from_numpy(tokens_BT).to(device)
    total: Tensor | None = None
    for teacher in teachers:
        law = torch.softmax(teacher(tokens).float() / temperature, dim=-1)
        total = law if total is None else total + law
    if total is None:
        raise ConfigError("no teacher was given; soft labels need at least one")
    return total / len(teachers)
