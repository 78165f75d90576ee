"""GGUF for llama.cpp, written with the `gguf` package and not by its converter, which knows tokenizers by a hash.

A tokenizer trained by this library splits text as GPT-2 does, which llama.cpp calls "gpt-2"; others are refused.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from forethought.core import files
from forethought.core.errors import ArtefactError, ConfigError, RunExistsError
from forethought.core.extras import require
from forethought.data import Tokenizer, load_tokenizer
from forethought.nn import LanguageModel, load_language_model

_OUTER = {"embedding.weight": "token_embd", "norm.weight": "output_norm", "unembedding.weight": "output"}
_BLOCK = {
    "attention_norm": "attn_norm",
    "attention.query": "attn_q",
    "attention.key": "attn_k",
    "attention.value": "attn_v",
    "attention.output": "attn_output",
    "attention.query_norm": "attn_q_norm",
    "attention.key_norm": "attn_k_norm",
    "mlp_norm": "ffn_norm",
    "mlp.gate": "ffn_gate",
    "mlp.up": "ffn_up",
    "mlp.down": "ffn_down",
}
_ORDINARY, _CONTROL = 1, 3  # llama.cpp's token types


def write_gguf(directory: Path | str, out: Path | str, *, name: str = "forethought", replace: bool = False) -> Path:
    """Write a model directory as one fp32 GGUF file and return its path.

    Raises:
        RunExistsError: the file exists and replace is False.
        ConfigError: the model has scaled rotary positions, whose factors are not written.
        ArtefactError: the tokenizer is no byte-level BPE that splits as GPT-2 does.
        MissingExtraError: the gguf package is not installed.
    """
    out = Path(out)
    if out.exists() and not replace:
        raise RunExistsError(f"{out} already exists; give another name or say replace")
    package: Any = require("gguf", extra="gguf", purpose="writing GGUF")
    model, tokenizer = load_language_model(directory, dtype=torch.float32), load_tokenizer(_place(directory))
    if model.config.rope_scaling is not None:
        raise ConfigError("this model stretches its context by scaled rotary positions, which GGUF export leaves out")
    temporary = out.with_name(f".{out.name}.tmp")
    writer = package.GGUFWriter(str(temporary), model.config.family)
    _write_shape(writer, model, name)
    _write_tokenizer(writer, tokenizer, model.config.vocab_size)
    for key, tensor in model.named_parameters():
        writer.add_tensor(gguf_name(key), _permuted(key, tensor, model).numpy())
    with files.explained("write", temporary):
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        temporary.replace(out)
    return out


def gguf_name(name: str) -> str:
    """Return llama.cpp's name of a LanguageModel parameter."""
    if name in _OUTER:
        return f"{_OUTER[name]}.weight"
    _, layer, rest = name.split(".", 2)
    owner, leaf = rest.rsplit(".", 1)
    return f"blk.{layer}.{_BLOCK[owner]}.{leaf}"


def _write_shape(writer: Any, model: LanguageModel, name: str) -> None:
    config = model.config
    writer.add_name(name)
    writer.add_context_length(config.max_positions)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_layers)
    writer.add_feed_forward_length(config.resolved_intermediate_size)
    writer.add_head_count(config.num_heads)
    writer.add_head_count_kv(config.resolved_kv_heads)
    writer.add_key_length(config.resolved_head_dim)
    writer.add_value_length(config.resolved_head_dim)
    writer.add_rope_dimension_count(config.resolved_head_dim)
    writer.add_rope_freq_base(config.rope_theta)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(0)


def _write_tokenizer(writer: Any, tokenizer: Tokenizer, vocab_size: int) -> None:
    facts = json.loads(tokenizer.serialised)
    model = facts.get("model", {})
    steps = facts.get("pre_tokenizer") or {}
    plain = steps.get("type") == "ByteLevel" and not steps.get("add_prefix_space") and steps.get("use_regex", True)
    if model.get("type") != "BPE" or not plain or facts.get("normalizer"):
        raise ArtefactError(
            "this tokenizer is no byte-level BPE that splits text as GPT-2 does, so llama.cpp would cut text another "
            "way; export the Hugging Face directory instead"
        )
    special = {entry["id"]: entry["content"] for entry in facts.get("added_tokens", ())}
    by_id = {number: text for text, number in model["vocab"].items()} | special
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list([by_id.get(number, f"<unused{number}>") for number in range(vocab_size)])
    kinds = [_CONTROL if number in special or number not in by_id else _ORDINARY for number in range(vocab_size)]
    writer.add_token_types(kinds)
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]])
    writer.add_bos_token_id(tokenizer.end_of_text)
    writer.add_eos_token_id(tokenizer.end_of_text)
    # The training text begins every document behind a separator, so a prompt begins behind one too.
    writer.add_add_bos_token(True)


def _permuted(name: str, tensor: Tensor, model: LanguageModel) -> Tensor:
    """llama.cpp turns Llama's pairs (2i, 2i + 1), ours are (i, i + D/2): the rows of query and key change places."""
    tensor = tensor.detach().contiguous()
    heads = {"query": model.config.num_heads, "key": model.config.resolved_kv_heads}
    owner = name.split(".")[-2]
    if model.config.family != "llama" or owner not in heads:
        return tensor
    halves = tensor.view(heads[owner], 2, tensor.shape[0] // heads[owner] // 2, *tensor.shape[1:])
    return halves.transpose(1, 2).reshape(tensor.shape).contiguous()


def _place(directory: Path | str) -> Path:
    directory = Path(directory)
    return directory / "model" if (directory / "model").is_dir() else directory
