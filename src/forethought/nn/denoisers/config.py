"""The shape of a denoiser, and the presets: a residual MLP, a transformer, a patched transformer."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from forethought.core.config import config
from forethought.core.errors import ConfigError, unknown_name

Size = Annotated[int, Field(ge=1, le=1 << 20)]
Count = Annotated[int, Field(ge=0, le=1 << 20)]
Backbone = Literal["mlp", "transformer"]


@config
class DenoiserConfig:
    """What a denoiser maps and with what: noisy chunks [B, horizon, size] given clean conditions.

    `context` are `num_context` clean tokens of `context_size` (history and present); `aligned` is a clean vector of
    `aligned_size` for each step of the chunk (actions, for a dynamics model). Zero means none.

    Raises:
        ConfigError: the horizon is no multiple of the patch, heads do not divide the width, or sizes contradict.
    """

    size: Size
    """Features of a step of the chunk."""
    horizon: Size
    """Steps of the chunk."""
    context_size: Count = 0
    """Features of a context token."""
    num_context: Count = 0
    """Context tokens."""
    aligned_size: Count = 0
    """Features of the aligned condition of each step."""
    backbone: Backbone = "mlp"
    """mlp (over the flattened chunk) or transformer."""
    hidden_size: Size = 256
    """Width of the residual stream."""
    num_layers: Size = 3
    """Residual blocks."""
    num_heads: Size = 8
    """Heads of the transformer."""
    intermediate_size: Size | None = None
    """Middle of the feed-forward layers; None: twice (mlp) or 8/3 of (transformer) the width."""
    patch: Size = 1
    """Steps a token of the transformer."""
    aligned_tokens: bool = False
    """Give the aligned condition tokens of its own, and not channels of the chunk's."""
    qk_norm: bool = False
    """Normalise queries and keys of the transformer."""

    def __post_init__(self) -> None:
        if (self.context_size == 0) != (self.num_context == 0):
            raise ConfigError(
                f"num_context {self.num_context} and context_size {self.context_size}: give both, or neither"
            )
        if self.backbone == "transformer" and self.horizon % self.patch:
            raise ConfigError(f"horizon {self.horizon} is no multiple of patch {self.patch}; change one of them")
        if self.backbone == "transformer" and self.hidden_size % (2 * self.num_heads):
            raise ConfigError(
                f"hidden_size {self.hidden_size} is no multiple of twice num_heads {self.num_heads}; change one of them"
            )


def denoiser_preset(name: str, **sizes: Any) -> DenoiserConfig:
    """Return a preset with the sizes of the data filled in; further fields override the preset's.

    Raises:
        ConfigError: the preset is unknown or a field does not fit.
    """
    if name not in DENOISER_PRESETS:
        raise unknown_name("denoiser preset", name, DENOISER_PRESETS)
    return DenoiserConfig(**{**DENOISER_PRESETS[name], **sizes})


DENOISER_PRESETS: dict[str, dict[str, Any]] = {
    "tiny": {"backbone": "mlp", "hidden_size": 128, "num_layers": 2},
    "cpu": {"backbone": "mlp", "hidden_size": 256, "num_layers": 3},
    "patched": {"backbone": "transformer", "hidden_size": 128, "num_layers": 3, "num_heads": 4, "patch": 4},
    # Feed-forward 2048 of a plain MLP has 2 * 256 * 2048 weights; a gated one of 1360 has as many (3 * 256 * 1360).
    "paper": {
        "backbone": "transformer",
        "hidden_size": 256,
        "num_layers": 5,
        "num_heads": 8,
        "intermediate_size": 1360,
    },
}
