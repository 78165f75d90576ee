"""The model: shapes, causality, rollouts, published weights, and the artefact."""

from __future__ import annotations

from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor

import forethought
from forethought.core.errors import ArtefactError, CheckpointError, ConfigError, InputError
from forethought.core.rng import torch_generator
from forethought.nn import BlockConfig, initialise
from forethought.nn.vit import ViT, ViTConfig
from forethought.world import WorldModel, load_world_model, preset, save_world_model
from forethought.world.config import EncoderConfig, PredictorConfig, WorldConfig
from forethought.world.model import PIXEL_MEAN, PIXEL_STD
from forethought.world.official import from_official, load_official, official_layout, to_official


def draw(*shape: int, name: str = "x") -> Tensor:
    return torch.randn(shape, generator=torch_generator(5, f"test.{name}"))


def frames(*shape: int) -> Tensor:
    return torch.randint(0, 256, (*shape, 32, 32, 3), dtype=torch.uint8, generator=torch_generator(5, "frames"))


def stirred(config: WorldConfig | None = None) -> WorldModel:
    """A model whose closed gates are open and whose BatchNorm has statistics of its own."""
    model = WorldModel(config or preset("tiny"), seed=1)
    with torch.no_grad():
        for name, value in model.named_buffers():
            if "running" in name:
                value.add_(draw(*value.shape, name=name).abs())
        for name, parameter in model.named_parameters():
            parameter.add_(0.1 * draw(*parameter.shape, name=name))
    return model.eval()


SMALL_PUBLISHED = WorldConfig(
    image_size=28,
    latent_size=24,
    projector_size=32,
    encoder=EncoderConfig(kind="vit", width=24, patch_size=14, num_layers=2, num_heads=3),
    predictor=PredictorConfig(num_layers=2, num_heads=4, head_dim=8, intermediate_size=48, inner_norm=True),
)


def test_the_published_shape_has_18_million_parameters() -> None:
    model = WorldModel(preset("lewm"))
    assert model.num_parameters() == pytest.approx(18.0e6, rel=0.01)
    assert sum(p.numel() for p in model.encoder.parameters()) == pytest.approx(5.5e6, rel=0.02)
    assert len(official_layout(model.config)) == 303


def test_predictions_see_nothing_later_and_every_position_predicts() -> None:
    model, z, blocks = stirred(), draw(2, 3, 64), draw(2, 3, 10, name="a")
    with torch.no_grad():
        whole = model.predict(z, blocks)
        for length in (1, 2):
            assert torch.allclose(model.predict(z[:, :length], blocks[:, :length]), whole[:, :length], atol=1e-5)
        changed = blocks.clone()
        changed[:, 1] += 1.0
        moved = (model.predict(z, changed) - whole).abs().amax(dim=(0, 2))
    assert moved[0] < 1e-6
    assert (moved[1:] > 1e-3).all()


@pytest.mark.parametrize("history", [1, 2, 3])
def test_a_rollout_is_repeated_single_steps_and_changes_no_input(history: int) -> None:
    model, z, past, plan = stirred(), draw(2, 2, 64), draw(2, 1, 10, name="p"), draw(2, 4, 10, name="q")
    copies = z.clone(), past.clone(), plan.clone()
    with torch.no_grad():
        rolled = model.rollout(z, plan, past_BTA=past, history=history)
        seen, done = list(z.unbind(1)), list(past.unbind(1))
        for step in range(4):
            done.append(plan[:, step])
            window = torch.stack(seen[-history:], 1), torch.stack(done[-history:], 1)
            seen.append(model.predict(*window)[:, -1])
        assert torch.allclose(rolled, torch.stack(seen[2:], 1), atol=1e-5)
        alone = model.rollout(z[:1], plan[:1], past_BTA=past[:1], history=history)
        assert torch.allclose(alone, rolled[:1], atol=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(copies, (z, past, plan), strict=True))


def test_blocks_are_normalised_and_come_back_and_nan_is_the_mean() -> None:
    model = stirred()
    model.set_action_statistics(*(torch.tensor(v) for v in ([1.0, 2.0], [2.0, 4.0], [-1.0, -2.0], [3.0, 10.0])))
    raw = draw(3, 10, 2)
    blocks = model.normalise_blocks(raw)
    assert blocks.shape == (3, 2, 10)
    assert torch.allclose(model.restore_blocks(blocks), raw, atol=1e-5)
    assert torch.allclose(blocks[0, 0, :2], (raw[0, 0] - torch.tensor([1.0, 2.0])) / torch.tensor([2.0, 4.0]))
    raw[0, 0, 0] = float("nan")
    assert model.normalise_blocks(raw)[0, 0, 0] == 0
    low, high = model.block_bounds()
    assert low.tolist() == [-1.0, -1.0] * 5
    assert high.tolist() == [1.0, 2.0] * 5


def test_wrong_inputs_are_named() -> None:
    model = stirred()
    with pytest.raises(InputError, match=r"uint8 \[..., 32, 32, 3\]"):
        model.encode(torch.zeros(2, 16, 16, 3, dtype=torch.uint8))
    with pytest.raises(InputError, match="at most 3 positions"):
        model.predict(draw(1, 4, 64), draw(1, 4, 10))
    with pytest.raises(InputError, match="no blocks of 5"):
        model.normalise_blocks(draw(2, 7, 2))
    with pytest.raises(InputError, match="between them"):
        model.rollout(draw(1, 2, 64), draw(1, 2, 10))
    with pytest.raises(InputError, match="training mode"):
        model.train().encode_all(frames(2))
    with pytest.raises(ConfigError, match="unknown preset"):
        preset("smal")


def test_a_vit_reads_other_sizes_and_refuses_broken_patches() -> None:
    block = BlockConfig(hidden_size=24, num_heads=3, norm="layer", mlp="gelu")
    vit = ViT(ViTConfig(block=block, image_size=32, patch_size=8, num_layers=2))
    initialise(vit, 0)
    assert vit(draw(2, 3, 32, 32)).shape == (2, 17, 24)
    assert vit(draw(2, 3, 48, 16)).shape == (2, 13, 24)
    with pytest.raises(InputError, match="multiples of 8"):
        vit(draw(2, 3, 30, 32))
    with pytest.raises(ConfigError, match="not a multiple of patch_size"):
        ViTConfig(block=block, image_size=30, patch_size=8)
    moved = vit(draw(1, 3, 32, 32).roll(8, dims=3)) - vit(draw(1, 3, 32, 32))
    assert moved[:, 0].abs().max() > 1e-4  # the positions are used


def reference_block(weights: dict[str, Tensor], place: str, x: Tensor, c: Tensor, heads: int) -> Tensor:
    """A conditional block of the published predictor, from its own tensors."""
    f = torch.nn.functional
    six = f.linear(
        f.silu(c), weights[f"{place}.adaLN_modulation.1.weight"], weights[f"{place}.adaLN_modulation.1.bias"]
    )
    shift, scale, gate, shift2, scale2, gate2 = six.chunk(6, -1)
    width = x.shape[-1]

    def norm(y: Tensor, name: str) -> Tensor:
        return f.layer_norm(y, (width,), weights[f"{place}.{name}.weight"], weights[f"{place}.{name}.bias"])

    y = norm(f.layer_norm(x, (width,), eps=1e-6) * (1 + scale) + shift, "attn.norm")
    q, k, v = (
        part.unflatten(-1, (heads, -1)).transpose(1, 2)
        for part in f.linear(y, weights[f"{place}.attn.to_qkv.weight"]).chunk(3, -1)
    )
    mixed = f.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)
    x = x + gate * f.linear(mixed, weights[f"{place}.attn.to_out.0.weight"], weights[f"{place}.attn.to_out.0.bias"])
    y = norm(f.layer_norm(x, (width,), eps=1e-6) * (1 + scale2) + shift2, "mlp.net.0")
    y = f.gelu(f.linear(y, weights[f"{place}.mlp.net.1.weight"], weights[f"{place}.mlp.net.1.bias"]))
    return x + gate2 * f.linear(y, weights[f"{place}.mlp.net.4.weight"], weights[f"{place}.mlp.net.4.bias"])


def reference_projector(weights: dict[str, Tensor], place: str, x: Tensor) -> Tensor:
    """A published projector in eval mode: linear, BatchNorm by its running statistics, GELU, linear."""
    f = torch.nn.functional

    def linear(y: Tensor, number: int) -> Tensor:
        return f.linear(y, weights[f"{place}.net.{number}.weight"], weights[f"{place}.net.{number}.bias"])

    y, norm = linear(x, 0), f"{place}.net.1"
    y = (y - weights[f"{norm}.running_mean"]) / (weights[f"{norm}.running_var"] + 1e-5).sqrt()
    return linear(f.gelu(y * weights[f"{norm}.weight"] + weights[f"{norm}.bias"]), 3)


def reference_actions(weights: dict[str, Tensor], blocks: Tensor) -> Tensor:
    """The published embedder of action blocks: a convolution of width 1, linear, SiLU, linear."""
    f, place = torch.nn.functional, "action_encoder"
    x = f.conv1d(
        blocks.transpose(1, 2), weights[f"{place}.patch_embed.weight"], weights[f"{place}.patch_embed.bias"]
    ).transpose(1, 2)
    x = f.silu(f.linear(x, weights[f"{place}.embed.0.weight"], weights[f"{place}.embed.0.bias"]))
    return f.linear(x, weights[f"{place}.embed.2.weight"], weights[f"{place}.embed.2.bias"])


def reference_vit(weights: dict[str, Tensor], x: Tensor, shape: ViTConfig) -> Tensor:
    """The published encoder as Hugging Face lays it out: tokens after the last norm, the class token first."""
    f, heads, size = torch.nn.functional, shape.block.num_heads, shape.block.hidden_size

    def linear(y: Tensor, name: str) -> Tensor:
        return f.linear(y, weights[f"{name}.weight"], weights[f"{name}.bias"])

    def norm(y: Tensor, name: str) -> Tensor:
        return f.layer_norm(y, (size,), weights[f"{name}.weight"], weights[f"{name}.bias"], eps=1e-12)

    patches = "encoder.embeddings.patch_embeddings.projection"
    x = f.conv2d(x, weights[f"{patches}.weight"], weights[f"{patches}.bias"], stride=shape.patch_size)
    first = weights["encoder.embeddings.cls_token"].expand(len(x), -1, -1)
    x = torch.cat([first, x.flatten(2).transpose(1, 2)], dim=1) + weights["encoder.embeddings.position_embeddings"]
    for index in range(shape.num_layers):
        place = f"encoder.encoder.layer.{index}"
        y = norm(x, f"{place}.layernorm_before")
        q, k, v = (
            linear(y, f"{place}.attention.attention.{name}").unflatten(-1, (heads, -1)).transpose(1, 2)
            for name in ("query", "key", "value")
        )
        mixed = f.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + linear(mixed, f"{place}.attention.output.dense")
        y = f.gelu(linear(norm(x, f"{place}.layernorm_after"), f"{place}.intermediate.dense"))
        x = x + linear(y, f"{place}.output.dense")
    return norm(x, "encoder.layernorm")


def test_published_weights_load_and_mean_the_same(tmp_path: Path) -> None:
    theirs = to_official(stirred(SMALL_PUBLISHED))
    assert theirs["action_encoder.patch_embed.weight"].shape == (10, 10, 1)
    assert theirs["predictor.transformer.layers.0.attn.to_qkv.weight"].shape == (3 * 32, 24)
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file({name: value.contiguous() for name, value in theirs.items()}, path)
    model = load_official(path, SMALL_PUBLISHED)
    z, blocks, seen = draw(2, 3, 24), draw(2, 3, 10, name="c"), frames(2)[:, :28, :28]
    c = reference_actions(theirs, blocks)
    x = z + theirs["predictor.pos_embedding"]
    for layer in range(2):
        x = reference_block(theirs, f"predictor.transformer.layers.{layer}", x, c, 4)
    norm = theirs["predictor.transformer.norm.weight"], theirs["predictor.transformer.norm.bias"]
    x = torch.nn.functional.layer_norm(x, (24,), *norm)
    assert torch.allclose(model.predictor(z, c), x, atol=2e-5)
    assert torch.allclose(model.predict(z, blocks), reference_projector(theirs, "pred_proj", x), atol=1e-4)
    mean, std = torch.tensor(PIXEL_MEAN)[:, None, None], torch.tensor(PIXEL_STD)[:, None, None]
    pictures = (seen.permute(0, 3, 1, 2) / 255 - mean) / std
    tokens = reference_vit(theirs, pictures, SMALL_PUBLISHED.vit)
    assert torch.allclose(model.encode(seen), reference_projector(theirs, "projector", tokens[:, 0]), atol=1e-4)


def test_the_published_file_is_checked_name_by_name_and_shape_by_shape(tmp_path: Path) -> None:
    theirs = {name: value.contiguous() for name, value in to_official(stirred(SMALL_PUBLISHED)).items()}
    lacking = {name: value for name, value in theirs.items() if name != "encoder.layernorm.weight"}
    with pytest.raises(ArtefactError, match=r"lacks tensor 'encoder.layernorm.weight'"):
        from_official(lacking, SMALL_PUBLISHED, source="file")
    with pytest.raises(ArtefactError, match="unknown tensor 'extra'"):
        from_official({**theirs, "extra": draw(1)}, SMALL_PUBLISHED, source="file")
    path = tmp_path / "weights.safetensors"
    safetensors.torch.save_file({**theirs, "projector.net.0.weight": draw(5, 5)}, path)
    with pytest.raises(ArtefactError, match=r"projector.up.weight has shape \(5, 5\)"):
        load_official(path, SMALL_PUBLISHED)


def test_a_saved_model_is_loaded_by_the_library_bit_for_bit(tmp_path: Path) -> None:
    model = stirred()
    place = save_world_model(model, tmp_path / "model", facts={"steps": 3})
    loaded = forethought.load(place)
    assert isinstance(loaded, WorldModel)
    assert loaded.facts == {"steps": 3}
    assert not loaded.training
    seen = frames(3)
    assert torch.equal(loaded.encode_all(seen), model.encode_all(seen))
    broken = place / "model.safetensors"
    data = bytearray(broken.read_bytes())
    data[-1] ^= 1
    broken.write_bytes(bytes(data))
    with pytest.raises(CheckpointError, match=r"model.safetensors is damaged"):
        load_world_model(place)


def test_building_a_model_draws_nothing_global_and_is_a_function_of_the_seed() -> None:
    before = torch.get_rng_state()
    first, second, other = (WorldModel(preset("tiny"), seed=seed) for seed in (3, 3, 4))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.encoder.head.weight, second.encoder.head.weight)  # type: ignore[union-attr]
    assert not torch.equal(first.encoder.head.weight, other.encoder.head.weight)  # type: ignore[union-attr]
