"""Attention, key-value cache, the one transformer block and the causal language model around it.

Start with config.py and block.py; language_model.py puts blocks together; huggingface.py reads directories and
huggingface_save.py writes them.
"""

from __future__ import annotations

from forethought.nn.block import Block
from forethought.nn.cache import DenseCache, KeyValueCache
from forethought.nn.config import (
    BlockConfig,
    ParameterCount,
    RopeScaling,
    TransformerConfig,
    flops_per_token,
    num_parameters,
)
from forethought.nn.denoisers import (
    DENOISER_PRESETS,
    Denoiser,
    DenoiserConfig,
    MLPDenoiser,
    RegressorConfig,
    SequenceRegressor,
    TransformerDenoiser,
    build_denoiser,
    denoiser_preset,
)
from forethought.nn.families import FAMILIES, Family
from forethought.nn.huggingface import (
    SpecialTokenIds,
    load_language_model,
    read_language_model_config,
    special_token_ids,
)
from forethought.nn.huggingface_save import save_language_model
from forethought.nn.initialise import initialise
from forethought.nn.language_model import LanguageModel
from forethought.nn.layers import Embedding, Linear, RMSNorm
from forethought.nn.mask import causal_mask, document_mask, document_positions
from forethought.nn.native import NativeError, NativePagedModel, top_k
from forethought.nn.paged import ChainModel, TorchPagedModel, greedy_chain, open_paged_model
from forethought.nn.rotary import Rotary
from forethought.nn.rows import PagedModel, Rows

__all__ = [
    "DENOISER_PRESETS",
    "FAMILIES",
    "Block",
    "BlockConfig",
    "ChainModel",
    "Denoiser",
    "DenoiserConfig",
    "DenseCache",
    "Embedding",
    "Family",
    "KeyValueCache",
    "LanguageModel",
    "Linear",
    "MLPDenoiser",
    "NativeError",
    "NativePagedModel",
    "PagedModel",
    "ParameterCount",
    "RMSNorm",
    "RegressorConfig",
    "RopeScaling",
    "Rotary",
    "Rows",
    "SequenceRegressor",
    "SpecialTokenIds",
    "TorchPagedModel",
    "TransformerConfig",
    "TransformerDenoiser",
    "build_denoiser",
    "causal_mask",
    "denoiser_preset",
    "document_mask",
    "document_positions",
    "flops_per_token",
    "greedy_chain",
    "initialise",
    "load_language_model",
    "num_parameters",
    "open_paged_model",
    "read_language_model_config",
    "save_language_model",
    "special_token_ids",
    "top_k",
]
