"""Gaussian noise of any colour along the horizon: power spectrum ~ 1 / frequency^beta (Pinneri et al. 2020, iCEM)."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def white_noise(shape: tuple[int, ...], generator: torch.Generator, like: Tensor) -> Tensor:
    """Return standard normal numbers of a shape, drawn on the generator's device and moved to `like`."""
    drawn = torch.randn(shape, generator=generator, device=generator.device, dtype=like.dtype)
    return drawn.to(like.device)


def coloured_noise(shape: tuple[int, ...], beta: float, generator: torch.Generator, like: Tensor) -> Tensor:
    """Return Gaussian noise with unit variance, correlated along the last axis but one (time).

    beta 0 is white, 1 pink, 2 red: the amplitude of frequency f is f^(-beta/2), the lowest one standing in for f = 0.
    The variance is exactly 1 at every time, whatever the horizon.
    """
    *lead, num_steps, width = shape
    if beta == 0.0 or num_steps == 1:
        return white_noise(shape, generator, like)
    num_frequencies = num_steps // 2 + 1
    amplitudes_F = _amplitudes(num_steps, beta).to(like)
    drawn = white_noise((2, *lead, num_frequencies, width), generator, like)
    spectrum = torch.complex(drawn[0], drawn[1]) * amplitudes_F[:, None]
    # Frequency 0, and the highest one of an even length, are real; their one part carries the power of two.
    real = [0, *([num_frequencies - 1] if num_steps % 2 == 0 else [])]
    spectrum[..., real, :] = torch.complex(drawn[0], torch.zeros_like(drawn[0]))[..., real, :] * (
        math.sqrt(2.0) * amplitudes_F[real, None]
    )
    return torch.fft.irfft(spectrum, n=num_steps, dim=-2) * num_steps


def _amplitudes(num_steps: int, beta: float) -> Tensor:
    """Return the scale of each frequency's two parts such that every time step has variance 1."""
    frequencies = torch.fft.rfftfreq(num_steps, dtype=torch.float64)
    scale = frequencies.clamp(min=1.0 / num_steps).pow(-beta / 2.0)
    # x_t = c_0 + sum 2 Re(c_f e^{i w t}) [+ c_top]: parts with scale s give the variance 2 s^2 (ends), 4 s^2 (inside).
    weights = torch.full_like(scale, 4.0)
    weights[0] = 2.0
    if num_steps % 2 == 0:
        weights[-1] = 2.0
    return scale / (weights * scale.square()).sum().sqrt()
