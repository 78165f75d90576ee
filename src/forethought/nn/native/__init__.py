"""Kernels in C++ for the CPU, compiled on first use: a paged language model and the largest logits of a row.

Start with model.py; build.py compiles, library.py binds, and kernels.cpp lists what Python calls.
"""

from __future__ import annotations

from forethought.nn.native.build import NativeError
from forethought.nn.native.model import NativePagedModel
from forethought.nn.native.select import top_k

__all__ = ["NativeError", "NativePagedModel", "top_k"]
