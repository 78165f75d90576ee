"""llama.cpp as a rival in the benchmarks: our own weights written as GGUF, decoded by `llama-cpp-python`.

Neither package is a dependency of the library; where they are not installed the rows that need them are left out.
"""

from __future__ import annotations

import importlib.util
import time
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from forethought.nn import LanguageModel


def installed() -> bool:
    """Return whether llama.cpp can be measured here."""
    return all(importlib.util.find_spec(name) is not None for name in ("llama_cpp", "gguf"))


def write_gguf(model: LanguageModel, path: Path) -> None:
    """Write a Llama's weights in fp32 without a tokenizer, queries and keys in llama.cpp's interleaved order."""
    import gguf

    config = model.config
    if config.family != "llama" or config.rope_scaling is not None:
        raise ValueError(f"only plain Llama models are written; this one is {config.family}")
    writer = gguf.GGUFWriter(str(path), "llama")
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
    writer.add_tokenizer_model("no_vocab")
    for name, tensor in _tensors(model).items():
        writer.add_tensor(name, tensor)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


class LlamaCpp:
    """One GGUF model on the CPU, read token by token through the library's own decode call."""

    def __init__(self, path: Path, *, num_threads: int, context: int) -> None:
        import llama_cpp

        self._library: Any = llama_cpp
        self._llama: Any = llama_cpp.Llama(
            model_path=str(path),
            n_ctx=context,
            n_batch=512,
            n_threads=num_threads,
            n_threads_batch=num_threads,
            logits_all=True,
            verbose=False,
        )
        self._vocab_size = self._llama.n_vocab()

    def __enter__(self) -> LlamaCpp:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._llama.close()

    def decode(self, tokens: list[int], start: int) -> np.ndarray:
        """Read tokens from position `start` on and return their logits (tokens, vocabulary)."""
        library, llama = self._library, self._llama
        llama._ctx.kv_cache_seq_rm(-1, start, -1)
        llama._batch.set_batch(batch=tokens, n_past=start, logits_all=True)
        llama._ctx.decode(llama._batch)
        pointer = library.llama_get_logits(llama._ctx.ctx)
        return np.ctypeslib.as_array(pointer, shape=(len(tokens), self._vocab_size))

    def greedy(self, prompt: list[int], num_tokens: int) -> tuple[list[int], float]:
        """Return the greedy continuation and the seconds that its decoding took, the prompt's reading left out."""
        token = int(self.decode(prompt, 0)[-1].argmax())
        made = [token]
        started = time.perf_counter()
        for position in range(len(prompt), len(prompt) + num_tokens - 1):
            token = int(self.decode([token], position)[0].argmax())
            made.append(token)
        return made, time.perf_counter() - started


def _tensors(model: LanguageModel) -> dict[str, np.ndarray]:
    names = {"embedding.weight": "token_embd.weight", "norm.weight": "output_norm.weight"}
    names["unembedding.weight"] = "output.weight"
    inner = {
        "attention_norm": "attn_norm",
        "attention.query": "attn_q",
        "attention.key": "attn_k",
        "attention.value": "attn_v",
        "attention.output": "attn_output",
        "mlp_norm": "ffn_norm",
        "mlp.gate": "ffn_gate",
        "mlp.up": "ffn_up",
        "mlp.down": "ffn_down",
    }
    heads = {"attention.query": model.config.num_heads, "attention.key": model.config.resolved_kv_heads}
    tensors: dict[str, np.ndarray] = {}
    for name, parameter in model.named_parameters():
        values = parameter.detach().float().numpy()
        if name in names:
            tensors[names[name]] = values
            continue
        _, layer, rest = name.split(".", 2)
        part = rest.removesuffix(".weight")
        if part in heads:
            values = _interleaved(values, heads[part])
        tensors[f"blk.{layer}.{inner[part]}.weight"] = np.ascontiguousarray(values)
    return tensors


def _interleaved(weight: np.ndarray, num_heads: int) -> np.ndarray:
    half = weight.shape[0] // num_heads // 2
    return weight.reshape(num_heads, 2, half, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)
