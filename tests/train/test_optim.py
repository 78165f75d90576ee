"""Optimisers and schedules: which parameter decays, how fast, and along which curve."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from forethought.core.errors import ConfigError
from forethought.core.rng import torch_generator
from forethought.train import OPTIMISERS, SCHEDULES, OptimiserConfig, ScheduleConfig, build_optimisers, multiplier


class Model(nn.Module):
    def __init__(self, *, tied: bool = False) -> None:
        super().__init__()
        self.embedding = nn.Embedding(8, 6)
        self.hidden = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)
        self.conv = nn.Conv1d(6, 6, 3)
        self.head = nn.Linear(6, 8, bias=False)
        self.frozen = nn.Linear(6, 6).requires_grad_(False)
        if tied:
            self.head.weight = self.embedding.weight
        weights = torch_generator(1, "test")
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.copy_(torch.randn(parameter.shape, generator=weights))


def decays(module: nn.Module, config: OptimiserConfig, **extra: float) -> dict[str, tuple[str, float, float]]:
    """Return name -> (optimiser, learning rate, weight decay) of every trained parameter."""
    built = build_optimisers(module, config, **extra)
    return {
        built.names[id(parameter)]: (type(member).__name__, group["lr"], group["weight_decay"])
        for member in built.members
        for group in member.param_groups
        for parameter in group["params"]
    }


def test_matrices_decay_and_gains_biases_and_embeddings_do_not() -> None:
    found = decays(Model(), OptimiserConfig(lr=0.01, weight_decay=0.3))
    assert {name: decay for name, (_, _, decay) in found.items()} == {
        "hidden.weight": 0.3,
        "conv.weight": 0.3,
        "head.weight": 0.3,
        "embedding.weight": 0.0,
        "hidden.bias": 0.0,
        "norm.weight": 0.0,
        "norm.bias": 0.0,
        "conv.bias": 0.0,
    }
    assert {rate for _, rate, _ in found.values()} == {0.01}
    embedded = decays(Model(), OptimiserConfig(weight_decay=0.3, decay_embeddings=True))
    assert embedded["embedding.weight"][2] == 0.3


def test_a_tied_matrix_is_optimised_once_and_as_the_embedding_that_it_is() -> None:
    found = decays(Model(tied=True), OptimiserConfig(weight_decay=0.3))
    assert found["embedding.weight"][2] == 0.0
    assert "head.weight" not in found


def test_muon_drives_the_hidden_matrices_only() -> None:
    found = decays(Model(), OptimiserConfig(name="muon", lr=0.01, muon_lr=0.02, weight_decay=0.3))
    assert {name for name, (member, _, _) in found.items() if member == "Muon"} == {"hidden.weight"}
    assert found["hidden.weight"] == ("Muon", 0.02, 0.3)
    assert found["head.weight"] == ("AdamW", 0.01, 0.3)
    assert found["embedding.weight"] == ("AdamW", 0.01, 0.0)


def test_muon_without_hidden_matrices_is_adamw() -> None:
    found = decays(nn.LayerNorm(4), OptimiserConfig(name="muon"))
    assert {member for member, _, _ in found.values()} == {"AdamW"}


def test_tau_is_turned_into_the_decay_of_each_learning_rate() -> None:
    config = OptimiserConfig(name="muon", lr=0.01, muon_lr=0.02, tau=0.5)
    found = decays(Model(), config, steps_per_epoch=200)
    assert found["head.weight"][2] == pytest.approx(1 / (0.01 * 0.5 * 200))
    assert found["hidden.weight"][2] == pytest.approx(1 / (0.02 * 0.5 * 200))
    assert found["norm.weight"][2] == 0.0
    with pytest.raises(ConfigError, match="tau needs the number of steps an epoch"):
        build_optimisers(Model(), config)


def test_weights_without_gradient_signal_shrink_with_the_time_constant_tau() -> None:
    module = nn.Linear(4, 4, bias=False)
    steps = 200
    built = build_optimisers(module, OptimiserConfig(lr=0.01, tau=0.5), steps_per_epoch=steps)
    start = module.weight.detach().clone()
    for _ in range(steps):
        module.weight.grad = torch.zeros_like(module.weight)
        built.step()
    shrunk = float((module.weight.detach() / start).mean())
    assert shrunk == pytest.approx((1 - 1 / (0.5 * steps)) ** steps, rel=1e-4)
    assert shrunk == pytest.approx(math.exp(-2), rel=0.02)


def test_adamw_takes_the_step_of_the_textbook() -> None:
    module = nn.Linear(2, 2, bias=False)
    start = module.weight.detach().clone()
    built = build_optimisers(module, OptimiserConfig(lr=0.1, weight_decay=0.5, beta1=0.9, beta2=0.95, eps=1e-8))
    gradient = torch.tensor([[1.0, -2.0], [3.0, 0.5]])
    module.weight.grad = gradient.clone()
    built.set_rate(0.5)
    built.step()
    rate = 0.05
    expected = start * (1 - rate * 0.5) - rate * gradient / (gradient.abs() + 1e-8)
    assert torch.allclose(module.weight, expected, atol=1e-6)


@pytest.mark.parametrize("name", sorted(OPTIMISERS))
def test_the_state_of_every_optimiser_comes_back_exactly(name: str) -> None:
    config = OptimiserConfig(name=name)

    def step(module: nn.Module, built: object, count: int, first: int) -> None:
        for index in range(first, first + count):
            noise = torch_generator(2, "gradient", index)
            for parameter in module.parameters():
                if parameter.requires_grad:
                    parameter.grad = torch.randn(parameter.shape, generator=noise)
            built.step()  # type: ignore[attr-defined]
            built.zero_grad()  # type: ignore[attr-defined]

    whole, half = Model(), Model()
    whole_optimisers, half_optimisers = build_optimisers(whole, config), build_optimisers(half, config)
    step(whole, whole_optimisers, 6, 0)
    step(half, half_optimisers, 3, 0)
    again = Model()
    again.load_state_dict(half.state_dict())
    again_optimisers = build_optimisers(again, config)
    saved = {key: tensor.clone() for key, tensor in half_optimisers.state().items()}
    again_optimisers.load_state(saved)
    step(again, again_optimisers, 3, 3)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))
    assert saved.keys() == whole_optimisers.state().keys()
    assert {key.rpartition("/")[0] for key in saved} == {n for n, p in whole.named_parameters() if p.requires_grad}


def test_the_state_of_another_model_is_refused_by_name() -> None:
    built = build_optimisers(Model(), OptimiserConfig())
    with pytest.raises(ConfigError, match="parameters this model lacks: other"):
        built.load_state({"other/exp_avg": torch.zeros(1)})


def test_nothing_to_train_and_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigError, match="no trainable parameters"):
        build_optimisers(nn.Linear(2, 2).requires_grad_(False), OptimiserConfig())
    with pytest.raises(ConfigError, match=r"unknown optimiser 'adam'; known: adamw, muon\. Did you mean 'adamw'"):
        OptimiserConfig(name="adam")
    with pytest.raises(ConfigError, match=r"unknown schedule 'cosin'.*Did you mean 'cosine'"):
        ScheduleConfig(name="cosin")


def curve(name: str, steps: int, **settings_: float) -> list[float]:
    schedule = ScheduleConfig(name=name, **settings_)  # type: ignore[arg-type]
    return [multiplier(step, steps, schedule) for step in range(steps + 1)]


def test_the_cosine_warms_up_linearly_and_falls_to_the_floor() -> None:
    found = curve("cosine", 100, warmup=0.1, floor=0.2)
    assert found[:10] == pytest.approx([(step + 1) / 10 for step in range(10)])
    assert found[10] == 1.0
    assert found[55] == pytest.approx(0.6)
    assert found[100] == pytest.approx(0.2)


def test_the_trapezoid_stays_and_then_falls_in_a_line() -> None:
    found = curve("trapezoid", 100, warmup=0.1, cooldown=0.2)
    assert found[9:82] == pytest.approx([1.0] * 73)
    assert found[91] == pytest.approx(0.5)
    assert found[100] == pytest.approx(0.0, abs=1e-12)
    assert curve("trapezoid", 10, warmup=0.0, cooldown=0.0) == [1.0] * 11


def test_constant_is_constant_after_the_warm_up() -> None:
    assert curve("constant", 10, warmup=0.3) == pytest.approx([1 / 3, 2 / 3, *[1.0] * 9])


@settings(deadline=None, max_examples=200)
@given(
    st.sampled_from(sorted(SCHEDULES)),
    st.integers(1, 300),
    st.floats(0, 0.99),
    st.floats(0, 1),
    st.floats(0, 1),
)
def test_every_schedule_rises_then_never_rises_again_and_stays_between_floor_and_one(
    name: str, steps: int, warmup: float, cooldown: float, floor: float
) -> None:
    found = curve(name, steps, warmup=warmup, cooldown=cooldown, floor=floor)
    start = math.ceil(warmup * steps)
    assert all(0.0 <= value <= 1.0 + 1e-12 for value in found)
    assert all(a <= b + 1e-12 for a, b in itertools.pairwise(found[:start]))
    assert all(a >= b - 1e-12 for a, b in itertools.pairwise(found[start:]))
    assert all(value >= floor - 1e-12 for value in found[start:])
    assert found[0] > 0.0 or (start == 0 and floor == 0.0)


@pytest.mark.parametrize(("saved", "now"), [("adamw", "muon"), ("muon", "adamw")])
def test_a_state_of_another_optimiser_is_refused(saved: str, now: str) -> None:
    module = Model()
    first = build_optimisers(module, OptimiserConfig(name=saved))
    sum(parameter.sum() for parameter in module.parameters() if parameter.requires_grad).backward()
    first.step()
    with pytest.raises(ConfigError, match=r"state of hidden\.weight .* choose the optimiser that the run was started"):
        build_optimisers(module, OptimiserConfig(name=now)).load_state(first.state())
    build_optimisers(module, OptimiserConfig(name=saved)).load_state(first.state())
