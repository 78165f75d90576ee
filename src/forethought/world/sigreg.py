"""SIGReg: how far a batch of embeddings is from an isotropic Gaussian (LeJEPA, arXiv 2511.08544, section 4).

A batch is projected on random directions; on each, the Epps-Pulley statistic compares the empirical characteristic
function with the Gaussian's:

    T = N * integral over [-3, 3] of w(t) |phi_N(t) - phi_0(t)|^2 dt,   phi_0(t) = w(t) = exp(-t^2 / 2)

by the trapezoid rule on K knots t_k = 3 k / (K - 1), doubled by symmetry. The loss is the mean of T over directions and
time steps. Nothing is standardised first: the test is against mean 0 and variance 1, and that is what stops collapse.

The knots are multiples of one angle a = t_1 h, so all cosines and sines come from cos a and sin a by the Chebyshev
recurrence cos (k+1)a = 2 cos a cos ka - cos (k-1)a, and the gradient, a trigonometric polynomial in a, by Clenshaw's.
No tensor of samples x directions x knots is ever made.

Legend: T time steps, N samples of a step, D embedding width, M directions, C directions of a chunk, K knots.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from forethought.core.errors import InputError
from forethought.world.distributed import all_sum, group_size, shared_seed

RANGE = 3.0
# Working buffers of a chunk stay within the second-level cache of a core; an accelerator takes larger bites.
CHUNK_ELEMENTS = 1 << 15
CHUNK_ELEMENTS_ACCELERATOR = 1 << 23


def sigreg(
    z: Tensor, num_projections: int = 1024, num_knots: int = 17, generator: torch.Generator | None = None
) -> Tensor:
    """Return SIGReg of embeddings (N, D), or (T, N, D) with each of T time steps tested by itself, as a scalar.

    The directions are drawn anew at every call, from `generator` where one is given (on the CPU or z's device), else
    from the operating system's entropy. The arithmetic is fp32 (fp64 for fp64 input) also under autocast. Inside a
    process group N runs over the batches of all ranks, which must be of one size; every rank must draw the same
    directions (a generator of one seed), and gradients are those of the sum of the ranks' losses, to be averaged as
    DDP does. For iid Gaussian z the expectation is 1.0526 whatever N and D; all z equal to 0 give 0.40205 N.

    Raises:
        InputError: z is neither (N, D) nor (T, N, D), is empty or no float; no direction, or fewer than 2 knots.
    """
    if z.ndim not in (2, 3) or not z.numel() or not z.is_floating_point():
        raise InputError(
            f"sigreg got {z.dtype} of shape {tuple(z.shape)}; give float embeddings (N, D) or (T, N, D), none empty"
        )
    if num_projections < 1 or num_knots < 2:
        raise InputError(
            f"num_projections {num_projections} and num_knots {num_knots} must be at least 1 and 2; usual: 1024 and 17"
        )
    z_TND = z if z.ndim == 3 else z[None]
    directions_DM = random_directions(z_TND.shape[-1], num_projections, z_TND, generator)
    with torch.autocast(z.device.type, enabled=False):
        wide = z_TND if z.dtype == torch.float64 else z_TND.float()
        value = _SIGReg.apply(wide, directions_DM, num_knots)
    return value  # pyright: ignore[reportReturnType]


def random_directions(size: int, count: int, like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return `count` random unit columns [size, count], in fp32 (fp64 for fp64), on the device of `like`."""
    if generator is None:
        generator = torch.Generator().manual_seed(shared_seed(like.device))
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    drawn = torch.randn(size, count, generator=generator, device=generator.device, dtype=dtype)
    return (drawn / drawn.norm(dim=0, keepdim=True).clamp_min(1e-30)).to(like.device)


def collapse_value(num_samples: int, num_knots: int = 17) -> float:
    """Return SIGReg of `num_samples` embeddings that are all 0: the ceiling of a mean-zero collapse, 0.40205 N."""
    knots, weights = _knots(num_knots)
    return num_samples * sum(w * (1.0 - math.exp(-t * t / 2)) ** 2 for t, w in zip(knots, weights, strict=True))


def floor_value(num_knots: int = 17) -> float:
    """Return the expectation of SIGReg of iid Gaussian embeddings: 1.0526 for 17 knots, at any N and D."""
    knots, weights = _knots(num_knots)
    return sum(w * (1.0 - math.exp(-t * t)) for t, w in zip(knots, weights, strict=True))


def _knots(num_knots: int) -> tuple[list[float], list[float]]:
    step = RANGE / (num_knots - 1)
    knots = [step * k for k in range(num_knots)]
    ends = (0, num_knots - 1)
    return knots, [(step if k in ends else 2 * step) * math.exp(-t * t / 2) for k, t in enumerate(knots)]


class _SIGReg(torch.autograd.Function):
    """The statistic with its closed-form gradient: both are sums over knots, taken a chunk of directions at a time."""

    @staticmethod
    def forward(ctx: Any, z_TND: Tensor, directions_DM: Tensor, num_knots: int) -> Tensor:  # pyright: ignore
        steps, samples, _ = z_TND.shape
        total = samples * group_size()
        sums_KTM = torch.empty(2, num_knots, steps, directions_DM.shape[1], dtype=z_TND.dtype, device=z_TND.device)
        for chunk in _chunks(z_TND, directions_DM):
            _sum_waves((z_TND @ directions_DM[:, chunk]).mul_(RANGE / (num_knots - 1)), sums_KTM[..., chunk])
        means_KTM = all_sum(sums_KTM).div_(total)
        knots, weights = (torch.tensor(v, dtype=z_TND.dtype, device=z_TND.device) for v in _knots(num_knots))
        means_KTM[0] -= torch.exp(-knots.square() / 2)[:, None, None]
        per_knot = means_KTM.square().sum(dim=(0, 2, 3)) / (steps * directions_DM.shape[1])
        ctx.save_for_backward(z_TND, directions_DM, means_KTM, knots * weights)
        return (per_knot * weights).sum() * total

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        z_TND, directions_DM, means_KTM, slopes_K = ctx.saved_tensors
        num_knots, (steps, _, _) = len(slopes_K), z_TND.shape
        # d T / d h_n = 2 sum_k w_k t_k [S_k cos(t_k h_n) - (C_k - phi_k) sin(t_k h_n)]; the N cancels with the mean's.
        scale = all_sum(gradients[0].clone()) * (2.0 / (steps * directions_DM.shape[1]))
        on_sine = means_KTM[0] * (-scale * slopes_K)[:, None, None]
        on_cosine = means_KTM[1] * (scale * slopes_K)[:, None, None]
        result = torch.zeros_like(z_TND)
        for chunk in _chunks(z_TND, directions_DM):
            part_DC = directions_DM[:, chunk]
            angles = (z_TND @ part_DC).mul_(RANGE / (num_knots - 1))
            waves = _clenshaw(angles, on_cosine[..., chunk], on_sine[..., chunk])
            result += waves @ part_DC.T
        return result, None, None


def _chunks(z_TND: Tensor, directions_DM: Tensor) -> list[slice]:
    budget = CHUNK_ELEMENTS if z_TND.device.type == "cpu" else CHUNK_ELEMENTS_ACCELERATOR
    count = directions_DM.shape[1]
    width = max(16, min(count, budget // (z_TND.shape[0] * z_TND.shape[1]) // 16 * 16))
    return [slice(begin, min(begin + width, count)) for begin in range(0, count, width)]


def _sum_waves(angles_TNC: Tensor, out_KTC: Tensor) -> None:
    """Put sum_n cos(k a_n) and sum_n sin(k a_n) into out[0, k] and out[1, k]."""
    cosine, sine = angles_TNC.cos(), angles_TNC.sin()
    twice = cosine * 2
    out_KTC[0, 0] = angles_TNC.shape[1]
    out_KTC[1, 0] = 0.0
    # The buffers hold the waves up to a sign, so that each new one is a single fused multiply-add into the oldest:
    # with p, q = s_(k-1) x_(k-1), s_k x_k, the update p - s x2 q gives x_(k+1) times -s_(k-1) or s_(k-1).
    for index, (older, newer) in enumerate(((torch.ones_like(cosine), cosine), (torch.zeros_like(sine), sine))):
        old_sign, new_sign = 1.0, 1.0
        for k in range(1, out_KTC.shape[1]):
            torch.sum(newer, dim=1, out=out_KTC[index, k])
            if new_sign < 0:
                out_KTC[index, k].neg_()
            older.addcmul_(newer, twice, value=-old_sign * new_sign)
            older, newer, old_sign, new_sign = newer, older, new_sign, -old_sign
        _ = older


def _clenshaw(angles_TNC: Tensor, on_cosine_KTC: Tensor, on_sine_KTC: Tensor) -> Tensor:
    """Return sum_k on_cosine_k cos(k a) + on_sine_k sin(k a)."""
    cosine, sine = angles_TNC.cos(), angles_TNC.sin()
    twice = cosine * 2
    values: list[tuple[Tensor, Tensor]] = []
    for weights_KTC in (on_cosine_KTC, on_sine_KTC):
        # b_k = w_k + 2 cos a b_(k+1) - b_(k+2), down to b_1, with b_2 beside it. As above the buffers hold them up to a
        # sign: the oldest becomes the newest with the other sign, in one multiply-add and one sum.
        after, current = torch.zeros_like(angles_TNC), torch.zeros_like(angles_TNC)
        old_sign, new_sign = 1.0, 1.0
        for k in range(len(weights_KTC) - 1, 0, -1):
            after.addcmul_(current, twice, value=-old_sign * new_sign)
            after.add_(weights_KTC[k][:, None], alpha=-old_sign)
            after, current, old_sign, new_sign = current, after, new_sign, -old_sign
        values.append((current.mul_(new_sign), after.mul_(old_sign)))
    (first, second), (sine_first, _) = values
    first.mul_(cosine).sub_(second).add_(on_cosine_KTC[0][:, None])
    return first.addcmul_(sine_first, sine)
