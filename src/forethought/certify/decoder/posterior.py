"""A Gaussian over weights as a file, its divergence from the prior, and the mistakes of networks drawn from it.

Draws are normal quantiles of integers of a counter-based generator, so that every machine draws the same networks.

Legend: N examples, D parameters.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import ndtri
from torch import nn
from torch.func import functional_call

from forethought.certify.codes.message import MAX_MESSAGE_BYTES
from forethought.certify.decoder.base import Slot, draw, raw_words
from forethought.certify.decoder.rebuild import PRECISIONS
from forethought.certify.decoder.scoring import check_examples, mistakes
from forethought.core.errors import ArtefactError, DataError, InputError

MAGIC = b"FTGAUS1\n"
_BATCH = 2000


@dataclass(frozen=True)
class Posterior:
    """Q = N(mean, diag(deviation^2)) over D weights, in the numbers of its file: float32, kept in float64."""

    mean: np.ndarray
    deviation: np.ndarray

    def __post_init__(self) -> None:
        if self.mean.shape != self.deviation.shape or self.mean.ndim != 1 or not len(self.mean):
            raise InputError(
                f"means {self.mean.shape} and deviations {self.deviation.shape}; give one of each a weight"
            )
        if not (np.isfinite(self.mean).all() and np.isfinite(self.deviation).all() and (self.deviation > 0).all()):
            raise ArtefactError("a posterior holds finite means and finite deviations above 0")


def posterior_bytes(posterior: Posterior) -> bytes:
    """Return the file of a posterior: magic, u32 D, D float32 means, D float32 deviations, little-endian.

    Raises:
        InputError: it has more weights than a file may hold.
    """
    size = len(posterior.mean)
    if len(MAGIC) + 4 + 8 * size > MAX_MESSAGE_BYTES:
        raise InputError(f"a posterior over {size} weights exceeds the file of {MAX_MESSAGE_BYTES} bytes")
    numbers = [part.astype("<f4").tobytes() for part in (posterior.mean, posterior.deviation)]
    return b"".join([MAGIC, struct.pack("<I", size), *numbers])


def read_posterior(data: bytes, size: int) -> Posterior:
    """Return the posterior of a file.

    Raises:
        ArtefactError: the bytes are no posterior over `size` weights.
    """
    start = len(MAGIC) + 4
    if (
        data[: len(MAGIC)] != MAGIC
        or len(data) != start + 8 * size
        or data[len(MAGIC) : start] != struct.pack("<I", size)
    ):
        raise ArtefactError(f"the message is no posterior over the {size} weights of the prior's network")
    numbers = np.frombuffer(data, dtype="<f4", offset=start).astype(np.float64)
    return Posterior(numbers[:size], numbers[size:])


def centre_of(slots: Sequence[Slot], seed: int) -> np.ndarray:
    """Return the prior's centre [D]: the first weights of a seed, in float32 as training sees them, kept in float64."""
    return np.concatenate([draw(slot, seed) for slot in slots]).astype(np.float32).astype(np.float64)


def divergence_bits(posterior: Posterior, centre: np.ndarray, deviation: float) -> float:
    """Return KL(Q || N(centre, deviation^2)) in bits, rounded up."""
    ratio = np.square(posterior.deviation / deviation)
    moved = np.square((posterior.mean - centre) / deviation)
    total = 0.5 * math.fsum(moved + (ratio - 1.0 - np.log(ratio)))
    # Each term is right to a few units in the last place of numbers of the size of its parts.
    slack = 2.0**-49 * math.fsum(moved + ratio + 1.0 + np.abs(np.log(ratio)))
    return max(0.0, total + slack) / math.log(2.0) * (1.0 + 2.0**-50)


def normals(seed: int, stream: str, count: int, step: int = 0) -> np.ndarray:
    """Return standard normal numbers: quantiles of multiples of 2^-53 that are never 0 or 1."""
    return ndtri(((raw_words(seed, stream, count, step) >> np.uint64(11)) + 0.5) * 2.0**-53)


@torch.no_grad()
def drawn_mistakes(
    module: nn.Module,
    slots: Sequence[Slot],
    posterior: Posterior,
    examples: tuple[np.ndarray, np.ndarray],
    *,
    num_draws: int,
    seed: int,
    precision: str = "float64",
    apart: bool = False,
) -> int:
    """Return the mistakes of networks drawn from Q, each on all of (inputs [N, ...], labels [N]); ties are mistakes.

    `apart`: example i is scored by draw i alone, so that mistakes are independent where the examples are.

    Raises:
        DataError: the arrays do not fit each other or the network.
    """
    inputs, labels = examples
    check_examples(inputs, labels)
    dtype, errors = PRECISIONS[precision], 0
    x, y = torch.from_numpy(np.array(inputs)).to(dtype), torch.from_numpy(np.array(labels, dtype=np.int64))
    own = module.to(dtype).eval()
    for index in range(len(y) if apart else num_draws):
        numbers = posterior.mean + posterior.deviation * normals(seed, "certify.draws", len(posterior.mean), index)
        weights = as_weights(slots, numbers, dtype)
        rows = [slice(index, index + 1)] if apart else [slice(at, at + _BATCH) for at in range(0, len(y), _BATCH)]
        for row in rows:
            scores = functional_call(own, weights, (x[row],))
            if scores.ndim != 2 or int(y[row].max()) >= scores.shape[1]:
                raise DataError(f"a label is outside the classes of a network with outputs {tuple(scores.shape)}")
            errors += mistakes(scores, y[row])
    return errors


def as_weights(slots: Sequence[Slot], flat: np.ndarray, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return weights by name from a flat vector [D]."""
    pieces = torch.split(torch.from_numpy(flat).to(dtype), [slot.size for slot in slots])
    return {slot.name: piece.view(slot.shape) for slot, piece in zip(slots, pieces, strict=True)}
