"""Models out of the house besides Hugging Face directories: GGUF, and the card that says what a model is."""

from __future__ import annotations

from forethought.pretrain.export.card import model_card, write_card
from forethought.pretrain.export.gguf import write_gguf
from forethought.pretrain.export.slot import Vouched, attach_certificate, weights_sha256

__all__ = ["Vouched", "attach_certificate", "model_card", "weights_sha256", "write_card", "write_gguf"]
