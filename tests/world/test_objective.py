"""The loss by its formula: which way gradients go, what the regulariser sees, and the figures that watch it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from forethought.core.rng import torch_generator
from forethought.data import Episodes
from forethought.world import WorldModel, preset, sigreg
from forethought.world.config import RegulariserConfig
from forethought.world.data import WorldBatch
from forethought.world.layers import ConvEncoder
from forethought.world.model import PIXEL_MEAN, PIXEL_STD
from forethought.world.monitors import effective_rank, latent_figures
from forethought.world.objective import prediction_loss, vicreg, world_loss
from forethought.world.sigreg import floor_value
from tests.world.conftest import settings


def draw(*shape: int, name: str = "x") -> Tensor:
    return torch.randn(shape, generator=torch_generator(5, f"objective.{name}"))


class Given(nn.Module):
    """A model whose latents and predictions are given."""

    def __init__(self, z_BTD: Tensor, predicted: Tensor) -> None:
        super().__init__()
        self.z_BTD, self.predicted = z_BTD, predicted

    def forward(self, frames: Any, blocks: Any) -> tuple[Tensor, Tensor]:
        return self.z_BTD, self.predicted


def test_both_sides_of_the_prediction_error_learn() -> None:
    z, predicted = draw(8, 4, 16).requires_grad_(), draw(8, 3, 16, name="p").requires_grad_()
    loss = prediction_loss(z, predicted)
    error = (predicted - z[:, 1:]).detach()
    assert float(loss.detach()) == pytest.approx(float(error.square().mean()), rel=1e-6)
    ours, theirs = torch.autograd.grad(loss, (z, predicted))
    assert torch.allclose(theirs, 2 * error / error.numel())
    assert torch.allclose(ours[:, 1:], -2 * error / error.numel())
    assert not ours[:, 0].any()


def test_the_prediction_alone_teaches_the_encoder_through_its_context() -> None:
    model = WorldModel(preset("tiny"), seed=1).train()
    frames = torch.randint(0, 256, (4, 4, 32, 32, 3), dtype=torch.uint8, generator=torch_generator(5, "frames"))
    _, predicted = model(frames, draw(4, 3, 10, name="a"))
    (gradient,) = torch.autograd.grad(predicted.square().mean(), model.projector.down.weight)
    assert float(gradient.abs().max()) > 1e-5


@pytest.mark.parametrize("step", [3, 4])
def test_the_loss_is_prediction_plus_lambda_sigreg_a_time_step_at_a_time(step: int) -> None:
    chosen = settings(batch_size=16, regulariser=RegulariserConfig(strength=8.0, num_projections=64))
    z, predicted = (1.5 * draw(16, 4, 24)).requires_grad_(), draw(16, 3, 24, name="p")
    batch = WorldBatch(torch.zeros(0), torch.zeros(0), step=step, seed=9)
    loss, figures = world_loss(chosen)(Given(z, predicted), batch)
    directions = torch_generator(9, "world.sigreg", step)
    value = sigreg(z.transpose(0, 1), 64, 17, directions)
    expected = prediction_loss(z, predicted) + 0.5 * value
    assert float(figures["sigreg"].detach()) == float(value.detach())
    assert float(loss.detach()) == pytest.approx(float(expected.detach()), rel=1e-6)
    ours, wanted = (torch.autograd.grad(each, z, retain_graph=True)[0] for each in (loss, expected))
    assert torch.allclose(ours, wanted, atol=1e-7)
    other = sigreg(z.transpose(0, 1), 64, 17, torch_generator(9, "world.sigreg", 7 - step))
    assert float(other.detach()) != float(value.detach())


def test_vicreg_is_its_formula_at_every_time_step() -> None:
    z = 0.6 * draw(3, 40, 6)
    z[1] += 2.0
    expected = []
    for step in z.double().numpy():
        covariance = np.cov(step.T)
        deviation = np.sqrt(np.diag(covariance) + 1e-4)
        hinge = np.maximum(0, 1 - deviation).mean()
        expected.append((hinge, (np.square(covariance).sum() - np.square(np.diag(covariance)).sum()) / 6))
    hinges, crossed = np.array(expected).T
    assert float(vicreg(z, 1.0, 0.0)) == pytest.approx(hinges.mean(), rel=1e-5)
    assert float(vicreg(z, 0.0, 1.0)) == pytest.approx(crossed.mean(), rel=1e-5)
    assert float(vicreg(z, 18.0, 12.0)) == pytest.approx(18 * hinges.mean() + 12 * crossed.mean(), rel=1e-5)
    chosen = settings(regulariser=RegulariserConfig(name="vicreg"))
    batch = WorldBatch(torch.zeros(0), torch.zeros(0), step=0, seed=0)
    swapped = z.transpose(0, 1)
    loss, figures = world_loss(chosen)(Given(swapped, swapped[:, 1:]), batch)
    assert float(loss) == pytest.approx(float(vicreg(z, 18.0, 12.0)), rel=1e-6)
    assert set(figures) == {"prediction_loss", "vicreg"}


def test_frames_are_read_as_standardised_colours() -> None:
    model = WorldModel(preset("tiny"), seed=1).eval()
    frames = torch.randint(0, 256, (3, 32, 32, 3), dtype=torch.uint8, generator=torch_generator(5, "frames"))
    standard = (frames.float() / 255 - torch.tensor(PIXEL_MEAN)) / torch.tensor(PIXEL_STD)
    expected = model.projector(model.encoder(standard.permute(0, 3, 1, 2)))
    assert torch.allclose(model.encode(frames), expected, atol=1e-5)


def test_images_are_encoded_alike_in_any_number_and_layout() -> None:
    encoder, images = ConvEncoder(64, 4, 8), draw(150, 3, 64, 64)
    with torch.no_grad():
        for name, parameter in encoder.named_parameters():
            parameter.copy_(0.2 * draw(*parameter.shape, name=name))
        whole = encoder(images)
        assert torch.allclose(whole[140:], encoder(images[140:]), atol=1e-5)
        assert torch.allclose(whole, encoder(images.contiguous(memory_format=torch.channels_last)), atol=1e-5)
        assert encoder(images[:0]).shape == (0, 8)


def test_positions_are_told_apart_from_the_first_step_on() -> None:
    positions = WorldModel(preset("small")).predictor.positions.detach()
    assert float(positions.std()) == pytest.approx(1.0, abs=0.1)
    assert float(positions.mean()) == pytest.approx(0.0, abs=0.15)


def test_the_figures_of_latents_on_known_ones() -> None:
    z = draw(400, 4, 8)
    predicted = z[:, 1:] + 0.1 * draw(400, 3, 8, name="p")
    found = latent_figures(z, predicted)
    assert found["validation_loss"] == pytest.approx(0.01, rel=0.05)
    assert found["copy_ratio"] == pytest.approx(0.01 / 2, rel=0.08)
    assert found["spread"] == pytest.approx(1.0, abs=0.03)
    assert found["effective_rank"] == pytest.approx(8, rel=0.02)
    assert found["sigreg_over_floor"] == pytest.approx(1.0, abs=0.25)
    dead = latent_figures(0 * z, 0 * predicted)
    assert dead["sigreg_over_floor"] == pytest.approx(0.40205 * 400 / floor_value(), rel=1e-3)
    assert effective_rank(z.flatten(0, 1) + 100.0) == pytest.approx(8, rel=0.02)


def test_held_out_windows_judge_and_training_windows_teach(episodes: Episodes, tmp_path: Any) -> None:
    """Each part has a mark of its own, by which the windows that a run takes are told."""
    from forethought.core.run import Run
    from forethought.train import Parallel
    from forethought.world.fit import _Fit, split_episodes

    chosen = settings(50, held_out=0.3)
    parts = split_episodes(episodes, chosen)
    known = {name: {part.episode(i)["actions"][:5].tobytes() for i in range(part.num_episodes)}
             for name, part in parts.items()}  # fmt: skip
    assert not known["train"] & known["held_out"]
    with Run.open(tmp_path / "run", config=chosen, recipe="test") as run:
        work = _Fit(chosen, episodes, run, Parallel(torch.device("cpu")))
    train, held = ({part["frames"].tobytes() for part in map(one.episode, range(one.num_episodes))}
                   for one in (parts["train"], parts["held_out"]))  # fmt: skip
    taught = {name: _frames_of(windows) for name, windows in (("held", work.held_out), ("train", work.calibration))}
    taught["step"] = _frames_of([work.windows.batch(step) for step in range(10)])
    inside = {name: [any(frame in episode for episode in train) for frame in frames] for name, frames in taught.items()}
    assert all(inside["train"])
    assert all(inside["step"])
    assert not any(inside["held"])
    assert all(any(frame in episode for episode in held) for frame in taught["held"])
    actions = parts["train"].actions
    assert np.allclose(work.statistics.mean, actions.mean(axis=0), atol=1e-6)
    assert not np.allclose(work.statistics.mean, episodes.actions.mean(axis=0), atol=1e-6)


def _frames_of(windows: list[WorldBatch]) -> list[bytes]:
    return [frame.numpy().tobytes() for batch in windows for frame in batch.frames_BTHWC[::8, 0]]


def test_an_infinite_action_is_refused_even_at_an_edge(episodes: Episodes) -> None:
    from forethought.core.errors import DataError
    from forethought.world.data import action_statistics

    actions = episodes.actions.copy()
    actions[60] = np.inf
    arrays = {**episodes.arrays, "actions": actions}
    broken = dataclasses.replace(episodes, arrays=arrays) if dataclasses.is_dataclass(episodes) else Episodes(
        arrays, starts=episodes.starts, lengths=episodes.lengths, terminated=episodes.terminated,
        truncated=episodes.truncated,
    )  # fmt: skip
    with pytest.raises(DataError, match="step 0 of episode 1 is not finite"):
        action_statistics(broken)
