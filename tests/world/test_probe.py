"""The probing protocol on latents whose knowledge is known, and the decoder that shows what a latent holds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from forethought.core.errors import DataError
from forethought.core.rng import generator
from forethought.data import Episodes, episodes_from_flat, split_by_episode
from forethought.world import WorldModel, preset
from forethought.world.decoder import DecoderConfig, fit_decoder
from forethought.world.probe import ALPHAS, FRACTIONS, ProbeConfig, probe
from tests.world.dots import dot_episodes

QUICK = ProbeConfig(mlp_steps=200)


class Reader(WorldModel):
    """Latents are the first twelve numbers written into the frame's first rows, so that a test says what they hold."""

    def encode(self, frames: torch.Tensor) -> torch.Tensor:
        return frames[..., 0, :12, 0].float() / 255 - 0.5


def written(latents_ND: NDArray[Any], episodes: int) -> Episodes:
    """Episodes whose frames carry latents (N, 12) in -0.5 to 0.5."""
    count = len(latents_ND)
    frames = np.zeros((count, 32, 32, 3), np.uint8)
    frames[:, 0, :12, 0] = np.rint((latents_ND + 0.5) * 255)
    ends = np.zeros(count, bool)
    ends[count // episodes - 1 :: count // episodes] = True
    return episodes_from_flat(
        {
            "observations": latents_ND.astype(np.float32),
            "actions": np.zeros((count, 2), np.float32),
            "frames": frames,
            "rewards": np.zeros(count, np.float32),
            "terminals": np.zeros(count, bool),
            "timeouts": ends,
        }
    )


@pytest.fixture(scope="module")
def latents() -> NDArray[np.float64]:
    return generator(0, "tests.probe").uniform(-0.5, 0.5, (1600, 12))


@pytest.fixture(scope="module")
def reader() -> WorldModel:
    return Reader(preset("tiny")).eval()


def test_what_latents_hold_is_found_linearly_bent_or_not_at_all(
    reader: WorldModel, latents: NDArray[np.float64]
) -> None:
    draws = generator(1, "tests.probe")
    weights = draws.normal(size=(12, 2))
    quantities = {
        "linear": latents @ weights,
        "noisy": latents[:, 0] + draws.normal(size=1600) * latents[:, 0].std(),
        "bent": np.square(latents[:, 0]),
        "nothing": draws.normal(size=1600),
        "opposite": np.stack([latents[:, 0], draws.normal(size=1600)], axis=1),
    }
    found = probe(reader, written(latents, 80), quantities, QUICK)
    linear = {name: each["linear"] for name, each in found["quantities"].items()}
    assert linear["linear"]["r"] > 0.999
    assert linear["linear"]["mse"] < 0.001
    assert linear["noisy"]["r"] == pytest.approx(np.sqrt(0.5), abs=0.08)
    assert linear["noisy"]["mse"] == pytest.approx(0.5, abs=0.1)
    assert abs(linear["bent"]["r"]) < 0.2
    assert found["quantities"]["bent"]["mlp"]["r"] > 0.9
    assert abs(linear["nothing"]["r"]) < 0.2
    assert linear["nothing"]["mse"] == pytest.approx(1.0, abs=0.2)
    assert linear["opposite"]["r"] == pytest.approx(0.5, abs=0.1)
    assert found["frames"] == {"fit": 960, "choose": 320, "test": 320}


def test_the_test_part_is_neither_fitted_nor_chosen_on(reader: WorldModel, latents: NDArray[np.float64]) -> None:
    """A quantity that means the latent in the first two parts and its opposite in the third: r is -1 and no more."""
    episodes = written(latents, 80)
    rows = _rows_of_parts(episodes)
    values = latents[:, 0].copy()
    values[rows["test"]] *= -1
    found = probe(reader, episodes, {"turned": values}, QUICK)["quantities"]["turned"]
    assert found["linear"]["r"] < -0.99
    assert found["mlp"]["r"] < -0.9
    assert found["linear"]["mse"] > 3.0


def test_scores_are_in_units_of_the_fit_part(reader: WorldModel, latents: NDArray[np.float64]) -> None:
    episodes = written(latents, 80)
    rows = _rows_of_parts(episodes)
    noise = generator(2, "tests.probe").normal(size=1600)
    noise[rows["test"]] *= 3.0
    assert probe(reader, episodes, {"loud": noise}, QUICK)["quantities"]["loud"]["linear"]["mse"] == pytest.approx(
        9.0, rel=0.25
    )


def test_the_penalty_is_chosen_where_nothing_is_fitted(reader: WorldModel) -> None:
    """Few rows and many useless latents: unpenalised least squares loses to the grid, which sees the second part."""
    draws = generator(3, "tests.probe")
    latents = draws.uniform(-0.5, 0.5, (24, 12))
    target = latents[:, 0] + 0.6 * draws.normal(size=24)
    episodes = written(latents, 24)
    found = probe(reader, episodes, {"q": target}, QUICK)["quantities"]["q"]["linear"]["mse"]
    rows = _rows_of_parts(episodes)
    by_alpha = {alpha: _by_hand(latents, target, rows, alpha) for alpha in (*ALPHAS, 1e-12)}
    best = min(ALPHAS, key=lambda alpha: by_alpha[alpha][0])
    assert found == pytest.approx(by_alpha[best][1], rel=1e-2)
    assert by_alpha[best][1] != pytest.approx(by_alpha[1e-12][1], rel=0.05)


def test_probing_refuses_what_cannot_be_probed(reader: WorldModel, latents: NDArray[np.float64]) -> None:
    episodes = written(latents, 80)
    with pytest.raises(DataError, match="x never changes"):
        probe(reader, episodes, {"x": np.ones(1600)}, QUICK)
    with pytest.raises(DataError, match="has 7 rows for 1600 frames"):
        probe(reader, episodes, {"x": np.ones(7)}, QUICK)
    with pytest.raises(DataError, match="2 are too few"):
        probe(reader, episodes.select([0, 1]), {"x": np.ones(40)}, QUICK)


def test_a_decoder_shows_the_dot_where_it_is(trained: WorldModel) -> None:
    episodes = dot_episodes(20, 40, seed=11)
    decoder, error = fit_decoder(trained, episodes, DecoderConfig(steps=120, width=8, batch_size=32))
    frames = episodes.array("frames")
    assert error < 0.3 * float(np.square(frames / 255 - (frames / 255).mean(axis=0)).mean())
    fresh = dot_episodes(2, 20, seed=12)
    with torch.no_grad():
        shown = decoder.pictures(trained.encode_all(torch.from_numpy(fresh.array("frames"))))
    assert shown.shape == (40, 32, 32, 3)
    grid = (np.arange(32) + 0.5) / 32
    light = shown[..., 0].astype(float)
    x, y = (np.tensordot(light.sum(axis=axis), grid, (1, 0)) / light.sum(axis=(1, 2)) for axis in (1, 2))
    for place, true in ((x, fresh.observations[:, 0]), (y, fresh.observations[:, 1])):
        assert np.corrcoef(place, true)[0, 1] > 0.9
    assert not trained.training


def _rows_of_parts(episodes: Episodes) -> dict[str, NDArray[np.int64]]:
    marked = Episodes(
        {**episodes.arrays, "row": np.arange(episodes.num_steps)},
        starts=episodes.starts,
        lengths=episodes.lengths,
        terminated=episodes.terminated,
        truncated=episodes.truncated,
    )
    parts = split_by_episode(marked, seed=0, fractions=FRACTIONS)
    return {name: part.array("row") for name, part in parts.items()}


def _by_hand(
    latents: NDArray[np.float64], target: NDArray[np.float64], rows: dict[str, NDArray[np.int64]], alpha: float
) -> tuple[float, float]:
    read = np.rint((latents + 0.5) * 255) / 255 - 0.5
    x, y = ((v - v[rows["fit"]].mean(axis=0)) / v[rows["fit"]].std(axis=0) for v in (read, target))
    fit = rows["fit"]
    weights = np.linalg.solve(x[fit].T @ x[fit] / len(fit) + alpha * np.eye(12), x[fit].T @ y[fit] / len(fit))
    errors = [float(np.square(x[rows[name]] @ weights - y[rows[name]]).mean()) for name in ("choose", "test")]
    return errors[0], errors[1]
