"""Between a Hugging Face config.json and TransformerConfig; what cannot be computed is refused by key and value."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal, cast

from forethought.core.config import from_dict
from forethought.core.errors import ArtefactError, ConfigError
from forethought.nn.config import RopeScaling, TransformerConfig
from forethought.nn.families import FAMILIES, Family

# Keys that change what a model computes, and the values under which this library computes the same.
_SUPPORTED: dict[str, tuple[object, ...]] = {
    "hidden_act": ("silu", "swish"),
    "quantization_config": (None,),
    "partial_rotary_factor": (None, 1.0),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "attn_logit_softcapping": (None,),
    "final_logit_softcapping": (None,),
}
_ROPE_TYPES = ("default", "llama3")


def config_from_huggingface(values: Mapping[str, Any], *, source: str) -> TransformerConfig:
    """Read the content of a config.json; `source` names the file in errors. No code that it names is ever run.

    Raises:
        ArtefactError: a key is missing, malformed, out of range, or asks for what this library does not compute.
    """
    name = values.get("model_type")
    if not isinstance(name, str) or name not in FAMILIES:
        custom = " Its own code (auto_map) is never run." if "auto_map" in values else ""
        raise _refusal(source, "model_type", name, ", ".join(sorted(FAMILIES)), custom)
    family = FAMILIES[cast(Literal["llama", "qwen2", "qwen3"], name)]
    reader = _Reader(values, source)
    for key, allowed in _SUPPORTED.items():
        if key in values and values[key] not in allowed:
            raise _refusal(source, key, values[key], " or ".join(map(repr, allowed)))
    _refuse_windows(reader)
    max_positions = reader.integer("max_position_embeddings", family.default_max_positions)
    theta, scaling = _rope(reader, max_positions)
    optional_bias = family.attention_bias == "optional" and reader.flag("attention_bias")
    fields = {
        "family": name,
        **{field: reader.integer(key) for field, key in _SIZES.items()},
        "num_kv_heads": reader.integer("num_key_value_heads", _NONE if name == "llama" else _REQUIRED),
        "head_dim": reader.integer("head_dim", family.default_head_dim or _NONE),
        "max_positions": max_positions,
        "rope_theta": theta,
        "rope_scaling": scaling,
        "norm_eps": reader.number("rms_norm_eps", 1e-6),
        "tie_embeddings": reader.flag("tie_word_embeddings"),
        "qk_norm": family.qk_norm,
        "qkv_bias": optional_bias or family.attention_bias == "qkv",
        "attention_output_bias": optional_bias,
        "mlp_bias": family.mlp_bias_allowed and reader.flag("mlp_bias"),
    }
    try:
        return from_dict(TransformerConfig, fields, source=source).resolved
    except ConfigError as error:
        raise ArtefactError(str(error)) from error


def config_to_huggingface(config: TransformerConfig, *, dtype: str) -> dict[str, Any]:
    """Return the config.json that transformers 4 and 5 read as the same model; token ids are the caller's to add."""
    family = FAMILIES[config.family]
    rope: dict[str, Any] = {"rope_theta": config.rope_theta, "rope_type": "default"}
    values: dict[str, Any] = {
        "architectures": [family.architecture],
        "attention_dropout": 0.0,
        "dtype": dtype,
        "hidden_act": "silu",
        "hidden_size": config.hidden_size,
        "initializer_range": 0.02,
        "intermediate_size": config.resolved_intermediate_size,
        "max_position_embeddings": config.max_positions,
        "model_type": config.family,
        "num_attention_heads": config.num_heads,
        "num_hidden_layers": config.num_layers,
        "num_key_value_heads": config.resolved_kv_heads,
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        "torch_dtype": dtype,
        "use_cache": True,
        "vocab_size": config.vocab_size,
        # transformers 4 reads rope_theta and rope_scaling, transformers 5 rope_parameters.
        "rope_parameters": rope,
        "rope_scaling": None,
        "rope_theta": config.rope_theta,
    }
    if config.rope_scaling is not None:
        scaling = {
            "factor": config.rope_scaling.factor,
            "high_freq_factor": config.rope_scaling.high_freq_factor,
            "low_freq_factor": config.rope_scaling.low_freq_factor,
            "original_max_position_embeddings": config.rope_scaling.original_max_positions,
            "rope_type": "llama3",
        }
        values["rope_scaling"] = scaling
        values["rope_parameters"] = rope | scaling
    values |= _family_keys(config, family)
    return values


def _family_keys(config: TransformerConfig, family: Family) -> dict[str, Any]:
    values: dict[str, Any] = {}
    plain_head = config.resolved_head_dim * config.num_heads == config.hidden_size
    if config.family != "qwen2" or not plain_head:
        values["head_dim"] = config.resolved_head_dim
    if family.attention_bias == "optional":
        values["attention_bias"] = config.qkv_bias
    if family.mlp_bias_allowed:
        values["mlp_bias"] = config.mlp_bias
    if config.family != "llama":
        values |= {"max_window_layers": config.num_layers, "sliding_window": None, "use_sliding_window": False}
    return values


_SIZES = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "intermediate_size": "intermediate_size",
}
_LARGEST = 1e30
_REQUIRED = object()
_NONE = object()


class _Reader:
    """Typed access to a JSON object from outside: a wrong type is an error, never a conversion."""

    def __init__(self, values: Mapping[str, Any], source: str) -> None:
        self.values, self.source = values, source

    def integer(self, key: str, default: object = _REQUIRED) -> Any:
        value = self.values.get(key)
        if value is None and default is not _REQUIRED:
            return None if default is _NONE else default
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 1 << 24:
            raise _refusal(self.source, key, value, "an integer from 1 to 2**24")
        return value

    def number(self, key: str, default: object = _REQUIRED) -> float:
        value = self.values.get(key)
        if value is None and isinstance(default, float):
            return default
        if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= _LARGEST:
            return float(value)
        raise _refusal(self.source, key, value, "a positive finite number")

    def flag(self, key: str) -> bool:
        value = self.values.get(key, False)
        if not isinstance(value, bool):
            raise _refusal(self.source, key, value, "true or false")
        return value


def _refuse_windows(reader: _Reader) -> None:
    values, source = reader.values, reader.source
    window = values.get("sliding_window")
    if values.get("model_type") == "llama":
        in_use = window is not None
    else:
        first = values.get("max_window_layers", 28)
        num_layers = reader.integer("num_hidden_layers")
        # Where the key is left out, the family's own default is a window of 4096, not none.
        window = values.get("sliding_window", 4096)
        in_use = bool(values.get("use_sliding_window")) and window is not None
        in_use = in_use and not (isinstance(first, int) and first >= num_layers)
    if in_use:
        raise _refusal(source, "sliding_window", window, "full attention in every layer (no window in use)")
    kinds = values.get("layer_types")
    if kinds is not None and (not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds)):
        raise _refusal(source, "layer_types", kinds, "'full_attention' for every layer")


def _rope(reader: _Reader, max_positions: int) -> tuple[float, RopeScaling | None]:
    theta = reader.number("rope_theta", 10000.0)
    found: list[tuple[float, RopeScaling | None]] = []
    for key in ("rope_parameters", "rope_scaling"):
        section = reader.values.get(key)
        if section is None or section == {}:
            continue
        if not isinstance(section, dict) or any(isinstance(part, dict) for part in section.values()):
            raise _refusal(reader.source, key, section, "one flat object for all layers, or null")
        inner = _Reader(section, f"{reader.source}, {key}")
        if section.get("partial_rotary_factor") not in (None, 1.0):
            raise _refusal(inner.source, "partial_rotary_factor", section["partial_rotary_factor"], "1.0")
        found.append((inner.number("rope_theta", theta), _scaling(inner, reader, max_positions)))
    if len(found) == 2 and found[0] != found[1]:
        raise _refusal(reader.source, "rope_scaling", reader.values["rope_scaling"], "what rope_parameters says")
    return found[0] if found else (theta, None)


def _scaling(section: _Reader, whole: _Reader, max_positions: int) -> RopeScaling | None:
    kind = section.values.get("rope_type", section.values.get("type", "default"))
    if kind == "default":
        return None
    if kind != "llama3":
        raise _refusal(section.source, "rope_type", kind, ", ".join(_ROPE_TYPES))
    inside = section.integer("original_max_position_embeddings", max_positions)
    try:
        return RopeScaling(
            factor=section.number("factor"),
            low_freq_factor=section.number("low_freq_factor"),
            high_freq_factor=section.number("high_freq_factor"),
            original_max_positions=whole.integer("original_max_position_embeddings", inside),
        )
    except ConfigError as error:
        raise ArtefactError(f"{section.source}: {error}") from error


def _refusal(source: str, key: str, value: object, allowed: str, more: str = "") -> ArtefactError:
    shown = repr(value)
    shown = shown if len(shown) <= 80 else shown[:77] + "..."
    return ArtefactError(f"{source}: {key} = {shown} is not supported; allowed: {allowed}.{more}")
