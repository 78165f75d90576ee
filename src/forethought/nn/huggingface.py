"""Hugging Face directories in: what a directory from a stranger must satisfy before a byte of it becomes a weight."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import torch

from forethought.core import files
from forethought.core.artefact import ARTEFACT, read_kind
from forethought.core.errors import ArtefactError
from forethought.nn.config import TransformerConfig, num_parameters
from forethought.nn.devices import usable_device
from forethought.nn.huggingface_config import config_from_huggingface
from forethought.nn.language_model import LanguageModel
from forethought.nn.tensor_files import DTYPES, inside, named_dtype, opened

CONFIG = "config.json"
WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
HEAD = "lm_head.weight"
MAX_CONFIG_BYTES = 1 << 20
# Older checkpoints also store the rotary frequencies, which follow from the config.
_DERIVED = re.compile(r"^model\.layers\.\d+\.self_attn\.rotary_emb\.inv_freq$")

_OUTER_NAMES = {
    "embedding.weight": "model.embed_tokens.weight",
    "norm.weight": "model.norm.weight",
    "unembedding.weight": HEAD,
}
_BLOCK_NAMES = {
    "attention_norm": "input_layernorm",
    "attention.query": "self_attn.q_proj",
    "attention.key": "self_attn.k_proj",
    "attention.value": "self_attn.v_proj",
    "attention.output": "self_attn.o_proj",
    "attention.query_norm": "self_attn.q_norm",
    "attention.key_norm": "self_attn.k_norm",
    "mlp_norm": "post_attention_layernorm",
    "mlp.gate": "mlp.gate_proj",
    "mlp.up": "mlp.up_proj",
    "mlp.down": "mlp.down_proj",
}


class SpecialTokenIds(NamedTuple):
    """The ids that begin and end a text, where a directory names them."""

    bos: int | None
    eos: tuple[int, ...]


def huggingface_name(name: str) -> str:
    """Return the Hugging Face name of a LanguageModel parameter."""
    if name in _OUTER_NAMES:
        return _OUTER_NAMES[name]
    _, layer, rest = name.split(".", 2)
    owner, leaf = rest.rsplit(".", 1)
    return f"model.layers.{layer}.{_BLOCK_NAMES[owner]}.{leaf}"


def load_language_model(
    directory: Path | str, dtype: torch.dtype | str | None = None, device: torch.device | str | None = None
) -> LanguageModel:
    """Load a Llama, Qwen2 or Qwen3 directory, or the model of a run directory, in eval mode.

    `dtype` is a torch type or its name, None for the stored one; `device` None is the CPU. Only safetensors are read,
    and no code of the directory is run. What this library wrote is checked against its manifest first.

    Raises:
        ArtefactError: a file is missing, malformed, unsafe or does not fit the config; the message names it.
        CheckpointError: a file differs from its manifest.
        InputError: the dtype or device is unknown, or the device is not at hand.
    """
    place, wanted = usable_device("cpu" if device is None else device), None if dtype is None else named_dtype(dtype)
    directory = model_directory(directory)
    _check_own(directory)
    config = read_language_model_config(directory)
    paths = _weight_files(directory)
    _check_size(directory, config, paths)
    with torch.device("meta"):
        model = LanguageModel(config)
    with ExitStack() as stack:
        sources = _open_sources(stack, paths)
        stored = _check_tensors(directory, model, sources)
        model.to(wanted or stored).to_empty(device=place)
        _copy(model, sources)
    return model.eval()


def read_language_model_config(directory: Path | str) -> TransformerConfig:
    """Read the config of a model directory without its weights.

    Raises:
        ArtefactError: config.json is missing, malformed, unsafe or not supported.
    """
    path = inside(model_directory(directory), CONFIG)
    return config_from_huggingface(files.read_json(path, what="model config", limit=MAX_CONFIG_BYTES), source=str(path))


def special_token_ids(directory: Path | str) -> SpecialTokenIds:
    """Read which ids begin and end a text, from generation_config.json or else config.json.

    Raises:
        ArtefactError: a file is malformed or unsafe, or an id is not a non-negative integer.
    """
    directory = model_directory(directory)
    values: dict[str, Any] = {}
    for name in (CONFIG, "generation_config.json"):
        if (directory / name).exists():
            found = files.read_json(inside(directory, name), what="token ids", limit=MAX_CONFIG_BYTES)
            values |= {key: found[key] for key in ("bos_token_id", "eos_token_id") if found.get(key) is not None}
    bos, eos = values.get("bos_token_id"), values.get("eos_token_id", [])
    ids = eos if isinstance(eos, list) else [eos]
    for token in [*ids, *([] if bos is None else [bos])]:
        if isinstance(token, bool) or not isinstance(token, int) or token < 0:
            raise ArtefactError(f"{directory}: token id {token!r} is no non-negative integer; mend config.json")
    return SpecialTokenIds(bos, tuple(ids))


def model_directory(directory: Path | str) -> Path:
    """Return the directory that holds the weights: the given one, or `model/` inside a run directory.

    Raises:
        ArtefactError: the directory does not exist.
    """
    directory = Path(directory)
    if not directory.is_dir():
        raise ArtefactError(f"{directory} is not a directory; give a Hugging Face directory or a run")
    has_weights = any((directory / name).exists() for name in (WEIGHTS, INDEX))
    return directory / "model" if not has_weights and (directory / "model" / CONFIG).is_file() else directory


def _check_own(directory: Path) -> None:
    if not (directory / ARTEFACT).exists():
        return
    inside(directory, ARTEFACT)
    kind = read_kind(directory)
    if kind != "language-model":
        raise ArtefactError(f"{directory} holds a {kind}; a language model is expected. Try forethought.load")
    files.verify(directory)


def _weight_files(directory: Path) -> dict[str, Path]:
    """Return tensor name -> file for a sharded model, or {"": file} for a model in one file."""
    if (directory / WEIGHTS).exists() or (directory / WEIGHTS).is_symlink():
        return {"": inside(directory, WEIGHTS)}
    if not (directory / INDEX).exists():
        pickled = sorted(path.name for ending in ("*.bin", "*.pt", "*.pth") for path in directory.glob(ending))
        if pickled:
            raise ArtefactError(
                f"{directory} has its weights in {pickled[0]}, a pickle, which is refused because opening it can run "
                f"code; convert it to safetensors ({WEIGHTS})"
            )
        raise ArtefactError(f"{directory} holds neither {WEIGHTS} nor {INDEX}; copy the whole model")
    index = files.read_json(inside(directory, INDEX), what="weight index", limit=MAX_CONFIG_BYTES * 16)
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ArtefactError(f"{directory / INDEX} has no weight_map of tensor names to file names")
    for file_name in weight_map.values():
        if not isinstance(file_name, str) or not file_name.endswith(".safetensors"):
            raise ArtefactError(f"{directory / INDEX} names the file {file_name!r}; only .safetensors files are read")
    paths = {name: inside(directory, name) for name in sorted(set(weight_map.values()))}
    return {tensor: paths[file_name] for tensor, file_name in weight_map.items()}


def _check_size(directory: Path, config: TransformerConfig, paths: Mapping[str, Path]) -> None:
    # Before anything is built: a small file cannot make a config's word of a huge model worth believing.
    available = sum(path.stat().st_size for path in set(paths.values()))
    declared = num_parameters(config).total
    if 2 * declared > available:
        raise ArtefactError(
            f"{directory / CONFIG} declares {declared} parameters, but the weights have {available} bytes in all, "
            "less than two a parameter; the files are cut short or of another model"
        )


def _open_sources(stack: ExitStack, paths: Mapping[str, Path]) -> dict[str, tuple[Path, Any]]:
    """Return tensor name -> (file, open file), with the index's word held against each file's own names."""
    handles = {path: stack.enter_context(opened(path)) for path in sorted(set(paths.values()))}
    sources: dict[str, tuple[Path, Any]] = {}
    for path, handle in handles.items():
        for name in handle.keys():  # noqa: SIM118 - the handle is no mapping
            if "" not in paths and paths.get(name) != path:
                raise ArtefactError(f"{path} holds tensor {name!r}, which {INDEX} does not place there")
            sources[name] = (path, handle)
    missing = sorted(set(paths) - set(sources) - {""})
    if missing:
        raise ArtefactError(f"{paths[missing[0]]} lacks tensor {missing[0]!r}, which {INDEX} places there")
    return sources


def _check_tensors(directory: Path, model: LanguageModel, sources: Mapping[str, tuple[Path, Any]]) -> torch.dtype:
    """Check names, shapes and types of all tensors, reading none, and return the widest type."""
    expected = {huggingface_name(name): tuple(tensor.shape) for name, tensor in model.named_parameters()}
    embedding = huggingface_name("embedding.weight")
    extra = {name for name in sources if not _DERIVED.match(name)} - set(expected)
    if model.config.tie_embeddings and HEAD in extra:
        extra.remove(HEAD)
        _check_tied(directory, sources, expected[embedding])
    missing = sorted(set(expected) - set(sources))
    if missing or extra:
        what = f"lacks {missing[0]!r} ({len(missing)} in all)" if missing else f"has an unexpected {min(extra)!r}"
        raise ArtefactError(f"{directory}: the weights {what}; config.json and weights are of different models")
    widest: torch.dtype | None = None
    for name, shape in expected.items():
        found = _checked_dtype(name, sources[name], shape)
        widest = found if widest is None else torch.promote_types(widest, found)
    return widest or torch.float32


def _checked_dtype(name: str, source: tuple[Path, Any], shape: tuple[int, ...]) -> torch.dtype:
    path, handle = source
    piece = handle.get_slice(name)
    if tuple(piece.get_shape()) != shape:
        found = list(piece.get_shape())
        raise ArtefactError(f"{path}: tensor {name!r} has shape {found}; config.json makes it {list(shape)}")
    if piece.get_dtype() not in DTYPES:
        raise ArtefactError(f"{path}: tensor {name!r} has type {piece.get_dtype()}; read are {', '.join(DTYPES)}")
    return DTYPES[piece.get_dtype()]


def _check_tied(directory: Path, sources: Mapping[str, tuple[Path, Any]], shape: tuple[int, ...]) -> None:
    embedding = huggingface_name("embedding.weight")
    if embedding not in sources:
        return
    for name in (HEAD, embedding):
        _checked_dtype(name, sources[name], shape)
    head, table = (sources[name][1].get_tensor(name) for name in (HEAD, embedding))
    if not torch.equal(head, table):
        raise ArtefactError(
            f"{directory}: tie_word_embeddings is true, but {HEAD} differs from {embedding}; "
            "set tie_word_embeddings to false if the head is its own"
        )


@torch.no_grad()
def _copy(model: LanguageModel, sources: Mapping[str, tuple[Path, Any]]) -> None:
    for name, parameter in model.named_parameters():
        stored = huggingface_name(name)
        parameter.copy_(sources[stored][1].get_tensor(stored))
