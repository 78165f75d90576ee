"""A paged model for an accelerator: passes of static shapes, each captured once as a CUDA graph and then replayed.

A pass is laid out as groups of rows of one sequence. A group's keys are gathered once, by its sequence's pages and by
the slots that its rows name besides; a mask says which row sees which. Every size is rounded up to a bucket, so few
shapes occur, and all that a pass reads or returns lies in buffers that stay where they are: one copy brings the numbers
of a pass to the device, and only token ids come back. Where there are no graphs the same code runs step by step.

Rows that only fill a bucket write to a slot of their own, the sink, and what a group's keys have no use for is read
from another one that is always zero, so neither can touch or be touched by what a page holds.

Shape suffixes: G groups, R rows of a group, C = G R cells, N rows asked for, S sequences, P pages, E extra slots of a
group, L keys of a group, U pairs of a group and an extra slot, X extra slots of a row, W logits computed, M wanted
ones, K later passes of a chain or key-value heads (in KD), H query heads, D width of the model or a head, V vocabulary.
"""

from __future__ import annotations

from functools import partial
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from forethought.core.errors import InputError
from forethought.nn.block import Block
from forethought.nn.graphed_layout import Fields, Layout, Shape, carve, later_rows
from forethought.nn.graphed_runner import runner_for
from forethought.nn.language_model import LanguageModel
from forethought.nn.paged_cache import MAX_SLOTS, check_pool, check_rows
from forethought.nn.rotary import Rotation, rotate
from forethought.nn.rows import Int32, Rows


class GraphedPagedModel:
    """A PagedModel for an accelerator, with chains of greedy tokens that stay on it.

    It takes the projections of queries, keys and values as they are when it is built and the other weights as they are
    at each call; the model must stay where it is. Passes of at most `graphed_rows` rows, bucket included, are
    captured when their shape first occurs; the `max_graphs` shapes used last are kept. Contexts are taken to have
    `least_context` positions at least. Rows are not bit-identical across shapes (`exact` is false), and what is no
    number in one row may spread to the rows of its sequence in the same pass, not to others. One thread calls it.

    Raises:
        InputError: there are no pages, or too many, or no rows or graphs may be.
    """

    exact = False
    fallback_reason: str | None = None

    def __init__(
        self,
        model: LanguageModel,
        num_pages: int,
        page_size: int,
        *,
        graphed_rows: int = 256,
        least_context: int = 256,
        max_graphs: int = 96,
    ) -> None:
        check_pool(num_pages, page_size)
        if num_pages * page_size > MAX_SLOTS - 2 or min(graphed_rows, least_context, max_graphs) < 1:
            raise InputError(
                f"graphed_rows {graphed_rows}, least_context {least_context}, max_graphs {max_graphs} and {num_pages} "
                f"pages of {page_size}; give at least 1 of each, and {MAX_SLOTS - 2} slots at most"
            )
        self.config, self.num_pages, self.page_size = model.config, num_pages, page_size
        self._model, self._graphed_rows, self._max_steps = model, graphed_rows, max_graphs
        self._least_pages = -(-least_context // page_size)
        weight = model.embedding.weight
        self._device, self._dtype = weight.device, weight.dtype
        self._runner = runner_for(weight.device)
        self._steps: dict[Shape, _Step] = {}
        self._sink, self._zero = num_pages * page_size, num_pages * page_size + 1
        heads, width = model.config.resolved_kv_heads, model.config.resolved_head_dim
        with torch.inference_mode(False), torch.no_grad():
            shape = (num_pages * page_size + 2, heads, width)
            layers = range(model.config.num_layers)
            self._keys_SKD = [torch.zeros(shape, dtype=weight.dtype, device=weight.device) for _ in layers]
            self._values_SKD = [torch.zeros(shape, dtype=weight.dtype, device=weight.device) for _ in layers]
            self._layers = [_Projections(cast(Block, block)) for block in model.blocks]
            # The sizes are those of the largest graph: a buffer that moved would leave the graphs behind.
            self._outputs = _Outputs(graphed_rows, model.config.vocab_size, weight.device)
            self._large = _Outputs(0, model.config.vocab_size, weight.device)

    @torch.inference_mode()
    def logits(self, rows: Rows) -> Tensor:
        """Return the logits (M, V) in float32 after the wanted rows, on the model's device.

        Raises:
            InputError: an array does not fit, or a token, slot, page or position is out of range.
        """
        check_rows(rows, self.config, self.num_pages, self.page_size)
        return self._run(rows).logits_WV[: len(rows.logits_M)]

    @torch.inference_mode()
    def greedy(self, rows: Rows) -> NDArray[np.int64]:
        """Return the most likely token (M) after each of the wanted rows, the lowest id among equals.

        It is -1 where the largest logit is not finite or a logit is not a number.

        Raises:
            InputError: as `logits`.
        """
        check_rows(rows, self.config, self.num_pages, self.page_size)
        return self._runner.fetch(self._run(rows).ids_W[: len(rows.logits_M)])

    @torch.inference_mode()
    def greedy_chain(self, rows: Rows, slots_MK: Int32) -> NDArray[np.int64]:
        """Return what forethought.nn.paged.greedy_chain returns; the host waits once, for all the tokens.

        Raises:
            InputError: as there.
        """
        check_rows(rows, self.config, self.num_pages, self.page_size, slots_MK)
        num_chains, num_later = slots_MK.shape
        ids_M = self._run(rows).ids_W[:num_chains]
        if not num_later or not num_chains:
            return self._runner.fetch(ids_M)[:, None]
        drawn = [ids_M.clone()]
        layout = self._layout(later_rows(rows, slots_MK, num_later))
        step = self._step(layout.shape)
        stage_KI, tokens_C = self._staged(layout, rows, slots_MK), step.fields.tokens_C
        for words_I in stage_KI:
            step.words_I.copy_(words_I)
            # A chain's one row is the wanted one: its cell is where the token drawn last is wanted.
            tokens_C.index_copy_(0, step.fields.wanted_W[:num_chains].long(), drawn[-1].clamp(min=0).int())
            drawn.append(self._compute(step).ids_W[:num_chains].clone())
        ids_MK = self._runner.fetch(torch.stack(drawn, dim=1))
        # A chain that ended was fed on nevertheless; its slots are its own.
        ids_MK[np.logical_or.accumulate(ids_MK < 0, axis=1)] = -1
        return ids_MK

    @torch.inference_mode()
    def likeliest(self, rows: Rows, count: int, excluded_M: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
        """Return the ids (M, count) of the largest logits of each row, largest first, equals in any order.

        What is not a number counts as minus infinity. `excluded_M` names one id of each row that is left out, or -1.

        Raises:
            InputError: as `logits`, count does not fit the vocabulary, or there is not one excluded id a wanted row.
        """
        if not 1 <= count <= self.config.vocab_size - (excluded_M is not None):
            raise InputError(f"count {count} of a vocabulary of {self.config.vocab_size}; give 1 up to its size")
        if excluded_M is not None and excluded_M.shape != rows.logits_M.shape:
            raise InputError(f"{excluded_M.shape} excluded ids for {len(rows.logits_M)} rows; give one a row, or -1")
        logits_MV = self.logits(rows).nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
        if excluded_M is not None:
            excluded_M1 = torch.from_numpy(excluded_M).to(logits_MV.device)[:, None]
            kept_M1 = logits_MV.gather(1, excluded_M1.clamp(min=0))
            lowest_M1 = torch.where(excluded_M1 >= 0, -torch.inf, kept_M1)
            logits_MV.scatter_(1, excluded_M1.clamp(min=0), lowest_M1)
        return self._runner.fetch(logits_MV.topk(count, dim=1).indices)

    def _run(self, rows: Rows) -> _Outputs:
        if not len(rows.tokens_N):
            return self._outputs
        layout = self._layout(rows)
        step = self._step(layout.shape)
        self._runner.await_sent()
        layout.fill(step.host_fields, rows)
        step.words_I.copy_(step.host_I, non_blocking=True)
        self._runner.note_sent()
        return self._compute(step)

    def _staged(self, layout: Layout, rows: Rows, slots_MK: Int32) -> Tensor:
        """The words of all later passes of a chain, on the device."""
        num_later, size = slots_MK.shape[1], layout.shape.num_words
        host_KI = self._runner.host_buffer((num_later, size))
        for place in range(num_later):
            fields = carve(host_KI.numpy()[place], host_KI[place].view(torch.uint8).numpy(), layout.shape)
            num_extra = None if rows.extra_NE is None else rows.extra_NE.shape[1] + place + 1
            layout.fill(fields, later_rows(rows, slots_MK, place + 1), num_extra)
        return host_KI.to(self._device, non_blocking=True)

    def _layout(self, rows: Rows) -> Layout:
        return Layout(rows, self.page_size, self._least_pages, self._sink, self._graphed_rows)

    def _step(self, shape: Shape) -> _Step:
        """The buffers of a shape, which becomes the one used last."""
        step = self._steps.pop(shape, None)
        if step is None:
            step = _Step(shape, self._runner.host_buffer((shape.num_words,)), self._device)
            while len(self._steps) >= self._max_steps:
                oldest = next(iter(self._steps))
                self._runner.forget(oldest)
                del self._steps[oldest]
        self._steps[shape] = step
        return step

    def _compute(self, step: _Step) -> _Outputs:
        shape = step.shape
        if shape.num_cells <= self._graphed_rows:
            self._runner.run(shape, partial(self._forward, step, self._outputs))
            return self._outputs
        if shape.num_wanted > len(self._large.ids_W):
            self._large = _Outputs(shape.num_wanted, self.config.vocab_size, self._device)
        self._forward(step, self._large)
        return self._large

    def _forward(self, step: _Step, outputs: _Outputs) -> None:
        """One pass from buffers to buffers; nothing in here may wait for the device or depend on what they hold."""
        shape, fields, model = step.shape, step.fields, self._model
        x_CD = model.embedding(fields.tokens_C)
        rotation = model.rotary(fields.positions_C, self._dtype)
        keys_I, bias_G1RL = self._keys(shape, fields)
        slots_C = fields.slots_C.long()
        for number, layer in enumerate(self._layers):
            x_CD = x_CD + self._attend(number, layer, x_CD, rotation, slots_C, keys_I, bias_G1RL)
            x_CD = x_CD + layer.block.mlp(layer.block.mlp_norm(x_CD))
        if shape.num_wanted:
            logits_WV, ids_W = outputs.logits_WV[: shape.num_wanted], outputs.ids_W[: shape.num_wanted]
            logits_WV.copy_(model.head(model.norm(x_CD.index_select(0, fields.wanted_W))))
            best_W1 = logits_WV.argmax(dim=1, keepdim=True)  # the first of equals, and one that is no number before all
            ids_W.copy_(best_W1.masked_fill_(~logits_WV.gather(1, best_W1).isfinite(), -1)[:, 0])

    def _keys(self, shape: Shape, fields: Fields[Tensor]) -> tuple[Tensor, Tensor]:
        """The slots of every group's keys, one behind the other, and what is added to the scores of each."""
        groups, per_group, size = shape.num_groups, shape.rows_per_group, self.page_size
        offset_L = torch.arange(shape.num_pages * size, dtype=torch.int32, device=self._device)
        visible_GR = fields.visible_C.view(groups, per_group)
        context_GL = (fields.pages_GP[:, :, None] * size + offset_L[:size]).flatten(1)
        # Beyond what any row of the group sees a page may hold what a dead sequence left there, NaN perhaps, and
        # NaN times a weight of zero is NaN.
        context_GL = context_GL.masked_fill_(offset_L >= visible_GR.amax(dim=1, keepdim=True), self._zero)
        seen_GRL = offset_L < visible_GR[..., None]
        seen_GRL = torch.cat([seen_GRL, fields.seen_CE.view(groups, per_group, -1).bool()], dim=2)
        bias_GRL = torch.zeros(seen_GRL.shape, dtype=self._dtype, device=self._device)
        bias_GRL.masked_fill_(~seen_GRL, -torch.inf)
        heads = self.config.num_heads // self.config.resolved_kv_heads
        return torch.cat([context_GL, fields.extras_GE], dim=1).flatten(), bias_GRL.repeat(1, heads, 1)[:, None]

    def _attend(
        self,
        number: int,
        layer: _Projections,
        x_CD: Tensor,
        rotation: Rotation,
        slots_C: Tensor,
        keys_I: Tensor,
        bias_G1RL: Tensor,
    ) -> Tensor:
        """The attention sublayer of every cell, after its keys and values are written."""
        heads, kv_heads, width = self.config.num_heads, self.config.resolved_kv_heads, self.config.resolved_head_dim
        groups = bias_G1RL.shape[0]
        turned_CHD, values_CKD = layer(x_CD, rotation, heads, kv_heads)
        keys_SKD, values_SKD = self._keys_SKD[number], self._values_SKD[number]
        keys_SKD.index_copy_(0, slots_C, turned_CHD[:, heads:])
        values_SKD.index_copy_(0, slots_C, values_CKD)
        k_GKLD, v_GKLD = (
            store_SKD.index_select(0, keys_I).view(groups, -1, kv_heads, width).transpose(1, 2)
            for store_SKD in (keys_SKD, values_SKD)
        )
        # The heads that share keys become rows: no kernel with a mask takes them as they are, and none must copy keys.
        q_GRKHD = turned_CHD[:, :heads].reshape(groups, -1, kv_heads, heads // kv_heads, width)
        q_GKRD = q_GRKHD.permute(0, 2, 3, 1, 4).reshape(groups, kv_heads, -1, width)
        out_GKRD = functional.scaled_dot_product_attention(q_GKRD, k_GKLD, v_GKLD, attn_mask=bias_G1RL)
        out_GKHRD = out_GKRD.view(groups, kv_heads, heads // kv_heads, -1, width)
        return layer.block.attention.output(out_GKHRD.permute(0, 3, 1, 2, 4).reshape(len(x_CD), heads * width))


class _Outputs:
    """Where logits and the likeliest tokens of a pass are put."""

    def __init__(self, num_wanted: int, vocabulary_size: int, device: torch.device) -> None:
        self.logits_WV = torch.zeros(num_wanted, vocabulary_size, dtype=torch.float32, device=device)
        self.ids_W = torch.zeros(num_wanted, dtype=torch.int64, device=device)


class _Step:
    """The buffers that describe passes of one shape, on the host and on the device."""

    def __init__(self, shape: Shape, host_I: Tensor, device: torch.device) -> None:
        self.shape, self.host_I = shape, host_I
        self.words_I = torch.zeros(shape.num_words, dtype=torch.int32, device=device)
        self.host_fields = carve(host_I.numpy(), host_I.view(torch.uint8).numpy(), shape)
        self.fields = carve(self.words_I, self.words_I.view(torch.uint8), shape)


class _Projections:
    """A block, and its projections of queries, keys and values as one matrix: one product in place of three."""

    def __init__(self, block: Block) -> None:
        attention = block.attention
        parts = (attention.query, attention.key, attention.value)
        self.block = block
        self._weight = torch.cat([part.weight for part in parts])
        self._bias = None if parts[0].bias is None else torch.cat([part.bias for part in parts])

    def __call__(self, x_CD: Tensor, rotation: Rotation, heads: int, kv_heads: int) -> tuple[Tensor, Tensor]:
        """Return the turned queries and keys, one behind the other (C, H + K, D), and the values."""
        attention = self.block.attention
        all_CD = functional.linear(self.block.attention_norm(x_CD), self._weight, self._bias)
        all_CHD = all_CD.unflatten(1, (heads + 2 * kv_heads, -1))
        both_CHD, values_CKD = all_CHD[:, : heads + kv_heads], all_CHD[:, heads + kv_heads :]
        if attention.query_norm is not None and attention.key_norm is not None:
            normed = attention.query_norm(both_CHD[:, :heads]), attention.key_norm(both_CHD[:, heads:])
            both_CHD = torch.cat(normed, dim=1)
        return rotate(both_CHD, rotation), values_CKD
