"""From logits to drafted tokens and the laws they were drawn from, for the rows of several requests in one pass.

A law that is sent is the law that was drawn from, to the last bit: it is rounded to single precision first, the token
is drawn from what the rounding left, and whoever verifies divides by the sum of the rounded values as well.

Shape suffixes: N rows, M rows whose logits are wanted, B rows of one request, D passes, V vocabulary, F guesses.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from forethought.core.errors import ForethoughtError
from forethought.decode.drafter.foresight import Foresight
from forethought.decode.drafter.trunk import Share, Trunk, rows_of
from forethought.decode.law.sampling import distribution, law_filters, uses_kernels
from forethought.decode.law.verify import draw
from forethought.decode.single.ssd import saguaro
from forethought.nn.native import top_k
from forethought.nn.native.law import sample
from forethought.nn.paged import greedy_chain
from forethought.nn.rows import Int32, PagedModel, Rows


@dataclass(slots=True)
class Step:
    """One request's part of a drafting pass: its share, where the drafted tokens will stand, and at which depth.

    `later_BD` are the slots for the drafted tokens of D more passes, where they may follow in one go; `laws_BV` has
    room for the laws of sampled ones, if the caller has some.
    """

    trunk: Trunk
    share: Share
    positions: Sequence[int]
    depth: int
    later_BD: Int32 | None = None
    laws_BV: Tensor | None = None


@dataclass(slots=True)
class Column:
    """The tokens (B, D) that a request's rows drafted in D passes, and their laws (B, V) where they were sampled."""

    tokens_BD: NDArray[np.int64]
    laws_BV: Tensor | None = None


Sampler: TypeAlias = Callable[[Tensor, Step], Column]


def sampler(constant: float, num_speculative_tokens: int, foresight_of: Callable[[Trunk], Foresight]) -> Sampler:
    """Return what samples a step's tokens: by the request's own law, with Saguaro sampling if `constant` is below 1."""

    def sampled(logits_BV: Tensor, step: Step) -> Column:
        trunk = step.trunk
        numbers = [trunk.chance.draft(position) for position in step.positions]
        if constant == 1.0 and uses_kernels(logits_BV, trunk.params):
            filters = law_filters(trunk.params)
            tokens_B, law_BV = sample(logits_BV, trunk.params.temperature, numbers, filters, out_MV=step.laws_BV)
            return Column(tokens_B[:, None], law_BV)
        law_BV = distribution(logits_BV, trunk.params)
        if constant < 1.0:
            fan_out = foresight_of(trunk).fan_out("cache", num_speculative_tokens)
            law_BV = saguaro(law_BV, fan_out[step.depth], constant)
        law_BV = law_BV.to(device="cpu", dtype=torch.float32)
        return Column(np.array(draw(law_BV, numbers), dtype=np.int64)[:, None], law_BV)

    return sampled


@torch.inference_mode()
def draft_step(model: PagedModel, steps: Sequence[Step], sampled: Sampler) -> list[Column]:
    """Run a pass, or several where all requests are greedy and all steps have slots for them; one column a request.

    Raises:
        ForethoughtError: the model gave logits that are no numbers.
    """
    rows = rows_of([step.share for step in steps])
    if all(step.trunk.is_greedy for step in steps):
        return _greedy_columns(model, rows, steps)
    logits_MV = model.logits(rows)
    columns: list[Column] = []
    end = 0
    for step in steps:
        part_BV = logits_MV[end : end + step.share.num_wanted]
        end += step.share.num_wanted
        if step.trunk.is_greedy:
            columns.append(Column(_checked(part_BV.argmax(dim=-1, keepdim=True).cpu().numpy())))
        else:
            columns.append(sampled(part_BV, step))
    return columns


@torch.inference_mode()
def guess(model: PagedModel, shares: Sequence[Share], drafted: Sequence[Sequence[int]], width: int) -> list[list[int]]:
    """Run one pass and return the likeliest tokens after each of the wanted rows, the best first, `width` at most.

    The wanted rows of a request are its last committed token and its drafted ones; a drafted token cannot be the bonus
    token where it is rejected, so it is not among the guesses there.
    """
    excluded_M = np.array([token for tokens in drafted for token in (*tokens, -1)], dtype=np.int64)
    width = min(width, model.config.vocab_size - 1)
    likeliest = getattr(model, "likeliest", None)
    if likeliest is not None:
        # On an accelerator the logits stay there.
        return likeliest(rows_of(shares), width, excluded_M).tolist()
    return top_k(model.logits(rows_of(shares)), width, excluded_M).tolist()


@torch.inference_mode()
def read(model: PagedModel, shares: Sequence[Share]) -> None:
    """Run one pass for its keys and values only."""
    model.greedy(rows_of(shares))


def _greedy_columns(model: PagedModel, rows: Rows, steps: Sequence[Step]) -> list[Column]:
    later = [step.later_BD for step in steps if step.later_BD is not None]
    if len(later) == len(steps) and later[0].shape[1] > 0:
        chain = getattr(model, "greedy_chain", None) or partial(greedy_chain, model)
        tokens_MD = _checked(chain(rows, later[0] if len(later) == 1 else np.concatenate(later)))
    else:
        tokens_MD = _checked(model.greedy(rows))[:, None]
    if len(steps) == 1:
        return [Column(tokens_MD)]
    ends = np.cumsum([step.share.num_wanted for step in steps])[:-1]
    return [Column(part_BD) for part_BD in np.split(tokens_MD, ends)]


def _checked(tokens: NDArray[np.int64]) -> NDArray[np.int64]:
    if len(tokens) and int(tokens.min()) < 0:
        raise ForethoughtError("the draft model gave logits that are no numbers; its weights are damaged")
    return tokens
