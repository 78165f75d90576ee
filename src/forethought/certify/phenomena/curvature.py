"""Curvature without matrices: Hessian- and GGN-vector products, Lanczos, and traces of functions of a spectrum.

Legend: D parameters, k Lanczos steps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forethought.core.errors import InputError
from forethought.core.rng import torch_generator

Product = Callable[[Tensor], Tensor]


def hessian_product(loss: Callable[[Tensor], Tensor], vector: Tensor) -> Product:
    """Return v -> H v for the Hessian of a scalar loss at a vector [D] (the gradient of gradient times v)."""

    def product(direction: Tensor) -> Tensor:
        point = vector.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(loss(point), point, create_graph=True)
        return torch.autograd.grad(gradient, point, grad_outputs=direction)[0]

    return product


def ggn_product(
    scores: Callable[[Tensor], Tensor], loss_of_scores: Callable[[Tensor], Tensor], vector: Tensor
) -> Product:
    """Return v -> J' H_out J v, the generalised Gauss-Newton matrix, which is never negative for a convex loss.

    J v comes from differentiating u -> J' u, which is linear in u.
    """

    def product(direction: Tensor) -> Tensor:
        point = vector.detach().requires_grad_(True)
        outputs = scores(point)
        probe = torch.zeros_like(outputs, requires_grad=True)
        (pulled,) = torch.autograd.grad(outputs, point, grad_outputs=probe, create_graph=True)
        (change,) = torch.autograd.grad(pulled, probe, grad_outputs=direction, retain_graph=True)
        curved = hessian_product(loss_of_scores, outputs.detach())(change.detach())
        return torch.autograd.grad(outputs, point, grad_outputs=curved)[0]

    return product


def lanczos(product: Product, start: Tensor, steps: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return Ritz values [k] and the squared first components [k] of the Ritz vectors, for a symmetric product.

    Every new vector is made orthogonal to all before it, twice; without that, eigenvalues appear several times.
    """
    basis = [start / start.norm()]
    diagonal: list[float] = []
    beside: list[float] = []
    for step in range(min(steps, start.numel())):
        image = product(basis[-1])
        diagonal.append(float(image @ basis[-1]))
        span = torch.stack(basis)
        for _ in range(2):
            image = image - span.T @ (span @ image)
        length = float(image.norm())
        if step + 1 == min(steps, start.numel()) or length < 1e-10 * max(1.0, max(map(abs, diagonal))):
            break
        beside.append(length)
        basis.append(image / length)
    matrix = np.diag(diagonal) + np.diag(beside, 1) + np.diag(beside, -1)
    values, vectors = np.linalg.eigh(matrix)
    # Only the first row counts; squaring the whole matrix gives plausible and wrong spectra.
    return values, vectors[0] ** 2


@dataclass(frozen=True)
class Spectrum:
    """A symmetric operator known through Lanczos runs from random probes: f's trace is a mean over the probes."""

    size: int
    values: tuple[NDArray[np.float64], ...]
    masses: tuple[NDArray[np.float64], ...]

    def trace(self, function: Callable[[NDArray[np.float64]], NDArray[np.float64]]) -> tuple[float, float]:
        """Return the trace of f(operator) and its standard error (stochastic Lanczos quadrature, Ubaru et al. 2017)."""
        found = [
            self.size * float((mass * function(each)).sum())
            for each, mass in zip(self.values, self.masses, strict=True)
        ]
        error = float(np.std(found, ddof=1) / np.sqrt(len(found))) if len(found) > 1 else float("nan")
        return float(np.mean(found)), error

    def effective_dimension(self, alpha: float) -> tuple[float, float]:
        """Return sum lambda / (lambda + alpha) and its standard error; alpha is the precision of the prior used.

        Raises:
            InputError: alpha is not positive.
        """
        if not alpha > 0.0:
            raise InputError(f"alpha {alpha} must be above 0: it is the precision of the prior, and has no default")

        def share(values: NDArray[np.float64]) -> NDArray[np.float64]:
            clipped = np.clip(values, 0.0, None)
            return clipped / (clipped + alpha)

        return self.trace(share)

    @property
    def largest(self) -> float:
        """The largest Ritz value."""
        return max(float(each.max()) for each in self.values)

    @property
    def smallest(self) -> float:
        """The smallest Ritz value; negative where the operator is not positive."""
        return min(float(each.min()) for each in self.values)


def spectrum(product: Product, size: int, *, steps: int = 80, num_probes: int = 5, seed: int = 0) -> Spectrum:
    """Run Lanczos from Rademacher probes (float64) and return what they saw of the spectrum."""
    runs = []
    for probe in range(num_probes):
        draw = torch_generator(seed, "curvature.probe", 0, probe)
        start = (2 * torch.randint(0, 2, (size,), generator=draw) - 1).to(torch.float64)
        runs.append(lanczos(product, start, steps))
    return Spectrum(size, tuple(values for values, _ in runs), tuple(masses for _, masses in runs))
