"""Forethought: turn compute into capability by predicting before it happens."""

from __future__ import annotations

from forethought.core.artefact import load

__version__ = "0.1.0"
__all__ = ["__version__", "load"]
