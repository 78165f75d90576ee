"""What a user may say about an engine; names as vLLM users know them where vLLM has the same thing."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from forethought.core.config import config
from forethought.core.errors import ConfigError
from forethought.decode.drafter.foresight import FanOut
from forethought.nn.paged import Backend

SpeculativeMethod = Literal["ssd", "draft", "ngram"]
Auto = Literal["auto"]
DType = Literal["auto", "float32", "bfloat16"]


@config
class SpeculativeConfig:
    """How an engine speculates; `method` None decodes plainly.

    `model` is the draft's directory, needed by "draft" and "ssd". `num_speculative_tokens` and `budget` (foreseen
    verdicts a round) are numbers, or "auto": then the planner measures and chooses, and may choose not to speculate.
    `fallback` answers a verdict that was not foreseen: a draft made on the spot, prompt lookup, or nothing.
    `transport` says where the draft lives: in a process of its own ("process", pinned to `draft_core`), in a thread of
    this one ("thread"), or in this one, taking turns ("in-process"); "auto" is, for "ssd", a thread with a stream of
    its own where the draft is on an accelerator, else a process where there is a second core. `device` None puts the
    draft where the target is. `saguaro` is the constant C of Saguaro sampling (1 is off).

    Raises:
        ConfigError: a field is unknown, out of range, or missing for the method.
    """

    method: SpeculativeMethod | None = None
    model: str | None = None
    num_speculative_tokens: Annotated[int, Field(ge=1, le=32)] | Auto = "auto"
    budget: Annotated[int, Field(ge=1, le=256)] | Auto = "auto"
    fan_out: FanOut = "empirical"
    fallback: Literal["draft", "ngram", "none"] = "draft"
    saguaro: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    prompt_lookup_min: Annotated[int, Field(ge=1, le=16)] = 2
    prompt_lookup_max: Annotated[int, Field(ge=1, le=16)] = 4
    transport: Literal["auto", "process", "thread", "in-process"] = "auto"
    draft_core: Annotated[int, Field(ge=0)] | None = None
    num_threads: Annotated[int, Field(ge=1, le=256)] = 1
    dtype: DType = "auto"
    device: str | None = None

    def __post_init__(self) -> None:
        if self.method in ("ssd", "draft") and self.model is None:
            raise ConfigError(f"the method {self.method} needs a draft model; give model, or the method ngram or None")
        if self.prompt_lookup_min > self.prompt_lookup_max:
            raise ConfigError(
                f"prompt_lookup_min {self.prompt_lookup_min} exceeds prompt_lookup_max {self.prompt_lookup_max}"
            )


@config
class EngineConfig:
    """How an engine runs a model.

    `max_model_len` None means the model's whole context. `num_blocks` pages of `block_size` tokens hold keys and
    values; None takes what `max_num_seqs` whole contexts need, at most a quarter of the memory there is.
    `num_threads` None means all cores but those of a draft process. `backend` "native" needs a C++ compiler and a CPU,
    "graphed" is for accelerators (CUDA graphs), "torch" runs everywhere, "auto" takes the first that can be had.
    `dtype` "bfloat16" rounds the weights: half the memory to read for every token, and a slightly different model;
    "auto" keeps bfloat16 where the weights are stored so.

    Raises:
        ConfigError: a field is unknown or out of range.
    """

    max_model_len: Annotated[int, Field(ge=2)] | None = None
    max_num_seqs: Annotated[int, Field(ge=1, le=4096)] = 16
    max_num_batched_tokens: Annotated[int, Field(ge=1, le=1 << 20)] = 512
    block_size: Annotated[int, Field(ge=1, le=1024)] = 16
    num_blocks: Annotated[int, Field(ge=1)] | None = None
    enable_prefix_caching: bool = True
    enable_chunked_prefill: bool = True
    num_threads: Annotated[int, Field(ge=1, le=256)] | None = None
    backend: Backend = "auto"
    device: str = "cpu"
    dtype: DType = "auto"
