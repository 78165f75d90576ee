"""A vision transformer of any patch and image size, made of the house's block (arXiv 2010.11929).

Legend: N images, C channels, H rows, W columns, P patches, D width.
"""

from __future__ import annotations

from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from forethought.core.config import config
from forethought.core.errors import ConfigError, InputError
from forethought.nn.block import Block, build_norm
from forethought.nn.config import BlockConfig, Depth

Pixels = Annotated[int, Field(ge=1, le=1 << 13)]


@config
class ViTConfig:
    """The shape of a vision transformer; the image side must be a multiple of the patch side.

    Raises:
        ConfigError: a size is not positive, or the patch does not divide the image.
    """

    block: BlockConfig
    image_size: Pixels = 224
    patch_size: Pixels = 14
    num_layers: Depth = 12
    num_channels: Annotated[int, Field(ge=1, le=64)] = 3

    def __post_init__(self) -> None:
        if self.image_size % self.patch_size:
            raise ConfigError(
                f"image_size {self.image_size} is not a multiple of patch_size {self.patch_size}; "
                "choose a patch that divides the side of the image"
            )
        if self.block.condition_size is not None:
            raise ConfigError("an image encoder takes no condition; leave condition_size out of its block")

    @property
    def num_patches(self) -> int:
        """The number of patches of an image of the configured size."""
        return (self.image_size // self.patch_size) ** 2


class ViT(nn.Module):
    """Images to token features: a class token, then the patches row by row, after the final norm.

    Images of another size than the configured one are read too, with the positions interpolated.
    """

    def __init__(self, config: ViTConfig) -> None:
        super().__init__()
        self.config = config
        width = config.block.hidden_size
        self.patches = PatchEmbedding(config.num_channels, width, config.patch_size)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.zeros(1, config.num_patches + 1, width))
        self.blocks = nn.ModuleList(Block(config.block, layer) for layer in range(config.num_layers))
        self.norm = build_norm(config.block)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Return features (N, 1 + P, D); the first token is the summary of the image.

        Raises:
            InputError: the images are not (N, C, H, W) with the configured channels and sides of whole patches.
        """
        x_NPD, grid = self.patches(images_NCHW)
        x_NPD = torch.cat([self.class_token.expand(len(x_NPD), -1, -1), x_NPD], dim=1) + self._positions(grid)
        for block in self.blocks:
            x_NPD = block(x_NPD)
        return self.norm(x_NPD)

    def _positions(self, grid: tuple[int, int]) -> Tensor:
        side = self.config.image_size // self.config.patch_size
        if grid == (side, side):
            return self.positions
        own = self.positions[:, 1:].unflatten(1, (side, side)).permute(0, 3, 1, 2)
        other = functional.interpolate(own, size=grid, mode="bicubic", align_corners=False)
        return torch.cat([self.positions[:, :1], other.flatten(2).transpose(1, 2)], dim=1)


class PatchEmbedding(nn.Module):
    """Cuts images into square patches and maps each to a token; the weight has the shape of a convolution's."""

    def __init__(self, num_channels: int, width: int, patch: int) -> None:
        super().__init__()
        self.patch, self.num_channels = patch, num_channels
        self.weight = nn.Parameter(torch.zeros(width, num_channels, patch, patch))
        self.bias = nn.Parameter(torch.zeros(width))

    def forward(self, images_NCHW: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Return tokens (N, P, D) and the grid of patches (rows, columns).

        Raises:
            InputError: the images do not fit.
        """
        shape, patch = tuple(images_NCHW.shape), self.patch
        if len(shape) != 4 or shape[1] != self.num_channels or shape[2] % patch or shape[3] % patch or 0 in shape:
            raise InputError(
                f"images have the shape {shape}; give (N, {self.num_channels}, H, W) with H and W multiples of {patch}"
            )
        grid = (shape[2] // patch, shape[3] // patch)
        x = functional.conv2d(images_NCHW, self.weight, self.bias, stride=patch)
        return x.flatten(2).transpose(1, 2), grid
