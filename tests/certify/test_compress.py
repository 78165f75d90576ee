"""Quantised networks: gradients pass, codebooks are fp16, the price is the bound's own derivative, phases resume."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from forethought.certify.bounds import occam_kl
from forethought.certify.codes import Message
from forethought.certify.compress import CompressibleNetwork, CompressionConfig, Examples, Phase, bound_slope, run_phase
from forethought.certify.compress.phases import class_loss
from forethought.certify.compress.quantiser import Quantiser
from forethought.certify.compress.slope import numerical_slope
from forethought.certify.decoder import (
    BaseRecipe,
    CodebookRecipe,
    LoraRecipe,
    Recipe,
    SubspaceRecipe,
    network_of,
)
from forethought.core.rng import generator


def recipe(**changes: object) -> Recipe:
    plain = Recipe(
        architecture="mlp",
        settings={"num_inputs": 6, "num_classes": 3, "hidden": [8]},
        subspace=SubspaceRecipe(kind="hash", dimension=20),
        codebook=CodebookRecipe(levels=5),
    )
    return dataclasses.replace(plain, **changes)


RECIPES = {
    "hash": recipe(),
    "dense": recipe(subspace=SubspaceRecipe(kind="dense", dimension=20)),
    "kronecker": recipe(subspace=SubspaceRecipe(kind="kronecker", dimension=20)),
    "per tensor": recipe(
        subspace=SubspaceRecipe(kind="identity"),
        base=BaseRecipe(kind="zeros"),
        codebook=CodebookRecipe(kind="grid", levels=7, per="tensor"),
    ),
    "lora": recipe(lora=LoraRecipe(rank=2, alpha=4.0)),
}


def blobs(n: int = 90) -> tuple[np.ndarray, np.ndarray]:
    draw = generator(3, "test.blobs")
    labels = np.arange(n) % 3
    inputs = np.eye(6)[labels * 2] * 2 + 0.3 * draw.standard_normal((n, 6))
    return inputs.astype(np.float32), labels


@pytest.mark.parametrize("name", RECIPES)
def test_the_message_decodes_to_the_network_that_was_trained(name: str):
    chosen = RECIPES[name]
    network = CompressibleNetwork(chosen)
    with torch.no_grad():
        noise = generator(1, "test.numbers").standard_normal(len(network.numbers))
        network.numbers.add_(torch.from_numpy(noise).float())
    network.quantise()
    inputs, _ = blobs()
    trained, _ = network(torch.from_numpy(inputs))
    message = Message({}, tuple(network.segments()), np.empty(0))
    decoded = network_of(chosen, message.numbers)
    rebuilt = decoded.module(torch.from_numpy(inputs).double())
    assert torch.allclose(trained.double(), rebuilt, atol=1e-4)


def test_gradients_pass_the_rounding_and_reach_number_and_level():
    numbers = torch.tensor([0.0, 0.1, 0.9, 1.0, 1.1], requires_grad=True)
    quantiser = Quantiser(CodebookRecipe(levels=2), (5,), numbers)
    values, _ = quantiser(numbers)
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0, 5.0])
    (values * weights).sum().backward()
    assert numbers.grad is not None
    assert torch.equal(numbers.grad, weights)
    assert quantiser.values.grad is not None
    assert quantiser.values.grad.flatten().tolist() == [3.0, 12.0]


def test_what_is_used_in_training_is_what_a_message_can_hold():
    numbers = torch.from_numpy(generator(0, "test.half").standard_normal(50)).float() * 0.777
    for kind in ("table", "grid"):
        quantiser = Quantiser(CodebookRecipe(kind=kind, levels=6), (30, 20), numbers)
        with torch.no_grad():
            quantiser.values.mul_(1.00037)  # learning leaves the fp16 numbers at once
        values, _ = quantiser(numbers)
        coded = np.concatenate([segment.values for segment in quantiser.coded(numbers)])
        assert np.allclose(values.detach().numpy(), coded, rtol=2e-7, atol=0)


def test_the_price_pulls_numbers_to_the_common_level():
    numbers = torch.tensor([0.0] * 20 + [0.45, 1.0], requires_grad=True)
    quantiser = Quantiser(CodebookRecipe(levels=2), (22,), numbers)
    _, bits = quantiser(numbers)
    bits.backward()
    assert numbers.grad is not None
    assert numbers.grad[20] > 0.1  # downhill in bits is towards 0, where twenty others are
    assert abs(numbers.grad[0]) < 0.1 * numbers.grad[20]


def test_thrift_shortens_the_message():
    numbers = torch.from_numpy(generator(0, "test.thrift").standard_normal(400)).float()
    quantiser = Quantiser(CodebookRecipe(levels=9), (400,), numbers)
    plain, thrifty = (sum(s.bits for s in quantiser.coded(numbers, thrift=t)) for t in (0.0, 1.0))
    assert thrifty < 0.98 * plain


@settings(deadline=None, max_examples=60)
@given(risk=st.floats(0.01, 0.5), n=st.integers(500, 60_000), share=st.floats(0.01, 0.15), delta=st.floats(0.001, 0.2))
def test_the_slope_is_the_derivative_of_the_bound(risk: float, n: int, share: float, delta: float):
    bits = share * n + 20
    exact = bound_slope(risk, n, bits, delta)
    measured = numerical_slope(lambda r, b: occam_kl(r, n, b, delta), risk, bits)
    assert exact.by_bits == pytest.approx(measured.by_bits, rel=2e-3)
    assert exact.by_risk == pytest.approx(measured.by_risk, rel=2e-3)


def test_a_phase_learns_and_goes_on_where_it_stopped(tmp_path: Path):
    inputs, labels = blobs()
    training = CompressionConfig(steps=100, quantise_steps=20, batch_size=30, lr=1e-1, checkpoint_every=0)
    examples = Examples(inputs, labels, 30, 0)

    def trained(place: Path) -> CompressibleNetwork:
        network = CompressibleNetwork(recipe())
        phase = Phase("a", recipe(), training, "0")
        figures = run_phase(network, phase, examples, class_loss(0.0), place / "a", show=False)
        assert figures["error"] < 0.1
        network.quantise()
        phase = Phase("b", recipe(), training, "0", 1e-4)
        run_phase(network, phase, examples, class_loss(1e-4), place / "b", show=False)
        return network

    first = trained(tmp_path)
    again = trained(tmp_path)  # both phases are done: nothing trains, the checkpoints speak
    fresh = trained(tmp_path / "other")
    assert torch.equal(first.numbers, again.numbers)
    assert torch.equal(first.numbers, fresh.numbers)


def test_batches_cover_every_example_once_an_epoch():
    inputs, labels = blobs(90)
    examples = Examples(np.arange(90, dtype=np.float32)[:, None] + 0 * inputs[:, :1], labels, 30, 7)
    first = torch.cat([examples(step)[0] for step in range(3)]).flatten()
    second = torch.cat([examples(step)[0] for step in range(3, 6)]).flatten()
    assert sorted(first.tolist()) == sorted(second.tolist()) == list(range(90))
    assert not torch.equal(first, second)
