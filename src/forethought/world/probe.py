"""What a frozen latent knows: physical quantities predicted from it by a fixed protocol (none was ever published).

Episodes, not frames, are split in three: fit, choose, test. Latents are standardised on the fit part, and so is every
quantity, so that an error of 1 is that of the mean. Linear: ridge in closed form, its penalty chosen from a grid on the
second part. MLP: two hidden layers of 256, early stopping on the second part. Reported on the third: MSE and Pearson r.

Legend: N frames, D latent width, Q quantities.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from forethought.core.config import config
from forethought.core.errors import DataError
from forethought.core.rng import generator
from forethought.data import Episodes, split_by_episode
from forethought.nn import Linear, initialise
from forethought.world.data import encode_rows
from forethought.world.model import WorldModel

Array = NDArray[Any]
Floats = NDArray[np.float64]
ALPHAS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)
FRACTIONS = {"fit": 0.6, "choose": 0.2, "test": 0.2}


@config
class ProbeConfig:
    """Sizes of the protocol; change them and figures are no longer comparable."""

    max_frames: int = Field(default=6000, ge=10)
    """Frames of all three parts together, at equal distances."""
    hidden_size: int = Field(default=256, ge=1)
    mlp_steps: int = Field(default=600, ge=1)
    patience: int = Field(default=5, ge=1)
    """Checks of 50 steps without a better one."""
    seed: int = Field(default=0, ge=0)


def probe(
    model: WorldModel, episodes: Episodes, quantities: Mapping[str, Array], settings: ProbeConfig | None = None
) -> dict[str, Any]:
    """Return MSE and r of linear and MLP probes for every named quantity; each is an array (N,) or (N, Q).

    Raises:
        DataError: a quantity has another number of rows than the episodes, or never changes; too few episodes.
    """
    chosen = settings or ProbeConfig()
    if episodes.num_episodes < 3:
        raise DataError(f"{episodes.source}: probing splits episodes in three; {episodes.num_episodes} are too few")
    results: dict[str, Any] = {"frames": {}, "quantities": {}}
    parts = _parts(model, episodes, quantities, chosen)
    results["frames"] = {name: len(part["latents"]) for name, part in parts.items()}
    for name in quantities:
        targets = _standardised(name, {key: part[name] for key, part in parts.items()})
        latents = _standardised("latents", {key: part["latents"] for key, part in parts.items()}, constant_ok=True)
        results["quantities"][name] = {
            "linear": _score(_ridge(latents, targets), targets["test"]),
            "mlp": _score(_mlp(latents, targets, chosen), targets["test"]),
        }
    return results


def _parts(
    model: WorldModel, episodes: Episodes, quantities: Mapping[str, Array], settings: ProbeConfig
) -> dict[str, dict[str, Floats]]:
    arrays: dict[str, Array] = {"observations": np.zeros((episodes.num_steps, 1)), "frames": episodes.array("frames")}
    for name, values in quantities.items():
        if len(values) != episodes.num_steps:
            raise DataError(f"{name} has {len(values)} rows for {episodes.num_steps} frames; give one row a frame")
        arrays[f"quantity_{name}"] = np.asarray(values, np.float64).reshape(len(values), -1)
    joined = Episodes(
        arrays,
        starts=episodes.starts,
        lengths=episodes.lengths,
        terminated=episodes.terminated,
        truncated=episodes.truncated,
        source=episodes.source,
    )
    stride = max(1, episodes.num_steps // settings.max_frames)
    parts: dict[str, dict[str, Floats]] = {}
    for name, part in split_by_episode(joined, seed=settings.seed, fractions=FRACTIONS).items():
        rows = np.arange(0, part.num_steps, stride)
        latents = encode_rows(model, part, rows)
        parts[name] = {"latents": latents.double().cpu().numpy()}
        parts[name] |= {each: part.array(f"quantity_{each}")[rows] for each in quantities}
    return parts


def _standardised(name: str, parts: Mapping[str, Floats], *, constant_ok: bool = False) -> dict[str, Floats]:
    mean, std = parts["fit"].mean(axis=0), parts["fit"].std(axis=0)
    if not constant_ok and (std < 1e-12).any():
        raise DataError(f"{name} never changes in the data, so nothing can be learned about it; leave it out")
    return {key: (values - mean) / np.maximum(std, 1e-9) for key, values in parts.items()}


def _ridge(latents: Mapping[str, Floats], targets: Mapping[str, Floats]) -> Floats:
    x, y = latents["fit"], targets["fit"]
    values, vectors = np.linalg.eigh(x.T @ x / len(x))
    projected = vectors.T @ (x.T @ y) / len(x)
    best, answer = np.inf, np.zeros_like(targets["test"])
    for alpha in ALPHAS:
        weights = vectors @ (projected / (np.maximum(values, 0) + alpha)[:, None])
        error = float(np.square(latents["choose"] @ weights - targets["choose"]).mean())
        if error < best:
            best, answer = error, latents["test"] @ weights
    return answer


class _Probe(nn.Module):
    def __init__(self, size: int, hidden: int, out: int, seed: int) -> None:
        super().__init__()
        self.first, self.second, self.last = Linear(size, hidden), Linear(hidden, hidden), Linear(hidden, out)
        initialise(self, seed)

    def forward(self, x_ND: Tensor) -> Tensor:
        return self.last(functional.gelu(self.second(functional.gelu(self.first(x_ND)))))


def _mlp(latents: Mapping[str, Floats], targets: Mapping[str, Floats], settings: ProbeConfig) -> Floats:
    x, y = ({key: torch.from_numpy(value).float() for key, value in part.items()} for part in (latents, targets))
    network = _Probe(x["fit"].shape[1], settings.hidden_size, y["fit"].shape[1], settings.seed)
    optimiser = torch.optim.AdamW(network.parameters(), lr=1e-3, weight_decay=1e-3)
    best, stale, answer = float("inf"), 0, torch.zeros_like(y["test"])
    for step in range(settings.mlp_steps):
        if step % 50 == 0 or step == settings.mlp_steps - 1:
            with torch.no_grad():
                error = float(functional.mse_loss(network(x["choose"]), y["choose"]))
                if error < best:
                    best, stale, answer = error, 0, network(x["test"])
                else:
                    stale += 1
            if stale >= settings.patience:
                break
        rows = torch.from_numpy(generator(settings.seed, "world.probe", step).integers(0, len(x["fit"]), 256))
        loss = functional.mse_loss(network(x["fit"][rows]), y["fit"][rows])
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
    return answer.double().numpy()


def _score(predicted: Floats, truth: Floats) -> dict[str, float]:
    """Return the MSE in units of the variance and the mean Pearson r over the numbers of a quantity."""
    a, b = predicted - predicted.mean(axis=0), truth - truth.mean(axis=0)
    norms = np.maximum(np.sqrt(np.square(a).sum(axis=0) * np.square(b).sum(axis=0)), 1e-12)
    return {"mse": float(np.square(predicted - truth).mean()), "r": float(((a * b).sum(axis=0) / norms).mean())}
