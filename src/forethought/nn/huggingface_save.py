"""Hugging Face directories out: a directory that transformers loads and this library knows by its kind."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch import Tensor

from forethought.core import artefact, files
from forethought.core.errors import ArtefactError, InputError
from forethought.nn.config import num_parameters
from forethought.nn.huggingface import CONFIG, INDEX, WEIGHTS, huggingface_name
from forethought.nn.huggingface_config import config_to_huggingface
from forethought.nn.language_model import LanguageModel
from forethought.nn.tensor_files import named_dtype, write_tensors

_SETTINGS = "tokenizer_config.json"
_EOS = ("<|endoftext|>", "<|end_of_text|>", "<|end|>", "<|eos|>", "</s>", "<eos>", "[EOS]")
_BOS = ("<|begin_of_text|>", "<|bos|>", "<s>", "<bos>", "[BOS]")


def save_language_model(
    model: LanguageModel,
    directory: Path | str,
    tokenizer: Tokenizer | Path | str | None = None,
    *,
    replace: bool = False,
    max_shard_bytes: int | None = None,
    dtype: torch.dtype | str | None = None,
    extra_facts: Mapping[str, Any] | None = None,
    extra_files: Mapping[str, bytes] | None = None,
) -> None:
    """Publish a model as a Hugging Face directory, whole or not at all.

    `tokenizer` is a Tokenizer, a tokenizer.json or a directory that holds one; its special tokens, first those named in
    a tokenizer_config.json beside it, give the ids that begin and end a text. Weights go into one file, or into shards
    of at most `max_shard_bytes` each (a larger tensor gets a shard of its own). `dtype` None keeps the model's.
    `extra_facts` are JSON values for artefact.json, `extra_files` are published with the model, such as its card.

    Raises:
        RunExistsError: the directory exists and replace is False.
        InputError: the tokenizer has more entries than the model, or an argument is out of range.
        ArtefactError: the tokenizer cannot be read.
        StorageError: the disk refused; what was there before is untouched.
    """
    stored = named_dtype(model.embedding.weight.dtype if dtype is None else dtype)
    pieces = _tokenizer_files(tokenizer, model)
    name = str(stored).removeprefix("torch.")
    ids = pieces.ids
    config = config_to_huggingface(model.config, dtype=name) | ids
    tensors = {huggingface_name(key): value for key, value in model.named_parameters()}
    shards = _shards(tensors, stored, max_shard_bytes)
    facts = {"parameters": num_parameters(model.config).total, "dtype": name, **(extra_facts or {})}
    with files.staged(directory, replace=replace) as staging:
        files.write_bytes(staging / CONFIG, files.dump_json(dict(sorted(config.items()))))
        files.write_bytes(staging / "generation_config.json", files.dump_json({**ids, "use_cache": True}))
        for file_name, data in {**pieces.files, **(extra_files or {})}.items():
            files.write_bytes(staging / file_name, data)
        for file_name, names in shards.items():
            write_tensors(staging / file_name, {key: tensors[key] for key in names}, dtype=stored)
        if max_shard_bytes is not None:
            files.write_bytes(staging / INDEX, files.dump_json(_index(shards, tensors, stored)))
        artefact.write_kind(staging, "language-model", **facts)


class _TokenizerFiles:
    def __init__(self, files: dict[str, bytes], ids: dict[str, Any]) -> None:
        self.files, self.ids = files, ids


def _shards(tensors: Mapping[str, Tensor], dtype: torch.dtype, limit: int | None) -> dict[str, list[str]]:
    names = sorted(tensors)
    if limit is None:
        return {WEIGHTS: names}
    if limit < 1:
        raise InputError(f"max_shard_bytes {limit} must be positive, or None for one file")
    groups: list[list[str]] = [[]]
    room = limit
    for name in names:
        size = tensors[name].numel() * dtype.itemsize
        if groups[-1] and size > room:
            groups.append([])
            room = limit
        groups[-1].append(name)
        room -= size
    return {f"model-{number:05}-of-{len(groups):05}.safetensors": group for number, group in enumerate(groups, 1)}


def _index(shards: Mapping[str, list[str]], tensors: Mapping[str, Tensor], dtype: torch.dtype) -> dict[str, Any]:
    total = sum(tensor.numel() for tensor in tensors.values()) * dtype.itemsize
    weight_map = {name: file_name for file_name, names in shards.items() for name in names}
    return {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}


def _tokenizer_files(tokenizer: Tokenizer | Path | str | None, model: LanguageModel) -> _TokenizerFiles:
    if tokenizer is None:
        return _TokenizerFiles({}, {})
    text = tokenizer.to_str(pretty=True) if isinstance(tokenizer, Tokenizer) else _read_tokenizer(Path(tokenizer))
    try:
        parsed = tokenizer if isinstance(tokenizer, Tokenizer) else Tokenizer.from_str(text)
    except Exception as error:  # tokenizers raises plain Exception for a malformed file
        raise ArtefactError(f"{tokenizer} is no tokenizer that can be read ({error}); give a tokenizer.json") from error
    highest = max(parsed.get_vocab(with_added_tokens=True).values(), default=-1)
    if highest >= model.config.vocab_size:
        raise InputError(
            f"the tokenizer has ids up to {highest}, the model only {model.config.vocab_size} tokens; "
            "give the tokenizer that the model was trained with"
        )
    special = {token.content: number for number, token in parsed.get_added_tokens_decoder().items() if token.special}
    eos, bos = _pick(special, _EOS), _pick(special, _BOS)
    if not isinstance(tokenizer, Tokenizer):
        eos = _named(Path(tokenizer), "eos_token", special) or eos
        bos = _named(Path(tokenizer), "bos_token", special) or bos
    bos = bos if bos is not None else eos if len(special) == 1 else None
    settings = {"model_max_length": model.config.max_positions, "tokenizer_class": "PreTrainedTokenizerFast"}
    ids: dict[str, Any] = {}
    for role, token in (("bos", bos), ("eos", eos)):
        if token is not None:
            settings[f"{role}_token"] = token
            ids[f"{role}_token_id"] = special[token]
    return _TokenizerFiles({"tokenizer.json": text.encode(), _SETTINGS: files.dump_json(settings)}, ids)


def _pick(special: Mapping[str, int], known: tuple[str, ...]) -> str | None:
    named = [token for token in known if token in special]
    if not named and known is _EOS and len(special) == 1:
        return next(iter(special))
    return named[0] if named else None


def _named(place: Path, role: str, special: Mapping[str, int]) -> str | None:
    """The special token that the settings beside a tokenizer give a role, as text or as an object with its content."""
    path = (place if place.is_dir() else place.parent) / _SETTINGS
    if not path.is_file():
        return None
    named = files.read_json(path, what="tokenizer settings").get(role)
    named = named.get("content") if isinstance(named, dict) else named
    return named if isinstance(named, str) and named in special else None


def _read_tokenizer(path: Path) -> str:
    path = path / "tokenizer.json" if path.is_dir() else path
    values = files.read_json(path, what="tokenizer")
    return json.dumps(values, ensure_ascii=False, indent=2)
