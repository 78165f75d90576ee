"""The closed table of networks that a decoder can rebuild from their settings; nothing is ever named by import path.

Legend: B batch, T tokens, V vocabulary, E embedding width, C channels, H height, W width, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from forethought.certify.decoder.recipe import MAX_PARAMETERS
from forethought.core.config import config, from_dict
from forethought.core.errors import ArtefactError, ConfigError, unknown_name
from forethought.nn import Embedding, LanguageModel, Linear, TransformerConfig, num_parameters

MAX_ACTIVATIONS = 1 << 27
Width = Annotated[int, Field(ge=1, le=1 << 20)]
Constant = Annotated[float, Field(ge=-1e6, le=1e6)]


@config
class MLPSettings:
    """A ReLU network on flattened inputs, which are first mapped to (x - shift) * scale with declared constants."""

    num_inputs: Width
    num_classes: Width
    hidden: Annotated[tuple[Width, ...], Field(max_length=64)] = ()
    shift: Constant = 0.0
    scale: Constant = 1.0


@config
class ConvSettings:
    """3 x 3 (or `kernel`) convolutions with ReLU and 2 x 2 max pooling each, then a ReLU layer and the classes."""

    height: Annotated[int, Field(ge=1, le=4096)]
    width: Annotated[int, Field(ge=1, le=4096)]
    num_classes: Width
    image_channels: Annotated[int, Field(ge=1, le=4096)] = 1
    channels: Annotated[tuple[Width, ...], Field(min_length=1, max_length=16)] = (8, 16)
    kernel: Annotated[int, Field(ge=1, le=63)] = 3
    hidden: Width = 64
    shift: Constant = 0.0
    scale: Constant = 1.0

    def __post_init__(self) -> None:
        if self.kernel % 2 == 0:
            raise ConfigError(f"kernel {self.kernel} is even; give an odd one, which keeps the size of the image")
        if min(self.height, self.width) >> len(self.channels) < 1:
            raise ConfigError(f"{len(self.channels)} poolings leave nothing of {self.height} x {self.width} pixels")


@config
class WindowSettings:
    """A language model of a fixed window: embeddings of the last `context` tokens, one hidden layer, next token."""

    vocab_size: Annotated[int, Field(ge=2, le=1 << 24)]
    context: Annotated[int, Field(ge=1, le=4096)] = 8
    embedding: Width = 10
    hidden: Width = 64


@dataclass(frozen=True)
class Architecture:
    """A network of the table: its settings, its builder, and its parameters and activations by arithmetic alone.

    `num_activations` is what one example (of a transformer: one block of so many tokens) keeps in memory, in numbers.
    """

    settings: type
    build: Callable[[Any], nn.Module]
    num_parameters: Callable[[Any], int]
    num_activations: Callable[[Any, int], int]


class MLP(nn.Module):
    """The network of MLPSettings: inputs [B, ...] to logits_BK."""

    def __init__(self, settings: MLPSettings) -> None:
        super().__init__()
        self.settings = settings
        sizes = (settings.num_inputs, *settings.hidden, settings.num_classes)
        self.layers = nn.ModuleList(Linear(a, b) for a, b in pairwise(sizes))

    def forward(self, x: Tensor) -> Tensor:
        """Return logits_BK."""
        x = (x.flatten(1) - self.settings.shift) * self.settings.scale
        for layer in self.layers[:-1]:
            x = functional.relu(layer(x))
        return self.layers[-1](x)


class ConvNet(nn.Module):
    """The network of ConvSettings: images [B, H, W] or [B, C, H, W] to logits_BK."""

    def __init__(self, settings: ConvSettings) -> None:
        super().__init__()
        self.settings = settings
        sizes = (settings.image_channels, *settings.channels)
        self.convolutions = nn.ModuleList(
            nn.Conv2d(a, b, settings.kernel, padding=settings.kernel // 2) for a, b in pairwise(sizes)
        )
        self.hidden = Linear(_conv_features(settings), settings.hidden)
        self.head = Linear(settings.hidden, settings.num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits_BK."""
        x = x[:, None] if x.ndim == 3 else x
        x = (x - self.settings.shift) * self.settings.scale
        for convolution in self.convolutions:
            x = functional.max_pool2d(functional.relu(convolution(x)), 2)
        return self.head(functional.relu(self.hidden(x.flatten(1))))


class WindowModel(nn.Module):
    """The network of WindowSettings: the last tokens_BT (T = context) to logits_BV of the next one."""

    def __init__(self, settings: WindowSettings) -> None:
        super().__init__()
        self.settings = settings
        self.embedding = Embedding(settings.vocab_size, settings.embedding)
        self.hidden = Linear(settings.context * settings.embedding, settings.hidden)
        self.head = Linear(settings.hidden, settings.vocab_size)

    def forward(self, tokens_BT: Tensor) -> Tensor:
        """Return logits_BV."""
        return self.head(functional.relu(self.hidden(self.embedding(tokens_BT).flatten(1))))


def _conv_features(settings: ConvSettings) -> int:
    shrink = len(settings.channels)
    return settings.channels[-1] * (settings.height >> shrink) * (settings.width >> shrink)


def _mlp_size(settings: MLPSettings) -> int:
    sizes = (settings.num_inputs, *settings.hidden, settings.num_classes)
    return sum((a + 1) * b for a, b in pairwise(sizes))


def _conv_size(settings: ConvSettings) -> int:
    sizes = (settings.image_channels, *settings.channels)
    kernels = sum((a * settings.kernel**2 + 1) * b for a, b in pairwise(sizes))
    head = (_conv_features(settings) + 1) * settings.hidden + (settings.hidden + 1) * settings.num_classes
    return kernels + head


def _window_size(settings: WindowSettings) -> int:
    tables = settings.vocab_size * settings.embedding
    return (
        tables
        + (settings.context * settings.embedding + 1) * settings.hidden
        + (settings.hidden + 1) * settings.vocab_size
    )


def _conv_activations(settings: ConvSettings, context: int) -> int:
    del context
    widest = max(settings.image_channels, *settings.channels)
    return 2 * settings.height * settings.width * widest * settings.kernel**2 + settings.hidden + settings.num_classes


def _window_activations(settings: WindowSettings, context: int) -> int:
    del context
    return settings.context * settings.embedding + 2 * settings.hidden + 4 * settings.vocab_size


def _transformer_activations(settings: TransformerConfig, context: int) -> int:
    block = settings.block
    width = 8 * block.hidden_size + 4 * block.resolved_intermediate_size + 4 * settings.vocab_size
    return context * (width + 4 * block.num_heads * (block.resolved_head_dim + context))


ARCHITECTURES: dict[str, Architecture] = {
    "mlp": Architecture(MLPSettings, MLP, _mlp_size, lambda s, _: 2 * max(s.num_inputs, *s.hidden, s.num_classes)),
    "conv": Architecture(ConvSettings, ConvNet, _conv_size, _conv_activations),
    "window": Architecture(WindowSettings, WindowModel, _window_size, _window_activations),
    "transformer": Architecture(
        TransformerConfig, LanguageModel, lambda s: num_parameters(s).total, _transformer_activations
    ),
}
GIVEN = "given"


def check_settings(name: str, values: Mapping[str, Any]) -> object:
    """Return the settings of an architecture of the table, refused before anything is allocated if too large.

    Raises:
        ConfigError: the name is not in the table or the settings do not fit it.
        ArtefactError: the network would have more parameters than a certificate may.
    """
    if name not in ARCHITECTURES:
        raise unknown_name("architecture", name, [*ARCHITECTURES, GIVEN])
    architecture = ARCHITECTURES[name]
    settings = from_dict(architecture.settings, values, source=f"the settings of {name!r}")
    size = architecture.num_parameters(settings)
    if size > MAX_PARAMETERS:
        raise ArtefactError(f"{name} of {size} parameters is refused; a certificate may hold {MAX_PARAMETERS}")
    return settings


def build_module(name: str, values: Mapping[str, Any]) -> nn.Module:
    """Build a network of the table on the meta device: shapes and code, no memory for weights and no random draw.

    Raises:
        ConfigError: as check_settings.
        ArtefactError: as check_settings.
    """
    settings = check_settings(name, values)
    with torch.device("meta"):
        return ARCHITECTURES[name].build(settings).eval()


def batch_within(name: str, values: Mapping[str, Any], batch_size: int, context: int = 1) -> int:
    """Return the declared batch size, or as many examples as fit the memory that scoring may take.

    Raises:
        ArtefactError: not even one example fits.
    """
    if name == GIVEN:
        return batch_size
    each = ARCHITECTURES[name].num_activations(check_settings(name, values), context)
    if each > MAX_ACTIVATIONS:
        raise ArtefactError(f"one example of this {name} takes {each} numbers in memory; {MAX_ACTIVATIONS} are allowed")
    return max(1, min(batch_size, MAX_ACTIVATIONS // each))


def num_inputs_of(module: nn.Module) -> int | None:
    """Return how many numbers one input of a classifier of the table has, or None for other modules."""
    settings = getattr(module, "settings", None)
    if isinstance(settings, MLPSettings):
        return settings.num_inputs
    if isinstance(settings, ConvSettings):
        return math.prod((settings.image_channels, settings.height, settings.width))
    return None
