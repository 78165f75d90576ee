"""Denoisers: shapes, conditions, batch independence, the bound and frozen forms, and that they learn."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from forethought.core.errors import ConfigError, InputError
from forethought.core.rng import torch_generator
from forethought.diffusion import ProcessConfig, SamplerConfig, diffusion_loss, draw_noise, sample, train_times
from forethought.nn import (
    Denoiser,
    DenoiserConfig,
    RegressorConfig,
    SequenceRegressor,
    build_denoiser,
    denoiser_preset,
)

SIZES: dict[str, Any] = {"size": 3, "horizon": 8, "context_size": 5, "num_context": 2, "aligned_size": 2}
SMALL: dict[str, dict[str, Any]] = {
    "mlp": {"backbone": "mlp", "hidden_size": 32, "num_layers": 2},
    "transformer": {"backbone": "transformer", "hidden_size": 32, "num_layers": 2, "num_heads": 2},
    "patched": {"backbone": "transformer", "hidden_size": 32, "num_layers": 2, "num_heads": 2, "patch": 4},
    "apart": {"backbone": "transformer", "hidden_size": 32, "num_layers": 2, "num_heads": 2, "aligned_tokens": True},
}


def opened(name: str, **changes: Any) -> Denoiser:
    """A denoiser with no weight at its first value: adaLN starts closed, which would hide mistakes."""
    denoiser = build_denoiser(DenoiserConfig(**{**SIZES, **SMALL[name], **changes}), seed=0)
    generator = torch_generator(1, "open")
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return denoiser.eval()


def inputs(rows: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch_generator(seed, "inputs")
    shapes = ((rows, 8, 3), (rows, 2, 5), (rows, 8, 2))
    x, context, aligned = (torch.randn(shape, generator=generator) for shape in shapes)
    return x, torch.rand(rows, generator=generator), context, aligned


@pytest.mark.parametrize("name", sorted(SMALL))
def test_every_input_moves_every_row_and_only_its_own(name: str) -> None:
    denoiser, given = opened(name), inputs(6)
    base = denoiser(*given)
    assert base.shape == (6, 8, 3)
    for position in range(4):
        changed = [each.clone() for each in given]
        changed[position][2] += 0.3
        moved = (denoiser(*changed) - base).abs().amax((1, 2))
        assert moved[2] > 1e-3, position
        assert moved[[0, 1, 3, 4, 5]].max() < 1e-5, position


@pytest.mark.parametrize("name", sorted(SMALL))
def test_the_order_of_steps_and_of_context_tokens_matters(name: str) -> None:
    denoiser, (x, times, context, aligned) = opened(name), inputs(4)
    base = denoiser(x, times, context, aligned)
    assert not torch.allclose(denoiser(x.flip(1), times, context, aligned).flip(1), base, atol=1e-3)
    assert not torch.allclose(denoiser(x, times, context.flip(1), aligned), base, atol=1e-3)
    assert not torch.allclose(denoiser(x, times, context, aligned.flip(1)), base, atol=1e-3)


@pytest.mark.parametrize("name", sorted(SMALL))
def test_shared_conditions_and_times_equal_repeated_ones(name: str) -> None:
    denoiser, (x, times, context, aligned) = opened(name), inputs(5)
    one_time, one_context, one_aligned = times[:1], context[:1], aligned[:1]
    repeated = denoiser(x, one_time.expand(5), one_context.expand(5, -1, -1), one_aligned.expand(5, -1, -1))
    for shared in (
        denoiser(x, one_time, one_context, one_aligned),
        denoiser.bind(one_context, one_aligned)(x, one_time),
    ):
        assert torch.allclose(shared, repeated, atol=1e-5)
    mixed = denoiser(x, one_time, one_context, aligned)
    assert torch.allclose(mixed, denoiser(x, one_time.expand(5), one_context.expand(5, -1, -1), aligned), atol=1e-5)


@pytest.mark.parametrize("name", sorted(SMALL))
def test_the_bound_form_takes_no_gradient_and_the_plain_one_does(name: str) -> None:
    denoiser, (x, times, context, aligned) = opened(name), inputs(3)
    assert not denoiser.bind(context, aligned)(x, times).requires_grad
    denoiser(x, times, context, aligned).square().sum().backward()
    lacking = [key for key, value in denoiser.named_parameters() if value.grad is None or not value.grad.abs().sum()]
    assert lacking == []


@pytest.mark.parametrize("name", sorted(SMALL))
def test_a_frozen_copy_is_equal_stays_behind_and_digests_each_time_once(name: str) -> None:
    denoiser, (x, times, context, aligned) = opened(name), inputs(3)
    frozen = denoiser.frozen()
    before = denoiser(x, times[:1], context, aligned)
    for _ in range(2):
        for time in times:
            expected = denoiser.bind(context, aligned)(x, time[None])
            assert torch.allclose(frozen.bind(context, aligned)(x, time[None]), expected, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(0.1)
    assert torch.allclose(frozen.bind(context, aligned)(x, times[:1]), before, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(denoiser(x, times[:1], context, aligned), before, atol=1e-2)
    narrow = frozen.frozen(torch.bfloat16).bind(context, aligned)(x, times[:1])
    assert narrow.dtype == torch.float32
    assert 0 < (narrow - before).abs().max() < 0.05 * before.abs().max()


def test_the_embedding_of_a_time_survives_narrow_weights() -> None:
    # In bfloat16 the time itself would be off by up to 0.002, which is 2 radians of the fastest wave.
    embedding = opened("mlp").get_submodule("time")
    times = torch.linspace(0.001, 0.999, 97)
    exact = embedding(times)
    narrow = embedding.to(torch.bfloat16)(times).float()
    assert (narrow - exact).abs().max() < 0.02 * exact.abs().max()


def test_first_weights_are_a_function_of_the_seed() -> None:
    state = torch.random.get_rng_state()
    one, same, other = (build_denoiser(DenoiserConfig(**SIZES, **SMALL["transformer"]), seed=s) for s in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), state)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), same.parameters(), strict=True))
    assert not torch.equal(one.state_dict()["output.weight"], other.state_dict()["output.weight"])


def test_presets_have_the_sizes_of_the_paper() -> None:
    paper = build_denoiser(denoiser_preset("paper", **{**SIZES, "size": 6, "horizon": 32, "aligned_size": 0}), seed=0)
    # The brief's own count of the paper's proposal network is 8.8 million.
    assert sum(p.numel() for p in paper.parameters()) == pytest.approx(8.8e6, rel=0.02)
    with pytest.raises(ConfigError, match="Did you mean 'paper'"):
        denoiser_preset("papr", **SIZES)
    assert denoiser_preset("cpu", **SIZES, num_layers=5).num_layers == 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_context": 0}, "give both, or neither"),
        ({"backbone": "transformer", "patch": 3}, "no multiple of patch 3"),
        ({"backbone": "transformer", "hidden_size": 40}, "no multiple of twice num_heads"),
        ({"size": 0}, "size"),
    ],
)
def test_shapes_that_contradict_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DenoiserConfig(**{**SIZES, **changes})


def test_inputs_that_do_not_fit_are_refused() -> None:
    denoiser, (x, times, context, aligned) = opened("mlp"), inputs(3)
    for wrong, message in (
        ((x[:, :7], times, context, aligned), r"this denoiser takes \(rows, 8, 3\)"),
        ((x, times[:2], context, aligned), "one for each of 3 rows"),
        ((x, times, None, aligned), r"'context' has shape None; this denoiser takes \(rows or 1, 2, 5\)"),
        ((x, times, context[:2], aligned), "'context' has shape"),
        ((x, times, context, aligned[:, :, :1]), "'aligned' has shape"),
    ):
        with pytest.raises(InputError, match=message):
            denoiser(*wrong)
    plain = build_denoiser(DenoiserConfig(size=3, horizon=8), seed=0)
    assert plain(x, times).shape == x.shape
    with pytest.raises(InputError, match="this denoiser takes none"):
        plain(x, times, context)


@pytest.mark.parametrize("name", ["apart", "mlp", "patched"])
def test_a_denoiser_learns_chunks_that_its_conditions_decide(name: str) -> None:
    """The chunk is the running sum of the aligned condition from the context: the rollout of an integrator."""
    sizes = {"size": 1, "horizon": 4, "context_size": 1, "num_context": 1, "aligned_size": 1}
    shape = DenoiserConfig(**{**SMALL[name], **sizes, "patch": 2 if name == "patched" else 1})
    denoiser = build_denoiser(shape, seed=0)
    process, generator = ProcessConfig(), torch_generator(0, "toy")
    optimiser = torch.optim.AdamW(denoiser.parameters(), lr=6e-3, weight_decay=0.0)
    for _ in range(220):
        context, aligned = (torch.randn(shape_, generator=generator) for shape_ in ((64, 1, 1), (64, 4, 1)))
        x0 = context + 0.5 * aligned.cumsum(1)
        noise, times = torch.randn(x0.shape, generator=generator), train_times(process, 64, generator)
        loss = diffusion_loss(
            lambda x, u, c=context, a=aligned: denoiser(x, u, c, a), x0, process=process, noise=noise, times_B=times
        ).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    context, aligned = (torch.randn(shape_, generator=generator) for shape_ in ((200, 1, 1), (200, 4, 1)))
    noise, _ = draw_noise((200, 4, 1), SamplerConfig(), generator)
    samples = sample(denoiser.bind(context, aligned), noise, process=process, sampler=SamplerConfig(steps=4))
    truth = context + 0.5 * aligned.cumsum(1)
    # Without the aligned condition the error would be 0.6 of the spread, without the context 0.76.
    assert float((samples - truth).square().mean().sqrt()) < 0.4 * float(truth.std())


@pytest.mark.parametrize("backbone", ["mlp", "transformer"])
def test_a_regressor_reads_everything_and_refuses_other_shapes(backbone: str) -> None:
    shape = RegressorConfig(
        size=3,
        horizon=8,
        outputs=2,
        context_size=5,
        num_context=2,
        backbone=backbone,
        hidden_size=32,
        num_heads=2,  # pyright: ignore[reportArgumentType]
    )
    model, (x, _, context, _) = SequenceRegressor(shape, seed=0), inputs(4)
    base = model(x, context)
    assert base.shape == (4, 2)
    for index, each in enumerate((x, context)):
        changed = [x.clone(), context.clone()]
        changed[index] = each.clone()
        changed[index][1, -1] += 1.0
        moved = (model(*changed) - base).abs().amax(1)
        assert moved[1] > 1e-4
        assert moved[[0, 2, 3]].max() < 1e-5
    with pytest.raises(InputError, match="this regressor takes"):
        model(x)
    with pytest.raises(InputError, match="this regressor takes"):
        model(x[:, :4], context)
