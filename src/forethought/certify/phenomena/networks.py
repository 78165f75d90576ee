"""Small networks as functions of one flat vector, so that rays, paths and curvature are plain vector arithmetic.

Legend: R rays (any leading axes of the vector), N examples, D parameters, K classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from forethought.core.rng import generator, torch_generator


@dataclass(frozen=True)
class FlatMLP:
    """A ReLU network with these layer widths whose weights come as a vector [..., D]."""

    widths: tuple[int, ...]

    @property
    def num_parameters(self) -> int:
        """Weights and biases together."""
        return sum((fan_in + 1) * fan_out for fan_in, fan_out in self._layers())

    def __call__(self, vector: Tensor, inputs: Tensor) -> Tensor:
        """Return scores [..., N, K] of inputs [N, features] for every vector."""
        hidden, layers = inputs, self.unpack(vector)
        for number, (weight, bias) in enumerate(layers):
            hidden = hidden @ weight.transpose(-1, -2) + bias[..., None, :]
            if number < len(layers) - 1:
                hidden = torch.relu(hidden)
        return hidden

    def unpack(self, vector: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Return the (weight, bias) pairs, views of the vector."""
        pairs: list[tuple[Tensor, Tensor]] = []
        at = 0
        for fan_in, fan_out in self._layers():
            size = fan_in * fan_out
            weight = vector[..., at : at + size].unflatten(-1, (fan_out, fan_in))
            pairs.append((weight, vector[..., at + size : at + size + fan_out]))
            at += size + fan_out
        return pairs

    def deviations(self) -> Tensor:
        """Return the deviation [D] of the Gaussian law that `start` draws from: sqrt(2 / fan_in), biases too."""
        parts = [torch.full(((fan_in + 1) * fan_out,), math.sqrt(2.0 / fan_in)) for fan_in, fan_out in self._layers()]
        return torch.cat(parts)

    def start(self, seed: int, index: int = 0) -> Tensor:
        """Return first weights [D]; biases are drawn at a tenth of their prior deviation."""
        noise = torch.randn(self.num_parameters, generator=torch_generator(seed, "phenomena.start", 0, index))
        vector = noise * self.deviations()
        for _, bias in self.unpack(vector):
            bias.mul_(0.1)
        return vector

    def _layers(self) -> list[tuple[int, int]]:
        return list(zip(self.widths[:-1], self.widths[1:], strict=True))


def fit_vector(
    loss: Callable[[Tensor, int], Tensor], start: Tensor, *, steps: int, lr: float, rho: float = 0.0
) -> Tensor:
    """Minimise loss(vector, step) by Adam with a cosine schedule; rho > 0 takes the gradient of SAM (Foret 2021).

    SAM looks at the gradient where the loss is worst within a radius: e = rho g / |g|, then the gradient at w + e.
    """
    vector = start.clone().requires_grad_(True)
    optimiser = torch.optim.Adam([vector], lr=lr)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = lr * 0.5 * (1.0 + math.cos(math.pi * step / steps))
        (gradient,) = torch.autograd.grad(loss(vector, step), vector)
        if rho > 0.0:
            worse = (vector + rho * gradient / (gradient.norm() + 1e-12)).detach().requires_grad_(True)
            (gradient,) = torch.autograd.grad(loss(worse, step), worse)
        vector.grad = gradient
        optimiser.step()
    return vector.detach()


def batch_loss(
    model: FlatMLP, inputs: Tensor, labels: Tensor, *, seed: int, batch: int = 100
) -> Callable[[Tensor, int], Tensor]:
    """Return a loss(vector, step) on batches that are a function of the seed and the step."""

    def loss(vector: Tensor, step: int) -> Tensor:
        rows = torch.from_numpy(generator(seed, "phenomena.batch", step).choice(len(labels), min(batch, len(labels))))
        return functional.cross_entropy(model(vector, inputs[rows]), labels[rows])

    return loss


def error_rate(scores: Tensor, labels: Tensor) -> float:
    """Return the share of wrong classes."""
    return float((scores.argmax(-1) != labels).float().mean())
