"""Numbers to levels of a codebook with a straight-through gradient, and the price of the levels as a smooth function.

Legend: d numbers, S segments that have a codebook each, L levels.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from forethought.certify.codes import GridCodebook, Segment, TableCodebook, assign, fit_grid, fit_table
from forethought.certify.codes.codebook import to_half
from forethought.certify.decoder.recipe import CodebookRecipe

_SOFTNESS = 0.2  # of the squared mean gap of a codebook: a level's neighbour then has 0.7 % at the level itself
_LEAST_STEP = 2.0**-14


class Quantiser(nn.Module):
    """Codebooks of a recipe, learnt with the numbers; always used as rounded to fp16, which is what a message holds."""

    template: Tensor
    owner: Tensor

    def __init__(self, recipe: CodebookRecipe, segments: Sequence[int], numbers: Tensor) -> None:
        """Fit the first codebooks to numbers [d], segment by segment."""
        super().__init__()
        self.recipe, self.segments = recipe, tuple(segments)
        pieces = np.split(numbers.detach().double().numpy(), np.cumsum(self.segments)[:-1])
        if recipe.kind == "table":
            first = np.stack([fit_table(piece, recipe.levels).values for piece in pieces])
        else:
            first = np.array([[fit_grid(piece, recipe.levels).step] for piece in pieces])
        self.values = nn.Parameter(torch.from_numpy(first).to(numbers.dtype))
        template = torch.arange(recipe.levels, dtype=numbers.dtype) - (recipe.levels - 1) / 2.0
        self.register_buffer("template", template, persistent=False)
        owner = torch.repeat_interleave(torch.arange(len(self.segments)), torch.tensor(self.segments))
        self.register_buffer("owner", owner, persistent=False)

    def centres(self) -> Tensor:
        """Return the levels [S, L] as a message would hold them; the gradient passes the rounding."""
        values = self.values if self.recipe.kind == "table" else self.values.clamp_min(_LEAST_STEP)
        rounded = values + (values.half().to(values.dtype) - values).detach()
        return rounded if self.recipe.kind == "table" else rounded * self.template

    def forward(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """Return (values, bits): the nearest level of each number, and a smooth estimate of what the symbols cost.

        The value's gradient goes to the number as if nothing had been rounded, and to the level that was chosen. The
        bits are those of the letters' present frequencies, spread softly over neighbouring levels, with a gradient to
        the numbers alone.
        """
        if self.recipe.kind == "grid":
            return self._on_grid(numbers)
        centres_dL = self.centres()[self.owner]
        distances_dL = (numbers[:, None] - centres_dL).detach().square()
        symbols = distances_dL.argmin(1)
        chosen = centres_dL.gather(1, symbols[:, None]).squeeze(1)
        return chosen + (numbers - numbers.detach()), self._bits(numbers, centres_dL.detach(), symbols)

    def coded(self, numbers: Tensor, *, thrift: float = 0.0) -> list[Segment]:
        """Return the segments of a message; thrift > 0 lets cheap levels win ties, in squared gaps a bit."""
        pieces = np.split(numbers.detach().double().numpy(), np.cumsum(self.segments)[:-1])
        raw = self.values.detach().double().numpy()
        segments: list[Segment] = []
        for piece, row in zip(pieces, raw, strict=True):
            if self.recipe.kind == "table":
                book = TableCodebook(tuple(float(value) for value in to_half(row)))
            else:
                step = float(to_half(np.maximum(row, _LEAST_STEP))[0])
                book = GridCodebook(self.recipe.levels, step)
            symbols = assign(piece, book)
            if thrift > 0.0:
                counts = np.bincount(symbols, minlength=book.num_levels) + 0.5
                gap = float(np.ptp(book.values)) / (book.num_levels - 1)
                symbols = assign(piece, book, rate=thrift * gap**2, level_bits=-np.log2(counts / counts.sum()))
            segments.append(Segment(symbols, book))
        return segments

    def _on_grid(self, numbers: Tensor) -> tuple[Tensor, Tensor]:
        """The same without a table [d, L]: on a grid the nearest levels follow by arithmetic, and only two matter."""
        levels, middle = self.recipe.levels, (self.recipe.levels - 1) / 2.0
        values = self.values.squeeze(1).clamp_min(_LEAST_STEP)
        steps_d = (values + (values.half().to(values.dtype) - values).detach())[self.owner]
        places_d = numbers / steps_d.detach() + middle
        symbols = places_d.detach().round().clamp_(0, levels - 1)
        chosen = (symbols - middle) * steps_d
        below_d = places_d.detach().floor().clamp_(0, levels - 2)
        upper_d = torch.sigmoid((2.0 * (places_d - below_d) - 1.0) / _SOFTNESS)
        prices = self._prices(symbols.long()).flatten()
        index_d = self.owner * levels + below_d.long()
        bits_d = prices[index_d] + upper_d * (prices[index_d + 1] - prices[index_d])
        return chosen + (numbers - numbers.detach()), bits_d.sum()

    def _prices(self, symbols: Tensor) -> Tensor:
        """Bits of every level [S, L] at the present frequencies of the symbols [d]."""
        num_segments, levels = len(self.segments), self.recipe.levels
        counts = torch.bincount(self.owner * levels + symbols, minlength=num_segments * levels)
        counts_SL = counts.view(num_segments, levels).to(self.values.dtype) + 0.5
        return (counts_SL.sum(1, keepdim=True) / counts_SL).log2()

    def _bits(self, numbers: Tensor, centres_dL: Tensor, symbols: Tensor) -> Tensor:
        levels, prices_SL = self.recipe.levels, self._prices(symbols)
        gaps_d = (centres_dL.amax(1) - centres_dL.amin(1)) / (levels - 1)
        scaled = (numbers[:, None] - centres_dL).square() / (_SOFTNESS * gaps_d.square().clamp_min(1e-12))[:, None]
        return (torch.softmax(-scaled, dim=1) * prices_SL[self.owner]).sum()
