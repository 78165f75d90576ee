"""Weights of the published LeWorldModel: the names of its 303 tensors, mapped onto this library's model.

The published checkpoint keeps a Hugging Face ViT under `encoder`, the predictor's query, key and value in one matrix,
and the action embedder's first layer as a convolution of width 1. No class name in a file is ever followed.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from forethought.core.errors import ArtefactError
from forethought.world.artefact import fill
from forethought.world.config import WorldConfig, lewm
from forethought.world.model import WorldModel

_STATISTICS = ("action_mean", "action_std", "action_low", "action_high")


def load_official(path: Path | str, config: WorldConfig | None = None) -> WorldModel:
    """Read published weights from a safetensors file into a model of the published shape, in eval mode.

    The file holds no statistics of actions: give them with `set_action_statistics` before planning.

    Raises:
        ArtefactError: the file is no safetensors file, or a tensor is missing, unknown or of another shape.
    """
    try:
        tensors = safetensors.torch.load_file(path)
    except (safetensors.SafetensorError, OSError) as error:
        raise ArtefactError(f"{path} is no readable safetensors file ({error}); give the published weights") from error
    model = WorldModel(config or lewm())
    named = from_official(tensors, model.config, source=str(path))
    fill(model, named | {name: getattr(model, name) for name in _STATISTICS}, source=str(path))
    return model.eval().requires_grad_(False)


def from_official(tensors: Mapping[str, Tensor], config: WorldConfig, *, source: str) -> dict[str, Tensor]:
    """Return published tensors under this library's names.

    Raises:
        ArtefactError: a tensor is missing, unknown or of another shape; the message names the first.
    """
    layout = official_layout(config)
    odd = sorted(layout.keys() ^ tensors.keys())
    if odd:
        side = "lacks" if odd[0] in layout else "has the unknown"
        raise ArtefactError(
            f"{source} {side} tensor {odd[0]!r} ({len(odd)} names differ from the {len(layout)} of the published "
            "layout); is it of another version or size?"
        )
    named: dict[str, Tensor] = {}
    for name, targets in layout.items():
        parts = [tensors[name]] if len(targets) == 1 else _split(tensors[name], len(targets), name, source)
        for target, part in zip(targets, parts, strict=True):
            # The embedder's convolution of width 1 is a matrix.
            named[target] = part[..., 0] if name == "action_encoder.patch_embed.weight" and part.ndim == 3 else part
    return named


def official_layout(config: WorldConfig) -> dict[str, tuple[str, ...]]:
    """Return published name -> this library's names (three where one matrix holds query, key and value)."""
    layout: dict[str, tuple[str, ...]] = {
        "encoder.embeddings.cls_token": ("encoder.class_token",),
        "encoder.embeddings.position_embeddings": ("encoder.positions",),
        "predictor.pos_embedding": ("predictor.positions",),
    }
    pairs = {
        "encoder.embeddings.patch_embeddings.projection": "encoder.patches",
        "encoder.layernorm": "encoder.norm",
        "predictor.transformer.norm": "predictor.norm",
        "action_encoder.patch_embed": "action_embedder.squeeze",
        "action_encoder.embed.0": "action_embedder.up",
        "action_encoder.embed.2": "action_embedder.down",
    }
    for theirs, ours in (("projector", "projector"), ("pred_proj", "prediction_projector")):
        pairs |= {f"{theirs}.net.0": f"{ours}.up", f"{theirs}.net.1": f"{ours}.norm", f"{theirs}.net.3": f"{ours}.down"}
        for name in ("running_mean", "running_var", "num_batches_tracked"):
            layout[f"{theirs}.net.1.{name}"] = (f"{ours}.norm.{name}",)
    for index in range(config.encoder.num_layers):
        theirs, ours = f"encoder.encoder.layer.{index}", f"encoder.blocks.{index}"
        pairs |= {
            f"{theirs}.attention.attention.query": f"{ours}.attention.query",
            f"{theirs}.attention.attention.key": f"{ours}.attention.key",
            f"{theirs}.attention.attention.value": f"{ours}.attention.value",
            f"{theirs}.attention.output.dense": f"{ours}.attention.output",
            f"{theirs}.layernorm_before": f"{ours}.attention_norm",
            f"{theirs}.layernorm_after": f"{ours}.mlp_norm",
            f"{theirs}.intermediate.dense": f"{ours}.mlp.up",
            f"{theirs}.output.dense": f"{ours}.mlp.down",
        }
    for index in range(config.predictor.num_layers):
        theirs, ours = f"predictor.transformer.layers.{index}", f"predictor.blocks.{index}"
        projections = ("query", "key", "value")
        layout[f"{theirs}.attn.to_qkv.weight"] = tuple(f"{ours}.attention.{each}.weight" for each in projections)
        pairs |= {
            f"{theirs}.attn.norm": f"{ours}.attention_inner_norm",
            f"{theirs}.attn.to_out.0": f"{ours}.attention.output",
            f"{theirs}.mlp.net.0": f"{ours}.mlp_inner_norm",
            f"{theirs}.mlp.net.1": f"{ours}.mlp.up",
            f"{theirs}.mlp.net.4": f"{ours}.mlp.down",
            f"{theirs}.adaLN_modulation.1": f"{ours}.modulation.projection",
        }
    for theirs, ours in pairs.items():
        for leaf in ("weight", "bias"):
            layout[f"{theirs}.{leaf}"] = (f"{ours}.{leaf}",)
    return layout


def to_official(model: WorldModel) -> dict[str, Tensor]:
    """Return a model's tensors under the published names, for other tools to read."""
    own = model.state_dict()
    named: dict[str, Tensor] = {}
    for name, sources in official_layout(model.config).items():
        whole = [own[source] for source in sources]
        joined = torch.cat(whole) if len(whole) > 1 else whole[0]
        named[name] = joined[..., None] if name == "action_encoder.patch_embed.weight" else joined
    return named


def _split(tensor: Tensor, count: int, name: str, source: str) -> list[Tensor]:
    if tensor.ndim != 2 or tensor.shape[0] % count:
        raise ArtefactError(f"{source}: {name} has shape {tuple(tensor.shape)}; it must hold {count} matrices stacked")
    return list(tensor.chunk(count))
