"""What a CUDA graph cannot hold, found out without a GPU: run on the meta device under this mode."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class NothingFromTheHost(TorchDispatchMode):
    """Fails on values that are read back and on tensors that come from the host."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Check one operation and do it."""
        assert "_local_scalar_dense" not in str(func), "a value is read back"
        tensors = [part for part in tree_leaves((args, kwargs)) if isinstance(part, torch.Tensor)]
        assert all(part.device.type == "meta" for part in tensors), f"{func} takes a tensor of the host"
        return func(*args, **(kwargs or {}))
