"""Certificates: what the decoder rebuilds, what the document says, what a prior and a ledger allow."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from tests.certify.certificates import (
    HASHED,
    LINEAR,
    TRANSFORMER,
    WINDOW,
    blobs,
    drawn_certificate,
    linear_certificate,
    text,
)
from torch import nn

from forethought.certify import DeltaLedger, Examples, Prior, Recipe, Tokens, issue, occam_binomial, read_certificate
from forethought.certify.certificate import as_data, load_data, message_of
from forethought.certify.codes import Segment, TableCodebook
from forethought.certify.codes.codebook import to_half
from forethought.certify.decoder import (
    ARCHITECTURES,
    BaseRecipe,
    CodebookRecipe,
    LoraRecipe,
    SubspaceRecipe,
    TokenScoring,
    ZeroOneScoring,
    assembly_of,
    build_module,
    count_errors,
    network_of,
    plan_of,
    subspace,
    token_losses,
)
from forethought.certify.decoder.architectures import batch_within
from forethought.certify.decoder.base import draw, fingerprint_parameters, signs, slots_of
from forethought.certify.decoder.scoring import mistakes
from forethought.core.errors import ArtefactError, ConfigError, DataError, InputError
from forethought.core.rng import generator

SHAPES = {
    "mlp": {"num_inputs": 12, "num_classes": 3, "hidden": [7, 5]},
    "conv": {"height": 9, "width": 6, "num_classes": 3, "channels": [4, 6], "hidden": 8, "image_channels": 2},
    "window": {"vocab_size": 11, "context": 3, "embedding": 4, "hidden": 8},
    "transformer": {"vocab_size": 11, "hidden_size": 16, "num_layers": 2, "num_heads": 2, "max_positions": 32},
}


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_sizes_by_arithmetic_are_the_sizes_of_the_network(name: str) -> None:
    module = build_module(name, SHAPES[name])
    settings = ARCHITECTURES[name].settings(**SHAPES[name])
    assert sum(p.numel() for p in module.parameters()) == ARCHITECTURES[name].num_parameters(settings)
    assert all(p.is_meta for p in module.parameters()), "nothing is allocated before the size is known"


def test_first_weights_are_the_same_for_ever() -> None:
    """Golden draws: integers of the generator and one multiplication."""
    slot = slots_of(build_module("mlp", SHAPES["mlp"]))[0]
    values = draw(slot, 5)
    assert (slot.name, slot.shape) == ("layers.0.weight", (7, 12))
    assert values[:3].tolist() == [FIRST, SECOND, THIRD]
    assert np.abs(values).max() <= 1 / math.sqrt(12)
    assert values.std() == pytest.approx(slot.scale, rel=0.15)
    assert signs(1, "x", 8).tolist() == SIGNS


FIRST, SECOND, THIRD = 0.009307384900841433, -0.08296553818755145, -0.23888810266170984
SIGNS = [1, -1, 1, -1, -1, 1, 1, -1]


@pytest.mark.parametrize("kind", ["hash", "dense", "kronecker"])
def test_subspaces_are_linear_of_unit_rows_and_alike_in_both_precisions(kind: str) -> None:
    size, dimension = 3_000, 90
    wide = subspace(kind, size, dimension, 4)
    narrow = subspace(kind, size, dimension, 4, dtype=torch.float32)
    a, b = (torch.from_numpy(generator(i, "subspace").normal(size=dimension)) for i in (0, 1))
    assert torch.allclose(wide.expand(2 * a - b), 2 * wide.expand(a) - wide.expand(b), atol=1e-12)
    assert torch.allclose(wide.expand(a).float(), narrow.expand(a.float()), atol=1e-4)
    columns = torch.stack([wide.expand(torch.eye(dimension, dtype=torch.float64)[i]) for i in range(dimension)], dim=1)
    assert columns.square().sum(dim=1).mean().item() == pytest.approx(1.0, abs=0.05)
    assert torch.linalg.matrix_rank(columns) == dimension
    assert not torch.allclose(wide.expand(a), subspace(kind, size, dimension, 5).expand(a))
    if kind == "hash":
        assert columns.count_nonzero(dim=1).eq(1).all()
        assert columns.abs().sum(dim=0).max() - columns.abs().sum(dim=0).min() <= 1, "balanced buckets"


@pytest.mark.parametrize("kind", ["hash", "dense", "kronecker"])
def test_subspaces_are_the_same_for_ever(kind: str) -> None:
    """Golden values: a certificate of today is read by the library of tomorrow, on any machine."""
    numbers = torch.arange(1, 11, dtype=torch.float64)
    found = subspace(kind, 40, 10, 4).expand(numbers)[:6].tolist()
    assert found == pytest.approx(SUBSPACE_GOLDEN[kind], rel=1e-12)


SUBSPACE_GOLDEN = {
    "hash": [3.0, -3.0, 4.0, -7.0, -8.0, -8.0],
    "dense": [
        -4.743416490252569,
        0.31622776601683755,
        9.170605214488301,
        6.640783086353597,
        6.640783086353597,
        -11.700427342623005,
    ],
    "kronecker": [
        1.093570536007245,
        -6.36011965883563,
        0.6821904674902016,
        11.92909330924929,
        -2.906912575723567,
        4.224586197349783,
    ],
}


def test_a_subspace_that_does_not_fit_is_refused() -> None:
    for kind, size, dimension in [("hash", 5, 6), ("hash", 5, 0), ("identity", 5, 4), ("dense", 1 << 20, 1 << 12)]:
        with pytest.raises(ArtefactError):
            subspace(kind, size, dimension, 0)
    with pytest.raises(ConfigError, match="hash"):
        subspace("hsah", 5, 2, 0)


@pytest.mark.parametrize("recipe", [LINEAR, HASHED, WINDOW, TRANSFORMER], ids=lambda r: r.architecture)
def test_zero_numbers_give_the_base_and_numbers_move_it(recipe: Recipe) -> None:
    plan = plan_of(recipe)
    still = network_of(recipe, np.zeros(plan.dimension))
    moved = network_of(recipe, np.ones(plan.dimension))
    for slot in plan.slots:
        drawn = np.full(slot.size, slot.centre) if recipe.base.kind == "zeros" else draw(slot, recipe.base.seed)
        assert np.array_equal(still.weights[slot.name].numpy().ravel(), drawn)
        assert not torch.equal(still.weights[slot.name], moved.weights[slot.name])
    for name, parameter in moved.module.named_parameters():
        assert torch.equal(parameter, moved.weights[name])
    assert sum(plan.segments) == plan.dimension


def test_building_and_decoding_leave_the_global_generators_alone() -> None:
    before = torch.get_rng_state()
    network_of(HASHED, np.zeros(60))
    network_of(TRANSFORMER, np.zeros(100))
    assert torch.equal(before, torch.get_rng_state())


def test_the_assembly_is_differentiable_and_agrees_with_the_decoder() -> None:
    assembly = assembly_of(HASHED, dtype=torch.float32)
    numbers = torch.linspace(-1, 1, 60).requires_grad_()
    weights = assembly.weights(numbers)
    torch.cat([w.ravel() for w in weights.values()]).sum().backward()
    assert numbers.grad is not None
    assert numbers.grad.count_nonzero() > 40
    decoded = network_of(HASHED, np.linspace(-1, 1, 60)).weights
    for name, weight in weights.items():
        assert torch.allclose(weight, decoded[name].float(), atol=1e-5)


def test_low_rank_updates_move_only_their_targets() -> None:
    lora = LoraRecipe(rank=2, alpha=4.0, targets=("mlp.down.weight",))
    recipe = Recipe(
        architecture="transformer",
        settings=SHAPES["transformer"],
        scoring=TokenScoring(vocab_size=11, context=16),
        subspace=SubspaceRecipe(dimension=50),
        lora=lora,
    )
    still, moved = network_of(recipe, np.zeros(50)), network_of(recipe, np.ones(50))
    for name, weight in still.weights.items():
        change = moved.weights[name] - weight
        if name.endswith("mlp.down.weight"):
            assert torch.linalg.matrix_rank(change) == 2
        else:
            assert not change.any()
    with pytest.raises(ArtefactError, match="targets"):
        plan_of(Recipe(**{**vars_of(recipe), "lora": LoraRecipe(targets=("nothing",))}))


def vars_of(recipe: Recipe) -> dict[str, object]:
    return {name: getattr(recipe, name) for name in ("architecture", "settings", "scoring", "subspace")}


class Own(nn.Module):
    """A user's own network, with a buffer that data could move and a tied matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(12, 12, bias=False)
        self.second = nn.Linear(12, 3)
        self.again = self.first
        self.register_buffer("mean", torch.zeros(12))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.again(torch.relu(self.first(x - self.mean))))


def test_a_users_own_module_with_coded_buffers_and_tied_weights_once() -> None:
    recipe = Recipe(architecture="given", settings={}, subspace=SubspaceRecipe(dimension=40), num_buffers=12)
    plan = plan_of(recipe, Own())
    assert plan.num_moved == 144 + 39
    buffers = to_half(np.linspace(-1, 1, 12))
    network = network_of(recipe, np.ones(40), module=Own(), buffers=buffers)
    assert np.array_equal(network.module.state_dict()["mean"].numpy(), buffers)
    with pytest.raises(ArtefactError, match="buffer"):
        network_of(recipe, np.ones(40), module=Own(), buffers=buffers[:5])
    with pytest.raises(ArtefactError, match="module"):
        plan_of(recipe)
    with pytest.raises(ArtefactError, match="no module"):
        plan_of(LINEAR, Own())


def test_public_base_weights_are_held_to_their_fingerprint() -> None:
    public = {name: p.detach().clone() for name, p in nn.Linear(12, 3).named_parameters()}
    recipe = Recipe(
        architecture="given",
        settings={},
        base=BaseRecipe(kind="given", sha256=fingerprint_parameters(public)),
        subspace=SubspaceRecipe(dimension=10),
    )
    network = network_of(recipe, np.zeros(10), module=nn.Linear(12, 3), base=public)
    assert torch.equal(network.weights["weight"], public["weight"].double())
    with pytest.raises(ArtefactError, match="SHA-256"):
        network_of(recipe, np.zeros(10), module=nn.Linear(12, 3), base=public | {"bias": public["bias"] + 1e-3})
    with pytest.raises(ArtefactError, match="do not fit"):
        network_of(recipe, np.zeros(10), module=nn.Linear(12, 3), base={"weight": public["weight"]})
    with pytest.raises(ArtefactError, match="needs given"):
        network_of(recipe, np.zeros(10), module=nn.Linear(12, 3))


def test_ties_and_nan_count_as_mistakes() -> None:
    logits = torch.tensor([[1.0, 2.0], [2.0, 2.0], [math.nan, 3.0], [3.0, math.nan], [math.inf, 0.0], [5.0, -1.0]])
    assert mistakes(logits, torch.tensor([1, 0, 1, 0, 0, 0])) == 3
    assert mistakes(torch.zeros(4, 1), torch.zeros(4, dtype=torch.int64)) == 4, "one class wins nothing"


def test_errors_do_not_depend_on_the_batch() -> None:
    certificate, data = linear_certificate()
    numbers = np.linspace(-1, 1, 39)
    counts = []
    for size in (1, 7, 1_200):
        recipe = Recipe(**{**vars_of(LINEAR), "scoring": ZeroOneScoring(batch_size=size), "base": LINEAR.base})
        counts.append(count_errors(network_of(recipe, numbers), data.inputs, data.labels))
    assert len(set(counts)) == 1
    assert certificate.document.result.n == 1_200


@pytest.mark.parametrize("recipe", [WINDOW, TRANSFORMER], ids=lambda r: r.architecture)
def test_token_losses_are_those_of_the_mixed_law_and_see_the_past_only(recipe: Recipe) -> None:
    network = network_of(recipe, generator(0, "tokens").normal(size=plan_of(recipe).dimension))
    tokens = text(101).tokens
    losses, guesses = token_losses(network, tokens, 0.1)
    context = 3 if recipe is WINDOW else 1
    assert len(losses) == len(guesses) == 101 - context
    assert losses.max() <= math.log(11 / 0.1) * (1 + 1e-12)
    assert 0 < guesses.min() <= guesses.max() <= math.log(11) + 1e-12
    changed = tokens.copy()
    changed[60:] = (changed[60:] + 1) % 11
    other, other_guesses = token_losses(network, changed, 0.1)
    assert np.allclose(losses[: 60 - context], other[: 60 - context], atol=1e-12)
    assert np.allclose(guesses[: 61 - context], other_guesses[: 61 - context], atol=1e-12), "a guess precedes its token"
    if recipe is WINDOW:
        logits = network.module(torch.from_numpy(tokens[None, 7:10].copy()))[0]
        expected = -math.log(0.9 * float(torch.softmax(logits, 0)[tokens[10]]) + 0.1 / 11)
        assert losses[7] == pytest.approx(expected, rel=1e-12)


def test_a_certificate_says_what_it_rests_on(tmp_path: Path) -> None:
    certificate, data = linear_certificate()
    document = certificate.document
    result = document.result
    assert 0.0 < result.train_risk < 0.15
    assert result.bound < 0.35 < result.trivial
    assert not certificate.vacuous
    assert document.bits.choices == 2.0
    assert document.bits.codebook == 5 * 16
    assert result.bound == occam_binomial(round(result.train_risk * 1_200), 1_200, document.bits.total, 0.05)
    assert "With probability 0.95" in certificate.statement
    assert "VACUOUS" not in certificate.statement
    assert "nothing of other laws" in certificate.statement
    again = read_certificate(certificate.save(tmp_path / "linear.cert"))
    assert again == certificate
    assert data.sha256 == document.data.sha256


@pytest.mark.parametrize("recipe", [HASHED, WINDOW, TRANSFORMER], ids=lambda r: r.architecture)
def test_a_worthless_network_is_certified_as_vacuous_and_not_clipped(recipe: Recipe) -> None:
    certificate, _ = drawn_certificate(recipe)
    assert certificate.vacuous
    assert "VACUOUS" in certificate.statement
    assert certificate.document.delta.delta == 0.05, "half of what was left"
    if recipe is not HASHED:
        bounds = certificate.document.result.bounds
        assert bounds["freedman"] <= bounds["freedman_closed"]
        assert certificate.bound > math.log(11)


def test_a_prior_holds_the_recipe_to_its_grids() -> None:
    prior = Prior(HASHED, {"subspace.dimension": [30, 60], "codebook.levels": [4, 8, 16]})
    assert prior.choice_bits == pytest.approx(math.log2(6))
    assert prior.find(HASHED) == {"subspace.dimension": 1, "codebook.levels": 1}
    assert prior.resolve({"subspace.dimension": 0, "codebook.levels": 2}).codebook.levels == 16
    with pytest.raises(ConfigError, match="declared grid"):
        Prior(HASHED, {"subspace.dimension": [30, 90]}).find(HASHED)
    with pytest.raises(ConfigError, match="not left open"):
        prior.find(Recipe(**{**vars_of(HASHED), "base": BaseRecipe(seed=8), "codebook": HASHED.codebook}))
    for chosen in [
        {},
        {"subspace.dimension": 2, "codebook.levels": 0},
        {"subspace.dimension": True, "codebook.levels": 0},
    ]:
        with pytest.raises(ConfigError):
            prior.resolve(chosen)
    for choices in [{"subspace.dim": [1, 2]}, {"subspace.dimension": []}, {"subspace.dimension": [2, 2]}]:
        with pytest.raises(ConfigError):
            Prior(HASHED, choices)
    assert prior.sha256 != Prior(HASHED, {"subspace.dimension": [30, 60]}).sha256


def test_settings_that_contradict_each_other_are_refused() -> None:
    for make in (
        lambda: SubspaceRecipe(kind="hash"),
        lambda: SubspaceRecipe(kind="identity", dimension=4),
        lambda: BaseRecipe(kind="given"),
        lambda: Recipe(architecture="mlp", settings={}, codebook=CodebookRecipe(per="tensor")),
        lambda: build_module("mlq", SHAPES["mlp"]),
        lambda: build_module("mlp", {"num_inputs": 0, "num_classes": 3}),
        lambda: build_module("conv", {"height": 3, "width": 3, "num_classes": 2}),
        lambda: plan_of(Recipe(architecture="mlp", settings=SHAPES["mlp"], subspace=SubspaceRecipe(dimension=10**6))),
        lambda: plan_of(Recipe(architecture="window", settings=SHAPES["window"])),
    ):
        with pytest.raises(InputError):
            make()


def test_one_ledger_for_all_certificates_of_a_data_set() -> None:
    certificate, data = linear_certificate()
    ledger = DeltaLedger(data.sha256, 0.05)
    symbols = np.zeros(39, dtype=np.int64)
    message = message_of(LINEAR, [Segment(symbols, TableCodebook((0.0, 1.0, 2.0, 3.0, 4.0)))])
    prior = certificate.document.prior
    first = issue(prior, LINEAR, message, data, ledger=ledger, delta=0.02)
    again = issue(prior, LINEAR, certificate.message, data, ledger=ledger, delta=0.02)
    assert ledger.spent == 0.02, "one draw covers every hypothesis of one prior"
    assert (first.document.delta, again.document.delta.spent_before) == (again.document.delta, 0.0)
    other = issue(Prior(LINEAR), LINEAR, certificate.message, data, ledger=ledger, delta=0.03)
    assert other.document.delta.spent_before == 0.02
    with pytest.raises(InputError, match=r"share|left"):
        issue(Prior(LINEAR, {"codebook.levels": [5]}), LINEAR, certificate.message, data, ledger=ledger, delta=0.01)
    with pytest.raises(InputError, match="another data set"):
        issue(prior, LINEAR, message, blobs(60), ledger=ledger)


@pytest.mark.parametrize(
    "data",
    [
        lambda d: (d.inputs, d.labels.astype(float)),
        lambda d: (d.inputs, np.eye(3)[d.labels]),
        lambda d: (d.inputs[:-1], d.labels),
        lambda d: (np.where(d.inputs > 2, np.nan, d.inputs), d.labels),
        lambda d: (d.inputs[:, :5], d.labels),
        lambda d: (d.inputs, d.labels + 1),
        lambda d: (d.inputs, d.labels - 1),
        lambda d: (d.inputs[:0], d.labels[:0]),
        lambda d: d.labels,
        lambda d: "blobs",
    ],
)
def test_data_that_do_not_fit_are_refused_by_name(data: object) -> None:
    certificate, honest = linear_certificate()
    given = data(honest)  # type: ignore[operator]

    def certify() -> None:
        kept = as_data(given)
        issue(certificate.document.prior, LINEAR, certificate.message, kept, ledger=DeltaLedger(kept.sha256))

    with pytest.raises(InputError):
        certify()


def test_fingerprints_tell_types_shapes_and_values_apart(tmp_path: Path) -> None:
    data = blobs(50)
    prints = {
        data.sha256,
        Examples(data.inputs.astype(np.float64), data.labels).sha256,
        Examples(data.inputs.reshape(50, 4, 3), data.labels).sha256,
        Examples(data.inputs, np.roll(data.labels, 1)).sha256,
        Tokens(data.labels).sha256,
        Tokens(np.roll(data.labels, 1)).sha256,
    }
    assert len(prints) == 6
    assert Tokens(data.labels.astype(np.uint16)).sha256 == Tokens(data.labels).sha256
    assert Examples(np.asfortranarray(data.inputs), data.labels.astype(np.int32)).sha256 == data.sha256
    np.savez(tmp_path / "d.npz", inputs=data.inputs, labels=data.labels)
    np.save(tmp_path / "t.npy", data.labels)
    assert load_data(tmp_path / "d.npz").sha256 == data.sha256
    assert load_data(tmp_path / "t.npy").sha256 == Tokens(data.labels).sha256
    np.savez(tmp_path / "wrong.npz", stuff=data.inputs)
    (tmp_path / "torn.npz").write_bytes((tmp_path / "d.npz").read_bytes()[:90])
    for name in ("wrong.npz", "torn.npz", "missing.npz"):
        with pytest.raises(DataError):
            load_data(tmp_path / name)


def test_scoring_takes_no_more_memory_than_it_may() -> None:
    assert batch_within("mlp", SHAPES["mlp"], 500) == 500
    wide = {"height": 512, "width": 512, "num_classes": 2, "channels": [8]}
    assert 1 <= batch_within("conv", wide, 1 << 20) < 8
    with pytest.raises(ArtefactError, match="memory"):
        batch_within("conv", {**wide, "height": 4096, "width": 4096, "hidden": 1, "channels": [1, 1, 1]}, 1)
