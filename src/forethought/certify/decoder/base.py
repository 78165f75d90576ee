"""First weights that are the same on every machine: integers of a counter-based generator, scaled by a rule.

A uniform draw is a multiple of 2^-52, and every further step is one correctly rounded operation; a normal draw would
depend on a library's logarithm and on the version of the sampler.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from forethought.core.errors import ArtefactError
from forethought.core.rng import generator
from forethought.nn import LanguageModel, RMSNorm

_RESIDUAL = ("attention.output.weight", "mlp.down.weight")


@dataclass(frozen=True)
class Slot:
    """One parameter tensor: its place in the flat vector of weights, and how its first values are drawn.

    First values are uniform in centre +- half_width; `scale` is the unit in which a subspace moves them.
    """

    name: str
    shape: tuple[int, ...]
    centre: float
    half_width: float
    scale: float

    @property
    def size(self) -> int:
        """The number of weights."""
        return math.prod(self.shape)


def slots_of(module: nn.Module) -> list[Slot]:
    """Return the parameter tensors of a module in its own order, tied ones once, by the type of their owner.

    Norm scales start at 1. Matrices and kernels, with biases: uniform within 1 / sqrt(fan_in); in a transformer of
    forethought.nn its own standard deviations and zero biases.
    """
    language_model = isinstance(module, LanguageModel)
    num_blocks = len(module.blocks) if isinstance(module, LanguageModel) else 0
    found: dict[int, Slot] = {}
    for prefix, owner in module.named_modules():
        for leaf, parameter in owner.named_parameters(recurse=False):
            name = f"{prefix}.{leaf}" if prefix else leaf
            if id(parameter) not in found:
                rule = _transformer_rule if language_model else _plain_rule
                centre, half_width, scale = rule(name, leaf, owner, parameter, num_blocks)
                found[id(parameter)] = Slot(name, tuple(parameter.shape), centre, half_width, scale)
    return list(found.values())


def draw(slot: Slot, seed: int) -> np.ndarray:
    """Return the first values of a tensor, flat, in float64: a function of the seed, the name and the shape alone."""
    if slot.half_width == 0.0:
        return np.full(slot.size, slot.centre)
    return slot.centre + slot.half_width * symmetric_uniforms(seed, f"certify.base.{slot.name}", slot.size)


def symmetric_uniforms(seed: int, stream: str, count: int) -> np.ndarray:
    """Return `count` multiples of 2^-52 in [-1, 1)."""
    return (raw_words(seed, stream, count) >> np.uint64(11)).astype(np.float64) * 2.0**-52 - 1.0


def signs(seed: int, stream: str, count: int, step: int = 0) -> np.ndarray:
    """Return `count` random signs as int8."""
    words = raw_words(seed, stream, -(-count // 64), step).astype("<u8")
    bits = np.unpackbits(words.view(np.uint8), bitorder="little", count=count)
    return (bits.astype(np.int8) << 1) - 1


def raw_words(seed: int, stream: str, count: int, step: int = 0) -> np.ndarray:
    """Return 64-bit words of the counter-based generator; NumPy keeps these streams the same for ever."""
    return np.asarray(generator(seed, stream, step).bit_generator.random_raw(count), dtype=np.uint64)


def fingerprint_parameters(parameters: Mapping[str, Tensor]) -> str:
    """Return the SHA-256 of named tensors: names, shapes and float32 values, sorted by name."""
    state = hashlib.sha256()
    for name in sorted(parameters):
        tensor = parameters[name].detach().to(device="cpu", dtype=torch.float32).contiguous()
        state.update(f"{name}\0{tuple(tensor.shape)}\0".encode())
        state.update(tensor.numpy().astype("<f4").tobytes())
    return state.hexdigest()


def given_values(slots: list[Slot], parameters: Mapping[str, Tensor], sha256: str) -> dict[str, np.ndarray]:
    """Return given base weights by name, checked against the fingerprint that the certificate declares.

    Raises:
        ArtefactError: a tensor is missing or of another shape, or the weights are not the declared ones.
    """
    wanted = {slot.name: slot.shape for slot in slots}
    shapes = {name: tuple(tensor.shape) for name, tensor in parameters.items()}
    if wrong := sorted(name for name in wanted.keys() | shapes.keys() if wanted.get(name) != shapes.get(name)):
        raise ArtefactError(f"the base weights given do not fit the network, first in {wrong[0]!r}")
    if fingerprint_parameters(parameters) != sha256:
        raise ArtefactError("the base weights given are not the declared ones: their SHA-256 differs")
    return {name: parameters[name].detach().to(torch.float64).cpu().numpy().reshape(-1) for name in wanted}


def _plain_rule(
    name: str, leaf: str, owner: nn.Module, parameter: nn.Parameter, num_blocks: int
) -> tuple[float, float, float]:
    del name, num_blocks
    if isinstance(owner, nn.Embedding):
        return 0.0, 1.0, 1.0 / math.sqrt(3.0)
    weight = getattr(owner, "weight", None)
    if parameter.ndim >= 2 or (leaf == "bias" and isinstance(weight, Tensor) and weight.ndim >= 2):
        matrix = parameter if parameter.ndim >= 2 or not isinstance(weight, Tensor) else weight
        half_width = 1.0 / math.sqrt(max(1, math.prod(matrix.shape[1:])))
        return 0.0, half_width, half_width / math.sqrt(3.0)
    return (1.0 if leaf == "weight" else 0.0), 0.0, 0.1


def _transformer_rule(
    name: str, leaf: str, owner: nn.Module, parameter: nn.Parameter, num_blocks: int
) -> tuple[float, float, float]:
    if leaf == "bias":
        return 0.0, 0.0, 0.02
    if isinstance(owner, RMSNorm):
        return 1.0, 0.0, 0.1
    if isinstance(owner, nn.Embedding) or name.endswith("unembedding.weight"):
        std = 0.02
    else:
        std = math.sqrt(0.4 / math.prod(parameter.shape[1:]))
        if name.endswith(_RESIDUAL):
            std /= math.sqrt(2 * num_blocks)
    return 0.0, math.sqrt(3.0) * std, std
