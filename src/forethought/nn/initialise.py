"""First weights: every tensor from a generator of its own, named by the tensor, whatever the order of building."""

from __future__ import annotations

import math

import torch
from torch import nn

from forethought.core.errors import ConfigError
from forethought.core.rng import torch_generator
from forethought.nn.block import Block, Modulation
from forethought.nn.layers import RMSNorm

EMBEDDING_STD = 0.02
_RESIDUAL = ("attention.output.weight", "mlp.down.weight")


@torch.no_grad()
def initialise(module: nn.Module, seed: int) -> None:
    """Draw every parameter of a module that is made of this room's layers, and nothing from the global generator.

    A tensor's values are a function of the seed, its name and its shape alone, on whatever device and in whatever type
    it lives (drawn in fp32 on the CPU). Embeddings and output heads: normal, std 0.02. Other matrices: normal, std
    sqrt(2 / (5 fan_in)), which is 0.02 at a width of 1000 and keeps activations alike at smaller ones (arXiv
    1910.05895); the two that write to the residual stream are divided by sqrt(2 * number of blocks) as in GPT-2. Norm
    scales: 1. Biases and adaLN projections: 0.

    Raises:
        ConfigError: a parameter belongs to no known kind of layer, or the seed is out of range.
    """
    num_blocks = sum(isinstance(each, Block) for each in module.modules())
    modulated = {id(p) for each in module.modules() if isinstance(each, Modulation) for p in each.parameters()}
    for prefix, owner in module.named_modules():
        for leaf, parameter in owner.named_parameters(recurse=False):
            name = f"{prefix}.{leaf}" if prefix else leaf
            if id(parameter) in modulated or leaf == "bias":
                parameter.zero_()
            elif isinstance(owner, RMSNorm | nn.LayerNorm | nn.BatchNorm1d):
                parameter.fill_(1.0)
            else:
                _draw(parameter, seed, name, _std(name, owner, parameter, num_blocks))


def _std(name: str, owner: nn.Module, parameter: nn.Parameter, num_blocks: int) -> float:
    if parameter.ndim < 2:
        raise ConfigError(
            f"no first value is known for parameter {name!r} of {type(owner).__name__} with shape "
            f"{tuple(parameter.shape)}; use the layers of forethought.nn, or set it after initialise"
        )
    if isinstance(owner, nn.Embedding) or name.endswith("unembedding.weight"):
        return EMBEDDING_STD
    if not isinstance(owner, nn.Linear | nn.modules.conv._ConvNd):
        return EMBEDDING_STD  # a bare table, such as learned positions
    std = math.sqrt(0.4 / math.prod(parameter.shape[1:]))
    return std / math.sqrt(2 * num_blocks) if name.endswith(_RESIDUAL) and num_blocks else std


def _draw(parameter: nn.Parameter, seed: int, name: str, std: float) -> None:
    if parameter.is_meta:
        raise ConfigError(f"parameter {name!r} is on the meta device; call to_empty(device=...) before initialise")
    generator = torch_generator(seed, f"init.{name}")
    parameter.copy_(torch.randn(parameter.shape, generator=generator, device="cpu", dtype=torch.float32).mul_(std))
