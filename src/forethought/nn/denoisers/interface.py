"""What every denoiser is: a map of (noisy chunk, time, clean conditions), and a bound form for many calls in a row.

Legend: B batch, F horizon, X features a step, K context tokens, C features of one, Y features of an aligned condition.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
from torch import Tensor, nn

from forethought.core.errors import InputError
from forethought.nn.denoisers.config import DenoiserConfig
from forethought.nn.denoisers.packed import pack_linears

Prepared = tuple[Tensor, ...]
_MAX_LEVELS = 1024


class Denoiser(nn.Module, ABC):
    """Base of the denoisers: `prepare` digests the clean conditions, `level` the time, `run` maps the chunk."""

    def __init__(self, shape: DenoiserConfig) -> None:
        super().__init__()
        self.shape = shape
        self._levels: dict[float, Prepared] | None = None

    @abstractmethod
    def prepare(self, context: Tensor | None, aligned: Tensor | None) -> Prepared:
        """Return whatever of the conditions does not depend on the chunk or the time."""
        ...

    @abstractmethod
    def level(self, times: Tensor) -> Prepared:
        """Return whatever of the times [B or 1] does not depend on the chunk or the conditions."""
        ...

    @abstractmethod
    def run(self, x_BFX: Tensor, level: Prepared, prepared: Prepared) -> Tensor:
        """Return the raw output for chunks, from what `level` and `prepare` returned."""
        ...

    def evaluate(self, x_BFX: Tensor, times: Tensor, prepared: Prepared) -> Tensor:
        """Return the raw output for chunks at times [B or 1]."""
        if self._levels is None or len(times) != 1 or times.device.type != "cpu":
            return self.run(x_BFX, self.level(times), prepared)
        time = float(times)
        if time not in self._levels:
            if len(self._levels) >= _MAX_LEVELS:
                self._levels.clear()
            self._levels[time] = self.level(times)
        return self.run(x_BFX, self._levels[time], prepared)

    def frozen(self, dtype: torch.dtype = torch.float32) -> Denoiser:
        """Return a copy for inference, with its weights as they are now, in another type if asked.

        It takes and returns chunks in their own type through `bind`, and on a CPU digests each time once for all calls,
        its weights laid out for the processor. It is equal to the network up to the rounding of fp32; bfloat16 errs by
        about 1e-2. It stays on its device: freeze again after a move.
        """
        made = copy.deepcopy(self).requires_grad_(False).eval().to(dtype)
        pack_linears(made)
        made._levels = {}
        return made

    @property
    def input_dtype(self) -> torch.dtype:
        """The type that conditions and chunks are cast to."""
        return next(self.parameters()).dtype

    def forward(
        self, x_BFX: Tensor, times: Tensor, context: Tensor | None = None, aligned: Tensor | None = None
    ) -> Tensor:
        """Return the raw output [B, F, X] for chunks at times [B or 1].

        `context` is [B or 1, K, C], `aligned` [B or 1, F, Y]; a first axis of 1 is shared by all rows.

        Raises:
            InputError: a condition is missing, unwanted or of another shape than the denoiser was built for.
        """
        self._check(x_BFX, times, context, aligned)
        return self.evaluate(x_BFX, times, self.prepare(context, aligned))

    def bind(self, context: Tensor | None = None, aligned: Tensor | None = None) -> Callable[[Tensor, Tensor], Tensor]:
        """Return (chunks, times) -> raw output for fixed conditions, without gradients; conditions are digested once.

        Raises:
            InputError: a condition is missing, unwanted or of another shape than the denoiser was built for.
        """
        self._check_conditions(context, aligned)
        dtype = self.input_dtype
        context, aligned = (None if each is None else each.to(dtype) for each in (context, aligned))
        with torch.no_grad():
            prepared = self.prepare(context, aligned)

        def denoise(x_BFX: Tensor, times: Tensor) -> Tensor:
            with torch.no_grad():
                return self.evaluate(x_BFX.to(dtype), times, prepared).to(x_BFX.dtype)

        return denoise

    def _check(self, x_BFX: Tensor, times: Tensor, context: Tensor | None, aligned: Tensor | None) -> None:
        shape = self.shape
        if x_BFX.ndim != 3 or x_BFX.shape[1:] != (shape.horizon, shape.size):
            raise InputError(
                f"chunks have shape {tuple(x_BFX.shape)}; this denoiser takes (rows, {shape.horizon}, {shape.size})"
            )
        if times.ndim != 1 or len(times) not in (1, len(x_BFX)):
            raise InputError(
                f"times have shape {tuple(times.shape)}; give one time, or one for each of {len(x_BFX)} rows"
            )
        self._check_conditions(context, aligned, rows=len(x_BFX))

    def _check_conditions(self, context: Tensor | None, aligned: Tensor | None, rows: int | None = None) -> None:
        shape = self.shape
        for name, value, wanted in (
            ("context", context, (shape.num_context, shape.context_size) if shape.num_context else None),
            ("aligned", aligned, (shape.horizon, shape.aligned_size) if shape.aligned_size else None),
        ):
            given = None if value is None else tuple(value.shape)
            fits = given is None if wanted is None else given is not None and given[1:] == wanted
            if not fits or (rows is not None and given is not None and given[0] not in (1, rows)):
                need = "none" if wanted is None else f"(rows or 1, {wanted[0]}, {wanted[1]})"
                raise InputError(f"the condition {name!r} has shape {given}; this denoiser takes {need}")
