"""The parts of a world model around its transformers: convolutional encoder, projectors, action embedder.

Legend: N rows, C channels, D latent width, A numbers of an action block.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from forethought.nn import Linear
from forethought.world.distributed import differentiable_sum, group_size

# Halvings stop at a map of at most this side, which keeps where things are without a wide last layer.
SMALLEST_MAP = 4
CHUNK_PIXELS = 1 << 18


class Conv2d(nn.Conv2d):
    """A convolution that starts at zero and leaves the global generator alone."""

    def reset_parameters(self) -> None:
        """Set the weight and the bias to zero."""
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)


class ConvEncoder(nn.Module):
    """Convolutions of stride 2, channels doubling, down to a map of about 4 x 4, then one linear layer."""

    def __init__(self, image_size: int, width: int, out_size: int) -> None:
        super().__init__()
        halvings = max(2, math.ceil(math.log2(image_size / SMALLEST_MAP) - 0.5))
        channels = [3, *(width << level for level in range(halvings))]
        self.convolutions = nn.ModuleList(
            Conv2d(before, after, 3, stride=2, padding=1) for before, after in pairwise(channels)
        )
        side = image_size
        for _ in range(halvings):
            side = (side + 1) // 2
        self.head = Linear(channels[-1] * side * side, out_size)

    def forward(self, images_NCHW: Tensor) -> Tensor:
        """Return features (N, D)."""
        # On a CPU a few images at a time pass through all layers, so that what one writes the next reads from cache:
        # 64 images of 64 px at a time cost 18 % less than 256 at once.
        on_cpu = images_NCHW.device.type == "cpu"
        few = max(1, CHUNK_PIXELS // images_NCHW[0, 0].numel()) if on_cpu and len(images_NCHW) else len(images_NCHW)
        maps = [self._maps(part) for part in images_NCHW.split(max(few, 1))]
        return self.head(torch.cat(maps) if len(maps) > 1 else maps[0])

    def _maps(self, images_NCHW: Tensor) -> Tensor:
        x = images_NCHW
        for convolution in self.convolutions:
            x = functional.gelu(convolution(x))
        # Frames come channels last and stay so through the convolutions; the order of the head's inputs is that of
        # channels first, so that it does not depend on the memory layout.
        return x.flatten(1)


class BatchNorm(nn.BatchNorm1d):
    """BatchNorm over rows whose statistics in training are those of the whole batch, over all processes."""

    def forward(self, x_ND: Tensor) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Normalise the columns of x_ND."""
        if not self.training or group_size() == 1:
            return super().forward(x_ND)
        wide = x_ND.float()
        sums = differentiable_sum(torch.stack([wide.sum(0), wide.square().sum(0), torch.full_like(wide[0], len(wide))]))
        count = sums[2]
        mean = sums[0] / count
        variance = (sums[1] / count - mean.square()).clamp_min(0)
        self._remember(mean.detach(), variance.detach(), float(count[0]))
        normal = (wide - mean) * torch.rsqrt(variance + self.eps)
        return (normal * self.weight + self.bias).to(x_ND.dtype)

    @torch.no_grad()
    def _remember(self, mean: Tensor, variance: Tensor, count: float) -> None:
        if self.running_mean is None or self.running_var is None or self.num_batches_tracked is None:
            return
        self.num_batches_tracked += 1
        share = 1.0 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, share)
        self.running_var.lerp_(variance * (count / max(count - 1, 1)), share)


class Projector(nn.Module):
    """Linear, BatchNorm, GELU, linear; LayerNorm in BatchNorm's place puts SIGReg out of reach (40 % against 100 %)."""

    def __init__(self, in_size: int, middle: int, out_size: int) -> None:
        super().__init__()
        self.up = Linear(in_size, middle)
        self.norm = BatchNorm(middle)
        self.down = Linear(middle, out_size)

    def forward(self, x: Tensor) -> Tensor:
        """Map x[..., in_size] to [..., out_size]; all rows together are BatchNorm's batch."""
        rows = self.up(x.reshape(-1, x.shape[-1]))
        return self.down(functional.gelu(self.norm(rows))).reshape(*x.shape[:-1], -1)


class ActionEmbedder(nn.Module):
    """An action block to the width of a latent: a linear bottleneck, then Linear, SiLU, Linear."""

    def __init__(self, block_dim: int, bottleneck: int, out_size: int) -> None:
        super().__init__()
        self.squeeze = Linear(block_dim, bottleneck)
        self.up = Linear(bottleneck, 4 * out_size)
        self.down = Linear(4 * out_size, out_size)

    def forward(self, blocks: Tensor) -> Tensor:
        """Map normalised blocks [..., A] to [..., D]."""
        return self.down(functional.silu(self.up(self.squeeze(blocks))))


@torch.no_grad()
def recalibrate(module: nn.Module, run: Callable[[nn.Module], Iterable[object]]) -> None:
    """Take the statistics of every BatchNorm anew: the plain average over the passes that `run` makes, without dropout.

    Running statistics lag behind the weights and saw dropout; without this the evaluation loss of a short run was up to
    40 times the training loss, and recalibrating alone was worth 20 points of success.
    """
    norms = [part for part in module.modules() if isinstance(part, BatchNorm)]
    with _calibrating(module, norms):
        for _ in run(module):
            pass


@contextmanager
def _calibrating(module: nn.Module, norms: list[BatchNorm]) -> Generator[None, None, None]:
    modes = [(part, part.training) for part in module.modules()]
    momenta = [norm.momentum for norm in norms]
    module.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum, norm.training = None, True
    try:
        yield
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
        for part, training in modes:
            part.training = training
