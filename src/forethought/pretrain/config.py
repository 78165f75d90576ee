"""The whole config of a fit: corpus, shape, optimiser, loop, and what it learns from."""

from __future__ import annotations

from typing import Annotated, Literal

import tyro
from pydantic import Field

from forethought.core.config import config
from forethought.core.errors import ConfigError
from forethought.data import STDLIB, CorpusConfig
from forethought.nn import TransformerConfig
from forethought.train import LoopConfig, OptimiserConfig


@config
class ModelShape:
    """The shape of a language model without its vocabulary, which the corpus brings."""

    family: Literal["llama", "qwen2", "qwen3"] = "llama"
    """Which Hugging Face family the exported model belongs to."""
    hidden_size: int = Field(default=192, ge=8)
    """Width of the residual stream."""
    num_layers: int = Field(default=4, ge=1)
    """Transformer blocks."""
    num_heads: int = Field(default=3, ge=1)
    """Attention heads a block."""
    num_kv_heads: int | None = Field(default=None, ge=1)
    """Heads of keys and values; None: as many as attention heads."""
    intermediate_size: int | None = Field(default=None, ge=8)
    """Width inside the MLP; None: about 8/3 of the hidden size."""
    rope_theta: float = Field(default=10_000.0, gt=0.0)
    """Base of the rotary positions."""
    tie_embeddings: bool = True
    """Use the token embedding as the output head too."""

    def transformer(self, vocab_size: int, max_positions: int) -> TransformerConfig:
        """Return the full transformer config for a vocabulary and a longest context."""
        return TransformerConfig(
            family=self.family,
            vocab_size=vocab_size,
            hidden_size=self.hidden_size,
            num_layers=self.num_layers,
            num_heads=self.num_heads,
            num_kv_heads=self.num_kv_heads,
            intermediate_size=self.intermediate_size,
            max_positions=max_positions,
            rope_theta=self.rope_theta,
            tie_embeddings=self.tie_embeddings,
            qk_norm=self.family == "qwen3",
            qkv_bias=self.family == "qwen2",
        )


@config
class DistillationConfig:
    """How a student learns from a teacher's soft labels."""

    share: float = Field(default=1.0, ge=0.0, le=1.0)
    """Share of the soft loss; the rest is the loss on the text."""
    temperature: float = Field(default=1.0, gt=0.0)
    """Softens both laws before they are compared."""


@config
class FitConfig:
    """Everything that a fit depends on; two fits of one config on one machine give the same bits."""

    sources: Annotated[tuple[str, ...], tyro.conf.Suppress] = (STDLIB,)
    """Text files, folders, JSONL, Parquet, one prepared corpus, or "stdlib"."""
    corpus: CorpusConfig = CorpusConfig()
    model: ModelShape = ModelShape()
    optimiser: OptimiserConfig = OptimiserConfig()
    loop: LoopConfig = LoopConfig()
    distillation: DistillationConfig = DistillationConfig()
    teacher: str | None = None
    """A model directory whose soft labels are learned; without it the text itself is."""
    batch_size: int = Field(default=16, ge=1)
    """Windows a micro-batch, over all processes."""
    context: int = Field(default=256, ge=2)
    """Tokens a window."""
    max_positions: int = Field(default=1024, ge=2)
    """The longest context the exported model says it can take."""
    document_mask: bool = False
    """Hide other documents in the same window from attention."""
    evaluation_tokens: int = Field(default=65_536, ge=1)
    """Validation tokens of an evaluation while training."""
    final_tokens: int = Field(default=1_000_000, ge=0)
    """Tokens of each held-out split measured at the end, by the model and the baselines alike; 0: all."""
    baselines: bool = True
    """Measure the unigram and the 5-gram Kneser-Ney loss on the same tokens."""
    seed: int = Field(default=0, ge=0)
    """Decides the first weights, the order of the data and every other draw."""
    parallel: Literal["none", "ddp", "fsdp"] = "none"
    """How several processes under torchrun share the work."""
    device: str = "cpu"
    """Where to train, such as cpu or the name of an accelerator."""

    def __post_init__(self) -> None:
        if not self.sources:
            raise ConfigError("no corpus was given; name files or folders, or stdlib for the embedded corpus")
        # A shape that cannot be built is refused here, before minutes went into the corpus.
        self.model.transformer(self.corpus.vocab_size, max(self.max_positions, self.context))
