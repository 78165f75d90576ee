"""Models out of the house besides Hugging Face directories: GGUF, and the card that says what a model is."""

from __future__ import annotations

from forethought.pretrain.export.card import model_card, write_card
from forethought.pretrain.export.gguf import write_gguf

__all__ = ["model_card", "write_card", "write_gguf"]
